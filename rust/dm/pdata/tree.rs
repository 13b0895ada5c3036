// SPDX-License-Identifier: GPL-2.0

//! Trees on disk, whose values are bitsets.
//!
//! C header: `drivers/md/persistent-data/dm-btree.h`

use crate::{
    bindings,
    dm::pdata::{
        array::WordArray,
        block::Block,
        is_no_data,
        tm::TransactionManager, //
    }, //
};
use core::marker::PhantomPinned;
use kernel::{
    error::to_result,
    ffi::{
        c_int,
        c_uint,
        c_void, //
    },
    prelude::*, //
};

/// A bitset that a tree owns. On disk it has 12 bytes: the number of bits, and the root of a
/// [`WordArray`]. C counterpart: `struct writeset_disk` of era.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bitset {
    /// The number of bits.
    pub(crate) bits: u32,
    /// The root of the words.
    pub(crate) root: Block,
}

/// The size of a value.
const SIZE: usize = 12;

impl Bitset {
    fn to_disk(self) -> [u8; SIZE] {
        let mut disk = [0; SIZE];
        let (bits, root) = disk.split_at_mut(4);
        bits.copy_from_slice(&self.bits.to_le_bytes());
        root.copy_from_slice(&self.root.0.to_le_bytes());
        disk
    }

    fn from_disk(disk: &[u8; SIZE]) -> Option<Self> {
        let (bits, rest) = disk.split_first_chunk()?;
        let (root, _) = rest.split_first_chunk()?;
        Some(Bitset {
            bits: u32::from_le_bytes(*bits),
            root: Block(u64::from_le_bytes(*root)),
        })
    }
}

/// A description of trees of bitsets for the library. C counterpart: `struct dm_btree_info`.
///
/// It belongs to one [`TransactionManager`], which is passed to each call. A call with another one
/// is refused.
pub(crate) struct BitsetTree {
    info: Pin<KBox<Info>>,
}

struct Info {
    tree: bindings::dm_btree_info,
    /// For deleting bitsets. The callbacks get a pointer to it.
    words: WordArray,
    _pin: PhantomPinned,
}

// SAFETY: This is plain data, and pointers to the transaction manager and to itself. They are used
// while the caller lends that manager only.
unsafe impl Send for BitsetTree {}
// SAFETY: The library reads the description only. Changes of the manager need `&mut` of it.
unsafe impl Sync for BitsetTree {}

/// Returns the values that the library passes to a callback.
///
/// # Safety
///
/// `values` points to `count` values of [`SIZE`] bytes, which exist until the iterator is dropped.
unsafe fn entries(values: *const c_void, count: c_uint) -> impl Iterator<Item = Bitset> {
    // CAST: 32 bits fit into usize.
    (0..count as usize).filter_map(move |index| {
        // SAFETY: By this function's contract, `index` is that of a value of this size. Any bytes
        // are a value.
        let entry = unsafe { values.cast::<[u8; SIZE]>().add(index).read_unaligned() };
        Bitset::from_disk(&entry)
    })
}

/// # Safety
///
/// Called by the library only, as a callback of a tree.
unsafe extern "C" fn inc(context: *mut c_void, values: *const c_void, count: c_uint) {
    // SAFETY: The context is the `Info` of the description that the library was called with.
    let info = unsafe { &*context.cast::<Info>() };
    // SAFETY: The library passes `count` values, which exist until the callback returns.
    for bitset in unsafe { entries(values, count) } {
        // SAFETY: The manager exists, because the library was called with it.
        unsafe { bindings::dm_tm_inc(info.tree.tm, bitset.root.0) }
    }
}

/// # Safety
///
/// Called by the library only, as a callback of a tree.
unsafe extern "C" fn dec(context: *mut c_void, values: *const c_void, count: c_uint) {
    // SAFETY: The context is the `Info` of the description that the library was called with.
    let info = unsafe { &*context.cast::<Info>() };
    // SAFETY: The library passes `count` values, which exist until the callback returns.
    for bitset in unsafe { entries(values, count) } {
        let words = core::ptr::from_ref(info.words.raw()).cast_mut();
        // A callback cannot report an error. After an error the blocks of the bitset remain
        // allocated.
        // SAFETY: The description is initialised. Its manager exists, because the library was
        // called with it.
        let _ = unsafe { bindings::dm_array_del(words, bitset.root.0) };
    }
}

/// # Safety
///
/// Called by the library only, as a callback of a tree.
unsafe extern "C" fn equal(_: *mut c_void, left: *const c_void, right: *const c_void) -> c_int {
    // SAFETY: The library passes pointers to two values.
    let pair = unsafe {
        (
            left.cast::<[u8; SIZE]>().read_unaligned(),
            right.cast::<[u8; SIZE]>().read_unaligned(),
        )
    };
    (pair.0 == pair.1).into()
}

