// SPDX-License-Identifier: GPL-2.0

//! Memory pools: allocation that always succeeds in the end, on the I/O path too.

use crate::bindings;
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::{
        Deref,
        DerefMut, //
    },
    ptr::NonNull, //
};
use kernel::{
    bindings as kb,
    ffi::c_void,
    prelude::*,
    sync::Arc, //
};

/// A `mempool_t` of values of type `T`, with a reserve of elements that is kept for hard times.
///
/// Shared by reference count, because each [`PoolBox`] must be able to return its memory.
pub(crate) struct Pool<T> {
    raw: NonNull<kb::mempool_t>,
    _marker: PhantomData<fn() -> T>,
}

/// What lies in an element: the value, and the pool that the element goes back to.
struct Element<T> {
    pool: Arc<Pool<T>>,
    value: T,
}

// SAFETY: A mempool may be used from any thread; it holds memory, not values of `T`.
unsafe impl<T> Send for Pool<T> {}
// SAFETY: As above: all operations of a mempool are thread-safe.
unsafe impl<T> Sync for Pool<T> {}

impl<T> Pool<T> {
    /// Makes a pool with room for `reserve` values. May sleep.
    pub(crate) fn new(reserve: u16) -> Result<Arc<Self>> {
        // The elements come from kmalloc, which aligns any size to at least 8 bytes.
        const { assert!(align_of::<Element<T>>() <= 8) };
        // SAFETY: No preconditions.
        let raw = unsafe { bindings::dmr_mempool_create(reserve.into(), size_of::<Element<T>>()) };
        let pool = Pool {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
            _marker: PhantomData,
        };
        Ok(Arc::new(pool, GFP_KERNEL)?)
    }

    /// Allocates for `value` without waiting, or gives it back. Any context.
    pub(crate) fn try_boxed(self: &Arc<Self>, value: T) -> Result<PoolBox<T>, T> {
        // SAFETY: The pool is live.
        let raw = unsafe { bindings::dmr_mempool_alloc_nowait(self.raw.as_ptr()) };
        match NonNull::new(raw.cast()) {
            Some(slot) => Ok(PoolBox::init(self, slot, value)),
            None => Err(value),
        }
    }
}

impl<T> Drop for Pool<T> {
    fn drop(&mut self) {
        // SAFETY: Every element in use holds a reference to the pool, so all have been returned.
        unsafe { kb::mempool_destroy(self.raw.as_ptr()) }
    }
}

/// An owned value in memory of a [`Pool`].
///
/// # Invariants
///
/// The pointer is to an initialised element of the pool it names, owned by this box.
pub(crate) struct PoolBox<T>(NonNull<Element<T>>);

// SAFETY: The box owns its value, so it moves between threads as the value does; the pool is
// thread-safe.
unsafe impl<T: Send> Send for PoolBox<T> {}

impl<T> PoolBox<T> {
    fn init(pool: &Arc<Pool<T>>, slot: NonNull<Element<T>>, value: T) -> Self {
        // SAFETY: The element is large and aligned enough (see `Pool::new`), and ours alone.
        unsafe {
            slot.as_ptr().write(Element {
                pool: pool.clone(),
                value,
            })
        };
        // INVARIANT: Just initialised.
        PoolBox(slot)
    }

    /// Moves the value out and returns the memory to the pool. Any context.
    pub(crate) fn into_inner(self) -> T {
        let slot = ManuallyDrop::new(self).0;
        // SAFETY: By the invariant the element is initialised; nothing uses it after this.
        let Element { pool, value } = unsafe { slot.as_ptr().read() };
        // SAFETY: The element came from this pool and has been moved out of.
        unsafe { kb::mempool_free(slot.as_ptr().cast(), pool.raw.as_ptr()) };
        value
    }

    /// Gives the box up as a pointer for a C callback's context; [`from_raw`](Self::from_raw) takes
    /// it back.
    pub(crate) fn into_raw(self) -> *mut c_void {
        ManuallyDrop::new(self).0.as_ptr().cast()
    }

    /// Takes a box back from a C callback's context.
    ///
    /// # Safety
    ///
    /// - `raw` comes from [`into_raw`](Self::into_raw) of the same `T`.
    /// - It is taken back once only.
    pub(crate) unsafe fn from_raw(raw: *mut c_void) -> Self {
        // SAFETY: By the contract the pointer is that of a box, which is never null.
        // INVARIANT: By the contract the element is initialised and ownership comes with the
        // pointer.
        PoolBox(unsafe { NonNull::new_unchecked(raw.cast()) })
    }
}

impl<T> Deref for PoolBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: By the invariant.
        unsafe { &self.0.as_ref().value }
    }
}

impl<T> DerefMut for PoolBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: By the invariant, and `self` is borrowed mutably.
        unsafe { &mut self.0.as_mut().value }
    }
}

impl<T> Drop for PoolBox<T> {
    fn drop(&mut self) {
        // SAFETY: A second box of the same element, of which only one is ever dropped with effect:
        // `self` ends here and has no other fields to drop.
        drop(unsafe { core::ptr::read(self) }.into_inner());
    }
}
