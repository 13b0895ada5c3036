// SPDX-License-Identifier: GPL-2.0

//! The way of a bio. The workers that take deferred bios on are in `work.rs`.
//!
//! ```text
//!  map ──┬─ nothing left to track ───────────────────────────────────────────────▶ destination
//!        ├─ read ── cut where hydrated and not hydrated meet ────────────────────▶ destination or source
//!        ├─ write ┬ hydrated run ────────────────────────────────────────────────▶ destination
//!        │        ├ covers whole regions: "overwrite" ─▶ destination ─▶ end_io: mark, release waiters
//!        │        └ part of a region ─▶ waits for its copy ─▶ worker ────────────▶ destination
//!        ├─ discard ─ waits for copies in its range ─▶ (zeroer: zeros) ─▶ mark ─▶ passed down or ended
//!        └─ flush, FUA ─ if something is dirty ─▶ committer: commit ─▶ ended or ─▶ destination
//! ```
//!
//! A region in flight (copied or overwritten) has a slot in [`State::inflight`]. Whether a region
//! is hydrated, in flight or neither is decided under the state lock, and so is every change of it.
//! So at most one I/O fills a region, no copy of a region is outstanding once it is marked, and no
//! discard marks a region that a copy could still write.
//!
//! [`State::inflight`]: super::metadata::State

use super::{
    metadata::State,
    region_copy::Segment,
    work_id,
    CloneTarget,
    COMMIT_DELAY, //
};
use crate::{
    dm::bio::{
        Bio,
        BioQueue,
        BlkStatus,
        EndBio,
        Ended,
        MapBio,
        Mapped,
        Op, //
    },
    dm::io::RequestList,
    logic::{
        clone::{
            hydration::PriorityRanges, //
            inflight::Slot,
            map::Run,
            region_copy::CopyReason,
            slots::{
                FillKind,
                FillResult,
                Reservation,
                WriteConditions,
                WriteDecision, //
            },
            status::Mode,
        },
        regions::{
            Region,
            RegionRange, //
        }, //
    },
    sys::{
        irq_lock::IrqGuard,
        queue::enqueue_delayed, //
    }, //
};
use kernel::{
    sync::{
        atomic::{
            Full,
            Relaxed, //
        },
        ArcBorrow, //
    }, //
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
    const PLAIN: PerBioData = PerBioData::new(0);
    /// A read or write that the sweep yields to.
    const COUNTED: PerBioData = PerBioData::new(1);
    /// A flush that has been sent to the destination.
    pub(super) const FLUSH: PerBioData = PerBioData::new(2);
    /// From here on slots.
    const FIRST_SLOT: u32 = 3;
    /// Beside a slot: the bio is to end only after a commit. Kept here because the block layer
    /// takes the flag off a bio for a destination without a volatile cache.
    const FUA: u32 = 1 << 31;

    const fn new(kind: u32) -> Self {
        PerBioData {
            kind,
            generation: 0,
        }
    }

    /// An overwrite that fills the regions of a slot; counted too.
    fn overwrite(slot: Slot, bio: &CloneBio) -> Self {
        let fua = if bio.is_fua() { Self::FUA } else { 0 };
        let (place, generation) = slot.to_raw();
        PerBioData {
            kind: place.saturating_add(Self::FIRST_SLOT) | fua,
            generation,
        }
    }

    /// The slot of an overwrite.
    fn slot(self) -> Option<Slot> {
        let kind = self.kind & !Self::FUA;
        let place = kind.checked_sub(Self::FIRST_SLOT)?;
        Some(Slot::from_raw(place, self.generation))
    }

    /// Whether an overwrite is to end only after a commit.
    fn is_fua(self) -> bool {
        self.kind & Self::FUA != 0
    }
}

type CloneBio = Bio<PerBioData>;
type Queue = BioQueue<PerBioData>;

/// Bios between `map` and the device below.
#[derive(Default)]
pub(super) struct DeferredLists {
    /// Their region is hydrated: to be submitted.
    pub(super) ready: Queue,
    /// To be looked at again: their copy failed with others, a discard's range became free, or
    /// there was no room.
    pub(super) retry: Queue,
    /// Writes that need a copy for which there is no slot, or no room in the log.
    pub(super) stalled_copies: Queue,
    /// Overwrites for which there is no slot or no room in the log, and discards that lack the
    /// latter.
    pub(super) stalled: Queue,
    /// Flushes and FUA writes: to be submitted or ended after a commit.
    pub(super) flush: Queue,
    /// FUA overwrites whose data is written: to be ended after a commit.
    pub(super) written: Queue,
    /// Pieces of copies that have been read or written.
    pub(super) segments: RequestList<Segment>,
    /// Discards that are to write zeros first.
    pub(super) zero: Queue,
    /// What is to be copied before all else.
    pub(super) priority: PriorityRanges,
}

