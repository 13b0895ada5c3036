// SPDX-License-Identifier: GPL-2.0

//! Stripes that are filled from runs in any order, compared with a map.

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

/// Returns the chunks of all stripes. Each must be in the right stripe.
fn chunks(tables: &KVVec<ExceptionTable>, unit_shift: u32) -> BTreeMap<u64, u64> {
    assert_eq!(tables.len(), STRIPES);
    let mut found = BTreeMap::new();
    for (index, table) in tables.iter().enumerate() {
        for run in table.iter() {
            for n in 0..run.len {
                let old = run.old.0 + n;
                assert_eq!(stripe_of(Chunk(old), unit_shift).0, index);
                assert_eq!(found.insert(old, run.new.0 + n), None);
            }
        }
    }
    found
}

/// Returns what [`count_leading`] finds in a table in which each chunk of `mapped` is a run of its
/// own, and the number of lookups.
fn lead(mapped: &[bool], max: u64, unit_shift: u32) -> (u64, usize) {
    let mut asked = 0;
    let found = count_leading(Chunk(7), (max, max), unit_shift, |index, chunk, wanted| {
        asked += 1;
        let (its, same) = stripe_of(chunk, unit_shift);
        assert_eq!(index, its);
        assert!(0 < wanted && wanted <= same && chunk.0 + wanted <= 7 + max);
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
    // A stripe unit needs one lookup if it is one run.
    let mut asked = 0;
    let all = 50 << 15;
    let found = count_leading(Chunk(0), (all, all), 15, |_, _, wanted| {
        asked += 1;
        wanted
    });
    assert_eq!((found, asked), (all, 50));
    // An answer counts up to the length that was asked for.
    assert_eq!(count_leading(Chunk(0), (10, 10), 6, |_, _, _| u64::MAX), 10);
    assert_eq!(
        count_leading(Chunk(u64::MAX), (1, 1), 6, |_, _, wanted| wanted),
        1
    );
}

/// More than enough is found only in the last run that was needed.
#[test]
fn no_lookup_for_more_than_enough() {
    let find = |len: u64, enough, max| {
        let mut asked = 0;
        let found = count_leading(Chunk(0), (enough, max), 6, |_, _, wanted| {
            asked += 1;
            wanted.min(len)
        });
        (found, asked)
    };
    assert_eq!(find(1000, 1, 60), (60, 1));
    assert_eq!(find(1000, 1, 1000), (64, 1), "the stripe ends");
    assert_eq!(find(1000, 65, 1000), (128, 2));
    assert_eq!(find(8, 1, 60), (8, 1));
    assert_eq!(find(8, 9, 60), (16, 2));
    assert_eq!(find(0, 1, 60), (0, 1));
    assert_eq!(find(8, 0, 60), (0, 0));
}

proptest! {
    #[test]
    fn leading_ends_at_the_first_hole(
        mapped in prop::collection::vec(prop::bool::weighted(0.97), 0..200),
    ) {
        let (found, _) = lead(&mapped, mapped.len() as u64, 6);
        let run = mapped.iter().take_while(|is| **is).count();
        prop_assert_eq!(found as usize, run.min(MAX_LOOKUPS as usize));
    }
}

#[test]
fn stripes() {
    for unit_shift in [6, 13, 15] {
        let mut seen = [0; STRIPES];
        for number in 0..1 << 12 {
            let (start, len) = (number << unit_shift, 1 << unit_shift);
            let (index, left) = stripe_of(Chunk(start), unit_shift);
            assert_eq!(left, len);
            for offset in [1, len / 2, len - 1] {
                assert_eq!(
                    stripe_of(Chunk(start + offset), unit_shift),
                    (index, len - offset)
                );
            }
            seen[index] += 1;
        }
        assert_eq!(seen, [64; STRIPES]);
    }
    assert_eq!(stripe_of(Chunk(u64::MAX), 6).1, 1);
}

/// A stripe has more runs than are sorted at once. Later runs lie between earlier ones.
#[test]
fn more_than_are_sorted_at_once() {
    let count = 3u64 << 15;
    let all = (0..count).map(|n| (n * 40501 % count * 2, n + 2));
    // Every second chunk, in six stripe units.
    let mut loader = StripesLoader::new(15, Duplicates::Reject).unwrap();
    for (old, new) in all.clone() {
        loader.add(run(old, new, 1)).unwrap();
    }
    let tables = loader.finish().unwrap();
    assert_eq!(chunks(&tables, 15), all.clone().collect());

    // All in one stripe.
    let mut loader = StripesLoader::new(15, Duplicates::KeepFirst).unwrap();
    let strange = |old: u64| old % (1 << 15) + (old >> 15 << 48);
    let lone = (0..count).map(|n| strange(n * 40501 % count));
    let index = stripe_of(Chunk(0), 15).0;
    let lone: Vec<u64> = lone
        .filter(|old| stripe_of(Chunk(*old), 15).0 == index)
        .collect();
    assert!(lone.len() > 2 << 15);
    for (n, old) in lone.iter().enumerate() {
        loader.add(run(*old, n as u64, 1)).unwrap();
        if n % 7 == 0 {
            loader.add(run(*old, COW_CHUNKS - 1, 1)).unwrap();
        }
    }
    let tables = loader.finish().unwrap();
    assert_eq!(loader.skipped(), lone.len().div_ceil(7) as u64);
    let table = tables.get(index).unwrap();
    assert_eq!(table.count(), lone.len() as u64);
    for (n, old) in lone.iter().enumerate() {
        let expected = Lookup::Mapped(CowChunk(n as u64), 1);
        assert_eq!(table.find(Chunk(*old), 1), expected);
    }
}

/// Chunks that no device has are skipped.
#[test]
fn ends_of_numbers() {
    for on_duplicate in [Duplicates::Reject, Duplicates::KeepFirst] {
        let mut loader = StripesLoader::new(6, on_duplicate).unwrap();
        loader.add(run(u64::MAX, 9, 1)).unwrap();
        loader.add(run(u64::MAX - 70, 20, 70)).unwrap();
        loader.add(run(0, 100, MAX_RUN_CHUNKS)).unwrap();
        let found = chunks(&loader.finish().unwrap(), 6);
        assert_eq!(found.len() as u64, MAX_RUN_CHUNKS + 70);
        assert_eq!(found.get(&(u64::MAX - 1)), Some(&89));
        assert_eq!((loader.has_duplicates(), loader.skipped()), (false, 0));
    }
}

#[test]
fn no_memory() {
    let (found, faults) = with_all_faults(|| {
        let mut loader = StripesLoader::new(6, Duplicates::Reject)?;
        for n in 0..1000 {
            loader.add(run(n * 77 % 1000, 2 * n, 1))?;
        }
        Ok(chunks(&loader.finish()?, 6))
    });
    assert_eq!(found, (0..1000).map(|n| (n * 77 % 1000, 2 * n)).collect());
    assert!(faults > 20, "{faults}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Of runs that have chunks in common, the first counts. Such runs are found.
    #[test]
    fn any_runs(
        runs in prop::collection::vec((prop_oneof![0..2000u64, 0..1u64 << 40], 1..300u64), 0..60),
        unit_shift in 6..16u32,
    ) {
        let (mut expected, mut repeated, mut new) = (BTreeMap::new(), 0, 2);
        let mut loaders = [Duplicates::Reject, Duplicates::KeepFirst]
            .map(|on_duplicate| StripesLoader::new(unit_shift, on_duplicate).unwrap());
        for (old, len) in runs {
            for loader in &mut loaders {
                loader.add(run(old, new, len)).unwrap();
            }
            for n in 0..len {
                let first = expected.entry(old + n).or_insert(new + n);
                repeated += u64::from(*first != new + n);
            }
            new += len + 1;
        }
        let [mut refused, mut resolved] = loaders;
        let tables = resolved.finish().unwrap();
        prop_assert_eq!(chunks(&tables, unit_shift), expected.clone());
        prop_assert_eq!((resolved.skipped(), resolved.has_duplicates()), (repeated, false));
        let result = refused.finish();
        prop_assert_eq!(refused.has_duplicates(), repeated != 0);
        match result {
            Ok(tables) => prop_assert_eq!(chunks(&tables, unit_shift), expected),
            Err(error) => prop_assert_eq!((error, repeated != 0), (EINVAL, true)),
        }
        prop_assert_eq!(refused.skipped(), 0);
    }
}
