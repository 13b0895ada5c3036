// SPDX-License-Identifier: GPL-2.0

//! Waiting for a condition that any context may make true.
//!
//! The kernel crate's `CondVar` needs a lock around the condition, and its `Completion` has no
//! timeout.
//!
//! C header: [`include/linux/wait.h`](srctree/include/linux/wait.h)

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

/// A wait queue, on which threads sleep until a condition holds.
///
/// A thread that makes a condition true does so first, and then calls [`wake_all`](Self::wake_all).
/// A condition is evaluated before sleeping and after each wake-up, and must not sleep itself.
#[pin_data]
pub(crate) struct WaitQueue {
    #[pin]
    head: Opaque<kb::wait_queue_head>,
}

// SAFETY: A wait queue head is not tied to a thread.
unsafe impl Send for WaitQueue {}
// SAFETY: A wait queue head has a lock of its own, which all functions used here take.
unsafe impl Sync for WaitQueue {}

impl WaitQueue {
    /// Creates an initialiser. Use [`new_wait_queue!`]. Any context.
    pub(crate) fn new(name: &'static CStr, key: Pin<&'static LockClassKey>) -> impl PinInit<Self> {
        pin_init!(Self {
            head <- Opaque::ffi_init(|slot| {
                // SAFETY: The slot can be written; `name` and `key` live for ever.
                unsafe { bindings::dmr_wait_queue_init(slot, name.as_char_ptr(), key.as_ptr()) }
            }),
        })
    }

    /// Sleeps, uninterruptibly, until `condition` holds. May sleep.
    pub(crate) fn wait_until<F: Fn() -> bool>(&self, condition: F) {
        let context = core::ptr::from_ref(&condition).cast_mut().cast::<c_void>();
        // SAFETY: The head is initialised and pinned. The helper calls `call::<F>` with the address
        // of `condition` only, and not after it returns.
        unsafe { bindings::dmr_wait_until(self.head.get(), Some(call::<F>), context) }
    }

    /// Sleeps until `condition` holds, or the thread is killed. May sleep.
    ///
    /// # Errors
    ///
    /// `EINTR` if the thread is killed.
    pub(crate) fn wait_killable<F: Fn() -> bool>(&self, condition: F) -> Result {
        let context = core::ptr::from_ref(&condition).cast_mut().cast::<c_void>();
        // SAFETY: The head is initialised and pinned. The helper calls `call::<F>` with the address
        // of `condition` only, and not after it returns.
        to_result(unsafe { bindings::dmr_wait_killable(self.head.get(), Some(call::<F>), context) })
    }

    /// Sleeps, uninterruptibly, until `condition` holds or the time is over. May sleep.
    pub(crate) fn wait_timeout<F: Fn() -> bool>(&self, timeout: Delta, condition: F) {
        let context = core::ptr::from_ref(&condition).cast_mut().cast::<c_void>();
        // CAST: At most the ticks of an hour, which fit into 31 bits.
        let jiffies = time::to_jiffies(timeout) as c_long;
        let head = self.head.get();
        // SAFETY: The head is initialised and pinned. The helper calls `call::<F>` with the address
        // of `condition` only, and not after it returns.
        unsafe { bindings::dmr_wait_until_timeout(head, Some(call::<F>), context, jiffies) }
    }

    /// Wakes all waiters, which then evaluate their conditions. Any context.
    pub(crate) fn wake_all(&self) {
        // SAFETY: The head is initialised and pinned.
        unsafe { bindings::dmr_wake_up_all(self.head.get()) }
    }
}

/// Evaluates the condition of a wait.
///
/// # Safety
///
/// `context` points to a live `F`.
unsafe extern "C" fn call<F: Fn() -> bool>(context: *mut c_void) -> bool {
    // SAFETY: By this function's contract, the pointer is to a live `F`.
    (unsafe { &*context.cast::<F>() })()
}

/// Creates a [`WaitQueue`] initialiser with a lock class of its own.
///
/// # Examples
///
/// ```ignore
/// idle <- new_wait_queue!("dm_clone_idle"),
/// ```
macro_rules! new_wait_queue {
    ($name:literal) => {
        $crate::sys::wait::WaitQueue::new($crate::c_name!($name), kernel::static_lock_class!())
    };
}
pub(crate) use new_wait_queue;
