// SPDX-License-Identifier: GPL-2.0

//! Copies segment by segment, with errors, and given up at any moment, against what holds for all
//! copies.

use proptest::prelude::*;
use std::vec::Vec;

use super::{
    range,
    with_all_faults, //
};
use crate::logic::clone::inflight::*;
use crate::logic::clone::region_copy::*;
use crate::logic::units::{
    Sector,
    Sectors, //
};

#[derive(Clone, Debug)]
enum Op {
    Take,
    Read(prop::sample::Index, bool),
    Written(prop::sample::Index, bool),
    GiveUp,
}

fn op() -> impl Strategy<Value = Op> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        8 => Just(Op::Take),
        6 => (index(), prop::bool::weighted(0.97)).prop_map(|(i, ok)| Op::Read(i, ok)),
        6 => (index(), prop::bool::weighted(0.97)).prop_map(|(i, ok)| Op::Written(i, ok)),
        1 => Just(Op::GiveUp),
    ]
}

proptest! {
    #[test]
    fn every_sector_is_written_once_or_the_end_says_otherwise(
        start in 0u64..1 << 40,
        len in 1u64..20_000,
        ops in prop::collection::vec(op(), 0..200),
    ) {
        let mut copy = RegionCopy::new(Sector(start), Sectors(len), CopyReason::Hydration);
        let (mut reading, mut writing, mut done) = (Vec::new(), Vec::new(), Vec::new());
        let (mut failed, mut given_up, mut taken) = (false, false, 0);
        for op in ops {
            match op {
                Op::Take => {
                    let Some((at, sectors)) = copy.next_segment() else { continue };
                    prop_assert!(!failed && !given_up);
                    prop_assert!(sectors <= MAX_SEGMENT && sectors.get() > 0);
                    prop_assert!(!copy.start_read(Sector(at.get() + 1)));
                    prop_assert!(copy.start_read(at));
                    reading.push((at.get(), sectors.get()));
                    taken += sectors.get();
                }
                Op::Read(index, ok) if !reading.is_empty() && !given_up => {
                    let segment = reading.remove(index.index(reading.len()));
                    failed |= !ok;
                    let write = copy.read_done(ok);
                    prop_assert_eq!(write, !failed);
                    if write {
                        writing.push(segment);
                    }
                }
                Op::Written(index, ok) if !writing.is_empty() => {
                    let segment = writing.remove(index.index(writing.len()));
                    failed |= !ok;
                    copy.write_done(ok);
                    if ok {
                        done.push(segment);
                    }
                }
                Op::GiveUp => {
                    copy.give_up();
                    given_up |= taken < len || !reading.is_empty();
                    reading.clear();
                }
                _ => {}
            }
            prop_assert!(reading.len() + writing.len() <= 8);
            let idle = reading.is_empty() && writing.is_empty();
            let copied = done.iter().map(|segment| segment.1).sum::<u64>() == len;
            let expected = match (idle, given_up, failed) {
                (false, ..) => None,
                (true, true, _) => Some(CopyResult::GivenUp),
                (true, false, true) => Some(CopyResult::Failed),
                (true, false, false) => copied.then_some(CopyResult::Copied),
            };
            prop_assert_eq!(copy.result(), expected);
        }
        // Segments that were written do not overlap.
        done.sort();
        for pair in done.windows(2) {
            prop_assert!(pair[0].0 + pair[0].1 <= pair[1].0);
        }
    }
}

#[test]
fn writers_come_first_and_each_copy_is_queued_once() {
    let mut flight = InFlight::<()>::new(4).unwrap();
    let mut ready_copies = ReadyCopies::new(4).unwrap();
    let mut slots = Vec::new();
    for n in 0..4 {
        let reason = [
            CopyReason::Hydration,
            CopyReason::Priority,
            CopyReason::Write,
            CopyReason::Hydration,
        ][n as usize];
        let copy = RegionCopy::new(Sector(n * 8), Sectors(8), reason);
        slots.push((flight.insert(range(n, n + 1)).unwrap(), copy));
    }
    // Twice, to wrap around the end of the queues.
    for _ in 0..2 {
        for (slot, copy) in slots.iter().chain(&slots) {
            ready_copies.push(*slot, copy);
        }
        let mut order = Vec::new();
        while let Some(first) = ready_copies.first() {
            order.push(first);
            ready_copies.pop();
            assert!(order.len() <= 4);
        }
        assert_eq!(order, [2, 0, 1, 3].map(|n| slots[n].0));
    }
    ready_copies.push(slots[0].0, &slots[0].1);
    ready_copies.clear();
    assert_eq!(ready_copies.first(), None);
}

#[test]
fn copies_that_have_ended_take_no_room() {
    let mut flight = InFlight::<()>::new(3).unwrap();
    let mut ready_copies = ReadyCopies::new(3).unwrap();
    let copy = RegionCopy::new(Sector(0), Sectors(8), CopyReason::Hydration);
    let mut last = Vec::new();
    for _ in 0..5 {
        last = (0..3)
            .map(|n| flight.insert(range(n, n + 1)).unwrap())
            .collect();
        for slot in &last {
            ready_copies.push(*slot, &copy);
        }
        for slot in &last {
            flight.remove(*slot).unwrap();
        }
    }
    // The latest slot of each place is queued, and no other.
    for _ in 0..3 {
        let first = ready_copies.first().unwrap();
        assert!(last.contains(&first));
        ready_copies.pop();
    }
    assert_eq!(ready_copies.first(), None);
}

#[test]
fn a_copy_with_nothing_to_start_is_not_queued() {
    let mut flight = InFlight::<()>::new(1).unwrap();
    let slot = flight.insert(range(0, 1)).unwrap();
    let mut ready_copies = ReadyCopies::new(1).unwrap();
    let mut copy = RegionCopy::new(Sector(0), Sectors(8), CopyReason::Write);
    assert!(copy.start_read(Sector(0)));
    ready_copies.push(slot, &copy);
    assert_eq!(ready_copies.first(), None);
}

#[test]
fn allocations_may_fail() {
    let (_, failures) = with_all_faults(|| ReadyCopies::new(8));
    assert_eq!(failures, 4);
}
