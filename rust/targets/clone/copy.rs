// SPDX-License-Identifier: GPL-2.0

//! Copies from the source to the destination, piece by piece.
//!
//! ```text
//!  begin_copy ─▶ lanes ─▶ reader ─▶ (source) ─▶ copier: still wanted? ─▶ (destination) ─▶ copier: next, or the end
//! ```
//!
//! How far a copy is lies in its slot, under the state lock
//! ([`copying`](crate::logic::clone::copying)); its pieces carry only the slot's name. A copy that
//! is given up takes its slot along: when the source answers at last, the name finds nothing, and
//! the piece is dropped. So nobody but the destructor waits for the source, and the reader, which
//! sends it requests and does nothing else: the source may have no room for another one.
//!
//! Lanes belong to a table, slots to the metadata that all tables share: a table that is on its way
//! out cannot take what the next one began.

use super::{
    io::Filled,
    metadata::State,
    Clone, //
};
use crate::{
    dm::{
        io::{
            IoContext,
            Request,
            Transfer, //
        },
        pages::Pages, //
    },
    logic::{
        clone::{
            copying::{
                Copy,
                End,
                For,
                Lanes, //
            },
            geometry::Geometry,
            inflight::Slot,
            sweep::Outcome, //
        },
        regions::RegionRange,
        units::{
            Sector,
            Sectors, //
        }, //
    },
    sys::{
        irq_lock::IrqLock,
        log::{
            err,
            err_limit, //
        },
        noio::NoIo,
        plug::plugged,
        pool::PoolBox,
        queue::enqueue_delayed,
        time::now_ms, //
    }, //
};
use kernel::{
    error::Result,
    sync::{
        atomic::Relaxed,
        Arc,
        ArcBorrow, //
    },
    time::Delta,
    workqueue::WorkItem, //
};

/// A piece of a copy on its way. Keeps the clone, and so its devices, alive.
pub(super) struct Piece {
    clone: Arc<Clone>,
    slot: Slot,
    start: Sector,
    pages: Pages,
    stage: Stage,
    ok: bool,
}

/// What was asked of the device below.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Reading,
    Writing,
}

impl IoContext for Piece {
    fn pages(&mut self) -> &mut Pages {
        &mut self.pages
    }

    fn done(mut this: PoolBox<Request<Self>>, result: Result) {
        this.context.ok = result.is_ok();
        let clone = this.context.clone.clone();
        clone.lists.lock().pieces.push(this);
        clone.as_arc_borrow().wake_copier();
    }
}

impl State {
    /// The copy of a slot.
    fn copy(&mut self, slot: Slot) -> Option<&mut Copy> {
        self.inflight.waiters(slot)?.copy.as_mut()
    }

    /// Queues a copy of a slot's regions. The caller wakes the reader.
    pub(super) fn begin_copy(
        &mut self,
        slot: Slot,
        lanes: &IrqLock<Lanes>,
        geometry: &Geometry,
        whose: For,
    ) {
        let Some(range) = self.inflight.range(slot) else {
            return;
        };
        let (start, len) = geometry.extent(range);
        if let Some(filling) = self.inflight.waiters(slot) {
            if filling.copy.is_none() {
                self.copies = self.copies.saturating_add(1);
            }
            let copy = filling.copy.insert(Copy::new(start, len, whose));
            lanes.lock().push(slot, copy);
        }
    }

    /// The piece to read next, without taking it.
    fn next_piece(&mut self, lanes: &mut Lanes) -> Option<(Slot, Sector, Sectors)> {
        loop {
            let slot = lanes.first()?;
            match self.copy(slot).and_then(|copy| copy.next_piece()) {
                Some((start, len)) => return Some((slot, start, len)),
                None => lanes.pop(),
            }
        }
    }

    /// Takes note of the end of a piece's I/O. Returns what to do with the piece.
    fn piece_ended(&mut self, slot: Slot, lanes: &IrqLock<Lanes>, stage: Stage, ok: bool) -> Then {
        let Some(copy) = self.copy(slot) else {
            return Then::Drop;
        };
        match stage {
            Stage::Reading if copy.read(ok) => return Then::Write,
            Stage::Reading => {}
            Stage::Writing => copy.written(ok),
        }
        match copy.end() {
            Some(end) => Then::End(end, copy.whose()),
            None => {
                lanes.lock().push(slot, copy);
                Then::Drop
            }
        }
    }
}

/// What follows the end of a piece's I/O.
enum Then {
    /// It is to be written to the destination.
    Write,
    /// Nothing: other pieces are on their way, or the copy has been given up.
    Drop,
    /// It was the last one of its copy.
    End(End, For),
}

impl Clone {
    /// Reads pieces as long as there are any, and memory for them. Reader only.
    fn start_pieces(self: ArcBorrow<'_, Self>) {
        loop {
            let next = {
                let mut state = self.metadata.state().lock();
                let mut lanes = self.lanes.lock();
                state.next_piece(&mut lanes)
            };
            let Some((slot, start, len)) = next else {
                return;
            };
            let Some(pages) = self.pages.take(len) else {
                return self.read_later();
            };
            let piece = Piece {
                clone: self.into(),
                slot,
                start,
                pages,
                stage: Stage::Reading,
                ok: false,
            };
            let Ok(piece) = self.pieces.try_boxed(Request::new(piece)) else {
                return self.read_later();
            };
            let taken = match self.metadata.state().lock().copy(slot) {
                Some(copy) => copy.take(start),
                // Given up meanwhile.
                None => false,
            };
            if taken {
                self.reader
                    .submit(Transfer::Read, &self.source, start, piece);
            }
        }
    }

