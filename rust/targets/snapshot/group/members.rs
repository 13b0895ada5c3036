// SPDX-License-Identifier: GPL-2.0

//! The targets on one origin, and the COW devices that constructors have reserved.
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

/// The snapshots with the same COW device: more than one only for a handover.
///
/// C counterpart: the results of `__find_snapshots_sharing_cow`.
#[derive(Default)]
pub(in super::super) struct SharingCow<'a> {
    /// The snapshot that has the store.
    pub(in super::super) source: Option<&'a Arc<SnapshotTarget>>,
    /// The snapshot that was not resumed yet.
    pub(in super::super) destination: Option<&'a Arc<SnapshotTarget>>,
    /// The number of all of them, those included that have handed their store over.
    pub(in super::super) count: usize,
}

/// The merge into an origin; there is at most one.
#[derive(Default)]
pub(super) enum Merging {
    #[default]
    None,
    /// A constructor is making it.
    Reserved,
    /// This target merges, or did, or will.
    Present(Arc<MergeTarget>),
}

/// The targets of a group.
#[derive(Default)]
pub(in super::super) struct Members {
    /// All snapshots, the one that is merged included.
    pub(in super::super) snapshots: KVVec<Arc<SnapshotTarget>>,
    /// All `snapshot-origin` targets, and the one inside of a merge.
    pub(in super::super) origins: KVVec<Arc<OriginTarget>>,
    pub(super) merging: Merging,
    /// The device numbers of COW devices that constructors use.
    pub(super) reserved_cows: KVVec<u32>,
    /// The last number that [`new_origin_id`](Self::new_origin_id) returned.
    last_origin_id: u32,
    /// Memory for the exception tables, which cannot allocate under their locks.
    pub(super) spares: SpareNodes,
}

impl Members {
    /// Finds the snapshots with a COW device.
    pub(in super::super) fn sharing_cow(&self, cow: u32) -> SharingCow<'_> {
        let mut sharing = SharingCow::default();
        for snapshot in self
            .snapshots
            .iter()
            .filter(|snapshot| snapshot.cow.number() == cow)
        {
            sharing.count = sharing.count.saturating_add(1);
            match snapshot.handover_state() {
                state if state.has_store() => sharing.source = Some(snapshot),
                state if state.is_waiting() => sharing.destination = Some(snapshot),
                _ => {}
            }
        }
        sharing
    }

    /// Whether a snapshot, or a constructor, uses a COW device.
    pub(super) fn has_cow(&self, cow: u32) -> bool {
        self.sharing_cow(cow).count != 0 || self.reserved_cows.contains(&cow)
    }

    /// Returns a number by which bios can name an origin target.
    pub(in super::super) fn new_origin_id(&mut self) -> u32 {
        self.last_origin_id = self.last_origin_id.wrapping_add(1);
        self.last_origin_id
    }

    /// Sets the merge of the origin.
    pub(in super::super) fn set_merge(&mut self, merge: Option<Arc<MergeTarget>>) {
        self.merging = merge.map_or(Merging::None, Merging::Present);
    }

    /// Ends the reservation of a constructor.
    fn cancel_reservation(&mut self, cow: u32, is_merge: bool) {
        lists::remove_first(&mut self.reserved_cows, |other| *other == cow);
        if is_merge && matches!(self.merging, Merging::Reserved) {
            self.merging = Merging::None;
        }
    }

    /// Removes a snapshot.
    pub(in super::super) fn remove_snapshot(&mut self, snapshot: &Arc<SnapshotTarget>) {
        lists::remove_first(&mut self.snapshots, |other| Arc::ptr_eq(other, snapshot));
    }
}

/// The lock of [`Members`] while a snapshot is activated; see
/// [`OriginGroup::lock_for_activation`].
///
/// Fields drop in order: `members` is unlocked before the merge continues.
pub(in super::super) struct ActivationGuard<'a> {
    pub(super) members: MutexGuard<'a, Members>,
    pub(super) _pause: Option<MergePause>,
}

impl ActivationGuard<'_> {
    pub(in super::super) fn members(&self) -> &Members {
        &self.members
    }
}

/// A constructor's use of a group. Drops it unless [`keep`](Self::keep) leaves that to the
/// destructor of the target.
pub(in super::super) struct Membership {
    group: Arc<OriginGroup>,
    kept: bool,
}

impl Membership {
    /// Joins the group of the origin with a device number. May sleep.
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

    /// From now on the destructor of the target calls [`OriginGroup::leave`].
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

/// A constructor's exclusive right to a COW device, and perhaps to the merge of its origin.
pub(in super::super) struct Reservation {
    pub(super) group: Arc<OriginGroup>,
    pub(super) cow: u32,
    pub(super) is_merge: bool,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.group
            .members
            .lock()
            .cancel_reservation(self.cow, self.is_merge);
    }
}
