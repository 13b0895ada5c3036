// SPDX-License-Identifier: GPL-2.0

//! A scope in which allocations do not wait for I/O.
//!
//! C header: [`include/linux/sched/mm.h`](srctree/include/linux/sched/mm.h),
//! `memalloc_noio_save()`

use crate::bindings;
use kernel::types::NotThreadSafe;

/// A scope in which every allocation of this thread, in C callees too, acts as if made with
/// `GFP_NOIO`.
///
/// Code that a bio waits for allocates only within such a scope, or from a pool. Otherwise memory
/// reclaim may write to the very device that waits. Scopes nest, and end in the reverse order.
#[must_use = "the scope ends when the value is dropped"]
pub(crate) struct NoIo {
    saved: kernel::ffi::c_uint,
    _not_send: NotThreadSafe,
}

impl NoIo {
    /// Enters the scope. Process context.
    pub(crate) fn enter() -> Self {
        NoIo {
            // SAFETY: The function has no preconditions; it changes flags of the current task.
            saved: unsafe { bindings::dmr_noio_save() },
            _not_send: NotThreadSafe,
        }
    }
}

impl Drop for NoIo {
    fn drop(&mut self) {
        // SAFETY: `saved` is the result of the matching save, which this task made: the value
        // cannot leave its thread.
        unsafe { bindings::dmr_noio_restore(self.saved) }
    }
}
