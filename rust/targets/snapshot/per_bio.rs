// SPDX-License-Identifier: GPL-2.0

//! Per-bio data of the snapshot targets: what the end of a bio means.
//!
//! C counterpart: `struct dm_snap_tracked_chunk`.

use crate::logic::snapshot::{
    pending::Seq,
    tracked_reads::Generation, //
};
use zerocopy_derive::{
    FromBytes,
    IntoBytes, //
};

/// A [`BioKind`] in eight bytes.
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(transparent)]
pub(crate) struct PerBioData(u64);

/// What a bio is for its target.
pub(super) enum BioKind {
    /// Its end needs no work.
    None,
    /// A tracked bio, with its stripe of the exception table: a read that goes to the origin, or,
    /// in a merge, a write to the COW device.
    Tracked(usize, Generation),
    /// A write of whole chunks that is the data of a pending exception, and whether it has failed.
    FullChunkWrite(Seq, bool),
    /// A discard for which the worker writes zeros to the COW device.
    ZeroedDiscard,
    /// A write to the origin that waits for exceptions; see [`PerBioData::origin_id`].
    OriginWrite,
}

impl PerBioData {
    /// See [`BioKind::None`].
    pub(super) const NONE: PerBioData = PerBioData(0);
    /// See [`BioKind::ZeroedDiscard`].
    pub(super) const ZEROED_DISCARD: PerBioData = PerBioData(3 << Self::SHIFT);

    const SHIFT: u32 = 60;
    const FAILED: u64 = 1 << 59;
    const VALUE: u64 = Self::FAILED - 1;

    /// See [`BioKind::Tracked`].
    pub(super) fn tracked(stripe: usize, generation: Generation) -> Self {
        // CAST: The number of a stripe fits, since `usize` has at most 64 bits.
        PerBioData(1 << Self::SHIFT | (stripe as u64) << 1 | u64::from(generation.to_bit()))
    }

    /// See [`BioKind::FullChunkWrite`].
    pub(super) fn full_chunk_write(seq: Seq) -> Self {
        PerBioData(2 << Self::SHIFT | seq.to_bits() & Self::VALUE)
    }

    /// Records in a [`BioKind::FullChunkWrite`] whether it has failed.
    pub(super) fn with_failure(self, failed: bool) -> Self {
        PerBioData(if failed {
            self.0 | Self::FAILED
        } else {
            self.0
        })
    }

    /// See [`BioKind::OriginWrite`]; `id` is that of its origin target.
    pub(super) fn origin_write(id: u32) -> Self {
        PerBioData(4 << Self::SHIFT | u64::from(id))
    }

    /// Returns the number of the origin target of a [`BioKind::OriginWrite`].
    pub(super) fn origin_id(self) -> u64 {
        self.0 & Self::VALUE
    }

    /// Returns what the bio is for its target.
    pub(super) fn kind(self) -> BioKind {
        let value = self.0 & Self::VALUE;
        match self.0 >> Self::SHIFT {
            // CAST: The number of a stripe came from a `usize`.
            1 => BioKind::Tracked((value >> 1) as usize, Generation::from_bit(value & 1 != 0)),
            2 => BioKind::FullChunkWrite(Seq::from_bits(value), self.0 & Self::FAILED != 0),
            3 => BioKind::ZeroedDiscard,
            4 => BioKind::OriginWrite,
            _ => BioKind::None,
        }
    }
}
