// SPDX-License-Identifier: GPL-2.0

//! The superblock of an era target against a byte parser and a checksum by long division, both
//! written from the description of the format; every kind of damage; and fuzzing.

use proptest::prelude::*;
use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use super::text;
use crate::env::{
    eilseq,
    Error,
    EINVAL,
    ENOTBLK, //
};
use crate::logic::era::{
    era_nr::EraNr,
    geometry::BlockSize,
    superblock::*, //
};
use crate::logic::pdata::superblock::*;

/// The number of metadata blocks of most devices here.
const TOTAL: u64 = 256;

/// Fields: offset, size.
const CSUM: (usize, usize) = (0, 4);
const FLAGS: (usize, usize) = (4, 4);
const BLOCKNR: (usize, usize) = (8, 8);
const MAGIC_AT: (usize, usize) = (32, 8);
const VERSION_AT: (usize, usize) = (40, 4);
const SM_ROOT: usize = 44;
const BLOCK_SIZE: (usize, usize) = (172, 4);
const METADATA_BLOCK: (usize, usize) = (176, 4);
const BLOCKS: (usize, usize) = (180, 4);
const CURRENT_ERA: (usize, usize) = (184, 4);
const WRITESET_BITS: (usize, usize) = (188, 4);
const WRITESET_ROOT: (usize, usize) = (192, 8);
const WRITESET_TREE_ROOT: (usize, usize) = (200, 8);
const ERA_ARRAY_ROOT: (usize, usize) = (208, 8);
const METADATA_SNAP: (usize, usize) = (216, 8);
/// Where the fields end.
const END: usize = 224;

/// Reads a little-endian number.
fn get(block: &[u8], (offset, size): (usize, usize)) -> u64 {
    let bytes = block[offset..offset + size].iter().rev();
    bytes.fold(0, |number, byte| number * 256 + u64::from(*byte))
}

/// Writes a little-endian number.
fn put(block: &mut [u8], (offset, size): (usize, usize), mut number: u64) {
    for byte in &mut block[offset..offset + size] {
        *byte = (number % 256) as u8;
        number /= 256;
    }
}

/// The checksum of a block: division by the polynomial, bit by bit, the lowest of each byte first.
fn csum(block: &[u8]) -> u32 {
    let mut rest = u32::MAX;
    for byte in &block[4..] {
        for bit in 0..8 {
            let top = (rest >> 31) ^ u32::from((byte >> bit) & 1);
            rest = (rest << 1) ^ (top * 0x1edc_6f41);
        }
    }
    rest.reverse_bits() ^ 146_538_381
}

/// Corrects the checksum.
fn reseal(mut block: Vec<u8>) -> Vec<u8> {
    let value = csum(&block);
    put(&mut block, CSUM, value.into());
    block
}

fn size(sectors: u32) -> BlockSize {
    BlockSize::from_sectors(sectors).unwrap()
}

/// What `era_restore` 1.1.0 writes for a device of 1000 blocks of 128 sectors in its fifth era, on
/// 256 metadata blocks.
fn sample() -> Superblock {
    let mut sm_root = [0; SM_ROOT_SIZE];
    for (index, number) in [256, 9, 8, 7].into_iter().enumerate() {
        put(&mut sm_root, (index * 8, 8), number);
    }
    Superblock {
        block_size: size(128),
        blocks: 1000,
        current_era: EraNr(5),
        writeset_bits: 1000,
        writeset_root: 0,
        writeset_tree_root: 3,
        era_array_root: 5,
        metadata_snap: 0,
        sm_root,
    }
}

/// Lays a superblock out by hand, in a block of 4096 bytes.
fn lay_out(superblock: &Superblock, location: u64) -> Vec<u8> {
    let mut block = vec![0; 4096];
    for (field, number) in [
        (BLOCKNR, location),
        (MAGIC_AT, 2_126_579_579),
        (VERSION_AT, 1),
        (BLOCK_SIZE, superblock.block_size.get().into()),
        (METADATA_BLOCK, 8),
        (BLOCKS, superblock.blocks.into()),
        (CURRENT_ERA, superblock.current_era.0.into()),
        (WRITESET_BITS, superblock.writeset_bits.into()),
        (WRITESET_ROOT, superblock.writeset_root),
        (WRITESET_TREE_ROOT, superblock.writeset_tree_root),
        (ERA_ARRAY_ROOT, superblock.era_array_root),
        (METADATA_SNAP, superblock.metadata_snap),
    ] {
        put(&mut block, field, number);
    }
    block[SM_ROOT..SM_ROOT + SM_ROOT_SIZE].copy_from_slice(&superblock.sm_root);
    reseal(block)
}

