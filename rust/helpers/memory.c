// SPDX-License-Identifier: GPL-2.0
/* The no-I/O scope, mempools, the rate limit of log messages, and warnings. */
#include <linux/bug.h>
#include <linux/mempool.h>
#include <linux/ratelimit.h>
#include <linux/sched/mm.h>

#include "helpers/helpers.h"

unsigned int dmr_noio_save(void)
{
	return memalloc_noio_save();
}

void dmr_noio_restore(unsigned int flags)
{
	memalloc_noio_restore(flags);
}

mempool_t *dmr_mempool_create(int reserve, size_t size)
{
	return mempool_create_kmalloc_pool(reserve, size);
}

void *dmr_mempool_alloc_nowait(mempool_t *pool)
{
	return mempool_alloc(pool, GFP_NOWAIT);
}

/* All rate-limited messages of the module share one limit. */
bool dmr_log_allowed(void)
{
	static DEFINE_RATELIMIT_STATE(state, DEFAULT_RATELIMIT_INTERVAL, DEFAULT_RATELIMIT_BURST);

	return __ratelimit(&state);
}

void dmr_warn_miscounted(void)
{
	WARN_ONCE(1, "dm_rust: a counter would have fallen below zero\n");
}
