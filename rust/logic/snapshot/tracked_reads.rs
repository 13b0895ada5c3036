// SPDX-License-Identifier: GPL-2.0

//! Readers of the origin, counted so that somebody can wait for those of before.
//!
//! Readers come and go at any time; a new exception sends later ones to the COW device, but its
//! chunk of the origin must not change until those of before are through. They are counted in two
//! generations, the present one and the one before: when the older is empty the present one can
//! become the older. So nobody is kept waiting by readers that came after.

use crate::logic::count::Count;

/// A generation of readers, as kept with each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generation(bool);

impl Generation {
    /// As a bit.
    pub(crate) fn to_bit(self) -> bool {
        self.0
    }

    /// From [`to_bit`](Self::to_bit).
    pub(crate) fn from_bit(bit: bool) -> Self {
        Generation(bit)
    }
}

/// The readers of some chunks. Never allocates, never sleeps; its user locks it.
#[derive(Debug, Default)]
pub(crate) struct TrackedReads {
    /// The present generation; that before it has the other parity.
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

    /// A reader begins.
    pub(crate) fn track(&mut self) -> Generation {
        let odd = self.is_odd();
        self.count(odd).increment();
        Generation(odd)
    }

    /// A reader has ended. Tells whether it was the last of its generation.
    pub(crate) fn stop_tracking(&mut self, generation: Generation) -> bool {
        self.count(generation.0).decrement()
    }

    /// Makes a barrier: [`has_passed`](Self::has_passed) tells when all readers that are there now
    /// are gone.
    pub(crate) fn barrier(&self) -> u64 {
        self.generation
    }

    /// Whether all readers of before a barrier are gone.
    pub(crate) fn has_passed(&mut self, barrier: u64) -> bool {
        let older = !self.is_odd();
        if barrier >= self.generation && self.count(older).is_zero() {
            self.generation = barrier.wrapping_add(1);
        }
        let odd = !self.is_odd();
        let older = !self.count(odd).is_zero();
        let oldest = self.generation.saturating_sub(older.into());
        barrier < oldest
    }
}