/// The sample with a field replaced and the checksum corrected.
fn with(field: (usize, usize), number: u64) -> Vec<u8> {
    let mut block = lay_out(&sample(), LOCATION);
    put(&mut block, field, number);
    reseal(block)
}

/// Parses a block with the parameters of the sample.
fn parse(block: &[u8]) -> Result<Superblock, Invalid> {
    Superblock::parse(block, LOCATION, size(128), TOTAL)
}

/// The log message and the error of a refusal.
fn refusal(invalid: impl Into<Invalid>) -> (String, Error) {
    let invalid = invalid.into();
    (text(&invalid), Error::from(invalid))
}

/// What [`Format::check`] must return.
fn check_model(block: &[u8], location: u64) -> Result<(), HeaderError> {
    if block.len() < END {
        return Err(HeaderError::Truncated);
    }
    let (blocknr, magic) = (get(block, BLOCKNR), get(block, MAGIC_AT));
    let (stored, version) = (get(block, CSUM) as u32, get(block, VERSION_AT) as u32);
    if blocknr != location {
        return Err(HeaderError::BlockNumber {
            found: blocknr,
            expected: location,
        });
    }
    if magic != 0x7ec1_077b {
        return Err(HeaderError::Magic { found: magic });
    }
    let computed = csum(block);
    if computed != stored {
        return Err(HeaderError::Checksum { computed, stored });
    }
    if version != 1 {
        return Err(HeaderError::Version { found: version });
    }
    Ok(())
}

/// What [`Superblock::parse`] must return.
fn parse_model(
    block: &[u8],
    location: u64,
    wanted: BlockSize,
    total: u64,
) -> Result<Superblock, Invalid> {
    check_model(block, location)?;
    let found = get(block, BLOCK_SIZE) as u32;
    if found != wanted.get() {
        return Err(Invalid::BlockSize { found, wanted });
    }
    let impossible = [
        get(block, METADATA_BLOCK) != 8,
        get(block, BLOCKS) > 0x7fff_ffff,
        get(block, WRITESET_BITS) > 0x7fff_ffff,
        get(block, WRITESET_TREE_ROOT) == 0,
        get(block, ERA_ARRAY_ROOT) == 0,
    ];
    let roots = [
        WRITESET_ROOT,
        WRITESET_TREE_ROOT,
        ERA_ARRAY_ROOT,
        METADATA_SNAP,
    ];
    if impossible.contains(&true) || roots.iter().any(|root| get(block, *root) >= total) {
        return Err(Invalid::Impossible);
    }
    Ok(Superblock {
        block_size: wanted,
        blocks: get(block, BLOCKS) as u32,
        current_era: EraNr(get(block, CURRENT_ERA) as u32),
        writeset_bits: get(block, WRITESET_BITS) as u32,
        writeset_root: get(block, WRITESET_ROOT),
        writeset_tree_root: get(block, WRITESET_TREE_ROOT),
        era_array_root: get(block, ERA_ARRAY_ROOT),
        metadata_snap: get(block, METADATA_SNAP),
        sm_root: block[SM_ROOT..SM_ROOT + SM_ROOT_SIZE].try_into().unwrap(),
    })
}

/// The checksum of this file is CRC-32C, and agrees with what the tools write.
#[test]
fn checksum_is_crc32c() {
    // The published check value of the algorithm includes the final inversion.
    assert_eq!(csum(b"    123456789") ^ 146_538_381, !0xe306_9283);
    let mut block = lay_out(&sample(), LOCATION);
    // The tools' flag of a clean shutdown.
    put(&mut block, FLAGS, 1);
    assert_eq!(csum(&block), 0xe412_e117);
    assert_eq!(parse(&reseal(block)), Ok(sample()));
}

