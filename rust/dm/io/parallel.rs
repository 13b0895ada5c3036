// SPDX-License-Identifier: GPL-2.0

//! Several writes at once.

use super::{
    memory,
    request::InflightCount,
    Buffer,
    IoClient,
    Transfer, //
};
use crate::{
    dm::device::Device,
    logic::units::Sector, //
};
use core::ops::Range;
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// A part of a buffer, and where it is written.
pub(crate) struct PartWrite {
    /// The first sector on the device.
    pub(crate) start: Sector,
    /// The sectors of the buffer.
    pub(crate) part: Range<u32>,
}

/// Performs writes that are in flight at the same time.
pub(crate) struct ParallelWrites(Arc<InflightCount>);

impl ParallelWrites {
    /// Allocates what [`write`](Self::write) needs. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        Ok(ParallelWrites(InflightCount::new()?))
    }

    /// Writes parts of a buffer, all at once, and waits for them. The parts may overlap in the
    /// buffer. May sleep.
    ///
    /// # Errors
    ///
    /// `EIO` if one of the writes failed; `EINVAL` if the buffer does not have a part, or the
    /// device is of another target. The other writes are done nonetheless.
    pub(crate) fn write(
        &mut self,
        io: &IoClient,
        what: Transfer,
        device: &Device,
        buffer: &mut Buffer,
        writes: &[PartWrite],
    ) -> Result {
        if what == Transfer::Read {
            return Err(EINVAL);
        }
        let mut result = Ok(());
        for write in writes {
            let started = buffer.part(write.part.clone()).and_then(|bytes| {
                let (memory, len) = memory(bytes);
                // SAFETY: The buffer is borrowed until this function has drained the count below.
                // Nothing writes to it meanwhile, and a write to a device only reads memory, so
                // parts may overlap. The extent has the length of the memory.
                unsafe { io.start_counted(what, device, (write.start, len), memory, &self.0) }
            });
            result = result.and(started);
        }
        let done = self.0.drain_result();
        result.and(done)
    }
}
