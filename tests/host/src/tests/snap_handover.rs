// SPDX-License-Identifier: GPL-2.0

//! Who takes over from whom: all orders of what device-mapper does to two devices with the same COW
//! device, hook by hook, and the same with mistakes that must be noticed.
//!
//! One device has the live table. Another one may be loaded with a table that takes over. Both may
//! be suspended, resumed and removed. A device's lock is held over a suspension and over a resume;
//! a suspension may be interrupted, and another target of the table may fail its `preresume`.

use std::collections::HashSet;
use std::vec;
use std::vec::Vec;

use crate::logic::snapshot::handover::{
    Denied,
    HandoverState,
    Source, //
};

const ROLES: [HandoverState; 6] = [
    HandoverState::New,
    HandoverState::Destination,
    HandoverState::Live,
    HandoverState::Suspended,
    HandoverState::Destroying,
    HandoverState::HandedOver,
];

const TWO: &str = "two tables are live";
const TAKEN: &str = "a table was taken over from while it was in use";
const STALE: &str = "a table is live with what a merge has left in memory";
const STUCK: &str = "the live table is suspended, and nobody can ever be resumed";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// A successor asks device-mapper's flag.
    Flag,
    /// A live table becomes live again only in its `resume`.
    LiveAtResume,
    /// The live table may be resumed although another one waits.
    NoWaiting,
    /// A resume that was denied leaves the role.
    DeniedKeeps,
    /// The store of a merge is not read again.
    NoReload,
    /// Whoever is being destroyed is passed over.
    LeavingStays,
}

/// What is going on with a device, and what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Doing {
    Nothing,
    /// A suspension: bios end, then the flag is set, then `postsuspend` runs.
    Suspending,
    Postsuspend,
    /// A resume: other targets, then `resume`, then the flag is cleared.
    Others,
    Resume,
    Unflag,
    /// The table is being destroyed: it waits, then leaves.
    Waiting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Table {
    /// None: it is not there, yet or any more.
    role: Option<HandoverState>,
    is_merge: bool,
    doing: Doing,
    /// The flag of device-mapper.
    suspended: bool,
    /// From its `resume` on until it is suspended.
    in_use: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    tables: [Table; 2],
    /// Memory is what a merge has left: gaps.
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
        role: Some(HandoverState::Live),
        is_merge,
        doing: Doing::Nothing,
        suspended: false,
        in_use: true,
    };
    let first = State {
        tables: [
            live,
            Table {
                role: None,
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
        taken |= state.tables[0].role == Some(HandoverState::HandedOver);
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
        let is_live = |table: &&Table| table.role.is_some_and(HandoverState::is_live);
        if self.tables.iter().filter(is_live).count() > 1 {
            return Err(TWO);
        }
        // Nothing is going on, and one waits for the other, which is suspended. Whoever tries comes
        // through in the end.
        let idle = |table: &Table| table.doing == Doing::Nothing && table.suspended;
        let waits = self.tables[1].role == Some(HandoverState::Destination)
            && self.tables[0].role.is_some();
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
            let role = table.role.filter(|role| role.has_store())?;
            let suspended = mistake == Mistake::Flag && role.is_live() && table.suspended;
            Some(Source {
                role: if suspended {
                    HandoverState::Suspended
                } else {
                    role
                },
                is_merge: table.is_merge && mistake != Mistake::NoReload,
                is_replaced: false,
            })
        };
        self.tables.iter().find_map(source)
    }

    fn preresume(&mut self, number: usize, mistake: Mistake) -> Result<(), Denied> {
        let source = self.source(mistake);
        let waits = |table: &Table| table.role.is_some_and(HandoverState::is_waiting);
        let is_waited_for = self.tables.iter().any(waits) && mistake != Mistake::NoWaiting;
        let role = self.tables[number].role.as_mut().unwrap();
        let before = *role;
        let result = role.preresume(source, is_waited_for);
        let denied = result.is_err() && mistake == Mistake::DeniedKeeps;
        if denied || mistake == Mistake::LiveAtResume && before == HandoverState::Suspended {
            *role = before;
        }
        if result? {
            self.stale = false;
        }
        Ok(())
    }

    fn resume(&mut self, number: usize, mistake: Mistake) {
        let role = self.tables[number].role.as_mut().unwrap();
        if mistake == Mistake::LiveAtResume && *role == HandoverState::Suspended {
            *role = HandoverState::Live;
        }
        self.tables[number].in_use = *role != HandoverState::HandedOver;
        if role.resume() {
            if self.stale {
                self.problem = Some(STALE);
            }
            let other = &mut self.tables[1 - number];
            if let Some(role) = other.role.as_mut() {
                let leaving = *role == HandoverState::Destroying;
                if other.in_use && role.has_store() {
                    self.problem = Some(TAKEN);
                }
                if !(leaving && mistake == Mistake::LeavingStays) {
                    role.hand_over();
                }
                if leaving && *role == HandoverState::Destroying {
                    // New exceptions begin all the time.
                    self.problem = Some(STUCK);
                }
            }
        }
        self.stale |= self.tables[number].is_merge && self.tables[number].in_use;
    }
}

fn next(state: &State, mistake: Mistake) -> Vec<State> {
    let mut all = vec![];
    if state.loads != 0 && state.tables[1].role.is_none() {
        let mut next = *state;
        next.loads -= 1;
        next.tables[1].suspended = true;
        next.tables[1].in_use = false;
        let source = state.source(Mistake::None);
        next.tables[1].role =
            Some(source.map_or(HandoverState::New, |_| HandoverState::Destination));
        // A new one reads the store.
        next.stale &= source.is_some();
        all.push(next);
    }
    for number in 0..2 {
        let table = &state.tables[number];
        if table.role.is_some() {
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
                    let role = table.role.as_mut().unwrap();
                    if !table.suspended {
                        role.postsuspend();
                    }
                    table.suspended = true;
                    table.in_use = false;
                    if role.destroy() {
                        table.doing = Doing::Waiting;
                    } else {
                        table.role = None;
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
            table.role.as_mut().unwrap().postsuspend();
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
            table.role = None;
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
        (Mistake::LeavingStays, STUCK),
    ] {
        let found = explore(mistake, true, false);
        assert_eq!(found, Err(wanted), "{mistake:?}");
    }
}

#[test]
fn a_table_that_was_replaced_is_not_in_use() {
    // Its `preresume` succeeded, that of another target did not, and then a new table was loaded.
    for is_merge in [false, true] {
        let source = Source {
            role: HandoverState::Live,
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
fn roles_are_numbers_and_back() {
    for role in ROLES {
        assert_eq!(HandoverState::from_bits(role.to_bits()), role);
        assert_eq!(
            role.has_store(),
            role.is_live() || role == HandoverState::Destroying
        );
        assert!(!(role.is_waiting() && role.has_store()));
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