/// Each byte is where the description of the format says.
#[test]
fn layout() {
    assert_eq!((LOCATION, SM_ROOT_SIZE, FORMAT.version), (0, 128, 1));
    assert_eq!(
        (FORMAT.magic, FORMAT.csum_xor),
        (2_126_579_579, 146_538_381)
    );
    let mut superblock = Superblock {
        block_size: size(0x0403_0208),
        blocks: 0x7413_1211,
        current_era: EraNr(0x2423_2221),
        writeset_bits: 0x7433_3231,
        writeset_root: 0x4847_4645_4443_4241,
        writeset_tree_root: 0x5857_5655_5453_5251,
        era_array_root: 0x6867_6665_6463_6261,
        metadata_snap: 0x7877_7675_7473_7271,
        sm_root: [0; SM_ROOT_SIZE],
    };
    for (index, byte) in superblock.sm_root.iter_mut().enumerate() {
        *byte = index as u8 + 100;
    }
    for location in [LOCATION, 0x8887_8685_8483_8281] {
        let mut block = vec![0xa5; 4096];
        superblock.write(&mut block).unwrap();
        FORMAT.seal(&mut block, location).unwrap();
        assert_eq!(block, lay_out(&superblock, location));
    }
    let block = lay_out(&superblock, LOCATION);
    assert_eq!(&block[172..180], [8, 2, 3, 4, 8, 0, 0, 0]);
    assert_eq!(
        &block[180..192],
        [0x11, 0x12, 0x13, 0x74, 0x21, 0x22, 0x23, 0x24, 0x31, 0x32, 0x33, 0x74]
    );
    assert_eq!(block[32..44], [0x7b, 7, 0xc1, 0x7e, 0, 0, 0, 0, 1, 0, 0, 0]);
}

/// Messages and errors of `sb_check` and of opening the metadata in the C target.
#[test]
fn damage_is_reported() {
    let check = |block: &[u8]| refusal(FORMAT.check(block, LOCATION).unwrap_err());
    assert_eq!(
        check(&with(BLOCKNR, 7)),
        ("sb_check failed: blocknr 7: wanted 0".into(), ENOTBLK)
    );
    assert_eq!(
        refusal(FORMAT.check(&with(BLOCKNR, u64::MAX), 43).unwrap_err()),
        (
            "sb_check failed: blocknr 18446744073709551615: wanted 43".into(),
            ENOTBLK
        )
    );
    assert_eq!(
        check(&with(MAGIC_AT, 2_126_579_579 + (1 << 32))),
        (
            "sb_check failed: magic 6421546875: wanted 2126579579".into(),
            eilseq()
        )
    );
    let mut block = lay_out(&sample(), LOCATION);
    let stored = csum(&block);
    block[4095] = 1;
    let computed = csum(&block);
    assert_eq!(
        check(&block),
        (
            format!("sb_check failed: csum {computed}: wanted {stored}"),
            eilseq()
        )
    );
    for version in [0, 2, u32::MAX] {
        assert_eq!(
            check(&with(VERSION_AT, version.into())),
            (
                format!(
                    "Era metadata version {version} found, \
                     but only versions between 1 and 1 supported."
                ),
                EINVAL
            )
        );
    }
    assert_eq!(
        refusal(parse(&with(BLOCK_SIZE, 64)).unwrap_err()),
        (
            "changing the data block size (from 64 to 128) is not supported".into(),
            EINVAL
        )
    );
    assert_eq!(
        refusal(parse(&with(WRITESET_TREE_ROOT, 0)).unwrap_err()),
        (
            "sb_check failed: impossible size or location".into(),
            EINVAL
        )
    );
    assert_eq!(
        check(&[0; END - 1]),
        ("sb_check failed: block too short".into(), EINVAL)
    );
    assert_eq!(eilseq().to_errno(), -84);
    assert_eq!(ENOTBLK.to_errno(), -15);
}

