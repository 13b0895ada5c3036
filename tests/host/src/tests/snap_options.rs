// SPDX-License-Identifier: GPL-2.0

//! Chunk sizes compared with plain arithmetic, arguments of table lines compared with a
//! transcription of the C parser, and the texts of the status.

use proptest::prelude::*;
use std::string::{
    String,
    ToString, //
};
use std::vec;
use std::vec::Vec;

use super::text;
use crate::env::EINVAL;
use crate::logic::{
    args::{
        parse_decimal_u32,
        parse_u32, //
    },
    snapshot::{
        chunks::*,
        options::*,
        status::*, //
    },
    units::{
        Sector,
        Sectors, //
    },
};

const PLAIN: BlockSizes = BlockSizes {
    cow: 512,
    origin: 512,
};

fn size(sectors: u32) -> ChunkSize {
    ChunkSize::from_sectors(sectors).unwrap()
}

/// Parses features. Returns the result and the number of arguments that are left.
fn features(words: &[&str]) -> (Result<Features, &'static str>, usize) {
    let mut rest = words.iter().map(|word| word.as_bytes());
    let result = Features::parse(&mut rest).map_err(|refusal| {
        assert_eq!(refusal.error, EINVAL);
        refusal.message.to_str().unwrap()
    });
    (result, rest.len())
}

/// The same, with indices instead of an iterator.
fn features_model(words: &[&str]) -> Result<Features, &'static str> {
    if words.is_empty() {
        return Ok(Features::default());
    }
    let count = parse_u32(words[0].as_bytes())
        .filter(|count| *count <= 2 && (*count as usize) < words.len())
        .ok_or("Invalid number of feature arguments")?;
    let (mut zeroes, mut passdown) = (false, false);
    let mut result = Ok(());
    for at in 1..=count as usize {
        match words[at].to_ascii_lowercase().as_str() {
            "discard_zeroes_cow" => zeroes = true,
            "discard_passdown_origin" => passdown = true,
            _ => {
                result = Err("Unrecognised feature requested");
                break;
            }
        }
    }
    if passdown && !zeroes {
        result = Err("discard_passdown_origin feature depends on discard_zeroes_cow");
    }
    result.map(|()| Features {
        discard_zeroes_cow: zeroes,
        discard_passdown_origin: passdown,
    })
}

fn parse(store: &str, chunk: &str, blocks: BlockSizes) -> Result<Options, &'static str> {
    let (store, chunk) = (store.as_bytes(), chunk.as_bytes());
    Options::parse(store, chunk, blocks, Features::default())
}

/// Returns what [`BlockSizes::chunk_size`] should return.
fn chunk_size_model(sectors: u32, blocks: BlockSizes) -> Result<u32, &'static str> {
    match sectors {
        _ if sectors.count_ones() != 1 => Err("Chunk size is not a power of 2"),
        _ if sectors % (blocks.cow / 512) != 0 || sectors % (blocks.origin / 512) != 0 => {
            Err("Chunk size is not a multiple of device blocksize")
        }
        4_194_304.. => Err("Chunk size is too high"),
        _ => Ok(sectors),
    }
}

/// Returns what [`Options::parse`] should return.
fn parse_model(
    store: &str,
    chunk: &str,
    blocks: BlockSizes,
) -> Result<(StoreKind, u32), &'static str> {
    let first = store.chars().next().map(|c| c.to_ascii_lowercase());
    if !matches!(first, Some('p' | 'n')) {
        return Err("Exception store type is not P or N");
    }
    let sectors = match parse_decimal_u32(chunk.as_bytes()).ok_or("Invalid chunk size")? {
        0 => 0,
        sectors => chunk_size_model(sectors, blocks)?,
    };
    let store = match (first, store.chars().nth(1)) {
        (Some('n'), _) => StoreKind::Transient,
        (_, None) => StoreKind::Persistent { overflow: false },
        (_, Some('o' | 'O')) => StoreKind::Persistent { overflow: true },
        _ => return Err("Unsupported persistent store option"),
    };
    Ok((store, sectors))
}

