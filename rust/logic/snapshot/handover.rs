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
pub(crate) enum Handover {
    /// It was made, and has read the store itself.
    New,
    /// It was made while another table was live, and takes over from it.
    Successor,
    /// It is live and in use, or is being resumed.
    Live,
    /// It is live, and its device is suspended: another table may take over.
    Suspended,
    /// It was live, and is being destroyed: nothing begins any more.
    Leaving,
    /// Another one has taken over.
    Former,
}

/// Why a table cannot be resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// It is live, and another one waits to take over.
    Waited,
    /// The live one, from which it is to take over, is in use.
    InUse,
}

impl Denied {
    /// The text for the log.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Denied::Waited => "Unable to resume snapshot source until handover completes.",
            Denied::InUse => "Unable to perform snapshot handover until source is suspended.",
        }
    }
}

/// The live table of a store, as another one sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// What it is; see [`Handover::has_store`].
    pub(crate) role: Handover,
    /// It merges.
    pub(crate) is_merge: bool,
    /// It belongs to the device that is being resumed, and has given way to a new table there.
    pub(crate) is_replaced: bool,
}

impl Handover {
    /// As a number.
    pub(crate) fn to_bits(self) -> u32 {
        // CAST: Six variants.
        self as u32
    }

    /// What [`to_bits`](Self::to_bits) gave.
    pub(crate) fn from_bits(bits: u32) -> Self {
        match bits {
            0 => Handover::New,
            1 => Handover::Successor,
            2 => Handover::Live,
            3 => Handover::Suspended,
            4 => Handover::Leaving,
            _ => Handover::Former,
        }
    }

    /// Whether it is live: its device may be suspended.
    pub(crate) fn is_live(self) -> bool {
        matches!(self, Handover::Live | Handover::Suspended)
    }

    /// Whether the store is its own, and it ends what is on its way there.
    pub(crate) fn has_store(self) -> bool {
        self.is_live() || self == Handover::Leaving
    }

    /// Whether it was not resumed yet.
    pub(crate) fn waits(self) -> bool {
        matches!(self, Handover::New | Handover::Successor)
    }

    /// Its device is about to be resumed; `source` is the table that has the store, `is_waited_for`
    /// tells whether another one waits. Tells whether the store has to be read again.
    pub(crate) fn preresume(
        &mut self,
        source: Option<Source>,
        is_waited_for: bool,
    ) -> Result<bool, Denied> {
        match self {
            Handover::Live | Handover::Suspended if is_waited_for => {
                // It was live again if it could be resumed before, and another target of its table
                // could not.
                *self = Handover::Suspended;
                Err(Denied::Waited)
            }
            Handover::Suspended => {
                *self = Handover::Live;
                Ok(false)
            }
            Handover::Successor => match source {
                Some(source) if source.role == Handover::Live && !source.is_replaced => {
                    Err(Denied::InUse)
                }
                // Whoever it was to take over from is gone, and what is in memory may be older than
                // the disk; or it is a merge, which has left gaps.
                source => Ok(source.is_none_or(|source| source.is_merge)),
            },
            Handover::New | Handover::Live | Handover::Leaving | Handover::Former => Ok(false),
        }
    }

    /// Its device was suspended.
    pub(crate) fn postsuspend(&mut self) {
        if *self == Handover::Live {
            *self = Handover::Suspended;
        }
    }

    /// Its device is resumed. Tells whether it takes over: from whoever has the store, if anybody
    /// does.
    pub(crate) fn resume(&mut self) -> bool {
        let takes_over = self.waits();
        if takes_over {
            *self = Handover::Live;
        }
        takes_over
    }

    /// Another table takes over.
    pub(crate) fn taken_over(&mut self) {
        if self.has_store() {
            *self = Handover::Former;
        }
    }

    /// It is about to be destroyed. Tells whether it has to see that nothing is left on its way.
    pub(crate) fn leave(&mut self) -> bool {
        let has_to = self.is_live();
        if has_to {
            *self = Handover::Leaving;
        }
        has_to
    }
}
