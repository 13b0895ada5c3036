// SPDX-License-Identifier: GPL-2.0

//! Numbers and names in table lines, against transcriptions of the kernel's C code.

use proptest::prelude::*;
use std::format;
use std::vec::Vec;

use crate::logic::args::*;

/// The kernel's digit loop: base 10, 64 bits, with its check for overflow.
fn digits(bytes: &[u8]) -> (u64, usize, bool) {
    let mut value = 0u64;
    let mut overflow = false;
    let mut used = 0;
    for byte in bytes {
        if !byte.is_ascii_digit() {
            break;
        }
        let digit = u64::from(byte - b'0');
        if value & (u64::MAX << 60) != 0 {
            match value.checked_mul(10).and_then(|v| v.checked_add(digit)) {
                Some(sum) => value = sum,
                None => {
                    value = u64::MAX;
                    overflow = true;
                }
            }
        } else {
            value = value * 10 + digit;
        }
        used += 1;
    }
    (value, used, overflow)
}

/// `sscanf(word, "%u%c", &value, &dummy) == 1`.
fn scanf(word: &[u8]) -> Option<u32> {
    let is_space = |byte: u8| (9..=13).contains(&byte) || byte == 32 || byte == 160;
    let mut at = 0;
    while at < word.len() && is_space(word[at]) {
        at += 1;
    }
    let (value, used, _) = digits(&word[at..]);
    (used != 0 && at + used == word.len()).then_some((value & 0xffff_ffff) as u32)
}

/// `kstrtouint(word, 10, &value) == 0`.
fn kstrto(word: &[u8]) -> Option<u32> {
    let word = match word {
        [b'+', rest @ ..] => rest,
        _ => word,
    };
    let (value, used, overflow) = digits(word);
    let rest = &word[used..];
    if overflow || used == 0 || !(rest.is_empty() || rest == b"\n") || value > 0xffff_ffff {
        return None;
    }
    Some(value as u32)
}

#[test]
fn read_arg_corners() {
    let cases: &[(&[u8], Option<u32>)] = &[
        (b"", None),
        (b" ", None),
        (b"8", Some(8)),
        (b"08", Some(8)),
        (b"0x8", None),
        (b"8x", None),
        (b"8 ", None),
        (b"8\n", None),
        (b" 8", Some(8)),
        (b"\xa08", Some(8)),
        (b"+8", None),
        (b"-8", None),
        (b"abc", None),
        (b"4294967295", Some(u32::MAX)),
        (b"4294967296", Some(0)),
        (b"4294967304", Some(8)),
        (b"18446744073709551615", Some(u32::MAX)),
        (b"18446744073709551616", Some(u32::MAX)),
        (b"99999999999999999999999999", Some(u32::MAX)),
    ];
    for (word, expected) in cases {
        assert_eq!(parse_u32(word), *expected, "{word:?}");
        assert_eq!(scanf(word), *expected, "model of {word:?}");
    }
}

#[test]
fn value_corners() {
    let cases: &[(&[u8], Option<u32>)] = &[
        (b"", None),
        (b"+", None),
        (b"\n", None),
        (b"0", Some(0)),
        (b"+8", Some(8)),
        (b"++8", None),
        (b"-8", None),
        (b"-1", None),
        (b" 8", None),
        (b"8\n", Some(8)),
        (b"8\n\n", None),
        (b"010", Some(10)),
        (b"0x8", None),
        (b"x", None),
        (b"4294967295", Some(u32::MAX)),
        (b"4294967296", None),
        (b"18446744073709551616", None),
    ];
    for (word, expected) in cases {
        assert_eq!(parse_decimal_u32(word), *expected, "{word:?}");
        assert_eq!(kstrto(word), *expected, "model of {word:?}");
    }
}

/// Arguments that mostly look like numbers.
fn number_like() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>().prop_filter("a C string", |b| *b != 0), 0..24),
        prop::collection::vec(
            prop::sample::select(&b"0123456789+- \n\x0bx\xa0"[..]),
            0..24
        ),
        "[ \t]{0,2}[0-9]{1,24}".prop_map(|word| word.into_bytes()),
        any::<u64>().prop_map(|number| format!("{number}").into_bytes()),
    ]
}

proptest! {
    #[test]
    fn numbers_are_read_as_in_c(word in number_like()) {
        prop_assert_eq!(parse_u32(&word), scanf(&word));
        prop_assert_eq!(parse_decimal_u32(&word), kstrto(&word));
    }

    #[test]
    fn numbers_round_trip(number in any::<u32>()) {
        let word = format!("{number}");
        prop_assert_eq!(parse_u32(word.as_bytes()), Some(number));
        prop_assert_eq!(parse_decimal_u32(word.as_bytes()), Some(number));
    }

    #[test]
    fn case_is_ignored(left in any::<Vec<u8>>(), right in any::<Vec<u8>>()) {
        let lower = |word: &[u8]| word.iter().map(u8::to_ascii_lowercase).collect::<Vec<_>>();
        prop_assert_eq!(eq_ignore_case(&left, &right), lower(&left) == lower(&right));
        prop_assert!(eq_ignore_case(&left, &left.to_ascii_uppercase()));
    }

    #[test]
    fn groups_fit_their_words(words in prop::collection::vec(number_like(), 0..6), max in 0u32..5) {
        let mut rest = words.iter().map(Vec::as_slice);
        let result = parse_group(&mut rest, max, c"text");
        let model = words
            .first()
            .and_then(|word| scanf(word))
            .filter(|count| *count <= max && (*count as usize) < words.len());
        prop_assert_eq!(result.ok(), model);
    }
}
