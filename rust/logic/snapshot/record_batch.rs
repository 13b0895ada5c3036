// SPDX-License-Identifier: GPL-2.0

//! How a batch of records is written: by which writes, and which areas are zeroed before.
//!
//! A batch is one write for each area that it touches, so records of different areas can be in
//! flight at once. Power may fail after any of them. An area that reaches the disk before an
//! earlier one does no harm: the list ends in the earlier one, and the later one is zeroed again
//! before the list grows to it. Within an area it would: what lies after a gap would become part of
//! the list once the gap is filled. So there are never two writes to one area in flight.
//!
//! The list has to end somewhere at any time. So all areas of a batch after the first one, and the
//! one after the batch, are zeros on disk before the first record of the batch is written.
//!
//! C counterpart: `persistent_commit_exception()`, which writes one area at a time.

use core::num::NonZeroU64;

use crate::logic::{
    snapshot::layout::Layout,
    units::Sectors, //
};

/// One write: the blocks of an area that have new records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AreaWrite {
    /// The area.
    pub(crate) area: u64,
    /// The first slot, at the start of a block. Slots before the first new record are written as
    /// they are on disk.
    pub(crate) start: u64,
    /// The number of slots, whole blocks. Those after the last new record are zeros.
    pub(crate) slots: u64,
    /// The number of the first new record.
    pub(crate) first: u64,
    /// The number of new records.
    pub(crate) records: u64,
}

impl AreaWrite {
    /// Returns the number of slots before the first new record.
    pub(crate) fn slots_before(&self, layout: Layout) -> u64 {
        layout.slot(self.first).1.saturating_sub(self.start)
    }
}

/// The writes for consecutive records, as an iterator.
///
/// Any context.
#[derive(Clone)]
pub(crate) struct AreaWrites {
    layout: Layout,
    block: NonZeroU64,
    next: u64,
    end: u64,
    room: u64,
}

impl AreaWrites {
    /// Makes the writes for the records from `next` up to `end`, on a device with blocks of `block`
    /// slots. They have at most `room` slots, which is at least one block: the last records may be
    /// left for a further call.
    pub(crate) fn new(layout: Layout, block: NonZeroU64, next: u64, end: u64, room: u64) -> Self {
        AreaWrites {
            layout,
            block,
            next,
            end,
            room,
        }
    }
}

impl Iterator for AreaWrites {
    type Item = AreaWrite;

    fn next(&mut self) -> Option<AreaWrite> {
        let (area, slot) = self.layout.slot(self.next);
        let before = slot % self.block;
        let in_area = self.layout.exceptions_per_area().saturating_sub(slot);
        let records = self
            .end
            .saturating_sub(self.next)
            .min(in_area)
            .min(self.room.saturating_sub(before));
        if records == 0 {
            return None;
        }
        let used = before.saturating_add(records);
        let slots = used.checked_next_multiple_of(self.block.get());
        let slots = slots.unwrap_or(used);
        let write = AreaWrite {
            area,
            start: slot.saturating_sub(before),
            slots,
            first: self.next,
            records,
        };
        self.next = self.next.saturating_add(records);
        self.room = self.room.saturating_sub(slots);
        Some(write)
    }
}

/// Which areas after the list of records are known to be zeros on disk, at the latest after the
/// next flush.
///
/// Any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ZeroedAreas {
    /// The last one.
    last: u64,
}

/// The maximum number of areas that are zeroed ahead.
const MAX_AHEAD: u64 = 32;

impl ZeroedAreas {
    /// Only the area that the list of `records` ends in: nothing is known of later ones.
    pub(crate) fn new(layout: Layout, records: u64) -> Self {
        ZeroedAreas {
            last: layout.slot(records).0,
        }
    }

    /// Returns the first area that has to be zeroed before the list grows to `records`, and the one
    /// after the last.
    pub(crate) fn needed(&self, layout: Layout, records: u64) -> (u64, u64) {
        (
            self.last.saturating_add(1),
            layout.slot(records).0.saturating_add(1),
        )
    }

    /// Returns the same for a batch that may come next, if it is as large as the one before, to
    /// which `records` belong. A COW device of `cow` sectors has all of these areas.
    pub(crate) fn ahead(
        &self,
        layout: Layout,
        records: u64,
        batch: u64,
        cow: Sectors,
    ) -> (u64, u64) {
        let (now, _) = layout.slot(records);
        let (first, end) = self.needed(layout, records.saturating_add(batch.saturating_mul(2)));
        let mut end = end.min(now.saturating_add(MAX_AHEAD));
        while end > first && !layout.has_area(end.saturating_sub(1), cow) {
            end = end.saturating_sub(1);
        }
        (first, end)
    }

    /// Records that all areas before `end` were zeroed.
    pub(crate) fn set_zeroed(&mut self, end: u64) {
        self.last = self.last.max(end.saturating_sub(1));
    }
}
