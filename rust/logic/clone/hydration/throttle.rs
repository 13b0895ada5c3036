// SPDX-License-Identifier: GPL-2.0

//! The share of the time that the background hydration may use.

use crate::logic::count::subtract;

/// Limits the time with copies in flight to a share of all time.
///
/// It is an account: idle time adds to it, time with copies in flight takes from it.
#[derive(Debug)]
pub(super) struct Throttle {
    /// The share, in percent.
    percent: i64,
    /// The balance, in hundredths of a millisecond.
    credit: i64,
    /// The time of the last update.
    last: u64,
    /// Number of copies in flight.
    pub(super) copies: u64,
}

impl Throttle {
    /// Maximum credit: how long copies may run after a pause.
    const MAX: i64 = 2_000;
    /// Maximum debt: half an hour at one percent.
    const MIN: i64 = -180_000;

    /// Brings the account up to date.
    fn account(&mut self, now: u64) {
        let passed = now.saturating_sub(core::mem::replace(&mut self.last, now));
        let passed = i64::try_from(passed).unwrap_or(i64::MAX);
        let gain = if self.copies == 0 {
            self.percent
        } else {
            self.percent.saturating_sub(100)
        };
        self.credit = self
            .credit
            .saturating_add(passed.saturating_mul(gain))
            .clamp(Self::MIN, Self::MAX);
    }

    /// Returns how long to wait, in milliseconds, before another copy may start, if copies may use
    /// `percent` of the time.
    pub(super) fn wait(&mut self, now: u64, percent: u32) -> Option<u64> {
        self.account(now);
        self.percent = i64::from(percent.clamp(1, 100));
        if self.percent == 100 {
            self.credit = 0;
        }
        match self.credit {
            0.. => None,
            debt => Some(
                debt.unsigned_abs()
                    .div_ceil(self.percent.unsigned_abs().max(1)),
            ),
        }
    }

    /// Counts a copy that starts.
    pub(super) fn started(&mut self) {
        self.copies = self.copies.saturating_add(1);
    }

    /// Counts a copy that has ended.
    pub(super) fn ended(&mut self, now: u64) {
        self.account(now);
        self.copies = subtract(self.copies, 1);
    }
}

impl Default for Throttle {
    fn default() -> Self {
        Self {
            percent: 100,
            credit: 0,
            last: 0,
            copies: 0,
        }
    }
}
