// SPDX-License-Identifier: GPL-2.0

//! The optional arguments of a table line, against a transcription of the C parser.

use proptest::prelude::*;
use std::format;
use std::string::{
    String,
    ToString, //
};
use std::vec;
use std::vec::Vec;

use crate::env::EINVAL;
use crate::logic::args::{
    parse_decimal_u32,
    parse_u32, //
};
use crate::logic::clone::options::Options;

/// Parses the arguments. Returns the result, and the arguments that are left.
fn parse(words: &[&str]) -> (Result<Options, &'static str>, usize) {
    let mut rest = words.iter().map(|word| word.as_bytes());
    let result = Options::parse(&mut rest).map_err(|refusal| {
        assert_eq!(refusal.error, EINVAL);
        refusal.message.to_str().unwrap()
    });
    (result, rest.len())
}

/// The same with positions instead of iterators.
fn model(words: &[&str]) -> Result<Options, &'static str> {
    let mut options = Options::default();
    let group = |at: usize, max: u32| {
        parse_u32(words[at].as_bytes()).filter(|n| *n <= max && (*n as usize) < words.len() - at)
    };
    let mut at = 0;
    if at == words.len() {
        return Ok(options);
    }
    // Groups with arguments of dm-rust only may be longer than C's.
    let ours = |words: &[&str], step: usize, names: &[&str]| {
        let names_ours = |word: &&str| names.contains(&word.to_ascii_lowercase().as_str());
        words.iter().step_by(step).any(names_ours)
    };
    let number = "Invalid number of feature arguments";
    let count = group(at, 16).ok_or(number)? as usize;
    at += 1;
    let taken = &words[at..at + count];
    if count > 2 && !ours(taken, 1, &["hydrate_on_read", "zero_discards"]) {
        return Err(number);
    }
    for word in taken {
        match word.to_ascii_lowercase().as_str() {
            "no_hydration" => options.hydration = false,
            "no_discard_passdown" => options.discard_passdown = false,
            "hydrate_on_read" => options.hydrate_on_read = true,
            "zero_discards" => options.zero_discards = true,
            _ => return Err("Invalid feature argument"),
        }
    }
    at += count;
    if at == words.len() {
        return Ok(options);
    }
    let number = "Invalid number of core arguments";
    let count = group(at, 16).ok_or(number)? as usize;
    at += 1;
    let taken = &words[at..at + count];
    if count > 4 && !ours(taken, 2, &["max_failures"]) {
        return Err(number);
    }
    if count % 2 == 1 {
        return Err("Number of core arguments must be even");
    }
    for pair in taken.chunks(2) {
        let value = parse_decimal_u32(pair[1].as_bytes());
        match pair[0].to_ascii_lowercase().as_str() {
            "hydration_threshold" => {
                options.threshold =
                    value.ok_or("Invalid value for argument `hydration_threshold'")?
            }
            "hydration_batch_size" => {
                options.batch = value.ok_or("Invalid value for argument `hydration_batch_size'")?
            }
            "max_failures" => {
                options.max_failures = value.ok_or("Invalid value for argument `max_failures'")?
            }
            _ => return Err("Invalid core argument"),
        }
    }
    Ok(options)
}

