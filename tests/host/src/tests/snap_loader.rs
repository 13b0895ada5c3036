// SPDX-License-Identifier: GPL-2.0

//! Loading of records, compared with a parser that was written from the description of the format.
//! Damaged records, and arbitrary bytes.

use proptest::prelude::*;
use std::collections::HashSet;
use std::format;
use std::vec;
use std::vec::Vec;

use super::{
    text,
    with_all_faults, //
};
use crate::env::{
    Error,
    EINVAL,
    EIO,
    ENOMEM, //
};
use crate::logic::{
    snapshot::{
        chunks::{
            Chunk,
            ChunkSize,
            CowChunk, //
        },
        layout::{
            Layout,
            PersistentAllocator, //
        },
        loader::*,
        record::*,
        run::{
            Run,
            MAX_RUN_CHUNKS, //
        }, //
    },
    units::Sectors, //
};

fn size(sectors: u32) -> ChunkSize {
    ChunkSize::from_sectors(sectors).unwrap()
}

fn record(old: u64, new: u64) -> Record {
    Record {
        old: Chunk(old),
        new: CowChunk(new),
    }
}

/// Returns the bytes of consecutive records.
fn lay_out(records: &[(u64, u64)]) -> Vec<u8> {
    let numbers = records.iter().flat_map(|(old, new)| [*old, *new]);
    numbers.flat_map(u64::to_le_bytes).collect()
}

/// The results of a loader.
#[derive(Debug, Default, PartialEq, Eq)]
struct Load {
    mapped: Vec<(u64, u64)>,
    records: u64,
    repeated: u64,
    next: u64,
    /// Whether the rest after the end of the list is not all zeros, or the first damaged record.
    end: Option<Result<bool, u64>>,
}

/// Parses records one by one.
fn model(sectors: u32, cow: u64, bytes: &[u8]) -> Load {
    let (sectors, mut seen) = (u64::from(sectors), HashSet::new());
    let mut load = Load {
        next: 2,
        ..Load::default()
    };
    for (index, record) in bytes.chunks_exact(16).enumerate() {
        let [old, new] =
            [0, 8].map(|at| u64::from_le_bytes(record[at..at + 8].try_into().unwrap()));
        if new == 0 {
            load.end = Some(Ok(bytes[index * 16..].iter().any(|byte| *byte != 0)));
            break;
        }
        // C uses the top byte as a counter. This module's table has fewer bits.
        let high = new >> 56 != 0 || new >> 48 != 0;
        if new < 2 || high || new >= cow / sectors || new % (sectors * 32 + 1) == 1 {
            load.end = Some(Err(index as u64));
            break;
        }
        load.records += 1;
        load.next = load.next.max(new + 1);
        if seen.insert(new) {
            load.mapped.push((old, new));
        } else {
            load.repeated += 1;
        }
    }
    load
}

/// Loads pieces of a list, and checks that runs are as long as possible.
fn load(sectors: u32, cow: u64, pieces: &[&[u8]]) -> Load {
    let mut loader = RecordLoader::new(Layout::new(size(sectors)), Sectors(cow));
    let (mut mapped, mut end) = (Vec::new(), None);
    let behind: Vec<u8> = pieces.concat();
    let mut at = 0;
    for piece in pieces {
        let mut last: Option<Run> = None;
        let fed = loader.feed(piece, |run| {
            if let Some(last) = last.replace(run) {
                let follows = last.old.0.checked_add(last.len) == Some(run.old.0);
                assert!(
                    !follows || last.new.0 + last.len != run.new.0 || last.len == MAX_RUN_CHUNKS,
                    "{last:?} {run:?}"
                );
            }
            assert!((1..=MAX_RUN_CHUNKS).contains(&run.len));
            mapped.extend((0..run.len).map(|n| (run.old.0 + n, run.new.0 + n)));
            Ok(())
        });
        match fed {
            Ok(LoadProgress::More) => {}
            Ok(LoadProgress::End { stale }) => {
                let start = (loader.records() * 16) as usize;
                let tail = &behind[start..at + piece.len()];
                assert_eq!(stale, tail.iter().any(|byte| *byte != 0));
                end = Some(Ok(behind[start..].iter().any(|byte| *byte != 0)));
                break;
            }
            Err(LoadError::Damaged(bad)) => {
                let slot = (bad.index * 16) as usize;
                assert_eq!(Record::get(&behind[slot..], 0), Some(bad.record));
                assert_eq!(bad.chunks, (cow / u64::from(sectors)).min(1 << 48));
                end = Some(Err(bad.index));
                break;
            }
            Err(LoadError::Error(error)) => panic!("{error:?}"),
        }
        at += piece.len();
    }
    Load {
        mapped,
        records: loader.records(),
        repeated: loader.ignored_records().len() as u64,
        next: loader.next().0,
        end,
    }
}

