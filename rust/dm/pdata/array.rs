// SPDX-License-Identifier: GPL-2.0

//! Arrays of numbers on disk.
//!
//! `dm-bitset` keeps its bits in an array of 64-bit words, bit `i` in word `i / 64`: a
//! [`WordArray`] is the bitset, read and written by words.

use crate::{
    bindings,
    dm::pdata::{
        block::Block,
        checksum,
        is_no_data,
        tm::TransactionManager, //
    }, //
};
use core::marker::PhantomData;
use kernel::{
    error::to_result,
    ffi::c_void,
    prelude::*, //
};

/// What tells the checksums of array blocks from those of others.
const CHECKSUM_XOR: u32 = 595_846_735;

/// A number as it is kept in an array, little-endian.
pub(crate) trait Entry: Copy + Default + PartialEq + Send + Sync {
    /// Entries in a block of the array, behind its header of 24 bytes.
    const PER_BLOCK: u32;

    /// The number in the disk's byte order.
    fn as_written(self) -> Self;

    /// The number of what is on disk.
    fn as_read(self) -> Self;
}

impl Entry for u64 {
    const PER_BLOCK: u32 = 509;

    fn as_written(self) -> Self {
        self.to_le()
    }

    fn as_read(self) -> Self {
        u64::from_le(self)
    }
}

impl Entry for u32 {
    const PER_BLOCK: u32 = 1018;

    fn as_written(self) -> Self {
        self.to_le()
    }

    fn as_read(self) -> Self {
        u32::from_le(self)
    }
}

/// Words in a block of a [`WordArray`].
pub(crate) const WORDS_PER_BLOCK: u64 = 509;

/// An array of 64-bit words: a bitset.
pub(crate) type WordArray = Array<u64>;

/// Describes arrays of numbers to the library. Belongs to one [`TransactionManager`], which each call
/// names again: a description used with another one is refused.
pub(crate) struct Array<V> {
    // The library stores the structure's own address in it.
    info: Pin<KBox<bindings::dm_array_info>>,
    _entry: PhantomData<V>,
}

// SAFETY: Plain data and a pointer to the transaction manager, which is used only with that manager
// at hand.
unsafe impl<V> Send for Array<V> {}
// SAFETY: As above; shared use only reads.
unsafe impl<V> Sync for Array<V> {}

impl<V: Entry> Array<V> {
    /// Describes arrays within `tm`.
    pub(crate) fn new(tm: &TransactionManager) -> Result<Self> {
        let mut info = KBox::pin(bindings::dm_array_info::default(), GFP_KERNEL)?;
        let mut value = bindings::dm_btree_value_type {
            context: core::ptr::null_mut(),
            // CAST: 4 or 8.
            size: size_of::<V>() as u32,
            inc: None,
            dec: None,
            equal: None,
        };
        // SAFETY: The structure stays where it is (pinned), the manager is live, and the value type
        // is copied.
        unsafe { bindings::dm_array_info_init(&mut *info.as_mut(), tm.as_ptr(), &mut value) };
        Ok(Array {
            info,
            _entry: PhantomData,
        })
    }

    /// The library's description, for deleting arrays that a tree owns.
    pub(super) fn raw(&self) -> &bindings::dm_array_info {
        &self.info
    }

    /// The description for a call that only reads, if it belongs to `tm`.
    fn info(&self, tm: &TransactionManager) -> Result<*mut bindings::dm_array_info> {
        if self.info.btree_info.tm != tm.as_ptr() {
            return Err(EINVAL);
        }
        Ok(core::ptr::from_ref(&*self.info).cast_mut())
    }

    /// Makes an empty array and returns its root.
    pub(crate) fn empty(&self, tm: &mut TransactionManager) -> Result<Block> {
        let info = self.info(tm)?;
        let mut root = 0;
        // SAFETY: The description is initialised, its manager live and ours alone; `root` can be
        // written.
        to_result(unsafe { bindings::dm_array_empty(info, &mut root) })?;
        Ok(Block(root))
    }

    /// Makes an array of `entries` zeros and returns its root.
    pub(crate) fn create(&self, tm: &mut TransactionManager, entries: u32) -> Result<Block> {
        let root = self.empty(tm)?;
        self.resize(tm, root, 0, entries, V::default())
    }

