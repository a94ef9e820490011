#!/bin/busybox sh
# Process 1 of a test guest: sets the network up, says that it is ready, obeys the serial console.
# It waits in one blocking read: an idle guest must do nothing at all.
busybox mount -t devtmpfs none /dev
busybox mount -t proc none /proc
busybox mount -t sysfs none /sys
/bin/busybox --install -s /bin
export PATH=/bin
exec </dev/ttyS0 >/dev/ttyS0 2>&1
# Echoed commands would look like answers.
stty -echo

for module in /modules/*.ko; do
    insmod "$module" 2>/dev/null
done
echo 1 >/proc/sys/kernel/sysrq

address=
address6=
vlan=
for word in $(cat /proc/cmdline); do
    case $word in
        flatline.ip=*) address=${word#flatline.ip=} ;;
        flatline.ip6=*) address6=${word#flatline.ip6=} ;;
        flatline.vlan=*) vlan=${word#flatline.vlan=} ;;
    esac
done
# Router solicitations and duplicate address detection would be signs of life of their own.
if [ -d /proc/sys/net/ipv6/conf ]; then
    if [ -n "$address6" ]; then
        echo 0 >/proc/sys/net/ipv6/conf/default/router_solicitations
        [ -d /sys/class/net/eth0 ] && echo 0 >/proc/sys/net/ipv6/conf/eth0/router_solicitations
        # What is tagged belongs to the interface above; this one would send untagged frames of its own.
        [ -n "$vlan" ] && echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6
    else
        echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6
    fi
fi
# The gateway is the first address of the guest's /24, or of its /64.
gateway=${address%/*}
gateway=${gateway%.*}.1
gateway6=${address6%%::*}::1
if [ -n "$address$address6" ] && [ -d /sys/class/net/eth0 ]; then
    interface=eth0
    if [ -n "$vlan" ]; then
        interface=eth0.$vlan
        ip link set eth0 up
        ip link add link eth0 name "$interface" type vlan id "$vlan"
    fi
    [ -n "$address" ] && ip address add "$address" dev "$interface"
    ip link set "$interface" up
    [ -n "$address6" ] && ip address add "$address6" dev "$interface"
    # Gratuitous: the host is to see one frame with the guest's address, and nobody has to answer.
    [ -n "$address" ] && arping -q -U -c 1 -w 1 -I "$interface" "${address%/*}" >/dev/null &
fi

load=
# Runs one command that never ends by itself; `stop-load` ends it.
in_background() {
    "$@" &
    load="$load $!"
}
spin() {
    while :; do :; done
}
disk_load() {
    while :; do
        dd if=/dev/vda of=/dev/null iflag=direct bs=4k count=2048 status=none
        dd if=/dev/zero of=/dev/vda oflag=direct conv=notrunc bs=4k count=2048 status=none
    done
}

echo "FLATLINE-GUEST READY $(nproc)"
while read -r command first second; do
    case $command in
        idle) ;;
        compute)
            for _ in $(seq "${first:-1}"); do in_background spin; done
            ;;
        disk) in_background disk_load ;;
        disk-read) dd if=/dev/vda of=/dev/null iflag=direct bs="${second}k" count="$first" status=none ;;
        disk-write) dd if=/dev/zero of=/dev/vda oflag=direct conv=notrunc bs="${second}k" count="$first" status=none ;;
        disk-discard) blkdiscard -o "${first}M" -l "${second}M" /dev/vda ;;
        disk-flush)
            for _ in $(seq "$first"); do
                dd if=/dev/zero of=/dev/vda oflag=direct conv=notrunc,fsync bs=4k count=1 status=none
            done
            ;;
        net) ping -q -A -c "$first" "$gateway" >/dev/null ;;
        net6) ping6 -q -c "$first" -W 1 "${second:-$gateway6}" >/dev/null 2>&1 ;;
        net-down) ip link set eth0 down ;;
        stop-load)
            for pid in $load; do kill "$pid"; done
            killall -q dd
            load=
            ;;
        panic) echo c >/proc/sysrq-trigger ;;
        halt) halt -f ;;
        poweroff) poweroff -f ;;
        reboot) reboot -f ;;
        suspend) echo mem >/sys/power/state ;;
        dmesg) dmesg ;;
        echo) echo "$first${second:+ $second}" && continue ;;
        *) echo "UNKNOWN $command" && continue ;;
    esac
    echo "DONE $command"
done
