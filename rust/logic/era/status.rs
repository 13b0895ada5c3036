// SPDX-License-Identifier: GPL-2.0

//! The status line of an era target.

use crate::env::fmt;
use crate::logic::era::number::Era;

/// The size of a metadata block in sectors.
const METADATA_BLOCK: u32 = 8;

/// The status line of an era target whose metadata does not work.
pub(crate) const ERROR: &str = "Error";

/// What the status line tells; its text is what `Display` writes.
///
/// A plain value, free to use in any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Info {
    /// Metadata blocks in use.
    pub(crate) used: u64,
    /// Metadata blocks in all.
    pub(crate) total: u64,
    /// The present era.
    pub(crate) era: Era,
    /// Where the metadata snapshot is; zero if there is none.
    pub(crate) snapshot: u64,
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Info {
            used,
            total,
            era,
            snapshot,
        } = self;
        f.write_fmt(fmt!("{} {}/{} {} ", METADATA_BLOCK, used, total, era))?;
        match snapshot {
            0 => f.write_str("-"),
            location => f.write_fmt(fmt!("{}", location)),
        }
    }
}
