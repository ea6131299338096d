#!/bin/bash
# Builds the Debian package criproxy.
#
# usage: build.sh VERSION FOLDER
#   BINARY  criproxy, statically linked (default: _build/bin/criproxy)
set -euo pipefail

if [ $# -ne 2 ]; then
	sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2
	exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
deploy=$here/..
version=$1
out=$(realpath -m "$2")
binary=${BINARY:-$deploy/../_build/bin/criproxy}
work=$(mktemp -d "${TMPDIR:-/var/tmp}/criproxy-deb.XXXXXX")
trap 'rm -rf "$work"' EXIT
tree=$work/tree
umask 022
export SOURCE_DATE_EPOCH=0

put() { install -D -m "$1" "$2" "$tree/$3"; }
put 755 "$binary" usr/bin/criproxy
put 755 "$deploy/node/ambipod-node" usr/sbin/ambipod-node
put 644 "$deploy/systemd/criproxy.service" lib/systemd/system/criproxy.service
put 644 "$deploy/systemd/criproxy.socket" lib/systemd/system/criproxy.socket
put 644 "$here/criproxy.yaml" etc/ambipod/criproxy.yaml
put 644 "$here/copyright" usr/share/doc/criproxy/copyright
mkdir -p "$tree/usr/share/man/man8"
# Sources of manual pages, compressed without a time stamp.
for page in "$here"/*.8; do
	gzip -9n <"$page" >"$tree/usr/share/man/man8/${page##*/}.gz"
done
printf 'criproxy (%s) stable; urgency=medium\n\n  * See CHANGELOG.md of the project.\n\n -- Ambipod maintainers <ambipod@localhost>  Thu, 01 Jan 1970 00:00:00 +0000\n' "$version" |
	gzip -9n >"$work/changelog.gz"
put 644 "$work/changelog.gz" usr/share/doc/criproxy/changelog.gz
mkdir "$tree/DEBIAN"
sed "s/@VERSION@/$version/" "$here/control" >"$tree/DEBIAN/control"
printf 'Installed-Size: %d\n' "$(du -sk --exclude DEBIAN "$tree" | cut -f 1)" >>"$tree/DEBIAN/control"
echo /etc/ambipod/criproxy.yaml >"$tree/DEBIAN/conffiles"
for script in postinst prerm postrm; do
	install -m 755 "$here/$script" "$tree/DEBIAN/$script"
done
(cd "$tree" && find . -path ./DEBIAN -prune -o -type f -printf '%P\n' | sort | xargs md5sum) >"$tree/DEBIAN/md5sums"
mkdir -p "$out"
dpkg-deb --root-owner-group --uniform-compression --build "$tree" "$out/criproxy_${version}_amd64.deb"
