// SPDX-License-Identifier: GPL-2.0

//! Era numbers, the status line of an era target, and the block size in its table line.

use proptest::prelude::*;
use std::format;
use std::string::String;
use std::vec::Vec;

use super::text;
use crate::logic::args::parse_strict_u32;
use crate::logic::era::{
    era_nr::EraNr,
    status::*, //
};

/// Era numbers at all boundaries and in between.
fn eras() -> impl Strategy<Value = u32> {
    prop_oneof![
        any::<u32>(),
        0u32..3,
        (0u32..3).prop_map(|n| u32::MAX - n),
        (0u32..5).prop_map(|n| u32::MAX - (1 << 20) - 2 + n),
    ]
}

/// Each era but the last has a next one; numbers do not wrap.
#[test]
fn eras_come_to_an_end() {
    assert_eq!(EraNr::NONE, EraNr(0));
    assert_eq!(EraNr::NONE.next(), Some(EraNr(1)));
    assert_eq!(EraNr(u32::MAX - 1).next(), Some(EraNr(u32::MAX)));
    assert_eq!(EraNr(u32::MAX).next(), None);
    assert!(EraNr(u32::MAX).is_last() && !EraNr(u32::MAX - 1).is_last());
}

/// The warning comes once, 2^20 eras before the last one.
#[test]
fn the_end_is_announced_once() {
    let mut era = EraNr(u32::MAX - (1 << 21));
    let mut warnings = Vec::new();
    while let Some(next) = era.next() {
        era = next;
        if era.is_first_warning() {
            warnings.push(era);
        }
    }
    assert_eq!(warnings, [EraNr(u32::MAX - (1 << 20))]);
    assert!(era.is_last());
}

/// The lines that the C target prints.
#[test]
fn info_line() {
    let info = MetadataStats {
        used: 13,
        total: 2048,
        era: EraNr(1),
        metadata_snap: 0,
    };
    assert_eq!(text(&info), "8 13/2048 1 -");
    let info = MetadataStats {
        used: 16,
        era: EraNr(4),
        metadata_snap: 43,
        ..info
    };
    assert_eq!(text(&info), "8 16/2048 4 43");
    let info = MetadataStats {
        used: u64::MAX,
        total: u64::MAX,
        era: EraNr(u32::MAX),
        metadata_snap: u64::MAX,
    };
    let max = u64::MAX;
    assert_eq!(text(&info), format!("8 {max}/{max} 4294967295 {max}"));
    assert_eq!(ERROR, "Error");
}

/// Only digits, and at most 32 bits: the C target reads 4294967304 as 8.
#[test]
fn strict_corners() {
    let cases: &[(&[u8], Option<u32>)] = &[
        (b"", None),
        (b"0", Some(0)),
        (b"8", Some(8)),
        (b"008", Some(8)),
        (b" 8", None),
        (b"8 ", None),
        (b"8\n", None),
        (b"\xa08", None),
        (b"+8", None),
        (b"-8", None),
        (b"8x", None),
        (b"0x8", None),
        (b"abc", None),
        (b"8\0", None),
        (b"4294967295", Some(u32::MAX)),
        (b"4294967296", None),
        (b"4294967304", None),
        (b"18446744073709551615", None),
        (b"18446744073709551616", None),
        (b"18446744073709551624", None),
        (b"99999999999999999999999999", None),
        (b"00000000000000000000000000000008", Some(8)),
    ];
    for (word, expected) in cases {
        assert_eq!(parse_strict_u32(word), *expected, "{word:?}");
    }
}

proptest! {
    /// The next era is greater by one; keys are era numbers, and no other key belongs to an era.
    #[test]
    fn eras_are_numbers(
        number in eras(), key in prop_oneof![any::<u64>(), (1u64 << 32) - 2..(1 << 32) + 2],
    ) {
        let era = EraNr(number);
        prop_assert_eq!(text(&era), format!("{number}"));
        prop_assert_eq!(era.next().is_none(), era.is_last());
        if let Some(next) = era.next() {
            prop_assert!(next > era && next.0 - number == 1);
        }
        prop_assert_eq!(era.is_first_warning(), number == u32::MAX - 1_048_576);
        prop_assert_eq!((era.key(), EraNr::of_key(era.key())), (u64::from(number), Some(era)));
        prop_assert_eq!(EraNr::of_key(key), (key < 1 << 32).then_some(EraNr(key as u32)));
    }

    /// An argument is accepted if it has only digits and its value, computed without bounds, fits.
    #[test]
    fn strict_numbers(word in prop_oneof![
        "[0-9]{0,30}".prop_map(String::into_bytes),
        "0{0,30}[0-9]{1,11}".prop_map(String::into_bytes),
        any::<u32>().prop_map(|number| format!("{number}").into_bytes()),
        prop::collection::vec(prop::sample::select(&b"0123456789+-_ \n\x0bx\xa0"[..]), 0..12),
        any::<Vec<u8>>(),
    ]) {
        let model = word.iter().try_fold(0u128, |value, byte| match byte {
            b'0'..=b'9' => Some(value * 10 + u128::from(byte - b'0')),
            _ => None,
        });
        let model = model.filter(|value| !word.is_empty() && *value < 1 << 32);
        prop_assert_eq!(parse_strict_u32(&word).map(u128::from), model);
    }
}
