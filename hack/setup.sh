#!/usr/bin/env bash
# Makes this machine able to run Ambipod's demo and tests: Debian packages, the
# pinned Go tools, Ambipod's binaries and the images that the private node
# serves. Every step is skipped when nothing that it depends on has changed.
#
# usage: hack/setup.sh [demo|cluster|test|ceph|images|lint]
#   demo     what `make demo` and `make up` need (the default)
#   cluster  the same, and Kubernetes' control plane for `make cluster`
#   test     the same, and what only tests need
#   images   what `make images` needs
#   lint     only what `make lint` needs
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
tools=$top/_tools
logs=$tools/log
images=$tools/images
build=$top/_build/bin
want=${1:-demo}

# libvirtd and QEMU run the VMs; libvirt-dev, gcc and pkg-config build vmruntime.
packages_vm=(tini libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients
	qemu-system-x86 qemu-utils ovmf swtpm libvirt-dev gcc libc6-dev pkg-config)
# containerd's helpers and the node's network.
packages_node=(runc containernetworking-plugins iproute2 iptables nftables
	ebtables ca-certificates curl jq procps util-linux mount openssh-client)
# Kubernetes' database.
packages_cluster=(etcd-server)
# What the image recipes under images/ read or run.
packages_images=(busybox-static kmod cpio grub-common grub-pc-bin e2fsprogs
	fdisk xz-utils)
# A file system that shares blocks between files, and what unpackers are compared with.
packages_disks=(xfsprogs gzip xz-utils zstd)
# What tests/deploy checks deploy/ with.
packages_deploy=(prometheus systemd)
# What images/node/build.sh runs.
packages_images_node=(mmdebstrap debian-archive-keyring gpgv jq)
# What the recipe of the tests' Debian guest runs.
packages_debian=(mmdebstrap debian-archive-keyring gpgv)
# The bus by which kubelet is told, in tests, that the machine shuts down; an NFS server
# and what a client is made of, both outside of the kernel.
packages_e2e=(dbus-daemon nfs-ganesha-vfs nfs-common rpcbind libnfs-dev libfuse3-dev
	gcc libc6-dev pkg-config)
# A storage cluster, and the part of QEMU that reaches it.
packages_ceph=(ceph-mon ceph-osd ceph-common qemu-block-extra)
packages_lint=(shellcheck gcc libc6-dev pkg-config libvirt-dev git)

die() {
	printf 'hack/setup.sh: %s\n' "$*" >&2
	exit 1
}

