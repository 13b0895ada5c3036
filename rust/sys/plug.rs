// SPDX-License-Identifier: GPL-2.0

//! Plugging: neighbouring requests that one thread starts become one.

use crate::bindings;
use kernel::ffi::c_void;

/// Calls `body`; requests that it submits may be held back, and merged, until it returns or sleeps.
/// Process context.
pub(crate) fn plugged<F: FnOnce()>(body: F) {
    /// # Safety
    ///
    /// `context` is a live `Option<F>` that nobody else uses.
    unsafe extern "C" fn call<F: FnOnce()>(context: *mut c_void) {
        // SAFETY: By the contract.
        if let Some(body) = unsafe { &mut *context.cast::<Option<F>>() }.take() {
            body()
        }
    }
    let mut body = Some(body);
    let context = core::ptr::from_mut(&mut body).cast();
    // SAFETY: `call` gets the closure it was instantiated for, once, while it lives on this stack.
    unsafe { bindings::dmr_plugged(Some(call::<F>), context) }
}
