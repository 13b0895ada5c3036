// SPDX-License-Identifier: GPL-2.0
/* Bios and block devices. */
#include <linux/build_bug.h>

#include "helpers/helpers.h"

/* The target reads these fields of a bio itself; say here, where C's own layout is known, that bindgen saw the same. */
static_assert(sizeof_field(struct bio, bi_opf) == 4);
static_assert(sizeof_field(struct bio, bi_status) == 1);
static_assert(sizeof(struct bvec_iter) == 20 || sizeof(struct bvec_iter) == 24);

void dmr_bio_set_dev(struct bio *bio, struct block_device *bdev)
{
	bio_set_dev(bio, bdev);
}

void dmr_bio_submit(struct bio *bio, struct block_device *bdev)
{
	bio_set_dev(bio, bdev);
	submit_bio_noacct(bio);
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

/* The number of a device that a table line names, without opening it. */
int dmr_lookup_device(const char *path, dev_t *number)
{
	unsigned int major, minor;
	char more;

	if (sscanf(path, "%u:%u%c", &major, &minor, &more) != 2)
		return lookup_bdev(path, number);
	*number = MKDEV(major, minor);
	return 0;
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
