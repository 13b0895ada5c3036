// SPDX-License-Identifier: GPL-2.0

//! The entries, leaves and branches of a table.

use super::*;

/// More than five full branches, so that the root grows.
const MANY: u64 = 5 * LEAF * BRANCH + 1000;

#[test]
fn ascending_fills_leaves() {
    let mut rig = filled(single(0..MANY, 2));
    assert_eq!(rig.table.bytes(), full(MANY, 8));
    rig.drain();
    assert_eq!(rig.table.bytes(), 8 * 32);
}

#[test]
fn descending_fills_leaves() {
    let mut rig = filled(single((0..MANY).rev(), 2));
    assert_eq!(rig.table.bytes(), full(MANY, 8));
    rig.drain();
}

#[test]
fn interleaved_streams() {
    // Some streams ascend and some descend, each in a range of its own.
    let streams = 7;
    for ascending in [1, 0, 5] {
        let each = 30_000;
        let order = (0..streams * each).map(move |index| {
            let (stream, step) = (index % streams, index / streams);
            let up = stream % 6 <= ascending;
            stream * each + if up { step } else { each - 1 - step }
        });
        let mut rig = filled(single(order, 3));
        let bytes = rig.table.bytes() as f64 / rig.table.entries() as f64;
        std::println!("{streams} streams: {bytes:.2} bytes for an entry");
        assert!(bytes <= 16.5);
        rig.drain();
    }
}

#[test]
fn random_order() {
    // A permutation: the factor has no common divisor with the power of two.
    let order = (0..1u64 << 17).map(|index| index.wrapping_mul(0x9e37_79b1) % (1 << 17));
    filled(single(order, 2)).drain();
    let mut dice = Dice(7);
    let mut rig = filled((0..100_000).map(|new| run(dice.roll() % 100_000, new, 1 + new % 3)));
    rig.drain();
}

#[test]
fn one_run_in_few_entries() {
    let chunks = 200_000;
    for reverse in [false, true] {
        let at = |index| if reverse { chunks - 1 - index } else { index };
        let mut rig = filled((0..chunks).map(|index| run(50 + at(index), 9 + at(index), 1)));
        assert_eq!(rig.table.entries(), chunks.div_ceil(ENTRY_CHUNKS));
        let found = rig.table.find(Chunk(50), u64::MAX);
        assert_eq!(found, Lookup::Mapped(CowChunk(9), chunks));
        // From the middle of the first entry to the middle of the last.
        rig.remove(run(50 + 100, 9 + 100, chunks - 200));
        rig.compare();
        assert_eq!(rig.table.count(), 200);
        rig.remove(run(50 + 50, 9 + 50, 1));
        assert_eq!(rig.table.count(), 200);
        rig.drain();
    }
}

#[test]
fn every_second_first() {
    // The gaps are filled in another order, until one entry is left, across the borders of leaves.
    let count = 20_000;
    let mut rig = filled((0..count).map(|index| run(index * 2, index * 2, 1)));
    assert_eq!(rig.table.entries(), count);
    for index in (0..count).rev() {
        let index = index.wrapping_mul(7) % count;
        rig.insert(run(index * 2 + 1, index * 2 + 1, 1));
    }
    rig.compare();
    assert_eq!((rig.table.count(), rig.table.entries()), (2 * count, 1));
    assert_eq!(rig.table.bytes(), full(1, 4));
}

#[test]
fn joins_only_what_continues_on_both() {
    let mut rig = Rig::new();
    for (new, entries) in [(100, 1), (90, 2), (111, 3)] {
        let old = 1000 + 10 * (entries - 1);
        rig.insert(run(old, new, 10));
        assert_eq!(rig.table.entries(), entries);
    }
    rig.insert(run(1030, 121, 5));
    rig.insert(run(995, 95, 5));
    assert_eq!(rig.table.entries(), 3);
    rig.compare();
    rig.compare_finds(1);
    // An entry is full: the runs before and after it become entries of their own.
    rig.insert(run(1 << 20, 1 << 20, MAX_RUN_CHUNKS));
    rig.insert(run(
        (1 << 20) + MAX_RUN_CHUNKS,
        (1 << 20) + MAX_RUN_CHUNKS,
        MAX_RUN_CHUNKS,
    ));
    assert_eq!(rig.table.entries(), 4);
    rig.insert(run((1 << 20) - 1, (1 << 20) - 1, 1));
    rig.insert(run((1 << 20) + ENTRY_CHUNKS, (1 << 20) + ENTRY_CHUNKS, 1));
    assert_eq!(rig.table.entries(), 6);
    rig.compare();
    rig.compare_finds(1);
}

