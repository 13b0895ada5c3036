// SPDX-License-Identifier: GPL-2.0

//! Decisions of the background hydration: what to copy next, and when.
//!
//! There is no I/O here and no clock. The owner asks for the next [`HydrationStep`], performs it, and
//! reports the end of every copy. Two lanes take turns, so that neither holds up the other:
//!
//! ```text
//!             every region not hydrated and not in flight, in batches
//!      +------------------------------------------------------------------+
//!      |                                                                  |
//!      |   +----------+  batch   +-----------+  copied                    |
//!   ---+-->|   scan   |--------->|  copying  |---------> (hydrated)       |
//!      |   +----------+          +-----------+                            |
//!      |        | end                  | failed                           |
//!      |        |           several    |    one region                    |
//!      |        |           +----------+----------+                       |
//!      |        |           v                     v                       |
//!      |        |      +---------+  failed   +---------+                  |
//!      |        |      |  retry  |---------->| skipped |                  |
//!      |        |      +---------+           +---------+                  |
//!      |        |      one region at a time,      |                       |
//!      |        |      one in flight              |                       |
//!      |        v                                 v                       |
//!      |   +-------------------------------------------+  back-off over   |
//!      +---|  end of pass: wait if any was skipped     |------------------+
//!          +-------------------------------------------+
//! ```
//!
//! A pass of the scan looks at each region once. A region that failed on its own lies behind the
//! scan and is met again in the next pass, which a back-off holds back: 1 s, doubled from pass to
//! pass up to 64 s, and 1 s again once a pass over such regions copies one. Regions that have not
//! failed never wait for it, because the pass ends behind all of them. When nothing succeeds for a
//! while (the path to the source is gone), attempts are spaced out.

mod priority;
mod retries;
mod throttle;

pub(crate) use priority::PriorityRanges;

use crate::logic::clone::inflight::InFlight;
use crate::logic::clone::map::{
    RegionMap,
    Run, //
};
use crate::logic::clone::region_copy::CopyResult;
use crate::logic::regions::{
    Region,
    RegionRange, //
};
use retries::Retries;
use throttle::Throttle;

/// While user I/O goes on, or while nothing succeeds, one batch per so many milliseconds is
/// started.
pub(crate) const MIN_INTERVAL: u64 = 20;
/// The first wait before failed regions are tried again, in milliseconds.
pub(crate) const MIN_BACKOFF: u64 = 1_000;
/// The longest wait before failed regions are tried again, in milliseconds.
pub(crate) const MAX_BACKOFF: u64 = 64_000;
/// After so many failures without a success attempts are spaced out by [`MIN_INTERVAL`].
const STREAK: u32 = 32;
/// The number of ranges to be copied first that are remembered.
const PRIORITY_RANGES: usize = 32;

/// What the owner allows, read anew for each decision.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HydrationLimits {
    /// The most regions that the sweep may have in flight; zero stops it.
    ///
    /// Copies and overwrites of users do not count: with a small threshold they would keep the
    /// sweep from starting anything for as long as they go on. What it owes them is in `user_busy`.
    pub(crate) threshold: u32,
    /// The most regions in one copy; zero acts as one.
    pub(crate) batch: u32,
    /// The most regions in one copy, whatever `batch` says: so that nobody waits for a copy for
    /// long. Not zero.
    pub(crate) max_regions: u64,
    /// The most copies in flight.
    pub(crate) max_copies: u32,
    /// So many of them may be in flight however few slots there are.
    pub(crate) reserved_copies: u32,
    /// The others leave so many slots to writes.
    pub(crate) overwrite_slots: usize,
    /// The share of the time, in percent, that copies of the sweep may be in flight. 100 or more:
    /// all of it.
    pub(crate) throttle: u32,
    /// Whether hydration is on. If not, only what was asked for by [`Hydration::prioritize`] is copied.
    pub(crate) enabled: bool,
    /// Whether user I/O is in flight, to which the sweep yields.
    pub(crate) user_busy: bool,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HydrationStep {
    /// Copy these regions, none of which is hydrated or in flight; then ask again.
    Copy(RegionRange),
    /// Ask again after so many milliseconds, or when user I/O has ended.
    Wait(u64),
    /// Ask again when a copy has finished or limits have changed.
    Blocked,
    /// All regions are hydrated or in flight; ask again only if a copy fails.
    Done,
}

/// Which lane comes first at the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Scan,
    Retry,
}

