// SPDX-License-Identifier: GPL-2.0

//! The text that the hooks `status` and `message` return.

use crate::sys::noio::NoIo;
use kernel::{
    fmt,
    prelude::*, //
};

/// The kind of text that `status` is to write. C counterpart: `status_type_t`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatusKind {
    /// The state, for `dmsetup status`.
    Info,
    /// The table line, for `dmsetup table`.
    Table,
    /// The line that the integrity subsystem measures.
    Ima,
}

/// The destination of a hook's text. C counterpart: `DMEMIT`.
///
/// Text that does not fit is cut off. Device-mapper then sees a full buffer, and user space asks
/// again with a larger one. For the hook, writing never fails.
pub(crate) struct StatusBuf<'a>(&'a mut dyn fmt::Write);

impl<'a> StatusBuf<'a> {
    /// Wraps a destination. Any context.
    pub(super) fn new(sink: &'a mut dyn fmt::Write) -> Self {
        StatusBuf(sink)
    }

    /// Appends formatted text. Process context.
    pub(crate) fn emit(&mut self, args: fmt::Arguments<'_>) {
        // The destinations below never return an error.
        let _ = self.0.write_fmt(args);
    }
}

/// Returns the start of a text that fits into `room` bytes. It may end within a character, as in C.
fn prefix(text: &str, room: usize) -> &[u8] {
    let bytes = text.as_bytes();
    bytes.get(..room).unwrap_or(bytes)
}

/// A C string buffer of device-mapper, for `status`.
pub(super) struct CStrBuffer<'a> {
    buffer: &'a mut [u8],
    used: usize,
}

impl<'a> CStrBuffer<'a> {
    /// Makes the string empty. Any context.
    pub(super) fn new(buffer: &'a mut [u8]) -> Self {
        if let Some(first) = buffer.first_mut() {
            *first = 0;
        }
        CStrBuffer { buffer, used: 0 }
    }
}

impl fmt::Write for CStrBuffer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // One byte is left for the final nul.
        let room = self
            .buffer
            .len()
            .saturating_sub(self.used)
            .saturating_sub(1);
        let text = prefix(text, room);
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

/// The reply to a message.
///
/// It is collected here, because device-mapper may use the buffer of the arguments for the reply.
pub(super) struct MessageReply {
    text: KVVec<u8>,
    capacity: usize,
    result: Result,
}

impl MessageReply {
    /// Creates an empty reply, which may become up to `capacity` bytes long. Any context.
    pub(super) fn new(capacity: usize) -> Self {
        MessageReply {
            text: KVVec::new(),
            capacity,
            result: Ok(()),
        }
    }

    fn append(&mut self, text: &[u8]) -> Result {
        let len = self.text.len().saturating_add(text.len());
        if len > self.text.capacity() {
            // `KVVec::reserve` refers to a panic.
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

    /// Returns the whole text. Any context.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if there was no memory for all of it.
    pub(super) fn finish(&self) -> Result<&[u8]> {
        self.result.map(|()| &*self.text)
    }
}

impl fmt::Write for MessageReply {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // The device may be suspended, and the hook may hold locks that its I/O needs.
        let _noio = NoIo::enter();
        let text = prefix(text, self.capacity.saturating_sub(self.text.len()));
        if self.result.is_ok() {
            self.result = self.append(text);
        }
        Ok(())
    }
}