/// See [`Target::map`](crate::dm::target::Target::map).
#[inline]
pub(super) fn map<'a>(this: ArcBorrow<'_, CloneTarget>, bio: MapBio<'a, PerBioData>) -> Mapped<'a> {
    let plain = !bio.is_flush() && !bio.is_fua() && bio.op() != Op::Discard;
    if plain && this.metadata.is_passthrough() {
        return bio.remap(&this.destination);
    }
    map_tracked(this, bio)
}

/// The same where there is something to decide.
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
    // Also orders this bio before the sweep's look at the counter.
    this.ios_in_flight.fetch_add(1, Full);
    bio.set_per_bio(PerBioData::COUNTED);
    if bio.op() == Op::Read {
        map_read(this, bio)
    } else {
        map_write(this, bio)
    }
}

/// See [`Target::end_io`](crate::dm::target::Target::end_io). Any context.
#[inline]
pub(super) fn end_io<'a>(
    this: ArcBorrow<'_, CloneTarget>,
    bio: EndBio<'a, PerBioData>,
) -> Ended<'a> {
    if !bio.status().is_ok() && bio.is_flush() && bio.per_bio() == PerBioData::FLUSH {
        this.flush_failed();
    }
    if this.metadata.is_hydration_done() {
        // Nothing is in flight, and nobody looks at the counter any more.
        return bio.done();
    }
    end_tracked(this, bio)
}

/// The same where there is something to do.
#[inline(never)]
fn end_tracked<'a>(this: ArcBorrow<'_, CloneTarget>, mut bio: EndBio<'a, PerBioData>) -> Ended<'a> {
    let state = bio.per_bio();
    if state == PerBioData::PLAIN || state == PerBioData::FLUSH {
        return bio.done();
    }
    let mut status = bio.status();
    let mut filled = false;
    if let Some(slot) = state.slot() {
        let how = if status.is_ok() {
            FillResult::Filled
        } else {
            FillResult::OverwriteFailed
        };
        filled = matches!(this.finish(slot, how), Some((_, true)));
        if status.is_ok() && !filled {
            // The data is on the destination, but a reader would not look for it there.
            status = BlkStatus::IO_ERROR;
        }
    }
    this.io_done();
    if filled && state.is_fua() {
        // Durable data, but a power cut would forget that it is there: commit first. The next
        // `end_io` ends it.
        bio.set_per_bio(PerBioData::PLAIN);
        let (bio, ended) = bio.take();
        this.deferred.lock().written.push(bio);
        this.wake_committer();
        return ended;
    }
    bio.done_with(status)
}

impl CloneTarget {
    /// A flush of the destination failed that no commit asked for. What it lost may be what fills a
    /// region just now: marking it would make the loss permanent. Any context.
    #[cold]
    fn flush_failed(self: ArcBorrow<'_, Self>) {
        if self.metadata.flush_failed() {
            self.wake_committer();
        }
    }
}

fn map_flush<'a>(this: ArcBorrow<'_, CloneTarget>, mut bio: MapBio<'a, PerBioData>) -> Mapped<'a> {
    if !this.metadata.is_dirty() {
        bio.set_per_bio(PerBioData::FLUSH);
        return bio.remap(&this.destination);
    }
    let (bio, mapped) = bio.take();
    this.defer_flush(bio);
    mapped
}

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
    accept(&mut bio, &this, touched.first(len));
    bio.remap(device)
}

/// Cuts a bio behind a range of regions that it starts in.
fn accept(bio: &mut MapBio<'_, PerBioData>, clone: &CloneTarget, range: RegionRange) {
    bio.accept_partial(
        clone
            .metadata
            .geometry()
            .sectors_until(bio.sector(), range.end),
    )
}

