// SPDX-License-Identifier: GPL-2.0

//! A model of the exception handover that explores all orders of events.
//!
//! Two devices have the same COW device. The model calls the hooks of their tables in every order
//! in which device-mapper may call them. It also explores variants with a mistake, and expects to
//! find an error in each.
//!
//! One device has the live table. The other may be loaded with a table that takes over. Both may be
//! suspended, resumed and removed. A device is locked during a suspend and during a resume. A
//! suspend may be interrupted, and another target of the table may fail its `preresume`.

use std::collections::HashSet;
use std::vec;
use std::vec::Vec;

use crate::logic::snapshot::handover::{
    Denied,
    HandoverState,
    Source, //
};

const STATES: [HandoverState; 6] = [
    HandoverState::New,
    HandoverState::Destination,
    HandoverState::Live,
    HandoverState::Suspended,
    HandoverState::Destroying,
    HandoverState::HandedOver,
];

const TWO: &str = "two tables are live";
const TAKEN: &str = "a destination took over while the source was in use";
const STALE: &str = "a table is live with the exceptions that a merge left in memory";
const STUCK: &str = "the source is suspended, and no table can ever be resumed";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// A destination relies on device-mapper's flag.
    Flag,
    /// A suspended source becomes live only in its `resume`.
    LiveAtResume,
    /// The source may be resumed although a destination waits.
    NoWaiting,
    /// A denied resume keeps the state.
    DeniedKeeps,
    /// The store of a merge is not read again.
    NoReload,
    /// A source that is being destroyed does not hand over.
    DestroyingStays,
}

/// What device-mapper does with a device now. The variants are in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Doing {
    Nothing,
    /// A suspend: bios end, then the flag is set, then `postsuspend` runs.
    Suspending,
    Postsuspend,
    /// A resume: `preresume` of other targets, then `resume`, then the flag is cleared.
    Others,
    Resume,
    Unflag,
    /// The table is being destroyed, and waits for its pending exceptions.
    Waiting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Table {
    /// `None` if the table does not exist.
    state: Option<HandoverState>,
    is_merge: bool,
    doing: Doing,
    /// The flag of device-mapper.
    suspended: bool,
    /// Whether the table is between its `resume` and its suspend.
    in_use: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    tables: [Table; 2],
    /// Whether a merge has removed exceptions from memory.
    stale: bool,
    loads: u8,
    resumes: [u8; 2],
    suspends: [u8; 2],
    removes: [u8; 2],
    faults: u8,
    problem: Option<&'static str>,
}

fn explore(mistake: Mistake, is_merge: bool, merges_next: bool) -> Result<usize, &'static str> {
    let live = Table {
        state: Some(HandoverState::Live),
        is_merge,
        doing: Doing::Nothing,
        suspended: false,
        in_use: true,
    };
    let first = State {
        tables: [
            live,
            Table {
                state: None,
                is_merge: merges_next,
                suspended: true,
                in_use: false,
                ..live
            },
        ],
        stale: is_merge,
        loads: 2,
        resumes: [2, 2],
        suspends: [2, 1],
        removes: [1, 2],
        faults: 1,
        problem: None,
    };
    let mut seen = HashSet::from([first]);
    let mut left = vec![first];
    let mut taken = false;
    while let Some(state) = left.pop() {
        state.check(mistake)?;
        taken |= state.tables[0].state == Some(HandoverState::HandedOver);
        left.extend(
            next(&state, mistake)
                .into_iter()
                .filter(|it| seen.insert(*it)),
        );
    }
    assert!(taken, "nobody ever takes over");
    Ok(seen.len())
}

