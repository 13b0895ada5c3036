// SPDX-License-Identifier: GPL-2.0

//! Discards, and the zeroer.

use super::{
    per_bio::{
        CloneBio,
        PerBioData, //
    },
    work_id,
    CloneTarget, //
};
use crate::{
    dm::bio::{
        BlkStatus,
        MapBio,
        Mapped, //
    },
    logic::{
        clone::{
            map::Run,
            slots::{
                FillKind,
                FillResult,
                Reservation, //
            },
            status::Mode, //
        },
        regions::{
            Region,
            RegionRange, //
        }, //
    },
    sys::noio::NoIo, //
};
use kernel::{
    sync::{
        atomic::Relaxed,
        Arc,
        ArcBorrow, //
    },
    workqueue::WorkItem, //
};

/// Maps a discard. C counterpart: `process_discard_bio()`.
pub(super) fn map_discard<'a>(
    this: ArcBorrow<'_, CloneTarget>,
    bio: MapBio<'a, PerBioData>,
) -> Mapped<'a> {
    let metadata = &this.metadata;
    let touched = metadata.geometry().touched(bio.sector(), bio.sectors());
    if metadata.is_hydration_done() || metadata.map().all_set(touched) {
        if this.discard_passdown.load(Relaxed) {
            return bio.remap(&this.destination);
        }
        return bio.end(BlkStatus::OK);
    }
    if metadata.mode() != Mode::ReadWrite {
        return bio.end(BlkStatus::OK);
    }
    // Leave it to the worker: the discard may cover many regions, and submitting it may sleep.
    let (bio, mapped) = bio.take();
    this.reevaluate(Some(bio));
    mapped
}

impl CloneTarget {
    /// Maximum number of regions that are marked at a time, with interrupts disabled: 8 KiB of the
    /// map.
    pub(super) const MAX_MARKED_REGIONS: u64 = 1 << 16;

    /// Marks the whole regions of a discard, then passes it down. Process context.
    ///
    /// A region that is being copied is not marked before its copy has ended: the copy would
    /// overwrite data that is written after the discard. The discard waits for such regions. All
    /// others are marked at once, so the wait is bounded.
    pub(super) fn process_discard(self: ArcBorrow<'_, Self>, mut bio: CloneBio) {
        let metadata = &self.metadata;
        let range = metadata.geometry().covered(bio.sector(), bio.sectors());
        if range.is_empty() || metadata.mode() != Mode::ReadWrite {
            return bio.end(BlkStatus::OK);
        }
        if self.zero_discards {
            self.deferred.lock().zeroing.push(bio);
            self.queue
                .enqueue::<CloneTarget, { work_id::ZEROER }>(self.into());
            return;
        }
        let mut next = range.start;
        let mut busy = None;
        while next < range.end {
            let rest = RegionRange::new(next, range.end);
            let mut state = metadata.state().lock();
            let clear = match metadata.map().run(rest.first(Self::MAX_MARKED_REGIONS)) {
                Run::Set(len) => {
                    next = Region(next.get().saturating_add(len));
                    continue;
                }
                Run::Clear(len) => rest.first(len),
            };
            if let Some((slot, in_flight)) = state.slots.inflight.first_overlap(clear) {
                if in_flight.start <= next {
                    busy = Some(slot);
                    next = in_flight.end;
                    continue;
                }
            }
            let clear = clear.first(state.slots.inflight.clear_prefix(clear));
            if !state.slots.logs.reserve(1) {
                drop(state);
                return self.stall(bio);
            }
            let was_dirty = metadata.is_dirty();
            metadata.mark_hydrated(&mut state, clear);
            let discarded = &mut state.statistics.discarded;
            *discarded = discarded.saturating_add(clear.len());
            let is_half_full = state.slots.logs.is_half_full();
            drop(state);
            self.schedule_commit(was_dirty, is_half_full);
            next = clear.end;
        }
        if let Some(slot) = busy {
            // The slot may be free by now: then decide again at once.
            let rejected = metadata.state().lock().wait(slot, bio);
            return self.reevaluate(rejected);
        }
        let (start, len) = metadata.geometry().extent(range);
        if self.discard_passdown.load(Relaxed) && bio.trim(start, len) {
            bio.submit(&self.destination);
        } else {
            bio.end(BlkStatus::OK);
        }
    }

    /// Writes zeros to those whole regions of a discard that are not hydrated, and marks them. May
    /// sleep.
    ///
    /// The discard is not passed down: a discarded range of the destination need not read as zeros.
    pub(super) fn zero_discard(self: ArcBorrow<'_, Self>, bio: CloneBio) {
        let metadata = &self.metadata;
        let mut rest = metadata.geometry().covered(bio.sector(), bio.sectors());
        while !rest.is_empty() && metadata.mode() == Mode::ReadWrite {
            if let Run::Set(len) = metadata.map().run(rest) {
                rest = RegionRange::new(Region(rest.start.get().saturating_add(len)), rest.end);
                continue;
            }
            let mut state = metadata.state().lock();
            let wanted = rest.first(self.max_copy_regions());
            let reservation = state
                .slots
                .reserve_run(metadata.map(), wanted, FillKind::Overwrite);
            match reservation {
                Reservation::Hydrated => {}
                Reservation::InFlight(slot) => {
                    let rejected = state.wait(slot, bio);
                    drop(state);
                    return self.reevaluate(rejected);
                }
                Reservation::NoRoom => {
                    drop(state);
                    return self.stall(bio);
                }
                Reservation::Reserved(slot, range) => {
                    drop(state);
                    let (start, len) = metadata.geometry().extent(range);
                    let mut zero_buffer = self.zero_buffer.lock();
                    let result =
                        self.destination_io
                            .zero(&self.destination, start, len, &mut zero_buffer);
                    drop(zero_buffer);
                    let filled = match result {
                        Ok(()) => FillResult::Zeroed,
                        Err(_) => FillResult::OverwriteFailed,
                    };
                    self.complete_fill(slot, filled);
                    if let Err(error) = result {
                        return bio.end(error.into());
                    }
                    rest = RegionRange::new(range.end, rest.end);
                }
            }
        }
        bio.end(BlkStatus::OK)
    }
}

/// The zeroer: writes zeros for discards.
impl WorkItem<{ work_id::ZEROER }> for CloneTarget {
    type Pointer = Arc<CloneTarget>;

    fn run(this: Arc<CloneTarget>) {
        let _noio = NoIo::enter();
        loop {
            let next = this.deferred.lock().zeroing.pop();
            let Some(bio) = next else { return };
            this.as_arc_borrow().zero_discard(bio);
        }
    }
}
