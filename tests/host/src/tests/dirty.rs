// SPDX-License-Identifier: GPL-2.0

//! The logs of a transaction against sets of regions.

use proptest::prelude::*;
use std::collections::{
    BTreeMap,
    BTreeSet, //
};
use std::vec::Vec;

use super::{
    range,
    with_all_faults, //
};
use crate::env::{
    faults,
    EINVAL, //
};
use crate::logic::clone::dirty::*;

const CAPACITY: usize = 6;

#[derive(Clone, Debug)]
enum Op {
    Reserve(usize),
    Unreserve(usize),
    Record(u64, u64),
    Begin,
    CopyResult(bool),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        3 => (0usize..4).prop_map(Op::Reserve),
        1 => (0usize..2).prop_map(Op::Unreserve),
        4 => (0u64..300, 1u64..4).prop_map(|(start, len)| Op::Record(start, len)),
        1 => (0u64..300, 1u64..300).prop_map(|(start, len)| Op::Record(start, len)),
        2 => Just(Op::Begin),
        2 => any::<bool>().prop_map(Op::CopyResult),
    ];
    prop::collection::vec(op, 0..120)
}

/// Returns the regions that a log would write. Checks that its words are in order.
fn regions_of(log: &RangeLog) -> Result<BTreeSet<u64>, TestCaseError> {
    let words: Vec<(u64, u64)> = log.words().collect();
    prop_assert!(
        words.windows(2).all(|pair| pair[0].0 < pair[1].0),
        "{:?}",
        words
    );
    prop_assert!(words.iter().all(|(_, mask)| *mask != 0));
    let bits = |(index, mask): (u64, u64)| {
        (0..64)
            .filter(move |bit| mask >> bit & 1 == 1)
            .map(move |bit| index * 64 + bit)
    };
    Ok(words.into_iter().flat_map(bits).collect())
}

