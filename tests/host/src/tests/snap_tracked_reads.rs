// SPDX-License-Identifier: GPL-2.0

//! Readers that a new exception waits for, against a slow model.

use proptest::prelude::*;

use crate::logic::snapshot::tracked_reads::TrackedReads;

proptest! {
    /// A barrier is never passed while somebody reads who was there before it, and is passed when
    /// all of these are gone and those who came between two looks.
    #[test]
    fn readers_of_before(steps in proptest::collection::vec((0u8..4, 0usize..8), 1..200)) {
        let mut readers = TrackedReads::default();
        let (mut inside, mut barriers) = (Vec::new(), Vec::new());
        let mut now = 0u64;
        for (kind, which) in steps {
            now += 1;
            match kind {
                0 => inside.push((now, readers.track())),
                1 if which < inside.len() => {
                    let (_, generation) = inside.remove(which);
                    let last = readers.stop_tracking(generation);
                    prop_assert_eq!(last, inside.iter().all(|(_, other)| *other != generation));
                }
                2 => barriers.push((now, readers.barrier())),
                _ => barriers.retain(|(since, barrier)| {
                    let before = inside.iter().any(|(entered, _)| entered < since);
                    let passed = readers.has_passed(*barrier);
                    assert!(!(passed && before), "passed with a reader of before");
                    assert!(passed || !inside.is_empty(), "not passed, and nobody reads");
                    !passed
                }),
            }
        }
        // When nobody is left, nobody is waited for.
        for (_, generation) in inside {
            readers.stop_tracking(generation);
        }
        for (_, barrier) in barriers {
            prop_assert!(readers.has_passed(barrier));
        }
    }
}

/// A stream of readers without a gap does not hold up who waits.
#[test]
fn readers_without_end() {
    let mut readers = TrackedReads::default();
    let mut inside = std::collections::VecDeque::from([readers.track(), readers.track()]);
    for _ in 0..10 {
        let barrier = readers.barrier();
        let mut turns = 0;
        while !readers.has_passed(barrier) {
            inside.push_back(readers.track());
            readers.stop_tracking(inside.pop_front().unwrap());
            turns += 1;
            assert!(turns <= 6);
        }
    }
}
