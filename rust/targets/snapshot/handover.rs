// SPDX-License-Identifier: GPL-2.0

//! The hooks of a snapshot that decide which of the tables with one COW device has its store.
//!
//! The rules are in [`HandoverState`]. C counterparts: `snapshot_preresume`, `snapshot_resume`,
//! `snapshot_dtr`, `__handover_exceptions`.

use super::{
    commit::Committer,
    group::ActivationGuard,
    store::StoreState,
    table_line::read_header,
    SnapshotTarget, //
};
use crate::{
    logic::snapshot::{
        handover::{
            HandoverState,
            Source, //
        },
        header::Header,
        options::BlockSizes, //
    },
    sys::{
        delay::delay_point,
        log::err,
        noio::NoIo,
        queue::flush, //
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

pub(super) fn dtr(this: &Arc<SnapshotTarget>) {
    let group = &this.group;
    let members = group.members.lock();
    // The worker does not run now, and begins nothing for it any more.
    let was_live = this.change_role(HandoverState::destroy);
    drop(members);
    if was_live {
        delay_point!(c"snapshot: leaving, not yet idle");
        group.wake();
        // What a former table has begun, the one that took over ends; that may be now.
        this.store.wait_idle(|| this.role() == HandoverState::HandedOver);
    }
    delay_point!(c"snapshot: idle, not yet off the roster");
    let mut members = group.members.lock();
    if this.role() == HandoverState::Destroying {
        if members.sharing_cow(this.cow.number()).destination.is_some() {
            err!("snapshots", "Cancelling snapshot handover.");
        }
        this.store.set_live_target(None);
    }
    members.remove_snapshot(this);
    drop(members);
    group.remove_for_map(this);
    // Copies and worker call the committer, and that the worker: none of them is to have the
    // last reference.
    group.drain();
    this.submitter.drain();
    this.copies.drain();
    flush::<SnapshotTarget, { Committer::ID }>(this);
    group.drain();
    group.leave();
}

pub(super) fn preresume(this: ArcBorrow<'_, SnapshotTarget>) -> Result {
    let members = this.group.members.lock();
    let sharing = members.sharing_cow(this.cow.number());
    let source = sharing.source.map(|live| Source {
        state: live.role(),
        is_merge: live.is_merged,
        is_replaced: live.handle.mapped_device() == this.handle.mapped_device(),
    });
    let is_waited_for = sharing.destination.is_some();
    let reload = this.change_role(|role| role.preresume(source, is_waited_for));
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

pub(super) fn resume(this: ArcBorrow<'_, SnapshotTarget>) {
    if !this.role().is_waiting() {
        // It is live since `preresume`; or another one has taken over.
        return;
    }
    let this: Arc<SnapshotTarget> = this.into();
    this.take_over(&this.group.lock_for_activation(&this));
    // What the former table has left to do.
    this.group.wake();
}

pub(super) fn postsuspend(this: ArcBorrow<'_, SnapshotTarget>) {
    let _roster = this.group.members.lock();
    this.change_role(HandoverState::postsuspend);
}

impl SnapshotTarget {
    pub(super) fn role(&self) -> HandoverState {
        HandoverState::from_bits(self.role.load(Acquire))
    }

    /// Changes the role. Under the roster.
    pub(super) fn change_role<R>(&self, change: impl FnOnce(&mut HandoverState) -> R) -> R {
        let mut role = self.role();
        let result = change(&mut role);
        self.role.store(role.to_bits(), Release);
        result
    }

    /// Becomes the live one of the tables with the store.
    fn take_over(self: &Arc<Self>, guard: &ActivationGuard<'_>) {
        let others =
            guard.members().snapshots.iter().filter(|other| {
                other.cow.number() == self.cow.number() && !Arc::ptr_eq(other, self)
            });
        self.group.exclude_map(|| {
            for other in others {
                other.change_role(HandoverState::hand_over);
            }
            self.change_role(HandoverState::resume);
        });
        self.store.set_live_target(Some(self.clone()));
        // Who is being destroyed need not wait any more.
        self.store.wake_idle();
    }

    /// Reads the store again. Nobody else has it. Sleeps for I/O.
    fn reload(&self) -> Result {
        if self.store.state() == StoreState::Invalid {
            // Known to be lost, even if the header could not say so.
            return Ok(());
        }
        if !self.store.is_persistent() {
            // It went with its last table.
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

    /// The one of the tables with its store that is live; itself if there is none.
    pub(super) fn live_target(self: &Arc<Self>) -> Arc<Self> {
        self.store.live_target().unwrap_or_else(|| self.clone())
    }
}