fn map_write<'a>(this: ArcBorrow<'_, CloneTarget>, mut bio: MapBio<'a, PerBioData>) -> Mapped<'a> {
    let metadata = &this.metadata;
    let touched = metadata.geometry().touched(bio.sector(), bio.sectors());
    // A request to write zeros can touch a million regions: what it fills is marked with interrupts
    // off.
    let touched = touched.first(CloneTarget::MAX_MARKED_REGIONS);
    let clear = match metadata.map().run(touched) {
        Run::Set(len) => {
            accept(&mut bio, &this, touched.first(len));
            return map_hydrated_write(this, bio);
        }
        Run::Clear(len) => touched.first(len),
    };
    // Unlike the worker, this looks at the mode before the slots: a write to regions that are not
    // hydrated does not wait for them if it is going to fail.
    let mode = metadata.mode();
    if mode != Mode::ReadWrite {
        accept(&mut bio, &this, clear);
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
            accept(&mut bio, &this, first);
            map_hydrated_write(this, bio)
        }
        WriteDecision::Wait(slot) => {
            accept(&mut bio, &this, first);
            let (bio, mapped) = bio.take();
            this.wait_for_slot(state, slot, bio);
            mapped
        }
        WriteDecision::Overwrite(slot, range) => {
            drop(state);
            accept(&mut bio, &this, range);
            bio.set_per_bio(PerBioData::overwrite(slot, &bio));
            bio.remap(&this.destination)
        }
        WriteDecision::Copy(slot) => {
            accept(&mut bio, &this, first);
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
            accept(&mut bio, &this, first);
            bio.end(BlkStatus::IO_ERROR)
        }
        WriteDecision::Stall => {
            drop(state);
            accept(&mut bio, &this, first);
            let (bio, mapped) = bio.take();
            this.stall(bio);
            mapped
        }
    }
}

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

fn map_discard<'a>(this: ArcBorrow<'_, CloneTarget>, bio: MapBio<'a, PerBioData>) -> Mapped<'a> {
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
    // Not from here: there may be many regions to look at, and submitting it may wait.
    let (bio, mapped) = bio.take();
    this.retry(Some(bio));
    mapped
}

impl State {
    /// Lets a bio wait for a slot; gives it back if the slot is gone, which the lock rules out.
    fn wait(&mut self, slot: Slot, bio: CloneBio) -> Option<CloneBio> {
        match self.slots.inflight.get_mut(slot) {
            Some(filling) => {
                filling.waiters.push(bio);
                None
            }
            None => Some(bio),
        }
    }
}

impl CloneTarget {
    /// Ends a slot: marks its regions if they are filled, and sends on who waited. Any context.
    ///
    /// Returns the regions and whether they are marked; nothing if the slot has ended before.
    pub(super) fn finish(
        self: ArcBorrow<'_, Self>,
        slot: Slot,
        filled: FillResult,
    ) -> Option<(RegionRange, bool)> {
        let metadata = &self.metadata;
        let mut state = metadata.state().lock();
        let (range, hydration) = state.slots.remove(slot)?;
        let mut waiters = hydration.waiters;
        let marked = matches!(filled, FillResult::Filled | FillResult::Zeroed)
            && metadata.mode() == Mode::ReadWrite;
        let done = &mut state.statistics;
        let (counter, count) = match filled {
            FillResult::CopyFailed => (&mut done.failures, 1),
            _ if !marked => (&mut done.copied, 0),
            FillResult::Zeroed => (&mut done.discarded, range.len()),
            _ if hydration.copy.is_some() => (&mut done.copied, range.len()),
            _ => (&mut done.overwritten, range.len()),
        };
        *counter = counter.saturating_add(count);
        let was_dirty = metadata.is_dirty();
        if marked {
            metadata.mark_hydrated(&mut state, range);
        } else {
            state.slots.logs.unreserve(1);
        }
        let is_half_full = state.slots.logs.is_half_full();
        let idle = state.slots.inflight.is_empty();
        drop(state);

        if marked {
            self.release(&mut waiters);
        } else if filled == FillResult::CopyFailed && range.len() == 1 {
            self.fail(&mut waiters);
        } else if !waiters.is_empty() {
            // Somebody else's failure is not theirs; or the mode has changed, which the next look
            // finds.
            self.deferred.lock().retry.append(&mut waiters);
            self.wake_worker();
        }
        if marked {
            self.schedule_commit(was_dirty, is_half_full);
        }
        self.wake_stalled(Self::STALLED_STEP, Self::STALLED_STEP);
        self.wake_hydration();
        if idle && self.is_suspended() {
            self.idle.wake_all();
        }
        Some((range, marked))
    }

