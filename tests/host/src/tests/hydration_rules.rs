// SPDX-License-Identifier: GPL-2.0

//! Background hydration rule by rule.

use std::vec::Vec;

use super::hydration::SimulatedClone;
use super::range;
use crate::logic::clone::hydration::*;
use crate::logic::clone::region_copy::CopyResult;
use crate::logic::regions::RegionRange;

/// Returns the ranges that were copied, in order.
fn copies(clone: &SimulatedClone) -> Vec<(u64, u64)> {
    let numbers = |(_, regions): &(u64, RegionRange)| (regions.start.0, regions.end.0);
    clone.started.iter().map(numbers).collect()
}

/// Returns the times between copies.
fn gaps(clone: &SimulatedClone) -> Vec<u64> {
    clone
        .started
        .windows(2)
        .map(|pair| pair[1].0 - pair[0].0)
        .collect()
}

#[test]
fn batches_are_contiguous_and_capped() {
    let mut clone = SimulatedClone::new(100, [], 10, 64);
    clone.map.insert(&mut clone.writer, range(3, 5));
    clone.user_write(20, 1_000);
    // The threshold limits the batch; a region that is hydrated or in flight ends it. The region of
    // the user does not count.
    assert_eq!(clone.ask(5), HydrationStep::Copy(range(0, 3)));
    assert_eq!(clone.ask(5), HydrationStep::Copy(range(5, 12)));
    assert_eq!(clone.ask(5), HydrationStep::Blocked);
    clone.now += 5;
    clone.finish_due();
    assert_eq!(clone.ask(5), HydrationStep::Copy(range(12, 20)));
    assert_eq!(clone.ask(5), HydrationStep::Copy(range(21, 23)));
}

#[test]
fn batch_zero_is_one_and_threshold_zero_is_off() {
    let mut clone = SimulatedClone::new(4, [], 2, 0);
    assert_eq!(clone.ask(1), HydrationStep::Copy(range(0, 1)));
    assert_eq!(clone.ask(1), HydrationStep::Copy(range(1, 2)));
    assert_eq!(clone.ask(1), HydrationStep::Blocked);
    let mut clone = SimulatedClone::new(4, [], 0, 4);
    assert_eq!(
        clone
            .hydration
            .next(0, &clone.limits, &clone.map, &clone.flight),
        HydrationStep::Blocked
    );
}

#[test]
fn finished_clone_needs_nothing() {
    let mut clone = SimulatedClone::new(64, [], 0, 1);
    clone.map.insert(&mut clone.writer, range(0, 64));
    assert_eq!(clone.ask(0), HydrationStep::Done);
    let mut clone = SimulatedClone::new(0, [], 1, 1);
    assert_eq!(clone.ask(0), HydrationStep::Done);
}

#[test]
fn scan_wraps_to_what_users_left() {
    let mut clone = SimulatedClone::new(8, [2], 8, 8);
    clone.user_write(2, 30);
    clone.run_until(clone.now + 20, |_| 5);
    assert_eq!(copies(&clone), [(0, 2), (3, 8)]);
    assert_eq!(clone.ask(0), HydrationStep::Done);
    // The copy for the user fails, hence the hydration must take the region.
    let failed_at = clone.now + 10;
    clone.sleep_until(u64::MAX);
    clone.bad.clear();
    clone.run_until(clone.now + 5_000, |_| 5);
    assert_eq!(copies(&clone)[2..], [(2, 3)]);
    assert_eq!(clone.started[2].0, failed_at);
    assert_eq!(clone.ask(0), HydrationStep::Done);
}

#[test]
fn busy_users_leave_a_guaranteed_rate() {
    let mut clone = SimulatedClone::new(1_000, [], 100, 4);
    clone.limits.user_busy = true;
    let start = clone.now;
    clone.run_until(start + 1_000, |_| 1);
    assert_eq!(clone.started.len(), 50);
    assert!(gaps(&clone).iter().all(|gap| *gap == MIN_INTERVAL));
    // Without them it runs at full speed, within the threshold.
    clone.limits.user_busy = false;
    let asked = clone.now;
    while matches!(clone.ask(1), HydrationStep::Copy(_)) {}
    assert_eq!(
        clone.started.iter().filter(|(at, _)| *at == asked).count(),
        25
    );
}

