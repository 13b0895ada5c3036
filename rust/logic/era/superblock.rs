// SPDX-License-Identifier: GPL-2.0

//! Block 0 of an era's metadata device, and its copy in a metadata snapshot.
//!
//! All numbers are little-endian. The block is 4096 bytes long and zero from byte 224 on.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 172 | [`SuperblockHeader`] |
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
    fmt,
    Error,
    EINVAL, //
};
use crate::logic::era::{
    era_nr::EraNr, //
    geometry::{
        BlockSize,
        MAX_BLOCKS, //
    },
};
use crate::logic::pdata::superblock::{
    Format,
    HeaderError,
    SuperblockHeader,
    LOCATION,
    SM_ROOT_SIZE, //
};

/// What distinguishes the superblock from those of other formats.
pub(crate) const FORMAT: Format = Format {
    magic: 0x7ec1_077b,
    version: 1,
    csum_xor: 146_538_381,
    size: core::mem::size_of::<SuperblockDisk>(),
};
/// The size of a metadata block in sectors.
const METADATA_BLOCK: u32 = 8;

/// The superblock as it lies on disk, not yet trusted.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SuperblockDisk {
    head: SuperblockHeader,
    block_size: U32,
    metadata_block: U32,
    blocks: U32,
    current_era: U32,
    writeset_bits: U32,
    writeset_root: U64,
    writeset_tree_root: U64,
    era_array_root: U64,
    metadata_snap: U64,
}

const _: () = {
    assert!(core::mem::size_of::<SuperblockDisk>() == 224);
    assert!(core::mem::align_of::<SuperblockDisk>() == 1);
    assert!(core::mem::offset_of!(SuperblockDisk, block_size) == 172);
    assert!(core::mem::offset_of!(SuperblockDisk, writeset_root) == 192);
    assert!(core::mem::offset_of!(SuperblockDisk, metadata_snap) == 216);
};

/// Why a block is no superblock this code can use; `Display` writes the line for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// It is none of this format.
    Header(HeaderError),
    /// The block size is not that of the table line.
    BlockSize { found: u32, wanted: BlockSize },
    /// A size or a location is not possible.
    Impossible,
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        match invalid {
            Invalid::Header(error) => error.into(),
            Invalid::BlockSize { .. } | Invalid::Impossible => EINVAL,
        }
    }
}

impl From<HeaderError> for Invalid {
    fn from(error: HeaderError) -> Self {
        Invalid::Header(error)
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(HeaderError::Truncated) => f.write_str("sb_check failed: block too short"),
            Self::Header(HeaderError::BlockNumber { found, expected }) => f.write_fmt(fmt!(
                "sb_check failed: blocknr {}: wanted {}",
                found,
                expected
            )),
            Self::Header(HeaderError::Magic { found }) => f.write_fmt(fmt!(
                "sb_check failed: magic {}: wanted {}",
                found,
                FORMAT.magic
            )),
            Self::Header(HeaderError::Checksum { computed, stored }) => f.write_fmt(fmt!(
                "sb_check failed: csum {}: wanted {}",
                computed,
                stored
            )),
            Self::Header(HeaderError::Version { found }) => f.write_fmt(fmt!(
                "Era metadata version {} found, but only versions between {} and {} supported.",
                found,
                FORMAT.version,
                FORMAT.version
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
    pub(crate) current_era: EraNr,
    /// The number of bits of the present bitset.
    pub(crate) writeset_bits: u32,
    /// The root of the present bitset; zero if there is none.
    pub(crate) writeset_root: u64,
    /// The root of the tree of archived bitsets.
    pub(crate) writeset_tree_root: u64,
    /// The root of the array of eras.
    pub(crate) era_array_root: u64,
    /// Where the metadata snapshot is; zero if there is none.
    pub(crate) metadata_snap: u64,
    /// The root of the metadata space map, opaque here.
    pub(crate) sm_root: [u8; SM_ROOT_SIZE],
}

impl Superblock {
    /// Reads a block from `location` of a device with `total` metadata blocks, with all checks, for
    /// blocks of a size.
    pub(crate) fn parse(
        block: &[u8],
        location: u64,
        wanted: BlockSize,
        total: u64,
    ) -> Result<Self, Invalid> {
        FORMAT.check(block, location)?;
        let (disk, _) =
            SuperblockDisk::ref_from_prefix(block).map_err(|_| HeaderError::Truncated)?;
        let found = disk.block_size.get();
        if found != wanted.get() {
            return Err(Invalid::BlockSize { found, wanted });
        }
        let superblock = Self {
            block_size: wanted,
            blocks: disk.blocks.get(),
            current_era: EraNr(disk.current_era.get()),
            writeset_bits: disk.writeset_bits.get(),
            writeset_root: disk.writeset_root.get(),
            writeset_tree_root: disk.writeset_tree_root.get(),
            era_array_root: disk.era_array_root.get(),
            metadata_snap: disk.metadata_snap.get(),
            sm_root: disk.head.sm_root,
        };
        let inside = |root: u64| root != LOCATION && root < total;
        let possible = disk.metadata_block.get() == METADATA_BLOCK
            && u64::from(superblock.blocks) <= MAX_BLOCKS
            && u64::from(superblock.writeset_bits) <= MAX_BLOCKS
            && superblock.writeset_root < total
            && inside(superblock.writeset_tree_root)
            && inside(superblock.era_array_root)
            && superblock.metadata_snap < total;
        if !possible {
            return Err(Invalid::Impossible);
        }
        Ok(superblock)
    }

    /// Writes all fields but block number and checksum, which [`Format::seal`] adds, and clears the
    /// rest of the block.
    pub(crate) fn write(&self, block: &mut [u8]) -> Result<(), HeaderError> {
        let (disk, rest) =
            SuperblockDisk::mut_from_prefix(block).map_err(|_| HeaderError::Truncated)?;
        *disk = SuperblockDisk {
            head: FORMAT.head(self.sm_root),
            block_size: U32::new(self.block_size.get()),
            metadata_block: U32::new(METADATA_BLOCK),
            blocks: U32::new(self.blocks),
            current_era: U32::new(self.current_era.0),
            writeset_bits: U32::new(self.writeset_bits),
            writeset_root: U64::new(self.writeset_root),
            writeset_tree_root: U64::new(self.writeset_tree_root),
            era_array_root: U64::new(self.era_array_root),
            metadata_snap: U64::new(self.metadata_snap),
        };
        rest.fill(0);
        Ok(())
    }
}
