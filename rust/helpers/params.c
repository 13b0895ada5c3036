// SPDX-License-Identifier: GPL-2.0
/* Module parameters that the kernel crate cannot express: strings, and integers that are writable at run time. */
#include <linux/module.h>

#include "helpers/helpers.h"

/* The name that the C target uses, so that existing scripts find it under /sys/module/dm_rust/parameters. */
DECLARE_DM_KCOPYD_THROTTLE_WITH_MODULE_PARM(clone_hydration_throttle,
	"Percentage of time that the hydration of clone targets may use (0 to 100)");

struct dm_kcopyd_throttle *dmr_clone_throttle(void)
{
	return &dm_kcopyd_throttle;
}

static char *targets = "";
module_param(targets, charp, 0444);
MODULE_PARM_DESC(targets, "Comma-separated names of the targets to register (default: all)");

const char *dmr_param_targets(void)
{
	return targets;
}
