// SPDX-License-Identifier: GPL-2.0

//! Block 0 of an era's metadata device, and its copy in a metadata snapshot.
//!
//! All numbers are little-endian. The block is 4096 bytes long and zero from byte 224 on.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 4 | crc32c of bytes 4 to the end, from all ones, without final inversion, exclusive-or [`CSUM_XOR`] |
//! | 4 | 4 | flags: written as zero, ignored |
//! | 8 | 8 | the block's own number |
//! | 16 | 16 | uuid: unused, zero |
//! | 32 | 8 | [`MAGIC`] |
//! | 40 | 4 | [`VERSION`] |
//! | 44 | 128 | root of the metadata space map |
//! | 172 | 4 | size of an era block, in sectors |
//! | 176 | 4 | size of a metadata block, in sectors: 8 |
//! | 180 | 4 | number of era blocks |
//! | 184 | 4 | present era |
//! | 188 | 12 | present bitset: number of bits, root; root 0: there is none |
//! | 200 | 8 | root of the tree of archived bitsets |
//! | 208 | 8 | root of the array of eras |
//! | 216 | 8 | where the metadata snapshot is; 0: there is none |
//!
//! C counterpart: `struct superblock_disk` of `drivers/md/dm-era-target.c`.

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
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

use crate::env::{
    crc32c_block,
    eilseq,
    fmt,
    Error,
    EINVAL,
    ENOTBLK, //
};
use crate::logic::era::{
    geometry::{
        BlockSize,
        MAX_BLOCKS, //
    },
    number::Era, //
};

/// The block that holds the superblock.
pub(crate) const LOCATION: u64 = 0;
/// The value of the magic field.
pub(crate) const MAGIC: u64 = 0x7ec1_077b;
/// The only version there is.
pub(crate) const VERSION: u32 = 1;
/// What the checksum of a superblock is mixed with, to differ from that of other blocks.
pub(crate) const CSUM_XOR: u32 = 146_538_381;
/// The room for the root of the metadata space map, in bytes.
pub(crate) const SM_ROOT_SIZE: usize = 128;
/// The size of a metadata block in sectors.
const METADATA_BLOCK: u32 = 8;
/// The number of bytes the checksum does not cover, at the start.
const CSUM_SIZE: usize = 4;

/// The superblock as it lies on disk, not yet trusted.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Disk {
    csum: U32,
    flags: U32,
    blocknr: U64,
    uuid: [u8; 16],
    magic: U64,
    version: U32,
    sm_root: [u8; SM_ROOT_SIZE],
    block_size: U32,
    metadata_block: U32,
    blocks: U32,
    era: U32,
    bits: U32,
    bitset_root: U64,
    tree_root: U64,
    array_root: U64,
    snapshot: U64,
}

const _: () = {
    assert!(core::mem::size_of::<Disk>() == 224);
    assert!(core::mem::align_of::<Disk>() == 1);
    assert!(core::mem::offset_of!(Disk, sm_root) == 44);
    assert!(core::mem::offset_of!(Disk, block_size) == 172);
    assert!(core::mem::offset_of!(Disk, bitset_root) == 192);
    assert!(core::mem::offset_of!(Disk, snapshot) == 216);
};

/// Why a block is no superblock this code can use; `Display` writes the line for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// The block is too short to hold a superblock; cannot happen with metadata blocks.
    Truncated,
    /// The block says it belongs elsewhere.
    BlockNumber { found: u64, expected: u64 },
    /// The magic number is wrong.
    Magic { found: u64 },
    /// The checksum does not match the contents.
    Checksum { computed: u32, stored: u32 },
    /// The version is unknown.
    Version { found: u32 },
    /// The block size is not that of the table line.
    BlockSize { found: u32, wanted: BlockSize },
    /// A size or a location is not possible.
    Impossible,
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        match invalid {
            Invalid::BlockNumber { .. } => ENOTBLK,
            Invalid::Magic { .. } | Invalid::Checksum { .. } => eilseq(),
            _ => EINVAL,
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("sb_check failed: block too short"),
            Self::BlockNumber { found, expected } => f.write_fmt(fmt!(
                "sb_check failed: blocknr {}: wanted {}",
                found,
                expected
            )),
            Self::Magic { found } => {
                f.write_fmt(fmt!("sb_check failed: magic {}: wanted {}", found, MAGIC))
            }
            Self::Checksum { computed, stored } => f.write_fmt(fmt!(
                "sb_check failed: csum {}: wanted {}",
                computed,
                stored
            )),
            Self::Version { found } => f.write_fmt(fmt!(
                "Era metadata version {} found, but only versions between {} and {} supported.",
                found,
                VERSION,
                VERSION
            )),
            Self::BlockSize { found, wanted } => f.write_fmt(fmt!(
                "changing the data block size (from {} to {}) is not supported",
                found,
                wanted
            )),
            Self::Impossible => f.write_str("sb_check failed: impossible size or location"),
        }
    }
}

