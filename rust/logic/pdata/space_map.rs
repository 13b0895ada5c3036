// SPDX-License-Identifier: GPL-2.0

//! The metadata space map on disk.
//!
//! It has a two-bit reference count for each block, in bitmap blocks that one index block lists. A
//! count of 3 means "more than two"; the count is then in a btree of its own.
//!
//! All functions: any context. C counterpart: `drivers/md/persistent-data/dm-space-map-common.h`.

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

/// Blocks that one bitmap block covers.
pub(crate) const BLOCKS_PER_BITMAP: u64 = 16_320;
/// Maximum number of bitmap blocks in the index. C counterpart: `MAX_METADATA_BITMAPS`.
pub(crate) const MAX_BITMAPS: u64 = 255;
/// Array blocks that a btree of one node can list.
const PER_NODE: u64 = 252;
/// Minimum number of entries of a node other than the root.
const MIN_PER_NODE: u64 = PER_NODE / 3;

/// Upper bound of the blocks that a commit allocates if one block of an array has changed: that
/// block, the nodes above it, and the blocks of the space map.
///
/// The array has `blocks` blocks, the device has `total`.
pub(crate) fn array_margin(blocks: u64, total: u64) -> u64 {
    let mut nodes = 1u64;
    let mut reach = PER_NODE;
    while reach < blocks {
        reach = reach.saturating_mul(MIN_PER_NODE);
        // A full node on the path is split, and changes its neighbour too.
        nodes = nodes.saturating_add(4);
    }
    let bitmaps = total.div_ceil(BLOCKS_PER_BITMAP).min(MAX_BITMAPS);
    // The array block and the index.
    nodes.saturating_add(bitmaps).saturating_add(2)
}

/// The count in a bitmap that means "more than two".
pub(crate) const BIG_COUNT: u8 = 3;

const INDEX_XOR: u32 = 160_478;
const BITMAP_XOR: u32 = 240_779;

/// The root of a space map. C counterpart: `struct disk_sm_root`.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct SpaceMapRoot {
    blocks: U64,
    allocated: U64,
    bitmap_root: U64,
    ref_count_root: U64,
}

impl SpaceMapRoot {
    /// Parses the root of a space map on a device of `device` blocks; `None` if a field is out of
    /// range.
    pub(crate) fn parse(root: &[u8], device: u64) -> Option<&Self> {
        let (root, _) = SpaceMapRoot::ref_from_prefix(root).ok()?;
        let blocks = root.blocks.get();
        let inside = |block: u64| (1..blocks).contains(&block);
        let valid = blocks <= device
            && blocks <= BLOCKS_PER_BITMAP.saturating_mul(MAX_BITMAPS)
            && root.allocated.get() <= blocks
            && inside(root.bitmap_root.get())
            && inside(root.ref_count_root.get());
        valid.then_some(root)
    }

    /// The number of blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks.get()
    }

    /// The number of bitmap blocks.
    pub(crate) fn bitmaps(&self) -> u64 {
        self.blocks().div_ceil(BLOCKS_PER_BITMAP)
    }

    /// The block number of the index.
    pub(crate) fn bitmap_root(&self) -> u64 {
        self.bitmap_root.get()
    }

    /// The root of the btree of counts above two.
    pub(crate) fn ref_count_root(&self) -> u64 {
        self.ref_count_root.get()
    }
}

/// The header of the index block and of a bitmap block. C counterpart: `struct
/// disk_bitmap_header`, and the first fields of `struct disk_metadata_index`.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct BitmapHeader {
    csum: U32,
    padding: U32,
    blocknr: U64,
}

/// C counterpart: `struct disk_index_entry`.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct IndexEntry {
    bitmap: U64,
    free: U32,
    none_free_before: U32,
}

/// What follows the header of a block; `None` if its number or checksum is wrong.
fn body(block: &[u8], location: u64, xor: u32) -> Option<&[u8]> {
    let (header, body) = BitmapHeader::ref_from_prefix(block).ok()?;
    let valid =
        header.csum.get() == crc32c_block(block.get(4..)?, xor) && header.blocknr.get() == location;
    valid.then_some(body)
}

/// Whether a block is a valid index block.
pub(crate) fn is_index_block(block: &[u8], location: u64) -> bool {
    body(block, location, INDEX_XOR).is_some()
}

/// The block number of a bitmap, according to the index.
pub(crate) fn bitmap_location(index: &[u8], number: u64) -> Option<u64> {
    let at = usize::try_from(number).ok()?.checked_mul(16)?;
    let (entry, _) = IndexEntry::ref_from_prefix(index.get(16..)?.get(at..)?).ok()?;
    Some(entry.bitmap.get())
}

/// The number of counts above two in a bitmap block; `None` if the block is no valid bitmap.
pub(crate) fn big_counts(block: &[u8], location: u64) -> Option<u64> {
    let counts = body(block, location, BITMAP_XOR)?;
    Some(counts.iter().fold(0, |sum: u64, byte| {
        let ones = (byte & byte.wrapping_shr(1) & 0x55).count_ones();
        sum.saturating_add(ones.into())
    }))
}

/// The reference count of a block in its bitmap block, which [`big_counts`] has validated.
pub(crate) fn ref_count(bitmap: &[u8], block: u64) -> Option<u8> {
    let at = block % BLOCKS_PER_BITMAP;
    let byte = bitmap
        .get(16..)?
        .get(usize::try_from(at.wrapping_shr(2)).ok()?)?;
    let pair = byte.wrapping_shr(u32::try_from((at & 3).wrapping_mul(2)).ok()?) & 3;
    // The first bit of a pair is the high one.
    Some((pair & 1).wrapping_mul(2) | pair.wrapping_shr(1))
}
