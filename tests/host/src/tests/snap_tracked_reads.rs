// SPDX-License-Identifier: GPL-2.0

//! Tracked reads, compared with a list.

use proptest::prelude::*;

use crate::logic::snapshot::tracked_reads::TrackedReads;

proptest! {
    /// A barrier has not passed while an earlier read is in flight. It has passed when all earlier
    /// reads, and those that began between two checks, have ended.
    #[test]
    fn barriers_wait_for_earlier_reads(
        steps in proptest::collection::vec((0u8..4, 0usize..8), 1..200),
    ) {
        let mut reads = TrackedReads::default();
        let (mut in_flight, mut barriers) = (Vec::new(), Vec::new());
        let mut now = 0u64;
        for (kind, which) in steps {
            now += 1;
            match kind {
                0 => in_flight.push((now, reads.track())),
                1 if which < in_flight.len() => {
                    let (_, generation) = in_flight.remove(which);
                    let last = reads.stop_tracking(generation);
                    prop_assert_eq!(last, in_flight.iter().all(|(_, other)| *other != generation));
                }
                2 => barriers.push((now, reads.barrier())),
                _ => barriers.retain(|(since, barrier)| {
                    let before = in_flight.iter().any(|(began, _)| began < since);
                    let passed = reads.has_passed(*barrier);
                    assert!(!(passed && before), "passed while an earlier read is in flight");
                    assert!(passed || !in_flight.is_empty(), "not passed without reads in flight");
                    !passed
                }),
            }
        }
        // When no read is left, all barriers have passed.
        for (_, generation) in in_flight {
            reads.stop_tracking(generation);
        }
        for (_, barrier) in barriers {
            prop_assert!(reads.has_passed(barrier));
        }
    }
}

/// An endless stream of overlapping reads does not hold up a barrier.
#[test]
fn reads_without_end() {
    let mut reads = TrackedReads::default();
    let mut in_flight = std::collections::VecDeque::from([reads.track(), reads.track()]);
    for _ in 0..10 {
        let barrier = reads.barrier();
        let mut turns = 0;
        while !reads.has_passed(barrier) {
            in_flight.push_back(reads.track());
            reads.stop_tracking(in_flight.pop_front().unwrap());
            turns += 1;
            assert!(turns <= 6);
        }
    }
}
