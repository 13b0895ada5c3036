// SPDX-License-Identifier: GPL-2.0

//! Parts of a table that are filled from runs in any order against a plain map.

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use super::with_all_faults;
use crate::env::{
    KVVec,
    EINVAL, //
};
use crate::logic::snapshot::{
    chunks::{
        Chunk,
        CowChunk,
        COW_CHUNKS, //
    },
    exception_table::{
        ExceptionTable,
        Lookup, //
    },
    run::{
        Run,
        MAX_RUN_CHUNKS, //
    },
    stripes::*, //
};

fn run(old: u64, new: u64, len: u64) -> Run {
    Run {
        old: Chunk(old),
        new: CowChunk(new),
        len,
    }
}

/// All chunks of all parts; each has to be in its own part.
fn chunks(tables: &KVVec<ExceptionTable>, stripe: u32) -> BTreeMap<u64, u64> {
    assert_eq!(tables.len(), STRIPES);
    let mut found = BTreeMap::new();
    for (index, table) in tables.iter().enumerate() {
        for run in table.iter() {
            for n in 0..run.len {
                let old = run.old.0 + n;
                assert_eq!(stripe_of(Chunk(old), stripe).0, index);
                assert_eq!(found.insert(old, run.new.0 + n), None);
            }
        }
    }
    found
}

/// What [`leading`] finds in a table where each chunk of `mapped` is a run of its own, and how
/// often it asks.
fn lead(mapped: &[bool], most: u64, stripe: u32) -> (u64, usize) {
    let mut asked = 0;
    let found = count_leading(Chunk(7), most, stripe, |index, chunk, wanted| {
        asked += 1;
        let (its, same) = stripe_of(chunk, stripe);
        assert_eq!(index, its);
        assert!(0 < wanted && wanted <= same && chunk.0 + wanted <= 7 + most);
        mapped[chunk.0 as usize - 7].into()
    });
    (found, asked)
}

#[test]
fn lookups_of_one_write_are_bounded() {
    let bound = MAX_LOOKUPS as usize;
    for runs in 0..3 * bound {
        let (found, asked) = lead(&vec![true; runs], runs as u64, 6);
        assert_eq!((found as usize, asked), (runs.min(bound), runs.min(bound)));
    }
    // Long runs are not cut: a stripe with one answer.
    let mut asked = 0;
    let all = 50 << 15;
    let found = count_leading(Chunk(0), all, 15, |_, _, wanted| {
        asked += 1;
        wanted
    });
    assert_eq!((found, asked), (all, 50));
    // More than it was asked for is not believed.
    assert_eq!(count_leading(Chunk(0), 10, 6, |_, _, _| u64::MAX), 10);
    assert_eq!(
        count_leading(Chunk(u64::MAX), 1, 6, |_, _, wanted| wanted),
        1
    );
}

proptest! {
    #[test]
    fn leading_ends_at_the_first_hole(mapped in prop::collection::vec(prop::bool::weighted(0.97), 0..200)) {
        let (found, _) = lead(&mapped, mapped.len() as u64, 6);
        let run = mapped.iter().take_while(|is| **is).count();
        prop_assert_eq!(found as usize, run.min(MAX_LOOKUPS as usize));
    }
}

#[test]
fn stripes() {
    for stripe in [6, 13, 15] {
        let mut seen = [0; STRIPES];
        for number in 0..1 << 12 {
            let (start, len) = (number << stripe, 1 << stripe);
            let (index, left) = stripe_of(Chunk(start), stripe);
            assert_eq!(left, len);
            for offset in [1, len / 2, len - 1] {
                assert_eq!(
                    stripe_of(Chunk(start + offset), stripe),
                    (index, len - offset)
                );
            }
            seen[index] += 1;
        }
        assert_eq!(seen, [64; STRIPES]);
    }
    assert_eq!(stripe_of(Chunk(u64::MAX), 6).1, 1);
}

