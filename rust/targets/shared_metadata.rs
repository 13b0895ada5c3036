// SPDX-License-Identifier: GPL-2.0

//! Who uses which metadata device.
//!
//! All tables of one mapped device that name a metadata device share one [`ShareableMetadata`]. So a table
//! that is loaded over a live one knows whatever the live one does until it goes live itself, and
//! nothing is read twice. Another mapped device, or a second target of one table, is refused.

use crate::{
    dm::device::{
        Device,
        MappedDevice,
        TableId, //
    },
    sys::delay::delay_point, //
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    }, //
};

/// What the tables share.
pub(crate) trait ShareableMetadata: Send + Sync + Sized + 'static {
    /// What of a table line it depends on.
    type Params: Copy;

    /// Opens a metadata device for the first of its tables. Sleeps for I/O.
    fn open(device: &Device, params: Self::Params) -> Result<Arc<Self>>;

    /// Refuses a table that cannot share.
    fn check_compatible(&self, params: Self::Params) -> Result;

    /// Logs that the device is in use elsewhere.
    fn log_busy();
}

/// A table's use of a metadata device, in the list of all.
struct Entry<M> {
    number: u32,
    owner: MappedDevice,
    table: TableId,
    /// None while it is being opened.
    metadata: Option<Arc<M>>,
    next: Option<KBox<Entry<M>>>,
}

/// All metadata devices in use.
#[pin_data]
pub(crate) struct SharedMetadata<M> {
    #[pin]
    entries: Mutex<Option<KBox<Entry<M>>>>,
}

impl<M: ShareableMetadata> SharedMetadata<M> {
    /// An empty registry. Sleeps.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let new = pin_init!(SharedMetadata { entries <- new_mutex!(None, "dm_rust_metadata") });
        Arc::pin_init(new, GFP_KERNEL)
    }

    /// Opens the metadata of a new table, or joins those that share it. Sleeps for I/O, but not
    /// under a lock: a device that hangs holds nobody else up.
    pub(super) fn get_or_open(
        self: &Arc<Self>,
        device: &Device,
        owner: MappedDevice,
        table: TableId,
        params: M::Params,
    ) -> Result<MetadataRef<M>> {
        let (shared, guard) = self.add_entry(device.number(), owner, table)?;
        let metadata = match shared {
            Some(metadata) => {
                delay_point!(c"shared metadata: entered, not yet accepted");
                metadata.check_compatible(params)?;
                metadata
            }
            None => {
                let metadata = M::open(device, params)?;
                delay_point!(c"shared metadata: opened, not yet shared");
                self.set_metadata(&guard, &metadata);
                metadata
            }
        };
        Ok(MetadataRef {
            metadata,
            _guard: guard,
        })
    }

    /// Enters a table into the list, and finds the state that others share.
    fn add_entry(
        self: &Arc<Self>,
        number: u32,
        owner: MappedDevice,
        table: TableId,
    ) -> Result<(Option<Arc<M>>, EntryGuard<M>)> {
        let new = Entry {
            number,
            owner,
            table,
            metadata: None,
            next: None,
        };
        let mut new = KBox::new(new, GFP_KERNEL)?;
        let mut entries = self.entries.lock();
        let mut next = entries.as_ref();
        while let Some(other) = next {
            if other.number == number {
                if other.owner != owner || other.table == table || other.metadata.is_none() {
                    M::log_busy();
                    return Err(EBUSY);
                }
                new.metadata = other.metadata.clone();
            }
            next = other.next.as_ref();
        }
        let shared = new.metadata.clone();
        new.next = entries.take();
        *entries = Some(new);
        let registry = self.clone();
        Ok((
            shared,
            EntryGuard {
                number,
                table,
                registry,
            },
        ))
    }

    /// Lets others share what has been opened.
    fn set_metadata(&self, guard: &EntryGuard<M>, metadata: &Arc<M>) {
        let mut entries = self.entries.lock();
        let mut next = (*entries).as_mut();
        while let Some(other) = next {
            if other.number == guard.number && other.table == guard.table {
                other.metadata = Some(metadata.clone());
            }
            next = other.next.as_mut();
        }
    }

    /// Takes a table out of the list. What it held, perhaps the last reference to the metadata, is
    /// for the caller to drop.
    fn remove_entry(&self, guard: &EntryGuard<M>) -> Option<Arc<M>> {
        let mut entries = self.entries.lock();
        let mut link = &mut *entries;
        while link
            .as_ref()
            .is_some_and(|other| other.number != guard.number || other.table != guard.table)
        {
            link = &mut link.as_mut()?.next;
        }
        let removed = KBox::into_inner(link.take()?);
        *link = removed.next;
        removed.metadata
    }
}

/// An entry in the registry: it ends when dropped. Process context, sleeps.
struct EntryGuard<M: ShareableMetadata> {
    number: u32,
    table: TableId,
    registry: Arc<SharedMetadata<M>>,
}

impl<M: ShareableMetadata> Drop for EntryGuard<M> {
    fn drop(&mut self) {
        // Closing it may take long: not under the registry's lock.
        let last = self.registry.remove_entry(self);
        delay_point!(c"shared metadata: left, not yet closed");
        drop(last);
    }
}

/// A table's membership.
pub(super) struct MetadataRef<M: ShareableMetadata> {
    metadata: Arc<M>,
    _guard: EntryGuard<M>,
}

impl<M: ShareableMetadata> core::ops::Deref for MetadataRef<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.metadata
    }
}
