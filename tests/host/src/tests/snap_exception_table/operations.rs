// SPDX-License-Identifier: GPL-2.0

//! All operations in random order, compared with the model.

use proptest::prelude::*;
use std::vec::Vec;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Insert(Run),
    /// Inserts `count` runs, each `step` chunks after the previous one.
    Stream {
        first: Run,
        count: u64,
        step: i64,
    },
    /// Inserts `count` runs of one chunk at random places within `span` chunks.
    Scatter {
        start: u64,
        span: u64,
        seed: u64,
        count: u64,
    },
    /// Appends a run `gap` chunks after the last one, which it may continue on the COW device.
    Append {
        gap: u64,
        follows: bool,
        len: u64,
    },
    /// Removes a part of an entry: the chosen one without `.1` chunks at its start and `.2` chunks
    /// at its end. Negative numbers add chunks.
    Remove(prop::sample::Index, i64, i64),
    /// The same, but the run may lie inside an entry.
    Cut(prop::sample::Index, i64, i64),
    /// Removes a number of consecutive entries.
    Clear(prop::sample::Index, usize),
    Find(u64, u64),
}

/// Chunks near borders.
fn old() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0u64..3000,
        1 => (1u64 << 32) - 100..(1 << 32) + 100,
        1 => (1u64 << 40) - 1000..(1 << 40) + 1000,
        1 => (0u64..300).prop_map(|index| index * FAR),
        1 => (0u64..300).prop_map(|below| u64::MAX - below),
        1 => any::<u64>(),
    ]
}

/// Runs; in half of them the chunks of the COW device follow those of the origin, so they join.
fn runs() -> impl Strategy<Value = Run> {
    let len = prop_oneof![
        6 => 1u64..4,
        2 => 1u64..200,
        1 => MAX_RUN_CHUNKS - 2..MAX_RUN_CHUNKS + 2,
        1 => Just(0),
    ];
    let new = prop_oneof![
        8 => Just(None),
        6 => (0..COW_CHUNKS).prop_map(Some),
        1 => (COW_CHUNKS - 5..COW_CHUNKS + 5).prop_map(Some),
        1 => any::<u64>().prop_map(Some),
    ];
    (old(), new, len).prop_map(|(old, new, len)| {
        run(
            old,
            new.unwrap_or(old.wrapping_add(7_000_000) % COW_CHUNKS),
            len,
        )
    })
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let steps = prop_oneof![
        -3i64..4,
        Just(-40),
        Just(40),
        Just(FAR as i64),
        Just(-(FAR as i64)),
    ];
    let op = prop_oneof![
        6 => runs().prop_map(Op::Insert),
        2 => (runs(), 0u64..800, steps)
            .prop_map(|(first, count, step)| Op::Stream { first, count, step }),
        1 => (old(), 1u64..100_000, any::<u64>(), 0u64..800)
            .prop_map(|(start, span, seed, count)| Op::Scatter { start, span, seed, count }),
        6 => (prop_oneof![3 => 0u64..3, 1 => (1u64 << 32) - 10..1 << 32], any::<bool>(), 1u64..10)
            .prop_map(|(gap, follows, len)| Op::Append { gap, follows, len }),
        6 => (any::<prop::sample::Index>(), -2i64..4, -2i64..4)
            .prop_map(|(index, front, back)| Op::Remove(index, front, back)),
        6 => (any::<prop::sample::Index>(), -2i64..4, -2i64..4)
            .prop_map(|(index, front, back)| Op::Cut(index, front, back)),
        1 => (any::<prop::sample::Index>(), 0usize..600)
            .prop_map(|(index, count)| Op::Clear(index, count)),
        3 => (old(), any::<u64>()).prop_map(|(chunk, most)| Op::Find(chunk, most)),
    ];
    prop::collection::vec(op, 0..40)
}

fn apply(rig: &mut Rig, op: Op) {
    match op {
        Op::Insert(run) => rig.insert(run),
        Op::Stream { first, count, step } => {
            // The chunks of the COW device ascend, in the order of allocation.
            for index in 0..count {
                let old = first
                    .old
                    .0
                    .wrapping_add_signed(step.wrapping_mul(index as i64));
                let new = first.new.0.saturating_add(index * first.len);
                rig.insert(run(old, new, first.len));
            }
        }
        Op::Scatter {
            start,
            span,
            seed,
            count,
        } => {
            let mut dice = Dice(seed);
            for _ in 0..count {
                let old = start.wrapping_add(dice.roll() % span);
                rig.insert(run(old, dice.roll() % COW_CHUNKS, 1));
            }
        }
        Op::Append { gap, follows, len } => {
            let last = rig.table.iter().last().unwrap_or(run(0, 0, 0));
            let old = last.old.0.saturating_add(last.len).saturating_add(gap);
            let new = last.new.0.wrapping_add(last.len);
            rig.append(run(old, if follows { new } else { new + 7 }, len));
        }
        Op::Remove(index, front, back) if rig.table.entries() > 0 => {
            let chosen = index.index(rig.table.entries() as usize);
            let entry = rig.table.iter().nth(chosen).unwrap();
            let old = entry.old.0.saturating_add_signed(front);
            let new = entry.new.0.saturating_add_signed(front);
            let len = entry.len.saturating_add_signed(-front - back);
            if old.checked_add(len).is_some() {
                rig.remove(run(old, new, len));
            }
            rig.remove(run(old, new + 1, 1));
        }
        Op::Cut(index, front, back) if rig.table.entries() > 0 => {
            let chosen = index.index(rig.table.entries() as usize);
            let entry = rig.table.iter().nth(chosen).unwrap();
            let old = entry.old.0.saturating_add_signed(front);
            let new = entry.new.0.saturating_add_signed(front);
            let len = entry.len.saturating_add_signed(-front - back);
            if len != 0 && old.checked_add(len).is_some() {
                rig.cut(run(old, new, len));
            }
        }
        Op::Clear(index, count) if rig.table.entries() > 0 => {
            let chosen = index.index(rig.table.entries() as usize);
            let gone: Vec<Run> = rig.table.iter().skip(chosen).take(count).collect();
            for gone in gone {
                rig.remove(gone);
            }
        }
        Op::Remove(..) | Op::Cut(..) | Op::Clear(..) => {
            assert_eq!(rig.table.remove(run(5, 5, 1)), Err(NotMapped));
        }
        Op::Find(chunk, most) => rig.compare_find(chunk, most.max(1)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn is_a_map_of_chunks(ops in ops()) {
        let mut rig = Rig::new();
        for op in ops {
            apply(&mut rig, op);
            rig.compare();
        }
        rig.compare_finds(1);
        rig.drain();
    }
}