/// Of several kinds of damage, the first in the order of the checks is reported.
#[test]
fn damage_is_reported_in_order() {
    let sound = lay_out(&sample(), LOCATION);
    let mut block = sound.clone();
    for field in [
        BLOCKNR,
        MAGIC_AT,
        VERSION_AT,
        BLOCK_SIZE,
        WRITESET_TREE_ROOT,
    ] {
        put(&mut block, field, 0xffff);
    }
    let mut kinds = Vec::new();
    for repair in [Some(BLOCKNR), Some(MAGIC_AT), None, Some(VERSION_AT)] {
        kinds.push(parse(&block).unwrap_err());
        if let Some(field) = repair {
            put(&mut block, field, get(&sound, field));
        }
        if !matches!(repair, Some(BLOCKNR | MAGIC_AT)) {
            block = reseal(block);
        }
    }
    put(&mut block, BLOCK_SIZE, 256);
    block = reseal(block);
    kinds.push(parse(&block).unwrap_err());
    put(&mut block, BLOCK_SIZE, 128);
    kinds.push(parse(&reseal(block)).unwrap_err());
    assert!(
        matches!(
            kinds[..],
            [
                Invalid::Header(HeaderError::BlockNumber { .. }),
                Invalid::Header(HeaderError::Magic { .. }),
                Invalid::Header(HeaderError::Checksum { .. }),
                Invalid::Header(HeaderError::Version { found: 0xffff }),
                Invalid::BlockSize { found: 256, .. },
                Invalid::Impossible,
            ]
        ),
        "{kinds:?}"
    );
}

/// The largest sizes and the last block numbers are accepted, those after them are not.
#[test]
fn impossible_sizes_and_locations() {
    let last = TOTAL - 1;
    let cases: &[(_, &[u64], &[u64])] = &[
        (METADATA_BLOCK, &[8], &[0, 7, 9, 16, 0xffff_ffff]),
        (BLOCKS, &[0, 1, 0x7fff_ffff], &[1 << 31, 0xffff_ffff]),
        (WRITESET_BITS, &[0, 1, 0x7fff_ffff], &[1 << 31, 0xffff_ffff]),
        (CURRENT_ERA, &[0, 1, 0xffff_ffff], &[]),
        (WRITESET_ROOT, &[0, 1, last], &[TOTAL, 1 << 32, u64::MAX]),
        (
            WRITESET_TREE_ROOT,
            &[1, last],
            &[0, TOTAL, 1 << 32, u64::MAX],
        ),
        (ERA_ARRAY_ROOT, &[1, last], &[0, TOTAL, 1 << 32, u64::MAX]),
        (METADATA_SNAP, &[0, 1, last], &[TOTAL, 1 << 32, u64::MAX]),
        (FLAGS, &[0, 1, 0xffff_ffff], &[]),
        ((16, 8), &[u64::MAX], &[]),
        ((END, 8), &[u64::MAX], &[]),
    ];
    for (field, possible, impossible) in cases {
        for number in *possible {
            let block = with(*field, *number);
            assert!(parse(&block).is_ok(), "{field:?} {number}");
            assert_eq!(parse(&block), parse_model(&block, 0, size(128), TOTAL));
        }
        for number in *impossible {
            let result = parse(&with(*field, *number));
            assert_eq!(result, Err(Invalid::Impossible), "{field:?} {number}");
        }
    }
}

/// A device is blank only if each byte of its first block is zero.
#[test]
fn blank_means_every_byte() {
    let mut block = vec![0; 4096];
    assert!(is_blank(&block));
    for offset in [0, 4, END, 4095] {
        block[offset] = 0x80;
        assert!(!is_blank(&block));
        block[offset] = 0;
    }
    assert!(matches!(
        FORMAT.check(&block, LOCATION),
        Err(HeaderError::Magic { found: 0 })
    ));
}

/// Blocks that are too short are not written, sealed or parsed.
#[test]
fn short_blocks() {
    for len in 0..END {
        let mut block = vec![0xa5; len];
        assert_eq!(sample().write(&mut block), Err(HeaderError::Truncated));
        assert_eq!(FORMAT.seal(&mut block, 0), Err(HeaderError::Truncated));
        assert_eq!(parse(&block), Err(HeaderError::Truncated.into()));
        assert!(block.iter().all(|byte| *byte == 0xa5));
    }
}

/// Numbers at the boundaries of what fields may hold, and any others.
fn numbers() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0u64..20,
        TOTAL - 2..TOTAL + 2,
        (1u64 << 31) - 2..(1 << 31) + 2,
        (1u64 << 32) - 2..(1 << 32) + 2,
    ]
}

