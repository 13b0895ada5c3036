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
        Arc,
        Mutex, //
    }, //
};

const PAIRING: &CStr = c"Snapshot cow pairing for exception table handover failed";

/// What all snapshots share.
#[pin_data]
pub(crate) struct Origins {
    /// No other lock is taken under this one: whoever waits for a family holds up nobody else.
    #[pin]
    groups: Mutex<KVVec<Entry>>,
}

/// A family, and how many targets it has, those under construction included.
struct Entry {
    group: Arc<OriginGroup>,
    users: Count,
}

impl Origins {
    /// An empty world. Sleeps.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let new = pin_init!(Origins {
            groups <- new_mutex!(KVVec::new(), "dm_snap_groups"),
        });
        Arc::pin_init(new, GFP_KERNEL)
    }

    /// The family of an origin, for another of its targets. Sleeps.
    pub(in super::super) fn join(
        self: &Arc<Self>,
        builder: &TargetBuilder<'_>,
        number: u32,
    ) -> Result<Arc<OriginGroup>> {
        // Who waits for the list may be about to resume a device that this memory would be written
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
        let entry = Entry {
            group: group.clone(),
            users: Count::one(),
        };
        lists::push(&mut groups, entry, GFP_KERNEL)?;
        Ok(group)
    }

    /// All families but one. Sleeps.
    fn others(&self, number: u32) -> Result<KVVec<Arc<OriginGroup>>> {
        let groups = self.groups.lock();
        let mut others = KVVec::with_capacity(groups.len(), GFP_KERNEL)?;
        for entry in groups.iter().filter(|entry| entry.group.number != number) {
            others.push_within_capacity(entry.group.clone())?;
        }
        Ok(others)
    }

    /// Claims a COW device for a constructor: no other one may make a table with it meanwhile, nor
    /// another merge of the same origin. Gives the store of the live table that has it, if there is
    /// one. Sleeps.
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
        // Not before others can see the claim: of two that look at the same time at least one sees
        // the other.
        let others = self.others(group.number).or_message(memory)?;
        if others.iter().any(|other| other.members.lock().has_cow(cow)) {
            let text = c"COW device is in use by another snapshot";
            return Err(CtrError::new(text, EBUSY));
        }
        Ok((store, reservation))
    }

    /// A target of a family is going. Sleeps.
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
