// SPDX-License-Identifier: GPL-2.0

//! The rollover: all interleavings of a model of `rust/targets/era/rollover.rs`, of the work item
//! in `io.rs`, and of `rust/sys/epochs.rs`. The same model with a step left out or misplaced must
//! fail.
//!
//! There is one block, two writers, the work item that marks, and a thread that sends one
//! checkpoint after the other. A step is as small as another thread can observe; memory is
//! sequentially consistent. Commits may fail whether or not they reach the disk, and waiting
//! threads may be killed.

use std::collections::HashSet;
use std::vec::Vec;

/// The violations that the model reports.
const PROMISE: &str = "a write is in flight that is recorded in no era since the last promise";
const UNMARKED: &str = "a write has passed that is recorded nowhere";
const STALE: &str = "a write has passed by the bit of an older era that nobody drains";
const COUNTS: &str = "the counters differ from what is in flight";
const STUCK: &str = "no thread can continue";

/// The step that the model gets wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// The counters are read without a grace period.
    NoGrace,
    /// The drain does not wait until the sum is zero.
    NoDrain,
    /// An epoch that a killed checkpoint has left undrained is not drained.
    NoDrainOfKilled,
    /// The bits are not cleared after the drain.
    NoClear,
    /// The epoch is switched before the commit.
    SwitchBeforeCommit,
    /// The bits are not cleared when the metadata is opened again.
    NoForget,
    /// The bit is set before the mark is on disk.
    BitBeforeMark,
}

/// What may happen in a run of the model.
#[derive(Clone, Copy)]
struct Scenario {
    mistake: Mistake,
    checkpoints: u8,
    writes: u8,
    /// Number of commits that may fail.
    faults: u8,
    /// Opening the metadata after a failed commit may fail too, until the next step.
    closes: bool,
    /// Number of waits that may be killed.
    kills: u8,
    /// The bits must be right at all times, not only the promises.
    strict: bool,
}

