// SPDX-License-Identifier: GPL-2.0

//! Which writes to the origin need not wait: those to what all active snapshots have preserved.
//!
//! `map` first looks into the [`PreservedMap`] of the group, without a lock. Only what is not in
//! the map is looked up in each snapshot, and then goes into the map. `map_snapshots` is held
//! meanwhile, so no snapshot becomes active between the lookups and the map: what is in the map is
//! preserved in all snapshots that are active before the map is replaced.
//!
//! C counterpart: the first half of `__origin_write()`.

use super::{
    members::Members,
    OriginGroup, //
};
use crate::{
    logic::{
        snapshot::preserved::PreservedMap,
        units::{
            Sector,
            Sectors, //
        }, //
    },
    sys::{
        delay::delay_point,
        noio::NoIo,
        params,
        rcu::Replaced, //
    }, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

impl OriginGroup {
    /// Length of the leading part of an origin write that is preserved in all snapshots: it may
    /// overwrite the origin. Process context: may sleep while a snapshot is added or activated.
    pub(in super::super) fn preserved_len(
        self: &Arc<Self>,
        start: Sector,
        len: Sectors,
    ) -> Sectors {
        if self.preserved.read(|map| map.contains(start, len)) == Some(true) {
            delay_point!(c"snapshot: origin write in the map, not yet sent");
            return len;
        }
        delay_point!(c"snapshot: origin write not in the map");
        self.look_up_preserved(start, len)
    }

    /// Looks into the snapshots, and puts what it finds into the map.
    ///
    /// Looks up whole units of the map. They lie in the same chunks as the write, except in a
    /// snapshot that ends within a unit: there the result may be too low. Where chunks continue
    /// each other, what follows the write goes into the map too, so that a long area takes few
    /// lookups.
    fn look_up_preserved(self: &Arc<Self>, start: Sector, len: Sectors) -> Sectors {
        let snapshots = self.map_snapshots.read();
        let units = self.preserved.read(|map| map.units_to_look_up(start, len));
        let (first, wanted, most) = units.unwrap_or((start, len, len));
        let checked = snapshots
            .iter()
            .filter(|snapshot| snapshot.has_to_be_checked());
        let found = checked.fold(most, |most, snapshot| {
            snapshot.preserved_len(first, wanted.min(most), most)
        });
        let is_page_wanted = self.preserved.read(|map| map.insert(first, found));
        drop(snapshots);
        if is_page_wanted == Some(true) {
            self.wake();
        }
        let before = start.since(first).unwrap_or_default();
        Sectors(found.0.saturating_sub(before.0)).min(len)
    }

    /// Adds memory to the map that `map` was short of. Called with `members` held.
    pub(super) fn extend_preserved_map(&self) {
        self.preserved.read(PreservedMap::add_page);
    }

    /// Makes a map for an origin of length `len`, in which nothing is preserved. `None` if memory
    /// is short: then each write is looked up. May sleep.
    pub(in super::super) fn new_preserved_map(
        &self,
        members: &Members,
        len: Sectors,
    ) -> Option<KBox<PreservedMap>> {
        let _noio = NoIo::enter();
        let sizes = members
            .snapshots
            .iter()
            .map(|snapshot| snapshot.store().chunk_size());
        let limit = params::snapshot_preserved_memory();
        let map = PreservedMap::new(sizes.min()?, len, limit).ok()?;
        KBox::new(map, GFP_KERNEL).ok()
    }

    /// Runs `change`, which makes a snapshot active, so that `map` of an origin write sees all
    /// changes or none, and replaces the map. Called with `members` held. May sleep.
    ///
    /// A `map` that began before may still use the old map, until the result is dropped.
    pub(in super::super) fn activate(
        &self,
        map: Option<KBox<PreservedMap>>,
        change: impl FnOnce(),
    ) -> Replaced<PreservedMap> {
        let _snapshots = self.map_snapshots.write();
        change();
        self.preserved.replace(map)
    }
}
