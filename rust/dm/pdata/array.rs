// SPDX-License-Identifier: GPL-2.0

//! Arrays of 64-bit words on disk.
//!
//! `dm-bitset` keeps its bits in such an array, bit `i` in word `i / 64`: this is the bitset, read and written by words.

use crate::{
    bindings,
    dm::pdata::{
        block::Block,
        checksum,
        tm::Transactions, //
    }, //
};
use core::marker::PhantomData;
use kernel::{
    error::to_result,
    ffi::c_void,
    prelude::*, //
};

/// Words in a block of the array, behind its header of 24 bytes.
const WORDS_PER_BLOCK: u64 = 509;
/// What tells the checksums of array blocks from those of others.
const CHECKSUM_XOR: u32 = 595_846_735;

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
    /// An array that is shorter is an error. Reads whole blocks, for speed: the library has no way to get at more than a
    /// word at a time. Only for an array of which the library has not read or written a block yet.
    pub(crate) fn for_each(
        &self,
        tm: &Transactions,
        root: Block,
        count: u64,
        mut visit: impl FnMut(u64, u64) -> Result,
    ) -> Result {
        let mut index = 0;
        let mut walk = || -> Result<bool> {
            let mut blocks = BlockCursor::new(self, tm, root)?;
            loop {
                let (key, location) = blocks.get()?;
                let wanted = count.saturating_sub(index).min(WORDS_PER_BLOCK);
                // Without a validator: it would be another one than the library's, which refuses such blocks.
                let block = tm.blocks().read(location, None)?;
                let found = words(&block, location, wanted);
                let Some(found) = found.filter(|_| key == index / WORDS_PER_BLOCK) else {
                    return Ok(false);
                };
                for word in found {
                    visit(index, word)?;
                    index = index.saturating_add(1);
                }
                if index >= count {
                    return Ok(true);
                }
                blocks.next()?;
            }
        };
        if count == 0 || walk()? {
            return Ok(());
        }
        // Something is wrong with a block. Let the library find out what, and log it.
        self.get(tm, root, u32::try_from(index)?)?;
        Err(EINVAL)
    }
}

/// The words of an array block, if it is one with as many as wanted.
fn words(block: &[u8], location: Block, wanted: u64) -> Option<impl Iterator<Item = u64> + '_> {
    let (sum, rest) = block.split_first_chunk()?;
    let valid = u32::from_le_bytes(*sum) == checksum(rest, CHECKSUM_XOR);
    let (max_entries, rest) = rest.split_first_chunk()?;
    let (entries, rest) = rest.split_first_chunk()?;
    let (value_size, rest) = rest.split_first_chunk()?;
    let (at, values) = rest.split_first_chunk()?;
    let valid = valid
        && u64::from(u32::from_le_bytes(*max_entries)) == WORDS_PER_BLOCK
        && u64::from(u32::from_le_bytes(*entries)) >= wanted
        && u32::from_le_bytes(*value_size) == 8
        && u64::from_le_bytes(*at) == location.0;
    let values = values
        .chunks_exact(8)
        .filter_map(|value| Some(u64::from_le_bytes(value.try_into().ok()?)));
    valid.then(|| values.take(usize::try_from(wanted).unwrap_or(0)))
}

/// Goes through the blocks of an array, in order; the library reads ahead.
///
/// # Invariants
///
/// The cursor is one of zeros, or was begun with a manager that lives.
struct BlockCursor<'a> {
    raw: bindings::dm_btree_cursor,
    _tm: PhantomData<&'a Transactions>,
}

impl<'a> BlockCursor<'a> {
    fn new(array: &'a WordArray, tm: &'a Transactions, root: Block) -> Result<Self> {
        let info = array.info(tm)?;
        // INVARIANT: A cursor of zeros holds nothing, as if it had come to its end.
        let mut cursor = BlockCursor {
            raw: bindings::dm_btree_cursor::default(),
            _tm: PhantomData,
        };
        // SAFETY: The description is initialised: within it is that of the tree of blocks, whose values are 8 bytes. Its
        // manager is live, and the cursor can be written. If it fails, what it holds is let go with the cursor.
        to_result(unsafe {
            bindings::dm_btree_cursor_begin(&mut (*info).btree_info, root.0, true, &mut cursor.raw)
        })?;
        Ok(cursor)
    }

    /// The number of the present block within the array, and where it is.
    fn get(&mut self) -> Result<(u64, Block)> {
        let (mut key, mut value) = (0, [0u8; 8]);
        let buffer = value.as_mut_ptr().cast::<c_void>();
        // SAFETY: By the invariant; a value has 8 bytes.
        to_result(unsafe { bindings::dm_btree_cursor_get_value(&mut self.raw, &mut key, buffer) })?;
        Ok((key, Block(u64::from_le_bytes(value))))
    }

    /// Goes to the next block. `ENODATA` if there is none.
    fn next(&mut self) -> Result {
        // SAFETY: By the invariant.
        to_result(unsafe { bindings::dm_btree_cursor_next(&mut self.raw) })
    }
}

impl Drop for BlockCursor<'_> {
    fn drop(&mut self) {
        // SAFETY: By the invariant; it ends once.
        unsafe { bindings::dm_btree_cursor_end(&mut self.raw) }
    }
}
