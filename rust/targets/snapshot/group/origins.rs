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
    groups: Mutex<KVVec<Group>>,
}

/// A family, and how many targets it has, those under construction included.
struct Group {
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
    pub(in super::super) fn group(
        self: &Arc<Self>,
        new: &TargetBuilder<'_>,
        number: u32,
    ) -> Result<Arc<OriginGroup>> {
        // Who waits for the list may be about to resume a device that this memory would be written
        // to.
        let _noio = NoIo::enter();
        let mut groups = self.groups.lock();
        let known = groups.iter_mut().find(|it| it.group.number == number);
        if let Some(entry) = known {
            new.share(&entry.group.queue)?;
            new.share(&entry.group.commits)?;
            entry.group.copies.share(new)?;
            entry.users.increment();
            return Ok(entry.group.clone());
        }
        let group = OriginGroup::new(new, self, number)?;
        let entry = Group {
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
        for entry in groups.iter().filter(|it| it.group.number != number) {
            others.push_within_capacity(entry.group.clone())?;
        }
        Ok(others)
    }

    /// Claims a COW device for a constructor: no other one may make a table with it meanwhile, nor
    /// another merge of the same origin. Gives the store of the live table that has it, if there is
    /// one. Sleeps.
    pub(in super::super) fn claim(
        &self,
        group: &Arc<OriginGroup>,
        cow: u32,
        merge: bool,
    ) -> Result<(Option<Arc<CowStore>>, Reservation), CtrError> {
        let memory = c"Snapshot origin struct allocation failed";
        let _noio = NoIo::enter();
        let mut members = group.members.lock();
        let sharing = members.sharing(cow);
        let claimed = members.claims.contains(&cow);
        if sharing.all > 1 || sharing.waiting.is_some() || claimed {
            return Err(CtrError::new(PAIRING, EINVAL));
        }
        let store = sharing.live.map(|live| live.store.clone());
        if merge && !matches!(members.merging, Merging::None) {
            return Err(CtrError::new(c"A snapshot is already merging.", EINVAL));
        }
        lists::push(&mut members.claims, cow, GFP_KERNEL).or_message(memory)?;
        if merge {
            members.merging = Merging::Claimed;
        }
        drop(members);
        let claim = Reservation {
            group: group.clone(),
            cow,
            merge,
        };
        // Not before others can see the claim: of two that look at the same time at least one sees
        // the other.
        let others = self.others(group.number).or_message(memory)?;
        if others.iter().any(|other| other.members.lock().has(cow)) {
            let text = c"COW device is in use by another snapshot";
            return Err(CtrError::new(text, EBUSY));
        }
        Ok((store, claim))
    }

    /// A target of a family is going. Sleeps.
    pub(super) fn leave(&self, group: &Arc<OriginGroup>) {
        let mut groups = self.groups.lock();
        let number = group.number;
        let known = groups.iter_mut().find(|it| it.group.number == number);
        let is_unused = known.is_some_and(|entry| entry.users.decrement());
        let entry = if is_unused {
            lists::remove_first(&mut groups, |it| it.group.number == number)
        } else {
            None
        };
        drop(groups);
        drop(entry);
    }
}
