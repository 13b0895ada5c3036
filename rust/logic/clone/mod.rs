// SPDX-License-Identifier: GPL-2.0

//! Logic of the clone target.
//!
//! | file | subject |
//! | --- | --- |
//! | `geometry.rs` | sectors and regions |
//! | `map.rs` | the hydrated regions |
//! | `inflight.rs`, `slots.rs` | the regions in flight, and what becomes of a write |
//! | `dirty.rs` | the regions to commit |
//! | `region_copy.rs` | the progress of a copy |
//! | `hydration.rs` | what the background hydration copies, and when |
//! | `options.rs`, `status.rs` | texts: table line and status |
//! | `superblock.rs` | the superblock on disk |
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
