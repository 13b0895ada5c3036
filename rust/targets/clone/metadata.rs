// SPDX-License-Identifier: GPL-2.0

//! Which regions are hydrated: in core for routing, on disk for the next time.
//!
//! There is one [`Metadata`] for a metadata device, however many tables name it: see `shared_metadata.rs`.
//!
//! # What is on disk
//!
//! A region is marked on disk only after its data was made durable on the destination:
//!
//! ```text
//!   begin_commit      flush of the destination      words, space map      superblock
//!   (log is taken) -> (the log's data is safe)   -> (shadow blocks)    -> (all of it true at once)
//! ```
//!
//! What finishes during a commit goes to the other log and so to the next transaction.
//!
//! # Locks
//!
//! `disk` (mutex) > `state` (irq spinlock). The map itself is read without a lock, and what the
//! status says of the disk is in `state`: nobody waits for `disk` who does not write to it.

use super::{
    disk::{
        log_error,
        log_invalid,
        Disk,
        OpenMode,
        Usage, //
    },
    per_bio::CloneBioQueue, //
};
use crate::{
    dm::device::{
        Device,
        TargetHandle, //
    },
    logic::{
        clone::{
            dirty::RangeLog,
            geometry::Geometry,
            map::{
                MapWriter,
                RegionMap, //
            },
            slots::RegionSlots,
            status::{
                Mode,
                Statistics, //
            },
            superblock::Invalid, //
        },
        regions::RegionRange, //
    },
    sys::{
        bdev::BlockDevice,
        irq_lock::{
            new_irq_lock,
            IrqLock, //
        },
        log::{
            err,
            warning, //
        },
        noio::NoIo, //
    },
    targets::shared_metadata::ShareableMetadata, //
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc,
        Mutex, //
    }, //
};

/// What routing decisions and their completions change.
pub(super) struct RegionState {
    /// The right to change the map, with the count of hydrated regions.
    pub(super) writer: MapWriter,
    /// The regions in flight, and what the disk does not know yet.
    pub(super) slots: RegionSlots<CloneBioQueue>,
    /// What has been done.
    pub(super) statistics: Statistics,
    /// How full the metadata device was after the last commit, or when it was opened.
    usage: Option<Usage>,
}

/// What a commit did.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum CommitOutcome {
    /// There was nothing to commit: the destination was not flushed.
    Nothing,
    /// The destination was flushed, and the metadata is durable.
    Flushed,
    /// As `Flushed`, and with it the last region is on disk.
    Complete,
}

/// A step of a commit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum CommitStep {
    /// The flush of the destination.
    Flush,
    /// Writing the metadata.
    Commit,
}

/// Why there is no commit.
pub(super) struct CommitError {
    /// The error.
    pub(super) error: Error,
    /// The new mode, if it is this failure that changed it.
    pub(super) degraded: Option<Mode>,
}

/// What became of an attempt to recover.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Recovery {
    /// It was in read-write mode.
    NotNeeded,
    /// It is in read-write mode again.
    Yes,
    /// It would be unsafe.
    No,
}

/// The shared state of a metadata device.
#[pin_data]
pub(crate) struct Metadata {
    geometry: Geometry,
    map: RegionMap,
    /// Every region is hydrated, in core. Never cleared.
    done: Atomic<bool>,
    /// It is, and the mode is not [`Mode::Fail`]. Changed under the state lock.
    passthrough: Atomic<bool>,
    /// There is something that the disk does not know.
    dirty: Atomic<bool>,
    /// A [`Mode`], as its discriminant.
    mode: Atomic<u32>,
    /// A flush of the destination failed: see [`recover`](Metadata::recover).
    flush_failed: Atomic<bool>,
    /// The mode has changed by that, and nobody has been told.
    unreported: Atomic<bool>,
    device: Arc<BlockDevice>,
    /// Held for all of a commit, and for what follows if it fails.
    #[pin]
    disk: Mutex<Option<Disk>>,
    #[pin]
    state: IrqLock<RegionState>,
}

impl ShareableMetadata for Metadata {
    type Params = Geometry;

    /// Opens a metadata device, or formats a blank one, and reads its bits.
    fn open(device: &Device, geometry: Geometry) -> Result<Arc<Self>> {
        let name = device.disk_name();
        let device = Arc::new(BlockDevice::open(device.number())?, GFP_KERNEL)?;
        let disk = Disk::open(device.clone(), &geometry, OpenMode::FormatIfBlank)?;
        let (mut map, mut writer) = RegionMap::new(geometry.regions())?;
        if !disk.fresh {
            disk.bits
                .for_each(&disk.tm, disk.root, map.words(), |index, word| {
                    map.load_word(&mut writer, index, word)
                })
                .map_err(log_error("Failed to load on-disk region map"))?;
        }
        let usage = disk.usage().ok();
        if let (Some(Usage { used, total }), Ok(margin)) = (usage, disk.margin(&geometry)) {
            let wanted = used.saturating_add(margin);
            if total < wanted {
                warning!(
                    "clone",
                    "Metadata device {} is too small to be sure: it has {} blocks, {} may be needed.",
                    name,
                    total,
                    wanted
                );
            }
        }
        let done = writer.set() == geometry.regions();
        let state = RegionState {
            writer,
            slots: RegionSlots::new()?,
            statistics: Statistics::default(),
            usage,
        };
        Arc::pin_init(
            pin_init!(Metadata {
                geometry,
                map,
                passthrough: Atomic::new(done),
                done: Atomic::new(done),
                dirty: Atomic::new(false),
                mode: Atomic::new(Mode::ReadWrite as u32),
                flush_failed: Atomic::new(false),
                unreported: Atomic::new(false),
                device,
                disk <- new_mutex!(Some(disk), "dm_clone_disk"),
                state <- new_irq_lock!(state, "dm_clone_state"),
            }),
            GFP_KERNEL,
        )
    }

