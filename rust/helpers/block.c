// SPDX-License-Identifier: GPL-2.0
/* Bios and block devices. */
#include <linux/build_bug.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/kdev_t.h>

#include "helpers/helpers.h"

/* Rust reads these fields of a bio. C asserts here that bindgen has seen them as they are. */
static_assert(sizeof_field(struct bio, bi_opf) == 4);
static_assert(sizeof_field(struct bio, bi_status) == 1);
static_assert(sizeof(struct bvec_iter) == 20 || sizeof(struct bvec_iter) == 24);

void dmr_bio_set_dev(struct bio *bio, struct block_device *bdev)
{
	bio_set_dev(bio, bdev);
}

/* For targets with accounts_remapped_io. The I/O is charged to the sender of the original bio. */
void dmr_bio_submit(struct bio *bio, struct block_device *bdev)
{
	bio_set_dev(bio, bdev);
	dm_submit_bio_remap(bio, NULL);
}

void dmr_bio_end(struct bio *bio, blk_status_t status)
{
	bio->bi_status = status;
	bio_endio(bio);
}

sector_t dmr_bdev_sectors(struct block_device *bdev)
{
	return bdev_nr_sectors(bdev);
}

unsigned int dmr_bdev_logical_block_size(struct block_device *bdev)
{
	return bdev_logical_block_size(bdev);
}

unsigned int dmr_bdev_max_discard_sectors(struct block_device *bdev)
{
	return bdev_max_discard_sectors(bdev);
}

const struct queue_limits *dmr_bdev_limits(struct block_device *bdev)
{
	return bdev_limits(bdev);
}

/*
 * Opens a device for a target under construction. Returns a counted reference to its file. The
 * dm_dev is not returned, because device-mapper replaces it when another line of the table opens
 * the device in another mode.
 */
struct file *dmr_device_open(struct dm_target *ti, const char *path, blk_mode_t mode)
{
	struct dm_dev *dev;
	int r = dm_get_device(ti, path, mode, &dev);

	return r ? ERR_PTR(r) : get_file(dev->bdev_file);
}

/*
 * Returns another reference to the device that the target's table has open under a number. Mode 0
 * is a part of any mode, so dm_get_device() finds the device, and does not open it again.
 */
static struct dm_dev *find_device(struct dm_target *ti, dev_t number)
{
	char name[16];
	struct dm_dev *dev;

	format_dev_t(name, number);
	return WARN_ON_ONCE(dm_get_device(ti, name, 0, &dev)) ? NULL : dev;
}

/* Closes a device that dmr_device_open() has opened. Called from the target's destructor. */
void dmr_device_close(struct dm_target *ti, struct file *file)
{
	dev_t number = file_bdev(file)->bd_dev;
	struct dm_dev *dev;

	/* Before device-mapper closes its reference, which may be to the same file. */
	__fput_sync(file);
	dev = find_device(ti, number);
	if (!dev)
		return;
	/* Drops the reference of the look-up, and that of dmr_device_open(). */
	dm_put_device(ti, dev);
	dm_put_device(ti, dev);
}

/* Called from the iterate_devices hook of a target that has opened the device. */
int dmr_device_visit(struct dm_target *ti, struct block_device *bdev,
		     iterate_devices_callout_fn call, sector_t start, sector_t len, void *data)
{
	struct dm_dev *dev = find_device(ti, bdev->bd_dev);
	int r;

	if (!dev)
		return -ENODEV;
	r = call(ti, dev, start, len, data);
	dm_put_device(ti, dev);
	return r;
}

void dmr_bdev_name(struct block_device *bdev, char *buffer, size_t size)
{
	snprintf(buffer, size, "%pg", bdev);
}

void dmr_plugged(void (*body)(void *context), void *context)
{
	struct blk_plug plug;

	blk_start_plug(&plug);
	body(context);
	blk_finish_plug(&plug);
}
