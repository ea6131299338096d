#!/bin/bash
# Builds a guest image of Debian as it is, with the real cloud-init: a bootable
# QCOW2 from this machine's own package sources. See README.md for what is in it.
#
# usage: build.sh OUT.qcow2
#   DEBIAN_SIZE  size of the guest's disk in MiB (default: 2048)
#
# It needs root, because packages run scripts in the folder that becomes the
# guest's file system. The image itself is made without mounts.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
if [ $# -ne 1 ] || [[ $1 == -* ]]; then
	sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2
	exit 2
fi
out=$(realpath -m "$1")
size=${DEBIAN_SIZE:-2048}
export PATH=$PATH:/usr/sbin:/sbin

work=$(mktemp -d "${TMPDIR:-/var/tmp}/debian-build.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root # becomes the guest's root file system

# What Debian's own cloud images have that concerns the first boot: cloud-init
# with what it recommends, netplan for systemd-networkd, the agent, a kernel
# without drivers for real hardware.
packages=(linux-image-cloud-amd64 initramfs-tools zstd systemd-sysv udev dbus
	systemd-resolved libnss-resolve netplan.io iproute2 iputils-ping kmod
	cloud-init cloud-guest-utils e2fsprogs sudo openssh-server qemu-guest-agent
	acpid ca-certificates curl)

die() {
	echo "build.sh: $*" >&2
	exit 1
}

say() { printf "debian: %3d s  %s\n" "$SECONDS" "$*"; }

require_tools() {
	local entry
	[ "$(id -u)" = 0 ] || die "run it as root: packages run scripts in the guest's file system"
	for entry in apt-get:apt mmdebstrap:mmdebstrap grub-mkimage:grub-common mke2fs:e2fsprogs \
		sfdisk:fdisk qemu-img:qemu-utils; do
		command -v "${entry%%:*}" >/dev/null ||
			die "${entry%%:*} is missing; install it with: apt-get install ${entry##*:}"
	done
	[ -e "$grub/boot.img" ] || die "$grub is missing; install it with: apt-get install grub-pc-bin"
}

# sources prints this machine's sources of Debian packages for its own release.
sources() {
	local VERSION_CODENAME=''
	# shellcheck disable=SC1091  # the machine's own file
	. /etc/os-release
	# shellcheck disable=SC2016  # apt-get expands these
	apt-get indextargets --format 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(REPO_URI) $(RELEASE) $(COMPONENT)' \
		'Created-By: Packages' 'Origin: Debian' 'Component: main' | grep -E " $VERSION_CODENAME(-updates|-security)? main\$" | sort -u
}

# make_tree installs the packages. Documentation stays out; synchronous writes do,
# too, because the folder is thrown away when anything fails.
make_tree() {
	sources >"$work/sources.list"
	[ -s "$work/sources.list" ] || die "apt knows no Debian packages here (run: apt-get update)"
	mmdebstrap --mode=root --variant=minbase --include="$(
		IFS=,
		echo "${packages[*]}"
	)" --aptopt='Apt::Install-Recommends "false"' --dpkgopt=force-unsafe-io \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		'' "$root" "$work/sources.list" >"$work/install.log" 2>&1 ||
		die "packages cannot be installed: $(tail -n 5 "$work/install.log")"
}

# A guest makes its own identity at its first boot.
make_anonymous() {
	rm -f "$root"/etc/ssh/ssh_host_* "$root"/etc/hostname "$root"/var/lib/dbus/machine-id
	: >"$root/etc/machine-id"
	ln -sf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
}

install_kernel() {
	local release
	release=$(basename "$root"/boot/vmlinuz-*)
	release=${release#vmlinuz-}
	ln -s "vmlinuz-$release" "$root/boot/vmlinuz"
	ln -s "initrd.img-$release" "$root/boot/initrd"
}

# MBR boot code, one partition from 1 MiB on, GRUB's core in the gap before it.
make_disk() {
	local raw=$work/disk.raw part=$work/part.ext4
	mke2fs -q -F -t ext4 -L debian-root -J size=16 -m 1 \
		-E root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0 -d "$root" "$part" "$((size - 1))M" >/dev/null ||
		die "the root file system does not fit into $size MiB; set DEBIAN_SIZE"
	truncate -s "${size}M" "$raw"
	echo 'start=2048, type=83, bootable' | sfdisk -q --label dos "$raw"
	# shellcheck disable=SC2016 # GRUB expands these
	printf '%s\n' 'set root=(hd0,msdos1)' 'set prefix=(hd0,msdos1)/boot/grub' \
		'configfile /boot/grub/grub.cfg' >"$work/early.cfg"
	grub-mkimage -O i386-pc -d "$grub" -c "$work/early.cfg" -p '(hd0,msdos1)/boot/grub' -o "$work/core.img" \
		biosdisk part_msdos ext2 linux16 normal configfile
	dd if="$grub/boot.img" of="$raw" bs=440 count=1 conv=notrunc status=none
	dd if="$work/core.img" of="$raw" bs=512 seek=1 conv=notrunc status=none
	dd if="$part" of="$raw" bs=1M seek=1 conv=notrunc,sparse status=none
	mkdir -p "$(dirname "$out")"
	qemu-img convert -c -m 4 -W -O qcow2 -o compat=1.1,compression_type=zstd "$raw" "$work/out.qcow2"
	mv "$work/out.qcow2" "$out.part.$$"
	mv "$out.part.$$" "$out"
}

grub=/usr/lib/grub/i386-pc
require_tools
umask 022
say "installing packages"
make_tree
make_anonymous
install_kernel
cp -a --no-preserve=ownership "$here/rootfs/." "$root/"
say "making the disk"
make_disk
say "done: $out, $(($(stat -c %s "$out") / 1024)) KiB, $size MiB virtual"
