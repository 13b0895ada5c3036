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
    copy::Piece,
    hydrate::{
        MAX_COPIES,
        SURE_COPIES, //
    },
    metadata::{
        Filling,
        State, //
    },
    work::{
        CommitTimer,
        Committer,
        Worker,
        Zeroer, //
    },
    Clone,
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
            copying::For,
            inflight::Slot,
            map::Run,
            status::Mode,
            sweep::Wishes, //
        },
        count::subtract,
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
pub(crate) struct IoState {
    kind: u32,
    /// Of the slot.
    generation: u32,
}

impl IoState {
    /// Nothing to do.
    const PLAIN: IoState = IoState::new(0);
    /// A read or write that the sweep yields to.
    const COUNTED: IoState = IoState::new(1);
    /// A flush that has been sent to the destination.
    pub(super) const FLUSH: IoState = IoState::new(2);
    /// From here on slots.
    const FIRST_SLOT: u32 = 3;
    /// Beside a slot: the bio is to end only after a commit. Kept here because the block layer
    /// takes the flag off a bio for a destination without a volatile cache.
    const FUA: u32 = 1 << 31;

    const fn new(kind: u32) -> Self {
        IoState {
            kind,
            generation: 0,
        }
    }

    /// An overwrite that fills the regions of a slot; counted too.
    fn overwrite(slot: Slot, bio: &CloneBio) -> Self {
        let fua = if bio.is_fua() { Self::FUA } else { 0 };
        let (place, generation) = slot.to_raw();
        IoState {
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

type CloneBio = Bio<IoState>;
type Queue = BioQueue<IoState>;

/// Bios between `map` and the device below.
#[derive(Default)]
pub(super) struct Lists {
    /// Their region is hydrated: to be submitted.
    pub(super) ready: Queue,
    /// To be looked at again: their copy failed with others, a discard's range became free, or
    /// there was no room.
    pub(super) again: Queue,
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
    pub(super) pieces: RequestList<Piece>,
    /// Discards that are to write zeros first.
    pub(super) zero: Queue,
    /// What is to be copied before all else.
    pub(super) wishes: Wishes,
}

/// What a claim of regions is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Claimant {
    /// To copy them.
    Copy,
    /// To overwrite them: nothing of the source is needed.
    Overwrite,
}

impl Claimant {
    /// What a write is that covers its regions, or does not.
    fn of(overwrite: bool) -> Self {
        if overwrite {
            Claimant::Overwrite
        } else {
            Claimant::Copy
        }
    }
}

/// What became of a region when a writer asked for it, under the state lock.
enum Claim {
    /// It is hydrated by now.
    Hydrated,
    /// It is in flight: the writer waits in this slot.
    Busy(Slot),
    /// It is the writer's: this slot, for so many regions.
    Mine(Slot, RegionRange),
    /// There is no slot or no room in the log.
    NoRoom,
}

impl State {
    /// Claims the leading regions of `range` that are neither hydrated nor in flight.
    fn claim(&mut self, clone: &Clone, range: RegionRange, claimant: Claimant) -> Claim {
        let Run::Clear(clear) = clone.metadata.map().run(range) else {
            return Claim::Hydrated;
        };
        if let Some(slot) = self.inflight.find(range.start) {
            return Claim::Busy(slot);
        }
        let range = range.first(clear);
        let range = range.first(self.inflight.clear_prefix(range));
        if !self.has_slot(claimant) {
            return Claim::NoRoom;
        }
        self.claim_free(range)
            .map_or(Claim::NoRoom, |slot| Claim::Mine(slot, range))
    }

    /// Whether a claim may have a slot.
    ///
    /// The number of copies is limited, so that overwrites find slots while the source does not
    /// answer. A few slots are left to the sweep, which would find none for as long as there are
    /// enough writes.
    fn has_slot(&self, claimant: Claimant) -> bool {
        // CAST: A small number.
        self.inflight.free_slots() > SURE_COPIES as usize
            && (claimant == Claimant::Overwrite || self.copies < MAX_COPIES)
    }

    /// Whether a claim would find a slot and room in the log.
    fn has_room(&mut self, claimant: Claimant) -> bool {
        let room = self.logs.reserve(1);
        if room {
            self.logs.unreserve(1);
        }
        room && self.has_slot(claimant)
    }

    /// Takes a range out of flight.
    fn take_out(&mut self, slot: Slot) -> Option<(RegionRange, Filling)> {
        let (range, filling) = self.inflight.remove(slot)?;
        if filling.copy.is_some() {
            self.copies = subtract(self.copies, 1);
        }
        Some((range, filling))
    }

    /// Takes a slot and room in the log for regions that are neither hydrated nor in flight.
    pub(super) fn claim_free(&mut self, range: RegionRange) -> Option<Slot> {
        if !self.logs.reserve(1) {
            return None;
        }
        let slot = self.inflight.insert(range);
        if slot.is_none() {
            self.logs.unreserve(1);
        }
        slot
    }

    /// Gives back what `claim_free` took, unused.
    fn release(&mut self, slot: Slot) {
        if self.take_out(slot).is_some() {
            self.logs.unreserve(1);
        }
    }
}

/// See [`Target::map`](crate::dm::target::Target::map).
#[inline]
pub(super) fn map<'a>(this: ArcBorrow<'_, Clone>, bio: MapBio<'a, IoState>) -> Mapped<'a> {
    let plain = !bio.is_flush() && !bio.is_fua() && bio.op() != Op::Discard;
    if plain && this.metadata.is_whole() {
        return bio.remap(&this.destination);
    }
    map_tracked(this, bio)
}

/// The same where there is something to decide.
#[inline(never)]
fn map_tracked<'a>(this: ArcBorrow<'_, Clone>, mut bio: MapBio<'a, IoState>) -> Mapped<'a> {
    if this.metadata.mode() == Mode::Fail {
        return bio.kill();
    }
    bio.set_per_bio(IoState::PLAIN);
    if bio.is_flush() {
        return map_flush(this, bio);
    }
    match bio.op() {
        Op::Discard => return map_discard(this, bio),
        Op::Read | Op::Write | Op::WriteZeroes => {}
        Op::Other => return bio.kill(),
    }
    // Also orders this bio before the sweep's look at the counter.
    this.user_ios.fetch_add(1, Full);
    bio.set_per_bio(IoState::COUNTED);
    if bio.op() == Op::Read {
        map_read(this, bio)
    } else {
        map_write(this, bio)
    }
}

/// See [`Target::end_io`](crate::dm::target::Target::end_io). Any context.
#[inline]
pub(super) fn end_io<'a>(this: ArcBorrow<'_, Clone>, bio: EndBio<'a, IoState>) -> Ended<'a> {
    if !bio.status().is_ok() && bio.is_flush() && bio.per_bio() == IoState::FLUSH {
        this.flush_failed();
    }
    if this.metadata.is_done() {
        // Nothing is in flight, and nobody looks at the counter any more.
        return bio.done();
    }
    end_tracked(this, bio)
}

/// The same where there is something to do.
#[inline(never)]
fn end_tracked<'a>(this: ArcBorrow<'_, Clone>, mut bio: EndBio<'a, IoState>) -> Ended<'a> {
    let state = bio.per_bio();
    if state == IoState::PLAIN || state == IoState::FLUSH {
        return bio.done();
    }
    let mut status = bio.status();
    let mut filled = false;
    if let Some(slot) = state.slot() {
        let how = if status.is_ok() {
            Filled::Yes
        } else {
            Filled::Overwrite
        };
        filled = matches!(this.finish(slot, how), Some((_, true)));
        if status.is_ok() && !filled {
            // The data is on the destination, but a reader would not look for it there.
            status = BlkStatus::IO_ERROR;
        }
    }
    this.uncount();
    if filled && state.is_fua() {
        // Durable data, but a power cut would forget that it is there: commit first. The next
        // `end_io` ends it.
        bio.set_per_bio(IoState::PLAIN);
        let (bio, ended) = bio.take();
        this.lists.lock().written.push(bio);
        this.wake_committer();
        return ended;
    }
    bio.done_with(status)
}

impl Clone {
    /// A flush of the destination failed that no commit asked for. What it lost may be what fills a
    /// region just now: marking it would make the loss permanent. Any context.
    #[cold]
    fn flush_failed(self: ArcBorrow<'_, Self>) {
        if self.metadata.flush_failed() {
            self.wake_committer();
        }
    }
}

fn map_flush<'a>(this: ArcBorrow<'_, Clone>, mut bio: MapBio<'a, IoState>) -> Mapped<'a> {
    if !this.metadata.is_dirty() {
        bio.set_per_bio(IoState::FLUSH);
        return bio.remap(&this.destination);
    }
    let (bio, mapped) = bio.take();
    this.defer_flush(bio);
    mapped
}

fn map_read<'a>(this: ArcBorrow<'_, Clone>, mut bio: MapBio<'a, IoState>) -> Mapped<'a> {
    let geometry = this.metadata.geometry();
    let touched = geometry.touched(bio.sector(), bio.sectors());
    let (device, len) = match this.metadata.map().run(touched) {
        Run::Set(len) => (&this.destination, len),
        Run::Clear(len) => {
            if this.hydrate_on_read {
                this.wish(touched.first(len));
            }
            (&this.source, len)
        }
    };
    accept(&mut bio, &this, touched.first(len));
    bio.remap(device)
}

/// Cuts a bio behind a range of regions that it starts in.
fn accept(bio: &mut MapBio<'_, IoState>, clone: &Clone, range: RegionRange) {
    bio.accept_partial(
        clone
            .metadata
            .geometry()
            .sectors_until(bio.sector(), range.end),
    )
}

fn map_write<'a>(this: ArcBorrow<'_, Clone>, mut bio: MapBio<'a, IoState>) -> Mapped<'a> {
    let metadata = &this.metadata;
    let touched = metadata.geometry().touched(bio.sector(), bio.sectors());
    // A request to write zeros can touch a million regions: what it fills is marked with interrupts
    // off.
    let touched = touched.first(Clone::STEP);
    let clear = match metadata.map().run(touched) {
        Run::Set(len) => {
            accept(&mut bio, &this, touched.first(len));
            return map_hydrated_write(this, bio);
        }
        Run::Clear(len) => touched.first(len),
    };
    if metadata.mode() != Mode::ReadWrite {
        accept(&mut bio, &this, clear);
        return bio.end(BlkStatus::IO_ERROR);
    }
    let first = RegionRange::single(touched.start);
    let covered = metadata
        .geometry()
        .covered(bio.sector(), bio.sectors())
        .intersect(clear);
    let overwrite = covered.start == touched.start && !covered.is_empty();

    let mut state = metadata.state().lock();
    let wanted = if overwrite { covered } else { first };
    match state.claim(&this, wanted, Claimant::of(overwrite)) {
        Claim::Hydrated => {
            drop(state);
            accept(&mut bio, &this, first);
            map_hydrated_write(this, bio)
        }
        Claim::Busy(slot) => {
            accept(&mut bio, &this, first);
            let (bio, mapped) = bio.take();
            let rejected = state.wait(slot, bio);
            drop(state);
            this.again(rejected);
            mapped
        }
        Claim::Mine(slot, range) if overwrite => {
            drop(state);
            accept(&mut bio, &this, range);
            bio.set_per_bio(IoState::overwrite(slot, &bio));
            bio.remap(&this.destination)
        }
        Claim::Mine(slot, _) if this.hands_back() => {
            this.forgo(state, slot);
            this.uncount();
            bio.requeue()
        }
        Claim::Mine(slot, _) => {
            accept(&mut bio, &this, first);
            let (bio, mapped) = bio.take();
            let rejected = state.wait(slot, bio);
            state.begin_copy(slot, &this.lanes, metadata.geometry(), For::Write);
            drop(state);
            this.again(rejected);
            this.wake_reader();
            mapped
        }
        Claim::NoRoom => {
            drop(state);
            accept(&mut bio, &this, first);
            let (bio, mapped) = bio.take();
            this.stall(bio);
            mapped
        }
    }
}

fn map_hydrated_write<'a>(this: ArcBorrow<'_, Clone>, bio: MapBio<'a, IoState>) -> Mapped<'a> {
    if bio.is_fua() && this.metadata.is_dirty() {
        let (bio, mapped) = bio.take();
        this.defer_flush(bio);
        return mapped;
    }
    bio.remap(&this.destination)
}

fn map_discard<'a>(this: ArcBorrow<'_, Clone>, bio: MapBio<'a, IoState>) -> Mapped<'a> {
    let metadata = &this.metadata;
    let touched = metadata.geometry().touched(bio.sector(), bio.sectors());
    if metadata.is_done() || metadata.map().all_set(touched) {
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
    this.again(Some(bio));
    mapped
}

impl State {
    /// Lets a bio wait for a slot; gives it back if the slot is gone, which the lock rules out.
    fn wait(&mut self, slot: Slot, bio: CloneBio) -> Option<CloneBio> {
        match self.inflight.waiters(slot) {
            Some(filling) => {
                filling.waiters.push(bio);
                None
            }
            None => Some(bio),
        }
    }
}

/// How the I/O that was to fill a slot's regions ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    /// The data is on the destination.
    Yes,
    /// Zeros are, for a discard.
    Zeroes,
    /// A copy failed.
    Copy,
    /// An overwrite failed.
    Overwrite,
    /// A copy was given up.
    GivenUp,
}

impl Clone {
    /// Ends a slot: marks its regions if they are filled, and sends on who waited. Any context.
    ///
    /// Returns the regions and whether they are marked; nothing if the slot has ended before.
    pub(super) fn finish(
        self: ArcBorrow<'_, Self>,
        slot: Slot,
        filled: Filled,
    ) -> Option<(RegionRange, bool)> {
        let metadata = &self.metadata;
        let mut state = metadata.state().lock();
        let (range, filling) = state.take_out(slot)?;
        let mut waiters = filling.waiters;
        let marked =
            matches!(filled, Filled::Yes | Filled::Zeroes) && metadata.mode() == Mode::ReadWrite;
        let done = &mut state.statistics;
        let (counter, count) = match filled {
            Filled::Copy => (&mut done.failures, 1),
            _ if !marked => (&mut done.copied, 0),
            Filled::Zeroes => (&mut done.discarded, range.len()),
            _ if filling.copy.is_some() => (&mut done.copied, range.len()),
            _ => (&mut done.overwritten, range.len()),
        };
        *counter = counter.saturating_add(count);
        let was_dirty = metadata.is_dirty();
        if marked {
            metadata.mark(&mut state, range);
        } else {
            state.logs.unreserve(1);
        }
        let half_full = state.logs.half_full();
        let idle = state.inflight.is_empty();
        drop(state);

        if marked {
            self.release(&mut waiters);
        } else if filled == Filled::Copy && range.len() == 1 {
            self.fail(&mut waiters);
        } else if !waiters.is_empty() {
            // Somebody else's failure is not theirs; or the mode has changed, which the next look
            // finds.
            self.lists.lock().again.append(&mut waiters);
            self.wake_worker();
        }
        if marked {
            self.schedule_commit(was_dirty, half_full);
        }
        self.wake_stalled(Self::STALLED_STEP, Self::STALLED_STEP);
        self.wake_sweep();
        if idle && self.is_suspended() {
            self.idle.wake_all();
        }
        Some((range, marked))
    }

    /// Whether writes that need a copy go back to device-mapper: it suspends without flushing, and
    /// the source need not answer. Under the state lock, so that no copy begins behind the back of
    /// `give_up_copies`.
    fn hands_back(&self) -> bool {
        self.is_suspended() && self.handle.is_noflush_suspending()
    }

    /// Ends a slot that nothing was started for.
    fn forgo(&self, mut state: IrqGuard<'_, State>, slot: Slot) {
        state.release(slot);
        let idle = state.inflight.is_empty();
        drop(state);
        if idle && self.is_suspended() {
            self.idle.wake_all();
        }
    }

    /// A read or write has ended.
    fn uncount(self: ArcBorrow<'_, Self>) {
        if self.user_ios.fetch_sub(1, Full) == 1 {
            self.wake_sweep();
        }
    }

    /// Sees to it that what was just marked will be committed. Any context.
    ///
    /// At once if the log fills up or nothing is left to hydrate; otherwise some time after the
    /// first change.
    fn schedule_commit(self: ArcBorrow<'_, Self>, was_dirty: bool, half_full: bool) {
        if half_full || self.metadata.is_done() {
            self.wake_committer();
        } else if !was_dirty {
            enqueue_delayed::<Clone, { CommitTimer::ID }>(self.into(), COMMIT_DELAY);
        }
    }

    /// Fails writes to a part of a region that cannot be copied. Who needs nothing of it goes on:
    /// discards, and writes to all of it.
    fn fail(self: ArcBorrow<'_, Self>, waiters: &mut Queue) {
        while let Some(bio) = waiters.pop() {
            if bio.op() == Op::Discard || self.covers(&bio) {
                self.again(Some(bio));
            } else {
                bio.end(BlkStatus::IO_ERROR);
            }
        }
    }

    /// Whether a bio needs no old data: it covers each region that it touches.
    fn covers(&self, bio: &CloneBio) -> bool {
        let geometry = self.metadata.geometry();
        let touched = geometry.touched(bio.sector(), bio.sectors());
        geometry.covered(bio.sector(), bio.sectors()) == touched
    }

    /// Sends on bios whose region has just been marked.
    fn release(self: ArcBorrow<'_, Self>, waiters: &mut Queue) {
        if waiters.is_empty() {
            return;
        }
        let mut lists = self.lists.lock();
        while let Some(bio) = waiters.pop() {
            match bio.op() {
                Op::Discard => lists.again.push(bio),
                _ if bio.is_fua() => lists.flush.push(bio),
                _ => lists.ready.push(bio),
            }
        }
        let flush = !lists.flush.is_empty();
        drop(lists);
        self.wake_worker();
        if flush {
            self.wake_committer();
        }
    }

    /// A bio that must wait for a commit.
    fn defer_flush(self: ArcBorrow<'_, Self>, bio: CloneBio) {
        self.lists.lock().flush.push(bio);
        self.wake_committer();
    }

    /// A bio that the worker is to look at again.
    fn again(self: ArcBorrow<'_, Self>, bio: Option<CloneBio>) {
        if let Some(bio) = bio {
            self.lists.lock().again.push(bio);
            self.wake_worker();
        }
    }

    /// A bio for which there is no slot or no room in the log.
    ///
    /// The end of a slot makes room, and so does a commit. If there is no slot to end, or the log
    /// is what is full, a commit is asked for; it looks at stalled bios even if there is nothing to
    /// commit by then.
    fn stall(self: ArcBorrow<'_, Self>, bio: CloneBio) {
        let needs_copy = bio.op() != Op::Discard && !self.covers(&bio);
        let mut lists = self.lists.lock();
        if needs_copy {
            lists.stalled_copies.push(bio);
        } else {
            lists.stalled.push(bio);
        }
        drop(lists);
        let state = self.metadata.state().lock();
        let commit = state.inflight.is_empty() || state.logs.half_full();
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
        let mut step = |claimant| match state.has_room(claimant) {
            true => Self::STALLED_STEP,
            false => 0,
        };
        let (copies, others) = (step(Claimant::Copy), step(Claimant::Overwrite));
        drop(state);
        self.wake_stalled(copies, others);
    }

    fn wake_stalled(self: ArcBorrow<'_, Self>, copies: usize, others: usize) {
        let mut guard = self.lists.lock();
        let lists = &mut *guard;
        let mut woken = false;
        for (stalled, most) in [
            (&mut lists.stalled_copies, copies),
            (&mut lists.stalled, others),
        ] {
            for _ in 0..most {
                let Some(bio) = stalled.pop() else {
                    break;
                };
                lists.again.push(bio);
                woken = true;
            }
        }
        drop(guard);
        if woken {
            self.wake_worker();
        }
    }

    pub(super) fn wake_worker(self: ArcBorrow<'_, Self>) {
        self.queue.enqueue::<Clone, { Worker::ID }>(self.into());
    }

    pub(super) fn wake_committer(self: ArcBorrow<'_, Self>) {
        self.commit_queue
            .enqueue::<Clone, { Committer::ID }>(self.into());
    }

    /// Decides again on a write to one region, outside of `map`. Process context.
    pub(super) fn write(self: ArcBorrow<'_, Self>, mut bio: CloneBio) {
        let metadata = &self.metadata;
        let touched = metadata.geometry().touched(bio.sector(), bio.sectors());
        let overwrite = self.covers(&bio);
        let mut state = metadata.state().lock();
        match state.claim(&self, touched, Claimant::of(overwrite)) {
            Claim::Hydrated => {
                drop(state);
                if bio.is_fua() && metadata.is_dirty() {
                    self.defer_flush(bio);
                } else {
                    bio.submit(&self.destination);
                }
            }
            Claim::Busy(slot) => {
                let rejected = state.wait(slot, bio);
                drop(state);
                self.again(rejected);
            }
            Claim::Mine(slot, _) if metadata.mode() != Mode::ReadWrite => {
                self.forgo(state, slot);
                bio.end(BlkStatus::IO_ERROR);
            }
            Claim::Mine(slot, _) if overwrite => {
                drop(state);
                bio.set_per_bio(IoState::overwrite(slot, &bio));
                bio.submit(&self.destination);
            }
            Claim::Mine(slot, _) if self.hands_back() => {
                self.forgo(state, slot);
                bio.end(BlkStatus::REQUEUE);
            }
            Claim::Mine(slot, _) => {
                let rejected = state.wait(slot, bio);
                state.begin_copy(slot, &self.lanes, metadata.geometry(), For::Write);
                drop(state);
                self.again(rejected);
                self.wake_reader();
            }
            Claim::NoRoom if metadata.mode() != Mode::ReadWrite => {
                drop(state);
                bio.end(BlkStatus::IO_ERROR);
            }
            Claim::NoRoom => {
                drop(state);
                self.stall(bio);
            }
        }
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
            self.lists.lock().zero.push(bio);
            self.queue.enqueue::<Clone, { Zeroer::ID }>(self.into());
            return;
        }
        let mut next = range.start;
        let mut busy = None;
        while next < range.end {
            let rest = RegionRange::new(next, range.end);
            let mut state = metadata.state().lock();
            let clear = match metadata.map().run(rest.first(Self::STEP)) {
                Run::Set(len) => {
                    next = Region(next.get().saturating_add(len));
                    continue;
                }
                Run::Clear(len) => rest.first(len),
            };
            if let Some((slot, in_flight)) = state.inflight.first_overlap(clear) {
                if in_flight.start <= next {
                    busy = Some(slot);
                    next = in_flight.end;
                    continue;
                }
            }
            let clear = clear.first(state.inflight.clear_prefix(clear));
            if !state.logs.reserve(1) {
                drop(state);
                return self.stall(bio);
            }
            let was_dirty = metadata.is_dirty();
            metadata.mark(&mut state, clear);
            let discarded = &mut state.statistics.discarded;
            *discarded = discarded.saturating_add(clear.len());
            let half_full = state.logs.half_full();
            drop(state);
            self.schedule_commit(was_dirty, half_full);
            next = clear.end;
        }
        if let Some(slot) = busy {
            // The slot may have ended meanwhile: then look again at once.
            let rejected = metadata.state().lock().wait(slot, bio);
            return self.again(rejected);
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
            match state.claim(&self, rest.first(self.longest()), Claimant::Overwrite) {
                Claim::Hydrated => {}
                Claim::Busy(slot) => {
                    let rejected = state.wait(slot, bio);
                    drop(state);
                    return self.again(rejected);
                }
                Claim::NoRoom => {
                    drop(state);
                    return self.stall(bio);
                }
                Claim::Mine(slot, range) => {
                    drop(state);
                    let (start, len) = metadata.geometry().extent(range);
                    let mut zeros = self.zeros.lock();
                    let result = self.writer.zero(&self.destination, start, len, &mut zeros);
                    drop(zeros);
                    let filled = match result {
                        Ok(()) => Filled::Zeroes,
                        Err(_) => Filled::Overwrite,
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
    pub(super) fn wish(self: ArcBorrow<'_, Self>, range: RegionRange) {
        {
            let mut lists = self.lists.lock();
            lists.wishes.push(range);
            self.wished.store(true, Relaxed);
        }
        self.wake_sweep();
    }

    /// Regions that are marked with interrupts off at a time: 8 KiB of the map.
    const STEP: u64 = 1 << 16;
}
