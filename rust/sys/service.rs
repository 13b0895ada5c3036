// SPDX-License-Identifier: GPL-2.0

//! Services of the kernel that run code of the module: workqueues and clients of kcopyd.
//!
//! Such a service must be destroyed before the module is unloaded, and not by code that it runs
//! itself, which would wait for its own end. A plain reference count cannot ensure either, because
//! the service would be destroyed wherever the last reference happens to be dropped. A service
//! therefore has two kinds of references:
//!
//! - a [`ServiceRef`] uses the service. It can be cloned and dropped anywhere, and destroys
//!   nothing.
//! - a [`ServiceOwner`] belongs to something that is destroyed in process context. When the last
//!   owner is dropped, it waits until no `ServiceRef` is left, and then destroys the service.

use crate::sys::wait::{
    new_wait_queue,
    WaitQueue, //
};
use core::ops::Deref;
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc, //
    }, //
};

/// A service of the kernel that runs code of the module.
pub(crate) trait Service: Send + Sync + 'static {
    /// Waits until none of the service's callbacks runs, and destroys it. May sleep.
    ///
    /// # Safety
    ///
    /// - This is called once, and not from one of the service's own callbacks.
    /// - Nothing uses the service at the same time, or afterwards.
    unsafe fn destroy(&self);
}

#[pin_data]
struct Inner<S> {
    service: S,
    owners: Atomic<i32>,
    users: Atomic<i32>,
    /// The last owner is being dropped.
    closing: Atomic<bool>,
    #[pin]
    unused: WaitQueue,
}

/// A reference to a service, which exists for as long as the reference does.
pub(crate) struct ServiceRef<S: Service>(Arc<Inner<S>>);

/// An owner of a service. The last one to be dropped waits for the users and destroys the service.
pub(crate) struct ServiceOwner<S: Service> {
    inner: Arc<Inner<S>>,
    /// This owner is included in `Inner::owners`.
    counted: bool,
    /// No owner was left in `Inner::owners` after this one.
    last: bool,
}

impl<S: Service> ServiceRef<S> {
    /// Creates a service, the first reference to it, and its first owner. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or the error of `make`.
    ///
    /// # Safety
    ///
    /// The owner is dropped before the module is unloaded, in process context, and not by a
    /// callback of the service.
    pub(crate) unsafe fn new(make: impl FnOnce() -> Result<S>) -> Result<(Self, ServiceOwner<S>)> {
        let inner = Arc::pin_init(
            try_pin_init!(Inner {
                service: make()?,
                owners: Atomic::new(1),
                users: Atomic::new(1),
                closing: Atomic::new(false),
                unused <- new_wait_queue!("dm_rust_service"),
            }? Error),
            GFP_KERNEL,
        )?;
        let owner = ServiceOwner::new(inner.clone());
        Ok((ServiceRef(inner), owner))
    }

    /// Creates another owner. Any context.
    ///
    /// # Errors
    ///
    /// `EBUSY` if the last owner is being dropped.
    ///
    /// # Safety
    ///
    /// The owner is dropped before the module is unloaded, in process context, and not by a
    /// callback of the service.
    pub(crate) unsafe fn owner(&self) -> Result<ServiceOwner<S>> {
        let owners = &self.0.owners;
        let mut known = owners.load(Relaxed);
        while known > 0 {
            match owners.cmpxchg(known, known.wrapping_add(1), Relaxed) {
                Ok(_) => return Ok(ServiceOwner::new(self.0.clone())),
                Err(now) => known = now,
            }
        }
        Err(EBUSY)
    }

    /// Returns whether the last owner is being dropped. If so, callers start nothing new. Any
    /// context.
    pub(crate) fn is_closing(&self) -> bool {
        self.0.closing.load(Relaxed)
    }
}

impl<S: Service> Deref for ServiceRef<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.0.service
    }
}

impl<S: Service> Clone for ServiceRef<S> {
    fn clone(&self) -> Self {
        self.0.users.fetch_add(1, Relaxed);
        ServiceRef(self.0.clone())
    }
}

impl<S: Service> Drop for ServiceRef<S> {
    fn drop(&mut self) {
        if self.0.users.fetch_sub(1, Release) == 1 {
            self.0.unused.wake_all();
        }
    }
}

impl<S: Service> ServiceOwner<S> {
    /// Wraps an owner that is included in `Inner::owners`.
    fn new(inner: Arc<Inner<S>>) -> Self {
        ServiceOwner {
            inner,
            counted: true,
            last: false,
        }
    }
}

/// A [`ServiceOwner`] of any type of service.
pub(crate) trait AnyServiceOwner: Send {
    /// Gives up the ownership, without waiting.
    ///
    /// If this was the last owner, the service starts nothing new, so that users which restart
    /// themselves come to an end. Dropping the owner then waits for them. Any context.
    fn resign(&mut self);
}

impl<S: Service> AnyServiceOwner for ServiceOwner<S> {
    fn resign(&mut self) {
        if core::mem::take(&mut self.counted) {
            self.last = self.inner.owners.fetch_sub(1, Relaxed) == 1;
            if self.last {
                self.inner.closing.store(true, Relaxed);
            }
        }
    }
}

impl<S: Service> Drop for ServiceOwner<S> {
    fn drop(&mut self) {
        self.resign();
        if !self.last {
            return;
        }
        let users = &self.inner.users;
        self.inner.unused.wait_until(|| users.load(Acquire) == 0);
        // SAFETY: Only one owner was the last one. By the contract of the function that made this
        // owner, no callback of the service is running here. No reference is left from which
        // another one could be made, so nothing uses the service.
        unsafe { self.inner.service.destroy() }
    }
}
