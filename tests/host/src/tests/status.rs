// SPDX-License-Identifier: GPL-2.0

//! Status lines, as a clone of the kernel prints them.

use super::text;
use crate::logic::clone::status::*;
use crate::logic::units::Sectors;

const INFO: StatusLine = StatusLine {
    metadata_used: 6,
    metadata_total: 2048,
    region_size: Sectors(8),
    hydrated: 258,
    regions: 16384,
    hydrating: 0,
    hydration: false,
    discard_passdown: true,
    threshold: 1,
    batch: 1,
    hydrate_on_read: false,
    zero_discards: false,
    max_failures: 0,
    mode: Mode::ReadWrite,
};

#[test]
fn info_line() {
    assert_eq!(
        text(&INFO),
        "8 6/2048 8 258/16384 0 1 no_hydration 4 hydration_threshold 1 hydration_batch_size 1 rw"
    );
    let info = StatusLine {
        metadata_used: u64::MAX,
        hydrating: 12,
        hydration: true,
        discard_passdown: false,
        threshold: u32::MAX,
        batch: 0,
        mode: Mode::ReadOnly,
        ..INFO
    };
    assert_eq!(
        text(&info),
        "8 18446744073709551615/2048 8 258/16384 12 1 no_discard_passdown \
         4 hydration_threshold 4294967295 hydration_batch_size 0 ro"
    );
}

#[test]
fn features() {
    let line = |hydration, discard_passdown| {
        text(&StatusLine {
            hydration,
            discard_passdown,
            ..INFO
        })
    };
    assert!(line(true, true).contains("/16384 0 0 4 hydration_threshold"));
    assert!(line(false, false)
        .contains("/16384 0 2 no_hydration no_discard_passdown 4 hydration_threshold"));
}

#[test]
fn what_c_does_not_know_is_told_only_if_it_is_on() {
    let info = StatusLine {
        hydrate_on_read: true,
        zero_discards: true,
        max_failures: 7,
        ..INFO
    };
    assert_eq!(
        text(&info),
        "8 6/2048 8 258/16384 0 3 no_hydration hydrate_on_read zero_discards \
         6 hydration_threshold 1 hydration_batch_size 1 max_failures 7 rw"
    );
}

#[test]
fn statistics() {
    let statistics = Statistics {
        copied: 1,
        overwritten: 2,
        discarded: 3,
        failures: 4,
        commits: u64::MAX,
    };
    assert_eq!(
        text(&statistics),
        "copied_regions 1 overwritten_regions 2 discarded_regions 3 failed_copies 4 \
         commits 18446744073709551615"
    );
}

#[test]
fn failed_clone() {
    let info = StatusLine {
        mode: Mode::Fail,
        ..INFO
    };
    assert_eq!(text(&info), "Fail");
    assert_eq!(STATUS_ERROR, "Error");
}

#[test]
fn modes() {
    let modes = [Mode::ReadWrite, Mode::ReadOnly, Mode::Fail];
    assert_eq!(modes.map(|mode| mode.as_str()), ["rw", "ro", "Fail"]);
    assert_eq!(
        modes.map(|mode| mode.description()),
        ["read-write", "read-only", "fail"]
    );
    assert!(Mode::ReadWrite < Mode::ReadOnly && Mode::ReadOnly < Mode::Fail);
}
