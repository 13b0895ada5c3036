// SPDX-License-Identifier: GPL-2.0

//! The metadata that all tables of an era device share, and the recovery when a step fails.
//!
//! C counterpart: `struct era_metadata`, which each table of the C target opens for itself.

use super::disk::{
    device_blocks,
    log_invalid,
    log_step,
    OpenMetadata, //
};
use crate::{
    dm::device::{
        Device,
        TableId, //
    },
    env::eilseq,
    logic::era::{
        era_nr::EraNr,
        geometry::BlockSize,
        status::MetadataStats,
        superblock::Invalid, //
    },
    sys::{
        bdev::BlockDevice,
        log::err, //
    },
    targets::shared_metadata::ShareableMetadata, //
};
use kernel::{
    new_mutex,
    new_spinlock,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex,
        MutexGuard,
        SpinLock, //
    }, //
};

/// What the failure of a step means for the device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum OnError {
    /// Writes to unmarked blocks cannot be marked any more: the metadata has failed.
    FailMetadata,
    /// Only the step itself has failed.
    KeepWorking,
}

/// The mutable state of the metadata.
pub(super) struct MetadataState {
    /// `None` while the metadata is blank, closed, or cannot be opened.
    open: Option<OpenMetadata>,
    /// A step has failed, its second try included, and none has succeeded since.
    failed: bool,
    /// The live table. If the resume of a table fails after this target was resumed, another table
    /// replaces it without a suspend, and the target learns here that it is not live any more.
    live: Option<TableId>,
}

impl MetadataState {
    /// The open metadata.
    pub(super) fn open(&mut self) -> Option<&mut OpenMetadata> {
        self.open.as_mut()
    }

    /// The current era of the open metadata.
    pub(super) fn era(&self) -> EraNr {
        self.open.as_ref().map_or(EraNr::NONE, |md| md.era())
    }

    /// Closes the metadata; the next step opens it again.
    pub(super) fn close(&mut self) {
        self.open = None;
    }

    /// The live table, or the last one that was live.
    pub(super) fn live(&self) -> Option<TableId> {
        self.live
    }

    /// Makes a table the live one.
    pub(super) fn set_live(&mut self, table: TableId) {
        self.live = Some(table);
    }

    /// Whether the metadata has failed.
    pub(super) fn is_failed(&self) -> bool {
        self.failed
    }
}

/// The shared metadata of a device.
#[pin_data]
pub(crate) struct Metadata {
    device: Arc<BlockDevice>,
    size: BlockSize,
    /// Set once the device was seen to have metadata: then it is never formatted again.
    formatted: Atomic<bool>,
    #[pin]
    state: Mutex<MetadataState>,
    /// What the status line shows; `None` if the metadata has failed.
    #[pin]
    stats: SpinLock<Option<MetadataStats>>,
}

impl ShareableMetadata for Metadata {
    type Params = BlockSize;

    /// Verifies the metadata of a new table.
    ///
    /// Keeps only what the status line shows, since the table may go live much later, and writes
    /// nothing, since it may never go live.
    fn open(device: &Device, size: BlockSize) -> Result<Arc<Self>> {
        let device = Arc::new(BlockDevice::open(device.number())?, GFP_KERNEL)?;
        let found = OpenMetadata::probe(&device, size)?;
        let formatted = found.is_some();
        let stats = found.unwrap_or_else(|| MetadataStats {
            used: 0,
            total: device_blocks(&device),
            era: EraNr::NONE,
            metadata_snap: 0,
        });
        let state = MetadataState {
            open: None,
            failed: false,
            live: None,
        };
        Arc::pin_init(
            pin_init!(Metadata {
                device,
                size,
                formatted: Atomic::new(formatted),
                state <- new_mutex!(state, "dm_era_metadata"),
                stats <- new_spinlock!(Some(stats), "dm_era_stats"),
            }),
            GFP_KERNEL,
        )
    }

