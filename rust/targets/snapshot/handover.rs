// SPDX-License-Identifier: GPL-2.0

//! Exception handover: the hooks of a snapshot that decide which of the tables with one COW device
//! has the store.
//!
//! [`HandoverState`] has the states and the rules. C counterparts: `snapshot_preresume`,
//! `snapshot_resume`, `snapshot_dtr`, `__handover_exceptions`.

use super::{
    group::ActivationGuard,
    store::StoreState,
    table_line::read_header,
    work_id,
    SnapshotTarget, //
};
use crate::{
    logic::snapshot::{
        handover::{
            HandoverState,
            Source, //
        },
        header::Header,
        options::BlockSizes,
        preserved::PreservedMap, //
    },
    sys::{
        delay::delay_point,
        log::err,
        noio::NoIo,
        queue::flush,
        rcu::Replaced, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Release, //
        },
        Arc,
        ArcBorrow, //
    }, //
};

/// Destroys a snapshot: no bio of it is in flight any more. May sleep for I/O.
pub(super) fn dtr(this: &Arc<SnapshotTarget>) {
    let group = &this.group;
    // Under the lock the worker does not run; afterwards it starts nothing for the snapshot.
    let members = group.members.lock();
    let was_live = this.change_handover_state(HandoverState::destroy);
    drop(members);
    if was_live {
        delay_point!(c"snapshot: leaving, not yet idle");
        group.wake();
        // Another table may take over now: then it completes the pending exceptions.
        this.store
            .wait_idle(|| this.handover_state() == HandoverState::HandedOver);
    }
    delay_point!(c"snapshot: idle, not yet off the roster");
    let mut members = group.members.lock();
    if this.handover_state() == HandoverState::Destroying {
        if members.sharing_cow(this.cow.number()).destination.is_some() {
            err!("snapshots", "Cancelling snapshot handover.");
        }
        this.store.set_live_target(None);
    }
    members.remove_snapshot(this);
    drop(members);
    group.remove_for_map(this);
    // None of the work items may hold the last reference to the snapshot. Copies and the worker
    // queue the committer, and the committer queues the worker: so it is drained twice.
    group.drain();
    this.submitter.drain();
    this.copies.drain();
    flush::<SnapshotTarget, { work_id::COMMITTER }>(this);
    group.drain();
    group.leave();
}

/// Checks whether a snapshot may be resumed, and reads its store again if that is needed. May sleep
/// for I/O.
pub(super) fn preresume(this: ArcBorrow<'_, SnapshotTarget>) -> Result {
    let members = this.group.members.lock();
    let sharing = members.sharing_cow(this.cow.number());
    let source = sharing.source.map(|source| Source {
        state: source.handover_state(),
        is_merge: source.is_merged,
        is_replaced: source.handle.mapped_device() == this.handle.mapped_device(),
    });
    let has_destination = sharing.destination.is_some();
    let reload = this.change_handover_state(|state| state.preresume(source, has_destination));
    drop(members);
    match reload {
        Ok(true) => {
            let _noio = NoIo::enter();
            this.reload()
        }
        Ok(false) => Ok(()),
        Err(denied) => {
            err!("snapshots", "{}", denied.text());
            Err(EINVAL)
        }
    }
}

/// Makes a new snapshot live. May sleep while a merge of the origin comes to rest.
pub(super) fn resume(this: ArcBorrow<'_, SnapshotTarget>) {
    if !this.handover_state().is_waiting() {
        // It was live before: `preresume` made it so again, unless another table has taken over.
        return;
    }
    let this: Arc<SnapshotTarget> = this.into();
    let replaced = this.take_over(&this.group.lock_for_activation(&this));
    // Waits for writes that the old map may let pass, without a lock that other writes need.
    drop(replaced);
    // The worker continues with what the earlier table has left pending.
    this.group.wake();
}

/// Records that the device of a snapshot is suspended: now another table may take over.
pub(super) fn postsuspend(this: ArcBorrow<'_, SnapshotTarget>) {
    let _members = this.group.members.lock();
    this.change_handover_state(HandoverState::postsuspend);
}

impl SnapshotTarget {
    /// The state of the handover. Any context.
    pub(super) fn handover_state(&self) -> HandoverState {
        HandoverState::from_bits(self.handover_state.load(Acquire))
    }

    /// Changes the state of the handover. Called with `members` held.
    pub(super) fn change_handover_state<R>(
        &self,
        change: impl FnOnce(&mut HandoverState) -> R,
    ) -> R {
        let mut state = self.handover_state();
        let result = change(&mut state);
        self.handover_state.store(state.to_bits(), Release);
        result
    }

    /// Becomes the live one of the tables with the same COW device. Returns the map that was in use
    /// before.
    fn take_over(self: &Arc<Self>, guard: &ActivationGuard<'_>) -> Replaced<PreservedMap> {
        let map = self
            .group
            .new_preserved_map(guard.members(), self.origin.sectors());
        let others =
            guard.members().snapshots.iter().filter(|other| {
                other.cow.number() == self.cow.number() && !Arc::ptr_eq(other, self)
            });
        let replaced = self.group.activate(map, || {
            for other in others {
                other.change_handover_state(HandoverState::hand_over);
            }
            self.change_handover_state(HandoverState::resume);
        });
        self.store.set_live_target(Some(self.clone()));
        // The destructor of an earlier table may wait for what is now completed here.
        self.store.wake_idle();
        replaced
    }

    /// Reads the store again. No other table uses it. May sleep for I/O.
    fn reload(&self) -> Result {
        if self.store.state() == StoreState::Invalid {
            // Known to be invalid, even if the header could not be written.
            return Ok(());
        }
        if !self.store.is_persistent() {
            // A transient store does not outlive the table that had it.
            self.store.set_state(StoreState::Invalid);
            return Ok(());
        }
        let blocks = BlockSizes {
            cow: self.cow.logical_block_size(),
            origin: self.origin.logical_block_size(),
        };
        let size = self.store.chunk_size();
        let (header, found) = read_header(&self.cow, &self.io, &self.options, size, blocks)?;
        match header {
            _ if found != size => Err(EINVAL),
            Header::Blank => self.store.format(&self.cow, &self.io),
            Header::Store { valid: false, .. } => {
                self.store.set_state(StoreState::Invalid);
                Ok(())
            }
            Header::Store { .. } => self.store.load(&self.cow),
        }
    }

    /// The live one of the tables with the same store, or the snapshot itself if none is live. Any
    /// context.
    pub(super) fn live_target(self: &Arc<Self>) -> Arc<Self> {
        self.store.live_target().unwrap_or_else(|| self.clone())
    }
}
