// SPDX-License-Identifier: GPL-2.0

//! The targets of one origin, and what constructors have reserved.
//!
//! C counterpart: `struct origin::snapshots`.

use super::{
    OriginGroup,
    Origins, //
};
use crate::{
    dm::target::TargetBuilder,
    logic::snapshot::{
        exception_table::SpareNodes,
        lists, //
    },
    targets::snapshot::{
        merge::MergePause,
        MergeTarget,
        OriginTarget,
        SnapshotTarget, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        Arc,
        MutexGuard, //
    }, //
};

/// The tables with the same COW device.
#[derive(Default)]
pub(in super::super) struct StoreTables<'a> {
    pub(in super::super) live: Option<&'a Arc<SnapshotTarget>>,
    /// Not live yet.
    pub(in super::super) waiting: Option<&'a Arc<SnapshotTarget>>,
    /// How many there are.
    pub(in super::super) all: usize,
}

/// The merge of an origin: there is at most one.
#[derive(Default)]
pub(super) enum Merging {
    #[default]
    None,
    /// A constructor has it in its hands.
    Claimed,
    There(Arc<MergeTarget>),
}

/// Who belongs to a family.
#[derive(Default)]
pub(in super::super) struct Members {
    /// The snapshots of all tables.
    pub(in super::super) tables: KVVec<Arc<SnapshotTarget>>,
    pub(in super::super) origins: KVVec<Arc<OriginTarget>>,
    pub(super) merging: Merging,
    /// COW devices that constructors have in their hands.
    pub(super) claims: KVVec<u32>,
    /// The number of the last origin.
    last_id: u32,
    /// Memory for the tables of exceptions.
    pub(super) spares: SpareNodes,
}

impl Members {
    /// The tables with a COW device.
    pub(in super::super) fn sharing(&self, cow: u32) -> StoreTables<'_> {
        let mut sharing = StoreTables::default();
        for table in self.tables.iter().filter(|it| it.cow.number() == cow) {
            sharing.all = sharing.all.saturating_add(1);
            match table.role() {
                role if role.has_store() => sharing.live = Some(table),
                role if role.is_waiting() => sharing.waiting = Some(table),
                _ => {}
            }
        }
        sharing
    }

    /// Whether any table has a COW device, or will.
    pub(super) fn has(&self, cow: u32) -> bool {
        self.sharing(cow).all != 0 || self.claims.contains(&cow)
    }

    /// A name for an origin.
    pub(in super::super) fn new_id(&mut self) -> u32 {
        self.last_id = self.last_id.wrapping_add(1);
        self.last_id
    }

    /// Says which merge there is, if there is one.
    pub(in super::super) fn set_merge(&mut self, merge: Option<Arc<MergeTarget>>) {
        self.merging = merge.map_or(Merging::None, Merging::There);
    }

    /// Ends the claim of a constructor.
    fn unclaim(&mut self, cow: u32, merge: bool) {
        lists::remove_first(&mut self.claims, |other| *other == cow);
        if merge && matches!(self.merging, Merging::Claimed) {
            self.merging = Merging::None;
        }
    }

    /// Takes a table off.
    pub(in super::super) fn remove(&mut self, table: &Arc<SnapshotTarget>) {
        lists::remove_first(&mut self.tables, |other| Arc::ptr_eq(other, table));
    }
}

/// The roster, at a moment when a table may go live. For a snapshot that origin writes care about
/// no merge of the origin is in a batch: that would be overwritten, and the snapshot has no copies
/// of it.
pub(in super::super) struct Calm<'a> {
    pub(super) members: MutexGuard<'a, Members>,
    pub(super) _pause: Option<MergePause>,
}

impl Calm<'_> {
    pub(in super::super) fn members(&self) -> &Members {
        &self.members
    }
}

/// A target's place in its family, until it is kept: then the destructor gives it up.
pub(in super::super) struct Membership {
    group: Arc<OriginGroup>,
    kept: bool,
}

impl Membership {
    /// Sleeps.
    pub(in super::super) fn new(
        builder: &TargetBuilder<'_>,
        origins: &Arc<Origins>,
        origin: u32,
    ) -> Result<Self> {
        Ok(Membership {
            group: origins.group(builder, origin)?,
            kept: false,
        })
    }

    pub(in super::super) fn group(&self) -> &Arc<OriginGroup> {
        &self.group
    }

    pub(in super::super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if !self.kept {
            self.group.leave();
        }
    }
}

/// A COW device, and perhaps the merge of an origin, that a constructor has in its hands: no other
/// one may.
pub(in super::super) struct Reservation {
    pub(super) group: Arc<OriginGroup>,
    pub(super) cow: u32,
    pub(super) merge: bool,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.group.members.lock().unclaim(self.cow, self.merge);
    }
}
