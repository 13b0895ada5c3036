/* SPDX-License-Identifier: GPL-2.0 */
/*
 * C helpers for macros and inline functions of the kernel, which Rust cannot call. bindgen reads
 * the prototypes, and the C compiler checks the definitions in this directory against them.
 */
#ifndef DM_RUST_HELPERS_H
#define DM_RUST_HELPERS_H

#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/device-mapper.h>
#include <linux/dm-kcopyd.h>
#include <linux/mempool.h>
#include <linux/rwsem.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "persistent-data/dm-space-map.h"

/* division.c */
u64 dmr_divide(u64 dividend, u64 divisor, u64 *remainder);

/* block.c */
void dmr_bio_set_dev(struct bio *bio, struct block_device *bdev);
void dmr_bio_submit(struct bio *bio, struct block_device *bdev);
void dmr_bio_end(struct bio *bio, blk_status_t status);
sector_t dmr_bdev_sectors(struct block_device *bdev);
unsigned int dmr_bdev_logical_block_size(struct block_device *bdev);
unsigned int dmr_bdev_max_discard_sectors(struct block_device *bdev);
const struct queue_limits *dmr_bdev_limits(struct block_device *bdev);
struct file *dmr_device_open(struct dm_target *ti, const char *path, blk_mode_t mode);
void dmr_device_close(struct dm_target *ti, struct file *file);
int dmr_device_visit(struct dm_target *ti, struct block_device *bdev,
		     iterate_devices_callout_fn call, sector_t start, sector_t len, void *data);
void dmr_bdev_name(struct block_device *bdev, char *buffer, size_t size);
void dmr_plugged(void (*body)(void *context), void *context);

/* delay.c */
#ifdef CONFIG_RUST_DEBUG_ASSERTIONS
void dmr_delay_point(const char *name);
#endif

/* epochs.c */
struct dmr_epochs;
struct dmr_epochs *dmr_epochs_create(void);
void dmr_epochs_destroy(struct dmr_epochs *epochs);
unsigned int dmr_epochs_enter(struct dmr_epochs *epochs);
void dmr_epochs_leave(struct dmr_epochs *epochs, unsigned int epoch);
unsigned int dmr_epochs_current(struct dmr_epochs *epochs);
void dmr_epochs_set(struct dmr_epochs *epochs, unsigned int epoch);
int dmr_epochs_drain(struct dmr_epochs *epochs, unsigned int epoch);

/* locking.c */
unsigned long dmr_spin_lock_irqsave(spinlock_t *lock);
bool dmr_spin_trylock_irqsave(spinlock_t *lock, unsigned long *flags);
void dmr_spin_unlock_irqrestore(spinlock_t *lock, unsigned long flags);
void dmr_synchronize_rcu(void);
void dmr_init_rwsem(struct rw_semaphore *sem, const char *name, struct lock_class_key *key);
void dmr_wait_queue_init(wait_queue_head_t *head, const char *name, struct lock_class_key *key);
void dmr_wait_until(wait_queue_head_t *head, bool (*condition)(void *context), void *context);
void dmr_wait_until_timeout(wait_queue_head_t *head, bool (*condition)(void *context),
			    void *context, long jiffies);
int dmr_wait_killable(wait_queue_head_t *head, bool (*condition)(void *context), void *context);
void dmr_wake_up_all(wait_queue_head_t *head);

/* memory.c */
unsigned int dmr_noio_save(void);
void dmr_noio_restore(unsigned int flags);
mempool_t *dmr_mempool_create(int reserve, size_t size);
void *dmr_mempool_alloc_nowait(mempool_t *pool);
bool dmr_log_allowed(void);
void dmr_warn_miscounted(void);

/* params.c */
unsigned int dmr_param_clone_throttle(void);
struct dm_kcopyd_throttle *dmr_param_snapshot_throttle(void);
unsigned int dmr_param_snapshot_threshold(void);
unsigned int dmr_param_snapshot_preserved_memory(void);
const char *dmr_param_targets(void);
void dmr_param_add_served(const char *target);

/* persistent.c */
void dmr_warn_held(void);
void dmr_sm_destroy(struct dm_space_map *sm);
int dmr_sm_nr_blocks(struct dm_space_map *sm, dm_block_t *count);
int dmr_sm_nr_free(struct dm_space_map *sm, dm_block_t *count);
int dmr_sm_extend(struct dm_space_map *sm, dm_block_t extra);
int dmr_sm_inc_block(struct dm_space_map *sm, dm_block_t block);
int dmr_sm_dec_block(struct dm_space_map *sm, dm_block_t block);
int dmr_sm_root_size(struct dm_space_map *sm, size_t *size);
int dmr_sm_copy_root(struct dm_space_map *sm, void *root, size_t size);

/* work.c */
struct workqueue_struct *dmr_alloc_workqueue(const char *name, unsigned int flags, int max_active);

#endif
