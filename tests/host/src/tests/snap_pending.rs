// SPDX-License-Identifier: GPL-2.0

//! Pending exceptions, compared with a list.

use proptest::prelude::*;

use crate::env::{
    faults,
    KVVec,
    GFP_KERNEL, //
};
use crate::logic::snapshot::{
    chunks::{
        Chunk,
        CowChunk, //
    },
    pending::{
        PendingExceptions,
        Seq,
        Stage,
        LARGE_BATCH, //
    },
    run::Run, //
};

const ROOM: usize = 8;

#[derive(Clone, Debug)]
enum Step {
    Add(u64, u64),
    Copied(usize),
    Begin(usize),
    Committed,
    Pass,
    Lost,
    Remove(usize),
    Look(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u64..64, 1u64..5).prop_map(|(old, len)| Step::Add(old, len)),
        4 => (0..ROOM).prop_map(Step::Copied),
        2 => (1..ROOM).prop_map(Step::Begin),
        2 => Just(Step::Committed),
        1 => Just(Step::Pass),
        1 => Just(Step::Lost),
        3 => (0..ROOM).prop_map(Step::Remove),
        3 => (0u64..70).prop_map(Step::Look),
    ]
}

/// An entry of the list: sequence number, run, stage, and a number that stands for waiting bios.
#[derive(Clone, Debug, PartialEq)]
struct Entry(Seq, Run, Stage, u64);

fn holds(entry: &Entry, chunk: u64) -> bool {
    (entry.1.old.0..entry.1.old.0 + entry.1.len).contains(&chunk)
}

