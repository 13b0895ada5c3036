// SPDX-License-Identifier: GPL-2.0

//! Logic of the snapshot targets: chunks, table line, format on disk, allocation and texts.
//!
//! C counterparts: `drivers/md/dm-snap.c`, `dm-snap-persistent.c`, `dm-snap-transient.c` and
//! `dm-exception-store.c`.

pub(crate) mod chunks;
pub(crate) mod exception_table;
pub(crate) mod handover;
pub(crate) mod header;
pub(crate) mod layout;
pub(crate) mod lists;
pub(crate) mod loader;
pub(crate) mod merge;
pub(crate) mod merge_batch;
pub(crate) mod options;
pub(crate) mod pending;
pub(crate) mod record;
pub(crate) mod run;
pub(crate) mod sort;
pub(crate) mod status;
pub(crate) mod stripes;
pub(crate) mod tracked_reads;