#[test]
fn steady_user_writes_leave_a_guaranteed_rate() {
    // At all times more overwrites than the threshold are in flight.
    let mut clone = SimulatedClone::new(1 << 20, [], 1, 1);
    clone.limits.user_busy = true;
    let mut region = 1 << 19;
    for _ in 0..1_000 {
        clone.user_write(region, 10);
        region += 1;
        clone.run_until(clone.now + 2, |_| 1);
        assert!(region < (1 << 19) + 2 || clone.flight.len() >= 2);
    }
    // Two seconds: the clock advances by at least a millisecond with each write.
    assert!(
        clone.started.len() >= 95,
        "{} copies in two seconds",
        clone.started.len()
    );
    assert!(gaps(&clone).iter().all(|gap| *gap >= MIN_INTERVAL));
}

#[test]
fn failed_batch_is_retried_one_by_one_beside_the_scan() {
    let mut clone = SimulatedClone::new(12, [1], 8, 4);
    clone.run_until(clone.now + 500, |_| 5);
    assert_eq!(clone.writer.set(), 11);
    // Its regions are retried one at a time, and the scan continues in between.
    let singles: Vec<_> = clone.started.iter().filter(|(_, r)| r.len() == 1).collect();
    assert_eq!(
        singles.iter().map(|(_, r)| r.start.0).collect::<Vec<_>>(),
        [0, 1, 2, 3]
    );
    assert!(singles.windows(2).all(|pair| pair[1].0 >= pair[0].0 + 5));
    assert!(copies(&clone)[..4].contains(&(8, 12)));
    assert_eq!(clone.hydration.failures(), 2);
}

#[test]
fn backoff_doubles_and_is_reset() {
    let mut clone = SimulatedClone::new(2, [0, 1], 1, 1);
    let start = clone.now;
    clone.run_until(start + 400_000, |_| 0);
    let waits = |clone: &SimulatedClone| -> Vec<u64> {
        gaps(clone)
            .into_iter()
            .filter(|gap| *gap > 100)
            .map(|gap| gap / 1_000)
            .collect()
    };
    assert_eq!(waits(&clone), [1, 2, 4, 8, 16, 32, 64, 64, 64, 64, 64]);
    assert_eq!(clone.hydration.failures(), 24);
    // A success of one of them shortens the wait of the other one again.
    clone.bad.remove(&1);
    clone.started.clear();
    clone.run_until(clone.now + 75_000, |_| 0);
    assert_eq!(clone.writer.set(), 1);
    assert_eq!(waits(&clone)[..4], [1, 2, 4, 8]);
    // So does `reset_backoff`, which also ends the current wait.
    clone.hydration.reset_backoff();
    clone.started.clear();
    let kicked = clone.now;
    clone.run_until(kicked + 8_000, |_| 0);
    assert_eq!(clone.started[0].0, kicked);
    assert_eq!(waits(&clone), [1, 2, 4]);
}

#[test]
fn lost_source_is_not_hammered_and_its_return_is_noticed() {
    let mut clone = SimulatedClone::new(10_000, 0..10_000, 64, 16);
    let start = clone.now;
    clone.run_until(start + 60_000, |_| 0);
    assert!(
        clone.started.len() < 60_000 / MIN_INTERVAL as usize + 64,
        "{}",
        clone.started.len()
    );
    assert!(clone.asked < 3 * clone.started.len() + 10);
    clone.bad.clear();
    let back = clone.now;
    clone.run_until(back + MAX_BACKOFF + 10_000, |_| 1);
    assert!(clone.is_complete());
}

#[test]
fn bad_zone_does_not_hold_up_the_rest() {
    // 100 bad regions come first, each of which takes a second to fail.
    let mut clone = SimulatedClone::new(4_000, 0..100, 32, 8);
    let start = clone.now;
    let slow = |regions: RegionRange| if regions.start.0 < 100 { 1_000 } else { 1 };
    clone.run_until(start + 10_000, slow);
    assert!(clone.writer.set() >= 3_890, "{}", clone.writer.set());
    clone.run_until(start + 120_000, slow);
    assert!(clone.is_complete());
}

#[test]
fn more_failed_batches_than_are_remembered() {
    // Every batch has a bad region, and all of them are in flight at once. No good region waits for
    // the back-off.
    let mut clone = SimulatedClone::new(512, (0..512).step_by(8), 512, 8);
    let start = clone.now;
    clone.run_until(start + 2_500, |_| 3);
    assert_eq!(clone.started[0].0, clone.started[63].0);
    assert!(clone.is_complete(), "{}", clone.writer.set());
}

