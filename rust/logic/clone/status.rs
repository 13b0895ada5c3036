// SPDX-License-Identifier: GPL-2.0

//! The texts of the status of a clone.

use crate::env::fmt;
use crate::logic::clone::options::{
    HYDRATE_ON_READ,
    HYDRATION_BATCH_SIZE,
    HYDRATION_THRESHOLD,
    MAX_FAILURES,
    NO_DISCARD_PASSDOWN,
    NO_HYDRATION,
    ZERO_DISCARDS, //
};
use crate::logic::units::Sectors;

/// The size of a metadata block.
const METADATA_BLOCK: Sectors = Sectors(8);

/// The status line of a clone whose metadata usage is not known.
pub(crate) const STATUS_ERROR: &str = "Error";

/// What the state of its metadata allows a clone to do, from healthy to broken.
///
/// C counterpart: `enum clone_metadata_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// Everything.
    ReadWrite,
    /// The metadata cannot be changed any more, so that no region can become hydrated.
    ReadOnly,
    /// Nothing: all I/O fails.
    Fail,
}

impl Mode {
    /// Returns the mode in the status line; [`Mode::Fail`] is the whole line.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::ReadWrite => "rw",
            Self::ReadOnly => "ro",
            Self::Fail => "Fail",
        }
    }

    /// Returns the mode in the log message about a switch of modes.
    pub(crate) const fn description(self) -> &'static str {
        match self {
            Self::ReadWrite => "read-write",
            Self::ReadOnly => "read-only",
            Self::Fail => "fail",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The status line of a clone; its text is what `Display` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StatusLine {
    /// The number of metadata blocks in use.
    pub(crate) metadata_used: u64,
    /// The number of metadata blocks.
    pub(crate) metadata_total: u64,
    /// The size of a region.
    pub(crate) region_size: Sectors,
    /// The number of regions that are hydrated.
    pub(crate) hydrated: u64,
    /// The number of regions.
    pub(crate) regions: u64,
    /// The number of regions in flight.
    pub(crate) hydrating: u64,
    /// Whether background hydration is on.
    pub(crate) hydration: bool,
    /// Whether discards are passed to the destination.
    pub(crate) discard_passdown: bool,
    /// Maximum number of regions in flight.
    pub(crate) threshold: u32,
    /// Maximum number of regions in one copy.
    pub(crate) batch: u32,
    /// Whether regions are copied when they are read.
    pub(crate) hydrate_on_read: bool,
    /// Whether a discard zeroes regions that are not hydrated.
    pub(crate) zero_discards: bool,
    /// Number of failed copies after which hydration is disabled; zero is no limit, and not shown.
    pub(crate) max_failures: u32,
    /// The mode of the metadata.
    pub(crate) mode: Mode,
}

impl fmt::Display for StatusLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.mode == Mode::Fail {
            return f.write_str(self.mode.as_str());
        }
        f.write_fmt(fmt!(
            "{} {}/{} {} {}/{} {} ",
            METADATA_BLOCK,
            self.metadata_used,
            self.metadata_total,
            self.region_size,
            self.hydrated,
            self.regions,
            self.hydrating
        ))?;
        self.fmt_features(f)?;
        let core_args = if self.max_failures == 0 { 4 } else { 6 };
        f.write_fmt(fmt!(
            "{} {} {} {} {} ",
            core_args,
            HYDRATION_THRESHOLD,
            self.threshold,
            HYDRATION_BATCH_SIZE,
            self.batch
        ))?;
        if self.max_failures != 0 {
            f.write_fmt(fmt!("{} {} ", MAX_FAILURES, self.max_failures))?;
        }
        f.write_str(self.mode.as_str())
    }
}

impl StatusLine {
    /// Writes the number of feature arguments and their names, each followed by a space.
    fn fmt_features(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let features = [
            (!self.hydration, NO_HYDRATION),
            (!self.discard_passdown, NO_DISCARD_PASSDOWN),
            (self.hydrate_on_read, HYDRATE_ON_READ),
            (self.zero_discards, ZERO_DISCARDS),
        ];
        let features = features.iter().filter(|(is_shown, _)| *is_shown);
        f.write_fmt(fmt!("{} ", features.clone().count()))?;
        for (_, name) in features {
            f.write_str(name)?;
            f.write_str(" ")?;
        }
        Ok(())
    }
}

/// What a clone has done since its metadata was opened; its text is the answer to the message
/// `statistics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Statistics {
    /// Regions that were copied.
    pub(crate) copied: u64,
    /// Regions that writes have filled without a copy.
    pub(crate) overwritten: u64,
    /// Regions that were marked by discards.
    pub(crate) discarded: u64,
    /// Copies that failed.
    pub(crate) failures: u64,
    /// Commits of the metadata.
    pub(crate) commits: u64,
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_fmt(fmt!(
            "copied_regions {} overwritten_regions {} discarded_regions {} failed_copies {} \
             commits {}",
            self.copied,
            self.overwritten,
            self.discarded,
            self.failures,
            self.commits
        ))
    }
}
