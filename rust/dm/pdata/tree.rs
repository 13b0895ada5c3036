// SPDX-License-Identifier: GPL-2.0

//! Trees of bitsets: a number on disk, and the bitset that it owns.

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

/// A bitset that a tree owns, on disk 12 bytes: the number of bits, and the root of a
/// [`WordArray`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bitset {
    /// Number of bits.
    pub(crate) bits: u32,
    /// Root of its words.
    pub(crate) root: Block,
}

/// Size of an entry.
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

/// Describes trees of bitsets to the library. Belongs to one [`TransactionManager`], which each call
/// names again.
pub(crate) struct BitsetTree {
    info: Pin<KBox<Info>>,
}

struct Info {
    tree: bindings::dm_btree_info,
    /// For deleting the bitsets; the library gets a pointer to it.
    words: WordArray,
    _pin: PhantomPinned,
}

// SAFETY: Plain data and pointers to the transaction manager and to itself, used only with that
// manager at hand.
unsafe impl Send for BitsetTree {}
// SAFETY: As above; shared use only reads.
unsafe impl Sync for BitsetTree {}

/// The entries that the library passes to a callback.
///
/// # Safety
///
/// `values` is what the library passes, with `count` entries.
unsafe fn entries(values: *const c_void, count: c_uint) -> impl Iterator<Item = Bitset> {
    // CAST: 32 bits fit.
    (0..count as usize).filter_map(move |index| {
        // SAFETY: By the contract there are so many entries of that size; any bytes are valid.
        let entry = unsafe { values.cast::<[u8; SIZE]>().add(index).read_unaligned() };
        Bitset::from_disk(&entry)
    })
}

/// # Safety
///
/// For the library only, as a callback of a tree.
unsafe extern "C" fn inc(context: *mut c_void, values: *const c_void, count: c_uint) {
    // SAFETY: The context is the `Info` of a description in use.
    let info = unsafe { &*context.cast::<Info>() };
    // SAFETY: By the contract.
    for bitset in unsafe { entries(values, count) } {
        // SAFETY: The manager is live: the library has been called with it.
        unsafe { bindings::dm_tm_inc(info.tree.tm, bitset.root.0) }
    }
}

/// # Safety
///
/// For the library only, as a callback of a tree.
unsafe extern "C" fn dec(context: *mut c_void, values: *const c_void, count: c_uint) {
    // SAFETY: The context is the `Info` of a description in use.
    let info = unsafe { &*context.cast::<Info>() };
    // SAFETY: By the contract.
    for bitset in unsafe { entries(values, count) } {
        let words = core::ptr::from_ref(info.words.raw()).cast_mut();
        // The callback has no way to report it; what is not freed is lost, and a read error shows
        // elsewhere too.
        // SAFETY: The description is initialised, and its manager live.
        let _ = unsafe { bindings::dm_array_del(words, bitset.root.0) };
    }
}

/// # Safety
///
/// For the library only, as a callback of a tree.
unsafe extern "C" fn equal(_: *mut c_void, left: *const c_void, right: *const c_void) -> c_int {
    // SAFETY: The library passes two entries.
    let pair = unsafe {
        (
            left.cast::<[u8; SIZE]>().read_unaligned(),
            right.cast::<[u8; SIZE]>().read_unaligned(),
        )
    };
    (pair.0 == pair.1).into()
}

impl BitsetTree {
    /// Describes trees within `tm`.
    pub(crate) fn new(tm: &TransactionManager) -> Result<Self> {
        let info = Info {
            tree: bindings::dm_btree_info {
                tm: tm.as_ptr(),
                levels: 1,
                value_type: bindings::dm_btree_value_type {
                    context: core::ptr::null_mut(),
                    // CAST: 12.
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
        // SAFETY: Nothing is moved.
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

    /// The description of the bitsets.
    pub(crate) fn words(&self) -> &WordArray {
        &self.info.words
    }

    /// Makes an empty tree and returns its root.
    pub(crate) fn empty(&self, tm: &mut TransactionManager) -> Result<Block> {
        let mut root = 0;
        // SAFETY: The description is initialised, its manager live and ours alone; `root` can be
        // written.
        to_result(unsafe { bindings::dm_btree_empty(self.tree(tm)?, &mut root) })?;
        Ok(Block(root))
    }

    /// Gives a bitset to the tree. Returns the new root.
    pub(crate) fn insert(
        &self,
        tm: &mut TransactionManager,
        root: Block,
        key: u64,
        bitset: Bitset,
    ) -> Result<Block> {
        let (mut key, mut value, mut new) = (key, bitset.to_disk(), root.0);
        let value = value.as_mut_ptr().cast::<c_void>();
        // SAFETY: The description is initialised, its manager live and ours alone; key and value
        // have the right sizes.
        to_result(unsafe {
            bindings::dm_btree_insert(self.tree(tm)?, root.0, &mut key, value, &mut new)
        })?;
        Ok(Block(new))
    }

    /// Removes an entry, and deletes its bitset. Returns the new root.
    pub(crate) fn remove(
        &self,
        tm: &mut TransactionManager,
        root: Block,
        key: u64,
    ) -> Result<Block> {
        let (mut key, mut new) = (key, root.0);
        // SAFETY: The description is initialised, its manager live and ours alone.
        to_result(unsafe {
            bindings::dm_btree_remove(self.tree(tm)?, root.0, &mut key, &mut new)
        })?;
        Ok(Block(new))
    }

    /// The first entry whose key is at least `key`.
    pub(crate) fn next(
        &self,
        tm: &TransactionManager,
        root: Block,
        key: u64,
    ) -> Result<Option<(u64, Bitset)>> {
        let (mut key, mut found, mut value) = (key, 0, [0; SIZE]);
        let buffer = value.as_mut_ptr().cast::<c_void>();
        // SAFETY: The description is initialised and its manager live; the variables have the right
        // sizes.
        let result = to_result(unsafe {
            bindings::dm_btree_lookup_next(self.tree(tm)?, root.0, &mut key, &mut found, buffer)
        });
        match result {
            Ok(()) => Ok(Bitset::from_disk(&value).map(|bitset| (found, bitset))),
            Err(error) if is_no_data(error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lets a tree go, with its bitsets.
    pub(crate) fn delete(&self, tm: &mut TransactionManager, root: Block) -> Result {
        // SAFETY: The description is initialised, its manager live and ours alone.
        to_result(unsafe { bindings::dm_btree_del(self.tree(tm)?, root.0) })
    }
}
