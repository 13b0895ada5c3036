// SPDX-License-Identifier: GPL-2.0

//! The texts in which a clone tells its state.

use crate::env::fmt;
use crate::logic::clone::options::{
    HYDRATION_BATCH_SIZE,
    HYDRATION_THRESHOLD,
    NO_DISCARD_PASSDOWN,
    NO_HYDRATION, //
};
use crate::logic::units::Sectors;

/// The size of a metadata block.
const METADATA_BLOCK: Sectors = Sectors(8);

/// The status line of a clone whose metadata cannot be asked for its size.
pub(crate) const ERROR: &str = "Error";

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
pub(crate) struct Info {
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
    /// What the clone can do.
    pub(crate) mode: Mode,
}

impl fmt::Display for Info {
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
        f.write_fmt(fmt!(
            "4 {} {} {} {} {}",
            HYDRATION_THRESHOLD,
            self.threshold,
            HYDRATION_BATCH_SIZE,
            self.batch,
            self.mode
        ))
    }
}

impl Info {
    /// Writes the count of features and their names, each with a space behind it.
    fn fmt_features(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match (self.hydration, self.discard_passdown) {
            (true, true) => return f.write_str("0 "),
            (false, true) => [NO_HYDRATION, ""],
            (true, false) => ["", NO_DISCARD_PASSDOWN],
            (false, false) => [NO_HYDRATION, NO_DISCARD_PASSDOWN],
        };
        let words = words.iter().filter(|word| !word.is_empty());
        f.write_fmt(fmt!("{} ", words.clone().count()))?;
        for word in words {
            f.write_str(word)?;
            f.write_str(" ")?;
        }
        Ok(())
    }
}
