// SPDX-License-Identifier: GPL-2.0

//! A model of a merge that explores all orders of events.
//!
//! The model does what `rust/targets/snapshot/merge/merger.rs` does. It also explores variants in
//! which a step is missing or misplaced, and expects to find an error in each.
//!
//! There are two chunks with a record each. One thread writes and flushes, one starts and stops the
//! merge, and one takes a snapshot of the origin, for which it pauses the merge. Steps are as small
//! as another thread can observe. Each operation may fail, and records that could not be cleared
//! may be present or not. The power may fail in every state.

use std::collections::HashSet;
use std::vec;
use std::vec::Vec;

use crate::logic::snapshot::merge::{
    BatchResult,
    CommitResult,
    MergeState,
    MergeStep, //
};

// The errors that the model finds.
const SHOWN: &str = "a read returns something else than was written";
const LOST: &str = "after a power failure the data is not what was acknowledged";
const UNSEEN: &str = "the merge is finished, and a record is left";
const STUCK: &str = "a write waits, and nothing can happen";
const MISSED: &str = "another snapshot shows something else than the origin contained";

/// A mistake in the steps of the merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// The batch is not closed.
    NoClose,
    /// The merge does not wait for writes in flight.
    NoDrain,
    /// The origin is not flushed.
    NoFlush,
    /// The exception table drops the batch before its records are cleared.
    ForgetFirst,
    /// Writes that waited for a merged batch go to the COW device.
    MergedToCow,
    /// Writes that waited for a batch that was kept go to the origin.
    KeptToOrigin,
    /// A batch in doubt is open.
    DoubtIsOpen,
    /// A batch in doubt counts as kept.
    DoubtIsKept,
    /// The data that another snapshot lacks is overwritten.
    NoPreserve,
    /// Another snapshot becomes live without a pause.
    NoPause,
    /// Another snapshot does not wait for the end of the batch.
    NoWait,
}

const CHUNKS: usize = 2;
/// The first contents of the origin and of the snapshot.
const OLD: u8 = 0;
const NEW: u8 = 1;

/// A write of a value that is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Writer {
    Idle,
    /// In flight to the COW device, and tracked.
    ToCow,
    ToOrigin,
    Waits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Copying {
    Not,
    Begun,
    Has(u8),
    Done,
}

/// Another snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Other {
    Not,
    /// The merge is being paused for it.
    Pausing,
    /// It is live, and shows what the origin contained then. The merge is still paused.
    Live([u8; CHUNKS]),
    Done([u8; CHUNKS]),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    machine: MergeState,
    /// On disk.
    records: u8,
    cow: [u8; CHUNKS],
    durable: [u8; CHUNKS],
    /// In memory.
    origin: [u8; CHUNKS],
    mapped: [bool; CHUNKS],
    /// The batch: from this chunk up to `batch.1`.
    batch: (u8, u8),
    closed: bool,
    in_doubt: bool,
    copies: [Copying; CHUNKS],
    /// The other snapshot lacks what the batch overwrites: it shows the origin.
    lacks: bool,
    other: Other,
    /// The last acknowledged values.
    acked: [u8; CHUNKS],
    writer: Writer,
    at: u8,
    value: u8,
    writes: u8,
    starts: u8,
    stops: u8,
    faults: u8,
}

#[derive(Clone, Copy)]
struct Model {
    mistake: Mistake,
    max_batch: u8,
    first: State,
}

fn model(mistake: Mistake, max_batch: u8, faults: u8) -> Model {
    Model {
        mistake,
        max_batch,
        first: State {
            machine: MergeState::new(),
            records: CHUNKS as u8,
            cow: [NEW; CHUNKS],
            durable: [OLD; CHUNKS],
            origin: [OLD; CHUNKS],
            mapped: [true; CHUNKS],
            batch: (0, 0),
            closed: false,
            in_doubt: false,
            copies: [Copying::Not; CHUNKS],
            lacks: false,
            other: Other::Not,
            acked: [NEW; CHUNKS],
            writer: Writer::Idle,
            at: 0,
            value: NEW,
            writes: 2,
            starts: 2,
            stops: 1,
            faults,
        },
    }
}

impl State {
    fn is_in_batch(&self, chunk: u8) -> bool {
        (self.batch.0..self.batch.1).contains(&chunk)
    }

    fn ack(&mut self) {
        self.acked[self.at as usize] = self.value;
        self.writer = Writer::Idle;
    }

    /// Returns whether a chunk may have a value: the last acknowledged one, or the one that is
    /// being written.
    fn may_be(&self, chunk: usize, value: u8) -> bool {
        let being_written = self.writer != Writer::Idle && self.at as usize == chunk;
        value == self.acked[chunk] || (being_written && value == self.value)
    }

