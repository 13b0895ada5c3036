// SPDX-License-Identifier: GPL-2.0

//! Transactions: shadowed blocks, a space map that counts them, and a superblock that makes all of
//! it true at once.

use crate::{
    bindings,
    dm::pdata::block::{
        Block,
        BlockManager,
        Validator,
        WriteBlock, //
    }, //
};
use core::ptr::NonNull;
use kernel::{
    error::to_result,
    prelude::*, //
};

/// Size of the space-map root that the superblocks of all targets keep.
pub(crate) const SPACE_MAP_ROOT_SIZE: usize = 128;

/// A metadata device with its transaction manager and space map.
///
/// `&self` methods read; what changes the transaction takes `&mut self`. So a reader-writer lock
/// around it is enough.
pub(crate) struct TransactionManager {
    tm: NonNull<bindings::dm_transaction_manager>,
    sm: NonNull<bindings::dm_space_map>,
    // Dropped last: the two above use it.
    blocks: BlockManager,
}

// SAFETY: Transaction managers may be used from any thread, one at a time for changes, which `&mut`
// ensures.
unsafe impl Send for TransactionManager {}
// SAFETY: Shared methods only read counters of the space map, and blocks.
unsafe impl Sync for TransactionManager {}

impl TransactionManager {
    /// Makes a new space map on a blank device; block `superblock` stays reserved.
    pub(crate) fn create(blocks: BlockManager, superblock: Block) -> Result<Self> {
        let (mut tm, mut sm) = (core::ptr::null_mut(), core::ptr::null_mut());
        // SAFETY: The manager is live and moves into the result; the variables can be written.
        to_result(unsafe {
            bindings::dm_tm_create_with_sm(blocks.as_ptr(), superblock.0, &mut tm, &mut sm)
        })?;
        Self::own(tm, sm, blocks)
    }

    /// Opens the space map that `root` describes.
    pub(crate) fn open(
        blocks: BlockManager,
        superblock: Block,
        root: &[u8; SPACE_MAP_ROOT_SIZE],
    ) -> Result<Self> {
        let (mut tm, mut sm) = (core::ptr::null_mut(), core::ptr::null_mut());
        let mut root = *root;
        // SAFETY: The manager is live and moves into the result; the root is only read, the
        // variables can be written.
        to_result(unsafe {
            bindings::dm_tm_open_with_sm(
                blocks.as_ptr(),
                superblock.0,
                root.as_mut_ptr().cast(),
                root.len(),
                &mut tm,
                &mut sm,
            )
        })?;
        Self::own(tm, sm, blocks)
    }

    fn own(
        tm: *mut bindings::dm_transaction_manager,
        sm: *mut bindings::dm_space_map,
        blocks: BlockManager,
    ) -> Result<Self> {
        match (NonNull::new(tm), NonNull::new(sm)) {
            (Some(tm), Some(sm)) => Ok(TransactionManager { tm, sm, blocks }),
            _ => Err(ENOMEM),
        }
    }

    pub(super) fn as_ptr(&self) -> *mut bindings::dm_transaction_manager {
        self.tm.as_ptr()
    }

    /// The blocks below.
    pub(crate) fn blocks(&self) -> &BlockManager {
        &self.blocks
    }

    /// Writes everything but the superblock, and makes it durable: from here on the roots are
    /// final.
    pub(crate) fn pre_commit(&mut self) -> Result {
        // SAFETY: The transaction manager is live.
        to_result(unsafe { bindings::dm_tm_pre_commit(self.as_ptr()) })
    }

    /// Ends the transaction: `fill` writes the superblock, which then goes to the device, durably,
    /// and alone.
    pub(crate) fn commit(
        &mut self,
        superblock: Block,
        validator: &'static Validator,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result {
        let mut block: WriteBlock<'_> = self.blocks.write_zeroed(superblock, validator)?;
        fill(&mut block);
        // SAFETY: The transaction manager is live. The commit unlocks the block in every case.
        to_result(unsafe { bindings::dm_tm_commit(self.tm.as_ptr(), block.into_raw()) })
    }

