// SPDX-License-Identifier: GPL-2.0

//! The blocks of `dm-persistent-data` as they lie on disk, for checks that the kernel's library
//! does not make.

pub(crate) mod node;
pub(crate) mod space_map;
pub(crate) mod superblock;
