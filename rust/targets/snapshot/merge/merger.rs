// SPDX-License-Identifier: GPL-2.0

//! The work item of a merge: the steps of a batch.
//!
//! Their order keeps origin, COW device and other snapshots consistent whenever power fails:
//!
//! | step | why it stands there |
//! | --- | --- |
//! | read | The last records first: the list of records stays without gaps. |
//! | preserve | Other snapshots of the origin get its data before the batch overwrites it. |
//! | drain | New writes to the batch wait, earlier ones end: the copies see all of them. |
//! | copy | The origin gets the data; until the records are zeroed, reads use the COW device. |
//! | commit | The origin is flushed first: nothing finds data on the COW device without records. |
//! | release | Waiting writes go on, to where the batch is now. |
//!
//! C counterparts: `snapshot_merge_next_chunks()` and `merge_callback()`.

use crate::{
    dm::bio::BlkStatus,
    logic::snapshot::{
        exception_table::{
            Lookup,
            SpareNodes, //
        },
        merge::{
            BatchResult,
            CommitResult,
            MergeStep, //
        },
        merge_batch::{
            BatchLookup,
            BatchSize, //
        },
        run::Run,
        sort::sort_and_join,
        stripes::STRIPES, //
    },
    sys::{
        log::err,
        noio::NoIo,
        time::now_ms, //
    },
    targets::snapshot::{
        store::RecordRange,
        work_id,
        MergeTarget, //
    }, //
};
use kernel::{
    sync::Arc,
    workqueue::WorkItem, //
};

/// The state that only the work item uses.
pub(super) struct Merger {
    /// Adapts the size of batches to the time that they take.
    batch_size: BatchSize,
    /// When the batch was begun, in milliseconds.
    batch_began_ms: u64,
    /// The records of the batch.
    records: RecordRange,
    /// For each stripe the barrier of its drain, until it has drained.
    barriers: [Option<u64>; STRIPES],
    /// Memory for the removal of exceptions.
    spares: SpareNodes,
}

impl Merger {
    /// Makes the state of a merge without a batch. Any context.
    pub(super) fn new() -> Self {
        Merger {
            batch_size: BatchSize::new(),
            batch_began_ms: 0,
            records: RecordRange { first: 0, end: 0 },
            barriers: [None; STRIPES],
            spares: SpareNodes::new(),
        }
    }
}

impl WorkItem<{ work_id::MERGER }> for MergeTarget {
    type Pointer = Arc<MergeTarget>;

    fn run(this: Arc<MergeTarget>) {
        let _noio = NoIo::enter();
        let mut merger = this.merger.lock();
        loop {
            let step = this.progress.lock().state.next_step();
            let goes_on = match step {
                MergeStep::Nothing => false,
                MergeStep::Read => {
                    this.read(&mut merger);
                    true
                }
                MergeStep::Preserve => this.preserve(&mut merger),
                MergeStep::Drain => this.drain(&mut merger),
                MergeStep::Copy => this.copy(),
                MergeStep::Commit => {
                    this.commit(&mut merger);
                    true
                }
                MergeStep::Restore => {
                    this.restore();
                    true
                }
                MergeStep::Release(fate) => {
                    if !this.release(&mut merger, fate) {
                        // Memory is short: the worker of the group wakes the merge after a while.
                        this.snapshot.group.wake_later();
                        break;
                    }
                    true
                }
            };
            this.report_rest();
            if !goes_on {
                break;
            }
        }
    }
}

impl MergeTarget {
    /// Reads the records of the next batch.
    fn read(&self, merger: &mut Merger) {
        let (snapshot, store) = (&self.snapshot, self.snapshot.store());
        merger.batch_began_ms = now_ms();
        let most = merger.batch_size.chunks(store.chunk_size().bytes());
        let mut runs = core::mem::take(&mut self.progress.lock().batch);
        runs.clear();
        let records = store.prepare_merge_batch(
            (&snapshot.cow, &snapshot.origin),
            &snapshot.io,
            most,
            &mut runs,
        );
        let result = records.map_err(drop).map(|records| {
            merger.records = records;
            merger.records.first != merger.records.end
        });
        if result.is_err() {
            err!(
                "snapshots",
                "Read error in exception store: shutting down merge"
            );
        }
        sort_and_join(&mut runs);
        let mut progress = self.progress.lock();
        progress.batch = runs;
        progress.next = 0;
        progress.state.batch_read(result);
    }

    /// Preserves in other snapshots what the batch will overwrite, and then makes writes to the
    /// batch wait. Returns false if exceptions of other snapshots are pending.
    fn preserve(&self, merger: &mut Merger) -> bool {
        let snapshot = &self.snapshot;
        let mut first = self.progress.lock().next;
        let extent = |number| {
            let run = self.batch_run(number)?;
            Some((
                snapshot.store().chunk_size().start(run.old)?,
                snapshot.copy_len(run),
            ))
        };
        let is_preserved = snapshot.group.preserve_for_merge(extent, &mut first);
        let mut progress = self.progress.lock();
        progress.next = first;
        if !is_preserved || !progress.state.batch_preserved() {
            // The merge may have been stopped meanwhile: then another step is due.
            return progress.state.next_step() != MergeStep::Preserve;
        }
        progress.closed = true;
        progress.next = 0;
        drop(progress);
        self.start_drains(merger);
        true
    }

