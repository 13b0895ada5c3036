// SPDX-License-Identifier: GPL-2.0

//! Transactions: shadowed blocks, a space map that counts their references, and a superblock whose
//! write completes a transaction.
//!
//! C header: `drivers/md/persistent-data/dm-transaction-manager.h`

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

/// The size of a space map root, which the superblocks of all targets contain.
pub(crate) const SPACE_MAP_ROOT_SIZE: usize = 128;

/// The transaction manager of a metadata device, and its space map. C counterpart: `struct
/// dm_transaction_manager`, `struct dm_space_map`.
///
/// Methods that change the transaction take `&mut self`, the others read.
///
/// # Invariants
///
/// The pointers are to a transaction manager and a space map that use `blocks` and are destroyed
/// with this value.
pub(crate) struct TransactionManager {
    tm: NonNull<bindings::dm_transaction_manager>,
    sm: NonNull<bindings::dm_space_map>,
    // Dropped last, because the two above use it.
    blocks: BlockManager,
}

// SAFETY: Neither a transaction manager nor a space map is tied to a thread.
unsafe impl Send for TransactionManager {}
// SAFETY: Methods of `&self` read counters of the space map, and walk trees with blocks locked for
// reading. Any number of threads may do both at a time.
unsafe impl Sync for TransactionManager {}

impl TransactionManager {
    /// Creates a space map on a blank device, with block `superblock` reserved. C counterpart:
    /// `dm_tm_create_with_sm()`. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or an error of the metadata device.
    pub(crate) fn create(blocks: BlockManager, superblock: Block) -> Result<Self> {
        let (mut tm, mut sm) = (core::ptr::null_mut(), core::ptr::null_mut());
        // SAFETY: The block manager exists, and moves into the result. The variables can be
        // written.
        to_result(unsafe {
            bindings::dm_tm_create_with_sm(blocks.as_ptr(), superblock.0, &mut tm, &mut sm)
        })?;
        Self::own(tm, sm, blocks)
    }

