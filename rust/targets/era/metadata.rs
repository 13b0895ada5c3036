// SPDX-License-Identifier: GPL-2.0

//! The metadata of an era device: one for all tables of the device, and what is done when a step of
//! it fails.

use super::disk::{
    device_blocks,
    failed,
    log_invalid,
    Disk, //
};
use crate::{
    dm::device::{
        Device,
        TableId, //
    },
    env::eilseq,
    logic::era::{
        geometry::BlockSize,
        number::Era,
        status::Info,
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
pub(super) enum Weight {
    /// Writes cannot be marked.
    Vital,
    /// Something else cannot be done.
    Light,
}

/// What may change only under the lock.
pub(super) struct Core {
    /// None while the device is blank or closed, or cannot be opened.
    disk: Option<Disk>,
    /// A step failed for good, and none has succeeded since.
    failed: bool,
    /// The table that is live. A table that others have replaced without a suspend, since it could
    /// not go live as a whole, may not know that yet.
    live: Option<TableId>,
}

impl Core {
    /// The open metadata.
    pub(super) fn disk(&mut self) -> Option<&mut Disk> {
        self.disk.as_mut()
    }

    /// The present era, of the open metadata.
    pub(super) fn era(&self) -> Era {
        self.disk.as_ref().map_or(Era::NONE, |disk| disk.era())
    }

    /// Closes the metadata; the next step opens it anew.
    pub(super) fn close(&mut self) {
        self.disk = None;
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
    core: Mutex<Core>,
    /// What status lines say; none if there is an error.
    #[pin]
    info: SpinLock<Option<Info>>,
}

impl ShareableMetadata for Metadata {
    type Params = BlockSize;

    /// Looks at a metadata device, and refuses what is wrong with it. Nothing is kept but what the
    /// status says, as the table may go live much later; and nothing is written, as it may never.
    fn open(device: &Device, size: BlockSize) -> Result<Arc<Self>> {
        let device = Arc::new(BlockDevice::open(device.number())?, GFP_KERNEL)?;
        let found = Disk::look(&device, size)?;
        let formatted = found.is_some();
        let info = found.unwrap_or_else(|| Info {
            used: 0,
            total: device_blocks(&device),
            era: Era::NONE,
            snapshot: 0,
        });
        let core = Core {
            disk: None,
            failed: false,
            live: None,
        };
        Arc::pin_init(
            pin_init!(Metadata {
                device,
                size,
                formatted: Atomic::new(formatted),
                core <- new_mutex!(core, "dm_era_core"),
                info <- new_spinlock!(Some(info), "dm_era_info"),
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
    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock()
    }

    /// The metadata device.
    pub(super) fn device(&self) -> &BlockDevice {
        &self.device
    }

    /// What the status line says: the state after the last step. Any context.
    pub(super) fn info(&self) -> Option<Info> {
        *self.info.lock()
    }

    /// Opens the metadata if it is not open, for a device that goes live; a blank one is formatted,
    /// unless it was not blank before. Sleeps for I/O.
    pub(super) fn open_or_format<'a>(&self, core: &'a mut Core) -> Result<&'a mut Disk> {
        if core.disk.is_none() {
            core.disk = Some(match Disk::open(&self.device, self.size)? {
                Some(disk) => disk,
                None if self.formatted.load(Relaxed) => {
                    err!("era", "the metadata has become blank");
                    return Err(eilseq());
                }
                None => Disk::format(&self.device, self.size)?,
            });
            self.formatted.store(true, Relaxed);
        }
        core.disk.as_mut().ok_or(EIO)
    }

    /// Carries out a step, which ends with a commit if it has changed something. If it fails, the
    /// metadata is opened again, as of the last commit that is durable, which may be the one that
    /// failed; then the step is tried once more.
    ///
    /// `opened` is called with the era whenever the metadata was opened. Sleeps for I/O.
    pub(super) fn attempt<R>(
        &self,
        core: &mut Core,
        weight: Weight,
        opened: impl Fn(Era),
        mut step: impl FnMut(&mut Disk) -> Result<R>,
    ) -> Result<R> {
        let reopen = |core: &mut Core| -> Result {
            if core.disk.is_none() {
                let disk = Disk::open(&self.device, self.size)?.ok_or(EIO)?;
                opened(disk.era());
                core.disk = Some(disk);
            }
            Ok(())
        };
        let mut first = true;
        let result = loop {
            let result = match reopen(core) {
                Ok(()) => core.disk.as_mut().ok_or(EIO).and_then(&mut step),
                Err(error) => Err(error),
            };
            let Err(error) = result else {
                // After a failure only a commit shows that the metadata works.
                core.failed &= core.disk.as_ref().is_none_or(|disk| !disk.is_proven());
                break result;
            };
            core.disk = None;
            let open = reopen(core);
            // Without space for it, it works no better the second time; and the metadata is not to
            // blame.
            if open.is_err() || !first || error == ENOSPC {
                core.failed |= open.is_err() || (error != ENOSPC && weight == Weight::Vital);
                break result;
            }
            first = false;
        };
        self.publish(core);
        result
    }

    /// Makes the present state known to status lines.
    pub(super) fn publish(&self, core: &mut Core) {
        let info = match &core.disk {
            Some(disk) if !core.failed => disk.info().map_err(failed("status")).ok(),
            _ => None,
        };
        *self.info.lock() = info;
    }

    /// Notes that going live failed, or did not. The metadata is closed if it did.
    pub(super) fn settle(&self, core: &mut Core, result: &Result) {
        if result.is_err() {
            core.disk = None;
        } else {
            core.failed = false;
            self.publish(core);
        }
    }
}
