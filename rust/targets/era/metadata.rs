// SPDX-License-Identifier: GPL-2.0

//! The metadata of an era device: one for all tables of the device, and what is done when a step of
//! it fails.

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

/// What it means that a step fails.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum OnError {
    /// Writes cannot be marked.
    FailMetadata,
    /// Something else cannot be done.
    KeepWorking,
}

/// What may change only under the lock.
pub(super) struct MetadataState {
    /// None while the device is blank or closed, or cannot be opened.
    open: Option<OpenMetadata>,
    /// A step failed for good, and none has succeeded since.
    failed: bool,
    /// The table that is live. A table that others have replaced without a suspend, since it could
    /// not go live as a whole, may not know that yet.
    live: Option<TableId>,
}

impl MetadataState {
    /// The open metadata.
    pub(super) fn open(&mut self) -> Option<&mut OpenMetadata> {
        self.open.as_mut()
    }

    /// The present era, of the open metadata.
    pub(super) fn era(&self) -> EraNr {
        self.open.as_ref().map_or(EraNr::NONE, |md| md.era())
    }

    /// Closes the metadata; the next step opens it anew.
    pub(super) fn close(&mut self) {
        self.open = None;
    }

    /// The table that is live, or was the last one.
    pub(super) fn live(&self) -> Option<TableId> {
        self.live
    }

    /// Makes a table the live one.
    pub(super) fn set_live(&mut self, table: TableId) {
        self.live = Some(table);
    }

    /// Whether the metadata does not work.
    pub(super) fn is_failed(&self) -> bool {
        self.failed
    }
}

/// The shared metadata of a device.
#[pin_data]
pub(crate) struct Metadata {
    device: Arc<BlockDevice>,
    size: BlockSize,
    /// The device is known not to be blank.
    formatted: Atomic<bool>,
    #[pin]
    state: Mutex<MetadataState>,
    /// What status lines say; none if there is an error.
    #[pin]
    stats: SpinLock<Option<MetadataStats>>,
}

impl ShareableMetadata for Metadata {
    type Params = BlockSize;

    /// Looks at a metadata device, and refuses what is wrong with it. Nothing is kept but what the
    /// status says, as the table may go live much later; and nothing is written, as it may never.
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
                state <- new_mutex!(state, "dm_era_core"),
                stats <- new_spinlock!(Some(stats), "dm_era_info"),
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
    /// Takes the lock of everything that changes. Sleeps, at times for a commit.
    pub(super) fn lock(&self) -> MutexGuard<'_, MetadataState> {
        self.state.lock()
    }

    /// The metadata device.
    pub(super) fn device(&self) -> &BlockDevice {
        &self.device
    }

    /// What the status line says: the state after the last step. Any context.
    pub(super) fn stats(&self) -> Option<MetadataStats> {
        *self.stats.lock()
    }

    /// Opens the metadata if it is not open, for a device that goes live; a blank one is formatted,
    /// unless it was not blank before. Sleeps for I/O.
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

    /// Carries out a step, which ends with a commit if it has changed something. If it fails, the
    /// metadata is opened again, as of the last commit that is durable, which may be the one that
    /// failed; then the step is tried once more.
    ///
    /// `metadata_opened` is called with the era whenever the metadata was opened. Sleeps for I/O.
    pub(super) fn run_step<R>(
        &self,
        state: &mut MetadataState,
        weight: OnError,
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
                // After a failure only a commit shows that the metadata works.
                state.failed &= state.open.as_ref().is_none_or(|md| !md.has_committed());
                break result;
            };
            state.open = None;
            let open = reopen(state);
            // Without space for it, it works no better the second time; and the metadata is not to
            // blame.
            if open.is_err() || !first || error == ENOSPC {
                state.failed |=
                    open.is_err() || (error != ENOSPC && weight == OnError::FailMetadata);
                break result;
            }
            first = false;
        };
        self.update_stats(state);
        result
    }

    /// Makes the present state known to status lines.
    pub(super) fn update_stats(&self, state: &mut MetadataState) {
        let stats = match &state.open {
            Some(md) if !state.failed => md.stats().map_err(log_step("status")).ok(),
            _ => None,
        };
        *self.stats.lock() = stats;
    }

    /// Notes that going live failed, or did not. The metadata is closed if it did.
    pub(super) fn finish_resume(&self, state: &mut MetadataState, result: &Result) {
        if result.is_err() {
            state.open = None;
        } else {
            state.failed = false;
            self.update_stats(state);
        }
    }
}
