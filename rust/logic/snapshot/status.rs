// SPDX-License-Identifier: GPL-2.0

//! The texts of a snapshot's status.
//!
//! C counterpart: `snapshot_status()`.

use crate::env::fmt;
use crate::logic::units::Sectors;

/// The health of a snapshot. `Display` writes what IMA measures after the devices.
///
/// Any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    /// Whether the snapshot is valid.
    pub(crate) valid: bool,
    /// Whether its merge has failed.
    pub(crate) merge_failed: bool,
    /// Whether the COW device was full, so that writes to the snapshot fail.
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

/// The usage of the COW device.
///
/// Any context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// The sectors in use.
    pub(crate) allocated: Sectors,
    /// The size of the COW device.
    pub(crate) total: Sectors,
    /// The sectors that hold metadata.
    pub(crate) metadata: Sectors,
}

/// The status line of a snapshot, which `Display` writes.
///
/// Any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StatusLine {
    /// The snapshot is invalid.
    Invalid,
    /// Its merge has failed.
    MergeFailed,
    /// The COW device was full.
    Overflow,
    /// The snapshot works.
    Usage(Usage),
}

impl StatusLine {
    /// Returns the status line of a snapshot.
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

    /// Returns the status line of a snapshot that is being merged.
    ///
    /// It shows the usage even if the COW device was full, so that the end of the merge is visible.
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
