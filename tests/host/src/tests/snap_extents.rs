// SPDX-License-Identifier: GPL-2.0

//! The table of completed exceptions against a sorted map of runs.

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Instant;
use std::vec;
use std::vec::Vec;

use crate::env::{
    faults,
    AllocError,
    GFP_KERNEL, //
};
use crate::logic::snapshot::chunks::{
    Chunk,
    CowChunk, //
};
use crate::logic::snapshot::exception_table::*;

/// The number of chunks of the COW device that can be named.
const COW_CHUNKS: u64 = 1 << 48;
/// The number of chunks in the longest entry.
const ENTRY_CHUNKS: u64 = 1 << 16;
/// The number of entries in a full leaf, and of leaves in a full branch.
const LEAF: u64 = 340;
const BRANCH: u64 = 128;
/// A distance at which no two chunks share a leaf.
const FAR: u64 = 1 << 33;

fn run(old: u64, new: u64, len: u64) -> Run {
    Run {
        old: Chunk(old),
        new: CowChunk(new),
        len,
    }
}

/// What should be mapped: start, where it lies, number of chunks. Runs that continue each other are
/// one.
#[derive(Clone, Default)]
struct Model(BTreeMap<u64, (u64, u64)>);

impl Model {
    /// Finds the run that holds `chunk`.
    fn holder(&self, chunk: u64) -> Option<Run> {
        let (old, (new, len)) = self.0.range(..=chunk).next_back()?;
        (chunk - old < *len).then_some(run(*old, *new, *len))
    }

    fn find(&self, chunk: u64, most: u64) -> Lookup {
        if let Some(held) = self.holder(chunk) {
            let skip = chunk - held.old.0;
            return Lookup::Mapped(CowChunk(held.new.0 + skip), (held.len - skip).min(most));
        }
        let next = self.0.range(chunk..).next();
        Lookup::Hole(next.map_or(most, |(old, _)| (old - chunk).min(most)))
    }

    fn expected(&self, run: Run) -> Result<(), InsertError> {
        let ends = run
            .old
            .0
            .checked_add(run.len)
            .zip(run.new.0.checked_add(run.len));
        match ends {
            Some((_, new)) if new <= COW_CHUNKS && (1..=MAX_RUN_CHUNKS).contains(&run.len) => {}
            _ => return Err(InsertError::OutOfRange),
        }
        match self.find(run.old.0, run.len) {
            Lookup::Hole(len) if len == run.len => Ok(()),
            _ => Err(InsertError::Overlap),
        }
    }

    fn insert(&mut self, mut run: Run) {
        if let Some((new, len)) = self.0.get(&(run.old.0 + run.len)).copied() {
            if run.new.0 + run.len == new {
                self.0.remove(&(run.old.0 + run.len));
                run.len += len;
            }
        }
        if let Some((old, (new, len))) = self.0.range_mut(..run.old.0).next_back() {
            if old + *len == run.old.0 && *new + *len == run.new.0 {
                *len += run.len;
                return;
            }
        }
        self.0.insert(run.old.0, (run.new.0, run.len));
    }

    fn holds(&self, run: Run) -> bool {
        run.len > 0 && self.find(run.old.0, run.len) == Lookup::Mapped(run.new, run.len)
    }

    fn remove(&mut self, gone: Run) {
        let held = self.holder(gone.old.0).unwrap();
        self.0.remove(&held.old.0);
        let skip = gone.old.0 - held.old.0;
        if skip > 0 {
            self.0.insert(held.old.0, (held.new.0, skip));
        }
        let rest = held.len - skip - gone.len;
        if rest > 0 {
            let end = gone.old.0 + gone.len;
            self.0.insert(end, (gone.new.0 + gone.len, rest));
        }
    }

    fn chunks(&self) -> u64 {
        self.0.values().map(|(_, len)| len).sum()
    }
}

/// A table with its spares and its model.
struct Rig {
    table: ExceptionTable,
    spares: SpareNodes,
    model: Model,
}

impl Rig {
    fn new() -> Self {
        Self {
            table: ExceptionTable::new(),
            spares: SpareNodes::new(),
            model: Model::default(),
        }
    }

    /// Inserts with enough memory, and compares the result.
    fn insert(&mut self, run: Run) {
        let wants = self.table.spare_root_capacity();
        if !self.spares.is_sufficient(wants) {
            self.spares.refill(wants, GFP_KERNEL).unwrap();
            assert!(self.spares.is_sufficient(wants));
        }
        let expected = self.model.expected(run);
        assert_eq!(
            self.table.insert(run, &mut self.spares),
            expected,
            "{run:?}"
        );
        if expected.is_ok() {
            self.model.insert(run);
        }
    }

    /// Appends behind all runs, and compares the result.
    fn append(&mut self, run: Run) {
        let expected = self.model.expected(run);
        assert_eq!(self.table.append(run, GFP_KERNEL), expected, "{run:?}");
        if expected.is_ok() {
            self.model.insert(run);
        }
    }

