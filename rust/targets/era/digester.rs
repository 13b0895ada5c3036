// SPDX-License-Identifier: GPL-2.0

//! Digestion in the background: archived eras go into the array, slice by slice.

use super::{
    disk::DigestProgress,
    metadata::{
        MetadataState,
        OnError, //
    },
    work_id,
    EraTarget, //
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

impl WorkItem<{ work_id::DIGEST }> for EraTarget {
    type Pointer = Arc<EraTarget>;

    fn run(this: Arc<EraTarget>) {
        let _noio = NoIo::enter();
        let digested = {
            let mut state = this.metadata.lock();
            if !this.is_live(&state) {
                return;
            }
            this.digest_slice(&mut state)
        };
        match digested {
            Ok(DigestProgress::More) => {
                this.digestion_paused.store(true, Release);
                // Otherwise it goes on after them.
                if !this.has_deferred() {
                    this.resume_digestion();
                }
            }
            Ok(DigestProgress::Done | DigestProgress::NoSpace) => {}
            Err(_) => err!(
                "era",
                "process_old_eras: digest step failed, stopping digestion"
            ),
        }
    }
}

impl EraTarget {
    /// Goes on with the digestion if it has made way.
    pub(super) fn resume_digestion(self: &Arc<Self>) {
        if self.digestion_paused.load(Acquire) && self.digestion_paused.xchg(false, Relaxed) {
            self.wake_digester();
        }
    }

    /// Digests for a while, or until writes wait.
    pub(super) fn digest_slice(
        self: &Arc<Self>,
        state: &mut MetadataState,
    ) -> Result<DigestProgress> {
        let (end, mut words) = (now_ms().saturating_add(SLICE_MS), 0u32);
        self.run_step(state, OnError::KeepWorking, |md| {
            md.digest(|| {
                words = words.wrapping_add(1);
                words % WORDS == 0 && (self.has_deferred() || now_ms() >= end)
            })
        })
    }
}