/// Damage to fields.
fn damage() -> impl Strategy<Value = Vec<((usize, usize), u64)>> {
    let field = prop::sample::select(vec![
        CSUM,
        FLAGS,
        BLOCKNR,
        MAGIC_AT,
        VERSION_AT,
        BLOCK_SIZE,
        METADATA_BLOCK,
        BLOCKS,
        CURRENT_ERA,
        WRITESET_BITS,
        WRITESET_ROOT,
        WRITESET_TREE_ROOT,
        ERA_ARRAY_ROOT,
        METADATA_SNAP,
    ]);
    prop::collection::vec((field, numbers()), 0..3)
}

proptest! {
    /// A superblock is read back from the block for which it was sealed, and from no other.
    #[test]
    fn round_trips(
        eights in 1u32..1 << 29, era in any::<u32>(),
        (blocks, bits) in (0u32..1 << 31, 0u32..1 << 31),
        (total, location) in (2..=u64::MAX, any::<u64>()),
        roots in any::<[prop::sample::Index; 4]>(),
        root in prop::collection::vec(any::<u8>(), SM_ROOT_SIZE), rest in 0usize..600,
    ) {
        let [writeset_root, writeset_tree_root, era_array_root, snapshot] =
            roots.map(|root| root.index(usize::MAX) as u64);
        let superblock = Superblock {
            block_size: size(eights * 8),
            blocks,
            current_era: EraNr(era),
            writeset_bits: bits,
            writeset_root: writeset_root % total,
            writeset_tree_root: writeset_tree_root % (total - 1) + 1,
            era_array_root: era_array_root % (total - 1) + 1,
            metadata_snap: snapshot % total,
            sm_root: root.try_into().unwrap(),
        };
        let mut block = vec![0xff; END + rest];
        superblock.write(&mut block).unwrap();
        prop_assert!(block[END..].iter().all(|byte| *byte == 0));
        FORMAT.seal(&mut block, location).unwrap();
        let wanted = superblock.block_size;
        prop_assert_eq!(Superblock::parse(&block, location, wanted, total), Ok(superblock));
        prop_assert_eq!(parse_model(&block, location, wanted, total), Ok(superblock));
        let elsewhere = Superblock::parse(&block, location.wrapping_add(1), wanted, total);
        let expected = location.wrapping_add(1);
        let error = HeaderError::BlockNumber { found: location, expected };
        prop_assert_eq!(elsewhere, Err(error.into()));
    }

    /// A sealed block passes the check until a bit of it flips.
    #[test]
    fn one_flipped_bit_is_found(bit in 0usize..4096 * 8) {
        let mut block = lay_out(&sample(), LOCATION);
        prop_assert_eq!(FORMAT.check(&block, LOCATION), Ok(()));
        block[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(FORMAT.check(&block, LOCATION).is_err());
    }

    /// Blocks with damaged fields, under a right or a wrong checksum, are judged as by the model.
    #[test]
    fn damaged_fields(
        damage in damage(), sealed in any::<bool>(),
        location in prop_oneof![3 => Just(0), 1 => numbers()],
        wanted in prop_oneof![3 => Just(128u32), 1 => (1u32..5).prop_map(|n| n * 8)],
        total in prop_oneof![3 => Just(TOTAL), 1 => numbers()],
    ) {
        let mut block = lay_out(&sample(), location);
        for (field, number) in damage {
            put(&mut block, field, number);
        }
        let block = if sealed { reseal(block) } else { block };
        prop_assert_eq!(FORMAT.check(&block, location), check_model(&block, location));
        prop_assert_eq!(
            Superblock::parse(&block, location, size(wanted), total),
            parse_model(&block, location, size(wanted), total)
        );
    }

    /// No input panics: any bytes, of any length, also after a valid start and with a valid
    /// checksum.
    #[test]
    fn any_bytes_are_accepted_or_refused(
        mut block in prop::collection::vec(any::<u8>(), 0..500), start in 0..END,
        location in any::<u64>(), total in numbers(),
    ) {
        let judge = |block: &[u8]| {
            let result = Superblock::parse(block, location, size(128), total);
            (result, parse_model(block, location, size(128), total))
        };
        let (result, model) = judge(&block);
        prop_assert_eq!(result, model);
        let right = lay_out(&sample(), location);
        for (byte, right) in block.iter_mut().zip(&right[..start]) {
            *byte = *right;
        }
        prop_assert_eq!(FORMAT.seal(&mut block, location).is_err(), block.len() < END);
        let (result, model) = judge(&block);
        prop_assert_eq!(result, model);
    }
}
