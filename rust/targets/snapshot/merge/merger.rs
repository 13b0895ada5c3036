// SPDX-License-Identifier: GPL-2.0

//! The steps of a merge.

use crate::{
    dm::bio::BlkStatus,
    logic::snapshot::{
        exception_table::SpareNodes,
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
        work_id,
        MergeTarget, //
    }, //
};
use kernel::{
    sync::Arc,
    workqueue::WorkItem, //
};

/// What the work item has for itself.
pub(super) struct Own {
    batch_size: BatchSize,
    /// When the batch was begun, in milliseconds.
    since: Millis,
    tail: Tail,
    /// What the parts of the table have to be drained of.
    barriers: [Option<u64>; STRIPES],
    spares: SpareNodes,
}

impl Own {
    pub(super) fn new() -> Self {
        Own {
            batch_size: BatchSize::new(),
            since: Millis(0),
            tail: Tail { from: 0, to: 0 },
            barriers: [None; STRIPES],
            spares: SpareNodes::new(),
        }
    }
}

impl WorkItem<{ work_id::MERGER }> for MergeTarget {
    type Pointer = Arc<MergeTarget>;

    fn run(this: Arc<MergeTarget>) {
        let _noio = NoIo::enter();
        let mut own = this.own.lock();
        loop {
            let task = this.progress.lock().machine.next_step();
            let goes_on = match task {
                MergeStep::Nothing => false,
                MergeStep::Read => {
                    this.read(&mut own);
                    true
                }
                MergeStep::Preserve => this.guard(&mut own),
                MergeStep::Drain => this.drain(&mut own),
                MergeStep::Copy => this.copy(),
                MergeStep::Commit => {
                    this.commit(&mut own);
                    true
                }
                MergeStep::Restore => {
                    this.restore();
                    true
                }
                MergeStep::Release(fate) => {
                    if !this.let_go(&mut own, fate) {
                        // The worker calls again.
                        this.table.group.wake_later();
                        break;
                    }
                    true
                }
            };
            this.tell();
            if !goes_on {
                break;
            }
        }
    }
}

impl MergeTarget {
    /// Reads the batch.
    fn read(&self, own: &mut Own) {
        let (table, store) = (&self.table, self.table.store());
        own.since = now();
        let most = own.batch_size.chunks(store.chunk_size().bytes());
        let mut runs = core::mem::take(&mut self.progress.lock().runs);
        runs.clear();
        let tail = store.tail((&table.cow, &table.origin), &table.io, most, &mut runs);
        let result = tail.map_err(drop).map(|tail| {
            own.tail = tail;
            own.tail.from != own.tail.to
        });
        if result.is_err() {
            err!(
                "snapshots",
                "Read error in exception store: shutting down merge"
            );
        }
        sort_and_join(&mut runs);
        let mut progress = self.progress.lock();
        progress.runs = runs;
        progress.next = 0;
        progress.machine.batch_read(result);
    }

    /// Has other snapshots copy what the batch will overwrite, and closes it when all have. False
    /// if that has to wait.
    fn guard(&self, own: &mut Own) -> bool {
        let table = &self.table;
        let mut first = self.progress.lock().next;
        let place = |number| {
            let run = self.run(number)?;
            Some((
                table.store().chunk_size().start(run.old)?,
                table.copy_len(run),
            ))
        };
        let clear = table.group.preserve_for_merge(place, &mut first);
        let mut progress = self.progress.lock();
        progress.next = first;
        if !clear || !progress.machine.batch_preserved() {
            // If it was stopped meanwhile, that has to be seen.
            return progress.machine.next_step() != MergeStep::Preserve;
        }
        progress.closed = true;
        progress.next = 0;
        drop(progress);
        self.bar(own);
        true
    }

    /// Takes note of the writes that came before the batch was closed.
    fn bar(&self, own: &mut Own) {
        let store = self.table.store();
        let mut number = 0usize;
        while let Some(mut run) = self.run(number) {
            while run.len != 0 {
                let (index, left) = store.stripe(run.old);
                if let Some(barrier @ None) = own.barriers.get_mut(index) {
                    *barrier = store.bar(index);
                }
                run = run.without_first(left.min(run.len));
            }
            number = number.saturating_add(1);
        }
    }

