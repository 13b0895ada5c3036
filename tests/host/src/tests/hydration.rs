// SPDX-License-Identifier: GPL-2.0

//! Background hydration on a simulated clone: random delays, failures, user I/O and limits.
//!
//! Good regions are hydrated in a bounded time, bad ones neither stop nor slow the others, and the
//! rules about what may start are never broken.

use proptest::prelude::*;
use std::collections::BTreeSet;
use std::vec::Vec;

use super::range;
use crate::logic::clone::hydration::*;
use crate::logic::clone::inflight::*;
use crate::logic::clone::map::*;
use crate::logic::clone::region_copy::CopyResult;
use crate::logic::regions::{
    Region,
    RegionRange, //
};

/// The starter of a copy or overwrite in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Starter {
    #[default]
    Hydration,
    User,
}

/// A clone with a clock that advances only where the hydration waits or copies take time.
pub(super) struct SimulatedClone {
    pub(super) hydration: Hydration,
    pub(super) map: RegionMap,
    pub(super) writer: MapWriter,
    pub(super) flight: InFlight<()>,
    pub(super) bad: BTreeSet<u64>,
    pub(super) limits: HydrationLimits,
    pub(super) now: u64,
    /// Copies and overwrites in flight, with the times at which they end.
    pending: Vec<(u64, Slot, Starter)>,
    /// Regions in flight for the hydration.
    copying: u64,
    /// Every copy that the hydration has started: when, and which regions.
    pub(super) started: Vec<(u64, RegionRange)>,
    /// How often the hydration was asked.
    pub(super) asked: usize,
}

impl SimulatedClone {
    pub(super) fn new(
        regions: u64,
        bad: impl IntoIterator<Item = u64>,
        threshold: u32,
        batch: u32,
    ) -> Self {
        let (map, writer) = RegionMap::new(regions).unwrap();
        Self {
            hydration: Hydration::new(),
            map,
            writer,
            flight: InFlight::new(64).unwrap(),
            bad: bad.into_iter().filter(|region| *region < regions).collect(),
            limits: HydrationLimits {
                threshold,
                batch,
                max_regions: u64::MAX,
                max_copies: u32::MAX,
                reserved_copies: 0,
                overwrite_slots: 0,
                throttle: 100,
                enabled: true,
                user_busy: false,
            },
            now: 1_000_000,
            pending: Vec::new(),
            copying: 0,
            started: Vec::new(),
            asked: 0,
        }
    }

    /// Asks the hydration, checks the answer against the rules, and starts what it says.
    pub(super) fn ask(&mut self, delay: u64) -> HydrationStep {
        self.asked += 1;
        let step = self
            .hydration
            .next(self.now, &self.limits, &self.map, &self.flight);
        let all = range(0, self.map.regions());
        match step {
            HydrationStep::Copy(regions) => {
                assert!(!regions.is_empty() && regions.intersect(all) == regions);
                assert!(regions.len() <= u64::from(self.limits.batch.max(1)));
                assert!(regions.len() <= self.limits.max_regions);
                assert_eq!(self.map.run(regions), Run::Clear(regions.len()));
                assert_eq!(self.flight.clear_prefix(regions), regions.len());
                let slot = self.flight.insert(regions).expect("a free slot");
                self.copying += regions.len();
                assert!(self.copying <= u64::from(self.limits.threshold));
                self.started.push((self.now, regions));
                self.pending
                    .push((self.now + delay, slot, Starter::Hydration));
            }
            HydrationStep::Wait(time) => assert!(time > 0 && time <= MAX_BACKOFF, "{time}"),
            HydrationStep::Blocked => {
                let full = self.copying >= u64::from(self.limits.threshold)
                    || self.flight.free_slots() == 0;
                let hydrating = self
                    .pending
                    .iter()
                    .any(|(_, _, starter)| *starter == Starter::Hydration);
                assert!(
                    full || hydrating || !self.limits.enabled,
                    "blocked by nothing"
                );
            }
            HydrationStep::Done => {
                let free = |region: &u64| {
                    !self.map.contains(Region(*region))
                        && self.flight.find(Region(*region)).is_none()
                };
                assert_eq!((0..self.map.regions()).find(free), None);
            }
        }
        step
    }

    /// Starts a copy or overwrite for a user, if the region is free.
    pub(super) fn user_write(&mut self, region: u64, delay: u64) {
        if self.map.contains(Region(region)) {
            return;
        }
        if let Some(slot) = self.flight.insert(range(region, region + 1)) {
            self.pending.push((self.now + delay, slot, Starter::User));
        }
    }

    /// Ends the copies and overwrites that are due.
    pub(super) fn finish_due(&mut self) {
        let now = self.now;
        let due: Vec<_> = self
            .pending
            .iter()
            .filter(|(at, ..)| *at <= now)
            .copied()
            .collect();
        self.pending.retain(|(at, ..)| *at > now);
        for (_, slot, starter) in due {
            let regions = self.flight.range(slot).unwrap();
            let failed = (regions.start.0..regions.end.0).any(|region| self.bad.contains(&region));
            if !failed {
                self.map.insert(&mut self.writer, regions);
            }
            assert!(self.flight.remove(slot).is_some());
            let outcome = if failed {
                CopyResult::Failed
            } else {
                CopyResult::Copied
            };
            if starter == Starter::Hydration {
                self.copying -= regions.len();
                self.hydration.copy_done(now, regions, outcome, false);
            }
        }
    }

    /// A copy that was given up does not end any more.
    pub(super) fn forget(&mut self, slot: Slot, regions: RegionRange) {
        self.copying -= regions.len();
        self.pending.retain(|(_, pending, _)| *pending != slot);
    }

