#!/bin/sh
# Process 1 of one place of the lab: a site (with its own mounts) or the wan between the sites (without).
#   site-init.sh DIRECTORY site|wan SCRATCH_BYTES detached|attached
# It runs in fresh network, mount and process namespaces; when it ends, the kernel ends all that runs there and
# drops every mount with it. "attached": it also ends when standard input reaches its end, that is, when whoever
# made the lab is gone, however it went.
set -eu
place=$1 kind=$2 scratch_bytes=$3 life=$4

# /sys as this network namespace sees it; without the cgroup tree of the machine, so that libvirt makes no groups
# (and asks no systemd) outside the lab
umount -l /sys
mount -t sysfs sysfs /sys
if grep -qw securityfs /proc/filesystems && [ -d /sys/kernel/security ]; then
    mount -t securityfs securityfs /sys/kernel/security
fi
ip link set lo up

if [ "$kind" = site ]; then
    for pair in lib:/var/lib/libvirt log:/var/log/libvirt cache:/var/cache/libvirt etc:/etc/libvirt run:/run; do
        mount --bind "$place/${pair%%:*}" "${pair#*:}"
    done
    mkdir -p /run/libvirt /run/lock
    if [ -d "$place/apparmor.d" ]; then mount --bind "$place/apparmor.d" /etc/apparmor.d; fi
    # The lab's guests are emulated, everywhere alike. A /dev/kvm that root can open and QEMU's user cannot makes
    # libvirt probe QEMU again at every turn (15 s to define a machine), so nobody in the site can use it.
    if [ -e /dev/kvm ]; then
        install -m 0600 /dev/null "$place/no-kvm"
        mount --bind "$place/no-kvm" /dev/kvm
    fi
    mount -t tmpfs -o "size=$scratch_bytes,mode=0755" scratch "$place/scratch"
fi

# a wait for one job also reaps the orphans process 1 is given (a finished QEMU must not stay as a zombie: libvirt
# waits until its process id is gone)
exec 3<&0 # the shell gives a background job /dev/null as its standard input
if [ "$life" = attached ]; then cat <&3 >/dev/null & else sleep infinity & fi
touch "$place/started"
wait $!
