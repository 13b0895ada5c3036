// SPDX-License-Identifier: GPL-2.0

//! Pending exceptions and free chunks of a COW device, under one lock.
//!
//! Chunks are given out and their exceptions become pending in one step, so that no two writes
//! reserve the same chunk of the origin.
//!
//! C counterparts: `__insert_pending_exception()` and `persistent_prepare_exception()`.

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

/// The maximum number of pending exceptions of a snapshot. Each may be many chunks long.
pub(super) const MAX_PENDING: usize = 512;

/// The bios that wait for a pending exception.
///
/// C counterpart: `struct dm_snap_pending_exception`, whose fields have these names.
#[derive(Default)]
pub(crate) struct WaitingBios {
    /// Writes to the snapshot, already remapped to the COW device.
    pub(crate) snapshot_bios: BioQueue<PerBioData>,
    /// The write that is the data of the exception. Its I/O is done; it is completed when the
    /// record is durable.
    pub(crate) full_bio: Option<Bio<PerBioData>>,
    /// Writes to the origin.
    pub(crate) origin_bios: BioQueue<PerBioData>,
}

/// The free space on a COW device.
pub(crate) enum FreeSpace {
    /// Of a persistent store: each chunk comes with a record.
    Persistent(PersistentAllocator),
    /// Of a transient store.
    Transient(TransientAllocator),
}

impl FreeSpace {
    /// Takes up to `most` consecutive chunks of a COW device of `cow` sectors: the first, and how
    /// many. `None` if there is no space.
    fn allocate(&mut self, most: u64, cow: Sectors) -> Option<(CowChunk, u64)> {
        match self {
            FreeSpace::Persistent(free) => free.allocate(most, cow),
            FreeSpace::Transient(free) => free.allocate(most, cow),
        }
    }

    /// Returns how many chunks [`allocate`](Self::allocate) would take.
    fn available(&self, most: u64, cow: Sectors) -> u64 {
        let found = match self {
            FreeSpace::Persistent(free) => free.clone().allocate(most, cow),
            FreeSpace::Transient(free) => free.clone().allocate(most, cow),
        };
        found.map_or(0, |(_, len)| len)
    }

    /// Returns how much of the COW device is in use.
    pub(super) fn used(&self) -> Sectors {
        match self {
            FreeSpace::Persistent(free) => free.used(),
            FreeSpace::Transient(free) => free.used(),
        }
    }
}

/// Pending exceptions, and the free space for more. Locked by [`CowStore::allocation`].
pub(crate) struct Allocation {
    pub(crate) pending: PendingExceptions<WaitingBios>,
    pub(crate) free: FreeSpace,
}

/// What a store has of a chunk, and for how many chunks from there on the same is true.
pub(crate) enum ChunkState {
    /// Its exception is completed, and no read of the origin that came before it is in flight.
    Completed(CowChunk, u64),
    /// Its exception is pending.
    Pending(Seq, u64),
    /// It has no exception.
    Hole(u64),
}

/// Why [`CowStore::reserve`] has reserved nothing.
pub(crate) enum ReserveError {
    /// The hole has meanwhile become shorter than the least number of chunks.
    Changed,
    /// Too many exceptions are pending. The caller waits until some are completed.
    Busy,
    /// The COW device is full.
    NoSpace,
}

/// Returns how many chunks of a snapshot may be pending before writes wait for them. Any context.
fn threshold() -> u64 {
    u64::from(params::snapshot_threshold()).max(1)
}

impl CowStore {
    /// Returns what the store has of a chunk, and of up to `most` chunks from there on. Any
    /// context.
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

    /// Makes a pending exception for a hole that starts at `old`, of `least` up to `most` chunks.
    /// Any context.
    ///
    /// # Errors
    ///
    /// See [`ReserveError`].
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
        if allocation.free.available(most, cow.sectors()) < least {
            return Err(ReserveError::NoSpace);
        }
        let Some((new, len)) = allocation.free.allocate(most, cow.sectors()) else {
            return Err(ReserveError::NoSpace);
        };
        let run = Run { old, new, len };
        match allocation.pending.add(run, stage, WaitingBios::default()) {
            Ok(seq) => Ok((seq, run)),
            // Not reached: `has_room` was true under the same lock.
            Err(_) => Err(ReserveError::Busy),
        }
    }
}
