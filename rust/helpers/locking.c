// SPDX-License-Identifier: GPL-2.0
/* Locks and waits that the kernel crate lacks. */
#include <linux/rcupdate.h>

#include "helpers/helpers.h"

unsigned long dmr_spin_lock_irqsave(spinlock_t *lock)
{
	unsigned long flags;

	spin_lock_irqsave(lock, flags);
	return flags;
}

bool dmr_spin_trylock_irqsave(spinlock_t *lock, unsigned long *flags)
{
	unsigned long saved;

	if (!spin_trylock_irqsave(lock, saved))
		return false;
	*flags = saved;
	return true;
}

void dmr_spin_unlock_irqrestore(spinlock_t *lock, unsigned long flags)
{
	spin_unlock_irqrestore(lock, flags);
}

/* Expedited, like the wait of device-mapper whenever a table is replaced. */
void dmr_synchronize_rcu(void)
{
	synchronize_rcu_expedited();
}

void dmr_init_rwsem(struct rw_semaphore *sem, const char *name, struct lock_class_key *key)
{
	__init_rwsem(sem, name, key);
}

void dmr_wait_queue_init(wait_queue_head_t *head, const char *name, struct lock_class_key *key)
{
	__init_waitqueue_head(head, name, key);
}

void dmr_wait_until(wait_queue_head_t *head, bool (*condition)(void *context), void *context)
{
	wait_event(*head, condition(context));
}

void dmr_wait_until_timeout(wait_queue_head_t *head, bool (*condition)(void *context),
			    void *context, long jiffies)
{
	wait_event_timeout(*head, condition(context), jiffies);
}

int dmr_wait_killable(wait_queue_head_t *head, bool (*condition)(void *context), void *context)
{
	return wait_event_killable(*head, condition(context)) ? -EINTR : 0;
}

void dmr_wake_up_all(wait_queue_head_t *head)
{
	wake_up_all(head);
}
