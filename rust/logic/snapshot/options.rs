// SPDX-License-Identifier: GPL-2.0

//! The arguments of a snapshot's table line after the devices: store type, chunk size, features.
//!
//! As in C, the features are parsed before the devices are opened, and store type and chunk size
//! after that. The reason why a store cannot be created goes to the log only, and the error of the
//! table line is always [`NO_STORE`].
//!
//! C counterparts: `parse_snapshot_features()` of `dm-snap.c`, `dm_exception_store_create()` and
//! `dm_exception_store_set_chunk_size()` of `dm-exception-store.c`.

use crate::env::fmt;
use crate::logic::{
    args::{
        eq_ignore_case,
        parse_decimal_u32,
        parse_group,
        ArgumentError, //
    },
    snapshot::chunks::ChunkSize,
    units::SECTOR_SHIFT, //
};

/// The feature argument with which a discard zeroes chunks of the snapshot.
pub(crate) const DISCARD_ZEROES_COW: &str = "discard_zeroes_cow";
/// The feature argument with which discards are passed to the origin.
pub(crate) const DISCARD_PASSDOWN_ORIGIN: &str = "discard_passdown_origin";

/// The error of a table line whose store cannot be created.
pub(crate) const NO_STORE: ArgumentError =
    ArgumentError::invalid(c"Couldn't create exception store");
/// The error of a table line with chunk size zero and a transient store.
pub(crate) const NO_CHUNK_SIZE: ArgumentError = ArgumentError::invalid(c"Chunk size not set");

/// The maximum number of feature arguments.
const MAX_FEATURES: u32 = 2;
/// The default chunk size of a new store in sectors, C's `DM_CHUNK_SIZE_DEFAULT_SECTORS`.
const DEFAULT_CHUNK: u32 = 32;

/// The type of a store. `Display` writes its argument in a table line.
///
/// Any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreKind {
    /// The exceptions are stored on the COW device.
    Persistent {
        /// Whether a full COW device makes writes to the snapshot fail, instead of invalidating the
        /// snapshot, if possible.
        overflow: bool,
    },
    /// The exceptions are lost with the table.
    Transient,
}

impl StoreKind {
    /// Returns whether a snapshot with such a store can be merged into its origin.
    pub(crate) fn can_merge(self) -> bool {
        self != Self::Transient
    }
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Persistent { overflow: false } => "P",
            Self::Persistent { overflow: true } => "PO",
            Self::Transient => "N",
        })
    }
}

/// The logical block sizes of the devices of a snapshot, in bytes.
///
/// Any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockSizes {
    /// The block size of the COW device.
    pub(crate) cow: u32,
    /// The block size of the origin.
    pub(crate) origin: u32,
}

impl BlockSizes {
    /// Converts a number of sectors to a chunk size for these devices.
    ///
    /// # Errors
    ///
    /// Returns the reason why the number is not a valid chunk size.
    pub(crate) fn chunk_size(self, sectors: u32) -> Result<ChunkSize, &'static str> {
        let fits = |block: u32| sectors.checked_rem(block.wrapping_shr(SECTOR_SHIFT)) == Some(0);
        if !sectors.is_power_of_two() {
            return Err("Chunk size is not a power of 2");
        }
        if !fits(self.cow) || !fits(self.origin) {
            return Err("Chunk size is not a multiple of device blocksize");
        }
        ChunkSize::from_sectors(sectors).ok_or("Chunk size is too high")
    }
}

/// The features of a snapshot. `Display` writes them as they follow the chunk size in a table line.
///
/// Any context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features {
    /// Whether a discard zeroes chunks of the snapshot.
    pub(crate) discard_zeroes_cow: bool,
    /// Whether discards are passed to the origin. Requires `discard_zeroes_cow`.
    pub(crate) discard_passdown_origin: bool,
}

