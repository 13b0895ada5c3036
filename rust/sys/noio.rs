// SPDX-License-Identifier: GPL-2.0

//! The no-I/O scope: allocations inside it never wait for I/O.

use crate::bindings;
use kernel::types::NotThreadSafe;

/// While it lives, every allocation of this thread, in C callees too, acts as if made with
/// `GFP_NOIO`.
///
/// Code that a bio waits for must allocate only inside such a scope (or from a pool): otherwise
/// memory reclaim may write to the very device that waits. Scopes nest; they must end in the
/// reverse order.
#[must_use = "the scope ends when the value is dropped"]
pub(crate) struct NoIo {
    saved: kernel::ffi::c_uint,
    _not_send: NotThreadSafe,
}

impl NoIo {
    /// Enters the scope. Any context that may allocate.
    pub(crate) fn enter() -> Self {
        NoIo {
            // SAFETY: Only changes flags of the current task.
            saved: unsafe { bindings::dmr_noio_save() },
            _not_send: NotThreadSafe,
        }
    }
}

impl Drop for NoIo {
    fn drop(&mut self) {
        // SAFETY: `saved` came from the matching save on this task: the value cannot leave its
        // thread.
        unsafe { bindings::dmr_noio_restore(self.saved) }
    }
}