    fn check_compatible(&self, wanted: BlockSize) -> Result {
        if self.size == wanted {
            return Ok(());
        }
        Err(log_invalid(Invalid::BlockSize {
            found: self.size.get(),
            wanted,
        }))
    }

    fn log_busy() {
        err!("era", "Metadata device is in use by another era");
    }
}

impl Metadata {
    /// Locks the mutable state. May sleep, for as long as a commit.
    pub(super) fn lock(&self) -> MutexGuard<'_, MetadataState> {
        self.state.lock()
    }

    /// The metadata device.
    pub(super) fn device(&self) -> &BlockDevice {
        &self.device
    }

    /// What the status line shows: the state after the last step. Any context.
    pub(super) fn stats(&self) -> Option<MetadataStats> {
        *self.stats.lock()
    }

    /// Opens the metadata for a resume if it is not open, and formats a blank device. May sleep.
    ///
    /// # Errors
    ///
    /// `EILSEQ` if the device is blank but was not before, those of [`OpenMetadata::open`], and the
    /// error of formatting.
    pub(super) fn open_or_format<'a>(
        &self,
        state: &'a mut MetadataState,
    ) -> Result<&'a mut OpenMetadata> {
        if state.open.is_none() {
            state.open = Some(match OpenMetadata::open(&self.device, self.size)? {
                Some(md) => md,
                None if self.formatted.load(Relaxed) => {
                    err!("era", "the metadata has become blank");
                    return Err(eilseq());
                }
                None => OpenMetadata::format(&self.device, self.size)?,
            });
            self.formatted.store(true, Relaxed);
        }
        state.open.as_mut().ok_or(EIO)
    }

    /// Runs a step, which ends with a commit if it changes the metadata.
    ///
    /// If the step fails, opens the metadata again as of the last durable commit, which may be the
    /// one that was reported as failed, and runs the step once more. Calls `metadata_opened` with
    /// the era each time the metadata is opened. May sleep.
    ///
    /// # Errors
    ///
    /// The error of the step, or of opening the metadata. `on_error` says whether it puts the
    /// metadata into the failed state; `ENOSPC` never does, and metadata that cannot be opened
    /// always does.
    pub(super) fn run_step<R>(
        &self,
        state: &mut MetadataState,
        on_error: OnError,
        metadata_opened: impl Fn(EraNr),
        mut step: impl FnMut(&mut OpenMetadata) -> Result<R>,
    ) -> Result<R> {
        let reopen = |state: &mut MetadataState| -> Result {
            if state.open.is_none() {
                let md = OpenMetadata::open(&self.device, self.size)?.ok_or(EIO)?;
                metadata_opened(md.era());
                state.open = Some(md);
            }
            Ok(())
        };
        let mut first = true;
        let result = loop {
            let result = match reopen(state) {
                Ok(()) => state.open.as_mut().ok_or(EIO).and_then(&mut step),
                Err(error) => Err(error),
            };
            let Err(error) = result else {
                // After a failure only a successful commit shows that the metadata works again.
                state.failed &= state.open.as_ref().is_none_or(|md| !md.has_committed());
                break result;
            };
            state.open = None;
            let open = reopen(state);
            // A second try does not find more space, and a full device is no failure of the
            // metadata.
            if open.is_err() || !first || error == ENOSPC {
                state.failed |=
                    open.is_err() || (error != ENOSPC && on_error == OnError::FailMetadata);
                break result;
            }
            first = false;
        };
        self.update_stats(state);
        result
    }

    /// Updates what the status line shows.
    pub(super) fn update_stats(&self, state: &mut MetadataState) {
        let stats = match &state.open {
            Some(md) if !state.failed => md.stats().map_err(log_step("status")).ok(),
            _ => None,
        };
        *self.stats.lock() = stats;
    }

    /// Ends a resume: closes the metadata if it failed, clears the failed state if it succeeded.
    pub(super) fn finish_resume(&self, state: &mut MetadataState, result: &Result) {
        if result.is_err() {
            state.open = None;
        } else {
            state.failed = false;
            self.update_stats(state);
        }
    }
}
