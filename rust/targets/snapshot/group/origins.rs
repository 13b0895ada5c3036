// SPDX-License-Identifier: GPL-2.0

//! The list of all origin groups.
//!
//! C counterparts: `_origins`, `__lookup_origin`, `__validate_exception_handover`.

use super::{
    members::{
        Merging,
        Reservation, //
    },
    OriginGroup, //
};
use crate::{
    dm::target::{
        CtrError,
        OrMessage,
        TargetBuilder, //
    },
    logic::{
        count::Count,
        snapshot::lists, //
    },
    sys::noio::NoIo,
    targets::snapshot::store::CowStore, //
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex, //
    }, //
};

/// The text of C for a COW device that takes part in a handover already.
const PAIRING: &CStr = c"Snapshot cow pairing for exception table handover failed";

/// All origin groups.
#[pin_data]
pub(crate) struct Origins {
    /// No lock of a group is taken under this one, so waiting for a group delays no other group.
    #[pin]
    groups: Mutex<KVVec<GroupEntry>>,
    /// Whether all three targets are registered. Before, a table that has found one of them is
    /// refused: the others may belong to another module.
    is_open: Atomic<bool>,
}

/// A group, and the number of its targets, those under construction included.
struct GroupEntry {
    group: Arc<OriginGroup>,
    users: Count,
}

impl Origins {
    /// Makes an empty list. May sleep.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let origins = pin_init!(Origins {
            groups <- new_mutex!(KVVec::new(), "dm_snap_groups"),
            is_open: Atomic::new(false),
        });
        Arc::pin_init(origins, GFP_KERNEL)
    }

    /// Lets targets be constructed. Any context.
    pub(crate) fn open(&self) {
        self.is_open.store(true, Relaxed);
    }

    /// Returns the group of an origin, for a target under construction, and makes it if there is
    /// none. May sleep. C counterparts: `__lookup_origin`, `register_snapshot`.
    ///
    /// # Errors
    ///
    /// `EBUSY` before [`open`](Self::open); `ENOMEM`.
    pub(in super::super) fn join(
        self: &Arc<Self>,
        builder: &TargetBuilder<'_>,
        number: u32,
    ) -> Result<Arc<OriginGroup>> {
        if !self.is_open.load(Relaxed) {
            return Err(EBUSY);
        }
        // The next to take the lock may be about to resume the very device that reclaim would write
        // to.
        let _noio = NoIo::enter();
        let mut groups = self.groups.lock();
        let known = groups.iter_mut().find(|entry| entry.group.number == number);
        if let Some(entry) = known {
            builder.share(&entry.group.worker_queue)?;
            builder.share(&entry.group.io_queue)?;
            entry.group.shared_copies.share(builder)?;
            entry.users.increment();
            return Ok(entry.group.clone());
        }
        let group = OriginGroup::new(builder, self, number)?;
        let entry = GroupEntry {
            group: group.clone(),
            users: Count::one(),
        };
        lists::push(&mut groups, entry, GFP_KERNEL)?;
        Ok(group)
    }

    /// Returns all groups but one. May sleep.
    fn others(&self, number: u32) -> Result<KVVec<Arc<OriginGroup>>> {
        let groups = self.groups.lock();
        let mut others = KVVec::with_capacity(groups.len(), GFP_KERNEL)?;
        for entry in groups.iter().filter(|entry| entry.group.number != number) {
            others.push_within_capacity(entry.group.clone())?;
        }
        Ok(others)
    }

    /// Reserves a COW device for a constructor, and the merge of the origin if it makes one: other
    /// constructors are refused meanwhile. Returns the store of the snapshot that has the COW
    /// device now, if there is one: the new snapshot is to take over from it. May sleep.
    ///
    /// C counterpart: `__validate_exception_handover`.
    ///
    /// # Errors
    ///
    /// `EINVAL` if a handover of the COW device is under way, or a merge of the origin; `EBUSY` if
    /// a snapshot of another origin uses the COW device.
    pub(in super::super) fn reserve_cow(
        &self,
        group: &Arc<OriginGroup>,
        cow: u32,
        is_merge: bool,
    ) -> Result<(Option<Arc<CowStore>>, Reservation), CtrError> {
        let memory = c"Snapshot origin struct allocation failed";
        let _noio = NoIo::enter();
        let mut members = group.members.lock();
        let sharing = members.sharing_cow(cow);
        let is_reserved = members.reserved_cows.contains(&cow);
        if sharing.count > 1 || sharing.destination.is_some() || is_reserved {
            return Err(CtrError::new(PAIRING, EINVAL));
        }
        let store = sharing.source.map(|source| source.store.clone());
        if is_merge && !matches!(members.merging, Merging::None) {
            return Err(CtrError::new(c"A snapshot is already merging.", EINVAL));
        }
        lists::push(&mut members.reserved_cows, cow, GFP_KERNEL).or_message(memory)?;
        if is_merge {
            members.merging = Merging::Reserved;
        }
        drop(members);
        let reservation = Reservation {
            group: group.clone(),
            cow,
            is_merge,
        };
        // The other groups are searched after the reservation is visible: of two constructors that
        // do this at the same time at least one sees the other.
        let others = self.others(group.number).or_message(memory)?;
        if others.iter().any(|other| other.members.lock().has_cow(cow)) {
            let text = c"COW device is in use by another snapshot";
            return Err(CtrError::new(text, EBUSY));
        }
        Ok((store, reservation))
    }

    /// Drops one target's use of a group, and the group with the last one. May sleep.
    pub(super) fn leave(&self, group: &Arc<OriginGroup>) {
        let mut groups = self.groups.lock();
        let number = group.number;
        let known = groups.iter_mut().find(|entry| entry.group.number == number);
        let is_unused = known.is_some_and(|entry| entry.users.decrement());
        let entry = if is_unused {
            lists::remove_first(&mut groups, |entry| entry.group.number == number)
        } else {
            None
        };
        drop(groups);
        drop(entry);
    }
}
