// SPDX-License-Identifier: GPL-2.0

//! The pending exceptions of a store, and the free space on its COW device.

use super::CowStore;
use crate::{
    dm::{
        bio::{
            Bio,
            BioQueue, //
        },
        device::Device, //
    },
    logic::{
        snapshot::{
            chunks::{
                Chunk,
                CowChunk, //
            },
            exception_table::Lookup,
            layout::{
                PersistentAllocator,
                TransientAllocator, //
            },
            pending::{
                PendingExceptions,
                Seq,
                Stage, //
            },
            run::Run, //
        },
        units::Sectors, //
    },
    sys::params,
    targets::snapshot::per_bio::PerBioData, //
};
use kernel::prelude::*;

/// Exceptions that a snapshot may have on their way; each may be many chunks long.
pub(super) const MAX_PENDING: usize = 512;

/// What waits for an exception.
#[derive(Default)]
pub(crate) struct WaitingBios {
    /// Writes to the snapshot, with their place on the COW device.
    pub(crate) snapshot_bios: BioQueue<PerBioData>,
    /// The write that is the data of the exception. It has ended, and is told so when the record is
    /// durable.
    pub(crate) full_bio: Option<Bio<PerBioData>>,
    /// Writes to the origin.
    pub(crate) origin_bios: BioQueue<PerBioData>,
}

/// Which space is free.
pub(crate) enum FreeSpace {
    Persistent(PersistentAllocator),
    Transient(TransientAllocator),
}

impl FreeSpace {
    fn allocate(&mut self, most: u64, cow: Sectors) -> Option<(CowChunk, u64)> {
        match self {
            FreeSpace::Persistent(it) => it.allocate(most, cow),
            FreeSpace::Transient(it) => it.allocate(most, cow),
        }
    }

    /// How much [`allocate`](Self::allocate) would give.
    fn available(&self, most: u64, cow: Sectors) -> u64 {
        let found = match self {
            FreeSpace::Persistent(it) => it.clone().allocate(most, cow),
            FreeSpace::Transient(it) => it.clone().allocate(most, cow),
        };
        found.map_or(0, |(_, len)| len)
    }

    pub(super) fn used(&self) -> Sectors {
        match self {
            FreeSpace::Persistent(it) => it.used(),
            FreeSpace::Transient(it) => it.used(),
        }
    }
}

/// Exceptions on their way, and space for more.
pub(crate) struct Allocation {
    pub(crate) pending: PendingExceptions<WaitingBios>,
    pub(crate) free: FreeSpace,
}

/// What there is of a chunk, and for how many from it on.
pub(crate) enum ChunkState {
    /// On the COW device, and nobody reads it from the origin any more.
    Completed(CowChunk, u64),
    /// On its way.
    Pending(Seq, u64),
    /// On the origin only.
    Hole(u64),
}

/// Why chunks cannot be reserved.
pub(crate) enum ReserveError {
    /// There is no hole of that length any more.
    Changed,
    /// Too many exceptions are pending. The caller waits until some are complete.
    Busy,
    /// The COW device has no room for that many chunks.
    NoSpace,
}

/// How many chunks a snapshot may have on their way before others wait.
fn threshold() -> u64 {
    u64::from(params::snapshot_threshold()).max(1)
}

impl CowStore {
    /// What there is of a chunk. Under the ledger's lock.
    pub(crate) fn lookup(
        &self,
        allocation: &mut Allocation,
        chunk: Chunk,
        most: u64,
    ) -> ChunkState {
        if let Some(pending) = allocation.pending.find(chunk) {
            if let Some((_, left)) = pending.cow_chunk(chunk) {
                return ChunkState::Pending(pending.seq, left.min(most));
            }
        }
        let most = allocation.pending.gap(chunk, most);
        match self.find(chunk, most) {
            Lookup::Mapped(new, len) => ChunkState::Completed(new, len),
            Lookup::Hole(len) => ChunkState::Hole(len),
        }
    }

    /// Gives out chunks for a hole, so many at least and at most. Under the ledger's lock.
    pub(crate) fn reserve(
        &self,
        allocation: &mut Allocation,
        cow: &Device,
        old: Chunk,
        stage: Stage,
        (least, most): (u64, u64),
    ) -> Result<(Seq, Run), ReserveError> {
        if allocation.pending.chunks() >= threshold() || !allocation.pending.has_room() {
            return Err(ReserveError::Busy);
        }
        let most = match self.lookup(allocation, old, most) {
            ChunkState::Hole(len) if len >= least => len,
            _ => return Err(ReserveError::Changed),
        };
        let offered = allocation.free.available(most, cow.sectors());
        if offered < least {
            return Err(ReserveError::NoSpace);
        }
        let Some((new, len)) = allocation.free.allocate(most, cow.sectors()) else {
            return Err(ReserveError::NoSpace);
        };
        let run = Run { old, new, len };
        match allocation.pending.add(run, stage, WaitingBios::default()) {
            Ok(seq) => Ok((seq, run)),
            // There was room just now.
            Err(_) => Err(ReserveError::Busy),
        }
    }
}
