// SPDX-License-Identifier: GPL-2.0

//! Loading of the records of a persistent store.
//!
//! C counterpart: `read_exceptions()` and `insert_exceptions()` of `dm-snap-persistent.c`.

use zerocopy::FromBytes as _;

use crate::env::{
    fmt,
    Error,
    KVVec,
    EINVAL,
    ENOMEM,
    GFP_KERNEL, //
};
use crate::logic::{
    snapshot::{
        chunks::{
            Chunk,
            CowChunk, //
        },
        exception_table::{
            ExceptionTable,
            InsertError,
            Lookup,
            SpareNodes, //
        },
        layout::Layout,
        lists::push,
        record::{
            DiskException,
            Record, //
        },
        run::{
            Run,
            MAX_RUN_CHUNKS, //
        }, //
    },
    units::Sectors, //
};

/// A record that no store can have. `Display` writes the log message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DamagedException {
    /// Its number, counted from zero over all areas.
    pub(crate) index: u64,
    /// The record.
    pub(crate) record: Record,
    /// The number of usable chunks of the COW device.
    pub(crate) chunks: u64,
}

impl fmt::Display for DamagedException {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { old, new } = self.record;
        let what = if new.0 < self.chunks {
            "which holds metadata"
        } else {
            "beyond the end of the COW device"
        };
        f.write_fmt(fmt!(
            "exception {} maps chunk {} to chunk {}, {}",
            self.index,
            old,
            new,
            what
        ))
    }
}

/// Why the records cannot be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoadError {
    /// A record on disk is damaged.
    Damaged(DamagedException),
    /// Another error occurred.
    Error(Error),
}

impl From<Error> for LoadError {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<LoadError> for Error {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Damaged(_) => EINVAL,
            LoadError::Error(error) => error,
        }
    }
}

/// Whether the list of records continues after a piece of it.
///
/// Any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoadProgress {
    /// The list continues.
    More,
    /// The list has ended.
    End {
        /// Whether the rest of the piece, from the end of the list on, is not all zeros.
        stale: bool,
    },
}

/// Parses the records of a store, area by area.
///
/// Validates each record, and ignores records whose chunk of the COW device an earlier record has.
/// The receiver of the runs must handle records with the same chunk of the origin.
pub(crate) struct RecordLoader {
    layout: Layout,
    /// The number of usable chunks of the COW device.
    chunks: u64,
    /// The number of records parsed.
    records: u64,
    /// The numbers of the records that were ignored because an earlier one has their chunk of the
    /// COW device.
    ignored_records: KVVec<u64>,
    /// The chunk after the highest chunk of the COW device so far. No chunk from here on was seen.
    next: CowChunk,
    /// All chunks from here up to `next` were seen, or hold metadata.
    first: CowChunk,
    /// The chunks from `next` up to here hold no metadata, and are within the COW device.
    free: u64,
    /// The chunks below `first` that were seen, each mapped to itself.
    seen: ExceptionTable,
    spares: SpareNodes,
}

impl RecordLoader {
    /// Makes a loader for a COW device of `cow` sectors.
    pub(crate) fn new(layout: Layout, cow: Sectors) -> Self {
        Self {
            layout,
            chunks: layout.size().cow_chunks(cow),
            records: 0,
            ignored_records: KVVec::new(),
            next: layout.chunk_of_record(0),
            first: layout.chunk_of_record(0),
            free: 0,
            seen: ExceptionTable::new(),
            spares: SpareNodes::new(),
        }
    }

    /// Returns the number of records, without the one that ends the list.
    #[inline]
    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    /// Returns the numbers, in ascending order, of the records that were ignored because an earlier
    /// one has their chunk of the COW device.
    #[inline]
    pub(crate) fn ignored_records(&mut self) -> &mut KVVec<u64> {
        &mut self.ignored_records
    }

    /// Returns the chunk after the highest one that a record names.
    #[inline]
    pub(crate) fn next(&self) -> CowChunk {
        self.next
    }