/// The state of the background hydration of one clone.
///
/// Lives under the lock that also holds the [`InFlight`] ranges; no function sleeps or allocates.
/// Times are in milliseconds since any fixed moment and should not go backwards.
#[derive(Debug)]
pub(crate) struct Hydration {
    /// The scan has dealt with all regions before this one.
    position: Region,
    retries: Retries,
    priority: PriorityRanges,
    /// Whether the range of the last answer was asked for by `prioritize`.
    was_priority: bool,
    throttle: Throttle,
    /// Regions in flight that the sweep has started.
    copying: u64,
    turn: Turn,
    /// From when on a batch may be started even if user I/O goes on.
    due: u64,
    /// Whether a region has failed alone since the pass began.
    skipped: bool,
    /// Whether this pass goes over regions that have failed before.
    repeated: bool,
    /// When the next pass over skipped regions may begin.
    resume_at: u64,
    /// What is added to the time of a failure to get `resume_at`.
    backoff: u64,
    /// The number of failures since the last success.
    streak: u32,
    failures: u64,
}

impl Hydration {
    /// Makes a sweep that starts at the first region.
    pub(crate) fn new() -> Self {
        Self {
            position: Region(0),
            retries: Retries::default(),
            priority: PriorityRanges::default(),
            was_priority: false,
            throttle: Throttle::default(),
            copying: 0,
            turn: Turn::Scan,
            due: 0,
            skipped: false,
            repeated: false,
            resume_at: 0,
            backoff: MIN_BACKOFF,
            streak: 0,
            failures: 0,
        }
    }

    /// Decides what to do next.
    ///
    /// The owner must put a range it is told to copy into `inflight` before it asks again, and must
    /// report its end by [`Self::finished`], or at once by [`Self::put_back`] if it cannot start.
    pub(crate) fn next<W: Default>(
        &mut self,
        now: u64,
        limits: &HydrationLimits,
        map: &RegionMap,
        inflight: &InFlight<W>,
    ) -> HydrationStep {
        let end = Region(map.regions());
        let ahead = next_free(map, inflight, RegionRange::new(self.position, end));
        if ahead.is_none() {
            let earlier = RegionRange::new(Region(0), self.position);
            if next_free(map, inflight, earlier).is_none() {
                return HydrationStep::Done;
            }
        }
        let room = u64::from(limits.threshold).saturating_sub(self.copying);
        if room == 0 || !self.may_take_slot(limits, inflight.free_slots()) {
            return HydrationStep::Blocked;
        }
        if (limits.user_busy || self.streak >= STREAK) && now < self.due {
            return HydrationStep::Wait(self.due.saturating_sub(now));
        }
        if let Some(ms) = self.throttle.wait(now, limits.throttle) {
            return HydrationStep::Wait(ms);
        }

        let batch = u64::from(limits.batch)
            .min(limits.max_regions)
            .clamp(1, room);
        let priority = self.priority.next(batch, map, inflight);
        self.was_priority = priority.is_some();
        let found = priority.or_else(|| match self.turn {
            _ if !limits.enabled => None,
            Turn::Retry => self
                .retry(map, inflight)
                .or_else(|| self.scan(now, batch, map, inflight)),
            Turn::Scan => self
                .scan(now, batch, map, inflight)
                .or_else(|| self.retry(map, inflight)),
        });
        match found {
            Some(range) => {
                self.due = now.saturating_add(MIN_INTERVAL);
                self.throttle.started();
                self.copying = self.copying.saturating_add(range.len());
                HydrationStep::Copy(range)
            }
            None if !limits.enabled => HydrationStep::Blocked,
            None if self.retries.trying.is_some() => HydrationStep::Blocked,
            None => HydrationStep::Wait(self.resume_at.saturating_sub(now).max(1)),
        }
    }

    /// Whether another copy may have one of the free slots. The source may never answer those that
    /// wait for it, and writes to whole regions need slots too.
    fn may_take_slot(&self, limits: &HydrationLimits, free: usize) -> bool {
        let copies = self.throttle.copies;
        let spare = if copies < limits.reserved_copies {
            0
        } else {
            limits.overwrite_slots
        };
        copies < limits.max_copies && free > spare
    }

    /// Asks for ranges to be copied before all others, whether or not hydration is on.
    pub(crate) fn prioritize(&mut self, ranges: &mut PriorityRanges) {
        self.priority.append(ranges);
    }

    /// Tells whether something was asked for by [`Self::prioritize`] and not started yet, as far as is
    /// known.
    pub(crate) fn has_priority(&self) -> bool {
        self.priority.len != 0
    }

    /// Tells whether the range of the last [`HydrationStep::Copy`] was asked for by [`Self::prioritize`].
    pub(crate) fn was_priority(&self) -> bool {
        self.was_priority
    }

