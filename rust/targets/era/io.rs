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
        Disk,
        Room, //
    },
    metadata::{
        Core,
        Weight, //
    },
    Era, //
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
pub(super) type Stamp = u32;

/// Counted nowhere.
const UNCOUNTED: Stamp = 0;

/// Decides on a bio.
pub(super) fn map<'a>(this: ArcBorrow<'_, Era>, mut bio: MapBio<'a, Stamp>) -> Mapped<'a> {
    if bio.op() == Op::Read || bio.is_flush() {
        bio.set_per_bio(UNCOUNTED);
        return bio.remap(&this.origin);
    }
    let blocks = this.geometry.touched(bio.sector(), bio.sectors());
    let epoch = this.epochs.enter();
    if epoch.of(&this.marks).contains(blocks) {
        bio.set_per_bio(epoch.to_stamp());
        return bio.remap(&this.origin);
    }
    this.epochs.leave(epoch);
    bio.set_per_bio(UNCOUNTED);
    if bio.is_nowait() {
        return bio.end(BlkStatus::AGAIN);
    }
    let (bio, mapped) = bio.take();
    this.deferred.lock().push(bio);
    this.queue.enqueue::<Era, { Writer::ID }>(this.into());
    mapped
}

/// A bio has ended.
pub(super) fn end_io<'a>(this: ArcBorrow<'_, Era>, bio: EndBio<'a, Stamp>) -> Ended<'a> {
    if let Some(epoch) = Epoch::from_stamp(bio.per_bio()) {
        this.epochs.leave(epoch);
    }
    bio.done()
}

/// Marks the blocks of the writes that wait, and lets them go on.
pub(super) struct Writer;

impl Writer {
    pub(super) const ID: u64 = 1;
}

impl WorkItem<1> for Era {
    type Pointer = Arc<Era>;

    fn run(this: Arc<Era>) {
        let _noio = NoIo::enter();
        let (mut ready, mut refused) = this.mark();
        plugged(|| {
            while let Some(bio) = ready.pop() {
                bio.submit(&this.origin);
            }
        });
        refused.end_all(BlkStatus::IO_ERROR);
        this.resume_digestion();
    }
}

impl Era {
    fn blocks_of(&self, bio: &Bio<Stamp>) -> Blocks {
        self.geometry.touched(bio.sector(), bio.sectors())
    }

    /// Marks the blocks of all writes that wait, durably, with one commit; those that come
    /// meanwhile are the next batch. Returns those that may go on, counted, and those whose blocks
    /// could not be marked. Sleeps for I/O.
    fn mark(self: &Arc<Self>) -> (BioQueue<Stamp>, BioQueue<Stamp>) {
        let (mut ready, mut refused) = (BioQueue::new(), BioQueue::new());
        let mut marked = BioQueue::new();
        let mut core = self.metadata.lock();
        // Under the lock: until then whoever has it sees that they wait.
        let mut batch = self.deferred.lock().take();
        if batch.is_empty() {
            return (ready, refused);
        }
        let failed = core.is_failed();
        let result = self.attempt(&mut core, Weight::Vital, |disk| {
            // Those of a try before.
            batch.append(&mut marked);
            batch.append(&mut refused);
            while let Some(bio) = batch.pop() {
                let room = disk.mark(self.blocks_of(&bio));
                match room {
                    Ok(Room::Enough) => marked.push(bio),
                    Ok(Room::None) | Err(_) => refused.push(bio),
                }
                let _: Room = room?;
            }
            // After a failure only a commit shows that it works again.
            if disk.is_dirty() || failed {
                disk.commit()?;
            }
            Ok(())
        });
        if result.is_err() {
            // Of this transaction nothing may be on disk, but some were marked before it.
            batch.append(&mut marked);
            batch.append(&mut refused);
            while let Some(bio) = batch.pop() {
                if self.is_marked(&mut core, self.blocks_of(&bio)) {
                    marked.push(bio);
                } else {
                    refused.push(bio);
                }
            }
        }
        while let Some(bio) = marked.pop() {
            let blocks = self.blocks_of(&bio);
            ready.push(self.pass(bio, blocks));
        }
        (ready, refused)
    }

    /// Whether blocks are marked, and durably so.
    fn is_marked(&self, core: &mut Core, blocks: Blocks) -> bool {
        let known =
            |disk: &mut Disk| -> Result<bool> { Ok(!disk.is_dirty() && disk.is_marked(blocks)?) };
        self.epochs.current().of(&self.marks).contains(blocks)
            || core.disk().is_some_and(|disk| known(disk).unwrap_or(false))
    }

    /// Lets a write go on whose blocks are marked on disk. Under the metadata lock, so the epoch
    /// does not change.
    fn pass(&self, mut bio: Bio<Stamp>, blocks: Blocks) -> Bio<Stamp> {
        let epoch = self.epochs.enter();
        epoch.of(&self.marks).insert(blocks);
        bio.set_per_bio(epoch.to_stamp());
        bio
    }

    /// Whether writes wait for their marks.
    pub(super) fn has_deferred(&self) -> bool {
        !self.deferred.lock().is_empty()
    }
}
