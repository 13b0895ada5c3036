// SPDX-License-Identifier: GPL-2.0

//! Chunk 0 of a persistent store.
//!
//! All numbers are little-endian. The rest of the chunk is written as zeros and ignored.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 4 | [`MAGIC`]; 0: the device is to be made a store |
//! | 4 | 4 | whether the snapshot is valid: 0 if not |
//! | 8 | 4 | [`VERSION`] |
//! | 12 | 4 | size of a chunk, in sectors |
//!
//! C counterpart: `struct disk_header` of `drivers/md/dm-snap-persistent.c`.

use zerocopy::{
    little_endian::U32,
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
    EINVAL,
    ENXIO, //
};
use crate::logic::snapshot::{
    chunks::ChunkSize,
    options::BlockSizes, //
};

/// The value of the magic field.
pub(crate) const MAGIC: u32 = 0x7041_6e53;
/// The only version there is.
pub(crate) const VERSION: u32 = 1;

/// The header as it lies on disk, not yet trusted.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DiskHeader {
    magic: U32,
    valid: U32,
    version: U32,
    chunk_size: U32,
}

const _: () = {
    assert!(core::mem::size_of::<DiskHeader>() == 16);
    assert!(core::mem::align_of::<DiskHeader>() == 1);
};

/// Why a chunk is no header this code can use; `Display` writes the line for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderError {
    /// The magic number is wrong, or cut off.
    Magic,
    /// The chunk size is not possible on these devices.
    ChunkSize { found: u32, reason: &'static str },
    /// The version is unknown.
    Version { found: u32 },
}

impl From<HeaderError> for Error {
    fn from(invalid: HeaderError) -> Self {
        match invalid {
            HeaderError::Magic => ENXIO,
            _ => EINVAL,
        }
    }
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => f.write_str("Invalid or corrupt snapshot"),
            Self::ChunkSize { found, reason } => {
                f.write_fmt(fmt!("invalid on-disk chunk size {}: {}.", found, reason))
            }
            // CAST: C shows a signed number.
            Self::Version { found } => f.write_fmt(fmt!(
                "unable to handle snapshot disk version {}",
                *found as i32
            )),
        }
    }
}

/// That the disk does not have the chunk size of the table line; `Display` writes the line for the
/// log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkSizeOverride {
    found: u32,
    table: ChunkSize,
}

impl ChunkSizeOverride {
    /// Looks for it in a chunk, which need not be a sound header otherwise.
    pub(crate) fn find(chunk: &[u8], table: ChunkSize) -> Option<Self> {
        let (disk, _) = DiskHeader::ref_from_prefix(chunk).ok()?;
        let found = disk.chunk_size.get();
        let other = disk.magic.get() == MAGIC && found != table.sectors();
        other.then_some(Self { found, table })
    }
}

impl fmt::Display for ChunkSizeOverride {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_fmt(fmt!(
            "chunk size {} in device metadata overrides table chunk size of {}.",
            self.found,
            self.table
        ))
    }
}

/// What chunk 0 tells.
///
/// A plain value, free to use in any context; its functions do no I/O and never sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// There is no store yet.
    Blank,
    /// There is a store.
    Store {
        /// Whether the snapshot is valid.
        valid: bool,
        /// The size of a chunk.
        size: ChunkSize,
    },
}

impl Header {
    /// Reads a chunk with all checks. The size `read` with which it was read is not checked again.
    pub(crate) fn parse(
        chunk: &[u8],
        read: ChunkSize,
        blocks: BlockSizes,
    ) -> Result<Self, HeaderError> {
        let (disk, _) = DiskHeader::ref_from_prefix(chunk).map_err(|_| HeaderError::Magic)?;
        match disk.magic.get() {
            0 => return Ok(Self::Blank),
            MAGIC => {}
            _ => return Err(HeaderError::Magic),
        }
        let found = disk.chunk_size.get();
        let size = if found == read.sectors() {
            read
        } else {
            blocks
                .chunk_size(found)
                .map_err(|reason| HeaderError::ChunkSize { found, reason })?
        };
        let found = disk.version.get();
        if found != VERSION {
            return Err(HeaderError::Version { found });
        }
        Ok(Self::Store {
            valid: disk.valid.get() != 0,
            size,
        })
    }

    /// Writes the header into a chunk and clears the rest; `None` if the chunk is too short.
    pub(crate) fn encode(&self, chunk: &mut [u8]) -> Option<()> {
        let (disk, rest) = DiskHeader::mut_from_prefix(chunk).ok()?;
        let [magic, valid, version, chunk_size] = match *self {
            Self::Blank => [0; 4],
            Self::Store { valid, size } => [MAGIC, valid.into(), VERSION, size.sectors()],
        }
        .map(U32::new);
        *disk = DiskHeader {
            magic,
            valid,
            version,
            chunk_size,
        };
        rest.fill(0);
        Some(())
    }
}
