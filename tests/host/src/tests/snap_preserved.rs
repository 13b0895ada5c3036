// SPDX-License-Identifier: GPL-2.0

//! The map of what all snapshots have preserved, compared with a set of sectors.

use proptest::prelude::*;
use std::collections::BTreeSet;
use std::thread;
use std::vec::Vec;

use super::with_all_faults;
use crate::env::{
    faults,
    SetOnce,
    ENOMEM, //
};
use crate::logic::snapshot::{
    chunks::ChunkSize,
    preserved::*, //
};
use crate::logic::units::{
    Sector,
    Sectors, //
};

/// More than any of these tests needs.
const LIMIT: u64 = 1 << 30;

fn size(sectors: u32) -> ChunkSize {
    ChunkSize::from_sectors(sectors).unwrap()
}

fn map(unit: u32, sectors: u64) -> PreservedMap {
    PreservedMap::new(size(unit), Sectors(sectors), LIMIT).unwrap()
}

/// Inserts as the kernel does: with the page that is missing, if one is allowed.
fn insert(map: &PreservedMap, start: u64, len: u64) {
    // A range touches two pages at most.
    for _ in 0..3 {
        if !map.insert(Sector(start), Sectors(len)) {
            return;
        }
        map.add_page();
    }
    panic!("a page is wanted again and again");
}

fn contains(map: &PreservedMap, start: u64, len: u64) -> bool {
    map.contains(Sector(start), Sectors(len))
}

#[test]
fn nothing_is_preserved_at_first() {
    let map = map(8, 1 << 30);
    for (start, len) in [(0, 1), (0, 8), (8, 4096), ((1 << 30) - 1, 1), (1 << 30, 8)] {
        assert!(!contains(&map, start, len));
    }
}

#[test]
fn only_whole_units_are_inserted() {
    let map = map(16, 4096);
    insert(&map, 17, 46); // 17 to 62: one whole unit, 32 to 47
    assert!(contains(&map, 32, 16) && contains(&map, 47, 1));
    assert!(!contains(&map, 31, 1) && !contains(&map, 48, 1));
    assert!(!contains(&map, 31, 2) && !contains(&map, 47, 2));
    insert(&map, 65, 15);
    insert(&map, 96, 15);
    assert!(!contains(&map, 64, 16) && !contains(&map, 96, 16));
}

#[test]
fn whole_units_contain_the_range() {
    let map = map(16, 4096);
    let whole = |start, len| {
        let (start, len, most) = map.units_to_look_up(Sector(start), Sectors(len));
        assert_eq!(most.0, len.0.max(1024 * 16));
        (start.0, len.0)
    };
    assert_eq!(whole(0, 1), (0, 16));
    assert_eq!(whole(16, 16), (16, 16));
    assert_eq!(whole(15, 2), (0, 32));
    assert_eq!(whole(31, 18), (16, 48));
    assert_eq!(whole(3, 1 << 30), (0, (1 << 30) + 16));
}

#[test]
fn what_is_too_long_is_not_in_the_map() {
    let map = map(1, 1 << 20);
    insert(&map, 0, 2 * MAX_UNITS);
    assert!(contains(&map, 0, MAX_UNITS));
    assert!(!contains(&map, 0, MAX_UNITS + 1));
    assert!(
        !contains(&map, MAX_UNITS, 1),
        "inserted no more than it looks up"
    );
    insert(&map, MAX_UNITS, 1);
    assert!(
        !contains(&map, 0, MAX_UNITS + 1),
        "a bound, not a matter of bits"
    );
}

/// The origin may have grown since the map was made.
#[test]
fn units_behind_the_end_are_never_preserved() {
    let units = PAGE_UNITS + 3;
    let map = map(8, units * 8);
    let end = 2 * PAGE_UNITS * 8;
    insert(&map, end - 8, 16);
    // The last page is whole.
    assert!(contains(&map, end - 8, 8));
    assert!(!contains(&map, end, 8) && !contains(&map, end - 8, 16));
    insert(&map, u64::MAX - 8, 8);
    insert(&map, u64::MAX, u64::MAX);
    assert!(!contains(&map, u64::MAX, 1) && !contains(&map, u64::MAX, u64::MAX));
}

#[test]
fn a_range_may_cross_pages() {
    let map = map(8, 4 * PAGE_UNITS * 8);
    let border = PAGE_UNITS * 8;
    insert(&map, border - 512, 1024);
    assert!(contains(&map, border - 512, 1024));
    assert!(!contains(&map, border - 513, 8) && !contains(&map, border + 512, 8));
}

#[test]
fn a_page_is_asked_for_once() {
    let map = map(8, 4 * PAGE_UNITS * 8);
    let second = PAGE_UNITS * 8;
    assert!(map.insert(Sector(0), Sectors(8)));
    assert!(
        !map.insert(Sector(8), Sectors(8)),
        "it was asked for before"
    );
    assert!(
        !map.insert(Sector(second), Sectors(8)),
        "one page at a time"
    );
    map.add_page();
    assert!(!contains(&map, 0, 8), "a new page says nothing");
    assert!(!map.insert(Sector(0), Sectors(8)) && contains(&map, 0, 8));
    assert!(map.insert(Sector(second), Sectors(8)));
    map.add_page();
    map.add_page(); // none is wanted
    assert!(!map.insert(Sector(second), Sectors(8)) && contains(&map, second, 8));
}

