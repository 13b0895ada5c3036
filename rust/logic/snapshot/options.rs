// SPDX-License-Identifier: GPL-2.0

//! The words of a snapshot's table line behind the devices: kind of store, chunk size, features.
//!
//! The features are read before the devices are opened, store and chunk size afterwards. Why a
//! store cannot be made is a text for the log only; the refusal itself is always [`NO_STORE`].
//! Counterparts in C: `parse_snapshot_features` of `drivers/md/dm-snap.c`, and
//! `drivers/md/dm-exception-store.c`.

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

/// The feature word that makes a discard of a chunk zeros in the snapshot.
pub(crate) const DISCARD_ZEROES_COW: &str = "discard_zeroes_cow";
/// The feature word that passes discards on to the origin.
pub(crate) const DISCARD_PASSDOWN_ORIGIN: &str = "discard_passdown_origin";

/// What a line is refused with whose store cannot be made.
pub(crate) const NO_STORE: ArgumentError =
    ArgumentError::invalid(c"Couldn't create exception store");
/// What a line is refused with that leaves the chunk size open where nothing else tells it.
pub(crate) const NO_CHUNK_SIZE: ArgumentError = ArgumentError::invalid(c"Chunk size not set");

/// The highest number of feature words.
const MAX_FEATURES: u32 = 2;
/// The chunk size of a new store in sectors, if neither table nor device ask for more.
const DEFAULT_CHUNK: u32 = 32;

/// The kind of a store; its name in a table line is what `Display` writes.
///
/// A plain value, free to use in any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreKind {
    /// It survives on the COW device.
    Persistent {
        /// Whether a full COW device only stops writes to the snapshot, as long as it can.
        overflow: bool,
    },
    /// It is forgotten with the table.
    Transient,
}

impl StoreKind {
    /// Whether a snapshot with such a store can be merged into its origin.
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
/// A plain value, free to use in any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockSizes {
    /// Of the COW device.
    pub(crate) cow: u32,
    /// Of the origin.
    pub(crate) origin: u32,
}

impl BlockSizes {
    /// Makes a chunk size for these devices of a number of sectors, or tells what is wrong with it.
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

/// The features of a snapshot; `Display` writes them as behind the chunk size of a table line.
///
/// A plain value, free to use in any context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features {
    /// Whether a discard of a chunk makes it zeros in the snapshot.
    pub(crate) discard_zeroes_cow: bool,
    /// Whether discards are passed on to the origin; only together with the other.
    pub(crate) discard_passdown_origin: bool,
}

impl Features {
    /// Reads the words behind the chunk size; there may be none. What follows the features is left.
    pub(crate) fn parse<'a>(
        words: &mut impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> Result<Self, ArgumentError> {
        let mut features = Self::default();
        if words.size_hint().0 == 0 {
            return Ok(features);
        }
        let text = c"Invalid number of feature arguments";
        let count = parse_group(words, MAX_FEATURES, text)?;
        let mut unknown = false;
        for _ in 0..count {
            let Some(word) = words.next() else { break };
            if eq_ignore_case(word, DISCARD_ZEROES_COW.as_bytes()) {
                features.discard_zeroes_cow = true;
            } else if eq_ignore_case(word, DISCARD_PASSDOWN_ORIGIN.as_bytes()) {
                features.discard_passdown_origin = true;
            } else {
                unknown = true;
                break;
            }
        }
        // C looks at this behind an unknown word too.
        if features.discard_passdown_origin && !features.discard_zeroes_cow {
            let text = c"discard_passdown_origin feature depends on discard_zeroes_cow";
            return Err(ArgumentError::invalid(text));
        }
        if unknown {
            return Err(ArgumentError::invalid(c"Unrecognised feature requested"));
        }
        Ok(features)
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [
            (self.discard_zeroes_cow, DISCARD_ZEROES_COW),
            (self.discard_passdown_origin, DISCARD_PASSDOWN_ORIGIN),
        ];
        let set = || words.iter().filter(|(set, _)| *set);
        match set().count() {
            0 => return Ok(()),
            count => f.write_fmt(fmt!(" {}", count))?,
        }
        for (_, word) in set() {
            f.write_fmt(fmt!(" {}", word))?;
        }
        Ok(())
    }
}

/// What a table line says behind the devices, which `Display` writes.
///
/// A plain value, free to use in any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// The kind of the store.
    pub(crate) store: StoreKind,
    /// The size of a chunk, unless it is left open, which is zero in the line.
    pub(crate) chunk_size: Option<ChunkSize>,
    /// The features.
    pub(crate) features: Features,
}

impl Options {
    /// Reads kind and chunk size, or tells why no store can be made of them.
    pub(crate) fn parse(
        store: &[u8],
        chunk_size: &[u8],
        blocks: BlockSizes,
        features: Features,
    ) -> Result<Self, &'static str> {
        // C looks at the first letter before the chunk size, and at the others behind it.
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

    /// The chunk size with which the COW device is looked at first. One left open is chosen by the
    /// device, unless the store is transient.
    pub(crate) fn first_chunk_size(&self, blocks: BlockSizes) -> Option<ChunkSize> {
        let open = || {
            let sectors = blocks.cow.wrapping_shr(SECTOR_SHIFT).max(DEFAULT_CHUNK);
            ChunkSize::from_sectors(sectors).filter(|_| self.store != StoreKind::Transient)
        };
        self.chunk_size.or_else(open)
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sectors = self.chunk_size.map_or(0, ChunkSize::sectors);
        f.write_fmt(fmt!("{} {}{}", self.store, sectors, self.features))
    }
}
