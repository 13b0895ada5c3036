// SPDX-License-Identifier: GPL-2.0

//! Arrays of numbers on disk.
//!
//! `dm-bitset` stores bit `i` in word `i / 64` of an array of 64-bit words. A [`WordArray`] is such
//! a bitset, which is read and written by words.
//!
//! C header: `drivers/md/persistent-data/dm-array.h`

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

/// The constant in the checksums of array blocks.
const CHECKSUM_XOR: u32 = 595_846_735;

/// A number in an array, which is little-endian on disk.
pub(crate) trait Entry: Copy + Default + PartialEq + Send + Sync {
    /// The number of entries in a block, after its header of 24 bytes.
    const PER_BLOCK: u32;

    /// Converts to the byte order of the disk. Any context.
    fn as_written(self) -> Self;

    /// Converts from the byte order of the disk. Any context.
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

/// The number of words in a block of a [`WordArray`].
pub(crate) const WORDS_PER_BLOCK: u64 = 509;

/// An array of 64-bit words, which is a bitset.
pub(crate) type WordArray = Array<u64>;

/// A description of arrays of numbers for the library. C counterpart: `struct dm_array_info`.
///
/// It belongs to one [`TransactionManager`], which is passed to each call. A call with another one
/// is refused.
pub(crate) struct Array<V> {
    // Pinned, because the library stores the address of the structure in the structure.
    info: Pin<KBox<bindings::dm_array_info>>,
    _entry: PhantomData<V>,
}

// SAFETY: This is plain data, and a pointer to the transaction manager. The pointer is used while
// the caller lends that manager only.
unsafe impl<V> Send for Array<V> {}
// SAFETY: The library reads the description only. Changes of the manager need `&mut` of it.
unsafe impl<V> Sync for Array<V> {}

impl<V: Entry> Array<V> {
    /// Creates a description of arrays within a transaction manager. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(tm: &TransactionManager) -> Result<Self> {
        let mut info = KBox::pin(bindings::dm_array_info::default(), GFP_KERNEL)?;
        let mut value = bindings::dm_btree_value_type {
            context: core::ptr::null_mut(),
            // CAST: The size is 4 or 8.
            size: size_of::<V>() as u32,
            inc: None,
            dec: None,
            equal: None,
        };
        // SAFETY: The structure is pinned and can be written, and the manager exists. The library
        // copies the value type.
        unsafe { bindings::dm_array_info_init(&mut *info.as_mut(), tm.as_ptr(), &mut value) };
        Ok(Array {
            info,
            _entry: PhantomData,
        })
    }

    /// Returns the description, for deleting arrays that a tree owns. Any context.
    pub(super) fn raw(&self) -> &bindings::dm_array_info {
        &self.info
    }

    /// Returns the description, if it belongs to the transaction manager.
    fn info(&self, tm: &TransactionManager) -> Result<*mut bindings::dm_array_info> {
        if self.info.btree_info.tm != tm.as_ptr() {
            return Err(EINVAL);
        }
        Ok(core::ptr::from_ref(&*self.info).cast_mut())
    }

    /// Creates an empty array. Returns its root. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOSPC`, or an error of the metadata device.
    pub(crate) fn empty(&self, tm: &mut TransactionManager) -> Result<Block> {
        let info = self.info(tm)?;
        let mut root = 0;
        // SAFETY: The description is initialised. Its manager exists, and is borrowed mutably.
        // `root` can be written.
        to_result(unsafe { bindings::dm_array_empty(info, &mut root) })?;
        Ok(Block(root))
    }

    /// Creates an array of `entries` zeros. Returns its root. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOSPC`, or an error of the metadata device.
    pub(crate) fn create(&self, tm: &mut TransactionManager, entries: u32) -> Result<Block> {
        let root = self.empty(tm)?;
        self.resize(tm, root, 0, entries, V::default())
    }

    /// Creates an array of `entries` zeros, in which all full blocks are the same block. Returns
    /// its root.
    ///
    /// This takes little space and time, until the entries are written. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOSPC`, or an error of the metadata device.
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
            // SAFETY: The description is initialised. It contains that of the tree of blocks, which
            // has 8-byte values. The tree takes over the reference that was counted above. `new`
            // can be written.
            to_result(unsafe {
                let tree = core::ptr::addr_of_mut!((*info).btree_info);
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

    /// Changes the number of entries. New entries get `value`. Returns the new root. C counterpart:
    /// `dm_array_resize()`.
    ///
    /// `old` must be the present number of entries, otherwise the library runs into a `BUG_ON`:
    /// [`has_len`](Self::has_len) checks it. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOSPC`, or an error of the metadata device.
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
        // SAFETY: The description is initialised. Its manager exists, and is borrowed mutably. The
        // value has the size that is described.
        to_result(unsafe {
            bindings::dm_array_resize(info, root.0, old, new, value, &mut result)
        })?;
        Ok(Block(result))
    }

    /// Returns whether an array has `len` entries.
    ///
    /// Checks how full its last block is, the block that would be the last one of `other` entries,
    /// and each block that would become the last one when the array is cut by `step` blocks at a
    /// time.
    ///
    /// For an array of which the library has not read or written a block yet. May sleep.
    ///
    /// # Errors
    ///
    /// An error of the metadata device.
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

    /// Deletes an array. C counterpart: `dm_array_del()`. May sleep.
    ///
    /// # Errors
    ///
    /// An error of the metadata device.
    pub(crate) fn delete(&self, tm: &mut TransactionManager, root: Block) -> Result {
        let info = self.info(tm)?;
        // SAFETY: The description is initialised. Its manager exists, and is borrowed mutably.
        to_result(unsafe { bindings::dm_array_del(info, root.0) })
    }

    /// Returns an entry. C counterpart: `dm_array_get_value()`. May sleep.
    ///
    /// # Errors
    ///
    /// `ENODATA` if there is no such entry, or an error of the metadata device.
    pub(crate) fn get(&self, tm: &TransactionManager, root: Block, index: u32) -> Result<V> {
        let mut entry = V::default();
        let value = core::ptr::from_mut(&mut entry).cast::<c_void>();
        // SAFETY: The description is initialised, and its manager exists. The value has the size
        // that is described.
        to_result(unsafe { bindings::dm_array_get_value(self.info(tm)?, root.0, index, value) })?;
        Ok(entry.as_read())
    }

    /// Sets an entry. Returns the new root. C counterpart: `dm_array_set_value()`. May sleep.
    ///
    /// # Errors
    ///
    /// `ENODATA` if there is no such entry; `ENOSPC`, or an error of the metadata device.
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
        // SAFETY: The description is initialised. Its manager exists, and is borrowed mutably. The
        // value has the size that is described.
        to_result(unsafe { bindings::dm_array_set_value(info, root.0, index, value, &mut new) })?;
        Ok(Block(new))
    }