/// Loads and compares. A damaged record may suppress earlier runs of the same piece.
fn assert_load(sectors: u32, cow: u64, pieces: &[&[u8]]) {
    let (mut found, mut expected) = (
        load(sectors, cow, pieces),
        model(sectors, cow, &pieces.concat()),
    );
    if matches!(expected.end, Some(Err(_))) {
        assert!(expected.mapped.starts_with(&found.mapped));
        found.mapped.clear();
        expected.mapped.clear();
    }
    assert_eq!(found, expected);
}

#[test]
fn slots() {
    let mut area = vec![0; 40];
    assert_eq!(
        record(0x0102, 0x0304_0506_0708_090a).put(&mut area, 1),
        Some(())
    );
    assert_eq!(
        area[16..32],
        *b"\x02\x01\0\0\0\0\0\0\x0a\x09\x08\x07\x06\x05\x04\x03"
    );
    assert_eq!(area[..16], [0; 16]);
    assert_eq!(area[32..], [0; 8]);
    let expected = record(0x0102, 0x0304_0506_0708_090a);
    assert_eq!(Record::get(&area, 1), Some(expected));
    assert_eq!(Record::get(&area, 0), Some(Record::default()));
    for slot in [2, 3, u64::MAX / 16, u64::MAX / 16 + 1, u64::MAX] {
        assert_eq!(Record::get(&area, slot), None);
        assert_eq!(record(1, 2).put(&mut area, slot), None);
    }
}

#[test]
fn bad_records() {
    let line = |cow: u64, new: u64| {
        let mut loader = RecordLoader::new(Layout::new(size(8)), Sectors(cow * 8));
        let bytes = lay_out(&[(7, 3), (9, new)]);
        let failure = loader.feed(&bytes, |_| Ok(())).err()?;
        assert_eq!(Error::from(failure), EINVAL);
        match failure {
            LoadError::Damaged(bad) => Some(text(&bad)),
            LoadError::Error(_) => None,
        }
    };
    assert_eq!(line(600, 599), None);
    for new in [1, 258, 515] {
        assert_eq!(
            line(600, new),
            Some(format!(
                "exception 1 maps chunk 9 to chunk {new}, which holds metadata"
            ))
        );
    }
    for new in [600, 1 << 56, u64::MAX] {
        assert_eq!(
            line(600, new),
            Some(format!(
                "exception 1 maps chunk 9 to chunk {new}, beyond the end of the COW device"
            ))
        );
    }
    // The maximum chunk is that of the table, whatever the size of the device.
    let last = (1 << 48) - 1;
    let all = [(1, last), (3, 8), (2, last), (4, last + 1)];
    assert_load(1, u64::MAX, &[&lay_out(&all)]);
}

