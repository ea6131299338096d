#!/bin/bash
# Builds the container image of the node's daemons as an OCI archive, without Docker.
#
# usage: build.sh --packages PACKAGES.tar   makes the file tree of Debian's packages
#        build.sh PACKAGES.tar OUT.tar      makes the image from it
#   BINARIES  folder with vmruntime, vmwrapper, vmguest and vmctl (default: _build/bin)
#   TAG       the image's name (default: ambipod/node:dev)
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
programs=(vmruntime vmwrapper vmguest vmctl)

die() {
	echo "build.sh: $*" >&2
	exit 1
}

# packages OUT: a Debian system of the listed packages, without what nobody reads in
# a container.
packages() {
	local list
	command -v mmdebstrap >/dev/null || die 'mmdebstrap is missing; install it with: apt-get install mmdebstrap'
	list=$(grep -v '^#' "$here/packages" | paste -sd ,)
	mmdebstrap --mode=root --variant=apt --include="$list" \
		--aptopt='APT::Install-Recommends "false"' \
		--dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		--dpkgopt='path-exclude=/usr/share/doc/*' \
		--dpkgopt='path-include=/usr/share/doc/*/copyright' \
		bookworm "$1.part"
	mv "$1.part" "$1"
}

if [ $# -ne 2 ]; then
	sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2
	exit 2
fi
umask 022
export SOURCE_DATE_EPOCH=0
out=$(realpath -m "$2")
mkdir -p "$(dirname "$out")"
if [ "$1" = --packages ]; then
	packages "$out"
	exit
fi
base=$1
binaries=${BINARIES:-$here/../../_build/bin}
tag=${TAG:-ambipod/node:dev}
command -v buildah >/dev/null || die 'buildah is missing; install it with: apt-get install buildah'
for program in "${programs[@]}"; do
	[ -x "$binaries/$program" ] || die "$binaries/$program is missing; build it with: make build"
done

work=$(mktemp -d "${TMPDIR:-/var/tmp}/node-image.XXXXXX")
trap 'rm -rf "$work"' EXIT
store=(buildah --storage-driver vfs --root "$work/store" --runroot "$work/run")
mkdir -p "$work/tree/usr/bin"
cp -r "$here/rootfs/." "$work/tree/"
install -m 755 "${programs[@]/#/$binaries/}" "$work/tree/usr/bin/"

container=$("${store[@]}" from scratch)
"${store[@]}" add --quiet "$container" "$base" / >/dev/null
"${store[@]}" copy --quiet "$container" "$work/tree" / >/dev/null
"${store[@]}" config --cmd vmruntime \
	--label org.opencontainers.image.title='Ambipod node daemons' \
	--label org.opencontainers.image.licenses=Apache-2.0 "$container"
"${store[@]}" commit --quiet --timestamp 0 "$container" "$tag" >/dev/null
"${store[@]}" push --quiet "$tag" "oci-archive:$out.part.$$:$tag"
mv "$out.part.$$" "$out"
