#!/bin/busybox sh
# The first process of a virtual machine: mounts the file systems that programs expect, runs /job, prints its
# status, and switches the machine off. The kernel uses the first serial port, and this script the second.
/bin/busybox mkdir -p /dev /proc /sys /run /tmp /var /sbin /usr/bin /usr/sbin
/bin/busybox --install -s
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
mount -t bpf none /sys/fs/bpf
mount -t tmpfs none /run
mount -t tmpfs none /tmp
ln -s /run /var/run
ln -s /proc/mounts /etc/mtab
stty -F /dev/ttyS1 -opost
# The job's own tools come first, so that `ip` is not busybox's.
export PATH=/job/bin:/usr/sbin:/usr/bin:/sbin:/bin RUST_BACKTRACE=0
sh /job/run </dev/null >/dev/ttyS1 2>&1
# The status is on a line of its own; closing the port waits until the line is sent.
printf '\nvm: ended with %s\n' $? >/dev/ttyS1
poweroff -f
