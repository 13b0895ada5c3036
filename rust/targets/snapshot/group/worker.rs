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
        per_bio::PerBioData,
        store::{
            ReleasedBios,
            StoreState, //
        },
        work_id, //
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

impl WorkItem<{ work_id::WORKER }> for OriginGroup {
    type Pointer = Arc<OriginGroup>;

    fn run(this: Arc<OriginGroup>) {
        let _noio = NoIo::enter();
        this.run_worker();
    }
}

impl WorkItem<{ work_id::WORKER_RETRY }> for OriginGroup {
    type Pointer = Arc<OriginGroup>;

    fn run(this: Arc<OriginGroup>) {
        this.wake();
    }
}

impl OriginGroup {
    /// Runs the worker in this thread, which is in a no-I/O scope. May sleep, but not for I/O.
    pub(in super::super) fn run_worker(self: &Arc<Self>) {
        self.process_deferred(&mut self.members.lock());
    }

    /// Processes everything that was deferred to the worker. What is deferred meanwhile queues the
    /// work item again.
    ///
    /// First the steps that complete something, then those that start something: so bios are
    /// decided on by the latest state, and with all memory that could be freed.
    fn process_deferred(self: &Arc<Self>, members: &mut Members) {
        let mut out = ReleasedBios::default();
        // Cleared before any allocation: a failed one sets it again, and tries once more.
        self.waiting_for_memory.store(false, Relaxed);
        // Completed copies free memory for new ones, and decide which snapshots become invalid.
        self.process_done_copies(&mut out);
        // All snapshots, before any write is decided on: completed exceptions enter the tables, and
        // release the origin writes that wait for them.
        self.complete_exceptions(members, &mut out);
        // Before the origin writes, so that these wait for chunks that a snapshot's own writes
        // provide, and no chunk is copied that the snapshot overwrites as a whole.
        for snapshot in members.snapshots.iter() {
            self.process_snapshot_writes(snapshot, &mut out);
            snapshot
                .submitter
                .submit_own(&mut out.ready, &self.io_queue);
            self.start_waiting_copies(snapshot);
        }
        // After everything that releases origin writes. This step may still make a snapshot
        // invalid, for lack of space.
        self.process_origin_writes(members, &mut out);
        // Last of all, since every step above may have failed bios, and written data whose records
        // go into the next batch.
        self.finish(members, &mut out);
        self.extend_preserved_map();
        // The merge decides by itself, under its own locks, whether it can go on.
        if let Merging::Present(merge) = &members.merging {
            merge.wake();
        }
    }

    /// Processes copies that have completed, except those that [`CopyJob::done`] reports directly.
    ///
    /// [`CopyJob::done`]: crate::dm::kcopyd::CopyJob::done
    fn process_done_copies(self: &Arc<Self>, out: &mut ReleasedBios) {
        let mut copies = self.deferred.lock().done_copies.take();
        while let Some(copy) = copies.pop() {
            self.process_done_copy(copy, out);
        }
    }

    /// Completes or fails the exceptions of a copy, or its discard. If one of several destinations
    /// failed, the others are copied again.
    fn process_done_copy(
        self: &Arc<Self>,
        mut copy: PoolBox<Request<ChunkCopy>>,
        out: &mut ReleasedBios,
    ) {
        let result = copy.context.result.take();
        let at = |number| result.map_or(DestinationResult::Failed, |result| result.at(number));
        if let CopyKind::Preserve { to, .. } = &mut copy.context.kind {
            let done = core::mem::replace(to, NO_DESTINATIONS);
            let mut retried = to.iter_mut();
            for (number, to) in (0..MAX_DESTINATIONS).zip(done.into_iter().flatten()) {
                let result = at(number);
                if result == DestinationResult::Unknown
                    && to.snapshot.store().state() == StoreState::Valid
                {
                    if let Some(slot) = retried.next() {
                        *slot = Some(to);
                        continue;
                    }
                }
                let is_written = result == DestinationResult::Written;
                to.snapshot.data_done(to.seq, is_written, out);
            }
            if retried.len() != MAX_DESTINATIONS {
                // The origin still has the data: writes to it wait for these exceptions.
                self.shared_copies.start(copy, &self.io_queue);
            }
            return;
        }
        // The copies of a merge do not come here: `done` reports them to the merge.
        if let CopyKind::Zero { mut bio, .. } = copy.into_inner().context.kind {
            bio.set_per_bio(PerBioData::NONE);
            bio.end(if at(0) == DestinationResult::Written {
                BlkStatus::OK
            } else {
                BlkStatus::IO_ERROR
            });
        }
    }

    /// Moves durable exceptions into the tables, gives up those of invalid snapshots, and ends the
    /// writes that have become durable with their records.
    fn complete_exceptions(self: &Arc<Self>, members: &mut Members, out: &mut ReleasedBios) {
        for snapshot in members.snapshots.iter() {
            // Before the state is looked at: these writes may have failed.
            snapshot.process_full_chunk_writes(out);
            let store = snapshot.store();
            if store.has_commit_failed() {
                snapshot.invalidate(EIO);
                store.abandon_batch(out);
            }
            if store.state() != StoreState::Valid {
                store.abandon_all(out);
            } else if !store.complete_committed(&mut members.spares, out) {
                self.wake_later();
            }
            snapshot
                .submitter
                .submit_own(&mut out.ready, &self.io_queue);
        }
        while let Some(mut bio) = out.completed.pop() {
            bio.set_per_bio(PerBioData::NONE);
            bio.end(BlkStatus::OK);
        }
    }

    /// Sends bios that are still unsent, fails those that cannot be served, and starts commits.
    fn finish(&self, members: &Members, out: &mut ReleasedBios) {
        for snapshot in members.snapshots.iter() {
            // During a handover two tables share a store: the later one may have released bios of
            // the earlier one.
            snapshot
                .submitter
                .submit_own(&mut out.ready, &self.io_queue);
            snapshot.store().end_failed_writes();
            snapshot.start_commit();
        }
    }
}
