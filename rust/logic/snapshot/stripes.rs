// SPDX-License-Identifier: GPL-2.0

//! The parts of the table of completed exceptions, and how they are filled when a store is loaded.
//!
//! Stripes of chunks of the origin are spread over the parts, so that each part can have its own
//! lock.

use crate::env::{
    KVVec,
    Result,
    EINVAL,
    ENOMEM,
    GFP_KERNEL, //
};
use crate::logic::snapshot::{
    chunks::Chunk,
    exception_table::{
        ExceptionTable,
        InsertError,
        SpareNodes, //
    },
    run::{
        PackedRun,
        Run, //
    },
    sort::Sorter, //
};

/// The number of parts.
pub(crate) const STRIPES: usize = 64;

/// Where a chunk is if stripes have so many chunks (two to this power): its part, and how many
/// chunks from it on are in the same stripe.
#[inline]
pub(crate) fn stripe_of(chunk: Chunk, stripe: u32) -> (usize, u64) {
    let number = chunk.0.wrapping_shr(stripe);
    // Neighbours are nearly always in different parts.
    // CAST: Less than 64.
    let index = (number ^ number.wrapping_shr(6) ^ number.wrapping_shr(12)) as usize % STRIPES;
    let len = 1u64.wrapping_shl(stripe);
    (index, len.saturating_sub(chunk.0 & len.wrapping_sub(1)))
}

/// The number of runs that are looked up for one write to the origin, in each snapshot: a bio may
/// be as long as a device.
pub(crate) const MAX_LOOKUPS: u32 = 64;

/// Counts the chunks from one on, up to `most`, that `find` has. It is asked for runs one after the
/// other: for a part of the table, from a chunk on, up to a length; it returns how many of them
/// there are. After [`MAX_LOOKUPS`] answers the rest is left for another time.
#[inline]
pub(crate) fn count_leading(
    mut chunk: Chunk,
    most: u64,
    stripe: u32,
    mut find: impl FnMut(usize, Chunk, u64) -> u64,
) -> u64 {
    let mut found = 0u64;
    for _ in 0..MAX_LOOKUPS {
        let Some(left) = most.checked_sub(found).filter(|left| *left != 0) else {
            break;
        };
        let (index, same) = stripe_of(chunk, stripe);
        let len = find(index, chunk, same.min(left)).min(left);
        if len == 0 {
            break;
        }
        found = found.wrapping_add(len);
        chunk = Chunk(chunk.0.wrapping_add(len));
    }
    found
}

/// As many runs of a part are sorted at once, of 16 bytes each.
const MAX_UNSORTED: usize = 1 << 15;
/// A list of runs has room for so many at first.
const FIRST_CAPACITY: usize = 1 << 6;

/// How runs that share chunks of the origin are treated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duplicates {
    /// There are none; if there are, the table is of no use.
    Reject,
    /// Of each chunk the run that came first counts.
    KeepFirst,
}

/// A part that is being loaded.
struct StripeLoader {
    table: ExceptionTable,
    /// What is not in the table yet.
    runs: KVVec<PackedRun>,
}

/// The parts of a table that is being loaded. Runs come in the order of the COW device, and are put
/// in sorted by the origin's: so the parts are filled from front to end, which is fast, and leaves
/// no gaps in them.
///
/// Of records with the same chunk of the origin the first counts. A store that we or C wrote has
/// none; if there are any, it is read again with every chunk by itself: then those of the same
/// chunk stay in their order while they are sorted.
pub(crate) struct StripesLoader {
    stripe: u32,
    on_duplicate: Duplicates,
    has_duplicates: bool,
    parts: KVVec<StripeLoader>,
    sorter: Sorter,
    spares: SpareNodes,
    duplicates: u64,
}