    fn check(&self) -> Result<(), &'static str> {
        for chunk in 0..CHUNKS {
            let shown = if self.mapped[chunk] {
                self.cow[chunk]
            } else {
                self.origin[chunk]
            };
            if !self.may_be(chunk, shown) {
                return Err(SHOWN);
            }
            let left = if chunk < self.records as usize {
                self.cow[chunk]
            } else {
                self.durable[chunk]
            };
            if !self.may_be(chunk, left) {
                return Err(LOST);
            }
        }
        if let Other::Live(held) | Other::Done(held) = self.other {
            if self.lacks && self.origin != held {
                return Err(MISSED);
            }
        }
        if self.machine.is_finished() && (self.records != 0 || self.mapped.contains(&true)) {
            return Err(UNSEEN);
        }
        Ok(())
    }
}

impl Model {
    /// Returns all states that can come next.
    fn next(&self, state: &State) -> Vec<State> {
        let mut all = vec![];
        self.control(state, &mut all);
        self.other(state, &mut all);
        self.write(state, &mut all);
        self.copies(state, &mut all);
        self.merge(state, &mut all);
        all
    }

    fn control(&self, state: &State, all: &mut Vec<State>) {
        if state.starts != 0 {
            let mut next = *state;
            next.starts -= 1;
            next.machine.start();
            all.push(next);
        }
        if state.stops != 0 {
            let mut next = *state;
            next.stops -= 1;
            next.machine.stop();
            all.push(next);
        }
    }

    /// The other snapshot, which gets the data that it lacks at any time.
    fn other(&self, state: &State, all: &mut Vec<State>) {
        if state.lacks {
            all.push(State {
                lacks: false,
                ..*state
            });
        }
        let mut next = *state;
        match state.other {
            Other::Not => {
                next.other = Other::Pausing;
                if self.mistake != Mistake::NoPause {
                    next.machine.pause();
                }
            }
            Other::Pausing if state.machine.is_idle() || self.is_hasty() => {
                // The snapshot may contain origin writes in flight or not. In the model they have
                // ended.
                if state.writer == Writer::ToOrigin {
                    return;
                }
                next.other = Other::Live(state.origin);
                next.lacks = true;
            }
            Other::Live(held) => {
                next.other = Other::Done(held);
                if self.mistake != Mistake::NoPause {
                    next.machine.unpause();
                }
            }
            Other::Pausing | Other::Done(_) => return,
        }
        all.push(next);
    }

    fn is_hasty(&self) -> bool {
        matches!(self.mistake, Mistake::NoPause | Mistake::NoWait)
    }

    fn write(&self, state: &State, all: &mut Vec<State>) {
        let mut next = *state;
        let at = state.at as usize;
        match state.writer {
            Writer::Idle if state.writes != 0 => {
                for chunk in 0..CHUNKS as u8 {
                    let mut next = *state;
                    next.writes -= 1;
                    next.value += 1;
                    next.at = chunk;
                    if !next.mapped[chunk as usize] {
                        next.writer = Writer::ToOrigin;
                    } else if next.closed && next.is_in_batch(chunk) {
                        next.writer = Writer::Waits;
                        next.machine.request_restore();
                    } else {
                        next.writer = Writer::ToCow;
                    }
                    all.push(next);
                }
            }
            Writer::ToCow => {
                next.cow[at] = state.value;
                next.ack();
                all.push(next);
            }
            // It waits until the other snapshot has the data.
            Writer::ToOrigin if state.lacks => {}
            Writer::ToOrigin => {
                next.origin[at] = state.value;
                next.durable[at] = state.value;
                next.ack();
                all.push(next);
            }
            Writer::Idle | Writer::Waits => {}
        }
    }

    fn copies(&self, state: &State, all: &mut Vec<State>) {
        for (chunk, copy) in state.copies.iter().enumerate() {
            let mut next = *state;
            match copy {
                Copying::Not | Copying::Done => continue,
                Copying::Begun => next.copies[chunk] = Copying::Has(state.cow[chunk]),
                Copying::Has(value) => {
                    next.origin[chunk] = *value;
                    next.copies[chunk] = Copying::Done;
                    next.machine.copy_done(true);
                }
            }
            all.push(next);
            if state.faults != 0 {
                let mut next = *state;
                next.faults -= 1;
                next.copies[chunk] = Copying::Done;
                next.machine.copy_done(false);
                all.push(next);
            }
        }
    }