/// The end of the list, at the borders of pieces and of areas.
#[test]
fn ends_of_lists() {
    let full: Vec<(u64, u64)> = (0..32).map(|n| (100 - n, n + 2)).collect();
    let area = lay_out(&full);
    let zeros = [0; 512];
    let mut stale = zeros;
    stale[511] = 1;
    let mut half = zeros;
    half[0] = 1;
    for (next, end) in [(&zeros, Ok(false)), (&stale, Ok(true)), (&half, Ok(true))] {
        let found = load(1, 100, &[&area, next]);
        assert_eq!((found.records, found.end), (32, Some(end)));
        assert_load(1, 100, &[&area, next]);
        assert_load(1, 100, &[next]);
    }
    assert_eq!(load(1, 100, &[&area]).end, None);
    assert_eq!(load(1, 100, &[]).next, 2);
    assert_load(1, 100, &[&area, &[], &lay_out(&[(1, 35)])]);
}

/// A store without gaps is loaded as it was written, and allocates the same chunk next.
#[test]
fn stores_without_gaps() {
    for shift in 0..=10 {
        let sectors = 1 << shift;
        let layout = Layout::new(size(sectors));
        let per_area = layout.exceptions_per_area();
        let cow = Sectors(u64::from(sectors) * layout.stride() * 4);
        for count in [
            0,
            1,
            per_area - 1,
            per_area,
            per_area + 1,
            2 * per_area,
            3 * per_area - 1,
        ] {
            let mut allocator = PersistentAllocator::new(layout, CowChunk(0), 0);
            let bytes = per_area as usize * RECORD_SIZE;
            let mut areas: Vec<Vec<u8>> = vec![vec![0; bytes]; 4];
            let mut expected = Vec::new();
            let mut old = 1 << 40;
            while allocator.records() < count {
                let at = allocator.records();
                let (first, len) = allocator.allocate(count - at, cow).unwrap();
                expected.push((old, first.0, len));
                for n in 0..len {
                    let (area, slot) = layout.slot(at + n);
                    let put = record(old + n, first.0 + n).put(&mut areas[area as usize], slot);
                    assert_eq!(put, Some(()));
                }
                old += len;
            }
            let mut loader = RecordLoader::new(layout, cow);
            let mut runs = Vec::new();
            let mut fed = 0;
            while Ok(LoadProgress::More)
                == loader.feed(&areas[fed], |run| {
                    runs.push((run.old.0, run.new.0, run.len));
                    Ok(())
                })
            {
                fed += 1;
            }
            assert_eq!(runs, expected, "{sectors} {count}");
            assert_eq!(fed as u64, layout.slot(count).0);
            assert_eq!(
                (loader.records(), loader.ignored_records().len()),
                (count, 0)
            );
            assert_eq!(
                PersistentAllocator::new(layout, loader.next(), loader.records()),
                allocator
            );
        }
    }
}

/// Runs are no longer than the table accepts, and end where numbers overflow.
#[test]
fn ends_of_runs() {
    let records: Vec<(u64, u64)> = (0..MAX_RUN_CHUNKS + 9).map(|n| (n, n + 2)).collect();
    let bytes = lay_out(&records);
    let cow = 1 << 40;
    let mut lens = Vec::new();
    let mut loader = RecordLoader::new(Layout::new(size(2048)), Sectors(cow));
    let fed = loader.feed(&bytes, |run| {
        lens.push(run.len);
        Ok(())
    });
    assert_eq!(
        (fed, lens),
        (Ok(LoadProgress::More), vec![MAX_RUN_CHUNKS, 9])
    );
    assert_load(2048, cow, &[&bytes, &bytes]);
    let last = lay_out(&[(u64::MAX - 1, 2), (u64::MAX, 3), (0, 4)]);
    let mut loader = RecordLoader::new(Layout::new(size(8)), Sectors(cow));
    let mut runs = Vec::new();
    let fed = loader.feed(&last, |run| {
        runs.push((run.old.0, run.len));
        Ok(())
    });
    assert_eq!(
        (fed, runs),
        (Ok(LoadProgress::More), vec![(u64::MAX - 1, 2), (0, 1)])
    );
}