const SCENARIO: Scenario = Scenario {
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
    /// Its write is deferred.
    Deferred,
    /// Its write is in the batch of the work item.
    Batched,
    /// Its write has passed. The newest era on disk with the block was `mark` then.
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
    /// Has the lock, and this number of tries left.
    Marking(u8),
    /// Has the lock, and passes one write after the other.
    Passing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Caller {
    Idle,
    Lock,
    /// Has the lock, and this number of tries left.
    Commit(u8),
    /// Has the lock; the commit has failed, and the metadata was opened again.
    Forget(u8),
    /// Has the lock.
    Switch,
    Drain(Drain, AfterDrain),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Drain {
    Begin,
    Grace,
    /// Reads the counter of the first CPU.
    First,
    /// Has read it, and reads the counter of the second.
    Second(i8),
    Clear,
}

/// What follows a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum AfterDrain {
    RollOver,
    Return,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    writers: [Writer; 2],
    /// Number of writes that each has left.
    left: [u8; 2],
    worker: Worker,
    caller: Caller,
    /// Number of checkpoints left.
    checkpoints: u8,
    /// The era on disk, and the newest era on disk with the block; zero if there is none.
    era: u8,
    mark: u8,
    epoch: usize,
    /// For each epoch, the block's bit, and the counters of the CPUs.
    bits: [bool; 2],
    counts: [[i8; 2]; 2],
    undrained: bool,
    /// The writers for which the grace period waits.
    grace: [bool; 2],
    /// The promise of the last successful checkpoint: every write in flight after it is recorded in
    /// this era or a later one.
    promised: u8,
    faults: u8,
    kills: u8,
}

/// Explores all reachable states, and stops at the first violation.
struct Explorer {
    scenario: Scenario,
    seen: HashSet<State>,
    to_do: Vec<State>,
    kept_promises: usize,
}

type Checked<T = ()> = Result<T, (&'static str, State)>;

impl State {
    fn new(scenario: Scenario, marked: bool) -> Self {
        State {
            writers: [Writer::Idle; 2],
            left: [scenario.writes; 2],
            worker: Worker::Idle,
            caller: Caller::Idle,
            checkpoints: scenario.checkpoints,
            era: 1,
            mark: marked.into(),
            epoch: 0,
            bits: [marked, false],
            counts: [[0; 2]; 2],
            undrained: false,
            grace: [false; 2],
            promised: 0,
            faults: scenario.faults,
            kills: scenario.kills,
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

    /// Passes a write by the bit of the epoch in which it is counted.
    fn pass(&mut self, scenario: Scenario, index: usize, epoch: usize) -> Checked {
        let mark = self.mark;
        self.writers[index] = Writer::Passed { epoch, mark };
        if mark == 0 {
            return Err((UNMARKED, *self));
        }
        // The era has changed, but the checkpoint has not returned yet.
        let awaited = matches!(self.caller, Caller::Forget(_) | Caller::Switch)
            || self.undrained && epoch != self.epoch;
        if mark != self.era && !awaited && scenario.strict {
            return Err((STALE, *self));
        }
        Ok(())
    }

    /// Checks what must hold at any time.
    fn check(&self) -> Checked {
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
    fn run(scenario: Scenario) -> Checked<Self> {
        let mut explorer = Explorer {
            scenario,
            seen: HashSet::new(),
            to_do: Vec::new(),
            kept_promises: 0,
        };
        for marked in [false, true] {
            explorer.reach(State::new(scenario, marked))?;
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

    fn reach(&mut self, state: State) -> Checked<usize> {
        state.check()?;
        if self.seen.insert(state) {
            self.to_do.push(state);
        }
        Ok(1)
    }

    /// `map` and `end_io`. A write is counted on one CPU and uncounted on the other.
    fn step_writer(&mut self, mut state: State, index: usize) -> Checked<usize> {
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
                state.pass(self.scenario, index, epoch)?;
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

    fn step_worker(&mut self, mut state: State) -> Checked<usize> {
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
                if self.scenario.mistake == Mistake::BitBeforeMark {
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
                    state.pass(self.scenario, index, epoch)?;
                }
                if state.batch().next().is_none() {
                    state.worker = Worker::Idle;
                }
                self.reach(state)
            }
            _ => Ok(0),
        }
    }

    /// Marks the block in the era on disk. Writes that cannot be marked fail.
    fn mark(&mut self, state: State, tries: u8) -> Checked<usize> {
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

    /// How a commit may fail: whether it has reached the disk, and whether the metadata can be
    /// opened again.
    fn failures(&self) -> impl Iterator<Item = (bool, bool)> + use<> {
        let open: &[bool] = if self.scenario.closes {
            &[true, false]
        } else {
            &[true]
        };
        [false, true]
            .into_iter()
            .flat_map(|reached| open.iter().map(move |open| (reached, *open)))
    }

    fn forget(&self, state: &mut State) {
        if self.scenario.mistake != Mistake::NoForget {
            state.bits[state.epoch] = false;
        }
    }

    fn step_caller(&mut self, mut state: State) -> Checked<usize> {
        let mistake = self.scenario.mistake;
        match state.caller {
            Caller::Idle if state.checkpoints > 0 => {
                state.checkpoints -= 1;
                state.caller = if state.undrained && mistake != Mistake::NoDrainOfKilled {
                    Caller::Drain(Drain::Begin, AfterDrain::RollOver)
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
                state.caller = Caller::Drain(Drain::Begin, AfterDrain::Return);
            }
            Caller::Drain(drain, after) => return self.drain(state, drain, after),
            _ => return Ok(0),
        }
        self.reach(state)
    }

    /// Archives the era and begins a new one.
    fn commit(&mut self, state: State, tries: u8) -> Checked<usize> {
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

    fn drain(&mut self, mut state: State, drain: Drain, after: AfterDrain) -> Checked<usize> {
        let mistake = self.scenario.mistake;
        let old = state.epoch ^ 1;
        let next = match drain {
            Drain::Begin => {
                // A grace period waits for the readers that exist when it begins.
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
                state.caller = match after {
                    AfterDrain::RollOver => Caller::Lock,
                    AfterDrain::Return => Caller::Idle,
                };
                if after == AfterDrain::Return {
                    state.promised = state.era;
                }
                return self.reach(state);
            }
        };
        state.caller = Caller::Drain(next, after);
        self.reach(state)
    }
}

/// Explores a scenario in which nothing may be violated.
fn is_well(scenario: Scenario) {
    match Explorer::run(scenario) {
        Ok(explorer) => {
            assert!(explorer.seen.len() > 1000);
            assert!(explorer.kept_promises > 0);
        }
        Err((what, state)) => panic!("{what}: {state:#?}"),
    }
}

/// When a checkpoint returns, all writes that are recorded only in older eras have completed, and
/// no such write follows.
#[test]
fn promises_are_kept() {
    is_well(Scenario {
        writes: 2,
        ..SCENARIO
    });
    is_well(Scenario {
        checkpoints: 3,
        ..SCENARIO
    });
}

/// A killed checkpoint promises nothing, and breaks no later promise.
#[test]
fn killed_checkpoints() {
    is_well(Scenario {
        writes: 2,
        kills: 1,
        ..SCENARIO
    });
    is_well(Scenario {
        checkpoints: 3,
        kills: 2,
        ..SCENARIO
    });
}

/// Commits fail once, twice in a row, and for both a checkpoint and a mark; the metadata is opened
/// again.
#[test]
fn failed_commits() {
    is_well(Scenario {
        faults: 3,
        ..SCENARIO
    });
    is_well(Scenario {
        faults: 2,
        kills: 1,
        ..SCENARIO
    });
}

/// Commits fail, and the metadata cannot be opened until the next step. Bits may then outlive the
/// era on disk; promises are kept.
#[test]
fn metadata_that_is_lost_for_a_while() {
    is_well(Scenario {
        checkpoints: 3,
        faults: 2,
        closes: true,
        strict: false,
        ..SCENARIO
    });
}

/// Each step is needed: if it is missing or misplaced, some interleaving breaks a promise, or the
/// rule that bits belong to the era on disk.
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
        let scenario = Scenario {
            mistake,
            faults,
            kills,
            strict,
            ..SCENARIO
        };
        let found = Explorer::run(scenario).err().map(|(what, _)| what);
        assert_eq!(found, Some(rule), "{mistake:?}");
    }
}
