// SPDX-License-Identifier: GPL-2.0

//! The I/O path of a bio, from `map` to `end_io`.
//!
//! ```text
//!  map --+- all regions hydrated --------------------------------------> destination
//!        |
//!        +- read, cut where hydrated and other regions meet -----------> destination or source
//!        |
//!        +- write +- hydrated regions ---------------------------------> destination
//!        |        +- whole regions: overwrite -> destination -> end_io: mark, release waiters
//!        |        +- part of a region: wait for its copy -> worker ----> destination
//!        |
//!        +- discard: wait for copies in its range -> (zeroer: zeros) -> mark -> destination or end
//!        |
//!        +- flush, FUA: if a commit is due, committer -----------------> destination or end
//! ```
//!
//! A region in flight (copied or overwritten) has a slot in `RegionState::slots`. The state of a
//! region changes under the state lock only, and a decision that depends on it is made under this
//! lock. Hence at most one I/O fills a region at a time, no copy of a marked region is outstanding,
//! and no discard marks a region that a copy could still write.
//!
//! Deferred bios are in `deferred.rs`; what follows the end of an overwrite or copy is in
//! `complete.rs`.

use super::{
    discard::map_discard,
    metadata::RegionState,
    per_bio::{
        CloneBio,
        PerBioData, //
    },
    CloneTarget, //
};
use crate::{
    dm::bio::{
        BlkStatus,
        EndBio,
        Ended,
        MapBio,
        Mapped,
        Op, //
    },
    logic::{
        clone::{
            inflight::Slot,
            map::Run,
            region_copy::CopyReason,
            slots::{
                FillKind,
                FillResult,
                WriteConditions,
                WriteDecision, //
            },
            status::Mode, //
        },
        regions::RegionRange, //
    },
    sys::irq_lock::IrqGuard, //
};
use kernel::sync::{
    atomic::Full,
    ArcBorrow, //
};

/// Maps a bio: see [`Target::map`](crate::dm::target::Target::map). C counterpart: `clone_map()`.
#[inline]
pub(super) fn map<'a>(this: ArcBorrow<'_, CloneTarget>, bio: MapBio<'a, PerBioData>) -> Mapped<'a> {
    let plain = !bio.is_flush() && !bio.is_fua() && bio.op() != Op::Discard;
    if plain && this.metadata.is_passthrough() {
        return bio.remap(&this.destination);
    }
    map_tracked(this, bio)
}

/// Maps a bio while regions are tracked, and every flush, FUA write and discard.
#[inline(never)]
fn map_tracked<'a>(
    this: ArcBorrow<'_, CloneTarget>,
    mut bio: MapBio<'a, PerBioData>,
) -> Mapped<'a> {
    if this.metadata.mode() == Mode::Fail {
        return bio.kill();
    }
    bio.set_per_bio(PerBioData::PLAIN);
    if bio.is_flush() {
        return map_flush(this, bio);
    }
    match bio.op() {
        Op::Discard => return map_discard(this, bio),
        Op::Read | Op::Write | Op::WriteZeroes => {}
        Op::Other => return bio.kill(),
    }
    // Full order, against the hydrator's read of the counter.
    this.ios_in_flight.fetch_add(1, Full);
    bio.set_per_bio(PerBioData::COUNTED);
    if bio.op() == Op::Read {
        map_read(this, bio)
    } else {
        map_write(this, bio)
    }
}

/// Maps a flush: commits first if a commit is due.
fn map_flush<'a>(this: ArcBorrow<'_, CloneTarget>, mut bio: MapBio<'a, PerBioData>) -> Mapped<'a> {
    if !this.metadata.is_dirty() {
        bio.set_per_bio(PerBioData::FLUSH);
        return bio.remap(&this.destination);
    }
    let (bio, mapped) = bio.take();
    this.defer_flush(bio);
    mapped
}

/// Maps a read: to the destination or to the source, cut where the two meet.
fn map_read<'a>(this: ArcBorrow<'_, CloneTarget>, mut bio: MapBio<'a, PerBioData>) -> Mapped<'a> {
    let geometry = this.metadata.geometry();
    let touched = geometry.touched(bio.sector(), bio.sectors());
    let (device, len) = match this.metadata.map().run(touched) {
        Run::Set(len) => (&this.destination, len),
        Run::Clear(len) => {
            if this.hydrate_on_read {
                this.prioritize(touched.first(len));
            }
            (&this.source, len)
        }
    };
    accept_until(&mut bio, &this, touched.first(len));
    bio.remap(device)
}