    /// Parses the next piece of the list, and passes the runs that it maps to `sink`, in order.
    ///
    /// The piece must consist of whole records. Must not be called again after the end of the list
    /// or after an error. May sleep.
    ///
    /// # Errors
    ///
    /// Fails if a record is damaged, if memory is short, and with the errors of `sink`.
    pub(crate) fn feed(
        &mut self,
        piece: &[u8],
        mut sink: impl FnMut(Run) -> Result<(), Error>,
    ) -> Result<LoadProgress, LoadError> {
        let mut run = Run::default();
        let mut left = piece;
        let mut fed = LoadProgress::More;
        while let Ok((disk, rest)) = DiskException::ref_from_prefix(left) {
            let record = disk.read();
            if record.new == CowChunk(0) {
                let stale = left.iter().any(|byte| *byte != 0);
                fed = LoadProgress::End { stale };
                break;
            }
            left = rest;
            if !self.check(record)? || extend(&mut run, record) {
                continue;
            }
            if run.len != 0 {
                sink(run)?;
            }
            run = single(record);
        }
        if run.len != 0 {
            sink(run)?;
        }
        Ok(fed)
    }

    /// Counts a record, and returns whether no earlier one has its chunk of the COW device.
    #[inline]
    fn check(&mut self, record: Record) -> Result<bool, LoadError> {
        // Fast path: nearly always this is the next chunk.
        if record.new != self.next || record.new.0 >= self.free {
            return self.check_any(record);
        }
        self.records = self.records.wrapping_add(1);
        self.next = CowChunk(record.new.0.wrapping_add(1));
        Ok(true)
    }

    /// Does the same for any chunk.
    #[cold]
    fn check_any(&mut self, record: Record) -> Result<bool, LoadError> {
        let Record { new, .. } = record;
        if new.0 >= self.chunks || self.layout.is_metadata(new) {
            return Err(LoadError::Damaged(DamagedException {
                index: self.records,
                record,
                chunks: self.chunks,
            }));
        }
        let number = self.records;
        self.records = number.wrapping_add(1);
        if new < self.next {
            let is_known =
                new >= self.first || matches!(self.seen.find(Chunk(new.0), 1), Lookup::Mapped(..));
            if is_known {
                push(&mut self.ignored_records, number, GFP_KERNEL).map_err(Error::from)?;
            } else {
                self.remember(new, CowChunk(new.0.saturating_add(1)))?;
            }
            return Ok(!is_known);
        }
        let mut expected = self.next;
        if self.layout.is_metadata(expected) {
            expected = CowChunk(expected.0.saturating_add(1));
        }
        if new != expected {
            self.remember(self.first, self.next)?;
            self.first = new;
        }
        self.next = CowChunk(new.0.saturating_add(1));
        self.free = self.layout.next_area(new).0.min(self.chunks);
        Ok(true)
    }

    /// Records in `seen` that the chunks from `first` up to `end` were seen.
    fn remember(&mut self, first: CowChunk, end: CowChunk) -> Result<(), Error> {
        let mut left = Run {
            old: Chunk(first.0),
            new: first,
            len: end.0.saturating_sub(first.0),
        };
        while left.len != 0 {
            let len = left.len.min(MAX_RUN_CHUNKS);
            self.remember_run(Run { len, ..left })?;
            left = left.without_first(len);
        }
        Ok(())
    }

    fn remember_run(&mut self, run: Run) -> Result<(), Error> {
        self.spares
            .refill(self.seen.spare_root_capacity(), GFP_KERNEL)?;
        let result = self.seen.insert(run, &mut self.spares);
        result.map_err(|refused| match refused {
            InsertError::NoMemory => ENOMEM,
            _ => EINVAL,
        })
    }
}

/// Returns the run of one record.
fn single(record: Record) -> Run {
    Run {
        old: record.old,
        new: record.new,
        len: 1,
    }
}

/// Extends a run by a record that follows it on both devices. Returns whether it does.
fn extend(run: &mut Run, record: Record) -> bool {
    let follows = run.len < MAX_RUN_CHUNKS
        && run.old.0.checked_add(run.len) == Some(record.old.0)
        && run.new.0.checked_add(run.len) == Some(record.new.0);
    if follows {
        run.len = run.len.saturating_add(1);
    }
    follows
}
