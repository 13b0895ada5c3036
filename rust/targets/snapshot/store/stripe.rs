// SPDX-License-Identifier: GPL-2.0

//! The stripes of the exception table, and the bios that are tracked in them.
//!
//! Stripes spread the lock of the table: neighbouring chunks share a stripe, distant ones rarely
//! do. The lookup of a chunk and the tracking of its bio happen under one lock, so a bio either
//! sees a new exception or is waited for.
//!
//! C counterparts: `struct dm_exception_table`, `track_chunk()` and `stop_tracking_chunk()`.

use super::CowStore;
use crate::{
    logic::{
        count::Count,
        snapshot::{
            chunks::Chunk,
            exception_table::{
                ExceptionTable,
                InsertError,
                Lookup,
                SpareNodes, //
            },
            merge_batch::BatchLookup,
            pending::Stage,
            run::Run,
            stripes,
            tracked_reads::{
                Generation,
                TrackedReads, //
            }, //
        }, //
    },
    targets::snapshot::per_bio::PerBioData, //
};
use kernel::prelude::*;

/// Consecutive chunks of this many bytes, as a power of two, share a stripe.
pub(super) const STRIPE_SHIFT: u32 = 25;

/// A stripe of the exception table.
pub(super) struct Stripe {
    table: ExceptionTable,
    tracked: TrackedReads,
    /// The number of drains that wait for tracked bios. Until it is zero, writes to the origin take
    /// the slow path.
    draining: Count,
}

impl Stripe {
    /// Makes an empty stripe. Any context.
    pub(super) fn new() -> Self {
        Stripe {
            table: ExceptionTable::new(),
            tracked: TrackedReads::default(),
            draining: Count::default(),
        }
    }
}

impl CowStore {
    /// Replaces the exception table, stripe by stripe. May sleep.
    pub(super) fn replace_tables(&self, tables: KVVec<ExceptionTable>) {
        for (stripe, table) in self.stripes.iter().zip(tables) {
            // A table must not be freed under the lock.
            let old = core::mem::replace(&mut stripe.lock().table, table);
            drop(old);
        }
    }

    /// Returns the stripe of a chunk, and how many chunks from there on are in the same one. Any
    /// context.
    pub(crate) fn stripe_of(&self, chunk: Chunk) -> (usize, u64) {
        stripes::stripe_of(chunk, self.stripe_shift)
    }

    /// Calls `body` with a stripe locked. `None` if there is no such stripe.
    fn with_stripe<R>(&self, stripe: usize, body: impl FnOnce(&mut Stripe) -> R) -> Option<R> {
        Some(body(&mut self.stripes.get(stripe)?.lock()))
    }

    /// Finds a chunk in the exception table, and up to `most` chunks that continue it. Any context.
    pub(crate) fn find(&self, chunk: Chunk, most: u64) -> Lookup {
        let (index, left) = self.stripe_of(chunk);
        let found = self.with_stripe(index, |stripe| stripe.table.find(chunk, most.min(left)));
        found.unwrap_or(Lookup::Hole(1))
    }

    /// Finds a chunk for a read of the snapshot, as [`find`](Self::find) does. A read of a hole
    /// goes to the origin and is tracked from now on. Any context.
    pub(crate) fn find_for_read(&self, chunk: Chunk, most: u64) -> (Lookup, PerBioData) {
        let (index, left) = self.stripe_of(chunk);
        let found = self.with_stripe(index, |stripe| {
            let found = stripe.table.find(chunk, most.min(left));
            let per_bio = match found {
                Lookup::Hole(_) => PerBioData::tracked(index, stripe.tracked.track()),
                Lookup::Mapped(..) => PerBioData::NONE,
            };
            (found, per_bio)
        });
        found.unwrap_or((Lookup::Hole(1), PerBioData::NONE))
    }

    /// Finds a chunk for a write to a merge, as [`find`](Self::find) does. A write to a mapped
    /// chunk goes to the COW device and is tracked from now on.
    ///
    /// `in_batch` is called under the lock of the stripe: it tells whether a chunk belongs to the
    /// batch that is being merged, and for how many chunks from there on that is so. `None` if it
    /// does: the write has to wait. Any context.
    pub(crate) fn find_for_merge_write(
        &self,
        chunk: Chunk,
        most: u64,
        in_batch: impl FnOnce(Chunk, u64) -> BatchLookup,
    ) -> Option<(Lookup, PerBioData)> {
        let (index, left) = self.stripe_of(chunk);
        self.with_stripe(index, |stripe| {
            match stripe.table.find(chunk, most.min(left)) {
                Lookup::Hole(len) => Some((Lookup::Hole(len), PerBioData::NONE)),
                Lookup::Mapped(new, len) => match in_batch(chunk, len) {
                    BatchLookup::Inside(_) => None,
                    BatchLookup::Outside(len) => {
                        let per_bio = PerBioData::tracked(index, stripe.tracked.track());
                        Some((Lookup::Mapped(new, len), per_bio))
                    }
                },
            }
        })
        .flatten()
    }

