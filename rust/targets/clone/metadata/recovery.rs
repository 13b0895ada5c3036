// SPDX-License-Identifier: GPL-2.0

//! What follows the failure of a commit or flush: the modes of the metadata, and the way back.

use super::{
    CommitStep,
    Metadata, //
};
use crate::{
    dm::device::TargetHandle,
    logic::clone::status::Mode,
    sys::{
        log::{
            err,
            warning, //
        },
        noio::NoIo, //
    },
    targets::clone::disk::{
        Disk,
        OpenMode, //
    }, //
};
use kernel::{
    prelude::*,
    sync::atomic::{
        Relaxed,
        Release, //
    }, //
};

/// Result of [`Metadata::recover`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::targets::clone) enum Recovery {
    /// The mode was read-write.
    NotNeeded,
    /// The mode is read-write again.
    Yes,
    /// The mode is unchanged: to recover would be unsafe.
    No,
}

impl Metadata {
    /// Returns to the last transaction on disk, read-only. May sleep.
    ///
    /// C counterparts: `abort_transaction()`, `set_metadata_mode()`.
    pub(super) fn abort(
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
        // The caller reports the mode that this ends in.
        self.unreported.store(false, Relaxed);
        // Drop the old blocks before the device is read again.
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

    /// Handles the failure of a flush of the destination that no commit asked for. Any context.
    ///
    /// Returns whether the mode changes. It does not change if no region is in flight and none was
    /// marked since the last commit: then the metadata claims nothing that may be lost. If it
    /// changes, the caller makes sure that [`take_flush_failure`](Self::take_flush_failure) is
    /// called later.
    pub(in crate::targets::clone) fn flush_failed(&self) -> bool {
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

    /// Whether [`flush_failed`](Self::flush_failed) has changed the mode since the last call. Any
    /// context.
    pub(in crate::targets::clone) fn take_flush_failure(&self) -> bool {
        self.unreported.xchg(false, Relaxed)
    }

    /// Tries to leave a failed mode: opens the metadata for writing again. May sleep.
    ///
    /// Regions that were not committed go with the next commit. After a failed flush, the
    /// destination may have dropped data that it had acknowledged, and later flushes may not report
    /// that. To mark those regions would make the loss permanent, so the mode stays: only a restart
    /// from the metadata on disk is safe.
    ///
    /// # Errors
    ///
    /// Any error of the metadata device.
    pub(in crate::targets::clone) fn recover(&self, name: &TargetHandle) -> Result<Recovery> {
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
        // The old metadata is read-only: keep it until the new one is open. If opening fails,
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

/// Logs that a step of a commit failed. Any context.
///
/// C counterpart: `__metadata_operation_failed()`.
pub(in crate::targets::clone) fn log_operation_failed(
    name: &TargetHandle,
    step: CommitStep,
    error: Error,
) {
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
