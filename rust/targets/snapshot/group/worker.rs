// SPDX-License-Identifier: GPL-2.0

//! The worker of an origin group.

use super::{
    chunk_copy::{
        ChunkCopy,
        CopyKind,
        NO_DESTINATIONS, //
    },
    members::{
        Members,
        Merging, //
    },
    OriginGroup, //
};
use crate::{
    dm::{
        bio::BlkStatus,
        io::Request,
        kcopyd::{
            DestinationResult,
            MAX_DESTINATIONS, //
        }, //
    },
    sys::{
        noio::NoIo,
        pool::PoolBox, //
    },
    targets::snapshot::{
        io::PerBioData,
        store::{
            ReleasedBios,
            StoreState, //
        }, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc, //
    },
    workqueue::WorkItem, //
};

impl WorkItem<1> for OriginGroup {
    type Pointer = Arc<OriginGroup>;

    fn run(this: Arc<OriginGroup>) {
        let _noio = NoIo::enter();
        this.run_worker();
    }
}

/// Runs the worker after a while.
pub(super) struct RetryWork;

impl RetryWork {
    pub(super) const ID: u64 = 2;
}

impl WorkItem<2> for OriginGroup {
    type Pointer = Arc<OriginGroup>;

    fn run(this: Arc<OriginGroup>) {
        this.wake();
    }
}

impl OriginGroup {
    /// Does the worker's work in this thread. It must not start I/O when it allocates. Sleeps, but
    /// not for I/O.
    pub(in super::super) fn run_worker(self: &Arc<Self>) {
        self.process_deferred(&mut self.members.lock());
    }

    /// Takes everything on that has come. What happens meanwhile is for the next time: the work
    /// item is queued again then.
    fn process_deferred(self: &Arc<Self>, members: &mut Members) {
        let mut out = ReleasedBios::default();
        self.waiting_for_memory.store(false, Relaxed);
        let mut copies = self.deferred.lock().done_copies.take();
        while let Some(copy) = copies.pop() {
            self.copy_done(copy, &mut out);
        }
        for snapshot in members.snapshots.iter() {
            snapshot.process_full_chunk_writes(&mut out);
            let store = snapshot.store();
            if store.has_commit_failed() {
                snapshot.invalidate(EIO);
                store.abandon_batch(&mut out);
            }
            if store.state() != StoreState::Valid {
                store.abandon_all(&mut out);
            } else if !store.complete_committed(&mut members.spares, &mut out) {
                self.wake_later();
            }
            snapshot.submitter.submit_own(&mut out.ready, &self.io_queue);
        }
        while let Some(mut bio) = out.completed.pop() {
            bio.set_per_bio(PerBioData::NONE);
            bio.end(BlkStatus::OK);
        }
        for snapshot in members.snapshots.iter() {
            self.process_snapshot_writes(snapshot, &mut out);
            snapshot.submitter.submit_own(&mut out.ready, &self.io_queue);
            self.start_waiting_copies(snapshot);
        }
        self.process_origin_writes(members, &mut out);
        for snapshot in members.snapshots.iter() {
            // Two tables may share a store: what the second one has released may be the first
            // one's.
            snapshot.submitter.submit_own(&mut out.ready, &self.io_queue);
            snapshot.store().end_failed_writes();
            snapshot.start_commit();
        }
        if let Merging::Present(merge) = &members.merging {
            merge.wake();
        }
    }

    /// Takes note of a copy that has ended. If one of several destinations failed, the others get
    /// another copy.
    fn copy_done(self: &Arc<Self>, mut copy: PoolBox<Request<ChunkCopy>>, out: &mut ReleasedBios) {
        let result = copy.context.result.take();
        let at = |number| result.map_or(DestinationResult::Failed, |result| result.at(number));
        if let CopyKind::Preserve { to, .. } = &mut copy.context.kind {
            let ended = core::mem::replace(to, NO_DESTINATIONS);
            let mut again = to.iter_mut();
            for (number, to) in (0..MAX_DESTINATIONS).zip(ended.into_iter().flatten()) {
                let arrival = at(number);
                if arrival == DestinationResult::Unknown
                    && to.snapshot.store().state() == StoreState::Valid
                {
                    if let Some(place) = again.next() {
                        *place = Some(to);
                        continue;
                    }
                }
                let is_written = arrival == DestinationResult::Written;
                to.snapshot.data_done(to.seq, is_written, out);
            }
            if again.len() != MAX_DESTINATIONS {
                // What it reads is still there: writes to the origin wait for these exceptions.
                self.shared_copies.start(copy, &self.io_queue);
            }
            return;
        }
        if let CopyKind::Zero { mut bio, .. } = copy.into_inner().context.kind {
            bio.set_per_bio(PerBioData::NONE);
            bio.end(if at(0) == DestinationResult::Written {
                BlkStatus::OK
            } else {
                BlkStatus::IO_ERROR
            });
        }
        // A merge was told in `done`.
    }
}
