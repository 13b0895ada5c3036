// SPDX-License-Identifier: GPL-2.0

//! Logic of the snapshot targets: chunks, table line, format on disk, allocation and texts.
//!
//! C counterparts: `drivers/md/dm-snap.c`, `dm-snap-persistent.c`, `dm-snap-transient.c` and
//! `dm-exception-store.c`.

pub(crate) mod area;
pub(crate) mod chunks;
pub(crate) mod extents;
pub(crate) mod header;
pub(crate) mod layout;
pub(crate) mod lists;
pub(crate) mod merge;
pub(crate) mod options;
pub(crate) mod parts;
pub(crate) mod pending;
pub(crate) mod readers;
pub(crate) mod role;
pub(crate) mod status;
