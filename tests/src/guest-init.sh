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
words=$(cat /proc/cmdline)
case $words in
    # The state in which it waits here is saved; each guest that goes on from it is told its identity.
    *flatline.asks*)
        echo "FLATLINE-GUEST SAVABLE"
        read -r words
        ;;
esac
mac=
for word in $words; do
    case $word in
        flatline.now=*) date -s "@${word#flatline.now=}" >/dev/null ;;
        flatline.mac=*) mac=${word#flatline.mac=} ;;
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
[ -n "$mac" ] && ip link set eth0 address "$mac"
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
    # Gratuitous: the host is to see one frame with the guest's address, and no answer is needed.
    [ -n "$address" ] && arping -q -U -c 1 -w 1 -I "$interface" "${address%/*}" >/dev/null &
fi

# Stands in for qemu-ga, which needs libraries: of all that this does, it answers pings and syncs. It waits in
# one blocking read while the host holds the channel open, and looks once a second whether the host does.
agent() {
    while :; do
        while read -r request; do
            id=${request#*'"id"'*:}
            id=${id%%[!0-9 ]*}
            case $request in
                *guest-sync-delimited*) printf '\377{"return": %s}\n' "$id" ;;
                *guest-sync*) printf '{"return": %s}\n' "$id" ;;
                *guest-ping*) echo '{"return": {}}' ;;
                *) echo '{"error": {"class": "CommandNotFound", "desc": "not by a stand-in"}}' ;;
            esac
        done
        sleep 1
    done
}
# What a guest that was taken over may say instead.
flood() {
    while :; do yes '{"return": {}}'; done
}
for port in /sys/class/virtio-ports/*; do
    if [ "$(cat "$port/name" 2>/dev/null)" = org.qemu.guest_agent.0 ]; then
        says=agent
        grep -qw flatline.agent=flood /proc/cmdline && says=flood
        $says <>"/dev/${port##*/}" >&0 2>/dev/null &
    fi
done

# Where flatline's agent is heard without a network card.
heart_port() {
    for port in /sys/class/virtio-ports/*; do
        [ "$(cat "$port/name" 2>/dev/null)" = org.flatline.heartbeat.0 ] && echo "/dev/${port##*/}"
    done
}
# As docs/heartbeat.md has it, for guests in which nothing can be installed.
beat_by_hand() {
    while sleep 1; do echo "flatline 1000 $(cat /proc/sys/kernel/random/boot_id)"; done >"$(heart_port)"
}

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
net_flood() {
    while :; do ping -q -A -s 1400 -c 100000 "$gateway" >/dev/null; done
}
# Every process breeds for ever, up to a limit. A shell that cannot fork ends, so that they die out there, and
# the next wave begins.
breed() {
    while :; do breed & done
}
fork_bomb() {
    mkdir -p /cgroup
    mount -t cgroup2 none /cgroup
    echo +pids >/cgroup/cgroup.subtree_control
    mkdir /cgroup/bomb
    echo 100 >/cgroup/bomb/pids.max
    while :; do (echo 0 >/cgroup/bomb/cgroup.procs && breed) 2>/dev/null; done
}
# What a file in memory takes cannot be reclaimed: whatever is killed, it stays full, until nothing is left to be
# killed but process 1, which the kernel spares. It panics instead.
eat_memory() {
    mkdir /ballast
    mount -t ramfs none /ballast
    echo -1000 >/proc/self/oom_score_adj
    exec dd if=/dev/zero of=/ballast/file bs=64k
}
# What the kernel says of its memory, read by the shell itself: a program more would take some.
meminfo() {
    while read -r name figure _; do
        case $name in MemTotal: | MemAvailable:) echo "MEMINFO ${name%:} $figure" ;; esac
    done </proc/meminfo
    while read -r name figure; do
        case $name in pgmajfault | pswpin | pswpout) echo "MEMINFO $name $figure" ;; esac
    done </proc/vmstat
}
# Uses more memory than there is, at random, for ever.
thrash() {
    exec awk -v n="$1" 'BEGIN {
        text = sprintf("%1000s", "x")
        for (i = 0; i < n; i++) page[i] = text i
        for (;;) used += length(page[int(rand() * n)])
    }'
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
        # Does not come back before the disk does.
        hung-task) in_background dd if=/dev/vda of=/dev/null iflag=direct bs=4k count=1 skip=1024 ;;
        net) ping -q -A -c "$first" "$gateway" >/dev/null ;;
        net6) ping6 -q -c "$first" -W 1 "${second:-$gateway6}" >/dev/null 2>&1 ;;
        net-flood)
            for _ in 1 2; do in_background net_flood; done
            ;;
        net-down) ip link set eth0 down ;;
        up) ip link set "$first" up ;;
        # flatline's agent, in place of the one before.
        heartbeat) flatline-heartbeat $first $second & beater=$! ;;
        heartbeat-port) flatline-heartbeat --port "$(heart_port)" $first $second & beater=$! ;;
        heartbeat-by-hand) beat_by_hand & beater=$! ;;
        heartbeat-kill) kill -"$first" "$beater" ;;
        # Nanoseconds of a CPU, and KiB of memory: what `status` has of that is too old for a process that hardly runs.
        heartbeat-costs)
            echo "COSTS $(cut -d ' ' -f 1 "/proc/$beater/schedstat")" \
                "$(awk '/^Rss:/ {print $2}' "/proc/$beater/smaps_rollup")"
            ;;
        # Everything but this shell, which is spared.
        freeze) kill -STOP -1 ;;
        httpd) ip link set lo up && mkdir -p /www && echo well >/www/index.html && httpd -h /www ;;
        httpd-hangs) killall -STOP httpd ;;
        httpd-goes-on) killall -CONT httpd ;;
        stop-load)
            for pid in $load; do kill "$pid"; done
            killall -q dd ping
            [ -d /cgroup/bomb ] && echo 1 >/cgroup/bomb/cgroup.kill
            load=
            ;;
        fork-bomb) in_background fork_bomb ;;
        processes) set -- /proc/[0-9]* && echo "PROCESSES $#" ;;
        oom) (eat_memory) ;;
        meminfo) meminfo ;;
        # Takes so many KiB, most of them on the disk.
        thrash) mkswap /dev/vda >/dev/null && swapon /dev/vda && in_background thrash "$first" ;;
        # A signal to process 1 is ignored, also SIGKILL: it has to end by itself.
        init-killed) exit 9 ;;
        lockup)
            [ -e /lockup.ko ] || { echo "NO lockup.ko" && continue; }
            [ "$second" = all ] && second=all=1 || second=
            insmod /lockup.ko kind="$first" $second
            ;;
        # A guest of this guest, which spins; only some images have it.
        hypervisor) in_background hypervisor ;;
        # Starts a watchdog that fires after so many seconds, and feeds it no more.
        watchdog-start) watchdog -T "$first" -t 86400 /dev/watchdog ;;
        panic-after) echo "$first" >/proc/sys/kernel/panic && echo c >/proc/sysrq-trigger ;;
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
