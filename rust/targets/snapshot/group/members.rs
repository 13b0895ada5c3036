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
pub(in super::super) struct SharingCow<'a> {
    pub(in super::super) source: Option<&'a Arc<SnapshotTarget>>,
    /// Not live yet.
    pub(in super::super) destination: Option<&'a Arc<SnapshotTarget>>,
    /// How many there are.
    pub(in super::super) count: usize,
}

/// The merge of an origin: there is at most one.
#[derive(Default)]
pub(super) enum Merging {
    #[default]
    None,
    /// A constructor has it in its hands.
    Reserved,
    Present(Arc<MergeTarget>),
}

/// Who belongs to a family.
#[derive(Default)]
pub(in super::super) struct Members {
    /// The snapshots of all tables.
    pub(in super::super) snapshots: KVVec<Arc<SnapshotTarget>>,
    pub(in super::super) origins: KVVec<Arc<OriginTarget>>,
    pub(super) merging: Merging,
    /// COW devices that constructors have in their hands.
    pub(super) reserved_cows: KVVec<u32>,
    /// The number of the last origin.
    last_origin_id: u32,
    /// Memory for the tables of exceptions.
    pub(super) spares: SpareNodes,
}

impl Members {
    /// The tables with a COW device.
    pub(in super::super) fn sharing_cow(&self, cow: u32) -> SharingCow<'_> {
        let mut sharing = SharingCow::default();
        for snapshot in self.snapshots.iter().filter(|snapshot| snapshot.cow.number() == cow) {
            sharing.count = sharing.count.saturating_add(1);
            match snapshot.role() {
                role if role.has_store() => sharing.source = Some(snapshot),
                role if role.is_waiting() => sharing.destination = Some(snapshot),
                _ => {}
            }
        }
        sharing
    }

    /// Whether any table has a COW device, or will.
    pub(super) fn has_cow(&self, cow: u32) -> bool {
        self.sharing_cow(cow).count != 0 || self.reserved_cows.contains(&cow)
    }

    /// A name for an origin.
    pub(in super::super) fn new_origin_id(&mut self) -> u32 {
        self.last_origin_id = self.last_origin_id.wrapping_add(1);
        self.last_origin_id
    }

    /// Says which merge there is, if there is one.
    pub(in super::super) fn set_merge(&mut self, merge: Option<Arc<MergeTarget>>) {
        self.merging = merge.map_or(Merging::None, Merging::Present);
    }

    /// Ends the claim of a constructor.
    fn cancel_reservation(&mut self, cow: u32, is_merge: bool) {
        lists::remove_first(&mut self.reserved_cows, |other| *other == cow);
        if is_merge && matches!(self.merging, Merging::Reserved) {
            self.merging = Merging::None;
        }
    }

    /// Takes a table off.
    pub(in super::super) fn remove_snapshot(&mut self, snapshot: &Arc<SnapshotTarget>) {
        lists::remove_first(&mut self.snapshots, |other| Arc::ptr_eq(other, snapshot));
    }
}

/// The roster, at a moment when a table may go live. For a snapshot that origin writes care about
/// no merge of the origin is in a batch: that would be overwritten, and the snapshot has no copies
/// of it.
pub(in super::super) struct ActivationGuard<'a> {
    pub(super) members: MutexGuard<'a, Members>,
    pub(super) _pause: Option<MergePause>,
}

impl ActivationGuard<'_> {
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
            group: origins.join(builder, origin)?,
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
    pub(super) is_merge: bool,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.group.members.lock().cancel_reservation(self.cow, self.is_merge);
    }
}
