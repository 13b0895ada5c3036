// SPDX-License-Identifier: GPL-2.0

//! The memory that a table takes, and failing allocations.

use std::time::Instant;
use std::vec;
use std::vec::Vec;

use super::*;
use crate::env::{
    faults,
    AllocError, //
};

#[test]
fn memory_for_random_exceptions() {
    let (mut table, mut spares, mut dice) = (ExceptionTable::new(), SpareNodes::new(), Dice(1));
    let start = Instant::now();
    let (mut new, mut worst) = (0, 0f64);
    while table.entries() < 1_000_000 {
        if new % 1000 == 999 && new > 20_000 {
            worst = worst.max(table.bytes() as f64 / table.entries() as f64);
        }
        spares
            .refill(table.spare_root_capacity(), GFP_KERNEL)
            .unwrap();
        let old = dice.roll() % (1 << 30);
        new += u64::from(table.insert(run(old, new, 1), &mut spares).is_ok());
    }
    let inserted = start.elapsed() / 1_000_000;
    let start = Instant::now();
    let found = (0..1_000_000)
        .filter(|_| {
            matches!(
                table.find(Chunk(dice.roll() % (1 << 30)), 1),
                Lookup::Mapped(..)
            )
        })
        .count();
    assert!(found < 10_000);
    let bytes = table.bytes() as f64 / 1e6;
    std::println!(
        "random: {bytes:.2} bytes an entry, {worst:.2} at worst, insert {inserted:?}, find {:?}",
        start.elapsed() / 1_000_000
    );
    assert!(bytes <= worst && worst <= 16.5);

    let start = Instant::now();
    let mut packed = ExceptionTable::new();
    for run in table.iter() {
        packed.append(run, GFP_KERNEL).unwrap();
    }
    let appended = start.elapsed() / 1_000_000;
    let bytes = packed.bytes() as f64 / 1e6;
    std::println!("appended: {bytes:.2} bytes for an entry, append {appended:?}");
    assert!(bytes <= 12.5);
    assert!(packed.iter().eq(table.iter()));

    let mut gone: Vec<Run> = table.iter().collect();
    gone.sort_by_key(|run| run.new);
    let start = Instant::now();
    for run in gone.into_iter().rev() {
        packed.remove(run).unwrap();
    }
    std::println!("remove {:?}", start.elapsed() / 1_000_000);
    assert_eq!(packed.entries(), 0);
}

/// Tables with a run that needs nothing, a leaf, a branch, or a root, and the number of spares that
/// it needs.
fn stages() -> Vec<(Rig, Run, usize)> {
    let leaf = || filled(single(0..LEAF, 2));
    let branch = || filled((0..BRANCH).map(|index| run(index * FAR, index * 2, 1)));
    let root = || filled((0..BRANCH * 4).map(|index| run(index * FAR, index * 2, 1)));
    // Adds a full leaf, which is too far from its neighbours to hand entries to them.
    let with_full_leaf = |mut rig: Rig| {
        (1..LEAF).for_each(|index| rig.insert(run(60 * FAR + index * 2, index * 3, 1)));
        rig
    };
    let middle = || filled(single((0..LEAF * 3).map(|index| index * 4), 1));
    vec![
        (Rig::new(), run(5, 5, 1), 3),
        (filled([run(1, 1, 1)].into_iter()), run(2, 2, 1), 0),
        (filled([run(1, 1, 1)].into_iter()), run(7, 7, 1), 0),
        (filled([run(1, 1, 1)].into_iter()), run(FAR, 7, 1), 1),
        (leaf(), run(1001, 3, 1), 1),
        (leaf(), run(301, 0, 1), 1),
        (leaf(), run(301, 301, 1), 0),
        (middle(), run(LEAF * 6 + 1, 0, 1), 1),
        (branch(), run(BRANCH * FAR, 3, 1), 2),
        (branch(), run(FAR / 4, 0, 1), 0),
        (branch(), run(FAR * 60 + FAR / 2, 0, 1), 2),
        (root(), run(BRANCH * 4 * FAR, 3, 1), 3),
        (root(), run(BRANCH * FAR - FAR / 2, 3, 1), 3),
        (with_full_leaf(branch()), run(60 * FAR + 301, 0, 1), 2),
        (with_full_leaf(root()), run(60 * FAR + 301, 0, 1), 3),
    ]
}

