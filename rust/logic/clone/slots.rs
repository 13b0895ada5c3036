// SPDX-License-Identifier: GPL-2.0

//! The slots of regions that are being filled, and the decision what becomes of a write.
//!
//! A region is *filled* by a copy from the source, by a write to all of it ("overwrite"), or by
//! zeros for a discard. It is *in flight* meanwhile: it has a slot in [`InFlight`], and room for
//! one range is reserved in the [`DirtyLogs`]. Both are limited, and both are taken at once.
//!
//! | the first region of a write | the write | decision |
//! | --- | --- | --- |
//! | is hydrated | any | [`WriteDecision::Submit`] |
//! | is in flight | any | [`WriteDecision::Wait`] |
//! | is neither, and the metadata is read-only | any | [`WriteDecision::Fail`] |
//! | is neither, and there is no room | any | [`WriteDecision::Stall`] |
//! | is neither | covers whole regions | [`WriteDecision::Overwrite`] |
//! | is neither, during a noflush suspend | covers a part | [`WriteDecision::Requeue`] |
//! | is neither | covers a part | [`WriteDecision::Copy`] |
//!
//! Everything here is called under the lock that also protects the map's writer, so that at most
//! one I/O fills a region at a time. C counterparts: `struct hash_table_bucket`,
//! `hydrate_bio_region()`.

use crate::env::Result;
use crate::logic::clone::dirty::DirtyLogs;
use crate::logic::clone::geometry::Geometry;
use crate::logic::clone::inflight::{
    InFlight,
    Slot, //
};
use crate::logic::clone::map::{
    RegionMap,
    Run, //
};
use crate::logic::clone::region_copy::{
    CopyReason,
    ReadyCopies,
    RegionCopy, //
};
use crate::logic::clone::status::Mode;
use crate::logic::count::subtract;
use crate::logic::regions::RegionRange;
use crate::logic::units::{
    Sector,
    Sectors, //
};

/// Maximum number of copies and overwrites in flight; a background copy may cover many regions.
pub(crate) const SLOTS: usize = 1024;
/// Slots that are left to the background hydration, however many writes are in flight.
pub(crate) const RESERVED_COPIES: u32 = 16;
/// Slots that copies for writes leave free, including the reserved copies: the source may never
/// answer, and an overwrite needs the destination only.
// CAST: A small number.
pub(crate) const OVERWRITE_SLOTS: usize = 128 + RESERVED_COPIES as usize;
/// A write starts a copy only while fewer than this many copies are in flight.
// CAST: A small number.
pub(crate) const MAX_COPIES: u64 = (SLOTS - OVERWRITE_SLOTS) as u64;
/// Ranges that may be hydrated between two commits before writers have to wait for a commit.
const LOG_ENTRIES: usize = 16 * 1024;

/// A range of regions in flight: `W` holds the bios that wait for it.
///
/// C counterpart: `struct dm_clone_region_hydration`.
#[derive(Default)]
pub(crate) struct RegionHydration<W> {
    /// The bios that wait for the regions.
    pub(crate) waiters: W,
    /// The progress of the copy; none for an overwrite.
    pub(crate) copy: Option<RegionCopy>,
}

/// How regions are to be filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FillKind {
    /// By a copy from the source.
    Copy,
    /// By a write, or by zeros: nothing of the source is needed.
    Overwrite,
}

/// How the I/O that was to fill the regions of a slot ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FillResult {
    /// The data is on the destination.
    Filled,
    /// Zeros are on the destination, for a discard.
    Zeroed,
    /// The copy failed.
    CopyFailed,
    /// The overwrite failed.
    OverwriteFailed,
    /// The copy was given up.
    GivenUp,
}

/// The answer to a request for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reservation {
    /// The first region is hydrated.
    Hydrated,
    /// The first region is in flight, in this slot.
    InFlight(Slot),
    /// The slot is reserved for these regions.
    Reserved(Slot, RegionRange),
    /// There is no slot, or no room in the log.
    NoRoom,
}

/// What becomes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteDecision {
    /// Submit it to the destination.
    Submit,
    /// Queue it on this slot.
    Wait(Slot),
    /// Submit it to the destination, cut to these regions; its end completes the slot.
    Overwrite(Slot, RegionRange),
    /// Queue it on this slot, and start the copy of the region.
    Copy(Slot),
    /// Hand it back to device-mapper.
    Requeue,
    /// Fail it.
    Fail,
    /// Stall it until there is a slot, and room in the log.
    Stall,
}

/// The state of the target that decides on a write, with its regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WriteConditions {
    /// What the metadata allows.
    pub(crate) mode: Mode,
    /// Whether writes that need a copy go back to device-mapper.
    pub(crate) requeue_copies: bool,
}

/// The regions in flight, with their share of the logs.
///
/// Called with the lock of the map's writer held. Only [`Self::new`] may sleep.
///
/// # Invariants
///
/// - Each range in `inflight` has one reservation in `logs`.
/// - `copies` is the number of slots with a copy.
pub(crate) struct RegionSlots<W: Default> {
    /// The regions that are being filled.
    pub(crate) inflight: InFlight<RegionHydration<W>>,
    /// What the disk does not know yet.
    pub(crate) logs: DirtyLogs,
    copies: u64,
}