    /// Removes, and compares the result.
    fn remove(&mut self, gone: Run) {
        let touches = |entry: Run| {
            let (end, entry_end) = (gone.old.0 + gone.len, entry.old.0 + entry.len);
            gone.old == entry.old || end >= entry_end
        };
        let mut entries = self.table.iter();
        let expected = self.model.holds(gone)
            && touches(
                entries
                    .find(|entry| entry.old.0 + entry.len > gone.old.0)
                    .unwrap(),
            );
        drop(entries);
        let result = self.table.remove(gone);
        assert_eq!(result, expected.then_some(()).ok_or(NotMapped), "{gone:?}");
        if expected {
            self.model.remove(gone);
        }
    }

    /// Takes chunks out from anywhere, and compares the result. Without memory nothing changes.
    fn cut(&mut self, gone: Run) {
        let mut spares = SpareNodes::new();
        let result = self.table.remove_splitting(gone, &mut spares);
        if !self.model.holds(gone) {
            return assert_eq!(result, Err(NotMapped), "{gone:?}");
        }
        if result == Ok(false) {
            self.compare();
            spares
                .refill(self.table.spare_root_capacity(), GFP_KERNEL)
                .unwrap();
            assert_eq!(
                self.table.remove_splitting(gone, &mut spares),
                Ok(true),
                "{gone:?}"
            );
        } else {
            assert_eq!(result, Ok(true), "{gone:?}");
        }
        self.model.remove(gone);
    }

    /// Compares the list of runs and the sums.
    fn compare(&self) {
        let mut listed = Model::default();
        let (mut entries, mut end) = (0, 0);
        for entry in self.table.iter() {
            assert!(entry.old.0 >= end && (1..=ENTRY_CHUNKS).contains(&entry.len));
            end = entry.old.0 + entry.len;
            entries += 1;
            listed.insert(entry);
        }
        assert!(listed.0 == self.model.0, "the lists differ");
        assert_eq!(self.table.entries(), entries);
        assert_eq!(self.table.count(), self.model.chunks());
    }

    fn compare_find(&self, chunk: u64, most: u64) {
        let found = self.table.find(Chunk(chunk), most);
        assert_eq!(found, self.model.find(chunk, most), "{chunk} {most}");
    }

    /// Compares the lookups at the boundaries of `step`-th runs.
    fn compare_finds(&self, step: usize) {
        for chunk in [0, 1, u64::MAX - 1, u64::MAX] {
            self.compare_find(chunk, 1);
            self.compare_find(chunk, u64::MAX);
        }
        for (old, (_, len)) in self.model.0.iter().step_by(step) {
            for chunk in [
                old.saturating_sub(1),
                *old,
                old + len / 2,
                old + len - 1,
                old + len,
            ] {
                for most in [1, 2, len + 1, u64::MAX] {
                    self.compare_find(chunk, most);
                }
            }
        }
    }

    /// Removes all, run by run, and expects nothing to be left but a root.
    fn drain(&mut self) {
        let runs: Vec<Run> = self.table.iter().collect();
        let (front, back) = runs.split_at(runs.len() / 2);
        for gone in front.iter().step_by(2).chain(back.iter().rev()) {
            self.table.remove(*gone).unwrap();
            self.model.remove(*gone);
        }
        self.compare();
        for gone in front.iter().skip(1).step_by(2) {
            self.table.remove(*gone).unwrap();
            self.model.remove(*gone);
        }
        self.compare();
        assert_eq!((self.table.count(), self.table.entries()), (0, 0));
        assert!(self.table.iter().next().is_none());
    }
}

/// Numbers that look random.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Insert(Run),
    /// Inserts `count` runs, each `step` behind the one before.
    Stream {
        first: Run,
        count: u64,
        step: i64,
    },
    /// Inserts runs of one chunk at random within `span` chunks.
    Scatter {
        start: u64,
        span: u64,
        seed: u64,
        count: u64,
    },
    /// Appends a run so many chunks behind the last; it continues that on the COW device, or not.
    Append {
        gap: u64,
        follows: bool,
        len: u64,
    },
    /// Removes a part of an entry: the chosen one without `.1` chunks in front and `.2` behind, or
    /// with so many more if negative.
    Remove(prop::sample::Index, i64, i64),
    /// The same, but as a run that may lie within an entry.
    Cut(prop::sample::Index, i64, i64),
    /// Removes a number of entries, one behind the other.
    Clear(prop::sample::Index, usize),
    Find(u64, u64),
}

/// Chunks near interesting places.
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
            // The chunks of the COW device ascend, as they do where they are allocated.
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

/// Fills a table with runs in the order in which they come, and compares it.
fn filled(runs: impl Iterator<Item = Run>) -> Rig {
    let mut rig = Rig::new();
    runs.for_each(|run| rig.insert(run));
    rig.compare();
    rig.compare_finds(97);
    rig
}