    /// There is no memory for another piece. All of the reserve is on its way, and its return wakes
    /// the reader; but the source may have it, and keep it, so the reader tries again after a while
    /// as well.
    fn read_later(self: ArcBorrow<'_, Self>) {
        enqueue_delayed::<Clone, { ReadTimer::ID }>(self.into(), READ_AGAIN);
    }

    /// Takes a piece on. Copier only.
    fn piece_ended(self: ArcBorrow<'_, Self>, mut piece: PoolBox<Request<Piece>>) {
        let (slot, start) = (piece.context.slot, piece.context.start);
        let (stage, ok) = (piece.context.stage, piece.context.ok);
        let then = self
            .metadata
            .state()
            .lock()
            .piece_ended(slot, &self.lanes, stage, ok);
        match then {
            Then::Write => {
                piece.context.stage = Stage::Writing;
                self.writer
                    .submit(Transfer::WriteBehind, &self.destination, start, piece);
            }
            Then::Drop => drop(piece),
            Then::End(end, whose) => {
                drop(piece);
                self.copy_ended(slot, end, whose);
            }
        }
    }

    /// Ends the slot of a copy. Process context.
    fn copy_ended(self: ArcBorrow<'_, Self>, slot: Slot, end: End, whose: For) {
        let (filled, outcome) = match end {
            End::Copied => (Filled::Yes, Outcome::Copied),
            End::Failed => (Filled::Copy, Outcome::Failed),
            End::GivenUp => (Filled::GivenUp, Outcome::GivenUp),
        };
        // Gone if it was given up just now: then that has been told.
        let Some((range, _)) = self.finish(slot, filled) else {
            return;
        };
        if end == End::Failed {
            self.copy_failed(whose);
        }
        if whose != For::Write {
            let wanted = whose == For::Wish;
            self.sweep.lock().finished(now_ms(), range, outcome, wanted);
            self.wake_sweep();
        }
    }

    /// Says that a copy failed; it may be the last one of the background hydration that is allowed
    /// to. Process context, sleeps.
    fn copy_failed(&self, whose: For) {
        err_limit!("clone", "{}: hydration failed", self.handle);
        if whose == For::Write {
            return;
        }
        let failures = self.failures.fetch_add(1, Relaxed).saturating_add(1);
        let most = self.max_failures.load(Relaxed);
        if most != 0 && failures >= most && self.hydration.load(Relaxed) {
            self.hydration.store(false, Relaxed);
            err!(
                "clone",
                "{}: {} copies failed: hydration is disabled",
                self.handle,
                failures
            );
            self.handle.raise_event();
        }
    }

    /// Gives all copies up, except for what is being written: that ends soon. Process context.
    ///
    /// While the clone is suspended, so that no new ones begin. Who waits for a copy is looked at
    /// again.
    pub(super) fn give_up_copies(self: ArcBorrow<'_, Self>) {
        let mut rest = self.metadata.geometry().all();
        loop {
            let mut state = self.metadata.state().lock();
            let Some((slot, range)) = state.inflight.first_overlap(rest) else {
                return self.lanes.lock().clear();
            };
            rest = RegionRange::new(range.end, rest.end);
            let Some(copy) = state.copy(slot) else {
                continue;
            };
            copy.give_up();
            let (end, whose) = (copy.end(), copy.whose());
            drop(state);
            if let Some(end) = end {
                self.copy_ended(slot, end, whose);
            }
        }
    }

    /// Lets the reader go on. Any context.
    pub(super) fn wake_reader(self: ArcBorrow<'_, Self>) {
        self.read_queue
            .enqueue::<Clone, { Reader::ID }>(self.into());
    }

    /// Lets the copier go on. Any context.
    fn wake_copier(self: ArcBorrow<'_, Self>) {
        self.queue.enqueue::<Clone, { Copier::ID }>(self.into());
    }
}

/// After so long the reader looks for memory again.
const READ_AGAIN: Delta = Delta::from_millis(100);

/// Asks the source for pieces. It may have to wait for the source, so nobody waits for it.
pub(super) struct Reader;

impl Reader {
    pub(super) const ID: u64 = 8;
}

impl WorkItem<8> for Clone {
    type Pointer = Arc<Clone>;

    fn run(this: Arc<Clone>) {
        let _noio = NoIo::enter();
        plugged(|| this.as_arc_borrow().start_pieces());
    }
}

/// Runs the reader after a wait.
pub(super) struct ReadTimer;

impl ReadTimer {
    pub(super) const ID: u64 = 9;
}

impl WorkItem<9> for Clone {
    type Pointer = Arc<Clone>;

    fn run(this: Arc<Clone>) {
        this.as_arc_borrow().wake_reader();
    }
}

/// Takes pieces on that have been read or written.
pub(super) struct Copier;

impl Copier {
    pub(super) const ID: u64 = 6;
}

impl WorkItem<6> for Clone {
    type Pointer = Arc<Clone>;

    fn run(this: Arc<Clone>) {
        let _noio = NoIo::enter();
        let this = this.as_arc_borrow();
        plugged(|| {
            let ended = this.lists.lock().pieces.take();
            let mut ended = ended.reversed();
            while let Some(piece) = ended.pop() {
                this.piece_ended(piece);
            }
        });
        if this.lanes.lock().first().is_some() {
            this.wake_reader();
        }
    }
}
