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

slots=16384 pause_us=20000 read_drive=
for word in $(cat /proc/cmdline); do
    case $word in
    lab.slots=*) slots=${word#*=} ;;
    lab.pause_us=*) pause_us=${word#*=} ;;
    lab.drive=1) read_drive=yes ;;
    esac
done
hostname guest
ifconfig lo 127.0.0.1 up

# the front of each disk is an ext4 file system, the end the ring of records
mount -t ext4 /dev/vda /sys-disk && mount -t ext4 /dev/vdb /data-disk || echo "MOUNT failed"
workload check /dev/vda /dev/vdb "$slots" /sys-disk/records.log /data-disk/records.log

# further disks: a line more at each boot, so that whoever boots a copy sees what was written last
for disk in /dev/vd[c-z]; do
    [ -b "$disk" ] || continue
    at=/more/${disk##*/}
    mkdir -p "$at" && mount -t ext4 "$disk" "$at" || echo "MOUNT of $disk failed"
    cat /proc/sys/kernel/random/uuid >>"$at/boots" && sync
    echo "BOOTS ${disk##*/} $(wc -l <"$at/boots")"
done

# a variable of the firmware, made at the first boot
if mount -t efivarfs efivarfs /sys/firmware/efi/efivars 2>/dev/null; then
    kept=/sys/firmware/efi/efivars/SecondsiteLab-6f0a1d2b-35c4-4e8f-9a70-1b2c3d4e5f60
    [ -e $kept ] || printf '\007\000\000\000%s' "$(cat /proc/sys/kernel/random/uuid)" >$kept
    echo "FIRMWARE keeps $(tail -c +5 $kept)"
fi

# the ports of a serial device come one after the other, some time after their driver: on a busy machine later
# than this line. Waited for until all have names and no more come.
if grep -q 0x0003 /sys/bus/virtio/devices/*/device 2>/dev/null; then
    known= tries=100
    while [ $tries -gt 0 ]; do
        names=$(cat /sys/class/virtio-ports/*/name 2>/dev/null | sort)
        [ -n "$names" ] && [ "$names" = "$known" ] && break
        known=$names tries=$((tries - 1))
        sleep 0.1
    done
    mdev -s
fi
mkdir -p /dev/virtio-ports
for port in /sys/class/virtio-ports/*; do
    name=$(cat "$port/name" 2>/dev/null) && [ -n "$name" ] && ln -sf "/dev/${port##*/}" "/dev/virtio-ports/$name"
done
agent=/dev/virtio-ports/org.qemu.guest_agent.0
[ -e $agent ] && qemu-ga -d -m virtio-serial -p $agent -l /var/log/agent.log -f /var/run/agent.pid
records=/dev/virtio-ports/org.secondsite.lab.0
[ -e $records ] && workload run /dev/vda /dev/vdb "$slots" "$pause_us" $records \
    /sys-disk/records.log /data-disk/records.log /data-disk/pages &

if [ -f /sys-disk/etc/addresses ]; then
    # fixed, by the adapter's hardware address
    while read -r hardware address; do
        for adapter in /sys/class/net/*; do
            [ "$(cat "$adapter/address")" = "$hardware" ] || continue
            ip link set "${adapter##*/}" up
            ip address add "$address" dev "${adapter##*/}" && echo "ADDRESS $address at $hardware"
        done
    done </sys-disk/etc/addresses
elif [ -d /sys/class/net/eth0 ]; then
    ip link set eth0 up
    # dnsmasq probes an address for about 3 s before it offers it
    udhcpc -i eth0 -b -q -t 10 -T 2 -s /bin/guest-address >/dev/null 2>&1 &
fi
# as a guest does that was prepared for it: the addresses of the site it was recovered at, at each start
if [ -n "$read_drive" ] && [ -b /dev/sr0 ]; then
    mkdir -p /run/secondsite/drive
    mount -t iso9660 -o ro /dev/sr0 /run/secondsite/drive && sh /run/secondsite/drive/apply.sh
    echo "DRIVE ended with $?"
fi
acpid -d >/dev/null 2>&1 &
echo "READY after $(cut -d' ' -f1 /proc/uptime) s"
while :; do setsid cttyhack sh -i </dev/ttyS0 >/dev/ttyS0 2>&1; sleep 1; done