    /// Starts to drain the stripes of the batch.
    fn start_drains(&self, merger: &mut Merger) {
        let store = self.snapshot.store();
        let mut number = 0usize;
        while let Some(mut run) = self.batch_run(number) {
            while run.len != 0 {
                let (index, left) = store.stripe_of(run.old);
                if let Some(barrier @ None) = merger.barriers.get_mut(index) {
                    *barrier = store.start_drain(index);
                }
                run = run.without_first(left.min(run.len));
            }
            number = number.wrapping_add(1);
        }
    }

    /// Waits for the tracked writes from before the batch was closed. Returns false if some are in
    /// flight.
    fn drain(&self, merger: &mut Merger) -> bool {
        let store = self.snapshot.store();
        let mut drained = true;
        for (index, barrier) in merger.barriers.iter_mut().enumerate() {
            *barrier = barrier.filter(|barrier| !store.try_finish_drain(index, *barrier));
            drained &= barrier.is_none();
        }
        let mut progress = self.progress.lock();
        if drained {
            progress.state.batch_drained();
        }
        progress.state.next_step() != MergeStep::Drain
    }

    /// Returns an exception of the batch.
    fn batch_run(&self, number: usize) -> Option<Run> {
        self.progress.lock().batch.get(number).copied()
    }

    /// Starts the copies of the batch. Returns false if memory is short: the end of another copy
    /// wakes the merge.
    fn copy(self: &Arc<Self>) -> bool {
        let snapshot = &self.snapshot;
        loop {
            let next = self.progress.lock().next;
            let Some(run) = self.batch_run(next) else {
                self.progress.lock().state.all_copies_started();
                return true;
            };
            let len = snapshot.copy_len(run);
            let size = snapshot.store().chunk_size();
            let sectors = size.cow_start(run.new).zip(size.start(run.old));
            if let Some((from, to)) = sectors.filter(|_| !len.is_zero()) {
                let Some(job) = snapshot.group.new_merge_copy(self, (from, to), len) else {
                    return false;
                };
                if !self.progress.lock().state.start_copy() {
                    return true;
                }
                snapshot.copies.start(job, snapshot.group.io_queue());
            }
            self.progress.lock().next = next.wrapping_add(1);
        }
    }

    /// Flushes the origin, then zeroes the records.
    fn commit(&self, merger: &mut Merger) {
        let snapshot = &self.snapshot;
        let in_doubt = self.progress.lock().in_doubt;
        let records = if snapshot.origin.flush().is_err() {
            err!("snapshots", "Flush after merge failed: shutting down merge");
            if in_doubt {
                CommitResult::InDoubt
            } else {
                CommitResult::Kept
            }
        } else {
            let result = snapshot
                .store()
                .commit_merge_batch(snapshot, &merger.records);
            if result != CommitResult::Cleared {
                err!(
                    "snapshots",
                    "Write error in exception store: shutting down merge"
                );
            }
            result
        };
        self.progress.lock().state.batch_committed(records);
    }

    /// Ends the batch, and sends the waiting writes to where it is: to the origin if it was merged,
    /// else to the COW device. While its records are in doubt they fail. Returns false if memory is
    /// short: the caller tries again later.
    fn release(&self, merger: &mut Merger, fate: BatchResult) -> bool {
        let (snapshot, store) = (&self.snapshot, self.snapshot.store());
        for (index, barrier) in merger.barriers.iter_mut().enumerate() {
            if barrier.take().is_some() {
                store.cancel_drain(index);
            }
        }
        if fate == BatchResult::Merged {
            let mut number = 0usize;
            while let Some(run) = self.batch_run(number) {
                if !store.remove_merged(run, &mut merger.spares) {
                    return false;
                }
                number = number.wrapping_add(1);
            }
            merger
                .batch_size
                .adjust(now_ms().saturating_sub(merger.batch_began_ms));
        }
        let mut progress = self.progress.lock();
        progress.in_doubt = fate == BatchResult::InDoubt;
        progress.closed = progress.in_doubt;
        let mut waiting = progress.waiting.take();
        progress.state.batch_released();
        drop(progress);
        if fate == BatchResult::Merged {
            self.origin_target.defer(waiting);
            return true;
        }
        while let Some(mut bio) = waiting.pop() {
            if fate == BatchResult::InDoubt {
                bio.end(BlkStatus::IO_ERROR);
                continue;
            }
            let at = snapshot.origin_sector(bio.sector());
            let in_batch = |_, most| BatchLookup::Outside(most);
            match store.find_for_merge_write(store.chunk_size().chunk(at), 1, in_batch) {
                Some((Lookup::Mapped(new, _), per_bio)) => {
                    bio.set_per_bio(per_bio);
                    bio.set_sector(snapshot.cow_sector(new, at));
                    bio.submit(&snapshot.cow);
                }
                // Not reached: the exceptions of a closed batch are in the table.
                Some((Lookup::Hole(_), _)) | None => bio.end(BlkStatus::IO_ERROR),
            }
        }
        true
    }

    /// Writes records back that are in doubt, since a write to them waits.
    fn restore(&self) {
        let snapshot = &self.snapshot;
        let ok = snapshot
            .store()
            .restore_records(&snapshot.cow, &snapshot.io)
            .is_ok();
        self.progress.lock().state.records_restored(ok);
    }

    /// Wakes [`MergeTarget::halt`] if the merge is at rest, and raises a dm event when it has
    /// finished or failed.
    fn report_rest(&self) {
        let mut progress = self.progress.lock();
        if !progress.state.is_idle() {
            return;
        }
        let ended = progress.state.has_failed() || progress.state.is_finished();
        let event_raised = core::mem::replace(&mut progress.event_raised, ended);
        drop(progress);
        self.rest_wait.wake_all();
        if ended && !event_raised {
            self.snapshot.handle.raise_event();
        }
    }
}
