// SPDX-License-Identifier: GPL-2.0

//! Changes of size: of the metadata device, and of the number of blocks in the era array.
//!
//! C counterpart: `metadata_resize()`. The C target does not use a larger metadata device.

use super::{
    device_blocks,
    log_invalid,
    log_step,
    writeset::empty_writeset_blocks,
    OpenMetadata, //
};
use crate::{
    dm::pdata::block::Block,
    logic::era::superblock::Invalid,
    sys::{
        bdev::BlockDevice,
        log::info, //
    }, //
};
use kernel::prelude::*;

/// Array blocks that are added or removed between two commits: 4 MiB.
const RESIZE_STEP_BLOCKS: u32 = 1024;
/// The entries of these blocks.
const RESIZE_STEP: u32 = RESIZE_STEP_BLOCKS * ERAS_PER_BLOCK;
/// Entries in a block of the era array.
const ERAS_PER_BLOCK: u32 = 1018;

impl OpenMetadata {
    /// Extends the space map to a metadata device that has grown, and commits.
    pub(in crate::targets::era) fn extend_metadata(&mut self, device: &BlockDevice) -> Result {
        let (total, now) = (self.tm.total_blocks()?, device_blocks(device));
        if now <= total {
            return Ok(());
        }
        info!(
            "era",
            "metadata device grows from {} to {} blocks", total, now
        );
        self.tm
            .extend(now.saturating_sub(total))
            .map_err(log_step("couldn't extend the metadata"))?;
        self.commit()
    }

    /// Resizes the era array to `blocks` entries, in slices with a commit each: after a power cut
    /// the next resume continues. Called for metadata that has just been opened:
    /// `Array::has_len` needs an array of which the library has not read a block yet.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if the new entries and the era that follows do not fit. Nothing is changed then,
    /// and the device can be resumed with its old size.
    pub(in crate::targets::era) fn resize(&mut self, blocks: u32) -> Result {
        let old = self.sb.blocks;
        if old == blocks {
            return Ok(());
        }
        let root = Block(self.sb.era_array_root);
        let step = u64::from(RESIZE_STEP_BLOCKS);
        if !self.era_array.has_len(&self.tm, root, old, blocks, step)? {
            return Err(log_invalid(Invalid::Impossible));
        }
        let array = |blocks: u32| u64::from(blocks.div_ceil(ERAS_PER_BLOCK));
        let added = array(blocks).saturating_sub(array(old));
        let needed = match added {
            0 => 0,
            _ => (added / 126).saturating_add(empty_writeset_blocks(blocks)),
        };
        self.require_blocks(added.saturating_add(needed))?;
        while self.sb.blocks < blocks {
            let step = blocks.min(self.sb.blocks.saturating_add(RESIZE_STEP));
            self.resize_array(step, 0)?;
            self.commit()?;
        }
        while self.sb.blocks > blocks {
            let step = blocks.max(self.sb.blocks.saturating_sub(RESIZE_STEP));
            // A node that loses entries is replaced, and its neighbours with it.
            self.require_blocks(array(self.sb.blocks).saturating_sub(array(step)) / 40)?;
            self.shrink(step)?;
            self.commit()?;
        }
        Ok(())
    }

    /// Removes entries from the end of the era array.
    fn shrink(&mut self, blocks: u32) -> Result {
        if blocks % ERAS_PER_BLOCK != 0 || blocks == 0 {
            return self.resize_array(blocks, 0);
        }
        // Cutting at the start of a block would make the library leave that block in the array,
        // empty. So cut one entry further, and add the entry again.
        let last = blocks.saturating_sub(1);
        let root = Block(self.sb.era_array_root);
        let value = self.era_array.get(&self.tm, root, last)?;
        self.resize_array(last, 0)?;
        self.resize_array(blocks, value)
    }

    fn resize_array(&mut self, blocks: u32, value: u32) -> Result {
        let (root, old) = (Block(self.sb.era_array_root), self.sb.blocks);
        self.sb.era_array_root = self
            .era_array
            .resize(&mut self.tm, root, old, blocks, value)
            .map_err(log_step("dm_array_resize failed"))?
            .0;
        self.sb.blocks = blocks;
        self.dirty = true;
        Ok(())
    }
}
