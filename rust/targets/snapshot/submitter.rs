// SPDX-License-Identifier: GPL-2.0

//! Submission of the bios that the worker has decided on.
//!
//! Submitting a bio may sleep until the device has a free request. The worker must not sleep for
//! that, as all targets on an origin need its lock. So it hands bios to a work item that serves one
//! device alone. That item runs next on the CPU of the worker, without a thread switch, unless an
//! earlier item sleeps.

use super::{
    per_bio::PerBioData,
    work_id, //
};
use crate::{
    dm::{
        bio::{
            Bio,
            BioQueue, //
        },
        device::Device, //
    },
    sys::{
        irq_lock::{
            new_irq_lock,
            IrqLock, //
        },
        noio::NoIo,
        plug::plugged,
        queue::{
            flush,
            WorkQueue, //
        }, //
    }, //
};
use kernel::{
    prelude::*,
    sync::Arc,
    workqueue::{
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    }, //
};

/// Bios that wait to be submitted to one device, and the work item that does it.
#[pin_data]
pub(super) struct BioSubmitter {
    device: Device,
    #[pin]
    bios: IrqLock<BioQueue<PerBioData>>,
    #[pin]
    work: Work<BioSubmitter, { work_id::BIO_SUBMITTER }>,
}

impl_has_work! {
    impl HasWork<BioSubmitter, { work_id::BIO_SUBMITTER }> for BioSubmitter { self.work }
}

impl BioSubmitter {
    /// Makes a submitter without bios. May sleep.
    pub(super) fn new(device: Device) -> Result<Arc<Self>> {
        let submitter = pin_init!(BioSubmitter {
            device,
            bios <- new_irq_lock!(BioQueue::new(), "dm_snap_submitter"),
            work <- new_work!("dm_snap_submit"),
        });
        Arc::pin_init(submitter, GFP_KERNEL)
    }

    /// Queues a bio, and the work item that submits it. Any context.
    pub(super) fn submit(self: &Arc<Self>, bio: Bio<PerBioData>, queue: &WorkQueue) {
        self.bios.lock().push(bio);
        queue.enqueue::<BioSubmitter, { work_id::BIO_SUBMITTER }>(self.clone());
    }

    /// Queues those bios that belong to the target of this submitter, and leaves the others in the
    /// list. Any context.
    pub(super) fn submit_own(self: &Arc<Self>, bios: &mut BioQueue<PerBioData>, queue: &WorkQueue) {
        let mut own = bios.take_for(&self.device);
        if !own.is_empty() {
            self.bios.lock().append(&mut own);
            queue.enqueue::<BioSubmitter, { work_id::BIO_SUBMITTER }>(self.clone());
        }
    }

    /// Waits until the work item has ended. Called when the target has no bios any more. May sleep.
    pub(super) fn drain(self: &Arc<Self>) {
        flush::<BioSubmitter, { work_id::BIO_SUBMITTER }>(self);
    }
}

impl WorkItem<{ work_id::BIO_SUBMITTER }> for BioSubmitter {
    type Pointer = Arc<BioSubmitter>;

    /// Submits the queued bios. May sleep until the device takes them; no lock is held meanwhile.
    fn run(this: Arc<BioSubmitter>) {
        let _noio = NoIo::enter();
        let mut bios = this.bios.lock().take();
        plugged(|| {
            while let Some(bio) = bios.pop() {
                bio.submit(&this.device);
            }
        });
    }
}
