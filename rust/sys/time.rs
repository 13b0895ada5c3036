// SPDX-License-Identifier: GPL-2.0

//! Time in the one unit that the targets decide in: milliseconds.

use kernel::time::{
    msecs_to_jiffies,
    Instant,
    Jiffies,
    Monotonic, //
};

/// A duration or a monotonic time stamp in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Millis(pub(crate) u64);

impl Millis {
    /// One second.
    pub(crate) const SECOND: Millis = Millis(1000);

    /// The timer ticks of this duration, rounded up; an hour at most.
    pub(crate) fn to_jiffies(self) -> Jiffies {
        let capped = u32::try_from(self.0).unwrap_or(u32::MAX).min(3_600_000);
        msecs_to_jiffies(capped)
    }
}

/// Reads the monotonic clock from a fixed start. Any context.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    start: Instant<Monotonic>,
}

impl Clock {
    /// Starts a clock at zero.
    pub(crate) fn start() -> Self {
        Clock { start: Instant::now() }
    }

    /// Time since the start.
    pub(crate) fn now(&self) -> Millis {
        Millis(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(0))
    }
}
