#!/bin/busybox sh
# Process 1 of the lab's guest. What it prints on the console is read by the lab: HELLO, CHECK {...}, READY.
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /var/run /var/log /sys-disk /data-disk
/bin/busybox mount -t proc proc /proc
echo "HELLO from the guest, up $(/bin/busybox cut -d' ' -f1 /proc/uptime) s"
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
ln -sf /bin/guest-shutdown /sbin/shutdown # what the agent calls
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for module in $(cat /modules/order); do insmod "/modules/$module" || echo "insmod $module failed"; done
mdev -s

slots=16384 pause_us=20000
for word in $(cat /proc/cmdline); do
    case $word in
    lab.slots=*) slots=${word#*=} ;;
    lab.pause_us=*) pause_us=${word#*=} ;;
    esac
done
hostname guest
ifconfig lo 127.0.0.1 up

# the front of each disk is an ext4 file system, the end the ring of records
mount -t ext4 /dev/vda /sys-disk && mount -t ext4 /dev/vdb /data-disk || echo "MOUNT failed"
workload check /dev/vda /dev/vdb "$slots" /sys-disk/records.log /data-disk/records.log

mkdir -p /dev/virtio-ports
for port in /sys/class/virtio-ports/*; do
    name=$(cat "$port/name" 2>/dev/null) && [ -n "$name" ] && ln -sf "/dev/${port##*/}" "/dev/virtio-ports/$name"
done
agent=/dev/virtio-ports/org.qemu.guest_agent.0
[ -e $agent ] && qemu-ga -d -m virtio-serial -p $agent -l /var/log/agent.log -f /var/run/agent.pid
records=/dev/virtio-ports/org.secondsite.lab.0
[ -e $records ] && workload run /dev/vda /dev/vdb "$slots" "$pause_us" $records \
    /sys-disk/records.log /data-disk/records.log /data-disk/pages &

if [ -d /sys/class/net/eth0 ]; then
    ip link set eth0 up
    # dnsmasq probes an address for about 3 s before it offers it
    udhcpc -i eth0 -b -q -t 10 -T 2 -s /bin/guest-address >/dev/null 2>&1 &
fi
acpid -d >/dev/null 2>&1 &
echo "READY after $(cut -d' ' -f1 /proc/uptime) s"
while :; do setsid cttyhack sh -i </dev/ttyS0 >/dev/ttyS0 2>&1; sleep 1; done
