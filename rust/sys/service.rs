// SPDX-License-Identifier: GPL-2.0

//! Services of the kernel that run code of the module: workqueues, clients of kcopyd.
//!
//! Such a service must be destroyed before the module can go, and not by code that it runs itself:
//! that would wait for its own end. With counted references alone, whoever drops the last one
//! decides when and where. So a service has two kinds of owners. A [`ServiceRef`] uses it, may be cloned
//! and dropped anywhere, and destroys nothing. A [`ServiceOwner`] is held by what has a destructor in
//! process context; the last one waits there until no user is left, then destroys the service.

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

/// What can be kept.
pub(crate) trait Service: Send + Sync + 'static {
    /// Waits until none of its callbacks runs any more, and destroys it. Sleeps.
    ///
    /// # Safety
    ///
    /// Called once, not from one of its own callbacks; nobody uses the service at the same time, or
    /// after it.
    unsafe fn destroy(&self);
}

#[pin_data]
struct Inner<S> {
    service: S,
    owners: Atomic<i32>,
    users: Atomic<i32>,
    /// The last keeper waits for the users.
    closing: Atomic<bool>,
    #[pin]
    unused: WaitQueue,
}

/// A use of a service, which lives at least as long.
pub(crate) struct ServiceRef<S: Service>(Arc<Inner<S>>);

/// An owner of a service. The service is destroyed by the last one, which waits for the users.
pub(crate) struct ServiceOwner<S: Service> {
    inner: Arc<Inner<S>>,
    /// Not counted out yet.
    counted: bool,
    /// The last one to be counted out.
    last: bool,
}

impl<S: Service> ServiceRef<S> {
    /// Makes a service, its first use and its first keeper. Sleeps.
    ///
    /// # Safety
    ///
    /// The keeper is dropped before the module can go, in process context, and not by a callback of
    /// the service.
    pub(crate) unsafe fn new(make: impl FnOnce() -> Result<S>) -> Result<(Self, ServiceOwner<S>)> {
        let inner = Arc::pin_init(
            try_pin_init!(Inner {
                service: make()?,
                owners: Atomic::new(1),
                users: Atomic::new(1),
                closing: Atomic::new(false),
                unused <- new_wait_queue!("dm_rust_kept"),
            }? Error),
            GFP_KERNEL,
        )?;
        let owner = ServiceOwner::new(inner.clone());
        Ok((ServiceRef(inner), owner))
    }

    /// Another keeper. `EBUSY` if the last one is waiting for the users already.
    ///
    /// # Safety
    ///
    /// As [`new`](Self::new).
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

    /// Whether the last keeper waits for the users: nothing new is to be begun. Any context.
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
    /// One that has been counted.
    fn new(inner: Arc<Inner<S>>) -> Self {
        ServiceOwner {
            inner,
            counted: true,
            last: false,
        }
    }
}

/// A [`ServiceOwner`] of any service.
pub(crate) trait AnyServiceOwner: Send {
    /// Counts the keeper out. If it was the last one, nothing new begins, so that users which go on
    /// by themselves come to an end. Dropping it does so too, and then waits for them.
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
        // SAFETY: By the contract of whoever made it, not in a callback. No use is left, hence none
        // is made either; and there is but one last keeper.
        unsafe { self.inner.service.destroy() }
    }
}