proptest! {
    /// After any operations in any order, sequence numbers, batches, gaps and chunks are those of a
    /// list.
    #[test]
    fn pending_exceptions_are_a_list(steps in proptest::collection::vec(step(), 1..120)) {
        let mut pending = PendingExceptions::<u64>::new(ROOM, GFP_KERNEL).unwrap();
        let mut runs = KVVec::with_capacity(ROOM, GFP_KERNEL).unwrap();
        let mut list: Vec<Entry> = Vec::new();
        // The exceptions that are in no batch, in order, and those of the current batch.
        let mut fresh: Vec<Seq> = Vec::new();
        let mut batch: Option<Vec<Seq>> = None;
        let mut given = 100;
        let mut count = 0;
        for step in steps {
            match step {
                Step::Add(old, len) => {
                    if (old..old + len).any(|chunk| list.iter().any(|entry| holds(entry, chunk))) {
                        continue;
                    }
                    let run = Run { old: Chunk(old), new: CowChunk(given), len };
                    let oldest = list.first().map_or(count, |entry| entry.0.to_bits());
                    prop_assert_eq!(pending.has_room(), count - oldest < ROOM as u64);
                    let stage = if old % 4 == 0 { Stage::Queued } else { Stage::Copying };
                    match pending.add(run, stage, given) {
                        Ok(seq) => {
                            prop_assert_eq!(seq.to_bits(), count);
                            list.push(Entry(seq, run, stage, given));
                            fresh.push(seq);
                            count += 1;
                            given += len;
                        }
                        Err(waiting) => {
                            prop_assert!(waiting == given && count - oldest == ROOM as u64)
                        }
                    }
                }
                Step::Copied(nth) => {
                    let Some(entry) = list.get_mut(nth) else { continue };
                    if entry.2 == Stage::Queued {
                        // Its copy starts.
                        pending.get(entry.0).unwrap().stage = Stage::Copying;
                        entry.2 = Stage::Copying;
                        continue;
                    }
                    pending.set_copied(entry.0);
                    if entry.2 == Stage::Copying {
                        entry.2 = Stage::Copied;
                    }
                }
                Step::Begin(most) => {
                    let mut small = KVVec::with_capacity(most, GFP_KERNEL).unwrap();
                    let target = if most == ROOM - 1 { &mut runs } else { &mut small };
                    let most = if most == ROOM - 1 { ROOM } else { most };
                    let is_copied = |seq: &&Seq| {
                        list.iter()
                            .any(|entry| entry.0 == **seq && entry.2 == Stage::Copied)
                    };
                    let mut ready: Vec<Seq> = fresh
                        .iter()
                        .take_while(is_copied)
                        .copied()
                        .collect();
                    let mut begins = batch.is_none() && !ready.is_empty();
                    if begins {
                        // It waits for a copy in flight.
                        begins = !fresh.get(ready.len()).is_some_and(|seq| {
                            list.iter()
                                .any(|entry| entry.0 == *seq && entry.2 == Stage::Copying)
                        });
                    }
                    ready.truncate(most);
                    prop_assert_eq!(pending.has_batch(), begins);
                    prop_assert_eq!(pending.begin_batch(target), begins);
                    if begins {
                        let run = |seq: &Seq| list.iter().find(|entry| entry.0 == *seq).unwrap().1;
                        let wanted: Vec<Run> = ready.iter().map(run).collect();
                        prop_assert_eq!(&target[..], &wanted[..]);
                        for entry in list.iter_mut().filter(|entry| ready.contains(&entry.0)) {
                            entry.2 = Stage::Committing;
                        }
                        fresh.retain(|seq| !ready.contains(seq));
                        batch = Some(ready);
                    }
                }
                Step::Committed => {
                    pending.batch_committed();
                    for seq in batch.take().unwrap_or_default() {
                        for entry in list.iter_mut().filter(|entry| entry.0 == seq) {
                            entry.2 = Stage::Committed;
                        }
                    }
                }
                Step::Pass => {
                    // Serves a store without records, which has no batches.
                    if batch.is_some() {
                        continue;
                    }
                    pending.commit_copied();
                    while let Some(seq) = fresh.first().copied() {
                        let entry = list.iter_mut().find(|entry| entry.0 == seq).unwrap();
                        if entry.2 != Stage::Copied {
                            break;
                        }
                        entry.2 = Stage::Committed;
                        fresh.remove(0);
                    }
                }
                Step::Lost => {
                    // The exceptions of the batch never become durable.
                    if let Some(lost) = batch.take() {
                        pending.batch_failed();
                        for seq in lost {
                            let removed = pending.remove(seq);
                            let is_listed = list.iter().any(|entry| entry.0 == seq);
                            prop_assert_eq!(removed.is_some(), is_listed);
                            list.retain(|entry| entry.0 != seq);
                        }
                    }
                }
                Step::Remove(nth) => {
                    let Some(entry) = list.get(nth).cloned() else { continue };
                    // Other exceptions are only removed in order, by a store that has failed.
                    if !matches!(entry.2, Stage::Committed) {
                        continue;
                    }
                    let removed = pending.remove(entry.0).unwrap();
                    let removed = Entry(removed.seq, removed.run, removed.stage, removed.waiting);
                    prop_assert_eq!(removed, entry);
                    list.remove(nth);
                }
                Step::Look(chunk) => {
                    let entry = list.iter().find(|entry| holds(entry, chunk));
                    let found = pending
                        .find(Chunk(chunk))
                        .map(|entry| (entry.seq, entry.cow_chunk(Chunk(chunk)).unwrap()));
                    let wanted = entry.map(|entry| {
                        let offset = chunk - entry.1.old.0;
                        (entry.0, (CowChunk(entry.1.new.0 + offset), entry.1.len - offset))
                    });
                    prop_assert_eq!(found, wanted);
                    if entry.is_none() {
                        let olds = list.iter().map(|entry| entry.1.old.0);
                        let next = olds.filter(|old| *old > chunk).min();
                        let gap = next.map_or(40, |old| (old - chunk).min(40));
                        prop_assert_eq!(pending.gap(Chunk(chunk), 40), gap);
                    }
                }
            }
            prop_assert_eq!(pending.is_empty(), list.is_empty());
            prop_assert_eq!(pending.chunks(), list.iter().map(|entry| entry.1.len).sum::<u64>());
            let mut from = pending.first_seq();
            for entry in &list {
                let seq = pending.find_by_stage(from, |_| true).unwrap();
                prop_assert_eq!(seq, entry.0);
                prop_assert_eq!(pending.get(seq).map(|entry| entry.stage), Some(entry.2));
                from = seq.next();
            }
            prop_assert!(pending.find_by_stage(from, |_| true).is_none());
        }
    }
}

/// A large batch does not wait for copies in flight.
#[test]
fn large_batches() {
    const MANY: u64 = LARGE_BATCH + 2;
    let mut pending = PendingExceptions::<u64>::new(MANY as usize, GFP_KERNEL).unwrap();
    let mut runs = KVVec::with_capacity(MANY as usize, GFP_KERNEL).unwrap();
    let mut seqs = Vec::new();
    for number in 0..MANY {
        let run = Run {
            old: Chunk(number),
            new: CowChunk(number + 2),
            len: 1,
        };
        seqs.push(pending.add(run, Stage::Copying, 0).unwrap());
    }
    for (number, seq) in (0..MANY).zip(&seqs) {
        assert_eq!(pending.has_batch(), number >= LARGE_BATCH);
        pending.set_copied(*seq);
    }
    assert!(pending.begin_batch(&mut runs));
    assert_eq!(runs.len() as u64, MANY);
}

#[test]
fn no_memory() {
    for n in 0.. {
        let (pending, reached) =
            faults::with_failing(n, || PendingExceptions::<u64>::new(ROOM, GFP_KERNEL));
        assert_eq!(pending.is_err(), reached);
        if !reached {
            break;
        }
    }
}
