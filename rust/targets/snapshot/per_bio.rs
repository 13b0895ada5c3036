// SPDX-License-Identifier: GPL-2.0

//! What is kept with a bio.

use crate::logic::snapshot::{
    pending::Seq,
    tracked_reads::Generation, //
};
use zerocopy_derive::{
    FromBytes,
    IntoBytes, //
};

/// What is kept with a bio: what its end means.
#[derive(Clone, Copy, FromBytes, IntoBytes)]
#[repr(transparent)]
pub(crate) struct PerBioData(u64);

/// The meaning of a [`PerBioData`].
pub(super) enum BioKind {
    /// Nothing.
    None,
    /// A reader of the origin, counted in a part of the table.
    Tracked(usize, Generation),
    /// The data of an exception; and whether it failed.
    FullChunkWrite(Seq, bool),
    /// A discard that becomes zeros.
    ZeroedDiscard,
    /// A write to the origin, of the target with such a number.
    OriginWrite,
}

impl PerBioData {
    /// Its end means nothing.
    pub(super) const NONE: PerBioData = PerBioData(0);
    /// See [`BioKind::ZeroedDiscard`].
    pub(super) const ZEROED_DISCARD: PerBioData = PerBioData(3 << Self::SHIFT);

    const SHIFT: u32 = 60;
    const FAILED: u64 = 1 << 59;
    const VALUE: u64 = Self::FAILED - 1;

    /// See [`BioKind::Tracked`].
    pub(super) fn tracked(stripe: usize, generation: Generation) -> Self {
        // CAST: The number of a part, and usize has at most 64 bits.
        PerBioData(1 << Self::SHIFT | (stripe as u64) << 1 | u64::from(generation.to_bit()))
    }

    /// See [`BioKind::FullChunkWrite`].
    pub(super) fn full_chunk_write(seq: Seq) -> Self {
        PerBioData(2 << Self::SHIFT | seq.to_bits() & Self::VALUE)
    }

    pub(super) fn with_failure(self, failed: bool) -> Self {
        PerBioData(if failed {
            self.0 | Self::FAILED
        } else {
            self.0
        })
    }

    /// See [`BioKind::OriginWrite`].
    pub(super) fn origin_write(id: u32) -> Self {
        PerBioData(4 << Self::SHIFT | u64::from(id))
    }

    /// The number of the origin's target, if it is a write to one.
    pub(super) fn origin_id(self) -> u64 {
        self.0 & Self::VALUE
    }

    /// What the stamp means.
    pub(super) fn kind(self) -> BioKind {
        let value = self.0 & Self::VALUE;
        match self.0 >> Self::SHIFT {
            // CAST: The number of a part.
            1 => BioKind::Tracked((value >> 1) as usize, Generation::from_bit(value & 1 != 0)),
            2 => BioKind::FullChunkWrite(Seq::from_bits(value), self.0 & Self::FAILED != 0),
            3 => BioKind::ZeroedDiscard,
            4 => BioKind::OriginWrite,
            _ => BioKind::None,
        }
    }
}