    /// Makes an array of `entries` zeros in which all full blocks are one and the same: that takes
    /// little space and time, until they are written to.
    pub(crate) fn create_sparse(&self, tm: &mut TransactionManager, entries: u32) -> Result<Block> {
        let full = entries / V::PER_BLOCK;
        if full < 3 {
            return self.create(tm, entries);
        }
        let mut root = self.create(tm, V::PER_BLOCK)?;
        let info = self.info(tm)?;
        let block = self.block_of(tm, root, 0)?;
        let mut value = block.0.to_le();
        let value = core::ptr::from_mut(&mut value).cast::<c_void>();
        for index in 1..u64::from(full) {
            tm.inc_block(block)?;
            let (mut key, mut new) = (index, 0);
            // SAFETY: The tree of the array's blocks is part of the description; it has 8-byte
            // values. The reference that it takes over has just been counted. `new` can be written.
            to_result(unsafe {
                let tree = &mut (*info).btree_info;
                bindings::dm_btree_insert(tree, root.0, &mut key, value, &mut new)
            })?;
            root = Block(new);
        }
        let whole = entries.saturating_sub(entries % V::PER_BLOCK);
        if whole == entries {
            return Ok(root);
        }
        self.resize(tm, root, whole, entries, V::default())
    }

    /// Changes the number of entries; new ones get `value`. Returns the new root.
    ///
    /// `old` must be the true number, or the library stops the machine: see
    /// [`has_len`](Self::has_len).
    pub(crate) fn resize(
        &self,
        tm: &mut TransactionManager,
        root: Block,
        old: u32,
        new: u32,
        value: V,
    ) -> Result<Block> {
        let info = self.info(tm)?;
        let value = value.as_written();
        let value = core::ptr::from_ref(&value).cast::<c_void>();
        let mut result = root.0;
        // SAFETY: The description is initialised, its manager live and ours alone; the value has
        // the description's size.
        to_result(unsafe {
            bindings::dm_array_resize(info, root.0, old, new, value, &mut result)
        })?;
        Ok(Block(result))
    }

    /// Whether an array has `len` entries: its last block, and the block that would be the last one
    /// of `other` entries, are as full as that; and so are the blocks that come to be the last one
    /// if it is cut down by `step` blocks at a time. Only for an array of which the library has not
    /// read or written a block yet.
    pub(crate) fn has_len(
        &self,
        tm: &TransactionManager,
        root: Block,
        len: u32,
        other: u32,
        step: u64,
    ) -> Result<bool> {
        let blocks = len.div_ceil(V::PER_BLOCK);
        let last = |entries: u32| u64::from(entries.div_ceil(V::PER_BLOCK).saturating_sub(1));
        let mut count = 0u64;
        let mut cursor = match BlockCursor::new(self, tm, root, false) {
            Ok(cursor) => cursor,
            // An empty tree has no first entry.
            Err(error) if is_no_data(error) => return Ok(len == 0),
            Err(error) => return Err(error),
        };
        loop {
            let (key, location) = cursor.get()?;
            if key != count {
                return Ok(false);
            }
            let before = count.saturating_mul(V::PER_BLOCK.into());
            let expected = u64::from(len)
                .saturating_sub(before)
                .min(V::PER_BLOCK.into());
            let is_cut = last(len).saturating_sub(key).checked_rem(step) == Some(0);
            if key == last(len) || key == last(other) || is_cut {
                let block = tm.blocks().read(location, None)?;
                if entries::<V>(&block, location) != u32::try_from(expected).ok() {
                    return Ok(false);
                }
            }
            count = count.saturating_add(1);
            match cursor.next() {
                Ok(()) => {}
                Err(error) if is_no_data(error) => return Ok(count == u64::from(blocks)),
                Err(error) => return Err(error),
            }
        }
    }

    /// Lets an array go.
    pub(crate) fn delete(&self, tm: &mut TransactionManager, root: Block) -> Result {
        let info = self.info(tm)?;
        // SAFETY: The description is initialised, its manager live and ours alone.
        to_result(unsafe { bindings::dm_array_del(info, root.0) })
    }

    /// Reads an entry. `ENODATA` if there is none.
    pub(crate) fn get(&self, tm: &TransactionManager, root: Block, index: u32) -> Result<V> {
        let mut entry = V::default();
        let value = core::ptr::from_mut(&mut entry).cast::<c_void>();
        // SAFETY: The description is initialised and its manager live; the value has the size of
        // the description.
        to_result(unsafe { bindings::dm_array_get_value(self.info(tm)?, root.0, index, value) })?;
        Ok(entry.as_read())
    }

    /// Writes an entry within the running transaction and returns the new root.
    pub(crate) fn set(
        &self,
        tm: &mut TransactionManager,
        root: Block,
        index: u32,
        entry: V,
    ) -> Result<Block> {
        let info = self.info(tm)?;
        let entry = entry.as_written();
        let value = core::ptr::from_ref(&entry).cast::<c_void>();
        let mut new = root.0;
        // SAFETY: The description is initialised, its manager live and ours alone; the value has
        // the right size.
        to_result(unsafe { bindings::dm_array_set_value(info, root.0, index, value, &mut new) })?;
        Ok(Block(new))
    }

