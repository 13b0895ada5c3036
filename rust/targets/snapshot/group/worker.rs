// SPDX-License-Identifier: GPL-2.0

//! The worker of an origin group.

use super::{
    chunk_copy::{
        ChunkCopy,
        NextStep,
        NOWHERE, //
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
        this.work_now();
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
    pub(in super::super) fn work_now(self: &Arc<Self>) {
        self.work(&mut self.members.lock());
    }

    /// Takes everything on that has come. What happens meanwhile is for the next time: the work
    /// item is queued again then.
    fn work(self: &Arc<Self>, members: &mut Members) {
        let mut out = ReleasedBios::default();
        self.starved.store(false, Relaxed);
        let mut jobs = self.inbox.lock().jobs.take();
        while let Some(job) = jobs.pop() {
            self.job_ended(job, &mut out);
        }
        for table in members.tables.iter() {
            table.process_full_chunk_writes(&mut out);
            let store = table.store();
            if store.has_commit_failed() {
                table.fail(EIO);
                store.abandon_batch(&mut out);
            }
            if store.state() != StoreState::Valid {
                store.abandon_all(&mut out);
            } else if !store.complete_committed(&mut members.spares, &mut out) {
                self.wake_later();
            }
            table.outlet.send_all(&mut out.ready, &self.commits);
        }
        while let Some(mut bio) = out.completed.pop() {
            bio.set_per_bio(PerBioData::NONE);
            bio.end(BlkStatus::OK);
        }
        for table in members.tables.iter() {
            self.own_writes(table, &mut out);
            table.outlet.send_all(&mut out.ready, &self.commits);
            self.start_copies(table);
        }
        self.origin_writes(members, &mut out);
        for table in members.tables.iter() {
            // Two tables may share a store: what the second one has released may be the first
            // one's.
            table.outlet.send_all(&mut out.ready, &self.commits);
            table.store().end_failed_writes();
            table.commit();
        }
        if let Merging::There(merge) = &members.merging {
            merge.wake();
        }
    }

    /// Takes note of a copy that has ended. If one of several destinations failed, the others get
    /// another copy.
    fn job_ended(self: &Arc<Self>, mut job: PoolBox<Request<ChunkCopy>>, out: &mut ReleasedBios) {
        let result = job.context.result.take();
        let at = |number| result.map_or(DestinationResult::Failed, |result| result.at(number));
        if let NextStep::Copy { to, .. } = &mut job.context.work {
            let ended = core::mem::replace(to, NOWHERE);
            let mut again = to.iter_mut();
            for (number, to) in (0..MAX_DESTINATIONS).zip(ended.into_iter().flatten()) {
                let arrival = at(number);
                if arrival == DestinationResult::Unknown
                    && to.table.store().state() == StoreState::Valid
                {
                    if let Some(place) = again.next() {
                        *place = Some(to);
                        continue;
                    }
                }
                let is_written = arrival == DestinationResult::Written;
                to.table.data_done(to.seq, is_written, out);
            }
            if again.len() != MAX_DESTINATIONS {
                // What it reads is still there: writes to the origin wait for these exceptions.
                self.copies.start(job, &self.commits);
            }
            return;
        }
        if let NextStep::Zero { mut bio, .. } = job.into_inner().context.work {
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
