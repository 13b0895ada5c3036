// SPDX-License-Identifier: GPL-2.0

//! The stripes of the exception table, and how they are filled when a store is loaded.
//!
//! Each stripe is an [`ExceptionTable`] with a lock of its own. Stripe units, which are ranges of
//! consecutive chunks of the origin, are spread over the stripes. C counterpart:
//! `struct dm_exception_table_lock`, which locks hash buckets.

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

/// The number of stripes.
pub(crate) const STRIPES: usize = 64;

/// Returns the stripe of a chunk, and the number of chunks up to the end of its stripe unit.
///
/// A stripe unit has 2^`unit_shift` chunks.
#[inline]
pub(crate) fn stripe_of(chunk: Chunk, unit_shift: u32) -> (usize, u64) {
    let number = chunk.0.wrapping_shr(unit_shift);
    // Neighbouring units are nearly always in different stripes.
    // CAST: Only the low bits matter.
    let index = (number ^ number.wrapping_shr(6) ^ number.wrapping_shr(12)) as usize % STRIPES;
    let len = 1u64.wrapping_shl(unit_shift);
    (index, len.saturating_sub(chunk.0 & len.wrapping_sub(1)))
}

/// The maximum number of lookups for one write to the origin, in each snapshot.
///
/// Bounds the time that `map` takes for a long write.
pub(crate) const MAX_LOOKUPS: u32 = 64;

/// Counts the chunks from `chunk` on that `find` has: `enough` of them if possible, and up to `max`
/// if that takes no further call.
///
/// Calls `find` for one run after the other, with a stripe, a first chunk and a maximum length;
/// `find` returns the number of leading chunks that the stripe has. Gives up after [`MAX_LOOKUPS`]
/// calls, and returns the number of chunks found until then.
#[inline]
pub(crate) fn count_leading(
    mut chunk: Chunk,
    (enough, max): (u64, u64),
    unit_shift: u32,
    mut find: impl FnMut(usize, Chunk, u64) -> u64,
) -> u64 {
    let mut found = 0u64;
    for _ in 0..MAX_LOOKUPS {
        if found >= enough {
            break;
        }
        let left = max.saturating_sub(found);
        let (index, left_in_unit) = stripe_of(chunk, unit_shift);
        let len = find(index, chunk, left_in_unit.min(left)).min(left);
        if len == 0 {
            break;
        }
        found = found.wrapping_add(len);
        chunk = Chunk(chunk.0.wrapping_add(len));
    }
    found
}

/// The maximum number of runs of a stripe that are sorted at once, of 16 bytes each.
const MAX_UNSORTED: usize = 1 << 15;
/// The first capacity of the runs of a stripe.
const FIRST_CAPACITY: usize = 1 << 6;

/// What to do with runs that have a chunk of the origin in common.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duplicates {
    /// Fail. No store that this module or C wrote has such runs.
    Reject,
    /// Keep the first exception of each chunk, and skip the others.
    KeepFirst,
}

/// A stripe that is being loaded.
struct LoadingStripe {
    table: ExceptionTable,
    /// The runs that are not in the table yet.
    runs: KVVec<PackedRun>,
}

/// Fills the stripes when a store is loaded.
///
/// Runs arrive in the order of the COW device, and are sorted by their chunks of the origin before
/// they go into the table. Each stripe is thus filled from front to end, which is fast and leaves
/// no gaps.
///
/// If several records have the same chunk of the origin, the first one counts. Stores that this
/// module or C wrote have no such records, so the caller first loads with [`Duplicates::Reject`].
/// If that finds any, the caller reads the store again with [`Duplicates::KeepFirst`], which adds
/// each chunk as a run of its own: sorting keeps the order of runs of the same chunk.
pub(crate) struct StripesLoader {
    unit_shift: u32,
    on_duplicate: Duplicates,
    /// Whether runs had a chunk of the origin in common, and were rejected.
    has_duplicates: bool,
    stripes: KVVec<LoadingStripe>,
    sorter: Sorter,
    spares: SpareNodes,
    /// The number of chunks that were skipped as duplicates.
    skipped: u64,
}

