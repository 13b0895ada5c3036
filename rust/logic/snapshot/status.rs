// SPDX-License-Identifier: GPL-2.0

//! The texts in which a snapshot tells its state.

use crate::env::fmt;
use crate::logic::units::Sectors;

/// What has become of a snapshot; `Display` writes what is measured (IMA) behind the devices.
///
/// A plain value, free to use in any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    /// Whether it can be used.
    pub(crate) valid: bool,
    /// Whether its merge has failed.
    pub(crate) merge_failed: bool,
    /// Whether writes to it fail since the COW device was found full.
    pub(crate) overflowed: bool,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |is: bool| if is { "y" } else { "n" };
        f.write_fmt(fmt!(
            ",snap_valid={},snap_merge_failed={},snapshot_overflowed={};",
            letter(self.valid),
            letter(self.merge_failed),
            letter(self.overflowed)
        ))
    }
}

/// How full the COW device is.
///
/// A plain value, free to use in any context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// What is in use.
    pub(crate) allocated: Sectors,
    /// Its size.
    pub(crate) total: Sectors,
    /// What of it is not data.
    pub(crate) metadata: Sectors,
}

/// The status line of a snapshot; its text is what `Display` writes.
///
/// A plain value, free to use in any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StatusLine {
    /// It cannot be used.
    Invalid,
    /// Its merge has failed.
    MergeFailed,
    /// The COW device was found full.
    Overflow,
    /// All is well.
    Usage(Usage),
}

impl StatusLine {
    /// What a snapshot tells.
    pub(crate) fn of_snapshot(health: Health, usage: Usage) -> Self {
        match health {
            Health { valid: false, .. } => Self::Invalid,
            Health {
                merge_failed: true, ..
            } => Self::MergeFailed,
            Health {
                overflowed: true, ..
            } => Self::Overflow,
            _ => Self::Usage(usage),
        }
    }

    /// What a snapshot tells that is merged: its numbers even if it was found full before, or
    /// nobody would see the end.
    pub(crate) fn of_merge(health: Health, usage: Usage) -> Self {
        let overflowed = false;
        Self::of_snapshot(
            Health {
                overflowed,
                ..health
            },
            usage,
        )
    }
}

impl fmt::Display for StatusLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid => f.write_str("Invalid"),
            Self::MergeFailed => f.write_str("Merge failed"),
            Self::Overflow => f.write_str("Overflow"),
            Self::Usage(usage) => f.write_fmt(fmt!(
                "{}/{} {}",
                usage.allocated,
                usage.total,
                usage.metadata
            )),
        }
    }
}