/// Maps a write, cut to regions that share one [`WriteDecision`].
fn map_write<'a>(this: ArcBorrow<'_, CloneTarget>, mut bio: MapBio<'a, PerBioData>) -> Mapped<'a> {
    let metadata = &this.metadata;
    let touched = metadata.geometry().touched(bio.sector(), bio.sectors());
    // A write of zeros may touch a million regions, and they are marked in one go under the state
    // lock, with interrupts disabled.
    let touched = touched.first(CloneTarget::MAX_MARKED_REGIONS);
    let clear = match metadata.map().run(touched) {
        Run::Set(len) => {
            accept_until(&mut bio, &this, touched.first(len));
            return map_hydrated_write(this, bio);
        }
        Run::Clear(len) => touched.first(len),
    };
    // Unlike the worker, this checks the mode before the slots: a write that is going to fail does
    // not wait for a region in flight.
    let mode = metadata.mode();
    if mode != Mode::ReadWrite {
        accept_until(&mut bio, &this, clear);
        return bio.end(BlkStatus::IO_ERROR);
    }
    let first = RegionRange::single(touched.start);
    let covered = metadata
        .geometry()
        .covered(bio.sector(), bio.sectors())
        .intersect(clear);
    let (wanted, kind) = if covered.start == touched.start && !covered.is_empty() {
        (covered, FillKind::Overwrite)
    } else {
        (first, FillKind::Copy)
    };

    let mut state = metadata.state().lock();
    let conditions = WriteConditions {
        mode,
        requeue_copies: this.must_requeue_copies(),
    };
    let decision = state
        .slots
        .decide_write(metadata.map(), wanted, kind, conditions);
    match decision {
        WriteDecision::Submit => {
            drop(state);
            accept_until(&mut bio, &this, first);
            map_hydrated_write(this, bio)
        }
        WriteDecision::Wait(slot) => {
            accept_until(&mut bio, &this, first);
            let (bio, mapped) = bio.take();
            this.wait_for_slot(state, slot, bio);
            mapped
        }
        WriteDecision::Overwrite(slot, range) => {
            drop(state);
            accept_until(&mut bio, &this, range);
            bio.set_per_bio(PerBioData::overwrite(slot, &bio));
            bio.remap(&this.destination)
        }
        WriteDecision::Copy(slot) => {
            accept_until(&mut bio, &this, first);
            let (bio, mapped) = bio.take();
            this.wait_for_copy(state, slot, bio);
            mapped
        }
        WriteDecision::Requeue => {
            drop(state);
            this.io_done();
            bio.requeue()
        }
        WriteDecision::Fail => {
            drop(state);
            accept_until(&mut bio, &this, first);
            bio.end(BlkStatus::IO_ERROR)
        }
        WriteDecision::Stall => {
            drop(state);
            accept_until(&mut bio, &this, first);
            let (bio, mapped) = bio.take();
            this.stall(bio);
            mapped
        }
    }
}

/// Maps a write to hydrated regions: a FUA write commits first if a commit is due.
fn map_hydrated_write<'a>(
    this: ArcBorrow<'_, CloneTarget>,
    bio: MapBio<'a, PerBioData>,
) -> Mapped<'a> {
    if bio.is_fua() && this.metadata.is_dirty() {
        let (bio, mapped) = bio.take();
        this.defer_flush(bio);
        return mapped;
    }
    bio.remap(&this.destination)
}

/// Cuts a bio, which starts in a range of regions, to the end of the range.
fn accept_until(bio: &mut MapBio<'_, PerBioData>, clone: &CloneTarget, range: RegionRange) {
    bio.accept_partial(
        clone
            .metadata
            .geometry()
            .sectors_until(bio.sector(), range.end),
    )
}

/// Ends a bio: see [`Target::end_io`](crate::dm::target::Target::end_io). Any context.
///
/// C counterpart: `clone_endio()`.
#[inline]
pub(super) fn end_io<'a>(
    this: ArcBorrow<'_, CloneTarget>,
    bio: EndBio<'a, PerBioData>,
) -> Ended<'a> {
    if !bio.status().is_ok() && bio.is_flush() && bio.per_bio() == PerBioData::FLUSH {
        this.flush_failed();
    }
    if this.metadata.is_hydration_done() {
        // No region is in flight, and the counter is not used any more.
        return bio.done();
    }
    end_tracked(this, bio)
}