/// Runs of a chunk each, with gaps between them on the origin, `order` being a permutation.
fn single(order: impl Iterator<Item = u64>, gap: u64) -> impl Iterator<Item = Run> {
    order
        .zip(0..)
        .map(move |(index, new)| run(index * gap, new * 2, 1))
}

/// Returns the bytes of full leaves and branches for `entries`, with a root for `root` branches.
fn full(entries: u64, root: u64) -> usize {
    let leaves = entries.div_ceil(LEAF);
    (leaves * LEAF * 12 + leaves.div_ceil(BRANCH) * BRANCH * 32 + root * 32) as usize
}

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
    // One ascends, one descends, from the middle of gaps that others left.
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
        "random: {bytes:.2} bytes for an entry, {worst:.2} at worst, insert {inserted:?}, find {:?}",
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

#[test]
fn one_run_in_few_entries() {
    let chunks = 200_000;
    for reverse in [false, true] {
        let at = |index| if reverse { chunks - 1 - index } else { index };
        let mut rig = filled((0..chunks).map(|index| run(50 + at(index), 9 + at(index), 1)));
        assert_eq!(rig.table.entries(), chunks.div_ceil(ENTRY_CHUNKS));
        let found = rig.table.find(Chunk(50), u64::MAX);
        assert_eq!(found, Lookup::Mapped(CowChunk(9), chunks));
        // Over all entries, from the middle of the first to that of the last.
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
    // The gaps are filled in another order; all becomes one entry, over the borders of leaves.
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
    // An entry is full: the run before and the run behind are joined without it.
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
        // The last chunks of the leaf's span, and a run that begins within it and ends behind it.
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
    // In front of a leaf that spans all it can: a leaf of its own, though the first entry continues
    // the run.
    let mut rig = filled([run(99, 49, 1), run(99 + span - 1, 7, 1)].into_iter());
    assert_eq!(rig.table.bytes(), full(2, 4));
    rig.insert(run(98, 48, 1));
    assert_eq!(rig.table.entries(), 3);
    rig.compare();
    rig.compare_finds(1);
    rig.drain();

    // Between two leaves: the run fits the first, but not with what is behind it.
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
    // At the start of a leaf, and of a branch: the head of the first entry goes, or all of it.
    for border in [LEAF, LEAF * BRANCH] {
        for gone in [2, 4] {
            let mut rig = filled((0..border + 3).map(|index| run(index * 10, index * 9, 4)));
            rig.remove(run(border * 10, border * 9, gone));
            // What takes its place belongs to the leaf before.
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
    // None of these fit the first leaf, all of them the one that the first of them opens.
    let below = |index: u64| run(FAR + 5000 - index * 2, index * 2, 1);
    let mut rig = filled([run(0, 7, 1)].into_iter().chain((0..1000).map(below)));
    assert_eq!(rig.table.bytes(), full(LEAF * 4, 4));
    // In front of the first leaf: too far to become a part of it, then near.
    let mut rest = filled([run(3 * FAR, 7, 1), run(FAR, 9, 1), run(FAR - 2, 11, 1)].into_iter());
    assert_eq!(rest.table.bytes(), full(LEAF * 2, 4));
    rest.drain();
    rig.drain();
}

#[test]
fn leaves_far_apart() {
    // A leaf for each entry, so branches fill fast: at the end, at the start, and between.
    let count = 3000;
    let orders: [fn(u64) -> u64; 3] = [|i| i, |i| 2999 - i, |i| i * 1229 % 3000];
    for order in orders {
        let mut rig = filled((0..count).map(|index| run(order(index) * FAR, index, 1)));
        // Neighbours in the row of chunks of the COW device, but too far away on the origin.
        assert_eq!(rig.table.entries(), count);
        for index in (0..count).step_by(3) {
            rig.insert(run(index * FAR + 9, 1 << 30, 2));
        }
        rig.compare();
        rig.compare_finds(1);
        rig.drain();
    }
}

/// Tables in which the next run needs nothing, a leaf, a branch, or a root.
fn stages() -> Vec<(Rig, Run, usize)> {
    let leaf = || filled(single(0..LEAF, 2));
    let branch = || filled((0..BRANCH).map(|index| run(index * FAR, index * 2, 1)));
    let root = || filled((0..BRANCH * 4).map(|index| run(index * FAR, index * 2, 1)));
    // A full leaf, too far from its neighbours to hand anything to them.
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
    // The smaller root is gone, the rest is there.
    assert!(stocked(&mut spares, 0) && !spares.is_sufficient(1));
    spares.refill(8, GFP_KERNEL).unwrap();
    assert!(spares.is_sufficient(8));
    // One that nobody wants is freed.
    assert!(stocked(&mut spares, 0) && !spares.is_sufficient(8));
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
    // Leaves, branches and roots: three leaves in one branch, then those of nine full branches, for
    // which the root is replaced at four and at eight.
    assert_eq!(allocations, (3 + 1 + 1) + (9 * BRANCH as usize + 9 + 3));
}
