/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The input of bindgen: headers that the kernel crate does not bind, the C helpers, and constants
 * that bindgen cannot evaluate because they are macros with casts. The build removes the prefix
 * DMR_CONST_ of the latter.
 */
#ifndef DM_RUST_BINDINGS_HELPER_H
#define DM_RUST_BINDINGS_HELPER_H

#include <linux/blk_types.h>
#include <linux/device-mapper.h>
#include <linux/dm-io.h>
#include <linux/dm-kcopyd.h>
#include <linux/workqueue.h>

#include "persistent-data/dm-array.h"
#include "persistent-data/dm-bitset.h"
#include "persistent-data/dm-block-manager.h"
#include "persistent-data/dm-btree.h"
#include "persistent-data/dm-space-map.h"
#include "persistent-data/dm-transaction-manager.h"

#include "helpers/helpers.h"

const blk_status_t DMR_CONST_BLK_STS_OK = BLK_STS_OK;
const blk_status_t DMR_CONST_BLK_STS_NOTSUPP = BLK_STS_NOTSUPP;
const blk_status_t DMR_CONST_BLK_STS_NOSPC = BLK_STS_NOSPC;
const blk_status_t DMR_CONST_BLK_STS_AGAIN = BLK_STS_AGAIN;
const blk_status_t DMR_CONST_BLK_STS_RESOURCE = BLK_STS_RESOURCE;
const blk_status_t DMR_CONST_BLK_STS_IOERR = BLK_STS_IOERR;
const blk_status_t DMR_CONST_BLK_STS_DM_REQUEUE = BLK_STS_DM_REQUEUE;

const blk_opf_t DMR_CONST_REQ_OP_MASK = REQ_OP_MASK;
const blk_opf_t DMR_CONST_REQ_PREFLUSH = REQ_PREFLUSH;
const blk_opf_t DMR_CONST_REQ_FUA = REQ_FUA;
const blk_opf_t DMR_CONST_REQ_SYNC = REQ_SYNC;
const blk_opf_t DMR_CONST_REQ_NOWAIT = REQ_NOWAIT;

const blk_mode_t DMR_CONST_BLK_OPEN_READ = BLK_OPEN_READ;
const blk_mode_t DMR_CONST_BLK_OPEN_WRITE = BLK_OPEN_WRITE;

/* Bit 0 of the status flags. Its name is in a private header of device-mapper. */
const unsigned int DMR_CONST_DMR_STATUS_NOFLUSH = 1;

const gfp_t DMR_CONST_DMR_GFP_NOIO = GFP_NOIO;

const unsigned int DMR_CONST_DMR_WQ_MEM_RECLAIM = WQ_MEM_RECLAIM;
const unsigned int DMR_CONST_DMR_WQ_PERCPU = WQ_PERCPU;
const unsigned int DMR_CONST_DMR_WQ_UNBOUND = WQ_UNBOUND;

#endif