# step NAME COMMAND... runs COMMAND with its output in a log file, shows that it
# is alive, and prints how long it took or the end of the log.
step() {
	local name=$1 log started=$SECONDS pid shown=0
	shift
	log=$logs/${name// /-}.log
	printf '==> %s\n' "$name"
	"$@" >"$log" 2>&1 </dev/null &
	pid=$!
	while kill -0 "$pid" 2>/dev/null; do
		if [ -t 1 ]; then
			printf '\r    %d s  %.60s\033[K' $((SECONDS - started)) "$(last_line "$log")"
		elif [ $((SECONDS - started - shown)) -ge 30 ]; then
			shown=$((SECONDS - started))
			printf '    %d s  %.60s\n' "$shown" "$(last_line "$log")"
		fi
		sleep 0.2
	done
	[ ! -t 1 ] || printf '\r\033[K'
	if ! wait "$pid"; then
		tail -n 20 "$log" >&2
		die "step \"$name\" did not succeed; the lines above are the end of $log"
	fi
	printf '    done in %d s\n' $((SECONDS - started))
}

last_line() {
	tail -n 1 "$1" | tr -dc '[:print:]'
}

check_machine() {
	[ "$(id -u)" = 0 ] ||
		die "you are not root; the node needs network namespaces, cgroups and apt: run it as root"
	[ -r /etc/os-release ] || die "/etc/os-release is missing; Debian 12 is needed"
	local ID='' VERSION_ID='' PRETTY_NAME=unknown
	# shellcheck disable=SC1091  # the machine's own file
	. /etc/os-release
	# Debian's testing and unstable suites have no version.
	if [ "$ID" != debian ] || [ "${VERSION_ID:-99}" -lt 12 ]; then
		die "this system is $PRETTY_NAME; Debian 12 or later is needed, because packages come from apt"
	fi
	command -v go >/dev/null ||
		die "no Go compiler on PATH; install Go 1.26 or later (Debian 12 has none so new) and run this again"
	local have
	have=$(cd "$top" && go env GOVERSION) ||
		die "the Go compiler on PATH cannot build this module; install Go 1.26 or later"
	[ "$(printf '%s\n' go1.26 "$have" | sort -V | head -n 1)" = go1.26 ] ||
		die "Go on PATH is $have; install Go 1.26 or later"
}

missing_packages() {
	local p
	for p; do
		[ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$p" 2>/dev/null)" = 'ii ' ] || printf '%s\n' "$p"
	done
}

# install_packages keeps Debian's own libvirtd from starting, unless somebody
# has said already what may start on this machine.
install_packages() {
	local policy=/usr/sbin/policy-rc.d made=''
	if [ ! -e $policy ]; then
		printf '#!/bin/sh\nexit 101\n' >$policy
		chmod 755 $policy
		made=$policy
	fi
	local status=0
	apt_install "$@" || status=$?
	[ -z "$made" ] || rm -f "$made"
	return $status
}

apt_install() {
	export DEBIAN_FRONTEND=noninteractive
	local options=(-q -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3)
	apt-get "${options[@]}" update &&
		apt-get "${options[@]}" install -y --no-install-recommends "$@"
}

packages() {
	local missing
	mapfile -t missing < <(missing_packages "$@")
	[ ${#missing[@]} -gt 0 ] || return 0
	printf 'Debian packages to install: %s\n' "${missing[*]}"
	step 'install Debian packages' install_packages "${missing[@]}"
}

binaries() {
	mkdir -p "$build"
	local main
	for main in "$top"/cmd/*/ "$top"/hack/node/; do
		# These run where no shared library can be counted on: vmwrapper in QEMU's
		# surroundings, vmguest in a guest, criproxy in an empty container.
		case $main in
		*/vmwrapper/ | */vmguest/ | */criproxy/) CGO_ENABLED=0 go build -trimpath -o "$build/" "$main" ;;
		*) go build -trimpath -o "$build/" "$main" ;;
		esac
	done
}

# recipe_sum FOLDER prints one checksum over all files of an image's recipe.
recipe_sum() {
	(cd "$top" && find "$1" -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum)
}

# build_image COMMAND... tries again with new package lists: recipes download
# packages, and this machine's lists may be missing or name versions that Debian
# no longer has.
build_image() {
	"$@" || { apt-get -q update && "$@"; }
}

# image FILE RECIPE COMMAND... runs COMMAND, which makes _tools/images/FILE,
# unless the file was made from the same RECIPE folder.
image() {
	local file=$1 stamp=$images/.$1 sum
	sum=$(recipe_sum "$2")
	shift 2
	if [ -e "$images/$file" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$sum" ]; then
		return
	fi
	step "build image $file" build_image "$@" "$images/$file"
	printf '%s\n' "$sum" >"$stamp"
}

# node_packages makes the layer of packages that images/node/build.sh builds upon.
node_packages() {
	image packages.tar.gz images/node/packages "$top/images/node/build.sh" --packages
}

main() {
	local node=(containerd crictl crane kubelet) cluster=(control-plane metrics-server coredns)
	check_machine
	mkdir -p "$logs" "$images"
	# One set-up at a time for each checkout.
	exec 9>"$tools/.lock"
	flock 9
	case $want in
	demo)
		packages "${packages_vm[@]}" "${packages_node[@]}" "${packages_images[@]}"
		step 'build the node tools' "$top/hack/build-tools.sh" "${node[@]}"
		;;
	cluster)
		packages "${packages_vm[@]}" "${packages_node[@]}" "${packages_images[@]}" "${packages_cluster[@]}"
		step 'build the node tools' "$top/hack/build-tools.sh" "${node[@]}"
		step 'build the control plane' "$top/hack/build-tools.sh" "${cluster[@]}"
		;;
	ceph)
		packages "${packages_vm[@]}" "${packages_node[@]}" "${packages_images[@]}" "${packages_ceph[@]}"
		step 'build the node tools' "$top/hack/build-tools.sh" "${node[@]}" gotestsum
		;;
	test)
		packages "${packages_vm[@]}" "${packages_node[@]}" "${packages_images[@]}" "${packages_cluster[@]}" \
			"${packages_debian[@]}" "${packages_disks[@]}" "${packages_images_node[@]}" "${packages_deploy[@]}" \
			"${packages_e2e[@]}" "${packages_lint[@]}"
		node_packages
		step 'build the node tools' "$top/hack/build-tools.sh" "${node[@]}" gotestsum
		step 'build the control plane' "$top/hack/build-tools.sh" "${cluster[@]}" csi-provisioner
		;;
	images)
		packages "${packages_vm[@]}" "${packages_images_node[@]}"
		step 'build Ambipod' binaries
		node_packages
		return
		;;
	lint)
		packages "${packages_lint[@]}"
		step 'build the linters' "$top/hack/build-tools.sh" golangci-lint
		return
		;;
	*)
		die "unknown argument \"$want\"; it must be demo, cluster, test, ceph, images or lint"
		;;
	esac
	step 'build Ambipod' binaries
	image tiny.qcow2 images/tiny "$top/images/tiny/build.sh"
	[ "$want" != test ] || image tiny-full.qcow2 images/tiny env TINY_KERNEL=linux-image-amd64 "$top/images/tiny/build.sh"
	[ "$want" != test ] || image debian.qcow2 images/debian "$top/images/debian/build.sh"
	image busybox.tar images/containers "$top/images/containers/build.sh" busybox
	image pause.tar images/containers "$top/images/containers/build.sh" pause
}

main