#[test]
fn overlaps_change_nothing() {
    let mut rig = filled([run(100, 0, 10), run(120, 50, 10)].into_iter());
    for (old, len) in [
        (91, 10),
        (100, 1),
        (109, 1),
        (105, 20),
        (119, 2),
        (90, 100),
        (129, 5),
    ] {
        rig.insert(run(old, 1000, len));
        rig.compare();
    }
    assert_eq!(rig.table.count(), 20);
}

#[test]
fn limits_of_numbers() {
    let mut rig = Rig::new();
    for (run, expected) in [
        (run(0, 0, 0), Err(InsertError::OutOfRange)),
        (run(0, 0, MAX_RUN_CHUNKS + 1), Err(InsertError::OutOfRange)),
        (run(0, COW_CHUNKS, 1), Err(InsertError::OutOfRange)),
        (run(0, COW_CHUNKS - 1, 2), Err(InsertError::OutOfRange)),
        (run(0, u64::MAX, 2), Err(InsertError::OutOfRange)),
        (run(u64::MAX, 0, 1), Err(InsertError::OutOfRange)),
        (run(u64::MAX - 1, 0, 2), Err(InsertError::OutOfRange)),
        (run(0, COW_CHUNKS - MAX_RUN_CHUNKS, MAX_RUN_CHUNKS), Ok(())),
        (run(u64::MAX - 1, 0, 1), Ok(())),
        (run(u64::MAX - 3, COW_CHUNKS - 2, 2), Ok(())),
    ] {
        assert_eq!(rig.model.expected(run), expected);
        rig.insert(run);
        let mut table = ExceptionTable::new();
        assert_eq!(table.append(run, GFP_KERNEL), expected);
    }
    rig.compare();
    rig.compare_finds(1);
    assert_eq!(
        rig.table.find(Chunk(u64::MAX - 1), 0),
        Lookup::Mapped(CowChunk(0), 1)
    );
    assert_eq!(rig.table.find(Chunk(u64::MAX), 0), Lookup::Hole(1));
    for missing in [
        run(0, COW_CHUNKS - MAX_RUN_CHUNKS, 0),
        run(0, 1, 1),
        run(MAX_RUN_CHUNKS - 1, COW_CHUNKS - 1, 2),
        run(MAX_RUN_CHUNKS, COW_CHUNKS, 1),
        run(u64::MAX - 1, 0, 5),
        run(u64::MAX, 1, u64::MAX),
    ] {
        assert_eq!(rig.table.remove(missing), Err(NotMapped), "{missing:?}");
    }
    rig.compare();
    rig.drain();
}

#[test]
fn keys_at_the_end_of_what_a_leaf_spans() {
    let span = 1u64 << 32;
    for base in [0, 5, 1 << 40] {
        // The last chunks of the leaf's span, and a run that begins inside it and ends beyond it.
        let mut rig = filled([run(base, 0, 1), run(base + span - 4, 10, 2)].into_iter());
        let one_leaf = rig.table.bytes();
        assert_eq!(one_leaf, full(2, 4));
        rig.insert(run(base + span - 2, 12, 2));
        assert_eq!((rig.table.entries(), rig.table.bytes()), (2, one_leaf));
        rig.insert(run(base + span, 14, 3));
        assert_eq!(rig.table.entries(), 3);
        assert!(rig.table.bytes() > one_leaf);
        let found = rig.table.find(Chunk(base + span - 4), u64::MAX);
        assert_eq!(found, Lookup::Mapped(CowChunk(10), 7));
        rig.compare_finds(1);
        rig.remove(run(base + span - 3, 11, 5));
        rig.compare();
        rig.drain();

        let mut rig = filled([run(base, 0, 1), run(base + span - 1, 10, 2)].into_iter());
        rig.remove(run(base + span - 1, 10, 1));
        rig.compare();
        rig.compare_finds(1);
    }
}