impl Features {
    /// Parses the arguments after the chunk size, if there are any.
    ///
    /// Arguments after the features are ignored.
    ///
    /// # Errors
    ///
    /// Fails if C refuses the arguments, with the same error.
    pub(crate) fn parse<'a>(
        args: &mut impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> Result<Self, ArgumentError> {
        let mut features = Self::default();
        if args.size_hint().0 == 0 {
            return Ok(features);
        }
        let text = c"Invalid number of feature arguments";
        let count = parse_group(args, MAX_FEATURES, text)?;
        let mut has_unknown = false;
        for _ in 0..count {
            let Some(arg) = args.next() else { break };
            if eq_ignore_case(arg, DISCARD_ZEROES_COW.as_bytes()) {
                features.discard_zeroes_cow = true;
            } else if eq_ignore_case(arg, DISCARD_PASSDOWN_ORIGIN.as_bytes()) {
                features.discard_passdown_origin = true;
            } else {
                has_unknown = true;
                break;
            }
        }
        // C checks this after an unknown feature too.
        if features.discard_passdown_origin && !features.discard_zeroes_cow {
            let text = c"discard_passdown_origin feature depends on discard_zeroes_cow";
            return Err(ArgumentError::invalid(text));
        }
        if has_unknown {
            return Err(ArgumentError::invalid(c"Unrecognised feature requested"));
        }
        Ok(features)
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let args = [
            (self.discard_zeroes_cow, DISCARD_ZEROES_COW),
            (self.discard_passdown_origin, DISCARD_PASSDOWN_ORIGIN),
        ];
        let set = || args.iter().filter(|(set, _)| *set);
        match set().count() {
            0 => return Ok(()),
            count => f.write_fmt(fmt!(" {}", count))?,
        }
        for (_, arg) in set() {
            f.write_fmt(fmt!(" {}", arg))?;
        }
        Ok(())
    }
}

/// The arguments of a table line after the devices, which `Display` writes.
///
/// Any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// The type of the store.
    pub(crate) store: StoreKind,
    /// The chunk size, or `None` if it is zero in the table line.
    pub(crate) chunk_size: Option<ChunkSize>,
    /// The features.
    pub(crate) features: Features,
}

impl Options {
    /// Parses store type and chunk size.
    ///
    /// # Errors
    ///
    /// Returns the log message of C if the arguments are invalid.
    pub(crate) fn parse(
        store: &[u8],
        chunk_size: &[u8],
        blocks: BlockSizes,
        features: Features,
    ) -> Result<Self, &'static str> {
        // C checks the first letter before the chunk size, and the others after it.
        if !matches!(store, [b'P' | b'p' | b'N' | b'n', ..]) {
            return Err("Exception store type is not P or N");
        }
        let chunk_size = match parse_decimal_u32(chunk_size).ok_or("Invalid chunk size")? {
            0 => None,
            sectors => Some(blocks.chunk_size(sectors)?),
        };
        let store = match store {
            [b'N' | b'n', ..] => StoreKind::Transient,
            [_] => StoreKind::Persistent { overflow: false },
            [_, b'O' | b'o', ..] => StoreKind::Persistent { overflow: true },
            _ => return Err("Unsupported persistent store option"),
        };
        Ok(Self {
            store,
            chunk_size,
            features,
        })
    }

    /// Returns the chunk size with which the header is read first.
    ///
    /// Without a chunk size in the table line, a persistent store uses the default or the block
    /// size of the COW device, whichever is larger. A transient store has no default.
    pub(crate) fn first_chunk_size(&self, blocks: BlockSizes) -> Option<ChunkSize> {
        let default = || {
            let sectors = blocks.cow.wrapping_shr(SECTOR_SHIFT).max(DEFAULT_CHUNK);
            ChunkSize::from_sectors(sectors).filter(|_| self.store != StoreKind::Transient)
        };
        self.chunk_size.or_else(default)
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sectors = self.chunk_size.map_or(0, ChunkSize::sectors);
        f.write_fmt(fmt!("{} {}{}", self.store, sectors, self.features))
    }
}
