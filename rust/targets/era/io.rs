// SPDX-License-Identifier: GPL-2.0

//! The way of a bio.
//!
//! ```text
//!   map ─┬─ read, flush ────────────────────────────────────────────────> origin
//!        ├─ write, all blocks marked: counted in its epoch ─────────────> origin ─> end_io: counted out
//!        └─ write, a block not marked ─> list ─> worker: mark, commit, ─> origin ─> end_io: counted out
//!                                                set bits, count
//! ```
//!
//! A write is counted in the epoch whose bits let it pass. See `rollover.rs` for what that is good
//! for.

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

/// What is kept with a bio: the stamp of the epoch that counts it, or zero.
pub(super) type PerBioData = u32;

/// Counted nowhere.
const NOT_COUNTED: PerBioData = 0;

/// Decides on a bio.
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

/// A bio has ended.
pub(super) fn end_io<'a>(this: ArcBorrow<'_, EraTarget>, bio: EndBio<'a, PerBioData>) -> Ended<'a> {
    if let Some(epoch) = Epoch::from_stamp(bio.per_bio()) {
        this.epochs.leave(epoch);
    }
    bio.done()
}

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

impl EraTarget {
    fn blocks_touched(&self, bio: &Bio<PerBioData>) -> Blocks {
        self.geometry.touched(bio.sector(), bio.sectors())
    }

    /// Marks the blocks of all writes that wait, durably, with one commit; those that come
    /// meanwhile are the next batch. Returns those that may go on, counted, and those whose blocks
    /// could not be marked. Sleeps for I/O.
    fn mark_deferred_bios(self: &Arc<Self>) -> (BioQueue<PerBioData>, BioQueue<PerBioData>) {
        let (mut ready, mut refused) = (BioQueue::new(), BioQueue::new());
        let mut marked = BioQueue::new();
        let mut state = self.metadata.lock();
        // Under the lock: until then whoever has it sees that they wait.
        let mut batch = self.deferred_bios.lock().take();
        if batch.is_empty() {
            return (ready, refused);
        }
        let failed = state.is_failed();
        let result = self.run_step(&mut state, OnError::FailMetadata, |md| {
            // Those of a try before.
            batch.append(&mut marked);
            batch.append(&mut refused);
            while let Some(bio) = batch.pop() {
                let room = md.mark(self.blocks_touched(&bio));
                match room {
                    Ok(FreeSpace::Enough) => marked.push(bio),
                    Ok(FreeSpace::Short) | Err(_) => refused.push(bio),
                }
                let _: FreeSpace = room?;
            }
            // After a failure only a commit shows that it works again.
            if md.is_dirty() || failed {
                md.commit()?;
            }
            Ok(())
        });
        if result.is_err() {
            // Of this transaction nothing may be on disk, but some were marked before it.
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

    /// Whether blocks are marked, and durably so.
    fn is_marked_durably(&self, state: &mut MetadataState, blocks: Blocks) -> bool {
        let known =
            |md: &mut OpenMetadata| -> Result<bool> { Ok(!md.is_dirty() && md.is_marked(blocks)?) };
        self.epochs.current().of(&self.writesets).contains(blocks)
            || state.open().is_some_and(|md| known(md).unwrap_or(false))
    }

    /// Lets a write go on whose blocks are marked on md. Under the metadata lock, so the epoch
    /// does not change.
    fn admit(&self, mut bio: Bio<PerBioData>, blocks: Blocks) -> Bio<PerBioData> {
        let epoch = self.epochs.enter();
        epoch.of(&self.writesets).insert(blocks);
        bio.set_per_bio(epoch.to_stamp());
        bio
    }

    /// Whether writes wait for their marks.
    pub(super) fn has_deferred(&self) -> bool {
        !self.deferred_bios.lock().is_empty()
    }
}
