// SPDX-License-Identifier: GPL-2.0

//! Tracked reads: reads of the origin, through a snapshot, that are in flight.
//!
//! C counterpart: `struct dm_snap_tracked_chunk`, `track_chunk()` and
//! `__check_for_conflicting_io()`.
//!
//! A new exception sends later reads to the COW device, but its chunk of the origin must not change
//! until earlier reads have ended. Reads begin and end at any time, so they are counted in two
//! generations, the current one and the previous one. When the previous one is empty, the current
//! one becomes the previous one. Nothing is therefore held up by reads that began after it.

use crate::logic::count::Count;

/// The generation of a tracked read, which is stored with its bio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generation(bool);

impl Generation {
    /// Converts the generation to a bit.
    pub(crate) fn to_bit(self) -> bool {
        self.0
    }

    /// Converts a bit from [`to_bit`](Self::to_bit) back.
    pub(crate) fn from_bit(bit: bool) -> Self {
        Generation(bit)
    }
}

/// The tracked reads of one stripe.
///
/// The owner protects it with a lock. Any context.
#[derive(Debug, Default)]
pub(crate) struct TrackedReads {
    /// The current generation. The previous one has the other parity.
    generation: u64,
    even: Count,
    odd: Count,
}

impl TrackedReads {
    fn count(&mut self, odd: bool) -> &mut Count {
        if odd {
            &mut self.odd
        } else {
            &mut self.even
        }
    }

    fn is_odd(&self) -> bool {
        self.generation & 1 != 0
    }

    /// Tracks a read that begins.
    pub(crate) fn track(&mut self) -> Generation {
        let odd = self.is_odd();
        self.count(odd).increment();
        Generation(odd)
    }

    /// Stops tracking a read, which has ended. Returns whether it was the last of its generation.
    pub(crate) fn stop_tracking(&mut self, generation: Generation) -> bool {
        self.count(generation.0).decrement()
    }

    /// Returns a barrier, for which [`has_passed`](Self::has_passed) tells whether all reads that
    /// are tracked now have ended.
    pub(crate) fn barrier(&self) -> u64 {
        self.generation
    }

    /// Returns whether all reads that were tracked before the barrier have ended.
    pub(crate) fn has_passed(&mut self, barrier: u64) -> bool {
        let previous = !self.is_odd();
        if barrier >= self.generation && self.count(previous).is_zero() {
            self.generation = barrier.wrapping_add(1);
        }
        let previous = !self.is_odd();
        let has_previous = !self.count(previous).is_zero();
        let oldest = self.generation.saturating_sub(has_previous.into());
        barrier < oldest
    }
}
