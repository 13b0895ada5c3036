// SPDX-License-Identifier: GPL-2.0

//! The map of hydrated regions against a set.

use proptest::prelude::*;
use std::collections::BTreeSet;
use std::vec;
use std::vec::Vec;

use super::{
    range,
    with_all_faults, //
};
use crate::env::{
    EINVAL,
    EOVERFLOW, //
};
use crate::logic::clone::map::*;
use crate::logic::regions::{
    Region,
    RegionRange, //
};

/// The sizes of maps: at the borders of words and levels, and some in between.
fn sizes() -> impl Strategy<Value = u64> {
    prop_oneof![
        prop::sample::select(vec![0u64, 1, 63, 64, 65, 4095, 4096, 4097, 8192]),
        0u64..6000,
    ]
}

/// Ranges: many long ones, many at the borders of words, and some beyond the map.
fn ranges(regions: u64) -> impl Strategy<Value = RegionRange> {
    let any_start = 0..regions + 100;
    prop_oneof![
        (any_start.clone(), 0u64..70),
        (any_start.clone(), 0..regions + 100),
        (
            any_start.prop_map(|start| start & !63),
            (0u64..40).prop_map(|n| n * 64)
        ),
    ]
    .prop_map(|(start, len)| range(start, start + len))
}

fn cases() -> impl Strategy<Value = (u64, Vec<RegionRange>, Vec<RegionRange>)> {
    sizes().prop_flat_map(|regions| {
        let some = || prop::collection::vec(ranges(regions), 0..12);
        (Just(regions), some(), some())
    })
}

/// Compares all queries about `asked`.
fn compare(
    map: &RegionMap,
    model: &BTreeSet<u64>,
    asked: RegionRange,
) -> Result<(), TestCaseError> {
    let regions = map.regions();
    let (start, end) = (asked.start.0, asked.end.0.min(regions));
    for region in [start, end, end.saturating_sub(1)] {
        prop_assert_eq!(map.contains(Region(region)), model.contains(&region));
    }
    let clear = (start..regions).find(|region| !model.contains(region));
    prop_assert_eq!(map.next_clear(Region(start)), clear.map(Region));
    prop_assert_eq!(
        map.all_set(asked),
        (start..end).all(|region| model.contains(&region))
    );
    if start < end {
        let state = model.contains(&start);
        let len = (start..end)
            .take_while(|r| model.contains(r) == state)
            .count() as u64;
        let expected = if state {
            Run::Set(len)
        } else {
            Run::Clear(len)
        };
        prop_assert_eq!(map.run(asked), expected);
    } else {
        prop_assert!(matches!(map.run(asked), Run::Clear(0)));
    }
    Ok(())
}

proptest! {
    #[test]
    fn is_a_set((regions, inserted, asked) in cases()) {
        let (map, mut writer) = RegionMap::new(regions).unwrap();
        let mut model = BTreeSet::new();
        for regions_in in inserted {
            let before = model.len();
            model.extend((regions_in.start.0..regions_in.end.0).filter(|r| *r < regions));
            let new = (model.len() - before) as u64;
            prop_assert_eq!(map.insert(&mut writer, regions_in), new);
            prop_assert_eq!(writer.set(), model.len() as u64);
            compare(&map, &model, regions_in)?;
        }
        for regions_in in asked {
            compare(&map, &model, regions_in)?;
        }
        compare(&map, &model, range(0, regions))?;
        for index in 0..map.words() {
            let word = map.word(index).unwrap();
            for bit in 0..64 {
                let region = index * 64 + bit;
                let expected = region >= regions || model.contains(&region);
                prop_assert_eq!(word >> bit & 1 == 1, expected);
            }
        }
        prop_assert_eq!(map.word(map.words()), None);
    }

    #[test]
    fn is_loaded_by_words(
        regions in sizes(),
        seed in prop::collection::vec(prop_oneof![Just(u64::MAX), Just(0), any::<u64>()], 140),
        order in any::<prop::sample::Index>(),
        asked in prop::collection::vec((0u64..6000, 0u64..300), 8),
        extra in (0u64..6000, 0u64..300),
    ) {
        let (mut map, mut writer) = RegionMap::new(regions).unwrap();
        let words = map.words();
        prop_assert_eq!(words, regions.div_ceil(64));
        let mut model = BTreeSet::new();
        let first = if words == 0 { 0 } else { order.index(words as usize) as u64 };
        for index in (first..words).chain(0..first) {
            let word = seed[index as usize % seed.len()];
            prop_assert!(map.load_word(&mut writer, index, word).is_ok());
            let set = (0..64).filter(|b| word >> b & 1 == 1).map(|b| index * 64 + b);
            model.extend(set.filter(|r| *r < regions));
            prop_assert_eq!(writer.set(), model.len() as u64);
        }
        prop_assert_eq!(map.load_word(&mut writer, words, 1), Err(EINVAL));
        for (start, len) in asked {
            compare(&map, &model, range(start, start + len))?;
        }
        // Later insertions find consistent summaries.
        map.insert(&mut writer, range(extra.0, extra.0 + extra.1));
        model.extend((extra.0..extra.0 + extra.1).filter(|r| *r < regions));
        compare(&map, &model, range(0, regions))?;
        compare(&map, &model, range(extra.0, regions.max(extra.0)))?;
    }
}

#[test]
fn deep_maps() {
    // 64^4 is the smallest size with a fifth level.
    for regions in [1 << 18, (1 << 18) + 1, 1 << 24, (1 << 24) + 1] {
        let (map, mut writer) = RegionMap::new(regions).unwrap();
        let holes = [0, 1, 63, 64, 4096, regions / 2, regions - 1];
        let mut start = 0;
        for hole in holes {
            map.insert(&mut writer, range(start, hole));
            start = hole + 1;
        }
        for (index, hole) in holes.iter().enumerate() {
            assert_eq!(
                map.next_clear(Region(if index == 0 { 0 } else { holes[index - 1] + 1 })),
                Some(Region(*hole))
            );
        }
        assert_eq!(writer.set(), regions - holes.len() as u64);
        for hole in holes {
            assert!(!map.all_set(range(0, regions)));
            assert_eq!(map.insert(&mut writer, range(hole, hole + 1)), 1);
        }
        assert_eq!(map.next_clear(Region(0)), None);
        assert_eq!(map.run(range(0, regions)), Run::Set(regions));
        assert!(map.all_set(range(0, regions)));
        assert_eq!(writer.set(), regions);
    }
}

#[test]
fn nearly_full_maps_are_searched_quickly() {
    // Word by word this would take hours.
    let (mut map, mut writer) = RegionMap::new(1 << 24).unwrap();
    for index in 0..map.words() {
        let word = if index == 200_000 { !1 } else { u64::MAX };
        map.load_word(&mut writer, index, word).unwrap();
    }
    let hole = Region(200_000 * 64);
    for from in 0..500_000 {
        assert_eq!(map.next_clear(Region(from)), Some(hole));
    }
    map.insert(&mut writer, RegionRange::single(hole));
    for from in 0..500_000 {
        assert_eq!(map.next_clear(Region(from)), None);
    }
}

#[test]
fn too_large() {
    assert_eq!(RegionMap::new((1 << 36) + 1).err(), Some(EOVERFLOW));
    assert_eq!(RegionMap::new(u64::MAX).err(), Some(EOVERFLOW));
}

#[test]
fn allocations_may_fail() {
    let ((map, writer), failures) = with_all_faults(|| RegionMap::new(5000));
    assert_eq!(failures, 1);
    assert_eq!((map.regions(), writer.set()), (5000, 0));
}
