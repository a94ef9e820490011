// SPDX-License-Identifier: GPL-2.0
/*
 * lockup: a test guest that stops for good, in a way of one's choice, as a broken driver would stop it.
 *
 *     insmod lockup.ko kind=hard [all=1]
 *
 * hard      interrupts off, and a loop: what answers interrupts on that CPU never does again.
 * soft      preemption off, interrupts on, and a loop: timers and softirqs (the network) go on,
 *           processes of that CPU don't.
 * spinlock  a spinlock taken twice with interrupts off: a deadlock with oneself.
 * oops      a null pointer written to in a kernel thread: one oops, which ends that thread.
 *
 * It happens on the last CPU that is online, or with all=1 on all of them at the same moment. Each
 * says so on the console right before, from the CPU that it happens on: `lockup: hard on CPU 1`.
 * Loading returns at once, if a CPU is left to return on.
 */
#include <linux/atomic.h>
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/irqflags.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/printk.h>
#include <linux/spinlock.h>
#include <linux/string.h>

static char *kind = "hard";
module_param(kind, charp, 0);
MODULE_PARM_DESC(kind, "hard, soft, spinlock or oops");

static bool all;
module_param(all, bool, 0);
MODULE_PARM_DESC(all, "on every CPU that is online");

/* Threads that have yet to reach their CPU: none stops before all are there. */
static atomic_t missing;

static DEFINE_SPINLOCK(lock);

static void stop_hard(void)
{
	local_irq_disable();
	for (;;)
		cpu_relax();
}

static void stop_soft(void)
{
	preempt_disable();
	for (;;)
		cpu_relax();
}

static void stop_in_spinlock(void)
{
	unsigned long flags;

	/* With all=1 one CPU waits for itself, and the others for it. */
	spin_lock_irqsave(&lock, flags);
	spin_lock_irqsave(&lock, flags);
}

static void oops(void)
{
	/* Volatile, or the compiler would put a trap of its own in its place. */
	int *volatile nowhere = NULL;

	*nowhere = 1;
}

static const struct {
	const char *name;
	void (*stop)(void);
} kinds[] = {
	{ "hard", stop_hard },
	{ "soft", stop_soft },
	{ "spinlock", stop_in_spinlock },
	{ "oops", oops },
};

static int run(void *stop)
{
	atomic_dec(&missing);
	while (atomic_read(&missing) > 0)
		usleep_range(100, 1000);
	/* The console is written to before this returns: nothing is left to print it later. */
	pr_emerg("lockup: %s on CPU %u\n", kind, raw_smp_processor_id());
	((void (*)(void))stop)();
	return 0;
}

static int __init lockup_init(void)
{
	static struct task_struct *threads[NR_CPUS] __initdata;
	void (*stop)(void) = NULL;
	unsigned int cpu, last = cpumask_last(cpu_online_mask);
	size_t at;

	for (at = 0; at < ARRAY_SIZE(kinds); at++)
		if (!strcmp(kind, kinds[at].name))
			stop = kinds[at].stop;
	if (!stop)
		return -EINVAL;
	for_each_online_cpu(cpu) {
		if (!all && cpu != last)
			continue;
		threads[cpu] = kthread_create_on_cpu(run, stop, cpu, "lockup/%u");
		/* What was created before stays asleep: the guest is thrown away after this. */
		if (IS_ERR(threads[cpu]))
			return PTR_ERR(threads[cpu]);
		atomic_inc(&missing);
	}
	for_each_online_cpu(cpu)
		if (threads[cpu])
			wake_up_process(threads[cpu]);
	return 0;
}
module_init(lockup_init);

MODULE_DESCRIPTION("Stops CPUs for good, to test what notices it");
MODULE_LICENSE("GPL");