/// All powers of two up to 1 GiB are chunk sizes, and no other numbers.
#[test]
fn sizes_of_chunks() {
    let near = (0..32).flat_map(|bit| [(1u32 << bit) - 1, 1 << bit, (1 << bit) + 1]);
    for sectors in (0..10_000).chain(near).chain([u32::MAX]) {
        let expected = sectors.is_power_of_two() && sectors <= 2_097_152;
        let size = ChunkSize::from_sectors(sectors);
        assert_eq!(size.is_some(), expected, "{sectors}");
        if let Some(size) = size {
            assert_eq!(size.sectors(), sectors);
            assert_eq!(size.len(), Sectors(sectors.into()));
            assert_eq!(u64::from(size.bytes()), u64::from(sectors) * 512);
            assert_eq!(text(&size), sectors.to_string());
        }
    }
    assert_eq!(ChunkSize::MAX.sectors(), 2_097_152);
    assert!(size(8) < size(16));
    assert_eq!(text(&Chunk(7)) + &text(&CowChunk(8)), "78");
}

/// An access touches the chunks from that of its first sector to that of its last sector.
#[test]
fn touched_chunks() {
    let of = |sector, len| {
        let chunks = size(8).touched(Sector(sector), Sectors(len));
        (chunks.start.0, chunks.end.0, chunks.len())
    };
    assert_eq!(of(0, 1), (0, 1, 1));
    assert_eq!(of(7, 1), (0, 1, 1));
    assert_eq!(of(7, 2), (0, 2, 2));
    assert_eq!(of(8, 8), (1, 2, 1));
    assert_eq!(of(8, 9), (1, 3, 2));
    assert_eq!(of(9, 0), (1, 1, 0));
    assert_eq!(of(0, u64::MAX), (0, 1 << 61, 1 << 61));
    assert!(size(8).touched(Sector(9), Sectors(0)).is_empty());
    assert!(!size(8).touched(Sector(9), Sectors(1)).is_empty());
}

#[test]
fn store_words() {
    let names = [
        ("p", "P"),
        ("P", "P"),
        ("po", "PO"),
        ("pO", "PO"),
        ("POx", "PO"),
        ("n", "N"),
        ("Nxyz", "N"),
        ("NO", "N"),
    ];
    for (word, shown) in names {
        let options = parse(word, "8", PLAIN).unwrap();
        assert_eq!(text(&options.store), shown, "{word}");
        assert_eq!(options.store.can_merge(), shown != "N");
        assert_eq!(text(&options), std::format!("{shown} 8"));
    }
    for (word, reason) in [
        ("PX", "Unsupported persistent store option"),
        ("persistent", "Unsupported persistent store option"),
        ("X", "Exception store type is not P or N"),
        ("", "Exception store type is not P or N"),
        ("\u{d0}", "Exception store type is not P or N"),
    ] {
        assert_eq!(parse(word, "8", PLAIN), Err(reason), "{word}");
    }
}

#[test]
fn chunk_size_words() {
    for (word, sectors) in [
        ("0", None),
        ("1", Some(1)),
        ("8", Some(8)),
        ("08", Some(8)),
        ("+8", Some(8)),
        ("8\n", Some(8)),
        ("1024", Some(1024)),
        ("2097152", Some(2_097_152)),
    ] {
        let options = parse("P", word, PLAIN).unwrap();
        assert_eq!(options.chunk_size, sectors.map(size), "{word}");
    }
    let invalid = [
        "4294967296",
        "18446744073709551624",
        "8k",
        "-1",
        "-8",
        "",
        "0x8",
        " 8",
        "8 ",
    ];
    let cases = invalid.map(|word| (word, "Invalid chunk size"));
    for (word, reason) in cases.into_iter().chain([
        ("3", "Chunk size is not a power of 2"),
        ("9", "Chunk size is not a power of 2"),
        ("4294967295", "Chunk size is not a power of 2"),
        ("4194304", "Chunk size is too high"),
        ("2147483648", "Chunk size is too high"),
    ]) {
        assert_eq!(parse("P", word, PLAIN), Err(reason), "{word}");
    }
    let multiple = Err("Chunk size is not a multiple of device blocksize");
    for (cow, origin) in [(4096, 512), (512, 4096)] {
        let blocks = BlockSizes { cow, origin };
        assert_eq!(blocks.chunk_size(4), multiple);
        assert_eq!(blocks.chunk_size(8), Ok(size(8)));
        assert_eq!(blocks.chunk_size(16), Ok(size(16)));
    }
    // No device has such a block size, but no number may cause a panic.
    for cow in [0, 1, 511] {
        assert_eq!(BlockSizes { cow, ..PLAIN }.chunk_size(8), multiple);
    }
}

