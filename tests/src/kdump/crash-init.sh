#!/bin/busybox sh
# Process 1 of a crash kernel: writes the beginning of the dump to the disk, bit by bit, and resets the machine.
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox mount -t proc none /proc
/bin/busybox --install -s /bin
export PATH=/bin
exec </dev/ttyS0 >/dev/ttyS0 2>&1
echo "CRASH KERNEL RUNS"
for module in /modules/*.ko; do
    insmod "$module"
done
if grep -qw flatline.crash=hang /proc/cmdline; then
    while :; do sleep 3600; done
fi
# The header of the dump, and what follows it.
for part in $(seq 0 19); do
    dd if=/proc/vmcore of=/dev/vda bs=256k count=1 skip="$part" seek="$part" conv=notrunc,fsync status=none
    sleep 1
done
echo "CRASH KERNEL SAVED"
reboot -f
