// SPDX-License-Identifier: GPL-2.0

//! The table of completed exceptions against a sorted map of runs.

mod memory;
mod operations;
mod shape;

use std::collections::BTreeMap;
use std::vec::Vec;

use crate::env::GFP_KERNEL;
use crate::logic::snapshot::{
    chunks::{
        Chunk,
        CowChunk, //
    },
    exception_table::*,
    run::*, //
};

/// The number of usable chunks of the COW device.
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

/// The chunks that should be mapped: first chunk, chunk of the COW device, number of chunks. Runs
/// that continue each other are joined.
#[derive(Clone, Default)]
struct Model(BTreeMap<u64, (u64, u64)>);

impl Model {
    /// Returns the run that contains `chunk`.
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

    /// Appends after all runs, and compares the result.
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

    /// Removes chunks from anywhere, and compares the result. Without memory nothing changes.
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

    /// Compares all runs and the sums.
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

    /// Compares lookups at the boundaries of every `step`-th run.
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

    /// Removes all runs, and expects that only a root is left.
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

/// A generator of pseudo-random numbers.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Inserts runs in their order into an empty table, and compares the table.
fn filled(runs: impl Iterator<Item = Run>) -> Rig {
    let mut rig = Rig::new();
    runs.for_each(|run| rig.insert(run));
    rig.compare();
    rig.compare_finds(97);
    rig
}

/// Runs of one chunk each, with gaps between them on the origin. `order` is a permutation.
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