/// More runs of one part than are sorted at once, of which the later lie between the earlier.
#[test]
fn more_than_are_sorted_at_once() {
    let count = 3u64 << 15;
    let all = (0..count).map(|n| (n * 40501 % count * 2, n + 2));
    // Every second chunk, in six stripes.
    let mut parts = StripesLoader::new(15, Duplicates::Reject).unwrap();
    for (old, new) in all.clone() {
        parts.add(run(old, new, 1)).unwrap();
    }
    let tables = parts.finish().unwrap();
    assert_eq!(chunks(&tables, 15), all.clone().collect());

    // All in one part.
    let mut parts = StripesLoader::new(15, Duplicates::KeepFirst).unwrap();
    let strange = |old: u64| old % (1 << 15) + (old >> 15 << 48);
    let lone = (0..count).map(|n| strange(n * 40501 % count));
    let index = stripe_of(Chunk(0), 15).0;
    let lone: Vec<u64> = lone
        .filter(|old| stripe_of(Chunk(*old), 15).0 == index)
        .collect();
    assert!(lone.len() > 2 << 15);
    for (n, old) in lone.iter().enumerate() {
        parts.add(run(*old, n as u64, 1)).unwrap();
        if n % 7 == 0 {
            parts.add(run(*old, COW_CHUNKS - 1, 1)).unwrap();
        }
    }
    let tables = parts.finish().unwrap();
    assert_eq!(parts.skipped(), lone.len().div_ceil(7) as u64);
    let table = tables.get(index).unwrap();
    assert_eq!(table.count(), lone.len() as u64);
    for (n, old) in lone.iter().enumerate() {
        let expected = Lookup::Mapped(CowChunk(n as u64), 1);
        assert_eq!(table.find(Chunk(*old), 1), expected);
    }
}

/// What no device has is left out, and does not disturb.
#[test]
fn ends_of_numbers() {
    for sharing in [Duplicates::Reject, Duplicates::KeepFirst] {
        let mut parts = StripesLoader::new(6, sharing).unwrap();
        parts.add(run(u64::MAX, 9, 1)).unwrap();
        parts.add(run(u64::MAX - 70, 20, 70)).unwrap();
        parts.add(run(0, 100, MAX_RUN_CHUNKS)).unwrap();
        let found = chunks(&parts.finish().unwrap(), 6);
        assert_eq!(found.len() as u64, MAX_RUN_CHUNKS + 70);
        assert_eq!(found.get(&(u64::MAX - 1)), Some(&89));
        assert_eq!((parts.has_duplicates(), parts.skipped()), (false, 0));
    }
}

#[test]
fn no_memory() {
    let (found, faults) = with_all_faults(|| {
        let mut parts = StripesLoader::new(6, Duplicates::Reject)?;
        for n in 0..1000 {
            parts.add(run(n * 77 % 1000, 2 * n, 1))?;
        }
        Ok(chunks(&parts.finish()?, 6))
    });
    assert_eq!(found, (0..1000).map(|n| (n * 77 % 1000, 2 * n)).collect());
    assert!(faults > 20, "{faults}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Of runs that share chunks the first counts; they are found.
    #[test]
    fn any_runs(
        runs in prop::collection::vec((prop_oneof![0..2000u64, 0..1u64 << 40], 1..300u64), 0..60), stripe in 6..16u32,
    ) {
        let (mut expected, mut repeated, mut new) = (BTreeMap::new(), 0, 2);
        let mut fill = [Duplicates::Reject, Duplicates::KeepFirst].map(|sharing| StripesLoader::new(stripe, sharing).unwrap());
        for (old, len) in runs {
            for parts in &mut fill {
                parts.add(run(old, new, len)).unwrap();
            }
            for n in 0..len {
                let first = expected.entry(old + n).or_insert(new + n);
                repeated += u64::from(*first != new + n);
            }
            new += len + 1;
        }
        let [mut refused, mut resolved] = fill;
        let tables = resolved.finish().unwrap();
        prop_assert_eq!(chunks(&tables, stripe), expected.clone());
        prop_assert_eq!((resolved.skipped(), resolved.has_duplicates()), (repeated, false));
        let result = refused.finish();
        prop_assert_eq!(refused.has_duplicates(), repeated != 0);
        match result {
            Ok(tables) => prop_assert_eq!(chunks(&tables, stripe), expected),
            Err(error) => prop_assert_eq!((error, repeated != 0), (EINVAL, true)),
        }
        prop_assert_eq!(refused.skipped(), 0);
    }
}
