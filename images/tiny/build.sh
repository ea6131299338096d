#!/bin/bash
# Builds the tiny guest image, a bootable QCOW2, from Debian packages and the
# files beside this script. See README.md for what is in it.
#
# usage: build.sh OUT.qcow2
#   TINY_CACHE  folder that keeps downloaded packages (default: beside OUT)
#   TINY_SIZE   size of the guest's disk in MiB (default: 112)
#   TINY_KERNEL Debian's package of the kernel (default: linux-image-cloud-amd64;
#               linux-image-amd64 has 9p, AHCI and e1000e, which that one lacks)
#
# Nothing is mounted and nothing needs root: packages are unpacked, the file
# system is made from a folder, and the boot loader is written with dd.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
if [ $# -ne 1 ] || [[ $1 == -* ]]; then
	sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2
	exit 2
fi
out=$(realpath -m "$1")
cache=$(realpath -m "${TINY_CACHE:-$(dirname "$out")/debs}")
size=${TINY_SIZE:-112}
export PATH=$PATH:/usr/sbin:/sbin

work=$(mktemp -d "${TMPDIR:-/var/tmp}/tiny-build.XXXXXX")
trap 'rm -rf "$work"' EXIT
unpacked=$work/unpacked # contents of the packages
root=$work/root         # becomes the guest's root file system
ramdisk=$work/ramdisk   # becomes its initial RAM disk

programs="busybox-static qemu-guest-agent dropbear-bin e2fsprogs"
kernel=${TINY_KERNEL:-linux-image-cloud-amd64}
bootloader="grub-pc-bin"

die() {
	echo "build.sh: $*" >&2
	exit 1
}

say() { printf "tiny: %3d s  %s\n" "$SECONDS" "$*"; }

require_tools() {
	local entry
	for entry in apt-get:apt dpkg-deb:dpkg depmod:kmod cpio:cpio grub-mkimage:grub-common \
		mke2fs:e2fsprogs sfdisk:fdisk qemu-img:qemu-utils go:golang-go; do
		command -v "${entry%%:*}" >/dev/null ||
			die "${entry%%:*} is missing; install it with: apt-get install ${entry##*:}"
	done
}

# The shared libraries of the programs are the lib* packages among what they
# depend on; the rest (maintainer scripts' needs) has no place in this guest.
libraries_of() {
	apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts \
		--no-breaks --no-replaces --no-enhances "$@" | grep -E '^lib[a-z0-9.+-]+$' | grep -v perl | sort -u
}

# The kernel's meta package names the package of the current version.
kernel_package() {
	apt-cache depends "$kernel" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1
}

# Packages are cached under the file names that Debian gives them, which carry
# the version. Downloads go to a folder of their own and are moved when whole, so
# that an interrupted download is not taken for a package later.
fetch() {
	local file missing=()
	mkdir -p "$cache" "$work/download"
	apt-get -qq --print-uris download "$@" >"$work/uris" 2>"$work/apt.log" ||
		die "packages are unknown here: $(head -n 1 "$work/apt.log") (run: apt-get update)"
	sed "s/^'[^']*' \([^ ]*\) .*/\1/" "$work/uris" >"$work/files"
	while read -r file; do
		[ -e "$cache/$file" ] || missing+=("${file%%_*}")
	done <"$work/files"
	if [ ${#missing[@]} -gt 0 ]; then
		say "downloading ${missing[*]}"
		(cd "$work/download" && apt-get -qq -o APT::Sandbox::User="$(id -un)" download "${missing[@]}") >"$work/apt.log" 2>&1 ||
			die "packages cannot be downloaded: $(tail -n 1 "$work/apt.log")"
		mv "$work/download/"*.deb "$cache/"
	fi
	while read -r file; do
		dpkg-deb -x "$cache/$file" "$unpacked"
	done <"$work/files"
}

modules() { # modules WHERE: names from kernel-modules, WHERE is boot, root, full or full-boot
	sed -n "s/^\($1\)  *//p" "$here/kernel-modules"
}

is_full() { [ "$kernel" = linux-image-amd64 ]; }

# copy_modules NAMES TARGET copies modules and what they depend on. A name that
# is built into the kernel needs no file.
copy_modules() {
	local name file
	for name in $1; do
		modprobe -d "$unpacked" -S "$release" --show-depends "$name" >"$work/depends" 2>/dev/null ||
			die "kernel $release has no module $name; correct images/tiny/kernel-modules"
		while read -r file; do
			install -D -m 644 "$unpacked/$file" "$2/$file"
		done < <(sed -n "s|^insmod $unpacked/\([^ ]*\).*|\1|p" "$work/depends")
	done
	cp "$unpacked/lib/modules/$release/modules.builtin"* "$unpacked/lib/modules/$release/modules.order" "$2/lib/modules/$release/"
	depmod -b "$2" "$release"
}

# One folder of programs; /bin and the others are links to it.
make_tree() {
	local dir applet
	mkdir -p "$root"/{dev,proc,sys,run,tmp,mnt,root,boot,usr/bin,usr/lib,usr/lib64} \
		"$root"/{home/tiny,var/log,var/www,var/lib/cloud,etc/dropbear}
	for dir in bin sbin usr/sbin; do
		ln -s "$([[ $dir == usr/* ]] && echo bin || echo usr/bin)" "$root/$dir"
	done
	ln -s usr/lib "$root/lib"
	ln -s usr/lib64 "$root/lib64"
	chmod 700 "$root/root"
	chmod 1777 "$root/tmp"
	install -m 755 "$unpacked/bin/busybox" "$root/usr/bin/busybox"
	for applet in $("$unpacked/bin/busybox" --list); do
		[ -e "$root/usr/bin/$applet" ] || ln -s busybox "$root/usr/bin/$applet"
	done
	cp -a "$here/rootfs/." "$root/"
	ln -s /usr/lib/tiny/shutdown "$root/usr/bin/shutdown"
	make_passwords
}

make_passwords() {
	local user hash
	for user in root tiny; do
		hash=$("$root/usr/bin/busybox" mkpasswd -m sha512 -S tinytinytiny tiny)
		echo "$user:$hash:20000:0:99999:7:::"
	done >"$root/etc/shadow"
	chmod 600 "$root/etc/shadow"
}

# The dynamic loader itself lists what each program needs.
install_programs() {
	local program loader=$unpacked/lib64/ld-linux-x86-64.so.2 libs=$unpacked/lib/x86_64-linux-gnu:$unpacked/usr/lib/x86_64-linux-gnu
	install -D -m 755 "$(realpath "$loader")" "$root/usr/lib64/ld-linux-x86-64.so.2"
	for program in usr/sbin/qemu-ga usr/sbin/dropbear sbin/resize2fs; do
		rm -f "$root/usr/bin/$(basename "$program")"
		install -m 755 "$unpacked/$program" "$root/usr/bin/"
		"$loader" --library-path "$libs" --list "$unpacked/$program" >"$work/needs" ||
			die "$program lacks a library; its packages' dependencies have changed"
		while read -r library; do
			install -D -m 644 "$library" "$root/usr/lib/x86_64-linux-gnu/$(basename "$library")"
		done < <(sed -n 's/.* => \(\/.*\) (0x.*/\1/p' "$work/needs" | grep -v ld-linux)
	done
	(cd "$here/cloudlite" && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$root/usr/bin/cloudlite" .)
}

install_kernel() {
	release=$(basename "$unpacked"/lib/modules/*)
	depmod -b "$unpacked" "$release"
	cp "$unpacked/boot/vmlinuz-$release" "$root/boot/vmlinuz"
	mkdir -p "$root/lib/modules/$release"
	copy_modules "$(modules 'boot\|root')" "$root"
	! is_full || copy_modules "$(modules 'full\|full-boot')" "$root"
}

make_ramdisk() {
	local where=boot
	! is_full || where='boot\|full-boot'
	mkdir -p "$ramdisk"/{bin,etc,dev,proc,sys,root} "$ramdisk/lib/modules/$release"
	cp "$root/usr/bin/busybox" "$ramdisk/bin/"
	cp "$here/initramfs/init" "$ramdisk/init"
	modules "$where" >"$ramdisk/etc/modules"
	copy_modules "$(modules "$where")" "$ramdisk"
	(cd "$ramdisk" && find . -print0 | sort -z | cpio --null -o -H newc -R 0:0 --quiet --reproducible) |
		gzip -9n >"$root/boot/initrd"
}

# MBR boot code, one partition from 1 MiB on, GRUB's core in the gap before it.
make_disk() {
	local grub=$unpacked/usr/lib/grub/i386-pc raw=$work/disk.raw part=$work/part.ext4
	mke2fs -q -F -t ext4 -b 4096 -L tiny-root -J size=4 -m 1 \
		-E root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0 -d "$root" "$part" "$((size - 1))M" >/dev/null ||
		die "the root file system does not fit into $size MiB; set TINY_SIZE"
	truncate -s "${size}M" "$raw"
	echo 'start=2048, type=83, bootable' | sfdisk -q --label dos "$raw"
	# shellcheck disable=SC2016 # GRUB expands these
	printf '%s\n' 'set root=(hd0,msdos1)' 'set prefix=(hd0,msdos1)/boot/grub' \
		'configfile /boot/grub/grub.cfg' >"$work/early.cfg"
	grub-mkimage -O i386-pc -d "$grub" -c "$work/early.cfg" -p '(hd0,msdos1)/boot/grub' -o "$work/core.img" \
		biosdisk part_msdos ext2 linux16 normal configfile
	[ "$(stat -c %s "$work/core.img")" -le $((2047 * 512)) ] || die "GRUB's core does not fit before the partition"
	dd if="$grub/boot.img" of="$raw" bs=440 count=1 conv=notrunc status=none
	dd if="$work/core.img" of="$raw" bs=512 seek=1 conv=notrunc status=none
	dd if="$part" of="$raw" bs=1M seek=1 conv=notrunc,sparse status=none
	mkdir -p "$(dirname "$out")"
	qemu-img convert -c -O qcow2 -o compat=1.1 "$raw" "$work/out.qcow2"
	mv "$work/out.qcow2" "$out.part.$$"
	mv "$out.part.$$" "$out"
}

require_tools
umask 022
say "fetching packages (cache: $cache)"
# shellcheck disable=SC2046,SC2086 # lists of package names
fetch $programs $(libraries_of $programs) "$(kernel_package)" "$bootloader"
say "assembling the root file system"
make_tree
install_programs
install_kernel
make_ramdisk
say "making the disk"
make_disk
say "done: $out, $(($(stat -c %s "$out") / 1024)) KiB, $size MiB virtual"
