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
//! The part up to the root of the space map is common to several targets: see
//! [`SuperblockHeader`]. C counterpart: `struct superblock_disk` of
//! `drivers/md/dm-clone-metadata.c`.

use zerocopy::{
    little_endian::U64,
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
use crate::logic::clone::geometry::RegionSize;
use crate::logic::pdata::superblock::{
    Format,
    HeaderError,
    SuperblockHeader,
    SM_ROOT_SIZE, //
};
use crate::logic::units::Sectors;

/// What distinguishes this superblock from those of other targets.
pub(crate) const FORMAT: Format = Format {
    magic: 0x8af2_7f64,
    version: 1,
    csum_xor: 257_649_492,
    size: core::mem::size_of::<SuperblockDisk>(),
};

/// The superblock on disk, not yet trusted.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SuperblockDisk {
    head: SuperblockHeader,
    region_size: U64,
    target_size: U64,
    bitset_root: U64,
}

const _: () = {
    assert!(core::mem::size_of::<SuperblockDisk>() == 196);
    assert!(core::mem::align_of::<SuperblockDisk>() == 1);
    assert!(core::mem::offset_of!(SuperblockDisk, region_size) == 172);
    assert!(core::mem::offset_of!(SuperblockDisk, target_size) == 180);
    assert!(core::mem::offset_of!(SuperblockDisk, bitset_root) == 188);
};

/// Why a superblock is invalid; `Display` writes the log message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// It is not a superblock of this format.
    Header(HeaderError),
    /// The sizes are not those of the table line, or impossible.
    Geometry,
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        match invalid {
            Invalid::Header(error) => error.into(),
            Invalid::Geometry => EINVAL,
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
            Self::Header(HeaderError::Truncated) => {
                f.write_str("Superblock check failed: block too short")
            }
            Self::Header(HeaderError::BlockNumber { found, expected }) => f.write_fmt(fmt!(
                "Superblock check failed: blocknr {}, expected {}",
                found,
                expected
            )),
            Self::Header(HeaderError::Magic { found }) => f.write_fmt(fmt!(
                "Superblock check failed: magic {}, expected {}",
                found,
                FORMAT.magic
            )),
            Self::Header(HeaderError::Checksum { computed, stored }) => f.write_fmt(fmt!(
                "Superblock check failed: checksum {}, expected {}",
                computed,
                stored
            )),
            Self::Header(HeaderError::Version { found }) => f.write_fmt(fmt!(
                "Clone metadata version {} found, but only versions between {} and {} supported.",
                found,
                FORMAT.version,
                FORMAT.version
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
    /// Parses a block from `location`, with all checks, those of the region size included.
    pub(crate) fn parse(block: &[u8], location: u64) -> Result<Self, Invalid> {
        FORMAT.check(block, location)?;
        let (disk, _) =
            SuperblockDisk::ref_from_prefix(block).map_err(|_| HeaderError::Truncated)?;
        let region_size = disk.region_size.get();
        Ok(Self {
            region_size: RegionSize::from_sectors(region_size).ok_or(Invalid::Geometry)?,
            target_size: Sectors(disk.target_size.get()),
            bitset_root: disk.bitset_root.get(),
            sm_root: disk.head.sm_root,
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

    /// Writes all fields but block number and checksum, which [`Format::seal`] adds, and zeroes the
    /// rest of the block.
    pub(crate) fn write(&self, block: &mut [u8]) -> Result<(), HeaderError> {
        let (disk, rest) =
            SuperblockDisk::mut_from_prefix(block).map_err(|_| HeaderError::Truncated)?;
        *disk = SuperblockDisk {
            head: FORMAT.head(self.sm_root),
            region_size: U64::new(self.region_size.sectors().get()),
            target_size: U64::new(self.target_size.get()),
            bitset_root: U64::new(self.bitset_root),
        };
        rest.fill(0);
        Ok(())
    }
}
