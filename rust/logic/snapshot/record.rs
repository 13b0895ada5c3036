// SPDX-License-Identifier: GPL-2.0

//! Records, each of which says where a persistent store has a chunk of the origin.
//!
//! A record is two little-endian numbers of eight bytes: a chunk of the origin, then one of the COW
//! device. The first record of all areas whose second number is zero ends the list; what lies
//! behind it means nothing. C counterparts: `struct disk_exception` and `insert_exceptions` of
//! `drivers/md/dm-snap-persistent.c`.

use zerocopy::{
    little_endian::U64,
    FromBytes as _, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned, //
};

use crate::logic::snapshot::chunks::{
    Chunk,
    CowChunk, //
};

/// The size of a record in bytes.
pub(crate) const RECORD_SIZE: usize = 16;

/// A record as it lies on disk, not yet trusted.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct DiskException {
    old: U64,
    new: U64,
}

const _: () = {
    assert!(core::mem::size_of::<DiskException>() == RECORD_SIZE);
    assert!(core::mem::align_of::<DiskException>() == 1);
};

/// Says that the chunk `old` of the origin is at `new` on the COW device. All zeros end the list.
///
/// A plain value, free to use in any context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    /// The chunk of the origin.
    pub(crate) old: Chunk,
    /// The chunk of the COW device.
    pub(crate) new: CowChunk,
}

impl Record {
    /// Reads a slot of an area; `None` if the area does not have it.
    pub(crate) fn get(area: &[u8], slot: u64) -> Option<Self> {
        let (disk, _) = DiskException::ref_from_prefix(area.get(start(slot)?..)?).ok()?;
        Some(disk.read())
    }

    /// Writes a slot of an area; `None` if the area does not have it.
    pub(crate) fn put(self, area: &mut [u8], slot: u64) -> Option<()> {
        let (disk, _) = DiskException::mut_from_prefix(area.get_mut(start(slot)?..)?).ok()?;
        *disk = DiskException {
            old: U64::new(self.old.0),
            new: U64::new(self.new.0),
        };
        Some(())
    }
}

impl DiskException {
    pub(crate) fn read(&self) -> Record {
        Record {
            old: Chunk(self.old.get()),
            new: CowChunk(self.new.get()),
        }
    }
}

/// Where a slot starts in its area, in bytes.
fn start(slot: u64) -> Option<usize> {
    usize::try_from(slot).ok()?.checked_mul(RECORD_SIZE)
}
