// SPDX-License-Identifier: GPL-2.0

//! Status of a clone: `INFO` and `TABLE`. C counterpart: `clone_status()`.

use super::CloneTarget;
use crate::{
    dm::status::StatusBuf,
    logic::clone::status::{
        Mode,
        StatusLine,
        STATUS_ERROR, //
    },
    sys::log::CStrDisplay, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::Relaxed,
        ArcBorrow, //
    }, //
};

impl CloneTarget {
    /// Emits the status line, from memory.
    ///
    /// Waits for a commit first unless `noflush` is set, and for no other I/O.
    pub(super) fn emit_status(self: ArcBorrow<'_, Self>, noflush: bool, out: &mut StatusBuf<'_>) {
        // Not while suspended, and not for a table that is not live: it might name another
        // destination.
        let live = !self.is_suspended() && !self.handle.is_suspended();
        if !noflush && live {
            // If the commit fails, the mode below shows it. If the caller is killed, nobody reads
            // the status.
            let _ = self.wait_for_commit();
        }
        let usage = self.metadata.usage();
        let mode = self.metadata.mode();
        let (metadata_used, metadata_total) = match usage {
            Some(usage) => (usage.used, usage.total),
            None if mode == Mode::Fail => (0, 0),
            None => return out.emit(fmt!("{}", STATUS_ERROR)),
        };
        let geometry = self.metadata.geometry();
        let (hydrated, hydrating) = self.metadata.progress();
        let info = StatusLine {
            metadata_used,
            metadata_total,
            region_size: geometry.region_size().sectors(),
            hydrated,
            regions: geometry.regions(),
            hydrating,
            hydration: self.hydration_enabled.load(Relaxed),
            discard_passdown: self.discard_passdown.load(Relaxed),
            threshold: self.threshold.load(Relaxed),
            batch: self.batch.load(Relaxed),
            hydrate_on_read: self.hydrate_on_read,
            zero_discards: self.zero_discards,
            max_failures: self.max_failures.load(Relaxed),
            mode,
        };
        out.emit(fmt!("{}", info))
    }

    /// Emits the table line.
    pub(super) fn emit_table(&self, out: &mut StatusBuf<'_>) {
        let args = CStrDisplay(&self.args);
        out.emit(fmt!(
            "{} {} {} {}",
            self.metadata_device,
            self.destination,
            self.source,
            args
        ))
    }
}
