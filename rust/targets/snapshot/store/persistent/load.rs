// SPDX-License-Identifier: GPL-2.0

//! Reading a persistent store.

use super::{
    window_sectors,
    PersistentStore, //
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
use kernel::prelude::*;

/// What was read of a store.
pub(crate) struct Loaded {
    /// That of the last records, without what is behind them.
    window: Buffer,
    records: u64,
    /// The first chunk behind all that are in use.
    next: CowChunk,
    ignored: KVVec<u64>,
    has_stale_records: bool,
}

impl PersistentStore {
    /// Reads all records, and passes on what they map, in their order. Changes nothing: that is up
    /// to [`install`](Self::install). Sleeps for I/O.
    pub(crate) fn load(&self, cow: &Device, mut visit: impl FnMut(Run) -> Result) -> Result<Loaded> {
        let (layout, end) = (self.layout, cow.sectors());
        let piece = window_sectors(layout);
        let pieces = layout.size().sectors().checked_div(piece);
        let pieces = NonZeroU64::new(pieces.unwrap_or(0).into()).ok_or(EINVAL)?;
        // The pieces of all areas, one behind the other.
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
                    "the area behind exception {} is not on the COW device",
                    loader.records()
                );
                return Err(EIO);
            };
            number = number.saturating_add(1);
            match loader.feed(bytes, &mut visit) {
                Ok(LoadProgress::More) => {}
                Ok(LoadProgress::End { stale }) => {
                    for (to, from) in window.iter_mut().zip(bytes) {
                        *to = *from;
                    }
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
        // The rest of the area.
        while number % pieces != 0 {
            let bytes = reader.next()?.ok_or(EIO)?;
            stale |= bytes.iter().any(|byte| *byte != 0);
            number = number.saturating_add(1);
        }
        let records = loader.records();
        let used = usize::try_from(records % self.per_window())?;
        let behind = used.checked_mul(RECORD_SIZE);
        if let Some(behind) = behind.and_then(|at| window.get_mut(at..)) {
            behind.fill(0);
        }
        Ok(Loaded {
            window,
            records,
            next: loader.next(),
            ignored: core::mem::take(loader.ignored_records()),
            stale,
        })
    }

    /// Takes over what was read, and whether there are records that do not count, as earlier ones
    /// have their chunks of the origin. Gives what is free.
    pub(crate) fn install(&mut self, loaded: Loaded, has_repeated_origins: bool) -> PersistentAllocator {
        self.window_start = Some(self.window_of(loaded.records));
        self.window = loaded.window;
        self.records = loaded.records;
        self.ignored = loaded.ignored;
        self.has_stale_records = loaded.stale;
        self.has_repeated_origins = has_repeated_origins;
        self.in_doubt = None;
        if !self.ignored.is_empty() {
            warning!(
                "persistent snapshot",
                "{} exceptions were ignored: their chunks are those of earlier ones",
                self.ignored.len()
            );
        }
        PersistentAllocator::new(self.layout, loaded.next, self.records)
    }
}
