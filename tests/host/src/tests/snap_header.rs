// SPDX-License-Identifier: GPL-2.0

//! The header, compared with a parser that was written from the description of the format. Damaged
//! headers, and arbitrary bytes.

use proptest::prelude::*;
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use super::text;
use crate::env::{
    Error,
    EINVAL,
    ENXIO, //
};
use crate::logic::snapshot::{
    chunks::ChunkSize,
    header::*,
    options::BlockSizes, //
};

const PLAIN: BlockSizes = BlockSizes {
    cow: 512,
    origin: 512,
};
const LARGE: BlockSizes = BlockSizes {
    cow: 4096,
    origin: 512,
};

fn size(sectors: u32) -> ChunkSize {
    ChunkSize::from_sectors(sectors).unwrap()
}

/// Returns the bytes of a header, in a sector of garbage.
fn header(magic: u32, valid: u32, version: u32, sectors: u32) -> Vec<u8> {
    let mut chunk: Vec<u8> = [magic, valid, version, sectors]
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect();
    chunk.resize(512, 0xa5);
    chunk
}

/// Returns message and error code of a header that was read with chunks of eight sectors.
fn told(chunk: &[u8], blocks: BlockSizes) -> (String, Error) {
    let invalid = Header::parse(chunk, size(8), blocks).unwrap_err();
    (text(&invalid), Error::from(invalid))
}

/// Returns what [`Header::parse`] should return.
fn header_model(chunk: &[u8], read: u32, blocks: BlockSizes) -> Result<Header, HeaderError> {
    if chunk.len() < 16 {
        return Err(HeaderError::Magic);
    }
    let field = |at: usize| u32::from_le_bytes(chunk[at..at + 4].try_into().unwrap());
    if field(0) == 0 {
        return Ok(Header::Blank);
    }
    if &chunk[..4] != b"SnAp" {
        return Err(HeaderError::Magic);
    }
    let found = field(12);
    let reason = match found {
        _ if found == read => None,
        _ if found.count_ones() != 1 => Some("Chunk size is not a power of 2"),
        _ if found % (blocks.cow / 512) != 0 || found % (blocks.origin / 512) != 0 => {
            Some("Chunk size is not a multiple of device blocksize")
        }
        _ if found > 4_194_303 => Some("Chunk size is too high"),
        _ => None,
    };
    match (reason, field(8)) {
        (Some(reason), _) => Err(HeaderError::ChunkSize { found, reason }),
        (None, 1) => Ok(Header::Store {
            valid: field(4) != 0,
            size: size(found),
        }),
        (None, found) => Err(HeaderError::Version { found }),
    }
}

/// C writes these bytes for a new store with chunks of eight sectors.
#[test]
fn known_header() {
    let mut chunk = vec![0xff; 4096];
    let mut store = Header::Store {
        valid: true,
        size: size(8),
    };
    assert_eq!(store.encode(&mut chunk), Some(()));
    assert_eq!(
        chunk[..16],
        *b"\x53\x6e\x41\x70\x01\0\0\0\x01\0\0\0\x08\0\0\0"
    );
    assert!(chunk[16..].iter().all(|byte| *byte == 0));
    assert_eq!(Header::parse(&chunk, size(32), PLAIN), Ok(store));
    if let Header::Store { valid, .. } = &mut store {
        *valid = false;
    }
    store.encode(&mut chunk).unwrap();
    assert_eq!(chunk[4..8], [0; 4]);
    assert_eq!(Header::parse(&chunk, size(8), PLAIN), Ok(store));
    Header::Blank.encode(&mut chunk).unwrap();
    assert!(chunk.iter().all(|byte| *byte == 0));
    assert_eq!(Header::parse(&chunk, size(8), PLAIN), Ok(Header::Blank));
    for len in 0..16 {
        let mut short = vec![0xa5; len];
        assert_eq!(store.encode(&mut short), None);
        assert!(short.iter().all(|byte| *byte == 0xa5));
        let result = Header::parse(&vec![0; len], size(8), PLAIN);
        assert_eq!(result, Err(HeaderError::Magic));
    }
}