impl StripesLoader {
    /// Makes empty parts. May sleep.
    pub(crate) fn new(stripe: u32, on_duplicate: Duplicates) -> Result<Self> {
        let mut parts = KVVec::with_capacity(STRIPES, GFP_KERNEL)?;
        for _ in 0..STRIPES {
            parts.push_within_capacity(StripeLoader {
                table: ExceptionTable::new(),
                runs: KVVec::new(),
            })?;
        }
        Ok(Self {
            stripe,
            on_duplicate,
            has_duplicates: false,
            parts,
            sorter: Sorter::default(),
            spares: SpareNodes::new(),
            duplicates: 0,
        })
    }

    /// Whether runs shared a chunk of the origin, which was refused.
    pub(crate) fn has_duplicates(&self) -> bool {
        self.has_duplicates
    }

    /// The number of chunks that were left out.
    pub(crate) fn duplicates(&self) -> u64 {
        self.duplicates
    }

    /// Adds a run of up to [`MAX_RUN_CHUNKS`](super::run::MAX_RUN_CHUNKS) chunks. May sleep.
    #[inline]
    pub(crate) fn add(&mut self, run: Run) -> Result {
        let mut left = run;
        while left.len != 0 {
            let (index, same) = stripe_of(left.old, self.stripe);
            let len = match self.on_duplicate {
                Duplicates::Reject => left.len.min(same),
                Duplicates::KeepFirst => 1,
            };
            let part = self.parts.get_mut(index).ok_or(EINVAL)?;
            let piece = PackedRun::new(Run { len, ..left });
            if part.runs.push_within_capacity(piece).is_err() {
                self.add_to_full(index, piece)?;
            }
            left = left.without_first(len);
        }
        Ok(())
    }

    /// Makes room for a run by a larger list, or by putting what there is into the table.
    #[cold]
    fn add_to_full(&mut self, index: usize, run: PackedRun) -> Result {
        let part = self.parts.get_mut(index).ok_or(EINVAL)?;
        if part.runs.len() >= MAX_UNSORTED {
            self.flush(index)?;
        } else {
            let capacity = part
                .runs
                .len()
                .saturating_mul(4)
                .clamp(FIRST_CAPACITY, MAX_UNSORTED);
            let mut larger = KVVec::with_capacity(capacity, GFP_KERNEL)?;
            for run in part.runs.iter() {
                larger.push_within_capacity(*run)?;
            }
            part.runs = larger;
        }
        let part = self.parts.get_mut(index).ok_or(EINVAL)?;
        Ok(part.runs.push_within_capacity(run)?)
    }

    /// Puts the runs of a part into its table. May sleep.
    fn flush(&mut self, index: usize) -> Result {
        let part = self.parts.get_mut(index).ok_or(EINVAL)?;
        for run in self.sorter.sort(&mut part.runs, GFP_KERNEL)? {
            let run = run.run();
            let mut result = part.table.append(run, GFP_KERNEL);
            if result == Err(InsertError::Overlap) {
                self.spares
                    .refill(part.table.spare_root_capacity(), GFP_KERNEL)?;
                result = part.table.insert(run, &mut self.spares);
            }
            match result {
                Ok(()) => {}
                Err(InsertError::Overlap) if self.on_duplicate == Duplicates::Reject => {
                    self.has_duplicates = true;
                    return Err(EINVAL);
                }
                Err(InsertError::Overlap) => self.duplicates = self.duplicates.saturating_add(1),
                Err(InsertError::NoMemory) => return Err(ENOMEM),
                // Behind the end of all devices: nobody can ask for it.
                Err(InsertError::OutOfRange) => {}
            }
        }
        part.runs.clear();
        Ok(())
    }

    /// Puts in what is left, and gives the tables of the parts. May sleep.
    pub(crate) fn finish(&mut self) -> Result<KVVec<ExceptionTable>> {
        let mut tables = KVVec::with_capacity(STRIPES, GFP_KERNEL)?;
        for index in 0..STRIPES {
            self.flush(index)?;
            let part = self.parts.get_mut(index).ok_or(EINVAL)?;
            part.runs = KVVec::new();
            let table = core::mem::replace(&mut part.table, ExceptionTable::new());
            tables.push_within_capacity(table)?;
        }
        Ok(tables)
    }
}