/// Ends a bio while regions are tracked.
#[inline(never)]
fn end_tracked<'a>(this: ArcBorrow<'_, CloneTarget>, mut bio: EndBio<'a, PerBioData>) -> Ended<'a> {
    let state = bio.per_bio();
    if state == PerBioData::PLAIN || state == PerBioData::FLUSH {
        return bio.done();
    }
    let mut status = bio.status();
    let mut filled = false;
    if let Some(slot) = state.slot() {
        let result = if status.is_ok() {
            FillResult::Filled
        } else {
            FillResult::OverwriteFailed
        };
        filled = matches!(this.complete_fill(slot, result), Some((_, true)));
        if status.is_ok() && !filled {
            // The data is on the destination, but reads still go to the source.
            status = BlkStatus::IO_ERROR;
        }
    }
    this.io_done();
    if filled && state.is_fua() {
        // The data is durable, but after a power cut reads would go to the source: commit first.
        // `end_io` is called again when the committer ends the bio.
        bio.set_per_bio(PerBioData::PLAIN);
        let (bio, ended) = bio.take();
        this.deferred.lock().fua_written.push(bio);
        this.wake_committer();
        return ended;
    }
    bio.done_with(status)
}

impl CloneTarget {
    /// Decides again on a write to one region, from the worker. Process context.
    pub(super) fn process_write(self: ArcBorrow<'_, Self>, mut bio: CloneBio) {
        let metadata = &self.metadata;
        let touched = metadata.geometry().touched(bio.sector(), bio.sectors());
        let kind = if self.is_overwrite(&bio) {
            FillKind::Overwrite
        } else {
            FillKind::Copy
        };
        let mut state = metadata.state().lock();
        let conditions = WriteConditions {
            mode: metadata.mode(),
            requeue_copies: self.must_requeue_copies(),
        };
        let decision = state
            .slots
            .decide_write(metadata.map(), touched, kind, conditions);
        match decision {
            WriteDecision::Submit => {
                drop(state);
                if bio.is_fua() && metadata.is_dirty() {
                    self.defer_flush(bio);
                } else {
                    bio.submit(&self.destination);
                }
            }
            WriteDecision::Wait(slot) => self.wait_for_slot(state, slot, bio),
            WriteDecision::Overwrite(slot, _) => {
                drop(state);
                bio.set_per_bio(PerBioData::overwrite(slot, &bio));
                bio.submit(&self.destination);
            }
            WriteDecision::Copy(slot) => self.wait_for_copy(state, slot, bio),
            WriteDecision::Requeue => {
                drop(state);
                bio.end(BlkStatus::REQUEUE);
            }
            WriteDecision::Fail => {
                drop(state);
                bio.end(BlkStatus::IO_ERROR);
            }
            WriteDecision::Stall => {
                drop(state);
                self.stall(bio);
            }
        }
    }

    /// Queues a bio on a slot.
    fn wait_for_slot(
        self: ArcBorrow<'_, Self>,
        mut state: IrqGuard<'_, RegionState>,
        slot: Slot,
        bio: CloneBio,
    ) {
        let rejected = state.wait(slot, bio);
        drop(state);
        self.reevaluate(rejected);
    }

    /// Queues a write on a slot, and starts the copy that it needs.
    fn wait_for_copy(
        self: ArcBorrow<'_, Self>,
        mut state: IrqGuard<'_, RegionState>,
        slot: Slot,
        bio: CloneBio,
    ) {
        let rejected = state.wait(slot, bio);
        let geometry = self.metadata.geometry();
        state.start_copy(slot, &self.ready_copies, geometry, CopyReason::Write);
        drop(state);
        self.reevaluate(rejected);
        self.wake_reader();
    }

    /// Whether writes that need a copy go back to device-mapper: it is suspended with `--noflush`,
    /// so the source need not answer.
    ///
    /// Called with the state lock held, so that no copy starts after
    /// [`give_up_copies`](CloneTarget::give_up_copies) has looked.
    fn must_requeue_copies(&self) -> bool {
        self.is_suspended() && self.handle.is_noflush_suspending()
    }

    /// Whether a bio needs no old data: it covers every region that it touches.
    ///
    /// C counterpart: `is_overwrite_bio()`.
    pub(super) fn is_overwrite(&self, bio: &CloneBio) -> bool {
        let geometry = self.metadata.geometry();
        let touched = geometry.touched(bio.sector(), bio.sectors());
        geometry.covered(bio.sector(), bio.sectors()) == touched
    }

    /// Counts the end of a read or write.
    fn io_done(self: ArcBorrow<'_, Self>) {
        if self.ios_in_flight.fetch_sub(1, Full) == 1 {
            self.wake_hydration();
        }
    }
}

impl RegionState {
    /// Queues a bio on a slot. Returns the bio if the slot is free, which the lock rules out.
    pub(super) fn wait(&mut self, slot: Slot, bio: CloneBio) -> Option<CloneBio> {
        match self.slots.inflight.get_mut(slot) {
            Some(hydration) => {
                hydration.waiters.push(bio);
                None
            }
            None => Some(bio),
        }
    }
}
