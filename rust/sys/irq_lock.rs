// SPDX-License-Identifier: GPL-2.0

//! A spinlock that disables interrupts while it is held.
//!
//! Data that the completion of a bio touches needs it, because completions run in interrupt
//! context. The kernel crate has no such lock yet: `SpinLockIrq` has been proposed for it.
//!
//! C header: [`include/linux/spinlock.h`](srctree/include/linux/spinlock.h)

use crate::bindings;
use core::mem::MaybeUninit;
use kernel::{
    bindings as kb,
    ffi::c_char,
    sync::lock::{
        Backend,
        Guard,
        Lock, //
    }, //
};

/// The backend of [`IrqLock`]. It is never used by itself.
pub(crate) struct IrqSave;

/// Data behind a spinlock that can be taken in any context, hard interrupts included.
///
/// While a guard lives, interrupts are off on this CPU: hold it for a short time, and never sleep,
/// allocate or free a `KVVec`. A guard restores the interrupt state that it found, so nested guards
/// must be dropped in the reverse order of taking.
pub(crate) type IrqLock<T> = Lock<T, IrqSave>;

/// A held [`IrqLock`].
pub(crate) type IrqGuard<'a, T> = Guard<'a, T, IrqSave>;

// SAFETY: `spin_lock_irqsave` gives exclusive ownership until `spin_unlock_irqrestore`. The default
// `relock` locks with the same function again and stores the new flags.
unsafe impl Backend for IrqSave {
    type State = kb::spinlock_t;
    type GuardState = kernel::ffi::c_ulong;

    unsafe fn init(ptr: *mut Self::State, name: *const c_char, key: *mut kb::lock_class_key) {
        // SAFETY: By this function's contract, `ptr` can be written, and `name` and `key` live for
        // ever.
        unsafe { kb::__spin_lock_init(ptr, name, key) }
    }

    #[inline]
    unsafe fn lock(ptr: *mut Self::State) -> Self::GuardState {
        // SAFETY: By this function's contract, the lock is initialised.
        unsafe { bindings::dmr_spin_lock_irqsave(ptr) }
    }

    unsafe fn try_lock(ptr: *mut Self::State) -> Option<Self::GuardState> {
        let mut flags = MaybeUninit::uninit();
        // SAFETY: By this function's contract, the lock is initialised; `flags` can be written.
        if unsafe { bindings::dmr_spin_trylock_irqsave(ptr, flags.as_mut_ptr()) } {
            // SAFETY: The helper writes the flags whenever it returns true.
            Some(unsafe { flags.assume_init() })
        } else {
            None
        }
    }

    #[inline]
    unsafe fn unlock(ptr: *mut Self::State, guard_state: &Self::GuardState) {
        // SAFETY: By this function's contract, the caller owns the lock, and the state is what
        // `lock` returned.
        unsafe { bindings::dmr_spin_unlock_irqrestore(ptr, *guard_state) }
    }

    unsafe fn assert_is_held(ptr: *mut Self::State) {
        // SAFETY: By this function's contract, the lock is initialised.
        unsafe { kb::spin_assert_is_held(ptr) }
    }
}

/// Creates an [`IrqLock`] initialiser with a lock class of its own.
///
/// # Examples
///
/// ```ignore
/// lists <- new_irq_lock!(Lists::default(), "dm_clone_lists"),
/// ```
macro_rules! new_irq_lock {
    ($value:expr, $name:literal) => {
        $crate::sys::irq_lock::IrqLock::new(
            $value,
            $crate::c_name!($name),
            kernel::static_lock_class!(),
        )
    };
}
pub(crate) use new_irq_lock;
