// SPDX-License-Identifier: GPL-2.0

//! Reads the areas of a persistent store.

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

/// A record that no store can have; `Display` writes the line for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DamagedException {
    /// Its number, counted from zero over all areas.
    pub(crate) index: u64,
    /// The record.
    pub(crate) record: Record,
    /// The number of chunks of the COW device that can be used.
    pub(crate) chunks: u64,
}

impl fmt::Display for DamagedException {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { old, new } = self.record;
        let what = if new.0 < self.chunks {
            "which holds metadata"
        } else {
            "behind the end of the COW device"
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
    /// For what is on disk.
    Damaged(DamagedException),
    /// For something else.
    Error(Error),
}

impl From<Error> for LoadError {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<LoadError> for Error {
    fn from(failure: LoadError) -> Self {
        match failure {
            LoadError::Damaged(_) => EINVAL,
            LoadError::Error(error) => error,
        }
    }
}

/// Where the list of records stands behind a piece of it.
///
/// A plain value, free to use in any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoadProgress {
    /// It goes on.
    More,
    /// It has ended.
    End {
        /// Whether the piece has anything but zeros from the end of the list on.
        stale: bool,
    },
}

/// Reads the records of a store, area by area, and sees that no two of them share a chunk of the
/// COW device.
///
/// Two records with the same chunk of the origin are for the receiver to find. Does no I/O; may
/// sleep for memory.
pub(crate) struct RecordLoader {
    layout: Layout,
    /// The number of chunks of the COW device that can be used.
    chunks: u64,
    records: u64,
    /// The numbers of the records that were left out because an earlier one has their chunk of the
    /// COW device.
    ignored_records: KVVec<u64>,
    /// Behind the highest chunk of the COW device so far: what is not below it was not seen yet.
    next: CowChunk,
    /// The first of the chunks up to `next` that were all seen, or hold metadata.
    first: CowChunk,
    /// From `next` up to here there is neither metadata nor the end of the COW device.
    free: u64,
    /// The chunks of the COW device that were seen below `first`, each mapped to itself.
    seen: ExceptionTable,
    spares: SpareNodes,
}

impl RecordLoader {
    /// Begins with the first area of a COW device of `cow` sectors.
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

    /// The number of records, without the one that ends the list.
    #[inline]
    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    /// The numbers of the records that were left out because an earlier one has their chunk of the
    /// COW device, rising.
    #[inline]
    pub(crate) fn ignored_records(&mut self) -> &mut KVVec<u64> {
        &mut self.ignored_records
    }

    /// The chunk behind the highest one that a record names.
    #[inline]
    pub(crate) fn next(&self) -> CowChunk {
        self.next
    }

    /// Reads the next piece of the list, whole records, and passes on what they map, in order. Not
    /// to be called again behind the end of the list or after a failure.
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
            if !self.take(record)? || extend(&mut run, record) {
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

    /// Counts a record and tells whether its chunk of the COW device is new.
    #[inline]
    fn take(&mut self, record: Record) -> Result<bool, LoadError> {
        // Nearly always it is the next chunk.
        if record.new != self.next || record.new.0 >= self.free {
            return self.take_any(record);
        }
        self.records = self.records.wrapping_add(1);
        self.next = CowChunk(record.new.0.wrapping_add(1));
        Ok(true)
    }

    /// The same, wherever the chunk is.
    #[cold]
    fn take_any(&mut self, record: Record) -> Result<bool, LoadError> {
        let Record { new, .. } = record;
        if new.0 >= self.chunks || self.layout.is_metadata(new) {
            return Err(LoadError::Damaged(DamagedException {
                index: self.records,
                record,
                chunks: self.chunks,
            }));
        }
        let number = self.records;
        self.records = number.saturating_add(1);
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
        let mut behind = self.next;
        if self.layout.is_metadata(behind) {
            behind = CowChunk(behind.0.saturating_add(1));
        }
        if new != behind {
            self.remember(self.first, self.next)?;
            self.first = new;
        }
        self.next = CowChunk(new.0.saturating_add(1));
        self.free = self.layout.next_area(new).0.min(self.chunks);
        Ok(true)
    }

    /// Notes that the chunks of the COW device from `first` up to `end` were seen.
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

/// The run of one record.
fn single(record: Record) -> Run {
    Run {
        old: record.old,
        new: record.new,
        len: 1,
    }
}

/// Makes a run longer by a record that follows it on both devices, and tells whether it does.
fn extend(run: &mut Run, record: Record) -> bool {
    let follows = run.len < MAX_RUN_CHUNKS
        && run.old.0.checked_add(run.len) == Some(record.old.0)
        && run.new.0.checked_add(run.len) == Some(record.new.0);
    if follows {
        run.len = run.len.saturating_add(1);
    }
    follows
}
