// SPDX-License-Identifier: GPL-2.0

//! Decisions of the background hydration: what to copy next, and when.
//!
//! There is no I/O here and no clock. The owner asks for the next [`HydrationStep`], performs it,
//! and reports the end of every copy. Priority ranges come first. Then scan and retries alternate,
//! so that neither holds up the other:
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
//! A pass of the scan visits each region once. A region that failed on its own is skipped, and
//! visited again by the next pass, which a back-off delays: 1 s, doubled from pass to pass up to
//! 64 s, and 1 s again once a pass has copied one of the skipped regions. Other regions never wait
//! for the back-off, because a pass ends after all of them. While no copy succeeds (the path to the
//! source is gone), attempts are spaced out.

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
use crate::logic::count::subtract;
use crate::logic::regions::{
    Region,
    RegionRange, //
};
use retries::Retries;
use throttle::Throttle;

/// Interval between batches while user I/O is in flight, or while no copy succeeds, in
/// milliseconds.
pub(crate) const MIN_INTERVAL: u64 = 20;
/// First delay before failed regions are retried, in milliseconds.
pub(crate) const MIN_BACKOFF: u64 = 1_000;
/// Longest delay before failed regions are retried, in milliseconds.
pub(crate) const MAX_BACKOFF: u64 = 64_000;
/// Number of failures without a success after which attempts are spaced out by [`MIN_INTERVAL`].
const STREAK: u32 = 32;

/// What the owner allows, read anew for each decision.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HydrationLimits {
    /// Maximum number of regions that the background hydration has in flight; zero stops it.
    ///
    /// Copies and overwrites for users do not count: with a small threshold they would keep the
    /// hydration from starting anything. It yields to them by `user_busy`.
    pub(crate) threshold: u32,
    /// Maximum number of regions in one copy, as the user set it; zero acts as one.
    pub(crate) batch: u32,
    /// Maximum number of regions in one copy, whatever `batch` is, so that no bio waits for a copy
    /// for long. Not zero.
    pub(crate) max_regions: u64,
    /// Maximum number of copies in flight.
    pub(crate) max_copies: u32,
    /// Number of copies that may be in flight however few slots are free.
    pub(crate) reserved_copies: u32,
    /// Number of slots that all other copies leave to writes.
    pub(crate) overwrite_slots: usize,
    /// Share of the time that background copies may be in flight, in percent. From 100 on it is all
    /// of the time.
    pub(crate) throttle: u32,
    /// Whether hydration is on. If not, only priority ranges are copied.
    pub(crate) enabled: bool,
    /// Whether user I/O is in flight, to which the hydration yields.
    pub(crate) user_busy: bool,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HydrationStep {
    /// Copy these regions, none of which is hydrated or in flight; then ask again.
    Copy(RegionRange),
    /// Ask again after this number of milliseconds, or when user I/O has ended.
    Wait(u64),
    /// Ask again when a copy has ended or the limits have changed.
    Blocked,
    /// All regions are hydrated or in flight. Ask again only if a copy fails.
    Done,
}

/// What comes first at the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Scan,
    Retry,
}

/// The state of the background hydration of one clone.
///
/// No function sleeps or allocates. Times are in milliseconds since any fixed moment, and do not go
/// backwards. C counterpart: `clone->hydration_offset`.
#[derive(Debug)]
pub(crate) struct Hydration {
    /// The scan is done with all regions before this one.
    position: Region,
    /// Failed batches.
    retries: Retries,
    /// Ranges to copy before all others.
    priority: PriorityRanges,
    /// Whether the last [`HydrationStep::Copy`] was for a priority range.
    was_priority: bool,
    /// The time account of background copies, with their number.
    throttle: Throttle,
    /// Number of regions in flight that the hydration has started.
    copying: u64,
    /// What comes first at the next step.
    turn: Turn,
    /// Time from which a batch may start even if user I/O is in flight.
    due: u64,
    /// Whether a single region has failed since the pass began.
    skipped: bool,
    /// Whether this pass covers regions that have failed before.
    repeated: bool,
    /// Time from which the next pass over failed regions may begin.
    resume_at: u64,
    /// Delay between a failure and `resume_at`.
    backoff: u64,
    /// Number of failures since the last success.
    streak: u32,
    /// Number of failures.
    failures: u64,
}

impl Hydration {
    /// Makes a hydration that starts at the first region.
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
    /// The owner must put a range that it is told to copy into `inflight` before it asks again. It
    /// reports the end of the copy by [`Self::copy_done`], or calls [`Self::put_back`] at once if
    /// the copy cannot start.
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

    /// Whether another copy may take one of the free slots.
    ///
    /// The source may never answer, and overwrites need slots too.
    fn may_take_slot(&self, limits: &HydrationLimits, free: usize) -> bool {
        let copies = self.throttle.copies;
        let spare = if copies < u64::from(limits.reserved_copies) {
            0
        } else {
            limits.overwrite_slots
        };
        copies < u64::from(limits.max_copies) && free > spare
    }

    /// Requests that ranges are copied before all others, whether or not hydration is on.
    pub(crate) fn prioritize(&mut self, ranges: &mut PriorityRanges) {
        self.priority.append(ranges);
    }

    /// Whether a priority range may remain to be started.
    pub(crate) fn has_priority(&self) -> bool {
        self.priority.len != 0
    }

    /// Whether the last [`HydrationStep::Copy`] was for a priority range.
    pub(crate) fn was_priority(&self) -> bool {
        self.was_priority
    }

    /// Records the end of a copy that [`Self::next`] has requested; `is_priority` is what
    /// [`Self::was_priority`] said of it.
    ///
    /// The caller has removed the range from the regions in flight before and, if it was copied,
    /// has set it in the map. Otherwise a decision made in between may put a retry off to the next
    /// pass.
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
    /// It counts neither as a failure nor as a copy. The next decision may be the same range.
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
        self.copying = subtract(self.copying, range.len());
    }

    /// Returns how many copies have failed, of batches and of single regions.
    #[cfg(test)]
    pub(crate) fn failures(&self) -> u64 {
        self.failures
    }

    /// Resets the back-off: failed regions are retried as soon as the pass is over.
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

    /// Takes the next batch from the scan. Begins a new pass if the old one is over, and need not
    /// wait.
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

    /// Begins a new pass. If it had to wait, the next delay is twice as long.
    fn begin_pass(&mut self) {
        if self.skipped {
            self.backoff = self.backoff.saturating_mul(2).min(MAX_BACKOFF);
        }
        self.repeated = self.skipped;
        self.skipped = false;
    }
}

/// Returns the first regions of `range`, at most `max`, that are neither hydrated nor in flight.
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
        // A write has hydrated the region meanwhile.
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