#[test]
fn what_cannot_start_comes_again() {
    let mut clone = SimulatedClone::new(12, [1], 8, 4);
    let take_back = |clone: &mut SimulatedClone, regions: RegionRange| {
        let step = clone
            .hydration
            .next(clone.now, &clone.limits, &clone.map, &clone.flight);
        assert_eq!(step, HydrationStep::Copy(regions));
        clone.hydration.put_back(clone.now, regions);
    };
    // From the scan: it is the turn of the retries, there are none, and the scan continues.
    take_back(&mut clone, range(0, 4));
    take_back(&mut clone, range(0, 4));
    assert_eq!(clone.ask(0), HydrationStep::Copy(range(0, 4)));
    clone.finish_due();
    // From the retries, which alternate with the scan.
    take_back(&mut clone, range(0, 1));
    take_back(&mut clone, range(4, 8));
    take_back(&mut clone, range(0, 1));
    assert_eq!(clone.hydration.failures(), 1);
    clone.run_until(clone.now + 500, |_| 5);
    assert!(clone.is_complete());
}

#[test]
fn copies_that_could_not_start_are_failures() {
    let mut clone = SimulatedClone::new(4, [], 4, 4);
    let HydrationStep::Copy(regions) = clone.ask(0) else {
        panic!("nothing to copy");
    };
    let slot = clone.flight.find(regions.start).unwrap();
    clone.flight.remove(slot);
    clone
        .hydration
        .copy_done(clone.now, regions, CopyResult::Failed, false);
    assert_eq!(
        clone
            .hydration
            .next(clone.now, &clone.limits, &clone.map, &clone.flight),
        HydrationStep::Copy(range(0, 1))
    );
}

#[test]
fn a_copy_is_never_longer_than_the_longest() {
    let mut clone = SimulatedClone::new(100, [], u32::MAX, u32::MAX);
    clone.limits.max_regions = 7;
    assert_eq!(clone.ask(5), HydrationStep::Copy(range(0, 7)));
    assert_eq!(clone.ask(5), HydrationStep::Copy(range(7, 14)));
}

#[test]
fn slots_are_left_to_writes() {
    // Of 64 slots the hydration may have 40. Beyond 4 copies it leaves 30 slots to overwrites.
    let mut clone = SimulatedClone::new(1_000, [], 1_000, 1);
    (clone.limits.max_copies, clone.limits.reserved_copies) = (40, 4);
    clone.limits.overwrite_slots = 30;
    let next = |clone: &mut SimulatedClone| {
        let step = clone
            .hydration
            .next(clone.now, &clone.limits, &clone.map, &clone.flight);
        match step {
            HydrationStep::Copy(regions) => clone.flight.insert(regions).is_some(),
            step => {
                assert_eq!(step, HydrationStep::Blocked);
                false
            }
        }
    };
    while next(&mut clone) {}
    assert_eq!(clone.flight.len(), 34);
    // With writers in all other slots it finds four.
    let mut clone = SimulatedClone::new(1_000, [], 1_000, 1);
    clone.limits.reserved_copies = 4;
    clone.limits.overwrite_slots = 30;
    (0..60).for_each(|n| clone.user_write(900 + n, 1_000));
    while next(&mut clone) {}
    assert_eq!(clone.flight.len(), 64);
    let mut clone = SimulatedClone::new(1_000, [], 1_000, 1);
    clone.limits.max_copies = 7;
    while next(&mut clone) {}
    assert_eq!(clone.flight.len(), 7);
}

fn prioritize(clone: &mut SimulatedClone, start: u64, end: u64) {
    let mut ranges = PriorityRanges::default();
    ranges.push(range(start, end));
    clone.hydration.prioritize(&mut ranges);
}

#[test]
fn what_is_wanted_comes_first() {
    let mut clone = SimulatedClone::new(100, [], 100, 4);
    assert_eq!(clone.ask(5), HydrationStep::Copy(range(0, 4)));
    prioritize(&mut clone, 50, 55);
    prioritize(&mut clone, 80, 82);
    assert!(clone.hydration.has_priority());
    assert_eq!(clone.ask(5), HydrationStep::Copy(range(50, 54)));
    assert_eq!(clone.ask(5), HydrationStep::Copy(range(54, 55)));
    assert_eq!(clone.ask(5), HydrationStep::Copy(range(80, 82)));
    assert_eq!(clone.ask(5), HydrationStep::Copy(range(4, 8)));
    assert!(!clone.hydration.has_priority());
}

