// SPDX-License-Identifier: GPL-2.0
/* Workqueues, whose constructors are variadic macros. */
#include <linux/workqueue.h>

#include "helpers/helpers.h"

struct workqueue_struct *dmr_alloc_workqueue(const char *name, unsigned int flags, int max_active)
{
	return alloc_workqueue("%s", flags, max_active, name);
}
