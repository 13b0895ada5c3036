// SPDX-License-Identifier: GPL-2.0
/* Space maps of dm-persistent-data, whose functions are inline. */
#include "helpers/helpers.h"

void dmr_warn_held(void)
{
	WARN_ONCE(1, "dm_rust: more blocks of metadata are held than were announced\n");
}

void dmr_sm_destroy(struct dm_space_map *sm)
{
	dm_sm_destroy(sm);
}

int dmr_sm_nr_blocks(struct dm_space_map *sm, dm_block_t *count)
{
	return dm_sm_get_nr_blocks(sm, count);
}

int dmr_sm_nr_free(struct dm_space_map *sm, dm_block_t *count)
{
	return dm_sm_get_nr_free(sm, count);
}

int dmr_sm_extend(struct dm_space_map *sm, dm_block_t extra)
{
	return dm_sm_extend(sm, extra);
}

int dmr_sm_inc_block(struct dm_space_map *sm, dm_block_t block)
{
	return dm_sm_inc_block(sm, block);
}

int dmr_sm_dec_block(struct dm_space_map *sm, dm_block_t block)
{
	return dm_sm_dec_block(sm, block);
}

int dmr_sm_root_size(struct dm_space_map *sm, size_t *size)
{
	return dm_sm_root_size(sm, size);
}

int dmr_sm_copy_root(struct dm_space_map *sm, void *root, size_t size)
{
	return dm_sm_copy_root(sm, root, size);
}