    fn check_compatible(&self, geometry: Geometry) -> Result {
        if self.geometry == geometry {
            Ok(())
        } else {
            Err(log_invalid(Invalid::Geometry))
        }
    }

    fn log_busy() {
        err!(
            "clone metadata",
            "Metadata device is in use by another clone"
        );
    }
}

impl Metadata {
    /// Sizes of the target.
    pub(super) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The hydrated regions. A set bit means: the destination has the data.
    pub(super) fn map(&self) -> &RegionMap {
        &self.map
    }

    /// The lock of everything that changes with a region.
    pub(super) fn state(&self) -> &IrqLock<RegionState> {
        &self.state
    }

    /// Whether every region is hydrated: nothing is left to track. Any context.
    #[inline]
    pub(super) fn is_hydration_done(&self) -> bool {
        self.done.load(Acquire)
    }

    /// Whether reads and writes are the destination's business alone. Any context.
    #[inline]
    pub(super) fn is_passthrough(&self) -> bool {
        self.passthrough.load(Acquire)
    }

    /// Whether a flush must commit first. Any context.
    #[inline]
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty.load(Acquire)
    }

    /// The present mode. Any context.
    #[inline]
    pub(super) fn mode(&self) -> Mode {
        match self.mode.load(Relaxed) {
            0 => Mode::ReadWrite,
            1 => Mode::ReadOnly,
            _ => Mode::Fail,
        }
    }

    /// Marks regions whose data is on the destination, or not wanted any more. Each must have a
    /// reservation in the log.
    ///
    /// Under the state lock. The change is seen by readers of the map after the data was written.
    pub(super) fn mark_hydrated(&self, state: &mut RegionState, range: RegionRange) {
        // First, so that whoever sees the map's bits sees that there is something to commit.
        self.dirty.store(true, Release);
        let recorded = state.slots.logs.record(range);
        // By the reservation there is room. If not, the next clone would not know of the region.
        kernel::warn_on!(!recorded);
        self.map.insert(&mut state.writer, range);
        if state.writer.set() == self.geometry.regions() {
            self.done.store(true, Release);
            self.passthrough.store(self.mode() != Mode::Fail, Release);
        }
    }

    /// Hydrated regions, and regions being hydrated. Any context.
    pub(super) fn progress(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.writer.set(), state.slots.inflight.regions())
    }

    /// What has been done since the metadata was opened. Any context.
    pub(super) fn statistics(&self) -> Statistics {
        self.state.lock().statistics
    }

    /// How much of the metadata device is in use, as far as is known. Any context.
    pub(super) fn usage(&self) -> Option<Usage> {
        self.state.lock().usage
    }

    /// Commits what is hydrated, with `flush` making the destination durable in between. Sleeps for
    /// I/O.
    ///
    /// On failure the mode changes and messages name `name`. What was not committed stays dirty,
    /// and the map keeps it for routing: what was acknowledged stays readable.
    pub(super) fn commit(
        &self,
        name: &TargetHandle,
        flush: impl FnOnce() -> Result,
    ) -> Result<CommitOutcome, CommitError> {
        let _noio = NoIo::enter();
        let mut disk = self.disk.lock();
        let log = {
            let mut state = self.state.lock();
            if !state.slots.logs.is_dirty() {
                return Ok(CommitOutcome::Nothing);
            }
            if self.mode() != Mode::ReadWrite {
                return Err(CommitError {
                    error: EPERM,
                    degraded: None,
                });
            }
            state.slots.logs.begin_commit()
        };
        let Some(mut log) = log else {
            return Ok(CommitOutcome::Nothing);
        };
        log.normalize();
        let result = self.write(&mut disk, &log, flush);
        let complete = {
            let mut state = self.state.lock();
            state.slots.logs.end_commit(log, result.is_ok());
            if let Ok(usage) = result {
                state.usage = usage;
                state.statistics.commits = state.statistics.commits.saturating_add(1);
            }
            let dirty = state.slots.logs.is_dirty();
            self.dirty.store(dirty, Release);
            self.is_hydration_done() && !dirty
        };
        match result {
            Ok(_) if complete => Ok(CommitOutcome::Complete),
            Ok(_) => Ok(CommitOutcome::Flushed),
            Err((step, error)) => {
                let degraded = Some(self.abort(&mut disk, name, step, error));
                Err(CommitError { error, degraded })
            }
        }
    }

    /// First the data, then what says that it is there. Returns how full the device is then.
    fn write(
        &self,
        disk: &mut Option<Disk>,
        log: &RangeLog,
        flush: impl FnOnce() -> Result,
    ) -> Result<Option<Usage>, (CommitStep, Error)> {
        flush().map_err(|error| (CommitStep::Flush, error))?;
        if self.flush_failed.load(Acquire) {
            // Another flush, at the same time, may have lost what this one should have made
            // durable.
            return Err((CommitStep::Flush, EIO));
        }
        let step = |error| (CommitStep::Commit, error);
        let disk = disk.as_mut().ok_or(step(EIO))?;
        disk.set_bits(log, &self.geometry)
            .and_then(|()| disk.commit(&self.geometry))
            .map_err(step)?;
        Ok(disk.usage().ok())
    }

    /// Goes back to the last transaction on disk and writes nothing more. Sleeps for I/O.
    fn abort(
        &self,
        disk: &mut Option<Disk>,
        name: &TargetHandle,
        step: CommitStep,
        error: Error,
    ) -> Mode {
        log_operation_failed(name, step, error);
        err!("clone", "{}: Aborting current metadata transaction", name);
        if step == CommitStep::Flush {
            self.flush_failed.store(true, Relaxed);
        }
        // The mode that this ends in is what users are told of.
        self.unreported.store(false, Relaxed);
        // The old blocks must be gone before the device is read again.
        *disk = None;
        let mode = match Disk::open(self.device.clone(), &self.geometry, OpenMode::ReadOnly) {
            Ok(reopened) => {
                self.state.lock().usage = reopened.usage().ok();
                *disk = Some(reopened);
                Mode::ReadOnly
            }
            Err(_) => {
                err!("clone", "{}: Failed to abort metadata transaction", name);
                Mode::Fail
            }
        };
        self.set_mode(&self.state.lock(), mode);
        mode
    }

    /// A flush of the destination failed, and it was not one of a commit. Whether that changes the
    /// mode: it need not if no region is in flight, and none has been marked since the last commit,
    /// for then the metadata says nothing that may be lost. Who is told that it does calls
    /// [`take_flush_failure`](Self::take_flush_failure) some time. Any context.
    pub(super) fn flush_failed(&self) -> bool {
        let state = self.state.lock();
        if state.slots.inflight.is_empty() && !state.slots.logs.is_dirty() {
            return false;
        }
        self.flush_failed.store(true, Release);
        if self.mode() != Mode::ReadWrite {
            return false;
        }
        self.set_mode(&state, Mode::ReadOnly);
        self.unreported.store(true, Relaxed);
        true
    }

    /// Whether the mode has changed by [`flush_failed`](Self::flush_failed) since this was last
    /// called. Any context.
    pub(super) fn take_flush_failure(&self) -> bool {
        self.unreported.xchg(false, Relaxed)
    }

    fn set_mode(&self, _: &RegionState, mode: Mode) {
        self.mode.store(mode as u32, Relaxed);
        self.passthrough
            .store(self.is_hydration_done() && mode != Mode::Fail, Release);
    }

    /// Tries to get out of a failed state: opens the metadata again for writing. What was not
    /// committed is still known and goes with the next commit. Does nothing in read-write mode.
    /// Sleeps for I/O.
    ///
    /// After a failed flush the destination may have dropped data that it acknowledged, and a later
    /// flush may say nothing of it. Marking those regions would make the loss permanent, so the
    /// mode stays: only a new beginning, from what is on disk, is safe.
    pub(super) fn recover(&self, name: &TargetHandle) -> Result<Recovery> {
        let _noio = NoIo::enter();
        let mut disk = self.disk.lock();
        if self.mode() == Mode::ReadWrite {
            return Ok(Recovery::NotNeeded);
        }
        if self.flush_failed.load(Relaxed) {
            warning!(
                "clone",
                "{}: The destination lost data: remove and create the device",
                name
            );
            return Ok(Recovery::No);
        }
        // What there was is read-only, so it can stay until the new one is there; if that fails,
        // nothing has changed.
        let reopened = Disk::open(self.device.clone(), &self.geometry, OpenMode::ReadWrite)?;
        let usage = reopened.usage().ok();
        let mut state = self.state.lock();
        state.usage = usage;
        if self.flush_failed.load(Relaxed) {
            return Ok(Recovery::No);
        }
        self.set_mode(&state, Mode::ReadWrite);
        drop(state);
        *disk = Some(reopened);
        Ok(Recovery::Yes)
    }
}

/// Logs that a step of a commit failed.
pub(super) fn log_operation_failed(name: &TargetHandle, step: CommitStep, error: Error) {
    let what = match step {
        CommitStep::Flush => "flush destination device",
        CommitStep::Commit => "dm_clone_metadata_commit",
    };
    err!(
        "clone",
        "{}: Metadata operation `{}' failed: error = {}",
        name,
        what,
        error.to_errno()
    );
}
