#!/bin/sh
# Virtlet's flexvolume driver, as kubelet calls it: it leaves a volume's options where
# vmruntime finds them, which gives the VM a disk. They can hold secrets, hence in
# memory; and a mount is what kubelet knows how to clean up.
#
# usage: flexvolume_driver init | mount FOLDER OPTIONS | unmount FOLDER
set -eu

fail() {
	printf '{"status":"Failure","message":"%s"}\n' "$1"
	exit 1
}

case ${1-} in
init)
	printf '{"status":"Success","capabilities":{"attach":false,"fsGroup":false}}\n'
	;;
mount)
	mkdir -p "$2" || fail "cannot make the folder of the volume"
	mount -t tmpfs -o size=64k,mode=0700,nosuid,nodev,noexec ambipod-flexvolume "$2" || fail "cannot mount the folder of the volume"
	printf '%s' "$3" >"$2/options.json" || {
		umount "$2"
		fail "cannot write the options of the volume"
	}
	printf '{"status":"Success"}\n'
	;;
unmount)
	if mountpoint -q "$2"; then
		umount "$2" || fail "cannot unmount the folder of the volume"
	fi
	printf '{"status":"Success"}\n'
	;;
*)
	printf '{"status":"Not supported"}\n'
	exit 1
	;;
esac