impl<W: Default> RegionSlots<W> {
    /// Makes free slots and empty logs. May sleep.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            logs: DirtyLogs::new(LOG_ENTRIES)?,
            inflight: InFlight::new(SLOTS)?,
            copies: 0,
        })
    }

    /// Decides what becomes of a write, and reserves the slot that it needs.
    ///
    /// The write starts in the first region of `range`. As [`FillKind::Overwrite`] it covers all of
    /// `range`; as [`FillKind::Copy`] it covers a part of its only region.
    pub(crate) fn decide_write(
        &mut self,
        map: &RegionMap,
        range: RegionRange,
        kind: FillKind,
        conditions: WriteConditions,
    ) -> WriteDecision {
        let writable = conditions.mode == Mode::ReadWrite;
        match self.reserve_run(map, range, kind) {
            Reservation::Hydrated => WriteDecision::Submit,
            Reservation::InFlight(slot) => WriteDecision::Wait(slot),
            Reservation::Reserved(slot, _) if !writable => {
                self.release(slot);
                WriteDecision::Fail
            }
            Reservation::Reserved(slot, range) if kind == FillKind::Overwrite => {
                WriteDecision::Overwrite(slot, range)
            }
            Reservation::Reserved(slot, _) if conditions.requeue_copies => {
                self.release(slot);
                WriteDecision::Requeue
            }
            Reservation::Reserved(slot, _) => WriteDecision::Copy(slot),
            Reservation::NoRoom if !writable => WriteDecision::Fail,
            Reservation::NoRoom => WriteDecision::Stall,
        }
    }

    /// Reserves a slot for the leading regions of `range` that are neither hydrated nor in flight.
    pub(crate) fn reserve_run(
        &mut self,
        map: &RegionMap,
        range: RegionRange,
        kind: FillKind,
    ) -> Reservation {
        let Run::Clear(clear) = map.run(range) else {
            return Reservation::Hydrated;
        };
        if let Some(slot) = self.inflight.find(range.start) {
            return Reservation::InFlight(slot);
        }
        let range = range.first(clear);
        let range = range.first(self.inflight.clear_prefix(range));
        if !self.has_slot(kind) {
            return Reservation::NoRoom;
        }
        self.reserve(range).map_or(Reservation::NoRoom, |slot| {
            Reservation::Reserved(slot, range)
        })
    }

    /// Whether a write may take a slot.
    ///
    /// The number of copies is limited, so that overwrites find slots while the source does not
    /// answer. The last slots are left to the background hydration, which would find none while
    /// there are enough writes.
    fn has_slot(&self, kind: FillKind) -> bool {
        // CAST: A small number.
        self.inflight.free_slots() > RESERVED_COPIES as usize
            && (kind == FillKind::Overwrite || self.copies < MAX_COPIES)
    }

    /// Whether a write would find a slot, and room in the log.
    pub(crate) fn has_room(&mut self, kind: FillKind) -> bool {
        let room = self.logs.reserve(1);
        if room {
            self.logs.unreserve(1);
        }
        room && self.has_slot(kind)
    }

    /// Reserves a slot for regions that are neither hydrated nor in flight, without regard to the
    /// limits of writes.
    pub(crate) fn reserve(&mut self, range: RegionRange) -> Option<Slot> {
        if !self.logs.reserve(1) {
            return None;
        }
        let slot = self.inflight.insert(range);
        if slot.is_none() {
            self.logs.unreserve(1);
        }
        slot
    }

    /// Returns a slot, and its room in the log, unused.
    fn release(&mut self, slot: Slot) {
        if self.remove(slot).is_some() {
            self.logs.unreserve(1);
        }
    }

    /// Frees a slot and returns what was in it. Its reservation in the log is the caller's, to use
    /// or to return.
    pub(crate) fn remove(&mut self, slot: Slot) -> Option<(RegionRange, RegionHydration<W>)> {
        let (range, hydration) = self.inflight.remove(slot)?;
        if hydration.copy.is_some() {
            self.copies = subtract(self.copies, 1);
        }
        Some((range, hydration))
    }

    /// Returns the copy of a slot, if there is one.
    pub(crate) fn copy(&mut self, slot: Slot) -> Option<&mut RegionCopy> {
        self.inflight.get_mut(slot)?.copy.as_mut()
    }

    /// Gives a slot a copy of its regions, nothing of which has been done yet.
    pub(crate) fn start_copy(
        &mut self,
        slot: Slot,
        geometry: &Geometry,
        reason: CopyReason,
    ) -> Option<&RegionCopy> {
        let (start, len) = geometry.extent(self.inflight.range(slot)?);
        let hydration = self.inflight.get_mut(slot)?;
        if hydration.copy.is_none() {
            self.copies = self.copies.saturating_add(1);
        }
        Some(hydration.copy.insert(RegionCopy::new(start, len, reason)))
    }

    /// Returns the segment to read next, without starting it.
    ///
    /// Copies that have no segment to start leave `ready`.
    pub(crate) fn next_segment(
        &mut self,
        ready: &mut ReadyCopies,
    ) -> Option<(Slot, Sector, Sectors)> {
        loop {
            let slot = ready.first()?;
            match self.copy(slot).and_then(|copy| copy.next_segment()) {
                Some((start, len)) => return Some((slot, start, len)),
                None => ready.pop(),
            }
        }
    }
}