proptest! {
    #[test]
    fn every_region_is_committed_once_flushed(ops in ops()) {
        let mut logs = DirtyLogs::new(CAPACITY).unwrap();
        let mut current = BTreeSet::new();
        let mut committing: Option<(RangeLog, BTreeSet<u64>)> = None;
        let mut reserved = 0;
        for op in ops {
            match op {
                Op::Reserve(n) => {
                    if logs.reserve(n) {
                        reserved += n;
                    }
                    prop_assert!(reserved <= CAPACITY);
                }
                Op::Unreserve(n) => {
                    let n = n.min(reserved);
                    logs.unreserve(n);
                    reserved -= n;
                }
                Op::Record(start, len) if reserved > 0 => {
                    prop_assert!(logs.record(range(start, start + len)));
                    current.extend(start..start + len);
                    reserved -= 1;
                }
                Op::Record(..) => {}
                Op::Begin => match logs.begin_commit() {
                    None => prop_assert!(current.is_empty() || committing.is_some()),
                    Some(mut log) => {
                        prop_assert!(committing.is_none() && !log.is_empty());
                        log.normalize();
                        let regions = regions_of(&log)?;
                        prop_assert_eq!(&regions, &current);
                        prop_assert!(log.len() <= 2 * CAPACITY);
                        committing = Some((log, core::mem::take(&mut current)));
                    }
                },
                Op::CopyResult(committed) => {
                    if let Some((log, regions)) = committing.take() {
                        logs.end_commit(log, committed);
                        if !committed {
                            current.extend(regions);
                        }
                    }
                }
            }
            prop_assert_eq!(logs.reserved(), reserved);
            prop_assert_eq!(logs.is_dirty(), !current.is_empty() || committing.is_some());
            prop_assert_eq!(logs.is_committing(), committing.is_some());
        }
        // A commit that succeeds returns all room.
        if let Some((log, _)) = committing {
            logs.end_commit(log, true);
        }
        if let Some(log) = logs.begin_commit() {
            logs.end_commit(log, true);
        }
        prop_assert!(!logs.is_dirty());
        prop_assert!(logs.reserve(CAPACITY - reserved));
        prop_assert!(!logs.reserve(1));
    }

    #[test]
    fn words_cover_the_ranges(ranges in prop::collection::vec((0u64..2000, 0u64..200), 0..200)) {
        let mut logs = DirtyLogs::new(200).unwrap();
        let mut model = BTreeSet::new();
        for (start, len) in &ranges {
            prop_assert!(logs.reserve(1));
            prop_assert!(logs.record(range(*start, start + len)));
            model.extend(*start..start + len);
        }
        let Some(mut log) = logs.begin_commit() else {
            prop_assert!(model.is_empty());
            return Ok(());
        };
        let union: BTreeSet<u64> = log.ranges().flat_map(|r| r.start.0..r.end.0).collect();
        prop_assert_eq!(&union, &model);
        log.normalize();
        let sorted: Vec<_> = log.ranges().collect();
        prop_assert!(sorted.windows(2).all(|pair| pair[0].end < pair[1].start));
        prop_assert_eq!(regions_of(&log)?, model.clone());
        let mut by_word: BTreeMap<u64, u64> = BTreeMap::new();
        for region in model {
            *by_word.entry(region / 64).or_default() |= 1 << (region % 64);
        }
        prop_assert_eq!(log.words().collect::<Vec<_>>(), by_word.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn words_of_an_unsorted_log_end(
        ranges in prop::collection::vec((prop_oneof![0u32..200, any::<u32>()], 0u32..9), 0..40),
    ) {
        let mut logs = DirtyLogs::new(40).unwrap();
        let mut model = BTreeSet::new();
        for (start, len) in ranges {
            let (start, end) = (u64::from(start), u64::from(start) + u64::from(len));
            prop_assert!(logs.reserve(1));
            if logs.record(range(start, end)) {
                model.extend(start..end);
            } else {
                prop_assert!(end > u64::from(u32::MAX));
            }
        }
        if let Some(mut log) = logs.begin_commit() {
            let limit = 3 * log.len();
            prop_assert!(log.words().take(limit + 1).count() <= limit);
            let bits = |(index, mask): (u64, u64)| {
                (0..64).filter(move |bit| mask >> bit & 1 == 1).map(move |bit| index * 64 + bit)
            };
            prop_assert_eq!(log.words().flat_map(bits).collect::<BTreeSet<_>>(), model);
            log.normalize();
            prop_assert!(log.words().take(limit + 1).count() <= limit);
        }
    }
}

#[test]
fn neighbours_share_an_entry() {
    let mut logs = DirtyLogs::new(4).unwrap();
    for region in 100..200 {
        assert!(logs.reserve(3));
        assert!(logs.record(range(region, region + 1)));
        logs.unreserve(2);
    }
    for region in (0..100).rev() {
        assert!(logs.reserve(1));
        assert!(logs.record(range(region, region + 1)));
    }
    assert!(!logs.is_half_full());
    assert_eq!(logs.begin_commit().unwrap().len(), 1);
}

#[test]
fn largest_discard_is_one_entry() {
    let mut logs = DirtyLogs::new(4).unwrap();
    assert!(logs.reserve(1));
    assert!(logs.record(range(0, 1 << 31)));
    let mut log = logs.begin_commit().unwrap();
    log.normalize();
    assert_eq!(log.len(), 1);
    assert_eq!(log.words().count(), 1 << 25);
    assert_eq!(log.words().last(), Some(((1 << 25) - 1, u64::MAX)));
}

#[test]
fn half_full_counts_entries() {
    let mut logs = DirtyLogs::new(4).unwrap();
    assert!(logs.reserve(4));
    assert!(!logs.is_half_full());
    logs.record(range(0, 1));
    assert!(!logs.is_half_full());
    logs.record(range(5, 6));
    assert!(logs.is_half_full());
    assert!(!logs.reserve(1));
}

#[test]
fn failed_commits_come_first_and_fit() {
    let mut logs = DirtyLogs::new(2).unwrap();
    assert!(logs.reserve(2));
    logs.record(range(10, 11));
    logs.record(range(20, 21));
    let log = logs.begin_commit().unwrap();
    assert!(logs.begin_commit().is_none());
    assert!(logs.reserve(2));
    logs.record(range(0, 1));
    logs.end_commit(log, false);
    // One reservation is left, and remains valid. There is no room for more.
    assert!(!logs.reserve(1));
    assert!(logs.record(range(30, 31)));
    let log = logs.begin_commit().unwrap();
    let starts: Vec<u64> = log.ranges().map(|range| range.start.0).collect();
    assert_eq!(starts, [10, 20, 0, 30]);
    // The log that is being committed takes all the room.
    assert!(!logs.reserve(1));
    logs.end_commit(log, true);
    assert!(logs.reserve(2));
}

#[test]
fn no_capacity() {
    assert_eq!(DirtyLogs::new(0).err(), Some(EINVAL));
    assert!(DirtyLogs::new(usize::MAX).is_err());
}

#[test]
fn allocations_may_fail() {
    let (mut logs, failures) = with_all_faults(|| DirtyLogs::new(8));
    assert_eq!(failures, 2);
    // Nothing else allocates.
    let (_, reached) = faults::with_failing(0, || {
        for round in 0..3 {
            assert!(logs.reserve(8));
            for region in 0..8 {
                assert!(logs.record(range(20 - region * 2, 21 - region * 2)));
            }
            let mut log = logs.begin_commit().unwrap();
            log.normalize();
            assert_eq!(log.words().count(), 1);
            logs.end_commit(log, round != 0);
            if let Some(log) = logs.begin_commit() {
                logs.end_commit(log, true);
            }
        }
    });
    assert!(!reached);
}