    /// Where the block with an entry is: two entries may have the same block, see
    /// [`create_sparse`](Self::create_sparse).
    pub(crate) fn block_of(
        &self,
        tm: &TransactionManager,
        root: Block,
        index: u32,
    ) -> Result<Block> {
        let info = self.info(tm)?;
        let (mut key, mut block) = (u64::from(index / V::PER_BLOCK), 0u64);
        let value = core::ptr::from_mut(&mut block).cast::<c_void>();
        // SAFETY: The tree of the array's blocks is part of the description; it has 8-byte values.
        // `value` can be written.
        to_result(unsafe {
            bindings::dm_btree_lookup(&mut (*info).btree_info, root.0, &mut key, value)
        })?;
        Ok(Block(u64::from_le(block)))
    }
}

impl WordArray {
    /// Reads the first `count` words in order, with read-ahead, and passes each on with its index.
    ///
    /// An array that is shorter is an error. Reads whole blocks, for speed: the library has no way
    /// to get at more than a word at a time. Only for an array of which the library has not read or
    /// written a block yet.
    pub(crate) fn for_each(
        &self,
        tm: &TransactionManager,
        root: Block,
        count: u64,
        mut visit: impl FnMut(u64, u64) -> Result,
    ) -> Result {
        let mut index = 0;
        let mut walk = || -> Result<bool> {
            let mut blocks = BlockCursor::new(self, tm, root, true)?;
            loop {
                let (key, location) = blocks.get()?;
                let wanted = count.saturating_sub(index).min(WORDS_PER_BLOCK);
                // Without a validator: it would be another one than the library's, which refuses
                // such blocks.
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

/// Checks an array block; returns how many entries it has, and what is behind its header.
fn array_block<V: Entry>(block: &[u8], location: Block) -> Option<(u32, &[u8])> {
    let (sum, rest) = block.split_first_chunk()?;
    let valid = u32::from_le_bytes(*sum) == checksum(rest, CHECKSUM_XOR);
    let (max_entries, rest) = rest.split_first_chunk()?;
    let (entries, rest) = rest.split_first_chunk()?;
    let (value_size, rest) = rest.split_first_chunk()?;
    let (at, values) = rest.split_first_chunk()?;
    let entries = u32::from_le_bytes(*entries);
    let valid = valid
        && u32::from_le_bytes(*max_entries) == V::PER_BLOCK
        && entries <= V::PER_BLOCK
        && usize::try_from(u32::from_le_bytes(*value_size)) == Ok(size_of::<V>())
        && u64::from_le_bytes(*at) == location.0;
    valid.then_some((entries, values))
}

/// How many entries a valid array block has.
fn entries<V: Entry>(block: &[u8], location: Block) -> Option<u32> {
    array_block::<V>(block, location).map(|(entries, _)| entries)
}

/// The words of an array block, if it is one with as many as wanted.
fn words(block: &[u8], location: Block, wanted: u64) -> Option<impl Iterator<Item = u64> + '_> {
    let (entries, values) = array_block::<u64>(block, location)?;
    let values = values
        .chunks_exact(8)
        .filter_map(|value| Some(u64::from_le_bytes(value.try_into().ok()?)));
    (u64::from(entries) >= wanted).then(|| values.take(usize::try_from(wanted).unwrap_or(0)))
}

/// Goes through the blocks of an array, in order; the library reads ahead.
///
/// # Invariants
///
/// The cursor is one of zeros, or was begun with a manager that lives.
struct BlockCursor<'a> {
    raw: bindings::dm_btree_cursor,
    _tm: PhantomData<&'a TransactionManager>,
}

impl<'a> BlockCursor<'a> {
    fn new<V: Entry>(
        array: &'a Array<V>,
        tm: &'a TransactionManager,
        root: Block,
        read_ahead: bool,
    ) -> Result<Self> {
        let info = array.info(tm)?;
        // INVARIANT: A cursor of zeros holds nothing, as if it had come to its end.
        let mut cursor = BlockCursor {
            raw: bindings::dm_btree_cursor::default(),
            _tm: PhantomData,
        };
        // SAFETY: The description is initialised: within it is that of the tree of blocks, whose
        // values are 8 bytes. Its manager is live, and the cursor can be written. If it fails, what
        // it holds is let go with the cursor.
        to_result(unsafe {
            let tree = &mut (*info).btree_info;
            bindings::dm_btree_cursor_begin(tree, root.0, read_ahead, &mut cursor.raw)
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
