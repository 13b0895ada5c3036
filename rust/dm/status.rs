// SPDX-License-Identifier: GPL-2.0

//! The text buffer of `status` and `message`.

use crate::sys::noio::NoIo;
use kernel::{
    fmt,
    prelude::*, //
};

/// Which text `status` is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatusKind {
    /// The state (`dmsetup status`).
    Info,
    /// The table line (`dmsetup table`).
    Table,
    /// The line that is measured by the integrity subsystem.
    Ima,
}

/// Where the text of a hook goes. What does not fit is cut off: device-mapper sees a full buffer,
/// and user space asks again with a larger one. So writing never fails for the hook.
pub(crate) struct StatusBuf<'a>(&'a mut dyn fmt::Write);

impl<'a> StatusBuf<'a> {
    pub(super) fn new(sink: &'a mut dyn fmt::Write) -> Self {
        StatusBuf(sink)
    }

    /// Appends formatted text.
    pub(crate) fn emit(&mut self, args: fmt::Arguments<'_>) {
        // The sinks below keep their errors to themselves.
        let _ = self.0.write_fmt(args);
    }
}

/// The longest part of a text, from its start, that has room. In bytes, as C cuts it.
fn part(text: &str, room: usize) -> &[u8] {
    let bytes = text.as_bytes();
    bytes.get(..room).unwrap_or(bytes)
}

/// A C string buffer of device-mapper.
pub(super) struct CStrBuffer<'a> {
    buffer: &'a mut [u8],
    used: usize,
}

impl<'a> CStrBuffer<'a> {
    /// Starts with an empty string.
    pub(super) fn new(buffer: &'a mut [u8]) -> Self {
        if let Some(first) = buffer.first_mut() {
            *first = 0;
        }
        CStrBuffer { buffer, used: 0 }
    }
}

impl fmt::Write for CStrBuffer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // One byte stays for the final nul.
        let room = self
            .buffer
            .len()
            .saturating_sub(self.used)
            .saturating_sub(1);
        let text = part(text, room);
        if let Some(rest) = self.buffer.get_mut(self.used..) {
            for (to, from) in rest.iter_mut().zip(text) {
                *to = *from;
            }
            self.used = self.used.saturating_add(text.len());
        }
        if let Some(nul) = self.buffer.get_mut(self.used) {
            *nul = 0;
        }
        Ok(())
    }
}

/// The answer to a message, which must not be where the words still are.
pub(super) struct MessageReply {
    text: KVVec<u8>,
    most: usize,
    result: Result,
}

impl MessageReply {
    /// None so far, and at most so many bytes.
    pub(super) fn new(most: usize) -> Self {
        MessageReply {
            text: KVVec::new(),
            most,
            result: Ok(()),
        }
    }

    fn append(&mut self, text: &[u8]) -> Result {
        let len = self.text.len().saturating_add(text.len());
        if len > self.text.capacity() {
            // Not `reserve`, which can panic.
            let room = self.text.capacity().saturating_mul(2).max(len);
            let mut grown = KVVec::with_capacity(room, GFP_KERNEL)?;
            for byte in self.text.iter() {
                grown.push_within_capacity(*byte)?;
            }
            self.text = grown;
        }
        for byte in text {
            self.text.push_within_capacity(*byte)?;
        }
        Ok(())
    }

    /// The whole text; `ENOMEM` if there was no memory for some of it.
    pub(super) fn finish(&self) -> Result<&[u8]> {
        self.result.map(|()| &*self.text)
    }
}

impl fmt::Write for MessageReply {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // The device may be suspended, and the hook may have locks that its I/O needs.
        let _noio = NoIo::enter();
        let text = part(text, self.most.saturating_sub(self.text.len()));
        if self.result.is_ok() {
            self.result = self.append(text);
        }
        Ok(())
    }
}