impl StripesLoader {
    /// Makes empty stripes. May sleep.
    ///
    /// # Errors
    ///
    /// Fails if memory is short.
    pub(crate) fn new(unit_shift: u32, on_duplicate: Duplicates) -> Result<Self> {
        let mut stripes = KVVec::with_capacity(STRIPES, GFP_KERNEL)?;
        for _ in 0..STRIPES {
            stripes.push_within_capacity(LoadingStripe {
                table: ExceptionTable::new(),
                runs: KVVec::new(),
            })?;
        }
        Ok(Self {
            unit_shift,
            on_duplicate,
            has_duplicates: false,
            stripes,
            sorter: Sorter::default(),
            spares: SpareNodes::new(),
            skipped: 0,
        })
    }

    /// Returns whether runs had a chunk of the origin in common, and were rejected.
    pub(crate) fn has_duplicates(&self) -> bool {
        self.has_duplicates
    }

    /// Returns the number of chunks that were skipped as duplicates.
    pub(crate) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Adds a run of up to [`MAX_RUN_CHUNKS`](super::run::MAX_RUN_CHUNKS) chunks. May sleep.
    ///
    /// # Errors
    ///
    /// Fails if memory is short, or for duplicates with [`Duplicates::Reject`].
    #[inline]
    pub(crate) fn add(&mut self, run: Run) -> Result {
        let mut left = run;
        while left.len != 0 {
            let (index, left_in_unit) = stripe_of(left.old, self.unit_shift);
            let len = match self.on_duplicate {
                Duplicates::Reject => left.len.min(left_in_unit),
                Duplicates::KeepFirst => 1,
            };
            let stripe = self.stripes.get_mut(index).ok_or(EINVAL)?;
            let packed = PackedRun::new(Run { len, ..left });
            if stripe.runs.push_within_capacity(packed).is_err() {
                self.add_to_full(index, packed)?;
            }
            left = left.without_first(len);
        }
        Ok(())
    }

    /// Adds a run to a full vector, which is replaced by a larger one or flushed.
    #[cold]
    fn add_to_full(&mut self, index: usize, run: PackedRun) -> Result {
        let stripe = self.stripes.get_mut(index).ok_or(EINVAL)?;
        if stripe.runs.len() >= MAX_UNSORTED {
            self.flush(index)?;
        } else {
            let capacity = stripe
                .runs
                .len()
                .saturating_mul(4)
                .clamp(FIRST_CAPACITY, MAX_UNSORTED);
            let mut larger = KVVec::with_capacity(capacity, GFP_KERNEL)?;
            for run in stripe.runs.iter() {
                larger.push_within_capacity(*run)?;
            }
            stripe.runs = larger;
        }
        let stripe = self.stripes.get_mut(index).ok_or(EINVAL)?;
        Ok(stripe.runs.push_within_capacity(run)?)
    }

    /// Moves the runs of a stripe to its table. May sleep.
    fn flush(&mut self, index: usize) -> Result {
        let stripe = self.stripes.get_mut(index).ok_or(EINVAL)?;
        for run in self.sorter.sort(&mut stripe.runs, GFP_KERNEL)? {
            let run = run.run();
            let mut result = stripe.table.append(run, GFP_KERNEL);
            if result == Err(InsertError::Overlap) {
                self.spares
                    .refill(stripe.table.spare_root_capacity(), GFP_KERNEL)?;
                result = stripe.table.insert(run, &mut self.spares);
            }
            match result {
                Ok(()) => {}
                Err(InsertError::Overlap) if self.on_duplicate == Duplicates::Reject => {
                    self.has_duplicates = true;
                    return Err(EINVAL);
                }
                Err(InsertError::Overlap) => self.skipped = self.skipped.wrapping_add(1),
                Err(InsertError::NoMemory) => return Err(ENOMEM),
                // The chunk is beyond the end of every origin, so it is never looked up.
                Err(InsertError::OutOfRange) => {}
            }
        }
        stripe.runs.clear();
        Ok(())
    }

    /// Moves the remaining runs to the tables, and returns the tables. May sleep.
    ///
    /// # Errors
    ///
    /// Fails if memory is short, or for duplicates with [`Duplicates::Reject`].
    pub(crate) fn finish(&mut self) -> Result<KVVec<ExceptionTable>> {
        let mut tables = KVVec::with_capacity(STRIPES, GFP_KERNEL)?;
        for index in 0..STRIPES {
            self.flush(index)?;
            let stripe = self.stripes.get_mut(index).ok_or(EINVAL)?;
            stripe.runs = KVVec::new();
            let table = core::mem::replace(&mut stripe.table, ExceptionTable::new());
            tables.push_within_capacity(table)?;
        }
        Ok(tables)
    }
}