    /// The space map's root, to be kept in the superblock. To be read between `pre_commit` and
    /// `commit`.
    pub(crate) fn space_map_root(&self) -> Result<[u8; SPACE_MAP_ROOT_SIZE]> {
        let mut root = [0; SPACE_MAP_ROOT_SIZE];
        let mut size = 0;
        // SAFETY: The space map is live, `size` can be written.
        to_result(unsafe { bindings::dmr_sm_root_size(self.sm.as_ptr(), &mut size) })?;
        if size > root.len() {
            return Err(EINVAL);
        }
        // SAFETY: The space map is live, and the buffer has room for `size` bytes.
        to_result(unsafe {
            bindings::dmr_sm_copy_root(self.sm.as_ptr(), root.as_mut_ptr().cast(), size)
        })?;
        Ok(root)
    }

    /// Counts one more reference to a block of the device.
    pub(crate) fn inc_block(&mut self, block: Block) -> Result {
        // SAFETY: The space map is live.
        to_result(unsafe { bindings::dmr_sm_inc_block(self.sm.as_ptr(), block.0) })
    }

    /// Takes a reference to a block back; without any it is free after the next commit.
    pub(crate) fn dec_block(&mut self, block: Block) -> Result {
        // SAFETY: The space map is live.
        to_result(unsafe { bindings::dmr_sm_dec_block(self.sm.as_ptr(), block.0) })
    }

    /// Makes a copy of a block that has just been committed, with one reference, and returns where
    /// it is. If this fails, the transaction must be thrown away.
    pub(crate) fn copy_block(
        &mut self,
        block: Block,
        validator: &'static Validator,
    ) -> Result<Block> {
        self.inc_block(block)?;
        let (mut copy, mut inc) = (core::ptr::null_mut(), 0);
        // SAFETY: The manager is live, the validator static, the variables can be written.
        to_result(unsafe {
            bindings::dm_tm_shadow_block(
                self.as_ptr(),
                block.0,
                validator.as_ptr(),
                &mut copy,
                &mut inc,
            )
        })?;
        // SAFETY: Locked by the call above.
        let location = Block(unsafe { bindings::dm_block_location(copy) });
        // SAFETY: As above; it is not used after this.
        unsafe { bindings::dm_tm_unlock(self.as_ptr(), copy) };
        if location == block {
            return Err(EINVAL);
        }
        Ok(location)
    }

    /// Adds blocks at the end, after the device has grown.
    pub(crate) fn extend(&mut self, extra: u64) -> Result {
        // SAFETY: The space map is live.
        to_result(unsafe { bindings::dmr_sm_extend(self.sm.as_ptr(), extra) })
    }

    /// Blocks of the device that the space map knows.
    pub(crate) fn total_blocks(&self) -> Result<u64> {
        let mut count = 0;
        // SAFETY: The space map is live, `count` can be written.
        to_result(unsafe { bindings::dmr_sm_nr_blocks(self.sm.as_ptr(), &mut count) })?;
        Ok(count)
    }

    /// Blocks that can be allocated now.
    pub(crate) fn free_blocks(&self) -> Result<u64> {
        let mut count = 0;
        // SAFETY: The space map is live, `count` can be written.
        to_result(unsafe { bindings::dmr_sm_nr_free(self.sm.as_ptr(), &mut count) })?;
        // The library takes off what was allocated in the transaction, and takes off twice what was
        // freed and allocated again: where little is free it may come out below zero.
        Ok(if count > self.total_blocks()? {
            0
        } else {
            count
        })
    }
}

impl Drop for TransactionManager {
    fn drop(&mut self) {
        // SAFETY: Ours, and not used after this; neither uses the other any more.
        unsafe { bindings::dm_tm_destroy(self.tm.as_ptr()) };
        // SAFETY: As above.
        unsafe { bindings::dmr_sm_destroy(self.sm.as_ptr()) }
    }
}
