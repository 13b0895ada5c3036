// SPDX-License-Identifier: GPL-2.0

//! Status lines of `snapshot` and `snapshot-merge`. C counterpart: `snapshot_status`.

use super::{
    store::StoreState,
    SnapshotTarget, //
};
use crate::{
    dm::{
        status::{
            StatusBuf,
            StatusKind, //
        },
        target::Target, //
    },
    logic::snapshot::{
        handover::HandoverState,
        options::{
            Options,
            StoreKind, //
        },
        status::{
            Health,
            StatusLine,
            Usage, //
        }, //
    },
    sys::log::CStrDisplay, //
};
use kernel::prelude::*;

impl SnapshotTarget {
    /// Options for the table line. The chunk size is that of the store, if the table has the store.
    fn table_options(&self) -> Options {
        let overflow = matches!(self.options.store, StoreKind::Persistent { overflow: true });
        let mut shown = self.options;
        shown.chunk_size = None;
        if !matches!(
            self.handover_state(),
            HandoverState::Destination | HandoverState::HandedOver
        ) {
            shown.chunk_size = Some(self.store.chunk_size());
            shown.store = if self.store.is_persistent() {
                StoreKind::Persistent { overflow }
            } else {
                StoreKind::Transient
            };
        }
        shown
    }

    /// Emits the status of a target of type `T`. May sleep.
    pub(super) fn emit_status<T: Target>(
        &self,
        kind: StatusKind,
        merge_failed: bool,
        out: &mut StatusBuf<'_>,
    ) {
        let health = Health {
            // While it is being invalidated it counts as valid: the status follows the header.
            valid: self.handover_state() != HandoverState::HandedOver
                && self.store.state() != StoreState::Invalid,
            merge_failed,
            overflowed: self.store.is_overflowed(),
        };
        match kind {
            StatusKind::Info => {
                let usage = match self.handover_state() {
                    // The store still belongs to the table that it is to take over from.
                    HandoverState::Destination => Usage {
                        total: self.cow.sectors(),
                        ..Usage::default()
                    },
                    _ => self.store.usage(&self.cow),
                };
                let info = if self.is_merged {
                    StatusLine::of_merge(health, usage)
                } else {
                    StatusLine::of_snapshot(health, usage)
                };
                out.emit(fmt!("{}", info));
            }
            StatusKind::Table => {
                let shown = self.table_options();
                out.emit(fmt!("{} {} {}", self.origin, self.cow, shown));
            }
            StatusKind::Ima => {
                let [major, minor, patch] = T::VERSION;
                out.emit(fmt!(
                    "target_name={},target_version={}.{}.{},snap_origin_name={},snap_cow_name={}{}",
                    CStrDisplay(T::NAME),
                    major,
                    minor,
                    patch,
                    self.origin,
                    self.cow,
                    health
                ));
            }
        }
    }
}