#[test]
fn lack_of_memory_changes_nothing() {
    let mut refused = 0;
    for number in 0..stages().len() {
        for given in 0..=3 {
            let (mut rig, run, needed) = stages().swap_remove(number);
            let before = (rig.table.bytes(), rig.table.entries(), rig.table.count());
            let wants = rig.table.spare_root_capacity();
            let mut spares = SpareNodes::new();
            let (result, reached) =
                faults::with_failing(given, || spares.refill(wants, GFP_KERNEL));
            let all = if wants == 0 { 2 } else { 3 };
            assert_eq!(reached, given < all);
            assert_eq!(result, if reached { Err(AllocError) } else { Ok(()) });
            assert_eq!(spares.is_sufficient(wants), !reached);
            if given < needed {
                assert_eq!(
                    rig.table.insert(run, &mut spares),
                    Err(InsertError::NoMemory)
                );
                let after = (rig.table.bytes(), rig.table.entries(), rig.table.count());
                assert_eq!(after, before);
                refused += 1;
                rig.compare();
                spares.refill(wants, GFP_KERNEL).unwrap();
            }
            assert_eq!(
                rig.table.insert(run, &mut spares),
                Ok(()),
                "{number} {given}"
            );
            rig.model.insert(run);
            rig.compare();
            rig.compare_finds(1);
            rig.drain();
        }
    }
    assert_eq!(refused, 22);
}

#[test]
fn insertion_does_not_allocate() {
    for (mut rig, run, _) in stages() {
        let mut spares = SpareNodes::new();
        spares
            .refill(rig.table.spare_root_capacity(), GFP_KERNEL)
            .unwrap();
        let (result, reached) = faults::with_failing(0, || rig.table.insert(run, &mut spares));
        assert_eq!((result, reached), (Ok(()), false));
    }
}

#[test]
fn stock_keeps_what_it_has() {
    let (mut spares, root) = (
        SpareNodes::new(),
        filled(single(0..1, 1)).table.spare_root_capacity(),
    );
    assert_eq!((root, ExceptionTable::new().spare_root_capacity()), (0, 4));
    assert!(!spares.is_sufficient(0));
    spares.refill(4, GFP_KERNEL).unwrap();
    let stocked = |spares: &mut SpareNodes, wants| {
        let (result, reached) = faults::with_failing(0, || spares.refill(wants, GFP_KERNEL));
        assert_eq!(result.is_err(), reached);
        !reached
    };
    assert!(spares.is_sufficient(4) && spares.is_sufficient(0) && !spares.is_sufficient(8));
    assert!(stocked(&mut spares, 4));
    assert!(stocked(&mut spares, 3));
    assert!(!stocked(&mut spares, 8));
    // The smaller root is freed, the other spares are kept.
    assert!(stocked(&mut spares, 0) && !spares.is_sufficient(1));
    spares.refill(8, GFP_KERNEL).unwrap();
    assert!(spares.is_sufficient(8));
    // A root that is not needed is freed.
    assert!(stocked(&mut spares, 0) && !spares.is_sufficient(8));
}

#[test]
fn append_with_failing_allocations() {
    let mut allocations = 0;
    for gap in [2, FAR] {
        let mut table = ExceptionTable::new();
        let mut model = Model::default();
        for index in 0..if gap == 2 { 3 * LEAF } else { 9 * BRANCH } {
            let run = run(index * gap, index * 2, 1);
            for n in 0.. {
                let before = (table.bytes(), table.entries(), table.count());
                let (result, reached) = faults::with_failing(n, || table.append(run, GFP_KERNEL));
                if !reached {
                    assert_eq!(result, Ok(()));
                    break;
                }
                assert_eq!(result, Err(InsertError::NoMemory));
                let after = (table.bytes(), table.entries(), table.count());
                assert_eq!(after, before);
                allocations += 1;
            }
            model.insert(run);
        }
        let rig = Rig {
            table,
            spares: SpareNodes::new(),
            model,
        };
        rig.compare();
        rig.compare_finds(1);
    }
    // Leaves, branches and roots: three leaves in one branch, and nine full branches with their
    // leaves, whose root is replaced at four and at eight branches.
    assert_eq!(allocations, (3 + 1 + 1) + (9 * BRANCH as usize + 9 + 3));
}
