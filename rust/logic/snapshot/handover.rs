// SPDX-License-Identifier: GPL-2.0

//! What a table is to the store of its COW device, and who takes over from whom.
//!
//! ```text
//!  New ───────── resume ──────▶ Live ◀── preresume ── Suspended ─── dtr ──▶ Leaving
//!  Successor ──── resume ────────┘ └─── postsuspend ────▶ │                   │
//!     that one:                                           ▼ resume            ▼ resume
//!                                                       Former ◀──────────────┘
//! ```
//!
//! Device-mapper calls `preresume`, which may fail, for all targets of a table, and only then
//! `resume`, which must not; and its own flag says "suspended" until all that is over. So a live
//! table is live again when its `preresume` has succeeded, and suspended when its `postsuspend`
//! runs. A successor goes by that, and from its construction on its live table does not leave
//! [`Suspended`](Role::Suspended): what its `preresume` has found holds in its `resume`.

/// What a table is to its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum HandoverState {
    /// It was made, and has read the store itself.
    New,
    /// It was made while another table was live, and takes over from it.
    Destination,
    /// It is live and in use, or is being resumed.
    Live,
    /// It is live, and its device is suspended: another table may take over.
    Suspended,
    /// It was live, and is being destroyed: nothing begins any more.
    Destroying,
    /// Another one has taken over.
    HandedOver,
}

/// Why a table cannot be resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// It is live, and another one waits to take over.
    DestinationWaits,
    /// The live one, from which it is to take over, is in use.
    SourceInUse,
}

impl Denied {
    /// The text for the log.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Denied::DestinationWaits => {
                "Unable to resume snapshot source until handover completes."
            }
            Denied::SourceInUse => "Unable to perform snapshot handover until source is suspended.",
        }
    }
}

/// The live table of a store, as another one sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// What it is; see [`HandoverState::has_store`].
    pub(crate) state: HandoverState,
    /// It merges.
    pub(crate) is_merge: bool,
    /// It belongs to the device that is being resumed, and has given way to a new table there.
    pub(crate) is_replaced: bool,
}

impl HandoverState {
    /// As a number.
    pub(crate) fn to_bits(self) -> u32 {
        // CAST: Six variants.
        self as u32
    }

    /// What [`to_bits`](Self::to_bits) gave.
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

    /// Whether it is live: its device may be suspended.
    pub(crate) fn is_live(self) -> bool {
        matches!(self, HandoverState::Live | HandoverState::Suspended)
    }

    /// Whether the store is its own, and it ends what is on its way there.
    pub(crate) fn has_store(self) -> bool {
        self.is_live() || self == HandoverState::Destroying
    }

    /// Whether it was not resumed yet.
    pub(crate) fn is_waiting(self) -> bool {
        matches!(self, HandoverState::New | HandoverState::Destination)
    }

    /// Its device is about to be resumed; `source` is the table that has the store, `is_waited_for`
    /// tells whether another one waits. Tells whether the store has to be read again.
    pub(crate) fn preresume(
        &mut self,
        source: Option<Source>,
        is_waited_for: bool,
    ) -> Result<bool, Denied> {
        match self {
            HandoverState::Live | HandoverState::Suspended if is_waited_for => {
                // It was live again if it could be resumed before, and another target of its table
                // could not.
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
                // Whoever it was to take over from is gone, and what is in memory may be older than
                // the disk; or it is a merge, which has left gaps.
                source => Ok(source.is_none_or(|source| source.is_merge)),
            },
            HandoverState::New
            | HandoverState::Live
            | HandoverState::Destroying
            | HandoverState::HandedOver => Ok(false),
        }
    }

    /// Its device was suspended.
    pub(crate) fn postsuspend(&mut self) {
        if *self == HandoverState::Live {
            *self = HandoverState::Suspended;
        }
    }

    /// Its device is resumed. Tells whether it takes over: from whoever has the store, if anybody
    /// does.
    pub(crate) fn resume(&mut self) -> bool {
        let takes_over = self.is_waiting();
        if takes_over {
            *self = HandoverState::Live;
        }
        takes_over
    }

    /// Another table takes over.
    pub(crate) fn hand_over(&mut self) {
        if self.has_store() {
            *self = HandoverState::HandedOver;
        }
    }

    /// It is about to be destroyed. Tells whether it has to see that nothing is left on its way.
    pub(crate) fn destroy(&mut self) -> bool {
        let has_to = self.is_live();
        if has_to {
            *self = HandoverState::Destroying;
        }
        has_to
    }
}
