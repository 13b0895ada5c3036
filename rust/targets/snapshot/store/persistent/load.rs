// SPDX-License-Identifier: GPL-2.0

//! Reads a persistent store.
//!
//! C counterpart: `persistent_read_metadata()`.

use super::{
    window_sectors,
    PersistentStore,
    PER_SECTOR, //
};
use crate::{
    dm::{
        device::Device,
        io::Buffer,
        read_ahead::ReadAhead, //
    },
    logic::{
        snapshot::{
            chunks::CowChunk,
            layout::PersistentAllocator,
            loader::{
                LoadError,
                LoadProgress,
                RecordLoader, //
            },
            record::RECORD_SIZE,
            record_batch::ZeroedAreas,
            run::Run, //
        },
        units::{
            Sector,
            Sectors, //
        }, //
    },
    sys::log::{
        err,
        warning, //
    }, //
};
use core::num::NonZeroU64;
use kernel::{
    block::SECTOR_SHIFT,
    prelude::*, //
};

/// A store as read from disk.
pub(crate) struct Loaded {
    /// The window that has the next record, with zeros after the last one.
    window: Buffer,
    records: u64,
    /// The chunk after the last one in use.
    next: CowChunk,
    ignored: KVVec<u64>,
    has_stale_records: bool,
}

impl PersistentStore {
    /// Reads all records and calls `visit` with the exceptions in their order. The store changes
    /// only with [`install`](Self::install). May sleep.
    ///
    /// # Errors
    ///
    /// `EINVAL` if a record is damaged, `EIO` if an area is beyond the end of the COW device, else
    /// those of the I/O, of memory, or of `visit`.
    pub(crate) fn load(
        &self,
        cow: &Device,
        mut visit: impl FnMut(Run) -> Result,
    ) -> Result<Loaded> {
        let (layout, end) = (self.layout, cow.sectors());
        let piece = window_sectors(layout);
        let pieces = layout.size().sectors().checked_div(piece);
        let pieces = NonZeroU64::new(pieces.unwrap_or(0).into()).ok_or(EINVAL)?;
        // Numbers the pieces of all areas in their order.
        let place = |number: u64| -> Option<Sector> {
            let (area, offset) = (number / pieces, number % pieces);
            let start = layout.size().cow_start(layout.area_location(area))?;
            let start = start.checked_add(Sectors(offset.checked_mul(piece.into())?))?;
            layout.has_area(area, end).then_some(start)
        };
        let mut window = Buffer::new(piece)?;
        let mut reader = ReadAhead::new(cow, piece, place)?;
        let mut loader = RecordLoader::new(layout, end);
        let mut number = 0u64;
        let mut stale = loop {
            let Some(bytes) = reader.next()? else {
                err!(
                    "persistent snapshot",
                    "the area after exception {} is beyond the end of the COW device",
                    loader.records()
                );
                return Err(EIO);
            };
            number = number.wrapping_add(1);
            match loader.feed(bytes, &mut visit) {
                Ok(LoadProgress::More) => {}
                Ok(LoadProgress::End { stale }) => {
                    window.copy_from(bytes);
                    break stale;
                }
                Err(failure) => {
                    if let LoadError::Damaged(bad) = &failure {
                        err!("persistent snapshot", "{}", bad);
                    }
                    return Err(failure.into());
                }
            }
        };
        // Data after the list in the last area is stale too.
        while number % pieces != 0 {
            let bytes = reader.next()?.ok_or(EIO)?;
            stale |= bytes.iter().any(|byte| *byte != 0);
            number = number.wrapping_add(1);
        }
        let records = loader.records();
        let used = usize::try_from(records % self.per_window())?;
        let rest = used.checked_mul(RECORD_SIZE);
        if let Some(rest) = rest.and_then(|at| window.get_mut(at..)) {
            rest.fill(0);
        }
        Ok(Loaded {
            window,
            records,
            next: loader.next(),
            ignored: core::mem::take(loader.ignored_records()),
            has_stale_records: stale,
        })
    }

    /// Replaces the store by what was read, and returns its free space.
    ///
    /// `has_repeated_origins` says that records were ignored because an earlier record has their
    /// chunk of the origin. May sleep.
    pub(crate) fn install(
        &mut self,
        loaded: Loaded,
        has_repeated_origins: bool,
    ) -> PersistentAllocator {
        let base = self.window_of(loaded.records);
        let sector = loaded.records.saturating_sub(base) / PER_SECTOR;
        let (block, _) = self.block_around(sector);
        let at = usize::try_from(block.wrapping_shl(SECTOR_SHIFT)).unwrap_or(usize::MAX);
        let block = loaded.window.get(at..).unwrap_or_default();
        self.tail.copy_from(block);
        // For a merge. The first commit frees it.
        self.window = loaded.window;
        self.window_start = Some(base);
        self.records = loaded.records;
        self.zeroed = ZeroedAreas::new(self.layout, loaded.records);
        self.ignored = loaded.ignored;
        self.has_stale_records = loaded.has_stale_records;
        self.has_repeated_origins = has_repeated_origins;
        self.in_doubt = None;
        if !self.ignored.is_empty() {
            warning!(
                "persistent snapshot",
                "ignored {} exceptions whose chunk of the COW device belongs to an earlier one",
                self.ignored.len()
            );
        }
        PersistentAllocator::new(self.layout, loaded.next, self.records)
    }
}
