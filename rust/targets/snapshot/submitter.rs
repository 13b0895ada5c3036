// SPDX-License-Identifier: GPL-2.0

//! Bios and copies that the worker has decided on, and the work items that send them.
//!
//! A device may have no request free, so whoever sends something to it may have to wait for it. The
//! worker must not: all targets of an origin need its lock. So it leaves what it sends to a work
//! item of that device alone. On the CPU of the worker that item runs next, without a switch of
//! threads, unless one before it has to wait.

use super::io::PerBioData;
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

/// Bios of a target that are to be sent to one of its devices.
#[pin_data]
pub(super) struct BioSubmitter {
    device: Device,
    #[pin]
    bios: IrqLock<BioQueue<PerBioData>>,
    #[pin]
    work: Work<BioSubmitter, 1>,
}

impl_has_work! {
    impl HasWork<BioSubmitter, 1> for BioSubmitter { self.work }
}

impl BioSubmitter {
    /// Sleeps.
    pub(super) fn new(device: Device) -> Result<Arc<Self>> {
        let new = pin_init!(BioSubmitter {
            device,
            bios <- new_irq_lock!(BioQueue::new(), "dm_snap_submitter"),
            work <- new_work!("dm_snap_submit"),
        });
        Arc::pin_init(new, GFP_KERNEL)
    }

    /// Sends a bio soon. Any context.
    pub(super) fn submit(self: &Arc<Self>, bio: Bio<PerBioData>, queue: &WorkQueue) {
        self.bios.lock().push(bio);
        queue.enqueue::<BioSubmitter, 1>(self.clone());
    }

    /// Sends bios soon: those of its own target. Leaves others where they are. Any context.
    pub(super) fn submit_own(self: &Arc<Self>, bios: &mut BioQueue<PerBioData>, queue: &WorkQueue) {
        let mut own = bios.take_for(&self.device);
        if !own.is_empty() {
            self.bios.lock().append(&mut own);
            queue.enqueue::<BioSubmitter, 1>(self.clone());
        }
    }

    /// Waits until the work item has ended; there are no bios any more. Sleeps.
    pub(super) fn drain(self: &Arc<Self>) {
        flush::<BioSubmitter, 1>(self);
    }
}

impl WorkItem<1> for BioSubmitter {
    type Pointer = Arc<BioSubmitter>;

    /// Sleeps until the device takes the bios. No lock is held then.
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
