// SPDX-License-Identifier: GPL-2.0
/* Module parameters that the kernel crate cannot express: strings, and integers that are writable at run time. */
#include <linux/module.h>

#include "helpers/helpers.h"

/* The name that the C target uses, so that existing scripts find it under /sys/module/dm_rust/parameters. */
static unsigned int clone_hydration_throttle = 100;
module_param(clone_hydration_throttle, uint, 0644);
MODULE_PARM_DESC(clone_hydration_throttle, "Percentage of time that the hydration of each clone target may use (1 to 100)");

unsigned int dmr_param_clone_throttle(void)
{
	return READ_ONCE(clone_hydration_throttle);
}

static char *targets = "";
module_param(targets, charp, 0444);
MODULE_PARM_DESC(targets, "Comma-separated names of the targets to register (default: all)");

const char *dmr_param_targets(void)
{
	return targets;
}