#[test]
fn joins_within_what_a_leaf_spans() {
    let span = 1u64 << 32;
    // A run before a leaf of maximum span gets a leaf of its own, although the first entry
    // continues it.
    let mut rig = filled([run(99, 49, 1), run(99 + span - 1, 7, 1)].into_iter());
    assert_eq!(rig.table.bytes(), full(2, 4));
    rig.insert(run(98, 48, 1));
    assert_eq!(rig.table.entries(), 3);
    rig.compare();
    rig.compare_finds(1);
    rig.drain();

    // Between two leaves: the first leaf can span the run, but not joined with the next entry.
    let mut rig = filled([run(99, 7, 1), run(99 + span, 50, 2)].into_iter());
    rig.insert(run(99 + span - 2, 48, 1));
    rig.insert(run(99 + span - 1, 49, 1));
    assert_eq!(rig.table.entries(), 3);
    rig.compare();
    rig.compare_finds(1);
    rig.drain();
}

#[test]
fn first_chunks_of_leaves_rise() {
    // At the start of a leaf and of a branch, the head of the first entry is removed, or all of it.
    for border in [LEAF, LEAF * BRANCH] {
        for gone in [2, 4] {
            let mut rig = filled((0..border + 3).map(|index| run(index * 10, index * 9, 4)));
            rig.remove(run(border * 10, border * 9, gone));
            // The run that replaces it belongs to the previous leaf.
            rig.insert(run(border * 10 - 3, 0, 3 + gone));
            rig.compare();
            for chunk in border * 10 - 4..border * 10 + 11 {
                rig.compare_find(chunk, u64::MAX);
            }
            rig.remove(run(border * 10 - 3, 0, 3 + gone));
            rig.compare();
        }
    }
}

#[test]
fn descending_far_behind_a_leaf() {
    // None of these fit the first leaf. The first of them gets a new leaf, which all others fit.
    let below = |index: u64| run(FAR + 5000 - index * 2, index * 2, 1);
    let mut rig = filled([run(0, 7, 1)].into_iter().chain((0..1000).map(below)));
    assert_eq!(rig.table.bytes(), full(LEAF * 4, 4));
    // Before the first leaf: too far to become a part of it, then near.
    let mut rest = filled([run(3 * FAR, 7, 1), run(FAR, 9, 1), run(FAR - 2, 11, 1)].into_iter());
    assert_eq!(rest.table.bytes(), full(LEAF * 2, 4));
    rest.drain();
    rig.drain();
}

#[test]
fn leaves_far_apart() {
    // Each entry needs a leaf, so branches fill fast: at the end, at the start, and in the middle.
    let count = 3000;
    let orders: [fn(u64) -> u64; 3] = [|i| i, |i| 2999 - i, |i| i * 1229 % 3000];
    for order in orders {
        let mut rig = filled((0..count).map(|index| run(order(index) * FAR, index, 1)));
        // The runs are consecutive on the COW device, but not on the origin.
        assert_eq!(rig.table.entries(), count);
        for index in (0..count).step_by(3) {
            rig.insert(run(index * FAR + 9, 1 << 30, 2));
        }
        rig.compare();
        rig.compare_finds(1);
        rig.drain();
    }
}

#[test]
fn append_in_order_only() {
    let mut table = ExceptionTable::new();
    table.append(run(10, 10, 5), GFP_KERNEL).unwrap();
    for old in [0, 9, 10, 14] {
        let refused = table.append(run(old, 100, 1), GFP_KERNEL);
        assert_eq!(refused, Err(InsertError::Overlap));
    }
    table.append(run(15, 15, 5), GFP_KERNEL).unwrap();
    table.append(run(20, 30, 5), GFP_KERNEL).unwrap();
    assert_eq!((table.entries(), table.count()), (2, 15));
}

#[test]
fn append_joins_no_further_than_a_leaf_reaches() {
    let mut rig = Rig::new();
    rig.append(run(10, 1000, 1));
    rig.append(run((1 << 32) + 5, 5000, 5));
    rig.append(run((1 << 32) + 10, 5005, 5));
    rig.insert(run(50, 9000, 1));
    rig.compare();
    rig.compare_finds(1);
}
