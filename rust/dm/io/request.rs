// SPDX-License-Identifier: GPL-2.0

//! Asynchronous requests, and the count of those in flight.

use crate::sys::{
    pool::PoolBox,
    wait::{
        new_wait_queue,
        WaitQueue, //
    }, //
};
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

/// An asynchronous request: a context, and the count that its client waits for.
pub(crate) struct Request<C> {
    /// The context, which describes and completes the request.
    pub(crate) context: C,
    pub(in crate::dm) client: Option<Arc<InflightCount>>,
    next: Option<PoolBox<Request<C>>>,
}

impl<C> Request<C> {
    /// Creates a request for [`IoClient::submit`](super::IoClient::submit) or
    /// [`KcopydClient::copy`](crate::dm::kcopyd::KcopydClient::copy). Any context.
    pub(crate) fn new(context: C) -> Self {
        Request {
            context,
            client: None,
            next: None,
        }
    }
}

/// A list of requests that have ended. They are linked by a field of their own, so it never
/// allocates.
pub(crate) struct RequestList<C> {
    top: Option<PoolBox<Request<C>>>,
}

impl<C> RequestList<C> {
    /// Adds a request. Any context.
    pub(crate) fn push(&mut self, mut request: PoolBox<Request<C>>) {
        request.next = self.top.take();
        self.top = Some(request);
    }

    /// Removes the request that was added last. Any context.
    pub(crate) fn pop(&mut self) -> Option<PoolBox<Request<C>>> {
        let mut request = self.top.take()?;
        self.top = request.next.take();
        Some(request)
    }

    /// Removes all requests. Any context.
    pub(crate) fn take(&mut self) -> Self {
        core::mem::take(self)
    }

    /// Reverses the list, so that the request added first is removed first. Any context.
    pub(crate) fn reversed(mut self) -> Self {
        let mut reversed = RequestList::default();
        while let Some(request) = self.pop() {
            reversed.push(request);
        }
        reversed
    }
}

impl<C> Default for RequestList<C> {
    fn default() -> Self {
        RequestList { top: None }
    }
}

impl<C> Drop for RequestList<C> {
    fn drop(&mut self) {
        // One by one: a request that drops the next one would recurse.
        while self.pop().is_some() {}
    }
}

/// The number of requests of a client in flight.
#[pin_data]
pub(in crate::dm) struct InflightCount {
    count: Atomic<i32>,
    /// A request has failed since [`drain_result`](Self::drain_result) was called last.
    pub(super) failed: Atomic<bool>,
    #[pin]
    none: WaitQueue,
}

impl InflightCount {
    /// Creates a count of zero. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(in crate::dm) fn new() -> Result<Arc<Self>> {
        let new = pin_init!(InflightCount {
            count: Atomic::new(0),
            failed: Atomic::new(false),
            none <- new_wait_queue!("dm_rust_io"),
        });
        Arc::pin_init(new, GFP_KERNEL)
    }

    /// Counts a request that begins. Any context.
    pub(in crate::dm) fn begin(&self) {
        self.count.fetch_add(1, Relaxed);
    }

    /// Counts a request that has ended. Any context.
    pub(in crate::dm) fn end(&self) {
        if self.count.fetch_sub(1, Release) == 1 {
            self.none.wake_all();
        }
    }

    /// Waits until no request is in flight. May sleep.
    pub(in crate::dm) fn drain(&self) {
        self.none.wait_until(|| self.count.load(Acquire) == 0);
    }

    /// Does the same as [`drain`](Self::drain). May sleep.
    ///
    /// # Errors
    ///
    /// `EIO` if a request has failed since this was called last.
    pub(super) fn drain_result(&self) -> Result {
        self.drain();
        if self.failed.xchg(false, Relaxed) {
            return Err(EIO);
        }
        Ok(())
    }
}
