// SPDX-License-Identifier: GPL-2.0

//! The steps of a merge.

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

/// What the work item has for itself.
pub(super) struct Merger {
    batch_size: BatchSize,
    /// When the batch was begun, in milliseconds.
    batch_began_ms: u64,
    records: RecordRange,
    /// What the parts of the table have to be drained of.
    barriers: [Option<u64>; STRIPES],
    spares: SpareNodes,
}

impl Merger {
    pub(super) fn new() -> Self {
        Merger {
            batch_size: BatchSize::new(),
            batch_began_ms: 0,
            records: RecordRange { from: 0, to: 0 },
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
            let task = this.progress.lock().state.next_step();
            let goes_on = match task {
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
                        // The worker calls again.
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
    /// Reads the batch.
    fn read(&self, merger: &mut Merger) {
        let (snapshot, store) = (&self.snapshot, self.snapshot.store());
        merger.batch_began_ms = now_ms();
        let most = merger.batch_size.chunks(store.chunk_size().bytes());
        let mut runs = core::mem::take(&mut self.progress.lock().batch);
        runs.clear();
        let tail = store.prepare_merge_batch((&snapshot.cow, &snapshot.origin), &snapshot.io, most, &mut runs);
        let result = tail.map_err(drop).map(|tail| {
            merger.records = tail;
            merger.records.from != merger.records.to
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

    /// Has other snapshots copy what the batch will overwrite, and closes it when all have. False
    /// if that has to wait.
    fn preserve(&self, merger: &mut Merger) -> bool {
        let snapshot = &self.snapshot;
        let mut first = self.progress.lock().next;
        let place = |number| {
            let run = self.batch_run(number)?;
            Some((
                snapshot.store().chunk_size().start(run.old)?,
                snapshot.copy_len(run),
            ))
        };
        let clear = snapshot.group.preserve_for_merge(place, &mut first);
        let mut progress = self.progress.lock();
        progress.next = first;
        if !clear || !progress.state.batch_preserved() {
            // If it was stopped meanwhile, that has to be seen.
            return progress.state.next_step() != MergeStep::Preserve;
        }
        progress.closed = true;
        progress.next = 0;
        drop(progress);
        self.start_drains(merger);
        true
    }

    /// Takes note of the writes that came before the batch was closed.
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
            number = number.saturating_add(1);
        }
    }

    /// Waits for the writes that came before the batch was closed. False if there are some.
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

    fn batch_run(&self, number: usize) -> Option<Run> {
        self.progress.lock().batch.get(number).copied()
    }

    /// Starts copies. False if memory for more has to be waited for.
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
            let places = size.cow_start(run.new).zip(size.start(run.old));
            if let Some((from, to)) = places.filter(|_| !len.is_zero()) {
                let Some(job) = snapshot.group.new_merge_copy(self, (from, to), len) else {
                    return false;
                };
                if !self.progress.lock().state.start_copy() {
                    return true;
                }
                snapshot.copies.start(job, snapshot.group.io_queue());
            }
            self.progress.lock().next = next.saturating_add(1);
        }
    }

    /// Flushes the origin, then clears the records.
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
            let result = snapshot.store().commit_merge_batch(snapshot, &merger.records);
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

    /// Lets what waits go on: to the origin, to the COW device, or nowhere. False if memory is
    /// short: then try again.
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
                number = number.saturating_add(1);
            }
            merger.batch_size.adjust(now_ms().saturating_sub(merger.batch_began_ms));
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
            let open = |_, most| BatchLookup::Outside(most);
            match store.find_for_merge_write(store.chunk_size().chunk(at), 1, open) {
                Some((Lookup::Mapped(new, _), per_bio)) => {
                    bio.set_per_bio(per_bio);
                    bio.set_sector(snapshot.cow_sector(new, at));
                    bio.submit(&snapshot.cow);
                }
                // It was closed, so it is in the table.
                Some((Lookup::Hole(_), _)) | None => bio.end(BlkStatus::IO_ERROR),
            }
        }
        true
    }

    /// Writes the records back, for a write that waits.
    fn restore(&self) {
        let snapshot = &self.snapshot;
        let ok = snapshot.store().restore_records(&snapshot.cow, &snapshot.io).is_ok();
        self.progress.lock().state.records_restored(ok);
    }

    /// Tells those who wait that it rests, and users if that is the end.
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