    /// Takes note of the end of a copy that [`Self::next`] has asked for; `wanted` is what
    /// [`Self::was_priority`] said of it.
    ///
    /// Called after the range has left the in-flight ranges and, if it was copied, is in the map;
    /// else a decision made in between may put a retry off to the next pass.
    pub(crate) fn copy_done(
        &mut self,
        now: u64,
        range: RegionRange,
        result: CopyResult,
        is_priority: bool,
    ) {
        self.retries.copy_done(range);
        self.ended(now, range);
        match result {
            CopyResult::Copied => {
                self.streak = 0;
                if self.repeated {
                    self.repeated = false;
                    self.backoff = MIN_BACKOFF;
                    let soon = now.saturating_add(MIN_BACKOFF);
                    self.resume_at = self.resume_at.min(soon);
                }
            }
            CopyResult::GivenUp if is_priority => self.priority.push(range),
            CopyResult::GivenUp => self.position = self.position.min(range.start),
            CopyResult::Failed => {
                self.streak = self.streak.saturating_add(1);
                self.failures = self.failures.saturating_add(1);
                if range.len() > 1 {
                    self.retries.push(range);
                } else {
                    self.skipped = true;
                    self.resume_at = now.saturating_add(self.backoff);
                }
            }
        }
    }

    /// Takes back a range that [`Self::next`] has just said to copy, and that cannot be started
    /// now.
    ///
    /// It counts neither as a failure nor as a copy; the next answer may be the same range.
    pub(crate) fn put_back(&mut self, now: u64, range: RegionRange) {
        self.ended(now, range);
        if self.was_priority {
            self.priority.push(range);
        } else if self.retries.trying == Some(range.start) {
            self.retries.trying = None;
            self.retries.push(range);
        } else if self.position == range.end {
            self.position = range.start;
        }
    }

    /// Takes a range that [`Self::next`] has said to copy off the accounts.
    fn ended(&mut self, now: u64, range: RegionRange) {
        self.throttle.ended(now);
        self.copying = self.copying.saturating_sub(range.len());
    }

    /// Returns how many copies have failed, of batches and of single regions.
    pub(crate) fn failures(&self) -> u64 {
        self.failures
    }

    /// Forgets all back-off: failed regions are tried again as soon as the pass is over.
    pub(crate) fn reset_backoff(&mut self) {
        self.skipped = false;
        self.backoff = MIN_BACKOFF;
        self.streak = 0;
    }

    /// Takes the next region from the retries.
    fn retry<W: Default>(
        &mut self,
        map: &RegionMap,
        inflight: &InFlight<W>,
    ) -> Option<RegionRange> {
        let region = self.retries.next(map, inflight)?;
        self.retries.start(region);
        self.turn = Turn::Scan;
        Some(RegionRange::single(region))
    }

    /// Takes the next batch of up to `batch` regions from the scan, and begins a new pass if the
    /// old one is over and need not wait.
    fn scan<W: Default>(
        &mut self,
        now: u64,
        batch: u64,
        map: &RegionMap,
        inflight: &InFlight<W>,
    ) -> Option<RegionRange> {
        let end = Region(map.regions());
        let rest = RegionRange::new(self.position, end);
        let range = match next_run(map, inflight, rest, batch) {
            Some(range) => range,
            None => {
                self.position = end;
                if self.retries.is_busy() || (self.skipped && now < self.resume_at) {
                    return None;
                }
                let all = RegionRange::new(Region(0), end);
                let range = next_run(map, inflight, all, batch)?;
                self.begin_pass();
                range
            }
        };
        self.position = range.end;
        self.turn = Turn::Retry;
        Some(range)
    }

    /// Notes that the scan starts over; if it had to wait, the next wait is twice as long.
    fn begin_pass(&mut self) {
        if self.skipped {
            self.backoff = self.backoff.saturating_mul(2).min(MAX_BACKOFF);
        }
        self.repeated = self.skipped;
        self.skipped = false;
    }
}

/// Returns the first regions of `range`, at most `most`, that are neither hydrated nor in flight.
fn next_run<W: Default>(
    map: &RegionMap,
    inflight: &InFlight<W>,
    range: RegionRange,
    max: u64,
) -> Option<RegionRange> {
    let start = next_free(map, inflight, range)?;
    let wanted = RegionRange::new(start, range.end).first(max);
    let clear = match map.run(wanted) {
        Run::Clear(len) => len,
        // Users have been faster.
        Run::Set(_) => return None,
    };
    let found = wanted.first(clear);
    let found = found.first(inflight.clear_prefix(found));
    Some(found).filter(|found| !found.is_empty())
}

/// Returns the first region of `range` that is neither hydrated nor in flight.
fn next_free<W: Default>(
    map: &RegionMap,
    inflight: &InFlight<W>,
    range: RegionRange,
) -> Option<Region> {
    let mut from = range.start;
    loop {
        let region = map.next_clear(from).filter(|region| *region < range.end)?;
        match inflight.first_overlap(RegionRange::single(region)) {
            Some((_, busy)) => from = busy.end,
            None => return Some(region),
        }
    }
}