    /// Whether writes that need a copy go back to device-mapper: it suspends without flushing, and
    /// the source need not answer. Under the state lock, so that no copy begins behind the back of
    /// `give_up_copies`.
    fn must_requeue_copies(&self) -> bool {
        self.is_suspended() && self.handle.is_noflush_suspending()
    }

    /// A read or write has ended.
    fn io_done(self: ArcBorrow<'_, Self>) {
        if self.ios_in_flight.fetch_sub(1, Full) == 1 {
            self.wake_hydration();
        }
    }

    /// Sees to it that what was just marked will be committed. Any context.
    ///
    /// At once if the log fills up or nothing is left to hydrate; otherwise some time after the
    /// first change.
    fn schedule_commit(self: ArcBorrow<'_, Self>, was_dirty: bool, is_half_full: bool) {
        if is_half_full || self.metadata.is_hydration_done() {
            self.wake_committer();
        } else if !was_dirty {
            enqueue_delayed::<CloneTarget, { work_id::COMMIT_TIMER }>(self.into(), COMMIT_DELAY);
        }
    }

    /// Fails writes to a part of a region that cannot be copied. Who needs nothing of it goes on:
    /// discards, and writes to all of it.
    fn fail(self: ArcBorrow<'_, Self>, waiters: &mut Queue) {
        while let Some(bio) = waiters.pop() {
            if bio.op() == Op::Discard || self.is_overwrite(&bio) {
                self.retry(Some(bio));
            } else {
                bio.end(BlkStatus::IO_ERROR);
            }
        }
    }

    /// Whether a bio needs no old data: it covers each region that it touches.
    fn is_overwrite(&self, bio: &CloneBio) -> bool {
        let geometry = self.metadata.geometry();
        let touched = geometry.touched(bio.sector(), bio.sectors());
        geometry.covered(bio.sector(), bio.sectors()) == touched
    }

    /// Sends on bios whose region has just been marked.
    fn release(self: ArcBorrow<'_, Self>, waiters: &mut Queue) {
        if waiters.is_empty() {
            return;
        }
        let mut deferred = self.deferred.lock();
        while let Some(bio) = waiters.pop() {
            match bio.op() {
                Op::Discard => deferred.retry.push(bio),
                _ if bio.is_fua() => deferred.flush.push(bio),
                _ => deferred.ready.push(bio),
            }
        }
        let flush = !deferred.flush.is_empty();
        drop(deferred);
        self.wake_worker();
        if flush {
            self.wake_committer();
        }
    }

    /// A bio that must wait for a commit.
    fn defer_flush(self: ArcBorrow<'_, Self>, bio: CloneBio) {
        self.deferred.lock().flush.push(bio);
        self.wake_committer();
    }

    /// A bio that the worker is to look at again.
    fn retry(self: ArcBorrow<'_, Self>, bio: Option<CloneBio>) {
        if let Some(bio) = bio {
            self.deferred.lock().retry.push(bio);
            self.wake_worker();
        }
    }

    /// A bio for which there is no slot or no room in the log.
    ///
    /// The end of a slot makes room, and so does a commit. If there is no slot to end, or the log
    /// is what is full, a commit is asked for; it looks at stalled bios even if there is nothing to
    /// commit by then.
    fn stall(self: ArcBorrow<'_, Self>, bio: CloneBio) {
        let needs_copy = bio.op() != Op::Discard && !self.is_overwrite(&bio);
        let mut deferred = self.deferred.lock();
        if needs_copy {
            deferred.stalled_copies.push(bio);
        } else {
            deferred.stalled.push(bio);
        }
        drop(deferred);
        let state = self.metadata.state().lock();
        let commit = state.slots.inflight.is_empty() || state.slots.logs.is_half_full();
        drop(state);
        if commit {
            self.wake_committer();
        }
    }

    /// Stalled bios of each kind that are looked at again when one slot has ended.
    const STALLED_STEP: usize = 4;

    /// Lets the worker look at all stalled bios again. Any context.
    pub(super) fn wake_all_stalled(self: ArcBorrow<'_, Self>) {
        self.wake_stalled(usize::MAX, usize::MAX);
    }

