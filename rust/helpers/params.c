// SPDX-License-Identifier: GPL-2.0
/* Module parameters that the kernel crate lacks: strings, and integers writable at run time. */
#include <linux/dm-kcopyd.h>
#include <linux/module.h>

#include "helpers/helpers.h"

/* The name of the C target's parameter, so that scripts find it in the parameters of dm_rust. */
static unsigned int clone_hydration_throttle = 100;
module_param(clone_hydration_throttle, uint, 0644);
MODULE_PARM_DESC(clone_hydration_throttle,
		 "Percentage of time that the hydration of each clone target may use (1 to 100)");

unsigned int dmr_param_clone_throttle(void)
{
	return READ_ONCE(clone_hydration_throttle);
}

DECLARE_DM_KCOPYD_THROTTLE_WITH_MODULE_PARM(snapshot_copy_throttle,
	"Percentage of time that the copies of all snapshots may use (1 to 100)");

struct dm_kcopyd_throttle *dmr_param_snapshot_throttle(void)
{
	return &dm_kcopyd_throttle;
}

static unsigned int snapshot_cow_threshold = 2048;
module_param(snapshot_cow_threshold, uint, 0644);
MODULE_PARM_DESC(snapshot_cow_threshold,
		 "Number of chunks that a snapshot may be copying before writers have to wait");

unsigned int dmr_param_snapshot_threshold(void)
{
	return READ_ONCE(snapshot_cow_threshold);
}

static unsigned int snapshot_preserved_memory = 32;
module_param(snapshot_preserved_memory, uint, 0644);
MODULE_PARM_DESC(snapshot_preserved_memory,
		 "MiB for each origin to remember which of its chunks all snapshots have preserved");

unsigned int dmr_param_snapshot_preserved_memory(void)
{
	return READ_ONCE(snapshot_preserved_memory);
}

static char *targets = "";
module_param(targets, charp, 0444);
MODULE_PARM_DESC(targets,
		 "Comma-separated names of the targets to register (default: all)");

const char *dmr_param_targets(void)
{
	return targets;
}

static char serves[80];
module_param_string(serves, serves, sizeof(serves), 0444);
MODULE_PARM_DESC(serves,
		 "Comma-separated names of the targets that are registered (set by the module)");

void dmr_param_add_served(const char *target)
{
	static size_t used;	/* overwrites what a user has set */

	used += scnprintf(serves + used, sizeof(serves) - used, "%s%s", used ? "," : "", target);
}