    fn merge(&self, state: &State, all: &mut Vec<State>) {
        let mut next = *state;
        let may_fail = state.faults != 0;
        let failing = State {
            faults: state.faults.saturating_sub(1),
            ..*state
        };
        match state.machine.next_step() {
            MergeStep::Nothing => return,
            MergeStep::Read => {
                next.batch = (state.records.saturating_sub(self.max_batch), state.records);
                next.copies = [Copying::Not; CHUNKS];
                next.machine.batch_read(Ok(state.records != 0));
                if may_fail {
                    let mut failing = failing;
                    failing.machine.batch_read(Err(()));
                    all.push(failing);
                }
            }
            MergeStep::Preserve => {
                if state.lacks && self.mistake != Mistake::NoPreserve {
                    return;
                }
                if next.machine.batch_preserved() {
                    next.closed = self.mistake != Mistake::NoClose;
                }
            }
            MergeStep::Drain => {
                let counted = matches!(state.writer, Writer::ToCow)
                    && state.is_in_batch(state.at)
                    && self.mistake != Mistake::NoDrain;
                if counted {
                    return;
                }
                next.machine.batch_drained();
            }
            MergeStep::Copy => {
                let batch = state.batch.0..state.batch.1;
                let waiting = |chunk: &u8| state.copies[*chunk as usize] == Copying::Not;
                match batch.clone().find(waiting) {
                    Some(chunk) => {
                        assert!(next.machine.start_copy());
                        next.copies[chunk as usize] = Copying::Begun;
                    }
                    None => next.machine.all_copies_started(),
                }
            }
            MergeStep::Commit => {
                if self.mistake != Mistake::NoFlush {
                    next.durable = next.origin;
                }
                if self.mistake == Mistake::ForgetFirst {
                    self.forget(&mut next);
                }
                if may_fail {
                    // The flush fails: it may have made anything durable.
                    let mut failing = State {
                        durable: state.durable,
                        ..next
                    };
                    failing.faults -= 1;
                    failing.machine.batch_committed(if state.in_doubt {
                        CommitResult::InDoubt
                    } else {
                        CommitResult::Kept
                    });
                    all.push(failing);
                    // The records could not be cleared, and were written back.
                    let mut restored = State {
                        faults: state.faults - 1,
                        records: state.batch.1,
                        ..next
                    };
                    restored.machine.batch_committed(CommitResult::Kept);
                    all.push(restored);
                    for records in state.batch.0..=state.batch.1 {
                        let mut failing = State {
                            faults: state.faults - 1,
                            records,
                            ..next
                        };
                        failing
                            .machine
                            .batch_committed(if self.mistake == Mistake::DoubtIsKept {
                                CommitResult::Kept
                            } else {
                                CommitResult::InDoubt
                            });
                        all.push(failing);
                    }
                }
                next.records = state.batch.0;
                next.machine.batch_committed(CommitResult::Cleared);
            }
            MergeStep::Restore => {
                if may_fail {
                    for records in state.batch.0..=state.batch.1 {
                        let mut failing = State { records, ..failing };
                        failing.machine.records_restored(false);
                        all.push(failing);
                    }
                }
                next.records = state.batch.1;
                next.machine.records_restored(true);
            }
            MergeStep::Release(result) => {
                if result == BatchResult::Merged {
                    self.forget(&mut next);
                }
                next.in_doubt = result == BatchResult::InDoubt;
                next.closed = next.in_doubt && self.mistake != Mistake::DoubtIsOpen;
                if state.writer == Writer::Waits {
                    next.writer = match result {
                        BatchResult::Merged if self.mistake == Mistake::MergedToCow => {
                            Writer::ToCow
                        }
                        BatchResult::Kept if self.mistake == Mistake::KeptToOrigin => {
                            Writer::ToOrigin
                        }
                        BatchResult::Merged => Writer::ToOrigin,
                        BatchResult::Kept => Writer::ToCow,
                        BatchResult::InDoubt => Writer::Idle,
                    };
                }
                next.machine.batch_released();
            }
        }
        all.push(next);
    }

    fn forget(&self, state: &mut State) {
        for chunk in state.batch.0..state.batch.1 {
            state.mapped[chunk as usize] = false;
        }
    }

    /// Explores all states. Returns their number, or the first error.
    fn explore(&self) -> Result<usize, &'static str> {
        let mut seen = HashSet::from([self.first]);
        let mut left = vec![self.first];
        let mut finished = false;
        while let Some(state) = left.pop() {
            state.check()?;
            let all = self.next(&state);
            if all.is_empty() && state.writer != Writer::Idle {
                return Err(STUCK);
            }
            finished |= state.machine.is_finished();
            left.extend(all.into_iter().filter(|next| seen.insert(*next)));
        }
        assert!(finished, "the merge never ends");
        Ok(seen.len())
    }
}

#[test]
fn every_order_of_events_is_right() {
    for max_batch in 1..=CHUNKS as u8 {
        for faults in 0..=2 {
            let states = model(Mistake::None, max_batch, faults).explore();
            assert!(states.unwrap() > 1000);
        }
    }
}

#[test]
fn mistakes_are_noticed() {
    for (mistake, wanted) in [
        (Mistake::NoClose, &[SHOWN, LOST][..]),
        (Mistake::NoDrain, &[SHOWN, LOST]),
        (Mistake::NoFlush, &[LOST]),
        (Mistake::ForgetFirst, &[SHOWN, LOST]),
        (Mistake::MergedToCow, &[SHOWN, LOST]),
        (Mistake::KeptToOrigin, &[SHOWN, LOST]),
        (Mistake::DoubtIsOpen, &[LOST]),
        (Mistake::DoubtIsKept, &[LOST, UNSEEN]),
        (Mistake::NoPreserve, &[MISSED]),
        (Mistake::NoPause, &[MISSED]),
        (Mistake::NoWait, &[MISSED]),
    ] {
        let found = model(mistake, 2, 2).explore();
        let noticed = found.is_err_and(|what| wanted.contains(&what));
        assert!(noticed, "{mistake:?}: {found:?}");
    }
}
