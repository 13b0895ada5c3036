// SPDX-License-Identifier: GPL-2.0

//! A sleeping reader-writer lock.
//!
//! Its user is `OriginGroup::map_snapshots`, which `map` of an origin write reads of an origin.
//! `map` reads the list for writes to the origin, on several CPUs at a time; the list changes
//! when a table becomes active or ceases to be. With a `Mutex`, writes to the origin would wait for
//! each other. The kernel crate has no reader-writer lock.
//!
//! C counterpart: `_origins_lock`, which `do_origin()` takes for reading.
//!
//! C header: [`include/linux/rwsem.h`](srctree/include/linux/rwsem.h)

use crate::bindings;
use core::{
    cell::UnsafeCell,
    ops::{
        Deref,
        DerefMut, //
    },
    pin::Pin, //
};
use kernel::{
    bindings as kb,
    prelude::*,
    sync::LockClassKey,
    types::{
        NotThreadSafe,
        Opaque, //
    }, //
};
use pin_init::Wrapper as _;

/// Data behind a `struct rw_semaphore`: many readers, or one writer.
#[pin_data]
pub(crate) struct RwSem<T> {
    #[pin]
    sem: Opaque<kb::rw_semaphore>,
    #[pin]
    data: UnsafeCell<T>,
}

// SAFETY: The data moves to another thread with the lock, so it must be `Send`.
unsafe impl<T: Send> Send for RwSem<T> {}
// SAFETY: A writer on any thread gets `&mut T`, for which `T: Send`; readers on several threads
// share `&T`, for which `T: Sync`.
unsafe impl<T: Send + Sync> Sync for RwSem<T> {}

impl<T> RwSem<T> {
    /// Creates an initialiser. Use [`new_rw_sem!`]. Any context.
    pub(crate) fn new(
        value: T,
        name: &'static CStr,
        key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self> {
        pin_init!(Self {
            sem <- Opaque::ffi_init(|slot| {
                // SAFETY: The slot can be written; `name` and `key` live for ever.
                unsafe { bindings::dmr_init_rwsem(slot, name.as_char_ptr(), key.as_ptr()) }
            }),
            data <- UnsafeCell::pin_init(value),
        })
    }

    /// Takes the lock for reading. May sleep.
    pub(crate) fn read(&self) -> ReadGuard<'_, T> {
        // SAFETY: `new` initialised the semaphore, which is pinned.
        unsafe { kb::down_read(self.sem.get()) };
        ReadGuard {
            lock: self,
            _not_send: NotThreadSafe,
        }
    }

    /// Takes the lock for writing. May sleep.
    pub(crate) fn write(&self) -> WriteGuard<'_, T> {
        // SAFETY: `new` initialised the semaphore, which is pinned.
        unsafe { kb::down_write(self.sem.get()) };
        WriteGuard {
            lock: self,
            _not_send: NotThreadSafe,
        }
    }
}

/// Shared access to the data of an [`RwSem`].
#[must_use = "the lock is released when the guard is dropped"]
pub(crate) struct ReadGuard<'a, T> {
    lock: &'a RwSem<T>,
    _not_send: NotThreadSafe,
}

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: While the semaphore is held for reading there is no writer.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> Drop for ReadGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: This thread has held the semaphore for reading since the guard was created.
        unsafe { kb::up_read(self.lock.sem.get()) }
    }
}

/// Exclusive access to the data of an [`RwSem`].
#[must_use = "the lock is released when the guard is dropped"]
pub(crate) struct WriteGuard<'a, T> {
    lock: &'a RwSem<T>,
    _not_send: NotThreadSafe,
}

impl<T> Deref for WriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: While the semaphore is held for writing there is no other holder.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T> DerefMut for WriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: While the semaphore is held for writing there is no other holder, and `self` is
        // borrowed mutably.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T> Drop for WriteGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: This thread has held the semaphore for writing since the guard was created.
        unsafe { kb::up_write(self.lock.sem.get()) }
    }
}

/// Creates an [`RwSem`] initialiser with a lock class of its own.
macro_rules! new_rw_sem {
    ($value:expr, $name:literal) => {
        $crate::sys::rw_sem::RwSem::new(
            $value,
            $crate::c_name!($name),
            kernel::static_lock_class!(),
        )
    };
}
pub(crate) use new_rw_sem;
