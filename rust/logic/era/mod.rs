// SPDX-License-Identifier: GPL-2.0

//! Pure logic of the `era` target.

pub(crate) mod geometry;
pub(crate) mod marks;
pub(crate) mod number;
pub(crate) mod status;
pub(crate) mod superblock;
pub(crate) mod transcript;
