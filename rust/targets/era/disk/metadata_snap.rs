// SPDX-License-Identifier: GPL-2.0

//! The metadata snapshot: a copy of the superblock that keeps the archived eras for user space.
//!
//! C counterpart: `metadata_take_snap()` and `metadata_drop_snap()`.

use super::{
    device_blocks,
    log_invalid,
    log_step,
    FreeSpace,
    OpenMetadata,
    SUPERBLOCK, //
};
use crate::{
    dm::pdata::block::Block,
    logic::{
        era::superblock::Superblock,
        pdata::superblock::LOCATION, //
    },
    sys::bdev::BlockDevice, //
};
use kernel::prelude::*;

impl OpenMetadata {
    /// Takes a metadata snapshot of the archived eras and the era array.
    ///
    /// Commits first. Returns [`FreeSpace::Short`] if the copy does not fit.
    pub(in crate::targets::era) fn take_metadata_snap(&mut self) -> Result<FreeSpace> {
        // The snapshot is a copy of the superblock on disk, so that must be up to date.
        self.commit()?;
        if self.ensure_space()? == FreeSpace::Short {
            return Ok(FreeSpace::Short);
        }
        let copy = self
            .tm
            .copy_block(Block(LOCATION), &SUPERBLOCK)
            .map_err(log_step("couldn't shadow superblock"))?;
        self.tm.inc_block(Block(self.sb.writeset_tree_root))?;
        self.tm.inc_block(Block(self.sb.era_array_root))?;
        self.sb.metadata_snap = copy.0;
        self.dirty = true;
        Ok(FreeSpace::Enough)
    }

    /// Drops the metadata snapshot, with all blocks that only it refers to.
    pub(in crate::targets::era) fn drop_metadata_snap(&mut self, device: &BlockDevice) -> Result {
        let location = Block(self.sb.metadata_snap);
        let copy = {
            let block = self
                .tm
                .blocks()
                .read(location, Some(&SUPERBLOCK))
                .map_err(log_step("couldn't read lock superblock clone"))?;
            let (size, total) = (self.sb.block_size, device_blocks(device));
            Superblock::parse(&block, location.0, size, total).map_err(log_invalid)?
        };
        self.writeset_tree
            .delete(&mut self.tm, Block(copy.writeset_tree_root))
            .map_err(log_step("error deleting writeset tree clone"))?;
        self.era_array
            .delete(&mut self.tm, Block(copy.era_array_root))
            .map_err(log_step("error deleting era array clone"))?;
        self.tm.dec_block(location)?;
        self.sb.metadata_snap = 0;
        self.dirty = true;
        Ok(())
    }
}
