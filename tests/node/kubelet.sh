#!/bin/sh
# Runs kubelet in a mount namespace that hides what kubelet would otherwise share
# with, or change on, the machine.
#
# usage: kubelet.sh COVER KUBELET [ARGUMENT...]
#   COVER  folder for the copies of kernel settings; if log/ and lib/ are in it, they
#          are seen as /var/log and /var/lib
#
# kubelet has built in: links to logs in /var/log/containers, the device plugins'
# socket in /var/lib/kubelet, and values of kernel settings which it writes for
# the whole machine. It is content with files that hold the values it wants.
# What it mounts for pods is below its own root folder, which stays shared.
set -eu

cover=$1
shift

# private_bind SOURCE TARGET covers TARGET in this namespace alone.
private_bind() {
	mount --make-private "$(findmnt --noheadings --output TARGET --target "$2" | tail -n 1)"
	mount --bind "$1" "$2"
}

setting() {
	printf '%s\n' "$2" >"$cover/$(basename "$1")"
	private_bind "$cover/$(basename "$1")" "/proc/sys/$1"
}

for dir in log lib; do
	[ ! -d "$cover/$dir" ] || private_bind "$cover/$dir" "/var/$dir"
done
setting vm/overcommit_memory 1
setting vm/panic_on_oom 0
setting kernel/panic 10
setting kernel/panic_on_oops 1
setting kernel/keys/root_maxkeys 1000000
setting kernel/keys/root_maxbytes 25000000

exec "$@"
