#!/bin/bash
# Builds the container images that tests and the demo run beside VMs, each as an
# image archive that `crane push` and `ctr images import` read.
#
# usage: build.sh busybox|pause OUT.tar
#   BUSYBOX  the static busybox to pack (default: /bin/busybox of the Debian
#            package busybox-static)
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)

die() {
	echo "build.sh: $*" >&2
	exit 1
}

# busybox_tree DIR: every applet as a link, a web root, and root's account.
busybox_tree() {
	local busybox=${BUSYBOX:-/bin/busybox} applet
	[ -x "$busybox" ] || die "$busybox is missing; install it with: apt-get install busybox-static"
	! ldd "$busybox" >/dev/null 2>&1 || die "$busybox is not static; install it with: apt-get install busybox-static"
	mkdir -p "$1"/{bin,etc,root,tmp,var/www,proc,sys,dev}
	chmod 1777 "$1/tmp"
	install -m 755 "$busybox" "$1/bin/busybox"
	for applet in $("$busybox" --list); do
		[ "$applet" = busybox ] || ln -s busybox "$1/bin/$applet"
	done
	echo 'root:x:0:0:root:/root:/bin/sh' >"$1/etc/passwd"
	printf 'root:x:0:\n' >"$1/etc/group"
	echo 'container' >"$1/var/www/index.html"
}

pause_tree() {
	mkdir -p "$1"
	(cd "$here/pause" && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$1/pause" .)
}

# config COMMAND DIFF_ID prints the image configuration.
config() {
	cat <<JSON
{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["$1"],"WorkingDir":"/"},"rootfs":{"type":"layers","diff_ids":["sha256:$2"]},"history":[{"created":"1970-01-01T00:00:00Z","created_by":"images/containers/build.sh"}],"created":"1970-01-01T00:00:00Z"}
JSON
}

digest() { sha256sum "$1" | cut -d ' ' -f 1; }

if [ $# -ne 2 ]; then
	sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2
	exit 2
fi
name=$1
out=$(realpath -m "$2")
case $name in
busybox) command=/bin/sh ;;
pause) command=/pause ;;
*) die "image $name is unknown; there are busybox and pause" ;;
esac

work=$(mktemp -d "${TMPDIR:-/var/tmp}/container-build.XXXXXX")
trap 'rm -rf "$work"' EXIT
umask 022
mkdir "$work/image"
"${name}_tree" "$work/tree"
reproducible=(--sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner)
tar "${reproducible[@]}" -C "$work/tree" -cf "$work/image/layer.tar" .
config "$command" "$(digest "$work/image/layer.tar")" >"$work/config"
config_file=$(digest "$work/config").json
mv "$work/config" "$work/image/$config_file"
echo "[{\"Config\":\"$config_file\",\"RepoTags\":[\"localhost/$name:latest\"],\"Layers\":[\"layer.tar\"]}]" >"$work/image/manifest.json"
mkdir -p "$(dirname "$out")"
tar "${reproducible[@]}" -C "$work/image" -cf "$out.part.$$" .
mv "$out.part.$$" "$out"
