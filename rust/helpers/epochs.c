// SPDX-License-Identifier: GPL-2.0
/* Counters of what is in flight, by epoch and CPU. rust/sys/epochs.rs describes them. */
#include <linux/percpu.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>

#include "helpers/helpers.h"

struct dmr_epoch_counts {
	long in_flight[2];
};

struct dmr_epochs {
	struct dmr_epoch_counts __percpu *counts;
	unsigned int current_epoch;
	bool draining;
	wait_queue_head_t drained;
};

struct dmr_epochs *dmr_epochs_create(void)
{
	struct dmr_epochs *epochs = kzalloc(sizeof(*epochs), GFP_KERNEL);

	if (!epochs)
		return NULL;
	epochs->counts = alloc_percpu(struct dmr_epoch_counts);
	if (!epochs->counts) {
		kfree(epochs);
		return NULL;
	}
	init_waitqueue_head(&epochs->drained);
	return epochs;
}

void dmr_epochs_destroy(struct dmr_epochs *epochs)
{
	free_percpu(epochs->counts);
	kfree(epochs);
}

/*
 * The disabled preemption is an RCU read-side section: after synchronize_rcu() in the drain, each
 * thread that read the old epoch has incremented its counter.
 */
unsigned int dmr_epochs_enter(struct dmr_epochs *epochs)
{
	unsigned int epoch;

	preempt_disable();
	epoch = smp_load_acquire(&epochs->current_epoch);
	this_cpu_inc(epochs->counts->in_flight[epoch]);
	preempt_enable();
	return epoch;
}

/*
 * An RCU read-side section as well: the drain either sees the decrement, or this sees `draining`
 * and wakes it.
 */
void dmr_epochs_leave(struct dmr_epochs *epochs, unsigned int epoch)
{
	bool draining;

	preempt_disable();
	this_cpu_dec(epochs->counts->in_flight[epoch]);
	draining = READ_ONCE(epochs->draining);
	preempt_enable();
	/* With PREEMPT_RT, the lock of a wait queue may sleep. */
	if (unlikely(draining))
		wake_up_all(&epochs->drained);
}

unsigned int dmr_epochs_current(struct dmr_epochs *epochs)
{
	return READ_ONCE(epochs->current_epoch);
}

void dmr_epochs_set(struct dmr_epochs *epochs, unsigned int epoch)
{
	/* Release: a thread that sees the epoch sees the data that was prepared for it. */
	smp_store_release(&epochs->current_epoch, epoch);
}

static bool dmr_epochs_is_empty(struct dmr_epochs *epochs, unsigned int epoch)
{
	long sum = 0;
	int cpu;

	/* An operation may enter on one CPU and leave on another: only the sum is meaningful. */
	for_each_possible_cpu(cpu)
		sum += READ_ONCE(per_cpu_ptr(epochs->counts, cpu)->in_flight[epoch]);
	return !sum;
}

int dmr_epochs_drain(struct dmr_epochs *epochs, unsigned int epoch)
{
	int result;

	WRITE_ONCE(epochs->draining, true);
	/*
	 * Afterwards, each thread that read the old epoch has counted, and each that leaves sees
	 * `draining`.
	 */
	synchronize_rcu();
	result = wait_event_killable(epochs->drained, dmr_epochs_is_empty(epochs, epoch));
	WRITE_ONCE(epochs->draining, false);
	return result ? -EINTR : 0;
}
