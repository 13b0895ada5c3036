// SPDX-License-Identifier: GPL-2.0

//! Reading pieces of a device, one after the other, with many of them under way at once.

use crate::{
    dm::{
        device::Device,
        io::{
            Buffer,
            IoClient,
            Transfer, //
        }, //
    },
    logic::units::Sector,
    sys::plug::plugged, //
};
use core::ops::Range;
use kernel::prelude::*;

/// As many pieces are read at once at most, but not more sectors than that.
const MOST: u32 = 64;
const MEMORY: u32 = 1 << 12;

/// Pieces from number `first` on, each in its place of the buffer.
#[derive(Default)]
struct Batch {
    buffer: Buffer,
    first: u64,
    pieces: u32,
}

impl Batch {
    /// The number of the piece behind the last.
    fn end(&self) -> u64 {
        self.first.saturating_add(self.pieces.into())
    }
}

/// Reads pieces of a device, which may lie anywhere, in their order; `place` says where the n-th
/// is, `None` behind the last.
///
/// While the pieces of one batch are looked at, the next batch is read, which has twice as many. A
/// piece that cannot be read is an error only when it is its turn.
pub(crate) struct ReadAhead<'a, F> {
    // Dropped first: it waits for what is being read.
    io: IoClient,
    device: &'a Device,
    place: F,
    /// Sectors of a piece.
    len: u32,
    /// The next piece.
    next: u64,
    now: Batch,
    /// Some piece of `now` could not be read.
    failed: bool,
    /// Is being read; nobody touches its buffer until `io` is drained.
    coming: Batch,
}

impl<'a, F: Fn(u64) -> Option<Sector>> ReadAhead<'a, F> {
    /// Begins with the first of pieces of so many sectors. Sleeps.
    pub(crate) fn new(device: &'a Device, len: u32, place: F) -> Result<Self> {
        let mut reader = ReadAhead {
            io: IoClient::new(device.target_ref())?,
            device,
            place,
            len,
            next: 0,
            now: Batch::default(),
            failed: false,
            coming: Batch::default(),
        };
        reader.start(0, 1)?;
        Ok(reader)
    }

    /// The next piece, `None` behind the last. Sleeps for I/O.
    pub(crate) fn next(&mut self) -> Result<Option<&[u8]>> {
        if self.next >= self.now.end() {
            self.turn()?;
            if self.now.pieces == 0 {
                return Ok(None);
            }
        }
        let index = u32::try_from(self.next.saturating_sub(self.now.first))?;
        let part = self.part(index);
        if self.failed {
            // Perhaps it was another one.
            let start = (self.place)(self.next).ok_or(EINVAL)?;
            let buffer = &mut self.now.buffer;
            self.io
                .transfer_part(Transfer::Read, self.device, start, buffer, part.clone())?;
        }
        self.next = self.next.saturating_add(1);
        Ok(Some(self.now.buffer.part(part)?))
    }

    /// The sectors of a buffer that are those of a piece.
    fn part(&self, index: u32) -> Range<u32> {
        let from = index.saturating_mul(self.len);
        from..from.saturating_add(self.len)
    }

    /// Goes on to the next batch, and starts to read the one behind it.
    fn turn(&mut self) -> Result {
        self.failed = self.io.drain_reads().is_err();
        core::mem::swap(&mut self.now, &mut self.coming);
        let most = MEMORY.checked_div(self.len).unwrap_or(0).clamp(1, MOST);
        self.start(self.now.end(), self.now.pieces.saturating_mul(2).min(most))
    }

    /// Starts to read up to so many pieces from `first` on, into `coming`. Nothing is being read.
    fn start(&mut self, first: u64, most: u32) -> Result {
        let mut batch = Batch {
            buffer: core::mem::take(&mut self.coming.buffer),
            first,
            pieces: 0,
        };
        let sectors = most.saturating_mul(self.len);
        if batch.buffer.part(0..sectors).is_err() {
            batch.buffer = Buffer::new(sectors)?;
        }
        let mut result = Ok(());
        plugged(|| {
            let numbers = first..first.saturating_add(most.into());
            for start in numbers.map_while(&self.place) {
                let part = self.part(batch.pieces);
                // SAFETY: The buffer stays in `coming` until the client is drained, by `turn` or
                // when it is dropped.
                result = unsafe { self.io.read(self.device, start, &mut batch.buffer, part) };
                if result.is_err() {
                    break;
                }
                batch.pieces = batch.pieces.saturating_add(1);
            }
        });
        self.coming = batch;
        result
    }
}
