// SPDX-License-Identifier: GPL-2.0

//! A value that is read without a lock, and replaced as a whole.
//!
//! Readers write no memory that CPUs share. The kernel crate has RCU itself, but nothing that it
//! protects.
//!
//! C header: [`include/linux/rcupdate.h`](srctree/include/linux/rcupdate.h)

use crate::bindings;
use core::{
    marker::PhantomData,
    ptr::{
        self,
        NonNull, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full, //
        },
        rcu, //
    }, //
};

/// Contains a value or none; C has a pointer marked `__rcu`.
///
/// # Invariants
///
/// The pointer is null, or to a value that `KBox::into_raw` returned. After it was replaced, the
/// value is freed only after a grace period.
pub(crate) struct RcuCell<T: Send + Sync> {
    pointer: Atomic<*mut T>,
    _owned: PhantomData<KBox<T>>,
}

impl<T: Send + Sync> RcuCell<T> {
    /// Makes a cell without a value. Any context.
    pub(crate) const fn empty() -> Self {
        // INVARIANT: The pointer is null.
        RcuCell {
            pointer: Atomic::new(ptr::null_mut()),
            _owned: PhantomData,
        }
    }

    /// Calls `body` with the value, if there is one. `body` must not sleep. Any context.
    #[inline]
    pub(crate) fn read<R>(&self, body: impl FnOnce(&T) -> R) -> Option<R> {
        let _guard = rcu::read_lock();
        let pointer = self.pointer.load(Acquire);
        // SAFETY: By the invariant, the pointer is null or to a value that is not freed before a
        // grace period has passed, which does not end while the guard exists. Shared references are
        // the only ones until then. `body` cannot keep the reference.
        unsafe { pointer.as_ref() }.map(body)
    }

    /// Replaces the value. Readers that have found the old one may still use it. Any context.
    pub(crate) fn replace(&self, value: Option<KBox<T>>) -> Replaced<T> {
        let new = value.map_or(ptr::null_mut(), KBox::into_raw);
        // INVARIANT: The new pointer is null or from `into_raw`. The exchange returns the old one
        // to this caller only, which moves it to a `Replaced`.
        Replaced(NonNull::new(self.pointer.xchg(new, Full)))
    }
}

impl<T: Send + Sync> Drop for RcuCell<T> {
    fn drop(&mut self) {
        let pointer = *self.pointer.get_mut();
        if !pointer.is_null() {
            // SAFETY: By the invariant, the pointer is from `into_raw`. There are no readers: they
            // would have a reference to the cell.
            drop(unsafe { KBox::from_raw(pointer) });
        }
    }
}

/// A value that was replaced in an [`RcuCell`].
///
/// Its drop waits until no reader uses the value, and frees it. May sleep. There is no wait if no
/// value was replaced.
///
/// # Invariants
///
/// The pointer is to a value that `KBox::into_raw` returned, and that no cell contains any more.
#[must_use = "the drop waits for readers"]
pub(crate) struct Replaced<T: Send + Sync>(Option<NonNull<T>>);

impl<T: Send + Sync> Drop for Replaced<T> {
    fn drop(&mut self) {
        if let Some(pointer) = self.0 {
            // SAFETY: The function has no preconditions but that the caller may sleep.
            unsafe { bindings::dmr_synchronize_rcu() };
            // SAFETY: By the invariant, the pointer is from `into_raw`. No cell contains it any
            // more, and readers that found it have ended in the grace period.
            drop(unsafe { KBox::from_raw(pointer.as_ptr()) });
        }
    }
}
