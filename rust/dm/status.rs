// SPDX-License-Identifier: GPL-2.0

//! The text buffer of `status` and `message`.

use kernel::fmt;

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

/// A C string buffer that is filled by `write!`. What does not fit is cut off: device-mapper sees a full buffer and asks
/// user space for a larger one, so writing never fails.
pub(crate) struct StatusBuf<'a> {
    buffer: &'a mut [u8],
    used: usize,
}

impl<'a> StatusBuf<'a> {
    /// Starts with an empty string.
    pub(super) fn new(buffer: &'a mut [u8]) -> Self {
        if let Some(first) = buffer.first_mut() {
            *first = 0;
        }
        StatusBuf { buffer, used: 0 }
    }

    /// Whether anything was written.
    pub(super) fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Appends formatted text.
    pub(crate) fn emit(&mut self, args: fmt::Arguments<'_>) {
        // `write_str` below never fails.
        let _ = fmt::Write::write_fmt(self, args);
    }
}

impl fmt::Write for StatusBuf<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // One byte stays for the final nul.
        let room = self
            .buffer
            .len()
            .saturating_sub(self.used)
            .saturating_sub(1);
        let taken = text.len().min(room);
        let end = self.used.saturating_add(taken);
        if let (Some(to), Some(from)) = (
            self.buffer.get_mut(self.used..end),
            text.as_bytes().get(..taken),
        ) {
            to.copy_from_slice(from);
            self.used = end;
        }
        if let Some(nul) = self.buffer.get_mut(self.used) {
            *nul = 0;
        }
        Ok(())
    }
}
