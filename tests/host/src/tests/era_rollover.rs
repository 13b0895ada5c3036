// SPDX-License-Identifier: GPL-2.0

//! The end of an era: all interleavings of a model of `rust/targets/era/rollover.rs`, of the worker
//! in `io.rs`, and of `rust/sys/epochs.rs`, and the same with a step left out or misplaced, which
//! must be noticed.
//!
//! There is one block, two writers, the worker that marks, and a thread that sends one checkpoint
//! after the other. Steps are as small as other threads can tell; memory is taken as the same for
//! all. Commits may fail, whether they have reached the disk or not, and whoever waits may be
//! killed.

use std::collections::HashSet;
use std::vec::Vec;

/// What is checked.
const PROMISE: &str = "a write is in flight that is recorded in no era since the last promise";
const UNMARKED: &str = "a write was let pass that is recorded nowhere";
const STALE: &str = "a write was let pass by the bit of an older era that nobody drains";
const COUNTS: &str = "the counters do not tell what is in flight";
const STUCK: &str = "nothing can go on";

/// Steps that are done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// The sum is looked at without a grace period.
    NoGrace,
    /// Nobody waits for the sum.
    NoDrain,
    /// What the one before left undrained is left so.
    NoDrainOfKilled,
    /// The bits are not cleared after the drain.
    NoClear,
    /// The epoch is switched before the commit.
    SwitchBeforeCommit,
    /// The bits are not cleared when the metadata was opened again.
    NoForget,
    /// The bit is set before the mark is on disk.
    BitBeforeMark,
}

/// What may happen.
#[derive(Clone, Copy)]
struct World {
    mistake: Mistake,
    checkpoints: u8,
    writes: u8,
    /// So many commits may fail.
    faults: u8,
    /// Metadata that failed may be impossible to open, until the next step.
    closes: bool,
    /// So many waits may be killed.
    kills: u8,
    /// Also the bits must be right, not only the promises that rest on them.
    strict: bool,
}