    /// Advances the clock until a copy or overwrite ends, but not beyond `limit`.
    pub(super) fn sleep_until(&mut self, limit: u64) {
        let next = self
            .pending
            .iter()
            .map(|(at, ..)| *at)
            .min()
            .unwrap_or(limit);
        self.now = next.min(limit).max(self.now + 1);
        self.finish_due();
    }

    /// Asks until the hydration waits, then advances the clock; stops at `end`.
    ///
    /// `delay` returns how long a copy takes.
    pub(super) fn run_until(&mut self, end: u64, mut delay: impl FnMut(RegionRange) -> u64) {
        while self.now < end {
            match self.ask(0) {
                HydrationStep::Copy(regions) => {
                    let now = self.now;
                    let last = self.pending.last_mut().unwrap();
                    last.0 = now + delay(regions);
                }
                HydrationStep::Wait(time) => self.sleep_until((self.now + time).min(end)),
                HydrationStep::Blocked | HydrationStep::Done => {
                    if self.pending.is_empty() {
                        return;
                    }
                    self.sleep_until(end);
                }
            }
        }
    }

    /// Whether all good regions are hydrated.
    pub(super) fn is_complete(&self) -> bool {
        self.writer.set() == self.map.regions() - self.bad.len() as u64
    }
}

#[derive(Clone, Debug)]
enum Event {
    Ask,
    Pass(u64),
    UserWrite(u64, u64),
    Discard(u64, u64),
    Busy(bool),
    Limits(u32, u32),
    ResetBackoff,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        8 => Just(Event::Ask),
        6 => (0u64..60).prop_map(Event::Pass),
        3 => (0u64..300, 0u64..40).prop_map(|(region, delay)| Event::UserWrite(region, delay)),
        1 => (0u64..300, 0u64..20).prop_map(|(start, len)| Event::Discard(start, len)),
        1 => any::<bool>().prop_map(Event::Busy),
        1 => (0u32..40, 0u32..20)
            .prop_map(|(threshold, batch)| Event::Limits(threshold, batch)),
        1 => Just(Event::ResetBackoff),
    ];
    prop::collection::vec(event, 0..300)
}

proptest! {
    #[test]
    fn rules_hold_and_all_good_regions_are_hydrated(
        regions in 1u64..300,
        bad in prop::collection::btree_set(0u64..300, 0..12),
        delays in prop::collection::vec(0u64..50, 64),
        events in events(),
        limits in (1u32..40, 0u32..20),
        busy in any::<bool>(),
    ) {
        let mut clone = SimulatedClone::new(regions, bad, limits.0, limits.1);
        let mut turn = 0;
        for event in events {
            turn += 1;
            match event {
                Event::Ask => {
                    clone.ask(delays[turn % delays.len()]);
                }
                Event::Pass(time) => {
                    clone.now += time;
                    clone.finish_due();
                }
                Event::UserWrite(region, delay) => clone.user_write(region % regions, delay),
                Event::Discard(start, len) => {
                    // Only regions that are not in flight may be discarded.
                    let wanted = range(start, start + len);
                    let free = wanted.first(clone.flight.clear_prefix(wanted));
                    clone.map.insert(&mut clone.writer, free);
                    clone.bad.retain(|region| !free.contains(Region(*region)));
                }
                Event::Busy(busy) => clone.limits.user_busy = busy,
                Event::Limits(threshold, batch) => {
                    // A lower threshold holds for copies that start from now on.
                    clone.limits = HydrationLimits { threshold, batch, ..clone.limits };
                }
                Event::ResetBackoff => clone.hydration.reset_backoff(),
            }
        }

        // From here on it runs by itself. A batch takes up to 50 ms. A bad region costs failures of
        // its batch, a failure of its own, and the spacing of a streak. Busy users cost 20 ms per
        // batch.
        clone.limits.threshold = limits.0;
        clone.limits.batch = limits.1;
        clone.limits.user_busy = busy;
        clone.asked = 0;
        clone.started.clear();
        let from = clone.now;
        let mut turn = 0;
        clone.run_until(from + regions * 160 + 2_000, |_| {
            turn += 1;
            delays[turn % delays.len()]
        });
        prop_assert!(
            clone.is_complete(),
            "{} of {} with {:?} bad", clone.writer.set(), regions, clone.bad
        );
        // It is never asked in vain.
        prop_assert!(
            clone.asked <= 3 * clone.started.len() + 200,
            "{} {}", clone.asked, clone.started.len()
        );
    }

    #[test]
    fn failing_regions_are_left_in_peace(
        bad in prop::collection::btree_set(0u64..200, 1..20),
        batch in 1u32..16,
    ) {
        let mut clone = SimulatedClone::new(200, bad, 16, batch);
        let start = clone.now;
        clone.run_until(start + 300_000, |_| 5);
        prop_assert!(clone.is_complete());
        // Five minutes have room for nine waits of 1, 2, 4, .. 64 s. A pass tries a bad region at
        // most twice: in a batch, and alone.
        let tries = clone.started.iter().filter(|(at, _)| *at > start + 30_000).count();
        prop_assert!(tries >= clone.bad.len(), "{tries}");
        prop_assert!(tries <= clone.bad.len() * 2 * 6, "{tries}");
        // Once they are good, they are copied within the longest back-off.
        clone.bad.clear();
        let repaired = clone.now;
        clone.run_until(repaired + MAX_BACKOFF + 1_000, |_| 5);
        prop_assert!(clone.is_complete());
        prop_assert_eq!(clone.ask(0), HydrationStep::Done);
    }
}
