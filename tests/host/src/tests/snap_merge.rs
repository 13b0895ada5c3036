// SPDX-License-Identifier: GPL-2.0

//! The steps of a merge that is started, stopped and paused, and its batches.

use proptest::prelude::*;
use std::collections::HashSet;
use std::vec::Vec;

use crate::env::{
    KVVec,
    GFP_KERNEL, //
};
use crate::logic::snapshot::{
    chunks::{
        Chunk,
        CowChunk, //
    },
    merge::{
        BatchResult,
        CommitResult,
        MergeState,
        MergeStep, //
    },
    merge_batch::{
        BatchLookup,
        BatchSize, //
    },
    run::Run,
    sort::sort_and_join, //
};

#[test]
fn a_stop_takes_effect_at_once_if_possible() {
    let mut merge = MergeState::new();
    assert!(merge.is_idle() && !merge.has_failed());
    merge.start();
    assert_eq!(merge.next_step(), MergeStep::Read);
    merge.stop();
    merge.batch_read(Ok(true));
    assert!(merge.is_idle());
    merge.start();
    merge.batch_read(Ok(true));
    assert_eq!(merge.next_step(), MergeStep::Preserve);
    merge.stop();
    assert!(merge.is_idle() && !merge.batch_preserved());
    merge.start();
    merge.batch_read(Ok(false));
    assert!(merge.is_finished() && merge.is_idle());
}

#[test]
fn a_failure_is_forgotten_when_it_is_started_again() {
    let mut merge = MergeState::new();
    merge.start();
    merge.batch_read(Err(()));
    assert!(merge.has_failed() && merge.is_idle());
    merge.start();
    assert!(!merge.has_failed());
    assert_eq!(merge.next_step(), MergeStep::Read);
}

#[test]
fn a_pause_ends_with_the_last_of_them() {
    let mut merge = MergeState::new();
    merge.start();
    merge.batch_read(Ok(true));
    merge.pause();
    merge.pause();
    assert!(merge.is_idle() && !merge.has_failed());
    merge.unpause();
    assert!(merge.is_idle());
    merge.unpause();
    assert_eq!(merge.next_step(), MergeStep::Read);
    // A batch that is read during a pause does not begin.
    merge.pause();
    merge.batch_read(Ok(true));
    assert!(merge.is_idle());
    merge.unpause();
    assert_eq!(merge.next_step(), MergeStep::Read);
}

#[test]
fn starts_and_stops_during_a_pause_are_remembered() {
    let mut merge = MergeState::new();
    merge.pause();
    merge.start();
    assert!(merge.is_idle());
    merge.unpause();
    assert_eq!(merge.next_step(), MergeStep::Read);
    merge.pause();
    merge.batch_read(Ok(true));
    merge.stop();
    merge.unpause();
    assert!(merge.is_idle());
    // A failure does not end with a pause, but with a start, which takes effect after the pause.
    merge.start();
    merge.batch_read(Err(()));
    merge.pause();
    merge.unpause();
    assert!(merge.has_failed() && merge.is_idle());
    merge.pause();
    merge.start();
    assert!(!merge.has_failed() && merge.is_idle());
    merge.unpause();
    assert_eq!(merge.next_step(), MergeStep::Read);
}

#[test]
fn a_batch_in_doubt_stays_so_during_a_pause() {
    let mut merge = in_doubt();
    merge.pause();
    merge.start();
    assert!(!merge.has_failed() && merge.is_idle());
    merge.request_restore();
    assert_eq!(merge.next_step(), MergeStep::Restore);
    merge.records_restored(false);
    merge.batch_released();
    // The merge was started, and only waits for the end of the pause.
    assert!(!merge.has_failed() && merge.is_idle());
    merge.unpause();
    assert_eq!(merge.next_step(), MergeStep::Commit);
}

/// Returns a merge whose batch is in doubt.
fn in_doubt() -> MergeState {
    let mut merge = MergeState::new();
    merge.start();
    merge.batch_read(Ok(true));
    assert!(merge.batch_preserved());
    merge.batch_drained();
    merge.all_copies_started();
    merge.batch_committed(CommitResult::InDoubt);
    assert_eq!(merge.next_step(), MergeStep::Release(BatchResult::InDoubt));
    merge.batch_released();
    assert!(merge.has_failed() && merge.is_idle());
    merge
}

