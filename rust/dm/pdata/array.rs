// SPDX-License-Identifier: GPL-2.0

//! Arrays of 64-bit words on disk.
//!
//! `dm-bitset` keeps its bits in such an array, bit `i` in word `i / 64`: this is the bitset, read and written by words.

use crate::{
    bindings,
    dm::pdata::{
        block::Block,
        tm::Transactions, //
    }, //
};
use core::mem::MaybeUninit;
use kernel::{
    error::to_result,
    ffi::c_void,
    prelude::*, //
};

/// Words in a block of the array, behind its header of 24 bytes.
const WORDS_PER_BLOCK: u32 = 509;

/// Describes arrays of words to the library. Belongs to one [`Transactions`], which each call names again: a description
/// used with another one is refused.
pub(crate) struct WordArray {
    // The library stores the structure's own address in it.
    info: Pin<KBox<bindings::dm_array_info>>,
}

// SAFETY: Plain data and a pointer to the transaction manager, which is used only with that manager at hand.
unsafe impl Send for WordArray {}
// SAFETY: As above; shared use only reads.
unsafe impl Sync for WordArray {}

impl WordArray {
    /// Describes arrays within `tm`.
    pub(crate) fn new(tm: &Transactions) -> Result<Self> {
        let mut info = KBox::pin(bindings::dm_array_info::default(), GFP_KERNEL)?;
        let mut value = bindings::dm_btree_value_type {
            context: core::ptr::null_mut(),
            size: 8,
            inc: None,
            dec: None,
            equal: None,
        };
        // SAFETY: The structure stays where it is (pinned), the manager is live, and the value type is copied.
        unsafe { bindings::dm_array_info_init(&mut *info.as_mut(), tm.as_ptr(), &mut value) };
        Ok(WordArray { info })
    }

    /// The description for a call that only reads, if it belongs to `tm`.
    fn info(&self, tm: &Transactions) -> Result<*mut bindings::dm_array_info> {
        if self.info.btree_info.tm != tm.as_ptr() {
            return Err(EINVAL);
        }
        Ok(core::ptr::from_ref(&*self.info).cast_mut())
    }

    /// Makes an array of `words` zeros and returns its root.
    pub(crate) fn create(&self, tm: &mut Transactions, words: u32) -> Result<Block> {
        let info = self.info(tm)?;
        let mut root = 0;
        // SAFETY: The description is initialised, its manager live and ours alone; `root` can be written.
        to_result(unsafe { bindings::dm_array_empty(info, &mut root) })?;
        let zero = 0u64;
        let value = core::ptr::from_ref(&zero).cast::<c_void>();
        // SAFETY: As above; the value has the size of the description.
        to_result(unsafe { bindings::dm_array_resize(info, root, 0, words, value, &mut root) })?;
        Ok(Block(root))
    }

    /// Reads a word. `ENODATA` if there is none.
    pub(crate) fn get(&self, tm: &Transactions, root: Block, index: u32) -> Result<u64> {
        let mut word = 0u64;
        let value = core::ptr::from_mut(&mut word).cast::<c_void>();
        // SAFETY: The description is initialised and its manager live; the value has the size of the description.
        to_result(unsafe { bindings::dm_array_get_value(self.info(tm)?, root.0, index, value) })?;
        Ok(u64::from_le(word))
    }

    /// Writes a word within the running transaction and returns the new root.
    pub(crate) fn set(
        &self,
        tm: &mut Transactions,
        root: Block,
        index: u32,
        word: u64,
    ) -> Result<Block> {
        let info = self.info(tm)?;
        let word = word.to_le();
        let value = core::ptr::from_ref(&word).cast::<c_void>();
        let mut new = root.0;
        // SAFETY: The description is initialised, its manager live and ours alone; the value has the right size.
        to_result(unsafe { bindings::dm_array_set_value(info, root.0, index, value, &mut new) })?;
        Ok(Block(new))
    }

    /// Reads the first `count` words in order, with read-ahead, and passes each on with its index.
    ///
    /// An array that is shorter is an error.
    pub(crate) fn for_each(
        &self,
        tm: &Transactions,
        root: Block,
        count: u64,
        mut visit: impl FnMut(u64, u64) -> Result,
    ) -> Result {
        let info = self.info(tm)?;
        if count == 0 {
            return Ok(());
        }
        let mut cursor = MaybeUninit::<bindings::dm_array_cursor>::uninit();
        // SAFETY: The description is initialised and its manager live; the cursor can be written.
        to_result(unsafe { bindings::dm_array_cursor_begin(info, root.0, cursor.as_mut_ptr()) })?;
        let mut walk = || -> Result {
            for index in 0..count {
                if index > 0 {
                    // SAFETY: The cursor was begun.
                    to_result(unsafe { bindings::dm_array_cursor_next(cursor.as_mut_ptr()) })?;
                }
                // SAFETY: The cursor was begun, so all its fields are set.
                if unsafe { (*cursor.as_ptr()).index } >= WORDS_PER_BLOCK {
                    // The block claims more words than it has room for.
                    return Err(EINVAL);
                }
                let mut value = core::ptr::null_mut();
                // SAFETY: The cursor is at a value: `begin` or `next` succeeded.
                unsafe { bindings::dm_array_cursor_get_value(cursor.as_mut_ptr(), &mut value) };
                // SAFETY: The library points at a value of 8 bytes, valid until the cursor moves.
                let word = unsafe { value.cast::<u64>().read_unaligned() };
                visit(index, u64::from_le(word))?;
            }
            Ok(())
        };
        let result = walk();
        // SAFETY: The cursor was begun; it ends once.
        unsafe { bindings::dm_array_cursor_end(cursor.as_mut_ptr()) };
        result
    }
}
