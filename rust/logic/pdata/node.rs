// SPDX-License-Identifier: GPL-2.0

//! Nodes of btrees: keys in ascending order, each with a value, which in an internal node is the
//! block number of a child.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 4 | checksum |
//! | 4 | 4 | 1: internal, 2: leaf |
//! | 8 | 8 | number of this block |
//! | 16 | 4 | number of entries |
//! | 20 | 4 | maximum number of entries, a multiple of three |
//! | 24 | 4 | size of a value |
//! | 32 | | room for the maximum number of keys; then the values |
//!
//! All functions: any context. C counterpart: `struct btree_node` of
//! `drivers/md/persistent-data/dm-btree-internal.h`.

use core::ops::Range;

use zerocopy::{
    little_endian::{
        U32,
        U64, //
    },
    FromBytes as _, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    KnownLayout,
    Unaligned, //
};

use crate::env::crc32c_block;

/// XORed into the checksum of a node.
pub(crate) const CSUM_XOR: u32 = 121_107;
/// Maximum number of levels that the library descends.
pub(crate) const MAX_DEPTH: u32 = 15;

const INTERNAL: u32 = 1;
const LEAF: u32 = 2;
/// Size of the block number of a child.
const CHILD: u32 = 8;

/// C counterpart: `struct node_header`.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct NodeHeader {
    csum: U32,
    flags: U32,
    blocknr: U64,
    entries: U32,
    max_entries: U32,
    value_size: U32,
    padding: U32,
}

/// A node that has passed the checks: every entry lies within the block.
pub(crate) struct Node<'a> {
    leaf: bool,
    keys: &'a [U64],
    values: &'a [u8],
    value_size: usize,
}

/// The maximum number of entries of a node, as the library computes it.
fn max_entries(block: usize, value_size: u32) -> Option<u32> {
    let room = u32::try_from(block).ok()?.checked_sub(32)?;
    let fit = room.checked_div(value_size.checked_add(8)?)?;
    Some(fit.saturating_sub(fit % 3))
}

impl<'a> Node<'a> {
    /// Parses a node of a btree whose values have `value_size` bytes.
    ///
    /// Returns `None` unless the block number is `location`, the checksum is right, and the keys
    /// are ascending and within `range`.
    pub(crate) fn parse(
        block: &'a [u8],
        location: u64,
        value_size: u32,
        range: &Range<u64>,
    ) -> Option<Self> {
        let (header, rest) = NodeHeader::ref_from_prefix(block).ok()?;
        let leaf = match header.flags.get() {
            INTERNAL => false,
            LEAF => true,
            _ => return None,
        };
        let value_size = if leaf { value_size } else { CHILD };
        let max = max_entries(block.len(), value_size)?;
        let entries = header.entries.get();
        let valid = header.csum.get() == crc32c_block(block.get(4..)?, CSUM_XOR)
            && header.blocknr.get() == location
            && header.value_size.get() == value_size
            && header.max_entries.get() == max
            && entries <= max
            && (leaf || entries != 0);
        if !valid {
            return None;
        }
        let (value_size, max) = (
            usize::try_from(value_size).ok()?,
            usize::try_from(max).ok()?,
        );
        let (keys, values) = <[U64]>::ref_from_prefix_with_elems(rest, max).ok()?;
        let keys = keys.get(..usize::try_from(entries).ok()?)?;
        let ascending = keys.is_sorted_by(|a, b| a.get() < b.get())
            && keys.iter().all(|key| range.contains(&key.get()));
        ascending.then_some(Node {
            leaf,
            keys,
            values,
            value_size,
        })
    }

    /// Whether this is a leaf, whose values are those of the btree.
    pub(crate) fn is_leaf(&self) -> bool {
        self.leaf
    }

    /// The number of entries.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The key and the value of an entry.
    pub(crate) fn entry(&self, index: usize) -> Option<(u64, &'a [u8])> {
        let key = self.keys.get(index)?.get();
        let at = index.checked_mul(self.value_size)?;
        let value = self.values.get(at..at.checked_add(self.value_size)?)?;
        Some((key, value))
    }

    /// The child of an entry, and the range of keys that it may have. `range` is that of this node.
    pub(crate) fn child(&self, index: usize, range: &Range<u64>) -> Option<(u64, Range<u64>)> {
        let (key, value) = self.entry(index)?;
        let next = self.keys.get(index.checked_add(1)?);
        let end = next.map_or(range.end, |key| key.get());
        Some((u64::from_le_bytes(value.try_into().ok()?), key..end))
    }
}