const WORLD: World = World {
    mistake: Mistake::None,
    checkpoints: 2,
    writes: 1,
    faults: 0,
    closes: false,
    kills: 0,
    strict: true,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Writer {
    Idle,
    /// Has read the epoch, with preemption off.
    Read(usize),
    /// Has counted its write in it.
    Counted(usize),
    /// Its write waits for the worker.
    Deferred,
    /// Its write is in the worker's batch.
    Batched,
    /// Its write was let pass, when the newest era on disk that has the block was `mark`.
    Passed {
        epoch: usize,
        mark: u8,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Worker {
    Idle,
    /// Has a batch, and waits for the lock.
    Taken,
    /// Has the lock, and so many tries.
    Marking(u8),
    /// Has the lock, and lets one write after the other pass.
    Passing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Caller {
    Idle,
    Lock,
    /// Has the lock, and so many tries.
    Commit(u8),
    /// Has the lock; the commit failed, and the metadata was opened again.
    Forget(u8),
    /// Has the lock.
    Switch,
    Drain(Drain, Then),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Drain {
    Begin,
    Grace,
    /// Reads the counter of the first CPU.
    First,
    /// Has read that; reads the counter of the second.
    Second(i8),
    Clear,
}

/// What follows the drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Then {
    RollOver,
    Return,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    writers: [Writer; 2],
    /// How many more writes each has.
    left: [u8; 2],
    worker: Worker,
    caller: Caller,
    /// How many more checkpoints there are.
    checkpoints: u8,
    /// The era on disk, and the newest era on disk that has the block; zero if none has.
    era: u8,
    mark: u8,
    epoch: usize,
    /// Of each epoch: the block's bit, and what is in flight by CPU.
    bits: [bool; 2],
    counts: [[i8; 2]; 2],
    undrained: bool,
    /// The writers for which the grace period waits.
    grace: [bool; 2],
    /// What the last successful checkpoint told its caller: later writes are recorded in this era
    /// or later ones.
    promised: u8,
    faults: u8,
    kills: u8,
}

/// Explores all that may happen, and returns the number of states, or what went wrong in which.
struct Explorer {
    world: World,
    seen: HashSet<State>,
    to_do: Vec<State>,
    kept_promises: usize,
}

type Outcome<T = ()> = Result<T, (&'static str, State)>;

impl State {
    fn new(world: World, marked: bool) -> Self {
        State {
            writers: [Writer::Idle; 2],
            left: [world.writes; 2],
            worker: Worker::Idle,
            caller: Caller::Idle,
            checkpoints: world.checkpoints,
            era: 1,
            mark: marked.into(),
            epoch: 0,
            bits: [marked, false],
            counts: [[0; 2]; 2],
            undrained: false,
            grace: [false; 2],
            promised: 0,
            faults: world.faults,
            kills: world.kills,
        }
    }

    fn is_locked(&self) -> bool {
        matches!(self.worker, Worker::Marking(_) | Worker::Passing)
            || matches!(
                self.caller,
                Caller::Commit(_) | Caller::Forget(_) | Caller::Switch
            )
    }

    fn batch(&self) -> impl Iterator<Item = usize> + use<> {
        let writers = self.writers;
        (0..2).filter(move |index| writers[*index] == Writer::Batched)
    }

    /// A write is let pass by the bit of an epoch, in which it was counted.
    fn pass(&mut self, world: World, index: usize, epoch: usize) -> Outcome {
        let mark = self.mark;
        self.writers[index] = Writer::Passed { epoch, mark };
        if mark == 0 {
            return Err((UNMARKED, *self));
        }
        // The era has changed, and its end is not yet the caller's to tell.
        let awaited = matches!(self.caller, Caller::Forget(_) | Caller::Switch)
            || self.undrained && epoch != self.epoch;
        if mark != self.era && !awaited && world.strict {
            return Err((STALE, *self));
        }
        Ok(())
    }

    /// What must hold at any time.
    fn check(&self) -> Outcome {
        for epoch in 0..2 {
            let in_flight = self.writers.iter().filter(|writer| match writer {
                Writer::Counted(of) | Writer::Passed { epoch: of, .. } => *of == epoch,
                _ => false,
            });
            let sum: i8 = self.counts[epoch].iter().sum();
            if usize::try_from(sum) != Ok(in_flight.count()) {
                return Err((COUNTS, *self));
            }
        }
        let kept = |writer: &Writer| match writer {
            Writer::Passed { mark, .. } => *mark >= self.promised,
            _ => true,
        };
        if !self.writers.iter().all(kept) {
            return Err((PROMISE, *self));
        }
        Ok(())
    }
}

impl Explorer {
    fn run(world: World) -> Outcome<Self> {
        let mut explorer = Explorer {
            world,
            seen: HashSet::new(),
            to_do: Vec::new(),
            kept_promises: 0,
        };
        for marked in [false, true] {
            explorer.reach(State::new(world, marked))?;
        }
        while let Some(state) = explorer.to_do.pop() {
            let mut steps = 0;
            for index in 0..2 {
                steps += explorer.step_writer(state, index)?;
            }
            steps += explorer.step_worker(state)?;
            steps += explorer.step_caller(state)?;
            let over = state.writers == [Writer::Idle; 2]
                && state.left == [0; 2]
                && state.caller == Caller::Idle;
            if steps == 0 && !over {
                return Err((STUCK, state));
            }
            explorer.kept_promises += usize::from(steps == 0 && state.promised == state.era);
        }
        Ok(explorer)
    }

    fn reach(&mut self, state: State) -> Outcome<usize> {
        state.check()?;
        if self.seen.insert(state) {
            self.to_do.push(state);
        }
        Ok(1)
    }

    /// `map`, then the write's end. A write is counted on one CPU, and counted down on the other.
    fn step_writer(&mut self, mut state: State, index: usize) -> Outcome<usize> {
        let writer = &mut state.writers[index];
        match *writer {
            Writer::Idle if state.left[index] > 0 => {
                state.left[index] -= 1;
                *writer = Writer::Read(state.epoch);
            }
            Writer::Read(epoch) => {
                *writer = Writer::Counted(epoch);
                state.counts[epoch][index] += 1;
                state.grace[index] = false;
            }
            Writer::Counted(epoch) if state.bits[epoch] => {
                state.pass(self.world, index, epoch)?;
            }
            Writer::Counted(epoch) => {
                *writer = Writer::Deferred;
                state.counts[epoch][1 - index] -= 1;
            }
            Writer::Passed { epoch, .. } => {
                *writer = Writer::Idle;
                state.counts[epoch][1 - index] -= 1;
            }
            _ => return Ok(0),
        }
        self.reach(state)
    }

    fn step_worker(&mut self, mut state: State) -> Outcome<usize> {
        match state.worker {
            Worker::Idle if state.writers.contains(&Writer::Deferred) => {
                for writer in &mut state.writers {
                    if *writer == Writer::Deferred {
                        *writer = Writer::Batched;
                    }
                }
                state.worker = Worker::Taken;
                self.reach(state)
            }
            Worker::Taken if !state.is_locked() => {
                if self.world.mistake == Mistake::BitBeforeMark {
                    state.bits[state.epoch] = true;
                }
                state.worker = Worker::Marking(2);
                self.reach(state)
            }
            Worker::Marking(tries) => self.mark(state, tries),
            Worker::Passing => {
                if let Some(index) = state.batch().next() {
                    let epoch = state.epoch;
                    state.bits[epoch] = true;
                    state.counts[epoch][0] += 1;
                    state.pass(self.world, index, epoch)?;
                }
                if state.batch().next().is_none() {
                    state.worker = Worker::Idle;
                }
                self.reach(state)
            }
            _ => Ok(0),
        }
    }

    /// The block is marked in the era on disk, durably. What cannot be marked ends with an error.
    fn mark(&mut self, state: State, tries: u8) -> Outcome<usize> {
        let marked = State {
            mark: state.era,
            worker: Worker::Passing,
            ..state
        };
        let mut steps = self.reach(marked)?;
        if state.mark == state.era || state.faults == 0 {
            return Ok(steps);
        }
        for (reached, open) in self.failures() {
            let mut failed = state;
            failed.faults -= 1;
            if reached {
                failed.mark = failed.era;
            }
            if open {
                self.forget(&mut failed);
            }
            if open && tries > 1 {
                failed.worker = Worker::Marking(tries - 1);
            } else if open && reached {
                failed.worker = Worker::Passing;
            } else {
                for index in state.batch() {
                    failed.writers[index] = Writer::Idle;
                }
                failed.worker = Worker::Idle;
            }
            steps += self.reach(failed)?;
        }
        Ok(steps)
    }

    /// How a commit may fail: having reached the disk or not, with metadata that can be opened
    /// again or not.
    fn failures(&self) -> impl Iterator<Item = (bool, bool)> + use<> {
        let open: &[bool] = if self.world.closes {
            &[true, false]
        } else {
            &[true]
        };
        [false, true]
            .into_iter()
            .flat_map(|reached| open.iter().map(move |open| (reached, *open)))
    }

    fn forget(&self, state: &mut State) {
        if self.world.mistake != Mistake::NoForget {
            state.bits[state.epoch] = false;
        }
    }

    fn step_caller(&mut self, mut state: State) -> Outcome<usize> {
        let mistake = self.world.mistake;
        match state.caller {
            Caller::Idle if state.checkpoints > 0 => {
                state.checkpoints -= 1;
                state.caller = if state.undrained && mistake != Mistake::NoDrainOfKilled {
                    Caller::Drain(Drain::Begin, Then::RollOver)
                } else {
                    Caller::Lock
                };
            }
            Caller::Lock if !state.is_locked() => {
                if mistake == Mistake::SwitchBeforeCommit {
                    state.epoch ^= 1;
                }
                state.caller = Caller::Commit(2);
            }
            Caller::Commit(tries) => return self.commit(state, tries),
            Caller::Forget(tries) => {
                self.forget(&mut state);
                state.caller = match tries {
                    0 => Caller::Idle,
                    _ => Caller::Commit(tries),
                };
            }
            Caller::Switch => {
                state.undrained = true;
                if mistake != Mistake::SwitchBeforeCommit {
                    state.epoch ^= 1;
                }
                state.caller = Caller::Drain(Drain::Begin, Then::Return);
            }
            Caller::Drain(drain, then) => return self.drain(state, drain, then),
            _ => return Ok(0),
        }
        self.reach(state)
    }

    /// The era is archived, and a new one begun.
    fn commit(&mut self, state: State, tries: u8) -> Outcome<usize> {
        let mut steps = self.reach(State {
            era: state.era + 1,
            caller: Caller::Switch,
            ..state
        })?;
        if state.faults == 0 {
            return Ok(steps);
        }
        for (reached, open) in self.failures() {
            steps += self.reach(State {
                era: state.era + u8::from(reached),
                faults: state.faults - 1,
                caller: if open {
                    Caller::Forget(tries - 1)
                } else {
                    Caller::Idle
                },
                ..state
            })?;
        }
        Ok(steps)
    }

    fn drain(&mut self, mut state: State, drain: Drain, then: Then) -> Outcome<usize> {
        let mistake = self.world.mistake;
        let old = state.epoch ^ 1;
        let next = match drain {
            Drain::Begin => {
                // It waits for those who are at it when it begins.
                let reading = |writer| matches!(writer, Writer::Read(_));
                if mistake != Mistake::NoGrace {
                    state.grace = state.writers.map(reading);
                }
                Drain::Grace
            }
            Drain::Grace if state.grace == [false; 2] => Drain::First,
            Drain::Grace => return Ok(0),
            Drain::First => {
                if state.kills > 0 {
                    self.reach(State {
                        kills: state.kills - 1,
                        caller: Caller::Idle,
                        ..state
                    })?;
                }
                Drain::Second(state.counts[old][0])
            }
            Drain::Second(first) => {
                if first + state.counts[old][1] == 0 || mistake == Mistake::NoDrain {
                    Drain::Clear
                } else {
                    Drain::First
                }
            }
            Drain::Clear => {
                if mistake != Mistake::NoClear {
                    state.bits[old] = false;
                }
                state.undrained = false;
                state.caller = match then {
                    Then::RollOver => Caller::Lock,
                    Then::Return => Caller::Idle,
                };
                if then == Then::Return {
                    state.promised = state.era;
                }
                return self.reach(state);
            }
        };
        state.caller = Caller::Drain(next, then);
        self.reach(state)
    }
}

/// Explores a world in which all must be well.
fn is_well(world: World) {
    match Explorer::run(world) {
        Ok(explorer) => {
            assert!(explorer.seen.len() > 1000);
            assert!(explorer.kept_promises > 0);
        }
        Err((what, state)) => panic!("{what}: {state:#?}"),
    }
}

/// When a checkpoint has returned, all that is recorded only in older eras has ended, and nothing
/// of that kind comes later.
#[test]
fn promises_are_kept() {
    is_well(World { writes: 2, ..WORLD });
    is_well(World {
        checkpoints: 3,
        ..WORLD
    });
}

/// A checkpoint that was killed promised nothing, and harms no later promise.
#[test]
fn killed_checkpoints() {
    is_well(World {
        writes: 2,
        kills: 1,
        ..WORLD
    });
    is_well(World {
        checkpoints: 3,
        kills: 2,
        ..WORLD
    });
}

/// Commits fail once, twice in a row, and for a checkpoint and a mark; the metadata is opened
/// again.
#[test]
fn failed_commits() {
    is_well(World { faults: 3, ..WORLD });
    is_well(World {
        faults: 2,
        kills: 1,
        ..WORLD
    });
}

/// The same if it cannot be opened until the next step. Bits may then outlive the era on disk;
/// promises are kept.
#[test]
fn metadata_that_is_lost_for_a_while() {
    is_well(World {
        checkpoints: 3,
        faults: 2,
        closes: true,
        strict: false,
        ..WORLD
    });
}

/// Each step is needed: without it, or elsewhere, some interleaving breaks a promise, or the rule
/// that bits stand for the era on disk.
#[test]
fn mistakes_are_found() {
    for (mistake, faults, kills, strict, rule) in [
        (Mistake::NoGrace, 0, 0, false, PROMISE),
        (Mistake::NoDrain, 0, 0, false, PROMISE),
        (Mistake::NoDrainOfKilled, 0, 1, false, PROMISE),
        (Mistake::NoClear, 0, 0, false, PROMISE),
        (Mistake::SwitchBeforeCommit, 2, 0, false, PROMISE),
        (Mistake::NoForget, 2, 0, true, STALE),
        (Mistake::BitBeforeMark, 0, 0, false, PROMISE),
    ] {
        let world = World {
            mistake,
            faults,
            kills,
            strict,
            ..WORLD
        };
        let found = Explorer::run(world).err().map(|(what, _)| what);
        assert_eq!(found, Some(rule), "{mistake:?}");
    }
}