    /// Tracks a bio that goes to the origin without a lookup. Any context.
    pub(crate) fn track(&self, chunk: Chunk) -> Option<PerBioData> {
        let (index, _) = self.stripe_of(chunk);
        self.with_stripe(index, |stripe| {
            PerBioData::tracked(index, stripe.tracked.track())
        })
    }

    /// Ends the tracking of a bio. Returns whether this may have ended a drain, which the caller
    /// then wakes the worker for. Any context.
    pub(crate) fn untrack(&self, stripe: usize, generation: Generation) -> bool {
        self.with_stripe(stripe, |stripe| {
            stripe.tracked.stop_tracking(generation) && !stripe.draining.is_zero()
        })
        .unwrap_or(false)
    }

    /// Returns how many chunks from `chunk` on the snapshot has preserved: a write to the origin
    /// need not wait for them. Looks for `enough` of them, and counts up to `most` if that takes no
    /// further lookup.
    ///
    /// Looks up a limited number of runs, so the result may be too low. Any context.
    pub(crate) fn preserved(&self, chunk: Chunk, (enough, most): (u64, u64)) -> u64 {
        let counts = (enough, most);
        stripes::count_leading(chunk, counts, self.stripe_shift, |index, chunk, wanted| {
            let found = self.with_stripe(index, |stripe| match stripe.table.find(chunk, wanted) {
                Lookup::Mapped(_, len) if stripe.draining.is_zero() => len,
                _ => 0,
            });
            found.unwrap_or(0)
        })
    }

    /// Inserts a durable exception into the table, and returns its next stage: [`Stage::Draining`]
    /// if earlier reads of the origin are in flight.
    ///
    /// `has_memory` is cleared when an allocation fails. The caller passes it on to its next calls,
    /// which then do not allocate; many insertions need no memory. May sleep.
    ///
    /// # Errors
    ///
    /// [`InsertError::NoMemory`] if memory is short: the caller tries again later.
    pub(super) fn insert_completed(
        &self,
        run: Run,
        spares: &mut SpareNodes,
        has_memory: &mut bool,
    ) -> Result<Stage, InsertError> {
        let (index, _) = self.stripe_of(run.old);
        let wants = self.with_stripe(index, |stripe| stripe.table.spare_root_capacity());
        let wants = wants.unwrap_or(0);
        if *has_memory && !spares.is_sufficient(wants) {
            *has_memory = spares.refill(wants, GFP_KERNEL).is_ok();
        }
        self.with_stripe(index, |stripe| {
            stripe.table.insert(run, spares)?;
            let barrier = stripe.tracked.barrier();
            if stripe.tracked.has_passed(barrier) {
                return Ok(Stage::Committed);
            }
            stripe.draining.increment();
            Ok(Stage::Draining(barrier))
        })
        .unwrap_or(Err(InsertError::OutOfRange))
    }

    /// Starts to drain a stripe, and returns the barrier for
    /// [`try_finish_drain`](Self::try_finish_drain). `None` if no tracked bio is in flight. Any
    /// context.
    pub(crate) fn start_drain(&self, stripe: usize) -> Option<u64> {
        self.with_stripe(stripe, |stripe| {
            let barrier = stripe.tracked.barrier();
            if stripe.tracked.has_passed(barrier) {
                return None;
            }
            stripe.draining.increment();
            Some(barrier)
        })
        .flatten()
    }

    /// Ends a drain if all bios that were tracked before its barrier have ended, and returns
    /// whether they have. Any context.
    pub(crate) fn try_finish_drain(&self, stripe: usize, barrier: u64) -> bool {
        let passed = self.with_stripe(stripe, |stripe| {
            let passed = stripe.tracked.has_passed(barrier);
            if passed {
                stripe.draining.decrement();
            }
            passed
        });
        passed.unwrap_or(true)
    }

    /// Ends a drain that nobody waits for any longer. Any context.
    pub(crate) fn cancel_drain(&self, stripe: usize) {
        self.with_stripe(stripe, |stripe| {
            stripe.draining.decrement();
        });
    }

    /// Removes chunks that a merge has written to the origin. Returns false if memory is short: the
    /// caller then repeats the call, which skips what has been removed. May sleep.
    pub(crate) fn remove_merged(&self, mut run: Run, spares: &mut SpareNodes) -> bool {
        while run.len != 0 {
            let (index, left) = self.stripe_of(run.old);
            let piece = Run {
                len: run.len.min(left),
                ..run
            };
            // An error says that an earlier call has removed the piece.
            let wants = self.with_stripe(index, |stripe| {
                match stripe.table.remove_splitting(piece, spares) {
                    Ok(false) => Some(stripe.table.spare_root_capacity()),
                    _ => None,
                }
            });
            match wants.flatten() {
                Some(wants) if spares.refill(wants, GFP_KERNEL).is_err() => return false,
                // The same piece again, with memory.
                Some(_) => {}
                None => run = run.without_first(piece.len),
            }
        }
        true
    }
}
