// SPDX-License-Identifier: GPL-2.0

//! Plugging, which lets adjacent requests of one thread be merged.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h), `struct blk_plug`

use crate::bindings;
use kernel::ffi::c_void;

/// Calls `body` with the block layer plugged.
///
/// Requests that `body` submits may be held back, and merged, until it returns or sleeps. Process
/// context.
pub(crate) fn plugged<F: FnOnce()>(body: F) {
    /// # Safety
    ///
    /// `context` points to a live `Option<F>` that nothing else uses.
    unsafe extern "C" fn call<F: FnOnce()>(context: *mut c_void) {
        // SAFETY: By this function's contract, the pointer is to a live `Option<F>`, used here
        // only.
        if let Some(body) = unsafe { &mut *context.cast::<Option<F>>() }.take() {
            body()
        }
    }
    let mut body = Some(body);
    let context = core::ptr::from_mut(&mut body).cast();
    // SAFETY: The helper calls `call::<F>` once, with the `Option<F>` above, before it returns.
    unsafe { bindings::dmr_plugged(Some(call::<F>), context) }
}