/// Errors of the receiver, and failing allocations, end the load.
#[test]
fn failures() {
    let bytes = lay_out(&[(1, 2), (2, 3), (5, 9)]);
    let mut calls = 0;
    let mut loader = RecordLoader::new(Layout::new(size(8)), Sectors(1000));
    let failure = loader.feed(&bytes, |_| {
        calls += 1;
        if calls == 2 {
            Err(EIO)
        } else {
            Ok(())
        }
    });
    assert_eq!((failure, calls), (Err(LoadError::Error(EIO)), 2));
    assert_eq!(Error::from(LoadError::Error(EIO)), EIO);

    // Chunks in no order need much memory.
    let mixed: Vec<(u64, u64)> = (0..3000u64)
        .map(|n| (n, n * 1237 % 3000 * 2 + 2))
        .filter(|(_, new)| new % 257 != 1)
        .collect();
    let bytes = lay_out(&mixed);
    let (mapped, faults) = with_all_faults(|| {
        let mut loader = RecordLoader::new(Layout::new(size(8)), Sectors(100_000));
        let mut mapped = 0;
        loader
            .feed(&bytes, |run| {
                mapped += run.len;
                Ok(())
            })
            .inspect_err(|failure| assert_eq!(*failure, LoadError::Error(ENOMEM)))?;
        Ok(mapped)
    });
    assert_eq!(mapped, mixed.len() as u64);
    assert!(faults > 3, "{faults}");
    assert_load(8, 100_000, &[&bytes, &bytes]);
}

/// Valid and damaged records: runs, single chunks, duplicates, and arbitrary numbers.
fn records() -> impl Strategy<Value = Vec<(u64, u64)>> {
    let number = prop_oneof![
        4 => 0..80u64,
        2 => 60..70u64,
        1 => prop::sample::select(vec![1u64 << 48, 1 << 56]).prop_flat_map(|end| end - 1..end + 2),
        1 => any::<u64>(),
    ];
    let part = prop_oneof![
        6 => (0..400u64, 2..300u64, 1..40u64).prop_map(|(old, new, len)| {
            (0..len).map(|n| (old + n, new + n)).collect()
        }),
        3 => prop::collection::vec((0..100u64, 2..300u64), 1..8),
        1 => (number.clone(), number).prop_map(|one| vec![one]),
    ];
    prop::collection::vec(part, 0..8).prop_map(|parts: Vec<Vec<_>>| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Lists in arbitrary pieces are parsed like single records.
    #[test]
    fn any_list(
        records in records(), shift in 0..4u32,
        cow in prop_oneof![4 => Just(3000u64), 1 => 0..400u64, 1 => any::<u64>()],
        pieces in prop::collection::vec(0..20usize, 0..12), end in any::<bool>(),
        stale in 0..40usize,
    ) {
        let mut bytes = lay_out(&records);
        if end {
            bytes.resize(bytes.len() + 512, 0);
            if let Some(byte) = bytes.iter_mut().rev().nth(stale * 16) {
                *byte |= 1;
            }
        }
        let mut rest = &bytes[..];
        let mut parts = Vec::new();
        for len in pieces {
            let (part, behind) = rest.split_at((len * 16).min(rest.len()));
            parts.push(part);
            rest = behind;
        }
        parts.push(rest);
        assert_load(1 << shift, cow, &parts);
    }

    /// Arbitrary bytes cause no panic.
    #[test]
    fn any_bytes(
        mut bytes in prop::collection::vec(prop_oneof![3 => Just(0), 1 => any::<u8>()], 0..600),
        cow in any::<u64>(),
    ) {
        let whole = bytes.len() / 16 * 16;
        assert_load(1, cow, &[&bytes[..whole]]);
        let mut loader = RecordLoader::new(Layout::new(size(1)), Sectors(cow));
        let _ = loader.feed(&bytes, |_| Ok(()));
        for slot in 0..40 {
            let inside = bytes.len() >= (slot as usize + 1) * 16;
            prop_assert_eq!(Record::get(&bytes, slot).is_some(), inside);
            prop_assert_eq!(record(slot, 7).put(&mut bytes, slot).is_some(), inside);
            prop_assert_eq!(Record::get(&bytes, slot), inside.then_some(record(slot, 7)));
        }
    }
}