    /// Opens the space map that `root` describes. C counterpart: `dm_tm_open_with_sm()`. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; `EINVAL` or `EILSEQ` for an invalid root; an error of the metadata device.
    pub(crate) fn open(
        blocks: BlockManager,
        superblock: Block,
        root: &[u8; SPACE_MAP_ROOT_SIZE],
    ) -> Result<Self> {
        let (mut tm, mut sm) = (core::ptr::null_mut(), core::ptr::null_mut());
        let mut root = *root;
        // SAFETY: The block manager exists, and moves into the result. The root is read only, and
        // the variables can be written.
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
            // INVARIANT: The callers have just created both, on these blocks.
            (Some(tm), Some(sm)) => Ok(TransactionManager { tm, sm, blocks }),
            _ => Err(ENOMEM),
        }
    }

    /// Returns the transaction manager for the library. Any context.
    pub(super) fn as_ptr(&self) -> *mut bindings::dm_transaction_manager {
        self.tm.as_ptr()
    }

    /// Returns the block manager. Any context.
    pub(crate) fn blocks(&self) -> &BlockManager {
        &self.blocks
    }

    /// Writes all blocks but the superblock, and makes them durable. The roots do not change
    /// between this and [`commit`](Self::commit). C counterpart: `dm_tm_pre_commit()`. May sleep.
    ///
    /// # Errors
    ///
    /// An error of the metadata device.
    pub(crate) fn pre_commit(&mut self) -> Result {
        // SAFETY: By the invariant, the transaction manager exists.
        to_result(unsafe { bindings::dm_tm_pre_commit(self.as_ptr()) })
    }

    /// Commits the transaction, with the superblock that `fill` writes. C counterpart:
    /// `dm_tm_commit()`. May sleep.
    ///
    /// # Errors
    ///
    /// An error of the metadata device.
    pub(crate) fn commit(
        &mut self,
        superblock: Block,
        validator: &'static Validator,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result {
        let mut block: WriteBlock<'_> = self.blocks.write_zeroed(superblock, validator)?;
        fill(&mut block);
        // SAFETY: By the invariant, the transaction manager exists. The commit unlocks the block in
        // every case.
        to_result(unsafe { bindings::dm_tm_commit(self.tm.as_ptr(), block.into_raw()) })
    }

    /// Returns the root of the space map, for the superblock.
    ///
    /// Called between [`pre_commit`](Self::pre_commit) and [`commit`](Self::commit). May sleep.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the root is too large.
    pub(crate) fn space_map_root(&self) -> Result<[u8; SPACE_MAP_ROOT_SIZE]> {
        let mut root = [0; SPACE_MAP_ROOT_SIZE];
        let mut size = 0;
        // SAFETY: By the invariant, the space map exists. `size` can be written.
        to_result(unsafe { bindings::dmr_sm_root_size(self.sm.as_ptr(), &mut size) })?;
        if size > root.len() {
            return Err(EINVAL);
        }
        // SAFETY: By the invariant, the space map exists. The buffer has room for `size` bytes.
        to_result(unsafe {
            bindings::dmr_sm_copy_root(self.sm.as_ptr(), root.as_mut_ptr().cast(), size)
        })?;
        Ok(root)
    }

    /// Counts a reference to a block. C counterpart: `dm_sm_inc_block()`. May sleep.
    ///
    /// # Errors
    ///
    /// An error of the space map.
    pub(crate) fn inc_block(&mut self, block: Block) -> Result {
        // SAFETY: By the invariant, the space map exists.
        to_result(unsafe { bindings::dmr_sm_inc_block(self.sm.as_ptr(), block.0) })
    }

    /// Drops a reference to a block. A block without references is free after the next commit. C
    /// counterpart: `dm_sm_dec_block()`. May sleep.
    ///
    /// # Errors
    ///
    /// An error of the space map.
    pub(crate) fn dec_block(&mut self, block: Block) -> Result {
        // SAFETY: By the invariant, the space map exists.
        to_result(unsafe { bindings::dmr_sm_dec_block(self.sm.as_ptr(), block.0) })
    }

    /// Copies a block that has just been committed. Returns the copy, which has one reference.
    ///
    /// If this fails, the transaction must be abandoned. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOSPC`, or an error of the metadata device.
    pub(crate) fn copy_block(
        &mut self,
        block: Block,
        validator: &'static Validator,
    ) -> Result<Block> {
        self.inc_block(block)?;
        let (mut copy, mut inc) = (core::ptr::null_mut(), 0);
        // SAFETY: By the invariant, the transaction manager exists. The validator is static, and
        // the variables can be written.
        to_result(unsafe {
            bindings::dm_tm_shadow_block(
                self.as_ptr(),
                block.0,
                validator.as_ptr(),
                &mut copy,
                &mut inc,
            )
        })?;
        // SAFETY: The call above has locked the copy.
        let location = Block(unsafe { bindings::dm_block_location(copy) });
        // SAFETY: The copy is locked, and is not used after this.
        unsafe { bindings::dm_tm_unlock(self.as_ptr(), copy) };
        if location == block {
            return Err(EINVAL);
        }
        Ok(location)
    }

    /// Adds blocks to the space map, after the device has grown. C counterpart: `dm_sm_extend()`.
    /// May sleep.
    ///
    /// # Errors
    ///
    /// An error of the space map.
    pub(crate) fn extend(&mut self, extra: u64) -> Result {
        // SAFETY: By the invariant, the space map exists.
        to_result(unsafe { bindings::dmr_sm_extend(self.sm.as_ptr(), extra) })
    }

    /// Returns the number of blocks in the space map. Process context.
    ///
    /// # Errors
    ///
    /// An error of the space map.
    pub(crate) fn total_blocks(&self) -> Result<u64> {
        let mut count = 0;
        // SAFETY: By the invariant, the space map exists. `count` can be written.
        to_result(unsafe { bindings::dmr_sm_nr_blocks(self.sm.as_ptr(), &mut count) })?;
        Ok(count)
    }

    /// Returns the number of blocks that can be allocated. Process context.
    ///
    /// # Errors
    ///
    /// An error of the space map.
    pub(crate) fn free_blocks(&self) -> Result<u64> {
        let mut count = 0;
        // SAFETY: By the invariant, the space map exists. `count` can be written.
        to_result(unsafe { bindings::dmr_sm_nr_free(self.sm.as_ptr(), &mut count) })?;
        // The library subtracts what the transaction has allocated, and subtracts twice what was
        // freed and allocated again. Its result may wrap below zero.
        Ok(if count > self.total_blocks()? {
            0
        } else {
            count
        })
    }
}

impl Drop for TransactionManager {
    fn drop(&mut self) {
        // SAFETY: By the invariant, the transaction manager is destroyed here only.
        unsafe { bindings::dm_tm_destroy(self.tm.as_ptr()) };
        // SAFETY: By the invariant, the space map is destroyed here only. The transaction manager,
        // which used it, is gone.
        unsafe { bindings::dmr_sm_destroy(self.sm.as_ptr()) }
    }
}
