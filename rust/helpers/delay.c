// SPDX-License-Identifier: GPL-2.0
/*
 * Delay points, which widen races: a thread that passes one sleeps, at random or until a test
 * releases it. Only kernels with CONFIG_RUST_DEBUG_ASSERTIONS have them.
 */
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/random.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/sysfs.h>

#include "helpers/helpers.h"

#define NAME_SIZE 48
#define MAX_POINTS 64
/* Shorter than the timeout of the hung task detector. */
#define MAX_HOLD (60 * HZ)

static unsigned int delay_chance;
module_param(delay_chance, uint, 0644);
MODULE_PARM_DESC(delay_chance, "Threads in a thousand that sleep at a delay point (0: none)");

static unsigned int delay_us = 5000;
module_param(delay_us, uint, 0644);
MODULE_PARM_DESC(delay_us, "Longest sleep at a delay point, in microseconds");

static DEFINE_SPINLOCK(lock);

/* How often each point was passed while delay_chance or delay_hold was in use. */
static struct {
	const char *name;
	unsigned int passed;
	unsigned int slept;
} points[MAX_POINTS];

/* The point that holds the first thread that passes it, until the parameter is written again. */
static char hold_name[NAME_SIZE];
static unsigned int hold_number;
static bool hold_taken;

static int set_hold(const char *value, const struct kernel_param *param)
{
	char name[NAME_SIZE];

	if (strscpy(name, value) < 0)
		return -EINVAL;
	spin_lock(&lock);
	strscpy(hold_name, strim(name));
	hold_taken = false;
	WRITE_ONCE(hold_number, hold_number + 1);
	spin_unlock(&lock);
	return 0;
}

static int get_hold(char *buffer, const struct kernel_param *param)
{
	int length;

	spin_lock(&lock);
	length = sysfs_emit(buffer, "%s%s\n", hold_taken ? "held at " : "", hold_name);
	spin_unlock(&lock);
	return length;
}

static const struct kernel_param_ops hold_ops = { .set = set_hold, .get = get_hold };
module_param_cb(delay_hold, &hold_ops, NULL, 0644);
MODULE_PARM_DESC(delay_hold,
		 "The delay point that holds the first thread until this is written again");

static int get_points(char *buffer, const struct kernel_param *param)
{
	int length = 0;

	spin_lock(&lock);
	for (int i = 0; i < MAX_POINTS && points[i].name; i++)
		length += sysfs_emit_at(buffer, length, "%u passed, %u slept: %s\n",
					points[i].passed, points[i].slept, points[i].name);
	spin_unlock(&lock);
	return length;
}

static const struct kernel_param_ops points_ops = { .get = get_points };
module_param_cb(delay_points, &points_ops, NULL, 0444);
MODULE_PARM_DESC(delay_points,
		 "How often each delay point was passed, and how often a thread slept there");

/* May sleep. This is checked even if no thread is delayed. */
void dmr_delay_point(const char *name)
{
	unsigned int chance = READ_ONCE(delay_chance), number, us = 0;
	unsigned long end = jiffies + MAX_HOLD;
	bool held = false;

	might_sleep();
	if (!chance && !READ_ONCE(hold_name[0]))
		return;
	if (get_random_u32_below(1000) < chance)
		us = get_random_u32_below(READ_ONCE(delay_us) ?: 1) + 1;
	spin_lock(&lock);
	if (!hold_taken && !strcmp(hold_name, name)) {
		held = hold_taken = true;
		number = hold_number;
	}
	for (int i = 0; i < MAX_POINTS; i++) {
		if (!points[i].name)
			points[i].name = name;
		if (strcmp(points[i].name, name))
			continue;
		points[i].passed++;
		points[i].slept += us || held;
		break;
	}
	spin_unlock(&lock);
	while (held && READ_ONCE(hold_number) == number && time_before(jiffies, end))
		fsleep(1000);
	if (us)
		fsleep(us);
}