/// The contents of a superblock that passed all checks, or that will be written.
///
/// A plain value, free to use in any context; its functions do no I/O and never sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// The size of a block.
    pub(crate) block_size: BlockSize,
    /// The number of blocks, at most [`MAX_BLOCKS`].
    pub(crate) blocks: u32,
    /// The present era.
    pub(crate) era: Era,
    /// The number of bits of the present bitset.
    pub(crate) bits: u32,
    /// The root of the present bitset; zero if there is none.
    pub(crate) bitset_root: u64,
    /// The root of the tree of archived bitsets.
    pub(crate) tree_root: u64,
    /// The root of the array of eras.
    pub(crate) array_root: u64,
    /// Where the metadata snapshot is; zero if there is none.
    pub(crate) snapshot: u64,
    /// The root of the metadata space map, opaque here.
    pub(crate) sm_root: [u8; SM_ROOT_SIZE],
}

impl Superblock {
    /// Checks number, magic, checksum and version, in this order, of a block read from `location`.
    pub(crate) fn check(block: &[u8], location: u64) -> Result<(), Invalid> {
        let (disk, _) = Disk::ref_from_prefix(block).map_err(|_| Invalid::Truncated)?;
        let found = disk.blocknr.get();
        if found != location {
            return Err(Invalid::BlockNumber {
                found,
                expected: location,
            });
        }
        let found = disk.magic.get();
        if found != MAGIC {
            return Err(Invalid::Magic { found });
        }
        let stored = disk.csum.get();
        let computed = checksum(block).ok_or(Invalid::Truncated)?;
        if computed != stored {
            return Err(Invalid::Checksum { computed, stored });
        }
        let found = disk.version.get();
        if found != VERSION {
            return Err(Invalid::Version { found });
        }
        Ok(())
    }

    /// Reads a block from `location` of a device with `total` metadata blocks, with all checks, for blocks of a size.
    pub(crate) fn parse(
        block: &[u8],
        location: u64,
        wanted: BlockSize,
        total: u64,
    ) -> Result<Self, Invalid> {
        Self::check(block, location)?;
        let (disk, _) = Disk::ref_from_prefix(block).map_err(|_| Invalid::Truncated)?;
        let found = disk.block_size.get();
        if found != wanted.get() {
            return Err(Invalid::BlockSize { found, wanted });
        }
        let superblock = Self {
            block_size: wanted,
            blocks: disk.blocks.get(),
            era: Era(disk.era.get()),
            bits: disk.bits.get(),
            bitset_root: disk.bitset_root.get(),
            tree_root: disk.tree_root.get(),
            array_root: disk.array_root.get(),
            snapshot: disk.snapshot.get(),
            sm_root: disk.sm_root,
        };
        let inside = |root: u64| root != LOCATION && root < total;
        let possible = disk.metadata_block.get() == METADATA_BLOCK
            && u64::from(superblock.blocks) <= MAX_BLOCKS
            && u64::from(superblock.bits) <= MAX_BLOCKS
            && superblock.bitset_root < total
            && inside(superblock.tree_root)
            && inside(superblock.array_root)
            && superblock.snapshot < total;
        if !possible {
            return Err(Invalid::Impossible);
        }
        Ok(superblock)
    }

    /// Writes all fields but block number and checksum, which [`Self::seal`] adds, and clears the rest
    /// of the block.
    pub(crate) fn write(&self, block: &mut [u8]) -> Result<(), Invalid> {
        let (disk, rest) = Disk::mut_from_prefix(block).map_err(|_| Invalid::Truncated)?;
        *disk = Disk {
            csum: U32::ZERO,
            flags: U32::ZERO,
            blocknr: U64::ZERO,
            uuid: [0; 16],
            magic: U64::new(MAGIC),
            version: U32::new(VERSION),
            sm_root: self.sm_root,
            block_size: U32::new(self.block_size.get()),
            metadata_block: U32::new(METADATA_BLOCK),
            blocks: U32::new(self.blocks),
            era: U32::new(self.era.0),
            bits: U32::new(self.bits),
            bitset_root: U64::new(self.bitset_root),
            tree_root: U64::new(self.tree_root),
            array_root: U64::new(self.array_root),
            snapshot: U64::new(self.snapshot),
        };
        rest.fill(0);
        Ok(())
    }

    /// Puts block number and checksum into a block that is about to be written to `location`.
    pub(crate) fn seal(block: &mut [u8], location: u64) -> Result<(), Invalid> {
        let (disk, _) = Disk::mut_from_prefix(block).map_err(|_| Invalid::Truncated)?;
        disk.blocknr = U64::new(location);
        let csum = checksum(block).ok_or(Invalid::Truncated)?;
        let (disk, _) = Disk::mut_from_prefix(block).map_err(|_| Invalid::Truncated)?;
        disk.csum = U32::new(csum);
        Ok(())
    }

    /// Tells whether a block is all zeros, which means that the device is to be formatted.
    pub(crate) fn is_blank(block: &[u8]) -> bool {
        block.iter().all(|byte| *byte == 0)
    }
}

/// Computes the checksum of a block.
fn checksum(block: &[u8]) -> Option<u32> {
    block
        .get(CSUM_SIZE..)
        .map(|data| crc32c_block(data, CSUM_XOR))
}