impl State {
    fn check(&self, mistake: Mistake) -> Result<(), &'static str> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        let is_live = |table: &&Table| table.state.is_some_and(HandoverState::is_live);
        if self.tables.iter().filter(is_live).count() > 1 {
            return Err(TWO);
        }
        // Both devices are idle, and the destination waits for its source, which is suspended. One
        // of them must be able to resume.
        let idle = |table: &Table| table.doing == Doing::Nothing && table.suspended;
        let waits = self.tables[1].state == Some(HandoverState::Destination)
            && self.tables[0].state.is_some();
        if waits && self.tables.iter().all(idle) {
            let mut state = *self;
            for number in [1, 0, 1] {
                if state.preresume(number, mistake).is_ok() {
                    return Ok(());
                }
            }
            return Err(STUCK);
        }
        Ok(())
    }

    fn source(&self, mistake: Mistake) -> Option<Source> {
        let source = |table: &Table| {
            let handover = table.state.filter(|handover| handover.has_store())?;
            let suspended = mistake == Mistake::Flag && handover.is_live() && table.suspended;
            Some(Source {
                state: if suspended {
                    HandoverState::Suspended
                } else {
                    handover
                },
                is_merge: table.is_merge && mistake != Mistake::NoReload,
                is_replaced: false,
            })
        };
        self.tables.iter().find_map(source)
    }

    fn preresume(&mut self, number: usize, mistake: Mistake) -> Result<(), Denied> {
        let source = self.source(mistake);
        let waits = |table: &Table| table.state.is_some_and(HandoverState::is_waiting);
        let is_waited_for = self.tables.iter().any(waits) && mistake != Mistake::NoWaiting;
        let handover = self.tables[number].state.as_mut().unwrap();
        let before = *handover;
        let result = handover.preresume(source, is_waited_for);
        let denied = result.is_err() && mistake == Mistake::DeniedKeeps;
        if denied || mistake == Mistake::LiveAtResume && before == HandoverState::Suspended {
            *handover = before;
        }
        if result? {
            self.stale = false;
        }
        Ok(())
    }

    fn resume(&mut self, number: usize, mistake: Mistake) {
        let handover = self.tables[number].state.as_mut().unwrap();
        if mistake == Mistake::LiveAtResume && *handover == HandoverState::Suspended {
            *handover = HandoverState::Live;
        }
        self.tables[number].in_use = *handover != HandoverState::HandedOver;
        if handover.resume() {
            if self.stale {
                self.problem = Some(STALE);
            }
            let other = &mut self.tables[1 - number];
            if let Some(handover) = other.state.as_mut() {
                let leaving = *handover == HandoverState::Destroying;
                if other.in_use && handover.has_store() {
                    self.problem = Some(TAKEN);
                }
                if !(leaving && mistake == Mistake::DestroyingStays) {
                    handover.hand_over();
                }
                if leaving && *handover == HandoverState::Destroying {
                    // It keeps starting exceptions, and never becomes idle.
                    self.problem = Some(STUCK);
                }
            }
        }
        self.stale |= self.tables[number].is_merge && self.tables[number].in_use;
    }
}

fn next(state: &State, mistake: Mistake) -> Vec<State> {
    let mut all = vec![];
    if state.loads != 0 && state.tables[1].state.is_none() {
        let mut next = *state;
        next.loads -= 1;
        next.tables[1].suspended = true;
        next.tables[1].in_use = false;
        let source = state.source(Mistake::None);
        next.tables[1].state =
            Some(source.map_or(HandoverState::New, |_| HandoverState::Destination));
        // A new table reads the store.
        next.stale &= source.is_some();
        all.push(next);
    }
    for number in 0..2 {
        let table = &state.tables[number];
        if table.state.is_some() {
            step(state, number, mistake, &mut all);
        }
    }
    all
}

