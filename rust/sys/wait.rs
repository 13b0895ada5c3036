// SPDX-License-Identifier: GPL-2.0

//! Waiting for a condition that any context may make true.

use crate::{
    bindings,
    sys::time, //
};
use core::pin::Pin;
use kernel::{
    bindings as kb,
    error::to_result,
    ffi::{
        c_long,
        c_void, //
    },
    prelude::*,
    sync::LockClassKey,
    time::Delta,
    types::Opaque, //
};

/// A wait queue: threads sleep on it until a condition holds. Waking is possible from any context.
#[pin_data]
pub(crate) struct WaitQueue {
    #[pin]
    head: Opaque<kb::wait_queue_head>,
}

// SAFETY: A wait queue head may be used from any thread.
unsafe impl Send for WaitQueue {}
// SAFETY: As above; it has a lock of its own.
unsafe impl Sync for WaitQueue {}

impl WaitQueue {
    /// Makes an initialiser; use [`new_wait_queue!`].
    pub(crate) fn new(name: &'static CStr, key: Pin<&'static LockClassKey>) -> impl PinInit<Self> {
        pin_init!(Self {
            head <- Opaque::ffi_init(|slot| {
                // SAFETY: `slot` can be written; `name` and `key` live for ever.
                unsafe { bindings::dmr_wait_queue_init(slot, name.as_char_ptr(), key.as_ptr()) }
            }),
        })
    }

    /// Sleeps, uninterruptibly, until `condition` holds. It is called before sleeping and after
    /// every waking and must neither sleep nor block.
    ///
    /// Whoever makes the condition true must do so before calling [`wake_all`](Self::wake_all).
    pub(crate) fn wait_until<F: Fn() -> bool>(&self, condition: F) {
        let context = core::ptr::from_ref(&condition).cast_mut().cast::<c_void>();
        // SAFETY: The head is initialised and pinned; `call` gets the closure it was instantiated
        // for.
        unsafe { bindings::dmr_wait_until(self.head.get(), Some(call::<F>), context) }
    }

    /// The same, but `EINTR` if the thread is killed.
    pub(crate) fn wait_killable<F: Fn() -> bool>(&self, condition: F) -> Result {
        let context = core::ptr::from_ref(&condition).cast_mut().cast::<c_void>();
        // SAFETY: As above.
        to_result(unsafe { bindings::dmr_wait_killable(self.head.get(), Some(call::<F>), context) })
    }

    /// The same, but for so long at most.
    pub(crate) fn wait_timeout<F: Fn() -> bool>(&self, timeout: Delta, condition: F) {
        let context = core::ptr::from_ref(&condition).cast_mut().cast::<c_void>();
        // CAST: An hour at most.
        let jiffies = time::to_jiffies(timeout) as c_long;
        let head = self.head.get();
        // SAFETY: As above.
        unsafe { bindings::dmr_wait_until_timeout(head, Some(call::<F>), context, jiffies) }
    }

    /// Wakes all waiters, so that they look at their conditions again. Any context.
    pub(crate) fn wake_all(&self) {
        // SAFETY: The head is initialised and pinned.
        unsafe { bindings::dmr_wake_up_all(self.head.get()) }
    }
}

/// Calls the closure of a wait.
///
/// # Safety
///
/// `context` is a live `F`.
unsafe extern "C" fn call<F: Fn() -> bool>(context: *mut c_void) -> bool {
    // SAFETY: `context` is the closure on the waiter's stack, which outlives the wait.
    (unsafe { &*context.cast::<F>() })()
}

/// Makes a [`WaitQueue`] initialiser with a lock class of its own.
macro_rules! new_wait_queue {
    ($name:literal) => {
        $crate::sys::wait::WaitQueue::new($crate::c_name!($name), kernel::static_lock_class!())
    };
}
pub(crate) use new_wait_queue;
