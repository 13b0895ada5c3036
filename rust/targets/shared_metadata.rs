// SPDX-License-Identifier: GPL-2.0

//! The metadata devices in use, and the tables that share them.
//!
//! All tables of one mapped device that name the same metadata device share one
//! [`ShareableMetadata`]. So a table that is loaded over a live one sees every change that the live
//! one makes until it goes live itself, and the metadata is opened only once. Another mapped
//! device, or a second target of the same table, is refused.
//!
//! C has no counterpart: each table of `dm-clone` and `dm-era` opens the metadata for itself.

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

/// Metadata that several tables can share.
pub(crate) trait ShareableMetadata: Send + Sync + Sized + 'static {
    /// The arguments of a table line that all tables sharing the metadata must agree on.
    type Params: Copy;

    /// Opens the metadata for the first of its tables. May sleep.
    fn open(device: &Device, params: Self::Params) -> Result<Arc<Self>>;

    /// Checks that a further table can share the metadata. May sleep.
    ///
    /// # Errors
    ///
    /// That of the argument that differs.
    fn check_compatible(&self, params: Self::Params) -> Result;

    /// Logs that another target uses the metadata device.
    fn log_busy();
}

/// The use of a metadata device by a table, in a linked list.
struct Entry<M> {
    number: u32,
    owner: MappedDevice,
    table: TableId,
    /// `None` while it is being opened.
    metadata: Option<Arc<M>>,
    next: Option<KBox<Entry<M>>>,
}

/// All uses of metadata devices by the tables of one target type.
#[pin_data]
pub(crate) struct SharedMetadata<M> {
    #[pin]
    entries: Mutex<Option<KBox<Entry<M>>>>,
}

impl<M: ShareableMetadata> SharedMetadata<M> {
    /// Makes an empty list. May sleep.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let new = pin_init!(SharedMetadata { entries <- new_mutex!(None, "dm_rust_metadata") });
        Arc::pin_init(new, GFP_KERNEL)
    }

    /// Opens the metadata of a new table, or returns that of the tables that share it.
    ///
    /// May sleep for I/O, without a lock held: a device that hangs blocks no other table.
    ///
    /// # Errors
    ///
    /// `EBUSY` if another mapped device, or another target of the same table, uses the metadata
    /// device, or if it is just being opened; those of [`ShareableMetadata::check_compatible`] and
    /// [`ShareableMetadata::open`].
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

    /// Adds a table to the list, and returns the metadata that other tables have opened.
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

    /// Lets further tables share the metadata that a table has opened.
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

    /// Removes a table from the list, and returns its reference to the metadata, which may be the
    /// last one.
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

/// Keeps an entry in the list until dropped. Dropping it may sleep.
struct EntryGuard<M: ShareableMetadata> {
    number: u32,
    table: TableId,
    registry: Arc<SharedMetadata<M>>,
}

impl<M: ShareableMetadata> Drop for EntryGuard<M> {
    fn drop(&mut self) {
        // Closing the metadata may take long, so it happens without the lock of the list.
        let last = self.registry.remove_entry(self);
        delay_point!(c"shared metadata: left, not yet closed");
        drop(last);
    }
}

/// A table's reference to its metadata. Dropping it may sleep.
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
