// SPDX-License-Identifier: GPL-2.0

//! The header of a persistent store, in chunk 0.
//!
//! All numbers are little-endian. The rest of the chunk is written as zeros, and ignored when read.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 4 | [`MAGIC`]; 0 requests that a new store is created |
//! | 4 | 4 | 0 if the snapshot is invalid |
//! | 8 | 4 | [`VERSION`] |
//! | 12 | 4 | chunk size in sectors |
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

/// The magic number, C's `SNAP_MAGIC`.
pub(crate) const MAGIC: u32 = 0x7041_6e53;
/// The only version, C's `SNAPSHOT_DISK_VERSION`.
pub(crate) const VERSION: u32 = 1;

/// The header on disk, which is not validated.
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

/// Why a header is refused. `Display` writes the log message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderError {
    /// The magic number is wrong, or the chunk is too short.
    Magic,
    /// The devices do not allow the chunk size.
    ChunkSize { found: u32, reason: &'static str },
    /// The version is unknown.
    Version { found: u32 },
}

impl From<HeaderError> for Error {
    fn from(error: HeaderError) -> Self {
        match error {
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
            // CAST: C prints a signed number.
            Self::Version { found } => f.write_fmt(fmt!(
                "unable to handle snapshot disk version {}",
                *found as i32
            )),
        }
    }
}

/// The chunk size on disk, if it differs from that of the table line. `Display` writes the log
/// message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkSizeOverride {
    found: u32,
    table: ChunkSize,
}

impl ChunkSizeOverride {
    /// Compares the chunk size of a header, which may be invalid otherwise.
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

/// The contents of chunk 0.
///
/// Any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// The device has no store yet.
    Blank,
    /// The device has a store.
    Store {
        /// Whether the snapshot is valid.
        valid: bool,
        /// The chunk size.
        size: ChunkSize,
    },
}

impl Header {
    /// Parses and validates a chunk.
    ///
    /// `read` is the chunk size with which it was read. It is valid already.
    ///
    /// # Errors
    ///
    /// [`HeaderError`] lists the causes.
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

    /// Writes the header to a chunk and zeroes the rest.
    ///
    /// Returns `None` if the chunk is too short.
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
