// SPDX-License-Identifier: GPL-2.0

//! The per-bio data of a clone: what a bio carries from `map` to `end_io`.

use crate::{
    dm::bio::{
        Bio,
        BioQueue, //
    },
    logic::clone::inflight::Slot, //
};

/// What `end_io` has to do for a bio.
#[derive(Clone, Copy, PartialEq, Eq, zerocopy_derive::FromBytes, zerocopy_derive::IntoBytes)]
#[repr(C)]
pub(crate) struct PerBioData {
    kind: u32,
    /// The generation of the slot.
    generation: u32,
}

impl PerBioData {
    /// `end_io` has nothing to do.
    pub(super) const PLAIN: PerBioData = PerBioData::new(0);
    /// A read or write that is counted in `ios_in_flight`.
    pub(super) const COUNTED: PerBioData = PerBioData::new(1);
    /// A flush that was sent to the destination.
    pub(super) const FLUSH: PerBioData = PerBioData::new(2);
    /// The first value that stands for a slot: an overwrite, which is counted too.
    const FIRST_SLOT: u32 = 3;
    /// Set beside a slot: the bio must not end before a commit.
    ///
    /// It is kept here because the block layer clears `REQ_FUA` for a destination without a
    /// volatile cache.
    const FUA: u32 = 1 << 31;

    pub(super) const fn new(kind: u32) -> Self {
        PerBioData {
            kind,
            generation: 0,
        }
    }

    /// Marks a bio as the overwrite of the regions of a slot.
    pub(super) fn overwrite(slot: Slot, bio: &CloneBio) -> Self {
        let fua = if bio.is_fua() { Self::FUA } else { 0 };
        let (place, generation) = slot.to_raw();
        PerBioData {
            kind: place.saturating_add(Self::FIRST_SLOT) | fua,
            generation,
        }
    }

    /// Returns the slot of an overwrite.
    pub(super) fn slot(self) -> Option<Slot> {
        let kind = self.kind & !Self::FUA;
        let place = kind.checked_sub(Self::FIRST_SLOT)?;
        Some(Slot::from_raw(place, self.generation))
    }

    /// Whether an overwrite must not end before a commit.
    pub(super) fn is_fua(self) -> bool {
        self.kind & Self::FUA != 0
    }
}

/// A bio of a clone.
pub(super) type CloneBio = Bio<PerBioData>;

/// A list of bios of a clone.
pub(super) type CloneBioQueue = BioQueue<PerBioData>;
