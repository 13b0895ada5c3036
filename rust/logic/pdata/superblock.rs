// SPDX-License-Identifier: GPL-2.0

//! The header that the superblocks of `dm-clone` and `dm-era` have in common.
//!
//! Numbers are little-endian.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 4 | checksum of the rest of the block |
//! | 4 | 4 | flags: written as zero, ignored when read |
//! | 8 | 8 | number of this block |
//! | 16 | 16 | uuid: unused, zero |
//! | 32 | 8 | magic |
//! | 40 | 4 | version |
//! | 44 | 128 | root of the metadata space map |
//!
//! The checksum is the CRC-32C of bytes 4 to the end of the block, from all ones, without the final
//! inversion, XORed with a number of the format.

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
    Error,
    EINVAL,
    ENOTBLK, //
};

/// The block that holds the superblock.
pub(crate) const LOCATION: u64 = 0;
/// Size of the field for the root of the metadata space map.
pub(crate) const SM_ROOT_SIZE: usize = 128;
/// Size of the checksum, which does not cover itself.
const CSUM_SIZE: usize = 4;

/// The header as read from disk, before its fields are checked.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct SuperblockHeader {
    csum: U32,
    flags: U32,
    blocknr: U64,
    uuid: [u8; 16],
    magic: U64,
    version: U32,
    /// The root of the metadata space map.
    pub(crate) sm_root: [u8; SM_ROOT_SIZE],
}

const _: () = {
    assert!(core::mem::size_of::<SuperblockHeader>() == 172);
    assert!(core::mem::align_of::<SuperblockHeader>() == 1);
    assert!(core::mem::offset_of!(SuperblockHeader, flags) == CSUM_SIZE);
    assert!(core::mem::offset_of!(SuperblockHeader, blocknr) == 8);
    assert!(core::mem::offset_of!(SuperblockHeader, uuid) == 16);
    assert!(core::mem::offset_of!(SuperblockHeader, magic) == 32);
    assert!(core::mem::offset_of!(SuperblockHeader, version) == 40);
    assert!(core::mem::offset_of!(SuperblockHeader, sm_root) == 44);
};

/// Why the header of a superblock is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderError {
    /// The block is too short; cannot happen with metadata blocks.
    Truncated,
    /// The block has the number of another block.
    BlockNumber { found: u64, expected: u64 },
    /// The magic number is wrong.
    Magic { found: u64 },
    /// The checksum does not match the contents.
    Checksum { computed: u32, stored: u32 },
    /// The version is not supported.
    Version { found: u32 },
}

impl From<HeaderError> for Error {
    fn from(error: HeaderError) -> Self {
        match error {
            HeaderError::BlockNumber { .. } => ENOTBLK,
            HeaderError::Magic { .. } | HeaderError::Checksum { .. } => eilseq(),
            HeaderError::Truncated | HeaderError::Version { .. } => EINVAL,
        }
    }
}

/// The constants of a superblock format. All functions: any context.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    /// The value of the magic field.
    pub(crate) magic: u64,
    /// The supported version.
    pub(crate) version: u32,
    /// XORed into the checksum, so that it differs from that of other kinds of blocks.
    pub(crate) csum_xor: u32,
    /// Size of all fields.
    pub(crate) size: usize,
}

impl Format {
    /// Checks block number, magic, checksum and version, in this order, of a block read from
    /// `location`.
    ///
    /// # Errors
    ///
    /// The first check that fails.
    pub(crate) fn check(&self, block: &[u8], location: u64) -> Result<(), HeaderError> {
        if block.len() < self.size {
            return Err(HeaderError::Truncated);
        }
        let (head, _) =
            SuperblockHeader::ref_from_prefix(block).map_err(|_| HeaderError::Truncated)?;
        let found = head.blocknr.get();
        if found != location {
            return Err(HeaderError::BlockNumber {
                found,
                expected: location,
            });
        }
        let found = head.magic.get();
        if found != self.magic {
            return Err(HeaderError::Magic { found });
        }
        let stored = head.csum.get();
        let computed = self.checksum(block).ok_or(HeaderError::Truncated)?;
        if computed != stored {
            return Err(HeaderError::Checksum { computed, stored });
        }
        let found = head.version.get();
        if found != self.version {
            return Err(HeaderError::Version { found });
        }
        Ok(())
    }

    /// The header of a superblock that is going to be written, without block number and checksum,
    /// which [`Self::seal`] adds.
    pub(crate) fn head(&self, sm_root: [u8; SM_ROOT_SIZE]) -> SuperblockHeader {
        SuperblockHeader {
            csum: U32::ZERO,
            flags: U32::ZERO,
            blocknr: U64::ZERO,
            uuid: [0; 16],
            magic: U64::new(self.magic),
            version: U32::new(self.version),
            sm_root,
        }
    }

    /// Sets block number and checksum of a block that is going to be written to `location`.
    ///
    /// # Errors
    ///
    /// [`HeaderError::Truncated`] if the block is too short.
    pub(crate) fn seal(&self, block: &mut [u8], location: u64) -> Result<(), HeaderError> {
        if block.len() < self.size {
            return Err(HeaderError::Truncated);
        }
        let (head, _) =
            SuperblockHeader::mut_from_prefix(block).map_err(|_| HeaderError::Truncated)?;
        head.blocknr = U64::new(location);
        let csum = self.checksum(block).ok_or(HeaderError::Truncated)?;
        let (head, _) =
            SuperblockHeader::mut_from_prefix(block).map_err(|_| HeaderError::Truncated)?;
        head.csum = U32::new(csum);
        Ok(())
    }

    /// Computes the checksum of a block.
    fn checksum(&self, block: &[u8]) -> Option<u32> {
        let data = block.get(CSUM_SIZE..)?;
        Some(crc32c_block(data, self.csum_xor))
    }
}

/// Whether a block is all zeros, so that the device may be formatted. Any context.
///
/// C counterpart: `superblock_all_zeroes()`.
pub(crate) fn is_blank(block: &[u8]) -> bool {
    block.iter().all(|byte| *byte == 0)
}
