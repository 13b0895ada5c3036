// SPDX-License-Identifier: GPL-2.0

//! Who uses which metadata device.
//!
//! All tables of one mapped device that name a metadata device share one [`Metadata`]. So a table that is loaded over a
//! live one knows whatever is hydrated before it goes live, and nothing is read twice. Another mapped device, or a second
//! target of one table, is refused.

use super::metadata::{
    log_invalid,
    Metadata, //
};
use crate::{
    dm::device::{
        Device,
        MappedDevice,
        TableId, //
    },
    logic::clone::{
        geometry::Geometry,
        superblock::Invalid, //
    },
    sys::log::err, //
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    }, //
};

/// A table's use of a metadata device, in the list of all.
struct Use {
    number: u32,
    owner: MappedDevice,
    table: TableId,
    /// None while it is being opened.
    metadata: Option<Arc<Metadata>>,
    next: Option<KBox<Use>>,
}

/// All metadata devices in use.
#[pin_data]
pub(crate) struct Registry {
    #[pin]
    uses: Mutex<Option<KBox<Use>>>,
}

impl Registry {
    /// An empty registry. Sleeps.
    pub(super) fn new() -> Result<Arc<Self>> {
        let new = pin_init!(Registry { uses <- new_mutex!(None, "dm_clone_registry") });
        Arc::pin_init(new, GFP_KERNEL)
    }

    /// Opens the metadata of a new table, or joins those that share it. Sleeps for I/O, but not under a lock: a device
    /// that hangs holds nobody else up.
    pub(super) fn join(
        self: &Arc<Self>,
        device: &Device,
        owner: MappedDevice,
        table: TableId,
        geometry: Geometry,
    ) -> Result<Member> {
        let (shared, place) = self.enter(device.number(), owner, table)?;
        let metadata = match shared {
            Some(metadata) if *metadata.geometry() == geometry => metadata,
            Some(_) => return Err(log_invalid(Invalid::Geometry)),
            None => {
                let metadata = Metadata::open(device, geometry)?;
                self.publish(&place, &metadata);
                metadata
            }
        };
        Ok(Member {
            metadata,
            _place: place,
        })
    }

    /// Enters a table into the list, and finds the state that others share.
    fn enter(
        self: &Arc<Self>,
        number: u32,
        owner: MappedDevice,
        table: TableId,
    ) -> Result<(Option<Arc<Metadata>>, Place)> {
        let new = Use {
            number,
            owner,
            table,
            metadata: None,
            next: None,
        };
        let mut new = KBox::new(new, GFP_KERNEL)?;
        let mut uses = self.uses.lock();
        let mut next = uses.as_ref();
        while let Some(other) = next {
            if other.number == number {
                if other.owner != owner || other.table == table || other.metadata.is_none() {
                    err!(
                        "clone metadata",
                        "Metadata device is in use by another clone"
                    );
                    return Err(EBUSY);
                }
                new.metadata = other.metadata.clone();
            }
            next = other.next.as_ref();
        }
        let shared = new.metadata.clone();
        new.next = uses.take();
        *uses = Some(new);
        let registry = self.clone();
        Ok((
            shared,
            Place {
                number,
                table,
                registry,
            },
        ))
    }

    /// Lets others share what has been opened.
    fn publish(&self, place: &Place, metadata: &Arc<Metadata>) {
        let mut uses = self.uses.lock();
        let mut next = (*uses).as_mut();
        while let Some(other) = next {
            if other.number == place.number && other.table == place.table {
                other.metadata = Some(metadata.clone());
            }
            next = other.next.as_mut();
        }
    }

    fn leave(&self, place: &Place) {
        let mut uses = self.uses.lock();
        let mut link = &mut *uses;
        while link
            .as_ref()
            .is_some_and(|other| other.number != place.number || other.table != place.table)
        {
            match link {
                Some(other) => link = &mut other.next,
                None => return,
            }
        }
        if let Some(gone) = link.take() {
            *link = KBox::into_inner(gone).next;
        }
    }
}

/// An entry in the registry: it ends when dropped. Process context, sleeps.
struct Place {
    number: u32,
    table: TableId,
    registry: Arc<Registry>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.registry.leave(self);
    }
}

/// A table's membership.
pub(super) struct Member {
    metadata: Arc<Metadata>,
    _place: Place,
}

impl core::ops::Deref for Member {
    type Target = Metadata;

    fn deref(&self) -> &Metadata {
        &self.metadata
    }
}
