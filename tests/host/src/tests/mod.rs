// SPDX-License-Identifier: GPL-2.0

//! Tests of the logic: properties, comparison with simple models, and fault injection.

mod args;
mod count;
mod dirty;
mod era_geometry;
mod era_rollover;
mod era_superblock;
mod era_texts;
mod era_writeset;
mod geometry;
mod hydration;
mod hydration_rules;
mod inflight;
mod map;
mod map_shared;
mod options;
mod region_copy;
mod slots;
mod snap_exception_table;
mod snap_handover;
mod snap_header;
mod snap_layout;
mod snap_lists;
mod snap_loader;
mod snap_merge;
mod snap_merge_model;
mod snap_options;
mod snap_pending;
mod snap_preserved;
mod snap_record_batch;
mod snap_stripes;
mod snap_tracked_reads;
mod space_map;
mod status;
mod superblock;

use std::string::{
    String,
    ToString, //
};

use crate::env::{
    faults,
    fmt,
    Error,
    Result,
    ENOMEM, //
};
use crate::logic::regions::{
    Region,
    RegionRange, //
};

/// Makes a range from plain numbers.
fn range(start: u64, end: u64) -> RegionRange {
    RegionRange::new(Region(start), Region(end))
}

/// Returns the text that `Display` writes.
fn text(value: &impl fmt::Display) -> String {
    value.to_string()
}

/// Runs `f` with its first allocation failing, then with its second, and so on until it succeeds.
///
/// Returns the result and the number of failures.
fn with_all_faults<T>(mut f: impl FnMut() -> Result<T, Error>) -> (T, usize) {
    for n in 0.. {
        match faults::with_failing(n, &mut f) {
            (Ok(value), false) => return (value, n),
            (Ok(_), true) => panic!("allocation {n} failed, and the result was a success"),
            (Err(error), reached) => {
                assert!(reached, "failed without a failing allocation");
                assert_eq!(error, ENOMEM);
            }
        }
    }
    unreachable!()
}
