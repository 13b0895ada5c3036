// SPDX-License-Identifier: GPL-2.0

//! Records, of which the areas of a persistent store consist.
//!
//! A record consists of two little-endian numbers of eight bytes: a chunk of the origin, and the
//! chunk of the COW device that stores it. The first record, over all areas, whose second number is
//! zero ends the list. What follows it has no meaning.

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

/// A record on disk, which is not validated.
///
/// C counterpart: `struct disk_exception`.
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

/// A record: chunk `old` of the origin is stored in chunk `new` of the COW device.
///
/// C counterpart: `struct core_exception`. Any context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    /// The chunk of the origin.
    pub(crate) old: Chunk,
    /// The chunk of the COW device. Zero ends the list.
    pub(crate) new: CowChunk,
}

impl Record {
    /// Reads the record in a slot of an area, or returns `None` if the area has no such slot.
    pub(crate) fn get(area: &[u8], slot: u64) -> Option<Self> {
        let (disk, _) = DiskException::ref_from_prefix(area.get(offset(slot)?..)?).ok()?;
        Some(disk.read())
    }

    /// Writes the record to a slot of an area, or returns `None` if the area has no such slot.
    pub(crate) fn put(self, area: &mut [u8], slot: u64) -> Option<()> {
        let (disk, _) = DiskException::mut_from_prefix(area.get_mut(offset(slot)?..)?).ok()?;
        *disk = DiskException {
            old: U64::new(self.old.0),
            new: U64::new(self.new.0),
        };
        Some(())
    }
}

impl DiskException {
    /// Converts the record to native byte order.
    pub(crate) fn read(&self) -> Record {
        Record {
            old: Chunk(self.old.get()),
            new: CowChunk(self.new.get()),
        }
    }
}

/// Returns the offset of a slot in its area, in bytes.
fn offset(slot: u64) -> Option<usize> {
    usize::try_from(slot).ok()?.checked_mul(RECORD_SIZE)
}
