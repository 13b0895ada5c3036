// SPDX-License-Identifier: GPL-2.0

//! A stripe of the exception table, and the bios that are tracked in it.

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

/// The chunks of so many bytes (two to this power) that follow each other are in one part.
pub(super) const STRIPE_SHIFT: u32 = 25;

/// A part of the table.
pub(super) struct Stripe {
    table: ExceptionTable,
    tracked: TrackedReads,
    /// Exceptions in the table whose readers of before are not all through. Then origin writes look
    /// twice.
    draining: Count,
}

impl Stripe {
    pub(super) fn new() -> Self {
        Stripe {
            table: ExceptionTable::new(),
            tracked: TrackedReads::default(),
            draining: Count::default(),
        }
    }
}

impl CowStore {
    /// Puts what is on disk in the place of what is in memory.
    pub(super) fn replace_tables(&self, tables: KVVec<ExceptionTable>) {
        for (stripe, table) in self.stripes.iter().zip(tables) {
            // The old one is freed outside of the lock.
            let old = core::mem::replace(&mut stripe.lock().table, table);
            drop(old);
        }
    }

    /// Where a chunk is in the table: its part, and how many chunks from it on are in the same one.
    pub(crate) fn stripe_of(&self, chunk: Chunk) -> (usize, u64) {
        stripes::stripe_of(chunk, self.stripe_shift)
    }

    pub(super) fn with_stripe<R>(&self, stripe: usize, body: impl FnOnce(&mut Stripe) -> R) -> Option<R> {
        Some(body(&mut self.stripes.get(stripe)?.lock()))
    }

    /// Finds a chunk in the exception table. Any context.
    pub(crate) fn find(&self, chunk: Chunk, most: u64) -> Lookup {
        let (index, left) = self.stripe_of(chunk);
        let found = self.with_stripe(index, |stripe| stripe.table.find(chunk, most.min(left)));
        found.unwrap_or(Lookup::Hole(1))
    }

    /// Finds a chunk for a read of the snapshot, which is tracked if it goes to the origin. Any
    /// context.
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

    /// Finds a chunk for a write to a merge, which is counted if it goes to the COW device; unless
    /// it is one that `closed` tells of, or up to such a one: `closed` tells how many chunks there
    /// are like the first. Any context.
    pub(crate) fn find_for_merge_write(
        &self,
        chunk: Chunk,
        most: u64,
        closed: impl FnOnce(Chunk, u64) -> BatchLookup,
    ) -> Option<(Lookup, PerBioData)> {
        let (index, left) = self.stripe_of(chunk);
        self.with_stripe(index, |stripe| {
            match stripe.table.find(chunk, most.min(left)) {
                Lookup::Hole(len) => Some((Lookup::Hole(len), PerBioData::NONE)),
                Lookup::Mapped(new, len) => match closed(chunk, len) {
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

    /// Counts a reader of the origin, whatever the chunk is. Any context.
    pub(crate) fn track(&self, chunk: Chunk) -> Option<PerBioData> {
        let (index, _) = self.stripe_of(chunk);
        self.with_stripe(index, |stripe| {
            PerBioData::tracked(index, stripe.tracked.track())
        })
    }

    /// A reader of the origin has ended. Tells whether somebody may have waited for that. Any
    /// context.
    pub(crate) fn untrack(&self, stripe: usize, generation: Generation) -> bool {
        self.with_stripe(stripe, |stripe| {
            stripe.tracked.stop_tracking(generation) && !stripe.draining.is_zero()
        })
        .unwrap_or(false)
    }

    /// How many chunks from one on a write to the origin need not care about, up to `most`; of many
    /// short runs only the first are looked up. Any context.
    pub(crate) fn preserved(&self, chunk: Chunk, most: u64) -> u64 {
        stripes::count_leading(chunk, most, self.stripe_shift, |index, chunk, wanted| {
            let found = self.with_stripe(index, |stripe| match stripe.table.find(chunk, wanted) {
                Lookup::Mapped(_, len) if stripe.draining.is_zero() => len,
                _ => 0,
            });
            found.unwrap_or(0)
        })
    }

    /// Takes a durable exception into the table. `Err` if memory is short: then try again. Process
    /// context. If there is none to be had once, it is not asked for again; many exceptions need
    /// none.
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

    /// Whether the readers of before a barrier are through; then nobody needs to look twice for
    /// this exception any more.
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

    /// Makes a barrier for the writes to a merge in a part of the table:
    /// [`try_finish_drain`](Self::has_drained) tells when those of before have ended. Nothing if they
    /// have.
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

    /// Gives up a barrier that has not been passed.
    pub(crate) fn cancel_drain(&self, stripe: usize) {
        self.with_stripe(stripe, |stripe| {
            stripe.draining.decrement();
        });
    }

    /// Takes chunks out that are on the origin now. False if memory is short: then try again.
    /// Process context.
    pub(crate) fn remove_merged(&self, mut run: Run, spares: &mut SpareNodes) -> bool {
        while run.len != 0 {
            let (index, left) = self.stripe_of(run.old);
            let piece = Run {
                len: run.len.min(left),
                ..run
            };
            // What is not there has been taken out before.
            let wants = self.with_stripe(index, |stripe| match stripe.table.remove_splitting(piece, spares) {
                Ok(false) => Some(stripe.table.spare_root_capacity()),
                _ => None,
            });
            match wants.flatten() {
                Some(wants) if spares.refill(wants, GFP_KERNEL).is_err() => return false,
                // Now there is memory for it.
                Some(_) => {}
                None => run = run.without_first(piece.len),
            }
        }
        true
    }
}
