// SPDX-License-Identifier: GPL-2.0

//! Ranges in flight against a sorted map.

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
use crate::env::faults;
use crate::logic::clone::inflight::*;
use crate::logic::regions::Region;

const SLOTS: usize = 12;

#[derive(Clone, Debug)]
enum Op {
    Insert(u64, u64),
    Remove(prop::sample::Index),
    Wait(u64, u32),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => (0u64..100, 0u64..8).prop_map(|(start, len)| Op::Insert(start, len)),
        3 => any::<prop::sample::Index>().prop_map(Op::Remove),
        3 => (0u64..110, any::<u32>()).prop_map(|(region, waiter)| Op::Wait(region, waiter)),
    ];
    prop::collection::vec(op, 0..100)
}

/// The ranges that should be in flight, by their start.
type Model = BTreeMap<u64, (u64, Slot, Vec<u32>)>;

/// Compares all queries, for every region in reach.
fn compare(flight: &InFlight<Vec<u32>>, model: &Model) -> Result<(), TestCaseError> {
    prop_assert_eq!(flight.len(), model.len());
    prop_assert_eq!(flight.is_empty(), model.is_empty());
    prop_assert_eq!(flight.free_slots(), SLOTS - model.len());
    let regions: u64 = model.iter().map(|(start, (end, ..))| end - start).sum();
    prop_assert_eq!(flight.regions(), regions);
    let listed: Vec<_> = flight
        .iter()
        .map(|(slot, r)| (r.start.0, r.end.0, slot))
        .collect();
    let expected: Vec<_> = model
        .iter()
        .map(|(start, (end, slot, _))| (*start, *end, *slot))
        .collect();
    prop_assert_eq!(listed, expected);
    let slots: BTreeSet<usize> = model.values().map(|(_, slot, _)| slot.index()).collect();
    prop_assert_eq!(slots.len(), model.len());
    prop_assert!(slots.iter().all(|slot| *slot < SLOTS));

    for region in 0..112 {
        let holder = model
            .iter()
            .find(|(start, (end, ..))| (**start..*end).contains(&region));
        prop_assert_eq!(
            flight.find(Region(region)),
            holder.map(|(_, (_, slot, _))| *slot)
        );
        for len in [0, 1, 9, 200] {
            let asked = range(region, region + len);
            let first = model
                .iter()
                .find(|(start, (end, ..))| **start < region + len && region < *end && len > 0)
                .map(|(start, (end, slot, _))| (*slot, range(*start, *end)));
            prop_assert_eq!(flight.first_overlap(asked), first);
            let clear = (region..region + len)
                .take_while(|r| {
                    !model
                        .iter()
                        .any(|(start, (end, ..))| (*start..*end).contains(r))
                })
                .count() as u64;
            prop_assert_eq!(flight.clear_prefix(asked), clear);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn is_a_map_of_disjoint_ranges(ops in ops()) {
        let mut flight = InFlight::<Vec<u32>>::new(SLOTS).unwrap();
        let mut model = Model::new();
        let mut removed = Vec::new();
        for op in ops {
            match op {
                Op::Insert(start, len) => {
                    let end = start + len;
                    let free = model.len() < SLOTS
                        && len > 0
                        && !model.iter().any(|(s, (e, ..))| *s < end && start < *e);
                    let slot = flight.insert(range(start, end));
                    prop_assert_eq!(slot.is_some(), free);
                    if let Some(slot) = slot {
                        prop_assert!(flight.get_mut(slot).unwrap().is_empty());
                        prop_assert_eq!(flight.range(slot), Some(range(start, end)));
                        model.insert(start, (end, slot, Vec::new()));
                    }
                }
                Op::Remove(index) if !model.is_empty() => {
                    let start = *model.keys().nth(index.index(model.len())).unwrap();
                    let (end, slot, waiters) = model.remove(&start).unwrap();
                    prop_assert_eq!(flight.remove(slot), Some((range(start, end), waiters)));
                    removed.push(slot);
                }
                Op::Remove(_) => {}
                Op::Wait(region, waiter) => {
                    if let Some(slot) = flight.find(Region(region)) {
                        flight.get_mut(slot).unwrap().push(waiter);
                        let holder = model.values_mut().find(|(_, s, _)| *s == slot);
                        holder.unwrap().2.push(waiter);
                    }
                }
            }
            // A name is valid for one entry only, even if the place is used again.
            for &slot in &removed {
                prop_assert_eq!(flight.range(slot), None);
                prop_assert!(flight.get_mut(slot).is_none());
                prop_assert!(flight.remove(slot).is_none());
            }
            compare(&flight, &model)?;
        }
    }
}

#[test]
fn refuses_what_is_no_range() {
    let mut flight = InFlight::<()>::new(2).unwrap();
    assert!(flight.insert(range(5, 5)).is_none());
    assert!(flight.insert(range(u64::from(u32::MAX), 1 << 33)).is_none());
    assert!(flight.insert(range((1 << 31) - 1, 1 << 31)).is_some());
    assert_eq!((flight.len(), flight.regions()), (1, 1));
}

#[test]
fn no_slots() {
    let mut flight = InFlight::<()>::new(0).unwrap();
    assert!(flight.insert(range(0, 1)).is_none());
    assert!(flight.is_empty());
    assert!(flight.first_overlap(range(0, 9)).is_none());
}

#[test]
fn allocations_may_fail() {
    let (mut flight, failures) = with_all_faults(|| InFlight::<u64>::new(SLOTS));
    assert_eq!(failures, 2);
    // Nothing else allocates.
    let (_, reached) = faults::with_failing(0, || {
        for _ in 0..3 {
            let slots: [Option<Slot>; SLOTS] =
                core::array::from_fn(|n| flight.insert(range(n as u64 * 3, n as u64 * 3 + 2)));
            assert!(flight.insert(range(900, 901)).is_none());
            for slot in slots {
                assert!(flight.remove(slot.unwrap()).is_some());
            }
        }
    });
    assert!(!reached);
}
