// SPDX-License-Identifier: GPL-2.0

//! The I/O path, from `map` to `end_io`.
//!
//! ```text
//!   map ─┬─ read or flush ───────────────────────────────────────────> origin
//!        ├─ write, all blocks marked: count in epoch ────────────────> origin ─> end_io: uncount
//!        └─ other write ─> deferred_bios ─> work item: mark, commit,
//!                                  set in-core bits, count ──────────> origin ─> end_io: uncount
//! ```
//!
//! A write is submitted to the origin only after the marks of all its blocks are durable. It is
//! counted in the epoch whose in-core writeset admitted it, so that a rollover can wait for it:
//! `rollover.rs`.
//!
//! C counterpart: `era_map()` and `process_deferred_bios()`. The C target does not count.

use super::{
    disk::{
        FreeSpace, //
        OpenMetadata,
    },
    metadata::{
        MetadataState,
        OnError, //
    },
    work_id,
    EraTarget, //
};
use crate::{
    dm::bio::{
        Bio,
        BioQueue,
        BlkStatus,
        EndBio,
        Ended,
        MapBio,
        Mapped,
        Op, //
    },
    logic::era::geometry::Blocks,
    sys::{
        epochs::Epoch,
        noio::NoIo,
        plug::plugged, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    },
    workqueue::WorkItem, //
};

/// Per-bio data: the stamp of the epoch that counts the write, or [`NOT_COUNTED`].
pub(super) type PerBioData = u32;

const NOT_COUNTED: PerBioData = 0;

/// Passes reads, flushes and writes to marked blocks on, and defers other writes.
///
/// Any context that may submit bios; takes no lock for reads and marked writes.
pub(super) fn map<'a>(
    this: ArcBorrow<'_, EraTarget>,
    mut bio: MapBio<'a, PerBioData>,
) -> Mapped<'a> {
    if bio.op() == Op::Read || bio.is_flush() {
        bio.set_per_bio(NOT_COUNTED);
        return bio.remap(&this.origin);
    }
    let blocks = this.geometry.touched(bio.sector(), bio.sectors());
    let epoch = this.epochs.enter();
    if epoch.of(&this.writesets).contains(blocks) {
        bio.set_per_bio(epoch.to_stamp());
        return bio.remap(&this.origin);
    }
    this.epochs.leave(epoch);
    bio.set_per_bio(NOT_COUNTED);
    if bio.is_nowait() {
        return bio.end(BlkStatus::AGAIN);
    }
    let (bio, mapped) = bio.take();
    this.deferred_bios.lock().push(bio);
    this.queue
        .enqueue::<EraTarget, { work_id::PROCESS_DEFERRED }>(this.into());
    mapped
}

/// Marks the blocks of deferred writes and submits the writes.
impl WorkItem<{ work_id::PROCESS_DEFERRED }> for EraTarget {
    type Pointer = Arc<EraTarget>;

    fn run(this: Arc<EraTarget>) {
        let _noio = NoIo::enter();
        let (mut ready, mut refused) = this.mark_deferred_bios();
        plugged(|| {
            while let Some(bio) = ready.pop() {
                bio.submit(&this.origin);
            }
        });
        refused.end_all(BlkStatus::IO_ERROR);
        this.resume_digestion();
    }
}

/// Removes a completed write from the count of its epoch. Any context.
pub(super) fn end_io<'a>(this: ArcBorrow<'_, EraTarget>, bio: EndBio<'a, PerBioData>) -> Ended<'a> {
    if let Some(epoch) = Epoch::from_stamp(bio.per_bio()) {
        this.epochs.leave(epoch);
    }
    bio.done()
}

impl EraTarget {
    /// The blocks that a write touches.
    fn blocks_touched(&self, bio: &Bio<PerBioData>) -> Blocks {
        self.geometry.touched(bio.sector(), bio.sectors())
    }

    /// Marks the blocks of all deferred writes with one commit. Writes that are deferred meanwhile
    /// form the next batch.
    ///
    /// Returns the writes whose marks are durable, counted in the current epoch, and the writes
    /// whose blocks could not be marked. May sleep.
    fn mark_deferred_bios(self: &Arc<Self>) -> (BioQueue<PerBioData>, BioQueue<PerBioData>) {
        let (mut ready, mut refused) = (BioQueue::new(), BioQueue::new());
        let mut marked = BioQueue::new();
        let mut state = self.metadata.lock();
        // The batch is taken only now, with the lock held: until then `has_deferred` makes a
        // digestion under way release the lock.
        let mut batch = self.deferred_bios.lock().take();
        if batch.is_empty() {
            return (ready, refused);
        }
        let failed = state.is_failed();
        let result = self.run_step(&mut state, OnError::FailMetadata, |md| {
            // `run_step` may call this twice: start over with all bios.
            batch.append(&mut marked);
            batch.append(&mut refused);
            while let Some(bio) = batch.pop() {
                match md.mark(self.blocks_touched(&bio)) {
                    Ok(FreeSpace::Enough) => marked.push(bio),
                    Ok(FreeSpace::Short) => refused.push(bio),
                    Err(error) => {
                        refused.push(bio);
                        return Err(error);
                    }
                }
            }
            // After a failure only a successful commit shows that the metadata works again.
            if md.is_dirty() || failed {
                md.commit()?;
            }
            Ok(())
        });
        if result.is_err() {
            // The failed transaction may not be on disk, but earlier ones may hold all marks of
            // some of the writes.
            batch.append(&mut marked);
            batch.append(&mut refused);
            while let Some(bio) = batch.pop() {
                if self.is_marked_durably(&mut state, self.blocks_touched(&bio)) {
                    marked.push(bio);
                } else {
                    refused.push(bio);
                }
            }
        }
        while let Some(bio) = marked.pop() {
            let blocks = self.blocks_touched(&bio);
            ready.push(self.admit(bio, blocks));
        }
        (ready, refused)
    }

    /// Whether all blocks of a range are marked in the last commit.
    fn is_marked_durably(&self, state: &mut MetadataState, blocks: Blocks) -> bool {
        let on_disk =
            |md: &mut OpenMetadata| -> Result<bool> { Ok(!md.is_dirty() && md.is_marked(blocks)?) };
        self.epochs.current().of(&self.writesets).contains(blocks)
            || state.open().is_some_and(|md| on_disk(md).unwrap_or(false))
    }

    /// Counts a write whose marks are durable in the current epoch, and sets its in-core bits.
    ///
    /// Called with `Metadata::state` locked, which keeps the current epoch from changing.
    fn admit(&self, mut bio: Bio<PerBioData>, blocks: Blocks) -> Bio<PerBioData> {
        let epoch = self.epochs.enter();
        epoch.of(&self.writesets).insert(blocks);
        bio.set_per_bio(epoch.to_stamp());
        bio
    }

    /// Whether writes are deferred. Any context.
    pub(super) fn has_deferred(&self) -> bool {
        !self.deferred_bios.lock().is_empty()
    }
}