#[test]
fn a_write_has_records_in_doubt_written_back() {
    let mut merge = in_doubt();
    merge.request_restore();
    assert_eq!(merge.next_step(), MergeStep::Restore);
    merge.records_restored(false);
    assert_eq!(merge.next_step(), MergeStep::Release(BatchResult::InDoubt));
    merge.batch_released();
    assert!(merge.has_failed() && merge.is_idle());
    merge.request_restore();
    merge.records_restored(true);
    assert_eq!(merge.next_step(), MergeStep::Release(BatchResult::Kept));
    merge.batch_released();
    assert!(merge.has_failed() && merge.is_idle());
    merge.request_restore();
    assert!(merge.is_idle(), "the batch is not in doubt any more");
}

#[test]
fn a_batch_in_doubt_is_committed_when_it_is_started_again() {
    let mut merge = in_doubt();
    merge.start();
    assert_eq!(merge.next_step(), MergeStep::Commit);
    // A start during the handling of a failure is not lost.
    merge.batch_committed(CommitResult::InDoubt);
    merge.start();
    merge.batch_released();
    assert_eq!(merge.next_step(), MergeStep::Commit);
    merge.batch_committed(CommitResult::Cleared);
    merge.batch_released();
    assert_eq!(merge.next_step(), MergeStep::Read);
    let mut merge = in_doubt();
    merge.request_restore();
    merge.start();
    merge.records_restored(true);
    merge.batch_released();
    assert_eq!(merge.next_step(), MergeStep::Read);
}

#[test]
fn the_batch_size_keeps_to_its_bounds() {
    let mut batch_size = BatchSize::new();
    for _ in 0..100 {
        batch_size.adjust(0);
    }
    assert_eq!(batch_size.chunks(4096), 4096);
    batch_size.adjust(100);
    assert_eq!(batch_size.chunks(4096), 4096);
    batch_size.adjust(500);
    assert_eq!(batch_size.chunks(4096), 2048);
    for _ in 0..100 {
        batch_size.adjust(u64::MAX);
    }
    assert_eq!(
        (
            batch_size.chunks(512),
            batch_size.chunks(4096),
            batch_size.chunks(1 << 30)
        ),
        (8, 1, 1)
    );
}

fn runs() -> impl Strategy<Value = Vec<(u64, u64)>> {
    prop::collection::vec((0u64..40, 0u64..40), 0..30)
}

/// Returns a run for each pair whose chunk of the origin occurs for the first time.
fn singles(pairs: &[(u64, u64)]) -> Vec<Run> {
    let mut seen = HashSet::new();
    let first = pairs.iter().filter(|(old, _)| seen.insert(*old));
    let run = |(old, new): &(u64, u64)| Run {
        old: Chunk(*old),
        new: CowChunk(*new),
        len: 1,
    };
    first.map(run).collect()
}

fn vector(runs: &[Run]) -> KVVec<Run> {
    let mut vector = KVVec::with_capacity(runs.len(), GFP_KERNEL).unwrap();
    for run in runs {
        assert!(vector.push_within_capacity(*run).is_ok());
    }
    vector
}

proptest! {
    #[test]
    fn arranged_runs_are_the_same_chunks_in_order(pairs in runs()) {
        let mut wanted: Vec<_> = singles(&pairs).iter().map(|run| (run.old.0, run.new.0)).collect();
        wanted.sort();
        let mut runs = vector(&singles(&pairs));
        sort_and_join(&mut runs);
        let chunks = |run: &Run| {
            let (old, new) = (run.old.0, run.new.0);
            (0..run.len).map(|n| (old + n, new + n)).collect::<Vec<_>>()
        };
        prop_assert_eq!(runs.iter().flat_map(chunks).collect::<Vec<_>>(), wanted);
        let neighbours = |pair: &[Run]| {
            let (a, b) = (pair[0], pair[1]);
            (a.old.0 + a.len, a.new.0 + a.len) == (b.old.0, b.new.0)
        };
        prop_assert!(!runs.windows(2).any(neighbours));
    }

    #[test]
    fn within_tells_what_is_in_the_runs(pairs in runs(), chunk in 0u64..45, max in 1u64..20) {
        let mut runs = vector(&singles(&pairs));
        sort_and_join(&mut runs);
        let has = |run: &Run, chunk| (run.old.0..run.old.0 + run.len).contains(&chunk);
        let is_in = |chunk: u64| runs.iter().any(|run| has(run, chunk));
        let (inside, len) = match BatchLookup::find(&runs, Chunk(chunk), max) {
            BatchLookup::Inside(len) => (true, len),
            BatchLookup::Outside(len) => (false, len),
        };
        prop_assert_eq!(inside, is_in(chunk));
        prop_assert!((1..=max).contains(&len));
        prop_assert!((chunk..chunk + len).all(|chunk| is_in(chunk) == inside));
        prop_assert!(inside || len == max || is_in(chunk + len));
    }
}
