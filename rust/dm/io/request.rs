// SPDX-License-Identifier: GPL-2.0

//! Requests that nobody waits for: an owned context, and the count that its client waits for.

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

/// A context, and what its client waits for before it goes.
pub(crate) struct Request<C> {
    /// The context.
    pub(crate) context: C,
    pub(in crate::dm) client: Option<Arc<InflightCount>>,
    next: Option<PoolBox<Request<C>>>,
}

impl<C> Request<C> {
    /// A request for [`IoClient::submit`](super::IoClient::submit) or [`KcopydClient::copy`](crate::dm::kcopyd::KcopydClient::copy).
    pub(crate) fn new(context: C) -> Self {
        Request {
            context,
            client: None,
            next: None,
        }
    }
}

/// Requests that have ended, linked through themselves: it never allocates.
pub(crate) struct RequestList<C> {
    top: Option<PoolBox<Request<C>>>,
}

impl<C> RequestList<C> {
    /// Adds a request.
    pub(crate) fn push(&mut self, mut request: PoolBox<Request<C>>) {
        request.next = self.top.take();
        self.top = Some(request);
    }

    /// Takes the request that was added last.
    pub(crate) fn pop(&mut self) -> Option<PoolBox<Request<C>>> {
        let mut request = self.top.take()?;
        self.top = request.next.take();
        Some(request)
    }

    /// Takes all requests out.
    pub(crate) fn take(&mut self) -> Self {
        core::mem::take(self)
    }

    /// Turns the list around: what was added first is popped first.
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
        // One by one: a list that drops itself would recurse.
        while self.pop().is_some() {}
    }
}

/// The requests of a client that have not ended.
#[pin_data]
pub(in crate::dm) struct InflightCount {
    count: Atomic<i32>,
    /// Some read failed.
    pub(super) failed: Atomic<bool>,
    #[pin]
    none: WaitQueue,
}

impl InflightCount {
    /// None.
    pub(in crate::dm) fn new() -> Result<Arc<Self>> {
        let new = pin_init!(InflightCount {
            count: Atomic::new(0),
            failed: Atomic::new(false),
            none <- new_wait_queue!("dm_rust_io"),
        });
        Arc::pin_init(new, GFP_KERNEL)
    }

    /// One more.
    pub(in crate::dm) fn begin(&self) {
        self.count.fetch_add(1, Relaxed);
    }

    /// One less.
    pub(in crate::dm) fn end(&self) {
        if self.count.fetch_sub(1, Release) == 1 {
            self.none.wake_all();
        }
    }

    /// Waits until there is none. Sleeps.
    pub(in crate::dm) fn drain(&self) {
        self.none.wait_until(|| self.count.load(Acquire) == 0);
    }
}
