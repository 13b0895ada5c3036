// SPDX-License-Identifier: GPL-2.0

//! Block 0 of a clone's metadata device.
//!
//! All numbers are little-endian. The block is 4096 bytes long and zero from byte 196 on.
//!
//! ```text
//!      0       4       8               16              24              32
//!      +-------+-------+---------------+---------------+---------------+
//!    0 | csum  | flags | blocknr       | uuid (unused)                 |
//!      +-------+-------+---+-----------+---------------+---------------+
//!   32 | magic         |ver| root of the metadata space map, 128 bytes |
//!      +---------------+---+           .                               |
//!   64 |                                                               |
//!      .               . 44..172 .     .           +---------------+---+
//!  160 |                                           | region_size 172   |
//!      +-----------------------+---------------+---+---------------+---+
//!  180 | target_size 180       | bitset_root 188 | zeros 196...
//!      +-----------------------+-----------------+----------------------
//! ```
//!
//! `csum` is the crc32c of bytes 4 to the end, from all ones, without final inversion, exclusive-or
//! [`CSUM_XOR`]. `flags` is written as zero and ignored on reading. C counterpart: `struct
//! superblock_disk` of `drivers/md/dm-clone-metadata.c`.

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
use crate::logic::clone::geometry::RegionSize;
use crate::logic::units::Sectors;

/// The block that holds the superblock.
pub(crate) const LOCATION: u64 = 0;
/// The value of the magic field.
pub(crate) const MAGIC: u64 = 0x8af2_7f64;
/// The only version there is.
pub(crate) const VERSION: u32 = 1;
/// What the checksum of a superblock is mixed with, to differ from that of other blocks.
pub(crate) const CSUM_XOR: u32 = 257_649_492;
/// The room for the root of the metadata space map, in bytes.
pub(crate) const SM_ROOT_SIZE: usize = 128;
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
    region_size: U64,
    target_size: U64,
    bitset_root: U64,
}

const _: () = {
    assert!(core::mem::size_of::<Disk>() == 196);
    assert!(core::mem::align_of::<Disk>() == 1);
    assert!(core::mem::offset_of!(Disk, flags) == CSUM_SIZE);
    assert!(core::mem::offset_of!(Disk, blocknr) == 8);
    assert!(core::mem::offset_of!(Disk, uuid) == 16);
    assert!(core::mem::offset_of!(Disk, magic) == 32);
    assert!(core::mem::offset_of!(Disk, version) == 40);
    assert!(core::mem::offset_of!(Disk, sm_root) == 44);
    assert!(core::mem::offset_of!(Disk, region_size) == 172);
    assert!(core::mem::offset_of!(Disk, target_size) == 180);
    assert!(core::mem::offset_of!(Disk, bitset_root) == 188);
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
    /// The sizes are not those of the table line, or not possible at all.
    Geometry,
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        match invalid {
            Invalid::BlockNumber { .. } => ENOTBLK,
            Invalid::Magic { .. } | Invalid::Checksum { .. } => eilseq(),
            Invalid::Truncated | Invalid::Version { .. } | Invalid::Geometry => EINVAL,
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("Superblock check failed: block too short"),
            Self::BlockNumber { found, expected } => f.write_fmt(fmt!(
                "Superblock check failed: blocknr {}, expected {}",
                found,
                expected
            )),
            Self::Magic { found } => f.write_fmt(fmt!(
                "Superblock check failed: magic {}, expected {}",
                found,
                MAGIC
            )),
            Self::Checksum { computed, stored } => f.write_fmt(fmt!(
                "Superblock check failed: checksum {}, expected {}",
                computed,
                stored
            )),
            Self::Version { found } => f.write_fmt(fmt!(
                "Clone metadata version {} found, but only versions between {} and {} supported.",
                found,
                VERSION,
                VERSION
            )),
            Self::Geometry => {
                f.write_str("Region and/or target size don't match the ones in metadata")
            }
        }
    }
}

/// The contents of a superblock that passed all checks, or that will be written.
///
/// A plain value, free to use in any context; its functions do no I/O and never sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// The size of a region.
    pub(crate) region_size: RegionSize,
    /// The length of the target.
    pub(crate) target_size: Sectors,
    /// The metadata block at the root of the bitset of hydrated regions.
    pub(crate) bitset_root: u64,
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

    /// Reads a block from `location`, with all checks, and with the region size known to be legal.
    pub(crate) fn parse(block: &[u8], location: u64) -> Result<Self, Invalid> {
        Self::check(block, location)?;
        let (disk, _) = Disk::ref_from_prefix(block).map_err(|_| Invalid::Truncated)?;
        let region_size = disk.region_size.get();
        Ok(Self {
            region_size: RegionSize::from_sectors(region_size).ok_or(Invalid::Geometry)?,
            target_size: Sectors(disk.target_size.get()),
            bitset_root: disk.bitset_root.get(),
            sm_root: disk.sm_root,
        })
    }

    /// Checks that the sizes are those of a table line.
    pub(crate) fn check_sizes(
        &self,
        region_size: RegionSize,
        target_size: Sectors,
    ) -> Result<(), Invalid> {
        if self.region_size != region_size || self.target_size != target_size {
            return Err(Invalid::Geometry);
        }
        Ok(())
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
            region_size: U64::new(self.region_size.sectors().get()),
            target_size: U64::new(self.target_size.get()),
            bitset_root: U64::new(self.bitset_root),
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