#[test]
fn texts() {
    /// The fields of [`Options`], or the error message.
    type ParseResult = Result<(bool, bool, u32, u32), &'static str>;

    let cases: &[(&str, ParseResult)] = &[
        ("", Ok((true, true, 1, 1))),
        ("0", Ok((true, true, 1, 1))),
        ("1 no_hydration", Ok((false, true, 1, 1))),
        (
            "2 NO_hydration no_discard_PASSDOWN",
            Ok((false, false, 1, 1)),
        ),
        ("2 no_hydration no_hydration", Ok((false, true, 1, 1))),
        ("0 2 hydration_threshold 4", Ok((true, true, 4, 1))),
        (
            "0 4 hydration_batch_size 0 Hydration_Threshold 4294967295",
            Ok((true, true, u32::MAX, 0)),
        ),
        (
            "0 4 hydration_threshold 4 hydration_threshold 5",
            Ok((true, true, 5, 1)),
        ),
        ("0 0 trailing junk", Ok((true, true, 1, 1))),
        (
            "3 no_hydration no_hydration no_hydration",
            Err("Invalid number of feature arguments"),
        ),
        ("2 no_hydration", Err("Invalid number of feature arguments")),
        ("x", Err("Invalid number of feature arguments")),
        ("1 sync", Err("Invalid feature argument")),
        ("0 6 a b c d e f", Err("Invalid number of core arguments")),
        (
            "0 2 hydration_threshold",
            Err("Invalid number of core arguments"),
        ),
        ("0 junk", Err("Invalid number of core arguments")),
        (
            "0 3 hydration_threshold 4 x",
            Err("Number of core arguments must be even"),
        ),
        ("0 2 threshold 4", Err("Invalid core argument")),
        (
            "0 2 hydration_threshold x",
            Err("Invalid value for argument `hydration_threshold'"),
        ),
        (
            "0 2 hydration_threshold -1",
            Err("Invalid value for argument `hydration_threshold'"),
        ),
        (
            "0 2 hydration_batch_size 4294967296",
            Err("Invalid value for argument `hydration_batch_size'"),
        ),
    ];
    for (line, expected) in cases {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let result = parse(&words).0;
        let result = result.map(|o| (o.hydration, o.discard_passdown, o.threshold, o.batch));
        assert_eq!(result, *expected, "{line}");
    }
}

#[test]
fn words_of_our_own() {
    let (options, left) = parse(&[
        "3",
        "no_hydration",
        "HYDRATE_on_read",
        "zero_discards",
        "6",
        "max_failures",
        "9",
        "hydration_threshold",
        "4",
        "hydration_batch_size",
        "2",
        "junk",
    ]);
    let expected = Options {
        hydration: false,
        discard_passdown: true,
        threshold: 4,
        batch: 2,
        hydrate_on_read: true,
        zero_discards: true,
        max_failures: 9,
    };
    assert_eq!((options, left), (Ok(expected), 1));
    // Lines without them are refused as C refuses them.
    assert_eq!(
        parse(&["3", "x", "y", "z"]).0,
        Err("Invalid number of feature arguments")
    );
    assert_eq!(
        parse(&["3", "x", "y", "zero_discards"]).0,
        Err("Invalid feature argument")
    );
    let six = ["0", "6", "a", "1", "b", "2", "max_failures", "3"];
    assert_eq!(parse(&six).0, Err("Invalid core argument"));
}

#[test]
fn junk_is_left_alone() {
    assert_eq!(parse(&["0", "0", "trailing", "junk"]).1, 2);
    assert_eq!(parse(&["0", "2", "hydration_threshold", "7", "junk"]).1, 1);
}

fn vocabulary() -> impl Strategy<Value = String> {
    let words = vec![
        "0",
        "1",
        "2",
        "3",
        "4",
        "5",
        "-1",
        "x",
        "",
        "no_hydration",
        "No_Hydration",
        "no_discard_passdown",
        "hydration_threshold",
        "HYDRATION_THRESHOLD",
        "hydration_batch_size",
        "4294967296",
        "4294967297",
        "+7",
        "no_hydratio",
        "hydrate_on_read",
        "Zero_Discards",
        "max_failures",
        "6",
    ];
    prop_oneof![
        20 => prop::sample::select(words).prop_map(|word| word.to_string()),
        1 => any::<String>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn lines_are_read_as_in_c(words in prop::collection::vec(vocabulary(), 0..12)) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        prop_assert_eq!(parse(&words).0, model(&words));
    }

    #[test]
    fn options_round_trip(
        hydration in any::<bool>(), discard_passdown in any::<bool>(),
        threshold in any::<u32>(), batch in any::<u32>(),
    ) {
        let options = Options {
            hydration, discard_passdown, threshold, batch, ..Options::default()
        };
        let mut features = Vec::new();
        if !hydration {
            features.push("no_hydration");
        }
        if !discard_passdown {
            features.push("no_discard_passdown");
        }
        let line = format!(
            "{} {} 4 hydration_threshold {threshold} hydration_batch_size {batch}",
            features.len(), features.join(" "),
        );
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        prop_assert_eq!(parse(&words), (Ok(options), 0));
    }
}
