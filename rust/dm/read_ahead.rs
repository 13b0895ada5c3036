// SPDX-License-Identifier: GPL-2.0

//! Reading blocks of a device in order, with read-ahead.

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

/// The maximum number of blocks that are read at a time.
const MAX_BLOCKS: u32 = 64;

/// The maximum number of sectors that are read at a time.
const MAX_SECTORS: u32 = 1 << 12;

/// Blocks with consecutive numbers from `first` on, in a buffer.
#[derive(Default)]
struct Batch {
    buffer: Buffer,
    first: u64,
    blocks: u32,
}

impl Batch {
    /// Returns the number after the last block.
    fn end(&self) -> u64 {
        self.first.saturating_add(self.blocks.into())
    }
}

/// Reads blocks of a device in order.
///
/// The function `locate` returns the location of a block by its number, and `None` after the last
/// one. While the caller works on a batch of blocks, the next batch is read, which is twice as
/// large. A block that cannot be read is an error when the caller comes to it, and not before.
pub(crate) struct ReadAhead<'a, F> {
    // Dropped first: this waits until nothing is being read.
    io: IoClient,
    device: &'a Device,
    locate: F,
    /// Sectors per block.
    len: u32,
    /// The number of the next block.
    next: u64,
    current: Batch,
    /// A block of `current` could not be read.
    failed: bool,
    /// The batch that is being read. Nothing uses its buffer until `io` is drained.
    pending: Batch,
}

impl<'a, F: Fn(u64) -> Option<Sector>> ReadAhead<'a, F> {
    /// Starts to read, with blocks of `len` sectors. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; `EINVAL` if a block is too large.
    pub(crate) fn new(device: &'a Device, len: u32, locate: F) -> Result<Self> {
        let mut reader = ReadAhead {
            io: IoClient::new(device.target_ref())?,
            device,
            locate,
            len,
            next: 0,
            current: Batch::default(),
            failed: false,
            pending: Batch::default(),
        };
        reader.start(0, 1)?;
        Ok(reader)
    }

    /// Returns the next block, or `None` after the last one. May sleep.
    ///
    /// # Errors
    ///
    /// `EIO` if the block cannot be read; `ENOMEM`.
    pub(crate) fn next(&mut self) -> Result<Option<&[u8]>> {
        if self.next >= self.current.end() {
            self.advance()?;
            if self.current.blocks == 0 {
                return Ok(None);
            }
        }
        let index = u32::try_from(self.next.saturating_sub(self.current.first))?;
        let part = self.part(index);
        if self.failed {
            // Another block of the batch may have failed, so read this one again.
            let start = (self.locate)(self.next).ok_or(EINVAL)?;
            let buffer = &mut self.current.buffer;
            self.io
                .transfer_part(Transfer::Read, self.device, start, buffer, part.clone())?;
        }
        self.next = self.next.saturating_add(1);
        Ok(Some(self.current.buffer.part(part)?))
    }

    /// Returns the sectors of a block within its buffer.
    fn part(&self, index: u32) -> Range<u32> {
        let from = index.saturating_mul(self.len);
        from..from.saturating_add(self.len)
    }

    /// Makes the pending batch the current one, and starts to read the next one.
    fn advance(&mut self) -> Result {
        self.failed = self.io.drain_reads().is_err();
        core::mem::swap(&mut self.current, &mut self.pending);
        let most = MAX_SECTORS
            .checked_div(self.len)
            .unwrap_or(0)
            .clamp(1, MAX_BLOCKS);
        self.start(
            self.current.end(),
            self.current.blocks.saturating_mul(2).min(most),
        )
    }

    /// Starts to read up to `most` blocks from number `first` on, into `pending`. Nothing is being
    /// read when this is called.
    fn start(&mut self, first: u64, most: u32) -> Result {
        let mut batch = Batch {
            buffer: core::mem::take(&mut self.pending.buffer),
            first,
            blocks: 0,
        };
        let sectors = most.saturating_mul(self.len);
        if batch.buffer.part(0..sectors).is_err() {
            batch.buffer = Buffer::new(sectors)?;
        }
        let mut result = Ok(());
        plugged(|| {
            let numbers = first..first.saturating_add(most.into());
            for start in numbers.map_while(&self.locate) {
                let part = self.part(batch.blocks);
                // SAFETY: The buffer remains in `pending`, unused, until the client is drained: by
                // `advance`, or when it is dropped, which is before the buffer.
                result = unsafe { self.io.read(self.device, start, &mut batch.buffer, part) };
                if result.is_err() {
                    break;
                }
                batch.blocks = batch.blocks.saturating_add(1);
            }
        });
        self.pending = batch;
        result
    }
}