#[test]
fn what_is_wanted_is_copied_without_hydration() {
    let mut clone = SimulatedClone::new(100, [], 100, 4);
    clone.limits.enabled = false;
    assert_eq!(
        clone
            .hydration
            .next(0, &clone.limits, &clone.map, &clone.flight),
        HydrationStep::Blocked
    );
    prioritize(&mut clone, 50, 52);
    prioritize(&mut clone, 50, 52);
    let step = clone
        .hydration
        .next(0, &clone.limits, &clone.map, &clone.flight);
    assert_eq!(step, HydrationStep::Copy(range(50, 52)));
    // There is no slot for it at this moment: it is not lost.
    clone.hydration.put_back(0, range(50, 52));
    assert_eq!(clone.ask(5), HydrationStep::Copy(range(50, 52)));
    assert_eq!(
        clone
            .hydration
            .next(0, &clone.limits, &clone.map, &clone.flight),
        HydrationStep::Blocked
    );
}

#[test]
fn many_priority_ranges_push_out_the_oldest() {
    let mut clone = SimulatedClone::new(1_000, [], 1_000, 1);
    clone.limits.enabled = false;
    for n in 0..100 {
        prioritize(&mut clone, n * 3, n * 3 + 1);
    }
    clone.run_until(clone.now + 10_000, |_| 1);
    let expected: Vec<_> = (68..100).map(|n| (n * 3, n * 3 + 1)).collect();
    assert_eq!(copies(&clone), expected);
}

/// The share of the time with copies in flight.
fn busy_percent(throttle: u32, threshold: u32, takes: u64, over: u64) -> u64 {
    let mut clone = SimulatedClone::new(1 << 20, [], threshold, 1);
    clone.limits.throttle = throttle;
    let start = clone.now;
    clone.run_until(start + over, |_| takes);
    let mut busy = 0;
    let mut until = start;
    for (at, _) in &clone.started {
        let from = (*at).max(until);
        until = at + takes;
        busy += until.saturating_sub(from);
    }
    busy * 100 / over
}

#[test]
fn a_throttle_keeps_its_share() {
    for throttle in [1, 10, 50, 90] {
        for (threshold, takes) in [(1, 3), (1, 70), (8, 30)] {
            let busy = busy_percent(throttle, threshold, takes, 60_000);
            let share = u64::from(throttle);
            assert!(
                busy <= share + share / 10 + 2,
                "{busy} of {throttle}, {threshold}, {takes}"
            );
            assert!(
                busy + share / 10 + 2 >= share,
                "{busy} of {throttle}, {threshold}, {takes}"
            );
        }
    }
    assert!(busy_percent(100, 1, 10, 10_000) >= 99);
    // Nothing stops for good.
    assert!(busy_percent(0, 1, 10, 100_000) >= 1);
}

#[test]
fn what_was_given_up_is_met_again() {
    let mut clone = SimulatedClone::new(20, [], 4, 4);
    let HydrationStep::Copy(regions) = clone.ask(u64::MAX >> 1) else {
        panic!()
    };
    let slot = clone.flight.find(regions.start).unwrap();
    clone.flight.remove(slot);
    clone.forget(slot, regions);
    clone
        .hydration
        .copy_done(clone.now, regions, CopyResult::GivenUp, false);
    assert_eq!(clone.ask(5), HydrationStep::Copy(regions));
    assert_eq!(clone.hydration.failures(), 0);
    // A priority range keeps its priority, with hydration off too.
    clone.limits.enabled = false;
    prioritize(&mut clone, 15, 17);
    assert_eq!(clone.ask(u64::MAX >> 1), HydrationStep::Blocked);
    clone.limits.threshold = 10;
    let HydrationStep::Copy(regions) = clone.ask(u64::MAX >> 1) else {
        panic!()
    };
    assert!(clone.hydration.was_priority());
    let slot = clone.flight.find(regions.start).unwrap();
    clone.flight.remove(slot);
    clone.forget(slot, regions);
    clone
        .hydration
        .copy_done(clone.now, regions, CopyResult::GivenUp, true);
    assert_eq!(clone.ask(5), HydrationStep::Copy(regions));
}