impl BitsetTree {
    /// Creates a description of trees within a transaction manager. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(tm: &TransactionManager) -> Result<Self> {
        let info = Info {
            tree: bindings::dm_btree_info {
                tm: tm.as_ptr(),
                levels: 1,
                value_type: bindings::dm_btree_value_type {
                    context: core::ptr::null_mut(),
                    // CAST: The size is 12.
                    size: SIZE as u32,
                    inc: Some(inc),
                    dec: Some(dec),
                    equal: Some(equal),
                },
            },
            words: WordArray::new(tm)?,
            _pin: PhantomPinned,
        };
        let mut info = KBox::pin(info, GFP_KERNEL)?;
        let context = core::ptr::from_ref(&*info).cast_mut().cast();
        // SAFETY: The reference is used to write a field, and moves nothing.
        unsafe { info.as_mut().get_unchecked_mut() }
            .tree
            .value_type
            .context = context;
        Ok(BitsetTree { info })
    }

    fn tree(&self, tm: &TransactionManager) -> Result<*mut bindings::dm_btree_info> {
        if self.info.tree.tm != tm.as_ptr() {
            return Err(EINVAL);
        }
        Ok(core::ptr::from_ref(&self.info.tree).cast_mut())
    }

    /// Returns the description of the bitsets. Any context.
    pub(crate) fn words(&self) -> &WordArray {
        &self.info.words
    }

    /// Creates an empty tree. Returns its root. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOSPC`, or an error of the metadata device.
    pub(crate) fn empty(&self, tm: &mut TransactionManager) -> Result<Block> {
        let mut root = 0;
        // SAFETY: The description is initialised. Its manager exists, and is borrowed mutably.
        // `root` can be written.
        to_result(unsafe { bindings::dm_btree_empty(self.tree(tm)?, &mut root) })?;
        Ok(Block(root))
    }

    /// Inserts a bitset, which the tree then owns. Returns the new root. C counterpart:
    /// `dm_btree_insert()`. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOSPC`, or an error of the metadata device.
    pub(crate) fn insert(
        &self,
        tm: &mut TransactionManager,
        root: Block,
        key: u64,
        bitset: Bitset,
    ) -> Result<Block> {
        let (mut key, mut value, mut new) = (key, bitset.to_disk(), root.0);
        let value = value.as_mut_ptr().cast::<c_void>();
        // SAFETY: The description is initialised. Its manager exists, and is borrowed mutably. Key
        // and value have the sizes that are described.
        to_result(unsafe {
            bindings::dm_btree_insert(self.tree(tm)?, root.0, &mut key, value, &mut new)
        })?;
        Ok(Block(new))
    }

    /// Removes an entry, and deletes its bitset. Returns the new root. C counterpart:
    /// `dm_btree_remove()`. May sleep.
    ///
    /// # Errors
    ///
    /// `ENODATA` if there is no such entry; `ENOSPC`, or an error of the metadata device.
    pub(crate) fn remove(
        &self,
        tm: &mut TransactionManager,
        root: Block,
        key: u64,
    ) -> Result<Block> {
        let (mut key, mut new) = (key, root.0);
        // SAFETY: The description is initialised. Its manager exists, and is borrowed mutably.
        to_result(unsafe {
            bindings::dm_btree_remove(self.tree(tm)?, root.0, &mut key, &mut new)
        })?;
        Ok(Block(new))
    }

    /// Returns the first entry whose key is at least `key`. C counterpart:
    /// `dm_btree_lookup_next()`. May sleep.
    ///
    /// # Errors
    ///
    /// An error of the metadata device.
    pub(crate) fn next(
        &self,
        tm: &TransactionManager,
        root: Block,
        key: u64,
    ) -> Result<Option<(u64, Bitset)>> {
        let (mut key, mut found, mut value) = (key, 0, [0; SIZE]);
        let buffer = value.as_mut_ptr().cast::<c_void>();
        // SAFETY: The description is initialised, and its manager exists. The variables have the
        // sizes that are described.
        let result = to_result(unsafe {
            bindings::dm_btree_lookup_next(self.tree(tm)?, root.0, &mut key, &mut found, buffer)
        });
        match result {
            Ok(()) => Ok(Bitset::from_disk(&value).map(|bitset| (found, bitset))),
            Err(error) if is_no_data(error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes a tree, with its bitsets. C counterpart: `dm_btree_del()`. May sleep.
    ///
    /// # Errors
    ///
    /// An error of the metadata device.
    pub(crate) fn delete(&self, tm: &mut TransactionManager, root: Block) -> Result {
        // SAFETY: The description is initialised. Its manager exists, and is borrowed mutably.
        to_result(unsafe { bindings::dm_btree_del(self.tree(tm)?, root.0) })
    }
}
