// SPDX-License-Identifier: GPL-2.0

//! The committer of a snapshot, and how the snapshot becomes invalid.
//!
//! C counterparts: `complete_exception`, `pending_complete`, `__invalidate_snapshot`.

use super::{
    io::PerBioData,
    store::{
        ReleasedBios,
        StoreState, //
    },
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
    /// The snapshot is lost. The worker only.
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

    /// There is no room for a write to the snapshot. The worker only.
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

    /// Whether it is the one of the tables with its store that writes records.
    pub(super) fn is_committer(&self) -> bool {
        self.role().has_store()
    }

    /// Sees that records are written, if there are any to be. The worker only.
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

    /// Takes note that the data of an exception has come. Any context.
    pub(super) fn data_written(self: &Arc<Self>, seq: Seq) {
        let mut allocation = self.store.allocation();
        allocation.pending.set_copied(seq);
        let batch = allocation.pending.has_batch();
        drop(allocation);
        let valid = self.store.state() == StoreState::Valid;
        if valid && self.store.is_persistent() && self.is_committer() {
            // Nearly always: straight on.
            if batch {
                self.wake_committer();
            }
        } else {
            self.group.wake();
        }
    }

    fn wake_committer(self: &Arc<Self>) {
        self.group
            .io_queue()
            .enqueue::<SnapshotTarget, { Committer::ID }>(self.clone());
    }
}

/// Writes records, batch after batch, and the header when the snapshot is lost.
pub(super) struct Committer;

impl Committer {
    pub(super) const ID: u64 = 1;
}

impl WorkItem<1> for SnapshotTarget {
    type Pointer = Arc<SnapshotTarget>;

    fn run(this: Arc<SnapshotTarget>) {
        let _noio = NoIo::enter();
        let store = &this.store;
        while this.is_committer() && store.commit_batch(&this.cow, &this.io) {
            this.group.run_worker();
        }
        if store.finish_invalidation(&this.cow, &this.io) {
            this.live_target().handle.raise_event();
            this.group.run_worker();
        }
        if !this.is_committer() {
            // Another table has taken over meanwhile: its committer goes on.
            this.group.wake();
        }
    }
}
