// SPDX-License-Identifier: GPL-2.0

//! What a clone keeps in each bio.

use crate::{
    dm::bio::{
        Bio,
        BioQueue, //
    },
    logic::clone::inflight::Slot, //
};

/// What `end_io` must know of a bio.
#[derive(Clone, Copy, PartialEq, Eq, zerocopy_derive::FromBytes, zerocopy_derive::IntoBytes)]
#[repr(C)]
pub(crate) struct PerBioData {
    kind: u32,
    /// Of the slot.
    generation: u32,
}

impl PerBioData {
    /// Nothing to do.
    pub(super) const PLAIN: PerBioData = PerBioData::new(0);
    /// A read or write that the sweep yields to.
    pub(super) const COUNTED: PerBioData = PerBioData::new(1);
    /// A flush that has been sent to the destination.
    pub(super) const FLUSH: PerBioData = PerBioData::new(2);
    /// From here on slots.
    const FIRST_SLOT: u32 = 3;
    /// Beside a slot: the bio is to end only after a commit. Kept here because the block layer
    /// takes the flag off a bio for a destination without a volatile cache.
    const FUA: u32 = 1 << 31;

    pub(super) const fn new(kind: u32) -> Self {
        PerBioData {
            kind,
            generation: 0,
        }
    }

    /// An overwrite that fills the regions of a slot; counted too.
    pub(super) fn overwrite(slot: Slot, bio: &CloneBio) -> Self {
        let fua = if bio.is_fua() { Self::FUA } else { 0 };
        let (place, generation) = slot.to_raw();
        PerBioData {
            kind: place.saturating_add(Self::FIRST_SLOT) | fua,
            generation,
        }
    }

    /// The slot of an overwrite.
    pub(super) fn slot(self) -> Option<Slot> {
        let kind = self.kind & !Self::FUA;
        let place = kind.checked_sub(Self::FIRST_SLOT)?;
        Some(Slot::from_raw(place, self.generation))
    }

    /// Whether an overwrite is to end only after a commit.
    pub(super) fn is_fua(self) -> bool {
        self.kind & Self::FUA != 0
    }
}

pub(super) type CloneBio = Bio<PerBioData>;

pub(super) type CloneBioQueue = BioQueue<PerBioData>;