    /// Returns the block that contains an entry. After [`create_sparse`](Self::create_sparse),
    /// several parts of an array have the same block. May sleep.
    ///
    /// # Errors
    ///
    /// `ENODATA` if there is no such block, or an error of the metadata device.
    pub(crate) fn block_of(
        &self,
        tm: &TransactionManager,
        root: Block,
        index: u32,
    ) -> Result<Block> {
        let info = self.info(tm)?;
        let (mut key, mut block) = (u64::from(index / V::PER_BLOCK), 0u64);
        let value = core::ptr::from_mut(&mut block).cast::<c_void>();
        // SAFETY: The description is initialised. It contains that of the tree of blocks, which has
        // 8-byte values. `value` can be written.
        to_result(unsafe {
            let tree = core::ptr::addr_of_mut!((*info).btree_info);
            bindings::dm_btree_lookup(tree, root.0, &mut key, value)
        })?;
        Ok(Block(u64::from_le(block)))
    }
}

impl WordArray {
    /// Calls `visit` with the index and the value of each of the first `count` words.
    ///
    /// Reads whole blocks, with read-ahead, because the library returns one word at a time only.
    ///
    /// For an array of which the library has not read or written a block yet. May sleep.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the array is shorter; the error of `visit`; an error of the metadata device.
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
                // Without a validator, because the library refuses a block that was read with
                // another validator than its own.
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
        // A block is invalid. The library reads it again, and logs what is wrong with it.
        self.get(tm, root, u32::try_from(index)?)?;
        Err(EINVAL)
    }
}

/// Checks an array block. Returns the number of its entries, and the bytes after its header.
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

/// Returns the number of entries of an array block, or `None` if the block is invalid.
fn entries<V: Entry>(block: &[u8], location: Block) -> Option<u32> {
    array_block::<V>(block, location).map(|(entries, _)| entries)
}

/// Returns the first `wanted` words of an array block, or `None` if the block is invalid or has
/// fewer.
fn words(block: &[u8], location: Block, wanted: u64) -> Option<impl Iterator<Item = u64> + '_> {
    let (entries, values) = array_block::<u64>(block, location)?;
    let values = values
        .chunks_exact(8)
        .filter_map(|value| Some(u64::from_le_bytes(value.try_into().ok()?)));
    (u64::from(entries) >= wanted).then(|| values.take(usize::try_from(wanted).unwrap_or(0)))
}

/// A cursor over the blocks of an array, in order. C counterpart: `struct dm_btree_cursor`.
///
/// # Invariants
///
/// The cursor is zeroed, or was begun with a manager that exists.
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
        // INVARIANT: A zeroed cursor holds no block, like one at the end.
        let mut cursor = BlockCursor {
            raw: bindings::dm_btree_cursor::default(),
            _tm: PhantomData,
        };
        // SAFETY: The description is initialised. It contains that of the tree of blocks, which has
        // 8-byte values. Its manager exists, and the cursor can be written. If this fails, dropping
        // the cursor releases what it holds.
        to_result(unsafe {
            let tree = core::ptr::addr_of_mut!((*info).btree_info);
            bindings::dm_btree_cursor_begin(tree, root.0, read_ahead, &mut cursor.raw)
        })?;
        Ok(cursor)
    }

    /// Returns the number of the current block within the array, and its location.
    fn get(&mut self) -> Result<(u64, Block)> {
        let (mut key, mut value) = (0, [0u8; 8]);
        let buffer = value.as_mut_ptr().cast::<c_void>();
        // SAFETY: By the invariant, the library accepts the cursor. A value has 8 bytes.
        to_result(unsafe { bindings::dm_btree_cursor_get_value(&mut self.raw, &mut key, buffer) })?;
        Ok((key, Block(u64::from_le_bytes(value))))
    }

    /// Moves to the next block; `ENODATA` if there is none.
    fn next(&mut self) -> Result {
        // SAFETY: By the invariant, the library accepts the cursor.
        to_result(unsafe { bindings::dm_btree_cursor_next(&mut self.raw) })
    }
}

impl Drop for BlockCursor<'_> {
    fn drop(&mut self) {
        // SAFETY: By the invariant, the library accepts the cursor, which is not used after this.
        unsafe { bindings::dm_btree_cursor_end(&mut self.raw) }
    }
}
