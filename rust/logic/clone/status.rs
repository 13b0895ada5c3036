// SPDX-License-Identifier: GPL-2.0

//! The texts in which a clone tells its state.

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

/// The status line of a clone whose metadata cannot be asked for its size.
pub(crate) const STATUS_ERROR: &str = "Error";

/// What the state of its metadata lets a clone do.
///
/// The order is from healthy to broken. A plain value, free to use in any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// All works.
    ReadWrite,
    /// The metadata cannot be changed any more, so no region can become hydrated.
    ReadOnly,
    /// All I/O fails.
    Fail,
}

impl Mode {
    /// Returns the word of the status line; in [`Mode::Fail`] it is the whole line.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::ReadWrite => "rw",
            Self::ReadOnly => "ro",
            Self::Fail => "Fail",
        }
    }

    /// Returns the word of the log line about a switch of modes.
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

/// Everything the status line of a clone tells; its text is what `Display` writes.
///
/// A plain value, free to use in any context.
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
    /// The number of regions being copied or overwritten.
    pub(crate) hydrating: u64,
    /// Whether background hydration is on.
    pub(crate) hydration: bool,
    /// Whether discards are passed to the destination.
    pub(crate) discard_passdown: bool,
    /// The most regions in flight.
    pub(crate) threshold: u32,
    /// The most regions in one copy.
    pub(crate) batch: u32,
    /// Whether regions are copied when they are read.
    pub(crate) hydrate_on_read: bool,
    /// Whether a discard makes regions zeros that had not arrived.
    pub(crate) zero_discards: bool,
    /// The most failed copies; zero is no limit, and not told.
    pub(crate) max_failures: u32,
    /// What the clone can do.
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
        let words = if self.max_failures == 0 { 4 } else { 6 };
        f.write_fmt(fmt!(
            "{} {} {} {} {} ",
            words,
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
    /// Writes the count of features and their names, each with a space behind it.
    fn fmt_features(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [
            (!self.hydration, NO_HYDRATION),
            (!self.discard_passdown, NO_DISCARD_PASSDOWN),
            (self.hydrate_on_read, HYDRATE_ON_READ),
            (self.zero_discards, ZERO_DISCARDS),
        ];
        let words = words.iter().filter(|(told, _)| *told);
        f.write_fmt(fmt!("{} ", words.clone().count()))?;
        for (_, word) in words {
            f.write_str(word)?;
            f.write_str(" ")?;
        }
        Ok(())
    }
}

/// What a clone has done since its metadata was opened; its text is the answer to the message
/// `statistics`.
///
/// A plain value, free to use in any context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Statistics {
    /// Regions that were copied.
    pub(crate) copied: u64,
    /// Regions that were filled by writes without a copy.
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
            "copied_regions {} overwritten_regions {} discarded_regions {} failed_copies {} commits {}",
            self.copied,
            self.overwritten,
            self.discarded,
            self.failures,
            self.commits
        ))
    }
}