/// Of several errors, the one is reported that C finds first.
#[test]
fn faults_in_order() {
    for (store, chunk, reason) in [
        ("X", "x", "Exception store type is not P or N"),
        ("PX", "x", "Invalid chunk size"),
        ("PX", "3", "Chunk size is not a power of 2"),
        ("PX", "0", "Unsupported persistent store option"),
    ] {
        assert_eq!(parse(store, chunk, PLAIN), Err(reason));
    }
    assert_eq!(
        NO_STORE.message.to_str(),
        Ok("Couldn't create exception store")
    );
    assert_eq!(NO_CHUNK_SIZE.message.to_str(), Ok("Chunk size not set"));
    assert_eq!((NO_STORE.error, NO_CHUNK_SIZE.error), (EINVAL, EINVAL));
}

/// Only a persistent store has a default chunk size.
#[test]
fn open_chunk_size() {
    for (cow, sectors) in [(512, 32), (4096, 32), (16_384, 32), (32_768, 64)] {
        let blocks = BlockSizes { cow, origin: 512 };
        let first = |store, chunk| {
            parse(store, chunk, blocks)
                .unwrap()
                .first_chunk_size(blocks)
        };
        assert_eq!(first("P", "0"), Some(size(sectors)));
        assert_eq!(first("PO", "0"), Some(size(sectors)));
        assert_eq!(first("N", "0"), None);
        assert_eq!(first("P", "128"), Some(size(128)));
        assert_eq!(first("N", "128"), Some(size(128)));
    }
    let line = parse("po", "0", PLAIN).unwrap();
    assert_eq!(text(&line), "PO 0");
}

#[test]
fn feature_words() {
    let number = Err("Invalid number of feature arguments");
    let depends = Err("discard_passdown_origin feature depends on discard_zeroes_cow");
    let unknown = Err("Unrecognised feature requested");
    let cases: &[(&str, Result<&str, &str>, usize)] = &[
        ("", Ok(""), 0),
        ("0", Ok(""), 0),
        ("0 junk", Ok(""), 1),
        ("1 DISCARD_zeroes_cow", Ok(" 1 discard_zeroes_cow"), 0),
        ("1 discard_zeroes_cow x y", Ok(" 1 discard_zeroes_cow"), 2),
        (
            "2 discard_zeroes_cow discard_zeroes_cow",
            Ok(" 1 discard_zeroes_cow"),
            0,
        ),
        (
            "2 discard_passdown_origin discard_zeroes_cow",
            Ok(" 2 discard_zeroes_cow discard_passdown_origin"),
            0,
        ),
        ("1", number, 0),
        ("3 a b c", number, 3),
        ("2 discard_zeroes_cow", number, 1),
        ("x", number, 0),
        ("+1 discard_zeroes_cow", number, 1),
        ("1 discard_zeroes", unknown, 0),
        ("2 x discard_passdown_origin", unknown, 1),
        ("1 discard_passdown_origin", depends, 0),
        ("2 discard_passdown_origin x", depends, 0),
    ];
    for (line, expected, rest) in cases {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (result, left) = features(&words);
        let result = result.map(|features| text(&features));
        assert_eq!(result.as_deref(), expected.as_deref(), "{line}");
        assert_eq!(left, *rest, "{line}");
    }
}

#[test]
fn status_texts() {
    let usage = Usage {
        allocated: Sectors(16),
        total: Sectors(65_536),
        metadata: Sectors(u64::MAX),
    };
    let numbers = "16/65536 18446744073709551615";
    for state in 0..8 {
        let [valid, merge_failed, overflowed] = [4, 2, 1].map(|bit| state & bit != 0);
        let health = Health {
            valid,
            merge_failed,
            overflowed,
        };
        let (snapshot, merge) = match state {
            0..=3 => ("Invalid", "Invalid"),
            6 | 7 => ("Merge failed", "Merge failed"),
            5 => ("Overflow", numbers),
            _ => (numbers, numbers),
        };
        assert_eq!(
            text(&StatusLine::of_snapshot(health, usage)),
            snapshot,
            "{state}"
        );
        assert_eq!(text(&StatusLine::of_merge(health, usage)), merge, "{state}");
        let yes = [valid, merge_failed, overflowed].map(|set| if set { 'y' } else { 'n' });
        assert_eq!(
            text(&health),
            std::format!(
                ",snap_valid={},snap_merge_failed={},snapshot_overflowed={};",
                yes[0],
                yes[1],
                yes[2]
            )
        );
    }
}

