#!/bin/busybox sh
# Process 1 of a test guest at first: loads its crash kernel, and becomes the guest's own.
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox mount -t proc none /proc
# As the guest's own kernel, it is to boot soon.
words="cryptomgr.notests init_on_alloc=0 initcall_blacklist=load_system_certificate_list,init_kprobe_trace,init_ima"
/bin/busybox grep -qw flatline.crash=slow /proc/cmdline && words=
/bin/busybox grep -qw flatline.crash=hang /proc/cmdline && words="$words flatline.crash=hang"
words="console=ttyS0 quiet nr_cpus=1 reset_devices tsc=reliable no_timer_check mitigations=off $words"
/kdump/load /kdump/kernel /kdump/initramfs "$words" >/dev/ttyS0 2>&1
/bin/busybox umount /proc
exec /guest-init
