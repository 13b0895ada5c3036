// SPDX-License-Identifier: GPL-2.0

//! The map while one thread writes and others read: a bit that was set stays set, and readers see
//! what the writer has announced.

use std::sync::atomic::{
    AtomicU64,
    Ordering, //
};
use std::thread;

use super::range;
use crate::logic::clone::map::*;
use crate::logic::regions::Region;

const REGIONS: u64 = 64 * 64 * 8 + 17;

/// Sets bits from front to back in steps of various widths, and announces each step.
fn write(map: &RegionMap, writer: &mut MapWriter, done: &AtomicU64) {
    let mut start = 0;
    while start < REGIONS {
        let end = (start + 1 + start % 97).min(REGIONS);
        map.insert(writer, range(start, end));
        done.store(end, Ordering::Release);
        start = end;
    }
}

/// Looks for contradictions until all bits are set.
fn read(map: &RegionMap, done: &AtomicU64) {
    loop {
        let announced = done.load(Ordering::Acquire);
        assert!(map.all_set(range(0, announced)));
        match map.run(range(0, REGIONS)) {
            Run::Set(len) => assert!(len >= announced),
            Run::Clear(_) => assert_eq!(announced, 0),
        }
        match map.next_clear(Region(announced / 2)) {
            // It may be set by now, but all regions before it were set when it was found.
            Some(region) => {
                assert!(region.0 >= announced);
                assert!(map.all_set(range(announced / 2, region.0)));
            }
            None => assert!(map.all_set(range(0, REGIONS))),
        }
        if announced == REGIONS {
            break;
        }
    }
}

#[test]
fn readers_need_no_lock() {
    for _ in 0..20 {
        let (map, mut writer) = RegionMap::new(REGIONS).unwrap();
        let done = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| read(&map, &done));
            }
            write(&map, &mut writer, &done);
        });
        assert_eq!(writer.set(), REGIONS);
    }
}

#[test]
fn runs_at_the_writers_place_are_never_empty() {
    for _ in 0..300 {
        let (map, mut writer) = RegionMap::new(4096).unwrap();
        let done = AtomicU64::new(0);
        thread::scope(|scope| {
            scope.spawn(|| loop {
                let start = done.load(Ordering::Relaxed);
                if start == 4096 {
                    break;
                }
                match map.run(range(start, 4096)) {
                    Run::Set(len) | Run::Clear(len) => assert!(len > 0 && len <= 4096 - start),
                }
            });
            for region in 0..4096 {
                map.insert(&mut writer, range(region, region + 1));
                done.store(region + 1, Ordering::Relaxed);
            }
        });
    }
}