fn vocabulary() -> impl Strategy<Value = String> {
    let words = vec![
        "0",
        "1",
        "2",
        "3",
        "-1",
        "x",
        "",
        "discard_zeroes_cow",
        "Discard_Zeroes_COW",
        "discard_passdown_origin",
        "discard_passdown",
        "4294967298",
    ];
    prop_oneof![
        20 => prop::sample::select(words).prop_map(|word| word.to_string()),
        1 => any::<String>(),
    ]
}

fn store_word() -> impl Strategy<Value = String> {
    prop_oneof!["[PpNn][a-zOo0-9]{0,3}", "[a-zA-Z]{0,2}", any::<String>()]
}

fn number_word() -> impl Strategy<Value = String> {
    prop_oneof![
        (0u32..32).prop_map(|bit| (1u32 << bit).to_string()),
        any::<u32>().prop_map(|number| number.to_string()),
        "[+-]?[0-9]{0,3}[k\n]?",
        any::<String>(),
    ]
}

fn block_sizes() -> impl Strategy<Value = BlockSizes> {
    (9u32..17, 9u32..17).prop_map(|(cow, origin)| BlockSizes {
        cow: 1 << cow,
        origin: 1 << origin,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn features_are_read_as_in_c(words in prop::collection::vec(vocabulary(), 0..5)) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        prop_assert_eq!(features(&words).0, features_model(&words));
    }

    #[test]
    fn stores_are_read_as_in_c(
        store in store_word(), chunk in number_word(), blocks in block_sizes(),
    ) {
        let result = parse(&store, &chunk, blocks).map(|options| {
            (options.store, options.chunk_size.map_or(0, ChunkSize::sectors))
        });
        prop_assert_eq!(result, parse_model(&store, &chunk, blocks));
    }

    /// What `Display` writes can be parsed again, with the same result.
    #[test]
    fn lines_round_trip(
        store in 0..3, shift in prop::option::of(0u32..22), zeroes in any::<bool>(),
        passdown in any::<bool>(),
    ) {
        let options = Options {
            store: match store {
                0 => StoreKind::Transient,
                store => StoreKind::Persistent { overflow: store == 1 },
            },
            chunk_size: shift.map(|shift| size(1 << shift)),
            features: Features {
                discard_zeroes_cow: zeroes,
                discard_passdown_origin: zeroes && passdown,
            },
        };
        let line = text(&options);
        let words: Vec<&str> = line.split(' ').collect();
        let (read, left) = features(&words[2..]);
        prop_assert_eq!(left, 0);
        let again = Options::parse(words[0].as_bytes(), words[1].as_bytes(), PLAIN, read.unwrap());
        prop_assert_eq!(again, Ok(options));
    }

    /// Sectors and chunks, compared with arithmetic of 128 bits.
    #[test]
    fn chunks_and_sectors(
        shift in 0u32..22, sector in prop_oneof![any::<u64>(), 0u64..1 << 24],
        len in prop_oneof![any::<u64>(), 0u64..1 << 24],
    ) {
        let size = size(1 << shift);
        let wide = 1u128 << shift;
        let (at, count) = (u128::from(sector), u128::from(len));
        let chunk = size.chunk(Sector(sector));
        prop_assert_eq!(u128::from(chunk.0), at / wide);
        prop_assert_eq!(u128::from(size.offset(Sector(sector)).get()), at % wide);
        prop_assert_eq!(u128::from(size.chunks_in(Sectors(len))), count / wide);
        let usable = (count / wide).min(1 << 48);
        prop_assert_eq!(u128::from(size.cow_chunks(Sectors(len))), usable);
        prop_assert_eq!(size.start(chunk).map(Sector::get), Some((at / wide * wide) as u64));
        let start = u64::try_from(at * wide).ok().map(Sector);
        prop_assert_eq!(size.start(Chunk(sector)), start);
        prop_assert_eq!(size.cow_start(CowChunk(sector)), start);
        if len > 0 && at + count <= u128::from(u64::MAX) {
            let touched = size.touched(Sector(sector), Sectors(len));
            prop_assert_eq!(touched.start, chunk);
            prop_assert_eq!(u128::from(touched.end.0), (at + count).div_ceil(wide));
        }
        prop_assert_eq!(size.touched(Sector(sector), Sectors(0)).len(), 0);
    }
}
