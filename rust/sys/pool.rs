// SPDX-License-Identifier: GPL-2.0

//! Memory pools, whose reserve lets allocation on the I/O path make progress when memory is short.
//!
//! C header: [`include/linux/mempool.h`](srctree/include/linux/mempool.h)

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

/// A `mempool_t` for values of type `T`.
///
/// The pool is reference-counted, because each [`PoolBox`] returns its memory to it.
///
/// # Invariants
///
/// The pointer is to a live mempool of elements as large as an `Element<T>`.
pub(crate) struct Pool<T> {
    raw: NonNull<kb::mempool_t>,
    _marker: PhantomData<fn() -> T>,
}

/// The content of an element: a value, and the pool to which the element returns.
struct Element<T> {
    pool: Arc<Pool<T>>,
    value: T,
}

// SAFETY: A mempool is not tied to a thread. It holds free memory, no values of `T`.
unsafe impl<T> Send for Pool<T> {}
// SAFETY: Any number of threads may call the functions of a mempool at a time.
unsafe impl<T> Sync for Pool<T> {}

impl<T> Pool<T> {
    /// Creates a pool with a reserve for `reserve` values. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(reserve: u16) -> Result<Arc<Self>> {
        // The elements come from kmalloc, which aligns any size to at least 8 bytes.
        const { assert!(align_of::<Element<T>>() <= 8) };
        // SAFETY: The function has no preconditions.
        let raw = unsafe { bindings::dmr_mempool_create(reserve.into(), size_of::<Element<T>>()) };
        // INVARIANT: The mempool was created above, for elements of this size.
        let pool = Pool {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
            _marker: PhantomData,
        };
        Ok(Arc::new(pool, GFP_KERNEL)?)
    }

    /// Moves `value` into memory of the pool, without waiting. Any context.
    ///
    /// # Errors
    ///
    /// Returns `value` if there is no memory.
    pub(crate) fn try_boxed(self: &Arc<Self>, value: T) -> Result<PoolBox<T>, T> {
        // SAFETY: By the invariant, the pool is live.
        let raw = unsafe { bindings::dmr_mempool_alloc_nowait(self.raw.as_ptr()) };
        match NonNull::new(raw.cast()) {
            Some(slot) => Ok(PoolBox::init(self, slot, value)),
            None => Err(value),
        }
    }
}

impl<T> Drop for Pool<T> {
    fn drop(&mut self) {
        // SAFETY: Each element in use holds a reference to the pool, so all were returned.
        unsafe { kb::mempool_destroy(self.raw.as_ptr()) }
    }
}

/// An owned value in memory of a [`Pool`].
///
/// # Invariants
///
/// The pointer is to an initialised element, owned by this box, of the pool that the element names.
pub(crate) struct PoolBox<T>(NonNull<Element<T>>);

// SAFETY: The box owns its value, for which `T: Send`. The pool may be used by any thread.
unsafe impl<T: Send> Send for PoolBox<T> {}

impl<T> PoolBox<T> {
    fn init(pool: &Arc<Pool<T>>, slot: NonNull<Element<T>>, value: T) -> Self {
        // SAFETY: The pool has just allocated the element for this box. It is as large as an
        // `Element<T>`, and aligned for it, as `Pool::new` asserts.
        unsafe {
            slot.as_ptr().write(Element {
                pool: pool.clone(),
                value,
            })
        };
        // INVARIANT: The element was initialised above.
        PoolBox(slot)
    }

    /// Moves the value out, and returns the memory to the pool. Any context.
    pub(crate) fn into_inner(self) -> T {
        let slot = ManuallyDrop::new(self).0;
        // SAFETY: By the invariant, the element is initialised. It is read once: `self` is
        // forgotten.
        let Element { pool, value } = unsafe { slot.as_ptr().read() };
        // SAFETY: The element is one of this pool, and its content was moved out above.
        unsafe { kb::mempool_free(slot.as_ptr().cast(), pool.raw.as_ptr()) };
        value
    }

    /// Turns the box into a pointer, for the context of a C callback.
    ///
    /// [`from_raw`](Self::from_raw) turns it back into a box. Any context.
    pub(crate) fn into_raw(self) -> *mut c_void {
        ManuallyDrop::new(self).0.as_ptr().cast()
    }

    /// Turns the context of a C callback back into a box. Any context.
    ///
    /// # Safety
    ///
    /// - `raw` is the result of [`into_raw`](Self::into_raw) of the same `T`.
    /// - Each result of `into_raw` is passed at most once.
    pub(crate) unsafe fn from_raw(raw: *mut c_void) -> Self {
        // SAFETY: By this function's contract, the pointer is that of a box, which is never null.
        // INVARIANT: By this function's contract, the element is initialised, and the new box is
        // its only owner.
        PoolBox(unsafe { NonNull::new_unchecked(raw.cast()) })
    }
}

impl<T> Deref for PoolBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: By the invariant, the element is initialised and owned by `self`.
        unsafe { &self.0.as_ref().value }
    }
}

impl<T> DerefMut for PoolBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: By the invariant, the element is initialised and owned by `self`, which is
        // borrowed mutably.
        unsafe { &mut self.0.as_mut().value }
    }
}

impl<T> Drop for PoolBox<T> {
    fn drop(&mut self) {
        // SAFETY: This makes a second box of the same element. Only that one frees the element:
        // `self` ends here, and has no fields that would be dropped.
        drop(unsafe { core::ptr::read(self) }.into_inner());
    }
}
