// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The threads that look at the inbox: of a device without interrupts at
 * intervals, of one with a doorbell in the CPU's spare time.
 *
 * A bell costs its sender a way through the hypervisor and its receiver an
 * interrupt, more than all else of a short message together. So after each one
 * a thread of the lowest priority looks at the inbox for as long as the CPU has
 * nothing else to do, and says so by `awake` in the header: peers do without the
 * bell then. It costs idle time alone, and less and less if that is in vain.
 *
 * Nothing is lost when it stops, by the same order as in ring.c:
 *
 *   thread: awake = 0; mb; read the bits        peer: bit = 1; mb; read awake
 *
 * Whichever comes second sees the other's store: either the thread finds the bit
 * or the peer rings. And nothing is late while it looks, for `awake` is 1 only as
 * long as preemption is off: all that can come between two looks is an interrupt.
 */
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/sched/stat.h>
#include <uapi/linux/sched/types.h>

#include "channel.h"

/* The longest time with preemption off. */
#define MOMENT_NS (500 * NSEC_PER_USEC)

/* So long may others keep the CPU before the thread waits for the next bell instead. */
#define HOLD_ON (HZ / 100 + 1)

static unsigned int poll_us = 50;
module_param(poll_us, uint, 0644);
MODULE_PARM_DESC(poll_us, "How often a region without interrupts is looked at (us)");

static unsigned int spin_us = 200;
module_param(spin_us, uint, 0644);
MODULE_PARM_DESC(spin_us, "How long a CPU without other work looks before it sleeps (us)");

/* At least one wait of so many spins, however often that was in vain. */
#define SPIN_REST_MAX 63

/* How long anybody looks before it sleeps; 0: not at all. */
u64 tcp_sm_spin_ns(void)
{
	return (u64)READ_ONCE(spin_us) * NSEC_PER_USEC;
}

/* How many waits shall sleep at once after one that spun in vain; `rest`: the last such answer. */
int tcp_sm_spin_in_vain(int rest)
{
	return min(2 * rest + 1, SPIN_REST_MAX);
}

static bool look(struct tcp_sm_region *region)
{
	bool found;

	local_bh_disable();
	found = tcp_sm_region_look(region);
	local_bh_enable();
	return found;
}

/*
 * Look until somebody else wants the CPU or `*budget` ns went by without finding
 * anything. Returns whether something was found, and leaves the rest in *budget.
 */
static bool spare_moment(struct tcp_sm_region *region, u64 *budget)
{
	u64 full = tcp_sm_spin_ns();
	u64 now = ktime_get_ns(), end = now + *budget, stop = now + MOMENT_NS;
	bool found = false;

	preempt_disable();
	WRITE_ONCE(region->header->awake, 1);
	do {
		if (tcp_sm_region_pending(region)) {
			found |= look(region);
			end = ktime_get_ns() + full;
		}
		cpu_relax();
		now = ktime_get_ns();
	} while (now < min(end, stop) && single_task_running() && !need_resched());
	WRITE_ONCE(region->header->awake, 0);
	virt_mb();	/* `awake` before the last look, see above */
	/* Still without preemption: what rang no bell must not wait for spare time. */
	if (look(region)) {
		found = true;
		end = now + full;
	}
	preempt_enable();
	*budget = now < end ? end - now : 0;
	return found;
}

/* Spare moments for as long as they help. */
static void spare_time(struct tcp_sm_region *region)
{
	struct tcp_sm_poller *poller = &region->poller;
	u64 budget = tcp_sm_spin_ns();
	unsigned long since = jiffies;

	while (budget && time_before(jiffies, since + HOLD_ON) && !kthread_should_stop() &&
	       tcp_sm_region_own_alive(region)) {
		if (spare_moment(region, &budget)) {
			since = jiffies;
			poller->step = 0;
		}
		schedule();
	}
	if (!budget)
		poller->step = tcp_sm_spin_in_vain(poller->step);
	poller->rest = poller->step;
}

static int in_spare_time(void *data)
{
	struct tcp_sm_region *region = data;
	struct tcp_sm_poller *poller = &region->poller;

	while (!kthread_should_stop()) {
		wait_event_interruptible(poller->wait, kthread_should_stop() ||
					 READ_ONCE(poller->wanted));
		spare_time(region);
		WRITE_ONCE(poller->wanted, false);
	}
	return 0;
}

static int at_intervals(void *data)
{
	struct tcp_sm_region *region = data;

	while (!kthread_should_stop()) {
		wait_event_interruptible(region->poller.wait, kthread_should_stop() ||
					 atomic_read(&region->nconns));
		look(region);
		usleep_range(poll_us, poll_us + poll_us / 4 + 1);
	}
	return 0;
}

/* A bell told something: perhaps more follows. In softirq, not twice at a time. */
void tcp_sm_poller_rung(struct tcp_sm_region *region)
{
	struct tcp_sm_poller *poller = &region->poller;

	/* On a kernel of real time, the rest of the inbox's work sleeps. */
	if (IS_ENABLED(CONFIG_PREEMPT_RT) || READ_ONCE(poller->wanted) || !tcp_sm_spin_ns())
		return;
	if (poller->rest) {
		poller->rest--;
		return;
	}
	WRITE_ONCE(poller->wanted, true);
	wake_up(&poller->wait);
}

/* A first connection exists. */
void tcp_sm_poller_busy(struct tcp_sm_region *region)
{
	if (!region->provider->interrupts)
		wake_up(&region->poller.wait);
}

int tcp_sm_poller_start(struct tcp_sm_region *region)
{
	const struct sched_attr lowest = { .size = sizeof(lowest), .sched_policy = SCHED_IDLE };
	bool bell = region->provider->interrupts;
	struct task_struct *task;

	init_waitqueue_head(&region->poller.wait);
	/* The first bell of all is followed by nothing, most often. */
	region->poller.rest = 1;
	task = kthread_create(bell ? in_spare_time : at_intervals, region, "tcp_sm_poll");
	if (IS_ERR(task))
		return PTR_ERR(task);
	if (bell)
		sched_setattr_nocheck(task, &lowest);
	region->poller.task = task;
	wake_up_process(task);
	return 0;
}

void tcp_sm_poller_stop(struct tcp_sm_region *region)
{
	sched_set_normal(region->poller.task, 0);	/* spare time may never come */
	kthread_stop(region->poller.task);
}
