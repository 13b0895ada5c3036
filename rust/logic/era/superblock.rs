// SPDX-License-Identifier: GPL-2.0

//! The superblock: block 0 of the metadata device, and its copy in a metadata snapshot.
//!
//! Numbers are little-endian. The block has 4096 bytes, which are zero from byte 224 on.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 172 | [`SuperblockHeader`] |
//! | 172 | 4 | size of an era block, in sectors |
//! | 176 | 4 | size of a metadata block, in sectors: 8 |
//! | 180 | 4 | number of era blocks, which is the number of entries in the era array |
//! | 184 | 4 | current era |
//! | 188 | 12 | current writeset: number of bits, root; root 0: there is none |
//! | 200 | 8 | root of the writeset tree, which has the archived writesets |
//! | 208 | 8 | root of the era array |
//! | 216 | 8 | block of the metadata snapshot; 0: there is none |
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

/// Magic, version and checksum of the superblock.
pub(crate) const FORMAT: Format = Format {
    magic: 0x7ec1_077b,
    version: 1,
    csum_xor: 146_538_381,
    size: core::mem::size_of::<SuperblockDisk>(),
};
/// The size of a metadata block in sectors.
const METADATA_BLOCK: u32 = 8;

/// The superblock as read from disk, before its fields are checked.
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

/// Why a superblock is refused; `Display` writes the log message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// The header is wrong.
    Header(HeaderError),
    /// The block size differs from that of the table line.
    BlockSize { found: u32, wanted: BlockSize },
    /// A size or a block number is out of range.
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

/// The contents of a superblock that has passed all checks, or that is going to be written.
///
/// C counterpart: `struct superblock_disk`. Any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// The size of a block.
    pub(crate) block_size: BlockSize,
    /// The number of era blocks, at most [`MAX_BLOCKS`].
    pub(crate) blocks: u32,
    /// The current era.
    pub(crate) current_era: EraNr,
    /// The number of bits in the current writeset.
    pub(crate) writeset_bits: u32,
    /// The root of the current writeset; zero if there is none.
    pub(crate) writeset_root: u64,
    /// The root of the writeset tree.
    pub(crate) writeset_tree_root: u64,
    /// The root of the era array.
    pub(crate) era_array_root: u64,
    /// The block of the metadata snapshot; zero if there is none.
    pub(crate) metadata_snap: u64,
    /// The root of the metadata space map, opaque to this code.
    pub(crate) sm_root: [u8; SM_ROOT_SIZE],
}

impl Superblock {
    /// Parses and checks the block read from `location` of a device with `total` metadata blocks.
    ///
    /// # Errors
    ///
    /// [`Invalid`] for a wrong header, for another block size than `wanted`, and for sizes and
    /// block numbers that are out of range.
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

    /// Writes all fields except block number and checksum, which [`Format::seal`] adds, and zeroes
    /// the rest of the block.
    ///
    /// # Errors
    ///
    /// [`HeaderError::Truncated`] if the block is too short.
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
