// SPDX-License-Identifier: GPL-2.0

//! The committer, which writes the records of exceptions; and how a snapshot becomes invalid.
//!
//! C counterparts: `complete_exception()`, `persistent_commit_exception()`,
//! `__invalidate_snapshot()`.

use super::{
    per_bio::PerBioData,
    store::{
        ReleasedBios,
        StoreState, //
    },
    work_id,
    SnapshotTarget, //
};
use crate::{
    dm::bio::Bio,
    logic::snapshot::{
        options::StoreKind,
        pending::Seq, //
    },
    sys::{
        log::err,
        noio::NoIo, //
    }, //
};
use kernel::{
    prelude::*,
    sync::Arc,
    workqueue::WorkItem, //
};

impl SnapshotTarget {
    /// Makes the snapshot invalid: in memory now, on disk by the committer. Called with `members`
    /// held.
    pub(super) fn invalidate(self: &Arc<Self>, reason: Error) {
        if self.store.state() != StoreState::Valid {
            return;
        }
        let what = if reason == ENOSPC {
            "Unable to allocate exception."
        } else {
            "Error reading/writing."
        };
        err!("snapshots", "Invalidating snapshot: {}", what);
        if self.store.is_persistent() {
            self.store.set_state(StoreState::Invalidating);
            self.live_target().wake_committer();
        } else {
            self.store.set_state(StoreState::Invalid);
            self.live_target().handle.raise_event();
        }
    }

    /// Fails a write for which the COW device has no space. The snapshot overflows if its table
    /// line allows that, and becomes invalid otherwise. Called with `members` held.
    pub(super) fn handle_no_space(self: &Arc<Self>, bio: Bio<PerBioData>, out: &mut ReleasedBios) {
        if self.options.store == (StoreKind::Persistent { overflow: true }) {
            if !self.store.is_overflowed() {
                self.store.set_overflowed();
                err!(
                    "snapshots",
                    "Snapshot overflowed: Unable to allocate exception."
                );
                self.live_target().handle.raise_event();
            }
        } else {
            self.invalidate(ENOSPC);
            self.store.abandon_all(out);
        }
        self.store.fail_write(bio);
    }

    /// Whether this one of the tables with the same store writes the records. Any context.
    pub(super) fn is_committer(&self) -> bool {
        self.handover_state().has_store()
    }

    /// Starts to write the records of exceptions whose data was written, if there are any. Called
    /// with `members` held.
    pub(super) fn start_commit(self: &Arc<Self>) {
        if !self.is_committer() || !self.store.allocation().pending.has_batch() {
            return;
        }
        if self.store.is_persistent() {
            self.wake_committer();
        } else {
            self.store.allocation().pending.commit_copied();
            self.group.wake();
        }
    }

    /// Records that the data of a pending exception was written. Any context.
    pub(super) fn data_written(self: &Arc<Self>, seq: Seq) {
        let mut allocation = self.store.allocation();
        allocation.pending.set_copied(seq);
        let has_batch = allocation.pending.has_batch();
        drop(allocation);
        let is_valid = self.store.state() == StoreState::Valid;
        if is_valid && self.store.is_persistent() && self.is_committer() {
            // The common case: the committer needs no worker in between.
            if has_batch {
                self.wake_committer();
            }
        } else {
            self.group.wake();
        }
    }

    /// Queues the committer. Any context.
    fn wake_committer(self: &Arc<Self>) {
        self.group
            .io_queue()
            .enqueue::<SnapshotTarget, { work_id::COMMITTER }>(self.clone());
    }
}

impl WorkItem<{ work_id::COMMITTER }> for SnapshotTarget {
    type Pointer = Arc<SnapshotTarget>;

    /// The committer: writes records, batch after batch, then the header if the snapshot became
    /// invalid.
    fn run(this: Arc<SnapshotTarget>) {
        let _noio = NoIo::enter();
        let store = &this.store;
        while this.is_committer() && store.commit_batch(&this.cow, &this.io) {
            this.group.run_worker();
            store.zero_ahead(&this.cow, &this.io);
        }
        if store.finish_invalidation(&this.cow, &this.io) {
            this.live_target().handle.raise_event();
            this.group.run_worker();
        }
        if !this.is_committer() {
            // Another table has taken over meanwhile: the worker wakes that one's committer.
            this.group.wake();
        }
    }
}