fn step(state: &State, number: usize, mistake: Mistake, all: &mut Vec<State>) {
    let table = &state.tables[number];
    let with = |change: &dyn Fn(&mut State, &mut Table)| {
        let mut next = *state;
        let mut table = next.tables[number];
        change(&mut next, &mut table);
        next.tables[number] = table;
        next
    };
    match table.doing {
        Doing::Nothing => {
            if !table.suspended && state.suspends[number] != 0 {
                all.push(with(&|next, table| {
                    next.suspends[number] -= 1;
                    table.doing = Doing::Suspending;
                }));
            }
            if table.suspended && state.resumes[number] != 0 {
                let mut next = *state;
                next.resumes[number] -= 1;
                if next.preresume(number, mistake).is_ok() {
                    next.tables[number].doing = Doing::Others;
                }
                all.push(next);
            }
            if state.removes[number] != 0 {
                all.push(with(&|next, table| {
                    next.removes[number] -= 1;
                    let handover = table.state.as_mut().unwrap();
                    if !table.suspended {
                        handover.postsuspend();
                    }
                    table.suspended = true;
                    table.in_use = false;
                    if handover.destroy() {
                        table.doing = Doing::Waiting;
                    } else {
                        table.state = None;
                    }
                }));
            }
        }
        Doing::Suspending => {
            all.push(with(&|_, table| {
                table.suspended = true;
                table.doing = Doing::Postsuspend;
            }));
            if state.faults != 0 {
                all.push(with(&|next, table| {
                    next.faults -= 1;
                    table.doing = Doing::Nothing;
                }));
            }
        }
        Doing::Postsuspend => all.push(with(&|_, table| {
            table.state.as_mut().unwrap().postsuspend();
            table.in_use = false;
            table.doing = Doing::Nothing;
        })),
        Doing::Others => {
            all.push(with(&|_, table| table.doing = Doing::Resume));
            if state.faults != 0 {
                all.push(with(&|next, table| {
                    next.faults -= 1;
                    table.doing = Doing::Nothing;
                }));
            }
        }
        Doing::Resume => {
            let mut next = *state;
            next.resume(number, mistake);
            next.tables[number].doing = Doing::Unflag;
            all.push(next);
        }
        Doing::Unflag => all.push(with(&|_, table| {
            table.suspended = false;
            table.doing = Doing::Nothing;
        })),
        Doing::Waiting => all.push(with(&|_, table| {
            table.state = None;
            table.doing = Doing::Nothing;
        })),
    }
}

#[test]
fn every_order_of_hooks_is_right() {
    for is_merge in [false, true] {
        for merges_next in [false, true] {
            let states = explore(Mistake::None, is_merge, merges_next);
            assert!(states.unwrap() > 1000);
        }
    }
}

#[test]
fn mistakes_are_noticed() {
    for (mistake, wanted) in [
        (Mistake::Flag, TAKEN),
        (Mistake::LiveAtResume, TAKEN),
        (Mistake::NoWaiting, TAKEN),
        (Mistake::DeniedKeeps, STUCK),
        (Mistake::NoReload, STALE),
        (Mistake::DestroyingStays, STUCK),
    ] {
        let found = explore(mistake, true, false);
        assert_eq!(found, Err(wanted), "{mistake:?}");
    }
}

#[test]
fn a_table_that_was_replaced_is_not_in_use() {
    // Its `preresume` succeeded, that of another target failed, and then a new table was loaded.
    for is_merge in [false, true] {
        let source = Source {
            state: HandoverState::Live,
            is_merge,
            is_replaced: true,
        };
        assert_eq!(
            HandoverState::Destination.preresume(Some(source), true),
            Ok(is_merge)
        );
    }
}

#[test]
fn states_are_numbers_and_back() {
    for handover in STATES {
        assert_eq!(HandoverState::from_bits(handover.to_bits()), handover);
        assert_eq!(
            handover.has_store(),
            handover.is_live() || handover == HandoverState::Destroying
        );
        assert!(!(handover.is_waiting() && handover.has_store()));
    }
}

#[test]
fn denials_say_what_c_says() {
    assert!(Denied::DestinationWaits
        .text()
        .contains("source until handover completes"));
    assert!(Denied::SourceInUse
        .text()
        .contains("until source is suspended"));
}