    /// Waits for the writes that came before the batch was closed. False if there are some.
    fn drain(&self, own: &mut Own) -> bool {
        let store = self.table.store();
        let mut drained = true;
        for (index, barrier) in own.barriers.iter_mut().enumerate() {
            *barrier = barrier.filter(|barrier| !store.has_drained(index, *barrier));
            drained &= barrier.is_none();
        }
        let mut progress = self.progress.lock();
        if drained {
            progress.machine.batch_drained();
        }
        progress.machine.next_step() != MergeStep::Drain
    }

    fn run(&self, number: usize) -> Option<Run> {
        self.progress.lock().runs.get(number).copied()
    }

    /// Starts copies. False if memory for more has to be waited for.
    fn copy(self: &Arc<Self>) -> bool {
        let table = &self.table;
        loop {
            let next = self.progress.lock().next;
            let Some(run) = self.run(next) else {
                self.progress.lock().machine.all_copies_started();
                return true;
            };
            let len = table.copy_len(run);
            let size = table.store().chunk_size();
            let places = size.cow_start(run.new).zip(size.start(run.old));
            if let Some((from, to)) = places.filter(|_| !len.is_zero()) {
                let Some(job) = table.group.new_merge_copy(self, (from, to), len) else {
                    return false;
                };
                if !self.progress.lock().machine.start_copy() {
                    return true;
                }
                table.copies.start(job, table.group.io_queue());
            }
            self.progress.lock().next = next.saturating_add(1);
        }
    }

    /// Flushes the origin, then clears the records.
    fn commit(&self, own: &mut Own) {
        let table = &self.table;
        let in_doubt = self.progress.lock().in_doubt;
        let records = if table.origin.flush().is_err() {
            err!("snapshots", "Flush after merge failed: shutting down merge");
            if in_doubt {
                CommitResult::InDoubt
            } else {
                CommitResult::Kept
            }
        } else {
            let result = table.store().shorten(table, &own.tail);
            if result != CommitResult::Cleared {
                err!(
                    "snapshots",
                    "Write error in exception store: shutting down merge"
                );
            }
            result
        };
        self.progress.lock().machine.batch_committed(records);
    }

    /// Lets what waits go on: to the origin, to the COW device, or nowhere. False if memory is
    /// short: then try again.
    fn let_go(&self, own: &mut Own, fate: BatchResult) -> bool {
        let (table, store) = (&self.table, self.table.store());
        for (index, barrier) in own.barriers.iter_mut().enumerate() {
            if barrier.take().is_some() {
                store.unbar(index);
            }
        }
        if fate == BatchResult::Merged {
            let mut number = 0usize;
            while let Some(run) = self.run(number) {
                if !store.remove(run, &mut own.spares) {
                    return false;
                }
                number = number.saturating_add(1);
            }
            own.batch_size.adjust(now().0.saturating_sub(own.since.0));
        }
        let mut progress = self.progress.lock();
        progress.in_doubt = fate == BatchResult::InDoubt;
        progress.closed = progress.in_doubt;
        let mut waiting = progress.waiting.take();
        progress.machine.batch_released();
        drop(progress);
        if fate == BatchResult::Merged {
            self.front.defer(waiting);
            return true;
        }
        while let Some(mut bio) = waiting.pop() {
            if fate == BatchResult::InDoubt {
                bio.end(BlkStatus::IO_ERROR);
                continue;
            }
            let at = table.origin_sector(bio.sector());
            let open = |_, most| BatchLookup::Outside(most);
            match store.find_open(store.chunk_size().chunk(at), 1, open) {
                Place::Open(builder, _, per_bio) => {
                    bio.set_per_bio(per_bio);
                    bio.set_sector(table.cow_sector(builder, at));
                    bio.submit(&table.cow);
                }
                // It was closed, so it is in the table.
                Place::Closed | Place::Merged(_) => bio.end(BlkStatus::IO_ERROR),
            }
        }
        true
    }

    /// Writes the records back, for a write that waits.
    fn restore(&self) {
        let table = &self.table;
        let ok = table.store().restore(&table.cow, &table.io).is_ok();
        self.progress.lock().machine.records_restored(ok);
    }

    /// Tells those who wait that it rests, and users if that is the end.
    fn tell(&self) {
        let mut progress = self.progress.lock();
        if !progress.machine.is_idle() {
            return;
        }
        let ended = progress.machine.has_failed() || progress.machine.is_finished();
        let told = core::mem::replace(&mut progress.told, ended);
        drop(progress);
        self.rest.wake_all();
        if ended && !told {
            self.table.handle.raise_event();
        }
    }
}
