// SPDX-License-Identifier: GPL-2.0

//! Blocks of the kernel's persistent-data library as they are on disk, for checks that the library
//! does not make.

pub(crate) mod node;
pub(crate) mod space_map;
pub(crate) mod superblock;
