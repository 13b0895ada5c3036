// SPDX-License-Identifier: GPL-2.0

//! Exceptions on their way, and readers that they wait for, against slow models.

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
        Stage, //
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

/// What the book must have: name, run, stage, and a word that stands for what waits.
#[derive(Clone, Debug, PartialEq)]
struct Entry(Seq, Run, Stage, u64);

fn holds(entry: &Entry, chunk: u64) -> bool {
    (entry.1.old.0..entry.1.old.0 + entry.1.len).contains(&chunk)
}

proptest! {
    /// Whatever is done in whatever order: names, batches, gaps and places are those of a list.
    #[test]
    fn book_is_a_list(steps in proptest::collection::vec(step(), 1..120)) {
        let mut book = PendingExceptions::<u64>::new(ROOM, GFP_KERNEL).unwrap();
        let mut runs = KVVec::with_capacity(ROOM, GFP_KERNEL).unwrap();
        let mut list: Vec<Entry> = Vec::new();
        // Of what is in no batch, the first; and the names in the one being committed.
        let mut fresh: Vec<Seq> = Vec::new();
        let mut batch: Option<Vec<Seq>> = None;
        let mut given = 100;
        let mut names = 0;
        for step in steps {
            match step {
                Step::Add(old, len) => {
                    if (old..old + len).any(|chunk| list.iter().any(|it| holds(it, chunk))) {
                        continue;
                    }
                    let run = Run { old: Chunk(old), new: CowChunk(given), len };
                    let oldest = list.first().map_or(names, |it| it.0.to_bits());
                    prop_assert_eq!(book.has_room(), names - oldest < ROOM as u64);
                    match book.add(run, Stage::Copying, given) {
                        Ok(seq) => {
                            prop_assert_eq!(seq.to_bits(), names);
                            list.push(Entry(seq, run, Stage::Copying, given));
                            fresh.push(seq);
                            names += 1;
                            given += len;
                        }
                        Err(waiting) => prop_assert!(waiting == given && names - oldest == ROOM as u64),
                    }
                }
                Step::Copied(nth) => {
                    let Some(entry) = list.get_mut(nth) else { continue };
                    book.set_copied(entry.0);
                    if entry.2 == Stage::Copying {
                        entry.2 = Stage::Copied;
                    }
                }
                Step::Begin(most) => {
                    let mut small = KVVec::with_capacity(most, GFP_KERNEL).unwrap();
                    let target = if most == ROOM - 1 { &mut runs } else { &mut small };
                    let most = if most == ROOM - 1 { ROOM } else { most };
                    let ready: Vec<Seq> = fresh
                        .iter()
                        .take_while(|seq| list.iter().any(|it| it.0 == **seq && it.2 == Stage::Copied))
                        .take(most)
                        .copied()
                        .collect();
                    let begins = batch.is_none() && !ready.is_empty();
                    prop_assert_eq!(book.has_batch(), begins);
                    prop_assert_eq!(book.begin_batch(target), begins);
                    if begins {
                        let wanted: Vec<Run> =
                            ready.iter().map(|seq| list.iter().find(|it| it.0 == *seq).unwrap().1).collect();
                        prop_assert_eq!(&target[..], &wanted[..]);
                        for entry in list.iter_mut().filter(|it| ready.contains(&it.0)) {
                            entry.2 = Stage::Committing;
                        }
                        fresh.retain(|seq| !ready.contains(seq));
                        batch = Some(ready);
                    }
                }
                Step::Committed => {
                    book.batch_committed();
                    for seq in batch.take().unwrap_or_default() {
                        for entry in list.iter_mut().filter(|it| it.0 == seq) {
                            entry.2 = Stage::Committed;
                        }
                    }
                }
                Step::Pass => {
                    // Of a store without records, which has no batches.
                    if batch.is_some() {
                        continue;
                    }
                    book.commit_copied();
                    while let Some(seq) = fresh.first().copied() {
                        let entry = list.iter_mut().find(|it| it.0 == seq).unwrap();
                        if entry.2 != Stage::Copied {
                            break;
                        }
                        entry.2 = Stage::Committed;
                        fresh.remove(0);
                    }
                }
                Step::Lost => {
                    // Then nothing of the batch ever gets any further.
                    if let Some(lost) = batch.take() {
                        book.batch_failed();
                        for seq in lost {
                            let removed = book.remove(seq);
                            prop_assert_eq!(removed.is_some(), list.iter().any(|it| it.0 == seq));
                            list.retain(|it| it.0 != seq);
                        }
                    }
                }
                Step::Remove(nth) => {
                    let Some(entry) = list.get(nth).cloned() else { continue };
                    // What has not been in a batch is taken out from the front only, as of a store
                    // that is given up.
                    if !matches!(entry.2, Stage::Committed) {
                        continue;
                    }
                    let removed = book.remove(entry.0).unwrap();
                    prop_assert_eq!(Entry(removed.seq, removed.run, removed.stage, removed.waiting), entry);
                    list.remove(nth);
                }
                Step::Look(chunk) => {
                    let there = list.iter().find(|it| holds(it, chunk));
                    let found = book.find(Chunk(chunk)).map(|it| (it.seq, it.cow_chunk(Chunk(chunk)).unwrap()));
                    let wanted = there.map(|it| {
                        let offset = chunk - it.1.old.0;
                        (it.0, (CowChunk(it.1.new.0 + offset), it.1.len - offset))
                    });
                    prop_assert_eq!(found, wanted);
                    if there.is_none() {
                        let gap = list.iter().map(|it| it.1.old.0).filter(|old| *old > chunk).min();
                        prop_assert_eq!(book.gap(Chunk(chunk), 40), gap.map_or(40, |old| (old - chunk).min(40)));
                    }
                }
            }
            prop_assert_eq!(book.is_empty(), list.is_empty());
            prop_assert_eq!(book.chunks(), list.iter().map(|it| it.1.len).sum::<u64>());
            let mut from = book.first_seq();
            for entry in &list {
                let seq = book.find_by_stage(from, |_| true).unwrap();
                prop_assert_eq!(seq, entry.0);
                prop_assert_eq!(book.get(seq).map(|it| it.stage), Some(entry.2));
                from = PendingExceptions::<u64>::behind(seq);
            }
            prop_assert!(book.find_by_stage(from, |_| true).is_none());
        }
    }
}

#[test]
fn no_memory_for_a_book() {
    for n in 0.. {
        let (book, reached) =
            faults::with_failing(n, || PendingExceptions::<u64>::new(ROOM, GFP_KERNEL));
        assert_eq!(book.is_err(), reached);
        if !reached {
            break;
        }
    }
}
