// SPDX-License-Identifier: GPL-2.0

//! Vectors and sorting, compared with the standard library.

use proptest::prelude::*;

use crate::env::{
    faults,
    KVVec,
    GFP_KERNEL, //
};
use crate::logic::snapshot::{
    chunks::{
        Chunk,
        CowChunk, //
    },
    lists,
    run::{
        PackedRun,
        Run, //
    },
    sort, //
};

fn list<T>(items: impl IntoIterator<Item = T>) -> KVVec<T> {
    let mut list = KVVec::new();
    for item in items {
        lists::push(&mut list, item, GFP_KERNEL).unwrap();
    }
    list
}

fn runs(olds: &[u64]) -> Vec<PackedRun> {
    let run = |(new, old): (u64, &u64)| {
        PackedRun::new(Run {
            old: Chunk(*old),
            new: CowChunk(new),
            len: 1,
        })
    };
    (0..).zip(olds).map(run).collect()
}

proptest! {
    #[test]
    fn sorted(
        olds in prop::collection::vec(
            prop_oneof![0u64..600, any::<u64>(), Just(u64::MAX)],
            0..300,
        ),
    ) {
        let mut wanted = runs(&olds);
        let (mut unsorted, mut sorter) = (wanted.clone(), sort::Sorter::default());
        let sorted = sorter.sort(&mut unsorted, GFP_KERNEL).unwrap();
        // Stable: runs of the same chunk keep their order.
        wanted.sort_by_key(|run| run.old());
        prop_assert_eq!(sorted, &wanted[..]);
    }

    #[test]
    fn searched(items in prop::collection::vec(0u32..50, 0..40), bound in 0u32..60) {
        let mut items = items;
        items.sort();
        let is_before = |item: &u32| *item < bound;
        prop_assert_eq!(
            lists::partition_point(&items, is_before),
            items.partition_point(is_before)
        );
    }

    #[test]
    fn taken(items in prop::collection::vec(0u32..9, 0..40), wanted in 0u32..9) {
        let mut left = list(items.clone());
        let mut model = items;
        let place = model.iter().position(|item| *item == wanted);
        prop_assert_eq!(
            lists::remove_first(&mut left, |item| *item == wanted),
            place.map(|at| model.remove(at))
        );
        prop_assert_eq!(&left[..], &model[..]);
    }
}

#[test]
fn no_memory() {
    for n in 0..6 {
        let mut grown = list(0..8);
        let (result, reached) = faults::with_failing(n, || lists::push(&mut grown, 8, GFP_KERNEL));
        assert_eq!(result.is_err(), reached);
        assert_eq!(&grown[..8], &[0, 1, 2, 3, 4, 5, 6, 7]);
        let (mut unsorted, mut sorter) = (runs(&[3, 1, 2]), sort::Sorter::default());
        let (result, reached) = faults::with_failing(n, || {
            let sorted = sorter.sort(&mut unsorted, GFP_KERNEL);
            sorted.map(|sorted| sorted.iter().map(PackedRun::old).collect::<Vec<_>>())
        });
        assert_eq!(result.is_err(), reached);
        assert!(result.is_err() || result == Ok(vec![1, 2, 3]));
    }
}
