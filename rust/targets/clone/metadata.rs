// SPDX-License-Identifier: GPL-2.0

//! Which regions are hydrated: in core to route bios, on disk for the next activation.
//!
//! There is one [`Metadata`] per metadata device, shared by all tables that name it: see
//! `shared_metadata.rs`.
//!
//! # Order of writes
//!
//! A region is marked on disk only after its data is durable on the destination:
//!
//! ```text
//!   begin_commit      flush of the destination     words, space map    superblock
//!   (takes the log) > (makes its data durable)   > (shadow blocks)   > (validates all of it)
//! ```
//!
//! Regions that are hydrated during a commit go to the other log, and to the next transaction.
//!
//! C counterpart: `drivers/md/dm-clone-metadata.c`.

mod recovery;

pub(super) use recovery::{
    log_operation_failed,
    Recovery, //
};

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

/// Everything that changes with the state of a region.
pub(super) struct RegionState {
    /// The right to change the map, with the number of hydrated regions.
    pub(super) writer: MapWriter,
    /// The regions in flight, and the changes that the disk does not know.
    pub(super) slots: RegionSlots<CloneBioQueue>,
    /// The counters of the message `statistics`.
    pub(super) statistics: Statistics,
    /// How full the metadata device was when it was opened, or after the last commit.
    usage: Option<Usage>,
}

/// What a commit did.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum CommitOutcome {
    /// There was nothing to commit: the destination was not flushed.
    Nothing,
    /// The destination was flushed, and the metadata is durable.
    Flushed,
    /// As `Flushed`, and every region is hydrated on disk.
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

/// Why a commit failed.
pub(super) struct CommitError {
    /// The error.
    pub(super) error: Error,
    /// The new mode, if this failure changed it.
    pub(super) degraded: Option<Mode>,
}

/// The state of a metadata device, shared by all tables on it.
///
/// C counterpart: `struct dm_clone_metadata`.
#[pin_data]
pub(crate) struct Metadata {
    geometry: Geometry,
    map: RegionMap,
    /// Whether every region is hydrated, in core. Never cleared.
    done: Atomic<bool>,
    /// Whether reads and writes go to the destination unchanged: every region is hydrated, and the
    /// mode is not [`Mode::Fail`]. Changed with the state lock held.
    passthrough: Atomic<bool>,
    /// Whether there are changes that the disk does not know.
    dirty: Atomic<bool>,
    /// A [`Mode`], as its discriminant.
    mode: Atomic<u32>,
    /// Whether a flush of the destination failed: see [`recover`](Metadata::recover).
    flush_failed: Atomic<bool>,
    /// Whether the mode changed by a failed flush, and no one has reported it.
    unreported: Atomic<bool>,
    device: Arc<BlockDevice>,
    /// The open metadata; none if it cannot be opened. Held for all of a commit, and for what
    /// follows its failure.
    #[pin]
    disk: Mutex<Option<Disk>>,
    /// The lock of everything that changes with a region.
    #[pin]
    state: IrqLock<RegionState>,
}

impl ShareableMetadata for Metadata {
    type Params = Geometry;

    /// Opens a metadata device, or formats a blank one, and reads its bits. May sleep.
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
                    "Metadata device {} is too small to be sure: it has {} blocks, \
                     {} may be needed.",
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
    /// Returns the sizes of the target. Any context.
    pub(super) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Returns the map of hydrated regions. Any context.
    pub(super) fn map(&self) -> &RegionMap {
        &self.map
    }

    /// Returns the lock of everything that changes with a region. Any context.
    pub(super) fn state(&self) -> &IrqLock<RegionState> {
        &self.state
    }

    /// Whether every region is hydrated, in core. Any context.
    ///
    /// C counterpart: `dm_clone_is_hydration_done()`.
    #[inline]
    pub(super) fn is_hydration_done(&self) -> bool {
        self.done.load(Acquire)
    }

    /// Whether reads and writes go to the destination unchanged. Any context.
    #[inline]
    pub(super) fn is_passthrough(&self) -> bool {
        self.passthrough.load(Acquire)
    }

    /// Whether a flush must commit first. Any context.
    ///
    /// C counterpart: `dm_clone_changed_this_transaction()`.
    #[inline]
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty.load(Acquire)
    }

    /// Returns the current mode. Any context.
    #[inline]
    pub(super) fn mode(&self) -> Mode {
        match self.mode.load(Relaxed) {
            0 => Mode::ReadWrite,
            1 => Mode::ReadOnly,
            _ => Mode::Fail,
        }
    }

    /// Marks regions whose data is on the destination, or was discarded. Each range needs a
    /// reservation in the log.
    ///
    /// Called with the state lock held. Readers of the map see the change after the data was
    /// written.
    pub(super) fn mark_hydrated(&self, state: &mut RegionState, range: RegionRange) {
        // First: whoever sees the new bits of the map also sees that a commit is due.
        self.dirty.store(true, Release);
        let recorded = state.slots.logs.record(range);
        // The reservation guarantees room. Without it, the region would not reach the disk.
        kernel::warn_on!(!recorded);
        self.map.insert(&mut state.writer, range);
        if state.writer.set() == self.geometry.regions() {
            self.done.store(true, Release);
            self.passthrough.store(self.mode() != Mode::Fail, Release);
        }
    }

    /// Returns the number of hydrated regions, and of regions in flight. Any context.
    pub(super) fn progress(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.writer.set(), state.slots.inflight.regions())
    }

    /// Returns what was done since the metadata was opened. Any context.
    pub(super) fn statistics(&self) -> Statistics {
        self.state.lock().statistics
    }

    /// Returns how full the metadata device is, if that is known. Any context.
    pub(super) fn usage(&self) -> Option<Usage> {
        self.state.lock().usage
    }

    /// Commits the hydrated regions; `flush` makes the destination durable in between. May sleep.
    ///
    /// C counterparts: `dm_clone_metadata_pre_commit()`, `dm_clone_metadata_commit()`.
    ///
    /// # Errors
    ///
    /// Any error of the devices. The mode changes, and messages name `name`. Regions that were not
    /// committed stay dirty, and the map still routes to the destination: acknowledged data stays
    /// readable.
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

    /// Writes a log: first flushes the data, then writes the metadata that refers to it. May sleep.
    ///
    /// Returns how full the device is after it.
    fn write(
        &self,
        disk: &mut Option<Disk>,
        log: &RangeLog,
        flush: impl FnOnce() -> Result,
    ) -> Result<Option<Usage>, (CommitStep, Error)> {
        flush().map_err(|error| (CommitStep::Flush, error))?;
        if self.flush_failed.load(Acquire) {
            // A concurrent flush may have lost the data that this one should have made durable.
            return Err((CommitStep::Flush, EIO));
        }
        let step = |error| (CommitStep::Commit, error);
        let disk = disk.as_mut().ok_or(step(EIO))?;
        disk.set_bits(log, &self.geometry)
            .and_then(|()| disk.commit(&self.geometry))
            .map_err(step)?;
        Ok(disk.usage().ok())
    }

    /// Sets the mode. Called with the state lock held.
    fn set_mode(&self, _: &RegionState, mode: Mode) {
        self.mode.store(mode as u32, Relaxed);
        self.passthrough
            .store(self.is_hydration_done() && mode != Mode::Fail, Release);
    }
}
