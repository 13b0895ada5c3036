// SPDX-License-Identifier: GPL-2.0

//! The end of an overwrite, of a copy or of zeroing: marks regions, and releases the bios that wait
//! for them.

use super::{
    per_bio::CloneBioQueue,
    CloneTarget, //
};
use crate::{
    dm::bio::{
        BlkStatus,
        Op, //
    },
    logic::{
        clone::{
            inflight::Slot,
            slots::FillResult,
            status::Mode, //
        },
        regions::RegionRange, //
    }, //
};
use kernel::sync::ArcBorrow;

impl CloneTarget {
    /// Completes a slot: marks its regions if they are filled, and releases its waiters. Any
    /// context.
    ///
    /// Returns the regions, and whether they are marked; `None` if the slot was completed earlier.
    ///
    /// C counterparts: `hydration_complete()`, `hydration_update_metadata()`.
    pub(super) fn complete_fill(
        self: ArcBorrow<'_, Self>,
        slot: Slot,
        result: FillResult,
    ) -> Option<(RegionRange, bool)> {
        let metadata = &self.metadata;
        let mut state = metadata.state().lock();
        let (range, hydration) = state.slots.remove(slot)?;
        let mut waiters = hydration.waiters;
        let marked = matches!(result, FillResult::Filled | FillResult::Zeroed)
            && metadata.mode() == Mode::ReadWrite;
        let done = &mut state.statistics;
        let (counter, count) = match result {
            FillResult::CopyFailed => (&mut done.failures, 1),
            _ if !marked => (&mut done.copied, 0),
            FillResult::Zeroed => (&mut done.discarded, range.len()),
            _ if hydration.copy.is_some() => (&mut done.copied, range.len()),
            _ => (&mut done.overwritten, range.len()),
        };
        *counter = counter.saturating_add(count);
        let was_dirty = metadata.is_dirty();
        if marked {
            metadata.mark_hydrated(&mut state, range);
        } else {
            state.slots.logs.unreserve(1);
        }
        let is_half_full = state.slots.logs.is_half_full();
        let idle = state.slots.inflight.is_empty();
        drop(state);

        if marked {
            self.release_waiters(&mut waiters);
        } else if result == FillResult::CopyFailed && range.len() == 1 {
            self.fail_waiters(&mut waiters);
        } else if !waiters.is_empty() {
            // The waiters have not failed: another bio has, or the mode has changed. Decide again.
            self.deferred.lock().retry.append(&mut waiters);
            self.wake_worker();
        }
        if marked {
            self.schedule_commit(was_dirty, is_half_full);
        }
        self.wake_stalled(Self::STALLED_BATCH, Self::STALLED_BATCH);
        self.wake_hydration();
        if idle && self.is_suspended() {
            self.idle.wake_all();
        }
        Some((range, marked))
    }

    /// Fails partial writes to a region whose copy failed. Full overwrites and discards are
    /// retried.
    fn fail_waiters(self: ArcBorrow<'_, Self>, waiters: &mut CloneBioQueue) {
        while let Some(bio) = waiters.pop() {
            if bio.op() == Op::Discard || self.is_overwrite(&bio) {
                self.reevaluate(Some(bio));
            } else {
                bio.end(BlkStatus::IO_ERROR);
            }
        }
    }

    /// Releases the bios that waited for a region that is hydrated now.
    fn release_waiters(self: ArcBorrow<'_, Self>, waiters: &mut CloneBioQueue) {
        if waiters.is_empty() {
            return;
        }
        let mut deferred = self.deferred.lock();
        while let Some(bio) = waiters.pop() {
            match bio.op() {
                Op::Discard => deferred.retry.push(bio),
                _ if bio.is_fua() => deferred.flush.push(bio),
                _ => deferred.ready.push(bio),
            }
        }
        let flush = !deferred.flush.is_empty();
        drop(deferred);
        self.wake_worker();
        if flush {
            self.wake_committer();
        }
    }
}
