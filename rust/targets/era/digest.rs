// SPDX-License-Identifier: GPL-2.0

//! Digestion in the background: archived eras go into the array, slice by slice.

use super::{
    disk::Digested,
    metadata::{
        Core,
        Weight, //
    },
    Era, //
};
use crate::sys::{
    log::err,
    noio::NoIo,
    time::now_ms, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Relaxed,
            Release, //
        },
        Arc, //
    },
    workqueue::WorkItem, //
};

/// So long a slice takes: first writes may have to wait for it.
const SLICE_MS: u64 = 2;
/// So many words of a bitset are looked at between two looks at the clock.
const WORDS: u32 = 8;

/// Digests for a while.
pub(super) struct Digester;

impl Digester {
    pub(super) const ID: u64 = 2;
}

impl WorkItem<2> for Era {
    type Pointer = Arc<Era>;

    fn run(this: Arc<Era>) {
        let _noio = NoIo::enter();
        let digested = {
            let mut core = this.metadata.lock();
            if !this.is_live(&core) {
                return;
            }
            this.digest_slice(&mut core)
        };
        match digested {
            Ok(Digested::Some) => {
                this.digestion.store(true, Release);
                // Otherwise it goes on after them.
                if !this.has_deferred() {
                    this.resume_digestion();
                }
            }
            Ok(Digested::All | Digested::NoRoom) => {}
            Err(_) => err!(
                "era",
                "process_old_eras: digest step failed, stopping digestion"
            ),
        }
    }
}

impl Era {
    /// Goes on with the digestion if it has made way.
    pub(super) fn resume_digestion(self: &Arc<Self>) {
        if self.digestion.load(Acquire) && self.digestion.xchg(false, Relaxed) {
            self.wake_digester();
        }
    }

    /// Digests for a while, or until writes wait.
    pub(super) fn digest_slice(self: &Arc<Self>, core: &mut Core) -> Result<Digested> {
        let (end, mut words) = (now_ms().saturating_add(SLICE_MS), 0u32);
        self.attempt(core, Weight::Light, |disk| {
            disk.digest(|| {
                words = words.wrapping_add(1);
                words % WORDS == 0 && (self.has_deferred() || now_ms() >= end)
            })
        })
    }
}