    /// Lets the worker look at some of those stalled bios for which there is room. Any context.
    pub(super) fn wake_stalled_with_room(self: ArcBorrow<'_, Self>) {
        let mut state = self.metadata.state().lock();
        let mut step = |kind| match state.slots.has_room(kind) {
            true => Self::STALLED_STEP,
            false => 0,
        };
        let (copies, others) = (step(FillKind::Copy), step(FillKind::Overwrite));
        drop(state);
        self.wake_stalled(copies, others);
    }

    fn wake_stalled(self: ArcBorrow<'_, Self>, copies: usize, others: usize) {
        let mut guard = self.deferred.lock();
        let deferred = &mut *guard;
        let mut woken = false;
        for (stalled, most) in [
            (&mut deferred.stalled_copies, copies),
            (&mut deferred.stalled, others),
        ] {
            for _ in 0..most {
                let Some(bio) = stalled.pop() else {
                    break;
                };
                deferred.retry.push(bio);
                woken = true;
            }
        }
        drop(guard);
        if woken {
            self.wake_worker();
        }
    }

    pub(super) fn wake_worker(self: ArcBorrow<'_, Self>) {
        self.queue
            .enqueue::<CloneTarget, { work_id::WORKER }>(self.into());
    }

    pub(super) fn wake_committer(self: ArcBorrow<'_, Self>) {
        self.commit_queue
            .enqueue::<CloneTarget, { work_id::COMMITTER }>(self.into());
    }

    /// Decides again on a write to one region, outside of `map`. Process context.
    pub(super) fn write(self: ArcBorrow<'_, Self>, mut bio: CloneBio) {
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
        mut state: IrqGuard<'_, State>,
        slot: Slot,
        bio: CloneBio,
    ) {
        let rejected = state.wait(slot, bio);
        drop(state);
        self.retry(rejected);
    }

    /// Queues a write on a slot, and starts the copy that it needs.
    fn wait_for_copy(
        self: ArcBorrow<'_, Self>,
        mut state: IrqGuard<'_, State>,
        slot: Slot,
        bio: CloneBio,
    ) {
        let rejected = state.wait(slot, bio);
        let geometry = self.metadata.geometry();
        state.start_copy(slot, &self.ready_copies, geometry, CopyReason::Write);
        drop(state);
        self.retry(rejected);
        self.wake_reader();
    }

    /// Marks the whole regions of a discard, then passes it down. Process context.
    ///
    /// A region that is being copied must not be marked before the copy has ended: it would write
    /// old data over what is written after the discard. So such regions are waited for; all others
    /// are marked at once, so the wait is bounded.
    pub(super) fn discard(self: ArcBorrow<'_, Self>, mut bio: CloneBio) {
        let metadata = &self.metadata;
        let range = metadata.geometry().covered(bio.sector(), bio.sectors());
        if range.is_empty() || metadata.mode() != Mode::ReadWrite {
            return bio.end(BlkStatus::OK);
        }
        if self.zero_discards {
            self.deferred.lock().zero.push(bio);
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
            // The slot may have ended meanwhile: then look again at once.
            let rejected = metadata.state().lock().wait(slot, bio);
            return self.retry(rejected);
        }
        let (start, len) = metadata.geometry().extent(range);
        if self.discard_passdown.load(Relaxed) && bio.trim(start, len) {
            bio.submit(&self.destination);
        } else {
            bio.end(BlkStatus::OK);
        }
    }

    /// Writes zeros to the whole regions of a discard that are not hydrated, and marks them. Sleeps
    /// for I/O.
    ///
    /// It is not passed down: what the destination makes of a discard need not be zeros.
    pub(super) fn zero(self: ArcBorrow<'_, Self>, bio: CloneBio) {
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
                    return self.retry(rejected);
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
                    self.finish(slot, filled);
                    if let Err(error) = result {
                        return bio.end(error.into());
                    }
                    rest = RegionRange::new(range.end, rest.end);
                }
            }
        }
        bio.end(BlkStatus::OK)
    }

    /// Asks for regions to be copied before all others. Any context.
    pub(super) fn prioritize(self: ArcBorrow<'_, Self>, range: RegionRange) {
        {
            let mut deferred = self.deferred.lock();
            deferred.priority.push(range);
            self.priority_pending.store(true, Relaxed);
        }
        self.wake_hydration();
    }

    /// Regions that are marked with interrupts off at a time: 8 KiB of the map.
    const MAX_MARKED_REGIONS: u64 = 1 << 16;
}
