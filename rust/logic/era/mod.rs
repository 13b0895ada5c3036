// SPDX-License-Identifier: GPL-2.0

//! Pure logic of the `era` target.

pub(crate) mod digest_cursor;
pub(crate) mod era_nr;
pub(crate) mod geometry;
pub(crate) mod status;
pub(crate) mod superblock;
pub(crate) mod writeset;