#[test]
fn memory_has_a_limit() {
    let pages = 5;
    let sectors = pages * PAGE_UNITS * 8;
    let own = pages * size_of::<SetOnce<crate::env::KVVec<u64>>>() as u64;
    let make = |limit| PreservedMap::new(size(8), Sectors(sectors), limit);
    assert_eq!(make(0).err(), Some(ENOMEM));
    assert_eq!(make(own + PAGE_BYTES - 1).err(), Some(ENOMEM));
    for allowed in 1..=pages + 1 {
        let map = make(own + allowed * PAGE_BYTES).unwrap();
        for page in 0..pages {
            insert(&map, page * PAGE_UNITS * 8, 8);
            assert_eq!(contains(&map, page * PAGE_UNITS * 8, 8), page < allowed);
        }
        // Pages that exist are still in use.
        insert(&map, 8, 8);
        assert!(contains(&map, 0, 16));
    }
}

#[test]
fn a_page_without_memory_is_asked_for_again() {
    let map = map(8, 4096);
    assert!(map.insert(Sector(0), Sectors(8)));
    let (_, reached) = faults::with_failing(0, || map.add_page());
    assert!(reached);
    assert!(!contains(&map, 0, 8));
    insert(&map, 0, 8);
    assert!(contains(&map, 0, 8));
}

#[test]
fn a_map_without_memory_is_refused() {
    with_all_faults(|| PreservedMap::new(size(8), Sectors(1 << 20), LIMIT).map(|_| ()));
}

/// Bits may get lost when two threads set bits of one word, but none is set that neither of them
/// set.
#[test]
fn threads_set_only_their_bits() {
    for _ in 0..50 {
        let map = map(1, PAGE_UNITS);
        insert(&map, 0, 1);
        thread::scope(|scope| {
            for thread in 0..2 {
                let map = &map;
                // Even units only, but those of the same words.
                scope.spawn(move || {
                    for unit in (2 * thread..4096).step_by(4) {
                        map.insert(Sector(unit), Sectors(1));
                    }
                });
            }
        });
        assert!((1..4096).step_by(2).all(|unit| !contains(&map, unit, 1)));
        let set = (0..4096).filter(|unit| contains(&map, *unit, 1)).count();
        assert!(set >= 64, "of each word at least one: {set}");
    }
}

proptest! {
    /// What the map says is preserved was inserted as a whole unit; and if no page is missing and
    /// the range is not too long, it says so.
    #[test]
    fn agrees_with_a_set(
        shift in 0u32..8,
        inserted in prop::collection::vec((0u64..70_000, 0u64..3000), 0..12),
        asked in prop::collection::vec((0u64..70_000, 0u64..600), 0..40),
        limited in any::<bool>(),
    ) {
        let unit = 1u64 << shift;
        let sectors = 70_000;
        let limit = if limited { 1000 + PAGE_BYTES } else { LIMIT };
        let map = PreservedMap::new(size(1 << shift), Sectors(sectors), limit).unwrap();
        let mut model = BTreeSet::new();
        for (start, len) in &inserted {
            insert(&map, *start, *len);
            let (first, end) = (start.div_ceil(unit), (start + len) / unit);
            model.extend(first..end.clamp(first, first + MAX_UNITS));
        }
        // A page that is refused is missing for ever.
        let mut asked = asked;
        asked.extend(&inserted);
        for (start, len) in asked {
            let units: Vec<u64> = match len {
                0 => Vec::new(),
                _ => (start / unit..=(start + len - 1) / unit).collect(),
            };
            let wanted = !units.is_empty()
                && units.len() as u64 <= MAX_UNITS
                && units.iter().all(|unit| model.contains(unit));
            let found = contains(&map, start, len);
            if limited {
                prop_assert!(!found || wanted);
            } else {
                prop_assert_eq!(found, wanted);
            }
        }
    }

    /// Looking up whole units never finds less, or other chunks, than the write itself touches.
    #[test]
    fn whole_units_stay_in_the_chunks(
        unit in 0u32..6,
        more in 0u32..4,
        start in 0u64..10_000,
        len in 1u64..3000,
    ) {
        let map = PreservedMap::new(size(1 << unit), Sectors(20_000), LIMIT).unwrap();
        let (first, whole, _) = map.units_to_look_up(Sector(start), Sectors(len));
        let chunk = size(1 << (unit + more));
        prop_assert_eq!(
            chunk.touched(first, whole),
            chunk.touched(Sector(start), Sectors(len))
        );
        prop_assert!(first.0 <= start && first.0 + whole.0 >= start + len);
    }
}