#[test]
fn header_texts() {
    let corrupt = (String::from("Invalid or corrupt snapshot"), ENXIO);
    assert_eq!(told(&header(MAGIC ^ 1, 1, 1, 8), PLAIN), corrupt);
    assert_eq!(told(&header(1, 0, 0, 0), PLAIN), corrupt);
    assert_eq!(ENXIO.to_errno(), -6);
    for (version, shown) in [(0, "0"), (2, "2"), (u32::MAX, "-1")] {
        let line = format!("unable to handle snapshot disk version {shown}");
        assert_eq!(told(&header(MAGIC, 1, version, 8), PLAIN), (line, EINVAL));
    }
    for (sectors, blocks, reason) in [
        (0, PLAIN, "Chunk size is not a power of 2"),
        (3, PLAIN, "Chunk size is not a power of 2"),
        (4_194_304, PLAIN, "Chunk size is too high"),
        (4, LARGE, "Chunk size is not a multiple of device blocksize"),
    ] {
        let line = format!("invalid on-disk chunk size {sectors}: {reason}.");
        // The version is checked after the chunk size.
        let expected = (line, EINVAL);
        assert_eq!(told(&header(MAGIC, 1, 2, sectors), blocks), expected);
    }
    // Only the magic number makes a device blank, and any number but zero means valid.
    let blank = header(0, 9, 9, 9);
    assert_eq!(Header::parse(&blank, size(8), PLAIN), Ok(Header::Blank));
    let valid = Header::parse(&header(MAGIC, 0x100, 1, 2_097_152), size(8), LARGE);
    let expected = Header::Store {
        valid: true,
        size: ChunkSize::MAX,
    };
    assert_eq!(valid, Ok(expected));
}

/// Any other chunk size in a header causes the warning.
#[test]
fn overridden_chunk_size() {
    let find = |chunk: &[u8]| ChunkSizeOverride::find(chunk, size(16)).map(|found| text(&found));
    for sectors in [0, 3, 8, u32::MAX] {
        let line =
            format!("chunk size {sectors} in device metadata overrides table chunk size of 16.");
        assert_eq!(find(&header(MAGIC, 0, 7, sectors)), Some(line));
    }
    assert_eq!(find(&header(MAGIC, 1, 1, 16)), None);
    assert_eq!(find(&header(0, 1, 1, 8)), None);
    assert_eq!(find(&header(MAGIC + 1, 1, 1, 8)), None);
    assert_eq!(find(&header(MAGIC, 1, 1, 8)[..15]), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Damaged headers and arbitrary bytes give the result of the model.
    #[test]
    fn any_header(
        magic in prop_oneof![8 => Just(MAGIC), 1 => Just(0), 1 => any::<u32>()], valid in 0..3u32,
        version in prop_oneof![4 => Just(1u32), 1 => any::<u32>()],
        sectors in prop_oneof![
            4 => (0..32u32).prop_map(|bit| 1 << bit),
            1 => any::<u32>(),
            1 => 0..9u32,
        ],
        cow in 9..14u32, origin in 9..14u32, read in 0..22u32,
        len in prop_oneof![4 => Just(512usize), 1 => 0..20usize],
        garbage in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let blocks = BlockSizes { cow: 1 << cow, origin: 1 << origin };
        let mut chunk = header(magic, valid, version, sectors);
        chunk.truncate(len);
        for bytes in [&chunk, &garbage] {
            let result = Header::parse(bytes, size(1 << read), blocks);
            prop_assert_eq!(result, header_model(bytes, 1 << read, blocks));
            let table = size(1 << read);
            let other = bytes.len() >= 16
                && bytes[..4] == *b"SnAp"
                && bytes[12..16] != (1u32 << read).to_le_bytes();
            prop_assert_eq!(ChunkSizeOverride::find(bytes, table).is_some(), other);
        }
    }

    /// A header that was written is parsed, whatever chunk size it is read with.
    #[test]
    fn headers_round_trip(
        valid in any::<bool>(), shift in 0..22u32, read in 0..22u32, len in 16..600usize,
    ) {
        let store = Header::Store { valid, size: size(1 << shift) };
        let mut chunk = vec![0xff; len];
        prop_assert_eq!(store.encode(&mut chunk), Some(()));
        prop_assert_eq!(Header::parse(&chunk, size(1 << read), PLAIN), Ok(store));
    }
}
