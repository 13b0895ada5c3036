// SPDX-License-Identifier: GPL-2.0

//! Exception handover: which table owns a store, and how another table takes it over.
//!
//! C counterparts: `snapshot_ctr()`, `snapshot_preresume()`, `snapshot_resume()` and
//! `__handover_exceptions()` of `dm-snap.c`. As there, the *source* owns the exceptions of a COW
//! device, and the *destination* is a table that was constructed meanwhile, with the same COW
//! device.
//!
//! ```text
//!  New ────────── resume ──────▶ Live ◀── preresume ── Suspended ──── dtr ──▶ Destroying
//!  Destination ── resume ─────────┘ └── postsuspend ─────▶ │                    │
//!                                                          ▼                    ▼
//!               meanwhile, in its source:              HandedOver ◀─────────────┘
//! ```
//!
//! Device-mapper calls `preresume`, which may fail, for all targets of a table, and then `resume`,
//! which must not fail. Its own flag `DMF_SUSPENDED` stays set until all of that is over. So a
//! source is `Live` again once its `preresume` succeeds, and `Suspended` once its `postsuspend`
//! runs. The destination relies on this state, not on the flag: from the construction of the
//! destination on, its source never leaves `Suspended`, so what `preresume` of the destination
//! found still holds in its `resume`.

/// The state of a snapshot's table in the handover of its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum HandoverState {
    /// The table was constructed, and has read the store itself. It is not resumed yet.
    New,
    /// The table was constructed while a source existed, from which it takes over when it is
    /// resumed.
    Destination,
    /// The source. It is in use, or is being resumed.
    Live,
    /// The source. Its device is suspended: a destination may take over.
    Suspended,
    /// The source is being destroyed, and starts nothing any more.
    Destroying,
    /// A destination has taken over.
    HandedOver,
}

/// Why a table cannot be resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// The table is the source, and a destination waits to take over.
    DestinationWaits,
    /// The table is a destination, and its source is not suspended.
    SourceInUse,
}

impl Denied {
    /// Returns the log message.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Denied::DestinationWaits => {
                "Unable to resume snapshot source until handover completes."
            }
            Denied::SourceInUse => "Unable to perform snapshot handover until source is suspended.",
        }
    }
}

/// The source of a store, as another table sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// Its state, one of those for which [`HandoverState::has_store`] holds.
    pub(crate) state: HandoverState,
    /// Whether it merges.
    pub(crate) is_merge: bool,
    /// Whether it belongs to the device that is being resumed, where a new table replaces it.
    pub(crate) is_replaced: bool,
}

impl HandoverState {
    /// Converts the state to a number.
    pub(crate) fn to_bits(self) -> u32 {
        // CAST: The enum has six variants.
        self as u32
    }

    /// Converts a number from [`to_bits`](Self::to_bits) back.
    pub(crate) fn from_bits(bits: u32) -> Self {
        match bits {
            0 => HandoverState::New,
            1 => HandoverState::Destination,
            2 => HandoverState::Live,
            3 => HandoverState::Suspended,
            4 => HandoverState::Destroying,
            _ => HandoverState::HandedOver,
        }
    }

    /// Returns whether the table was resumed, and owns the store. Its device may be suspended.
    pub(crate) fn is_live(self) -> bool {
        matches!(self, HandoverState::Live | HandoverState::Suspended)
    }

    /// Returns whether the table owns the store, and completes its pending exceptions.
    pub(crate) fn has_store(self) -> bool {
        self.is_live() || self == HandoverState::Destroying
    }

    /// Returns whether the table waits for its first resume.
    pub(crate) fn is_waiting(self) -> bool {
        matches!(self, HandoverState::New | HandoverState::Destination)
    }

    /// Prepares the resume of the table's device. Returns whether the store must be read again.
    ///
    /// `source` is the table that owns the store; `is_destination_waiting` says whether a table
    /// waits for its first resume.
    ///
    /// # Errors
    ///
    /// [`Denied`] lists the causes.
    pub(crate) fn preresume(
        &mut self,
        source: Option<Source>,
        is_destination_waiting: bool,
    ) -> Result<bool, Denied> {
        match self {
            HandoverState::Live | HandoverState::Suspended if is_destination_waiting => {
                // It is `Live` if an earlier resume failed after this target's `preresume`, in
                // another target of the table.
                *self = HandoverState::Suspended;
                Err(Denied::DestinationWaits)
            }
            HandoverState::Suspended => {
                *self = HandoverState::Live;
                Ok(false)
            }
            HandoverState::Destination => match source {
                Some(source) if source.state == HandoverState::Live && !source.is_replaced => {
                    Err(Denied::SourceInUse)
                }
                // Without a source, the exceptions in memory may be older than those on disk. A
                // merge has removed exceptions from memory.
                source => Ok(source.is_none_or(|source| source.is_merge)),
            },
            HandoverState::New
            | HandoverState::Live
            | HandoverState::Destroying
            | HandoverState::HandedOver => Ok(false),
        }
    }

    /// Records that the table's device was suspended.
    pub(crate) fn postsuspend(&mut self) {
        if *self == HandoverState::Live {
            *self = HandoverState::Suspended;
        }
    }

    /// Resumes the table. Returns whether it takes over the store, from the source if one exists.
    pub(crate) fn resume(&mut self) -> bool {
        let takes_over = self.is_waiting();
        if takes_over {
            *self = HandoverState::Live;
        }
        takes_over
    }

    /// Records that a destination takes over the store.
    pub(crate) fn hand_over(&mut self) {
        if self.has_store() {
            *self = HandoverState::HandedOver;
        }
    }

    /// Begins the destruction of the table. Returns whether the table must wait for its pending
    /// exceptions.
    pub(crate) fn destroy(&mut self) -> bool {
        let must_wait = self.is_live();
        if must_wait {
            *self = HandoverState::Destroying;
        }
        must_wait
    }
}
