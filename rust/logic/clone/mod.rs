// SPDX-License-Identifier: GPL-2.0

//! Logic of the clone target: geometry, maps, logs, decisions, layout and texts.
//!
//! C counterparts: `drivers/md/dm-clone-metadata.c` and `drivers/md/dm-clone-target.c`.

pub(crate) mod dirty;
pub(crate) mod geometry;
pub(crate) mod hydration;
pub(crate) mod inflight;
pub(crate) mod map;
pub(crate) mod options;
pub(crate) mod region_copy;
pub(crate) mod slots;
pub(crate) mod status;
pub(crate) mod superblock;
