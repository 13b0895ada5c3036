// SPDX-License-Identifier: GPL-2.0

//! Digestion in the background: when archived eras are digested, and for how long at a time.
//!
//! What a slice of digestion does to the metadata is in `disk/digest.rs`. C counterpart:
//! `process_old_eras()`.

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

/// Upper bound of one digestion slice, and so of the delay that it adds to a first write.
const SLICE_MS: u64 = 2;
/// Words of a writeset that are digested between two checks of the clock.
const WORDS_PER_CHECK: u32 = 8;

/// Digests one slice, and continues unless there is nothing left or no space.
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
                // Deferred writes come first; their work item resumes the digestion.
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
    /// Resumes a digestion that was paused for deferred writes. Any context.
    pub(super) fn resume_digestion(self: &Arc<Self>) {
        if self.digestion_paused.load(Acquire) && self.digestion_paused.xchg(false, Relaxed) {
            self.wake_digester();
        }
    }

    /// Digests until the slice is over or writes are deferred.
    ///
    /// Called with `Metadata::state` locked. May sleep.
    pub(super) fn digest_slice(
        self: &Arc<Self>,
        state: &mut MetadataState,
    ) -> Result<DigestProgress> {
        let (end, mut words) = (now_ms().saturating_add(SLICE_MS), 0u32);
        self.run_step(state, OnError::KeepWorking, |md| {
            md.digest(|| {
                words = words.wrapping_add(1);
                words % WORDS_PER_CHECK == 0 && (self.has_deferred() || now_ms() >= end)
            })
        })
    }
}
