#!/bin/sh
# Gives what it runs a root directory and control groups as on a machine that has but
# one node: both are this machine's at first, but the control groups begin at the node's
# own, and files that are changed or added are in memory.
#
# usage: machine.sh TOP CGROUP FOLDER=PLACE... -- COMMAND [ARGUMENT...]
#   TOP     empty folder to make the root directory in
#   CGROUP  the node's control group, in every hierarchy
#   FOLDER  folder of this machine that is seen at PLACE too, with what is changed
#
# It must have a mount namespace of its own. Other processes join it there.
set -eu

top=$1 group=$2
shift 2

mount -t tmpfs -o mode=0755 none "$top"
mkdir "$top/upper" "$top/work" "$top/root"
mount -t overlay none -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" "$top/root"
cd "$top/root"
mount --bind /proc proc
mount --bind /sys sys
mount --rbind /dev dev
mount -t tmpfs -o mode=0755 none run

# Version 1 has several trees, and links to some of them, in a folder; version 2 is one.
[ "$(findmnt --noheadings --output FSTYPE --target /sys/fs/cgroup | tail -n 1)" = cgroup2 ] ||
	mount -t tmpfs -o mode=0755 none sys/fs/cgroup
find /sys/fs/cgroup -maxdepth 1 -type l -exec cp -P {} sys/fs/cgroup \;
for tree in $(findmnt --noheadings --raw --output TARGET --types cgroup,cgroup2 | grep ^/sys/fs/cgroup | sort -u); do
	mkdir -p ".$tree"
	mount --bind "$tree$group" ".$tree"
done

while [ "$1" != -- ]; do
	mkdir -p ".${1#*=}"
	mount --bind "${1%%=*}" ".${1#*=}"
	shift
done
shift

mkdir -p mnt/machine
pivot_root . mnt/machine
cd /
umount --lazy /mnt/machine
# As systemd does: containers see what is mounted for them later.
mount --make-rshared /
exec "$@"
