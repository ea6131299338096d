#!/bin/bash
# Builds the container image of the node's daemons, without Docker: an OCI archive of
# two layers, Debian's packages below and our own files on top. The same files give
# the same image.
#
# usage: build.sh --packages PACKAGES.tar.gz   makes the layer of Debian's packages
#        build.sh PACKAGES.tar.gz OUT.tar      makes the image from it
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
		bookworm - | gzip -n >"$1.part"
	mv "$1.part" "$1"
}

# archive FOLDER writes a tar that depends on nothing but names, modes and contents.
archive() {
	tar --create --directory "$1" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 .
}

# blob MEDIA-TYPE FILE moves a file into the image and prints its descriptor.
blob() {
	local digest size
	digest=$(sha256sum "$2" | cut -d ' ' -f 1)
	size=$(stat -c %s "$2")
	mv "$2" "$work/image/blobs/sha256/$digest"
	jq -cn --arg type "$1" --arg digest "sha256:$digest" --argjson size "$size" \
		'{mediaType: $type, digest: $digest, size: $size}'
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
command -v jq >/dev/null || die 'jq is missing; install it with: apt-get install jq'
for program in "${programs[@]}"; do
	[ -x "$binaries/$program" ] || die "$binaries/$program is missing; build it with: make build"
done

work=$(mktemp -d "${TMPDIR:-/var/tmp}/node-image.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/tree/usr/bin" "$work/image/blobs/sha256"
cp -r "$here/rootfs/." "$work/tree/"
install -m 755 "${programs[@]/#/$binaries/}" "$work/tree/usr/bin/"
archive "$work/tree" >"$work/files.tar"
gzip -n <"$work/files.tar" >"$work/files"
cp "$base" "$work/packages"

oci=application/vnd.oci.image
jq -cn --arg packages "sha256:$(zcat "$base" | sha256sum | cut -d ' ' -f 1)" \
	--arg files "sha256:$(sha256sum "$work/files.tar" | cut -d ' ' -f 1)" '{
	architecture: "amd64", os: "linux", created: "1970-01-01T00:00:00Z",
	config: {
		Env: ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
		Cmd: ["vmruntime"],
		Labels: {
			"org.opencontainers.image.title": "Ambipod node daemons",
			"org.opencontainers.image.licenses": "Apache-2.0"
		}
	},
	rootfs: {type: "layers", diff_ids: [$packages, $files]}
}' >"$work/config"
{
	blob $oci.config.v1+json "$work/config"
	blob $oci.layer.v1.tar+gzip "$work/packages"
	blob $oci.layer.v1.tar+gzip "$work/files"
} | jq -cs --arg type $oci.manifest.v1+json \
	'{schemaVersion: 2, mediaType: $type, config: .[0], layers: .[1:]}' >"$work/manifest"
blob $oci.manifest.v1+json "$work/manifest" | jq -c --arg type $oci.index.v1+json --arg tag "$tag" '{
	schemaVersion: 2, mediaType: $type,
	manifests: [. + {annotations: {
		"io.containerd.image.name": $tag, "org.opencontainers.image.ref.name": ($tag | split(":")[-1])
	}}]
}' >"$work/image/index.json"
echo '{"imageLayoutVersion":"1.0.0"}' >"$work/image/oci-layout"
archive "$work/image" >"$out.part.$$"
mv "$out.part.$$" "$out"
