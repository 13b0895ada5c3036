// SPDX-License-Identifier: GPL-2.0

//! The superblock: a sample block, every way to damage it, and fuzz.

use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

use super::text;
use crate::env::{
    crc32c_block,
    eilseq,
    Error,
    EINVAL,
    ENOTBLK, //
};
use crate::logic::clone::dirty::DirtyLogs;
use crate::logic::clone::geometry::{
    Geometry,
    RegionSize, //
};
use crate::logic::clone::map::{
    RegionMap,
    Run, //
};
use crate::logic::clone::superblock::*;
use crate::logic::pdata::superblock::*;
use crate::logic::units::{
    Sector,
    Sectors, //
};

/// A superblock as formatted by the C target.
const SAMPLE: &[u8; 4096] = include_bytes!("../../data/clone-superblock-fresh.bin");
/// The same after a commit.
const USED: &[u8; 4096] = include_bytes!("../../data/clone-superblock-used.bin");
/// The bitset that belongs to it.
const BITSET: &[u8; 4096] = include_bytes!("../../data/clone-bitset-used.bin");

/// Makes the contents of a sample from the fields that differ.
fn contents(bitset_root: u64, bitmap_root: u64) -> Superblock {
    let mut sm_root = [0; SM_ROOT_SIZE];
    for (slot, number) in sm_root.chunks_mut(8).zip([2048, 6, bitmap_root, 2]) {
        slot.copy_from_slice(&number.to_le_bytes());
    }
    Superblock {
        region_size: RegionSize::from_sectors(8).unwrap(),
        target_size: Sectors(131_069),
        bitset_root,
        sm_root,
    }
}

fn sample() -> Superblock {
    contents(4, 1)
}

/// Returns the sample with some bytes replaced, and with a valid checksum if requested.
fn damaged(offset: usize, bytes: &[u8], sealed: bool) -> Vec<u8> {
    let mut block = SAMPLE.to_vec();
    block[offset..offset + bytes.len()].copy_from_slice(bytes);
    if sealed {
        let csum = crc32c_block(&block[4..], 257_649_492);
        block[..4].copy_from_slice(&csum.to_le_bytes());
    }
    block
}

#[test]
fn checksum_is_crc32c() {
    // The check value of the algorithm's catalogue entry includes a final inversion.
    assert_eq!(crc32c_block(b"123456789", u32::MAX), 0xe306_9283);
    assert_eq!(crc32c_block(b"", 0), u32::MAX);
    assert_eq!(crc32c_block(b"123456789", 7) ^ 7, !0xe306_9283);
}

#[test]
fn samples_are_read_and_written() {
    for (bytes, superblock) in [(SAMPLE, sample()), (USED, contents(8, 9))] {
        assert_eq!(FORMAT.check(bytes, LOCATION), Ok(()));
        assert_eq!(Superblock::parse(bytes, LOCATION), Ok(superblock));
        let mut block = vec![0xa5; 4096];
        assert_eq!(superblock.write(&mut block), Ok(()));
        assert_eq!(FORMAT.seal(&mut block, LOCATION), Ok(()));
        assert_eq!(block, bytes);
    }
}

#[test]
fn bits_lie_as_in_the_sample() {
    let geometry = Geometry::new(sample().region_size, sample().target_size).unwrap();
    let words = BITSET[24..].chunks(8).take(256);
    let words = words.map(|word| u64::from_le_bytes(word.try_into().unwrap()));

    let (mut map, mut writer) = RegionMap::new(geometry.regions()).unwrap();
    assert_eq!(map.words(), 256);
    for (index, word) in words.clone().enumerate() {
        map.load_word(&mut writer, index as u64, word).unwrap();
    }
    assert_eq!((map.regions(), writer.set()), (16384, 138));

    // The changes of the clone, in order.
    let mut logs = DirtyLogs::new(8).unwrap();
    let io = [
        geometry.touched(Sector(24), Sectors(56)),
        geometry.touched(Sector(8001), Sectors(1)),
        geometry.covered(Sector(560), Sectors(1040)),
    ];
    for regions in io {
        assert_eq!(map.run(regions), Run::Set(regions.len()));
        assert!(logs.reserve(1) && logs.record(regions));
    }
    let mut log = logs.begin_commit().unwrap();
    log.normalize();
    let disk = words.enumerate().filter(|(_, word)| *word != 0);
    let disk: Vec<_> = disk.map(|(index, word)| (index as u64, word)).collect();
    assert_eq!(log.words().collect::<Vec<_>>(), disk);
}

#[test]
fn damage_is_named_in_order() {
    let check = |block: &[u8]| {
        let invalid = Invalid::from(FORMAT.check(block, LOCATION).unwrap_err());
        (text(&invalid), Error::from(invalid))
    };
    assert_eq!(
        check(&damaged(8, &[7], true)),
        (
            "Superblock check failed: blocknr 7, expected 0".into(),
            ENOTBLK
        )
    );
    assert_eq!(
        check(&damaged(32, &[0], true)),
        (
            "Superblock check failed: magic 2331148032, expected 2331148132".into(),
            eilseq()
        )
    );
    assert_eq!(
        check(&damaged(36, &[1], true)),
        (
            "Superblock check failed: magic 6626115428, expected 2331148132".into(),
            eilseq()
        )
    );
    let stored = u32::from_le_bytes(SAMPLE[..4].try_into().unwrap());
    let block = damaged(4095, &[1], false);
    let computed = crc32c_block(&block[4..], 257_649_492);
    assert_eq!(
        FORMAT.check(&block, LOCATION),
        Err(HeaderError::Checksum { computed, stored })
    );
    assert_eq!(
        check(&block).0,
        std::format!("Superblock check failed: checksum {computed}, expected {stored}")
    );
    assert_eq!(check(&block).1, eilseq());
    for version in [0, 2] {
        let (line, error) = check(&damaged(40, &[version], true));
        assert_eq!(
            line,
            std::format!(
                "Clone metadata version {version} found, \
                 but only versions between 1 and 1 supported."
            )
        );
        assert_eq!(error, EINVAL);
    }
    // The error names the first check that fails.
    let mut block = damaged(8, &[1], false);
    block[32..44].fill(9);
    assert!(matches!(
        FORMAT.check(&block, LOCATION),
        Err(HeaderError::BlockNumber { .. })
    ));
    block[8] = 0;
    assert!(matches!(
        FORMAT.check(&block, LOCATION),
        Err(HeaderError::Magic { .. })
    ));
    block[32..40].copy_from_slice(&FORMAT.magic.to_le_bytes());
    assert!(matches!(
        FORMAT.check(&block, LOCATION),
        Err(HeaderError::Checksum { .. })
    ));
}

#[test]
fn sizes_must_be_those_of_the_table() {
    let eight = sample().region_size;
    let sixteen = RegionSize::from_sectors(16).unwrap();
    let size = sample().target_size;
    assert_eq!(sample().check_sizes(eight, size), Ok(()));
    for result in [
        sample().check_sizes(sixteen, size),
        sample().check_sizes(eight, Sectors(131_072)),
        Superblock::parse(&damaged(172, &[7], true), LOCATION).map(|_| ()),
        Superblock::parse(&damaged(179, &[1], true), LOCATION).map(|_| ()),
    ] {
        let invalid = result.unwrap_err();
        assert_eq!(
            text(&invalid),
            "Region and/or target size don't match the ones in metadata"
        );
        assert_eq!(Error::from(invalid), EINVAL);
    }
}

#[test]
fn flags_and_uuid_are_ignored() {
    assert_eq!(
        Superblock::parse(&damaged(4, &[0xff; 4], true), LOCATION),
        Ok(sample())
    );
    assert_eq!(
        Superblock::parse(&damaged(16, &[0xff; 16], true), LOCATION),
        Ok(sample())
    );
}

#[test]
fn blank_means_every_byte() {
    let mut block = vec![0; 4096];
    assert!(is_blank(&block));
    for offset in [0, 4, 196, 4095] {
        block[offset] = 1;
        assert!(!is_blank(&block));
        block[offset] = 0;
    }
    assert!(!is_blank(SAMPLE));
    assert!(FORMAT.check(&block, LOCATION).is_err());
}

proptest! {
    #[test]
    fn round_trips(
        shift in 3u32..22, target in any::<u64>(), bitset_root in any::<u64>(),
        root in prop::collection::vec(any::<u8>(), SM_ROOT_SIZE), location in any::<u64>(),
        rest in 0usize..600,
    ) {
        let superblock = Superblock {
            region_size: RegionSize::from_sectors(1 << shift).unwrap(),
            target_size: Sectors(target),
            bitset_root,
            sm_root: root.try_into().unwrap(),
        };
        let mut block = vec![0xff; 196 + rest];
        superblock.write(&mut block).unwrap();
        FORMAT.seal(&mut block, location).unwrap();
        prop_assert_eq!(Superblock::parse(&block, location), Ok(superblock));
        prop_assert!(Superblock::parse(&block, location.wrapping_add(1)).is_err());
        prop_assert!(block[196..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn one_flipped_bit_is_found(bit in 0usize..4096 * 8) {
        let mut block = SAMPLE.to_vec();
        block[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(FORMAT.check(&block, LOCATION).is_err());
    }

    #[test]
    fn any_bytes_are_survived(
        bytes in prop::collection::vec(any::<u8>(), 0..500),
        location in any::<u64>(),
    ) {
        let _ = Superblock::parse(&bytes, location);
        let mut bytes = bytes;
        // A sealed block passes the check of the checksum.
        let sealed = FORMAT.seal(&mut bytes, location);
        prop_assert_eq!(sealed.is_err(), bytes.len() < 196);
        let magic = bytes.get(32..40).map(|b| u64::from_le_bytes(b.try_into().unwrap()));
        if sealed.is_ok() && magic != Some(FORMAT.magic) {
            let found = magic.unwrap();
            prop_assert_eq!(FORMAT.check(&bytes, location), Err(HeaderError::Magic { found }));
        }
    }

    #[test]
    fn sealed_fields_are_validated(fields in prop::collection::vec(any::<u8>(), 24)) {
        let block = damaged(172, &fields, true);
        let number = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().unwrap());
        match Superblock::parse(&block, LOCATION) {
            Ok(superblock) => {
                prop_assert_eq!(superblock.region_size.sectors().get(), number(172));
                prop_assert_eq!(superblock.target_size.get(), number(180));
                prop_assert_eq!(superblock.bitset_root, number(188));
            }
            Err(invalid) => {
                prop_assert_eq!(invalid, Invalid::Geometry);
                prop_assert!(RegionSize::from_sectors(number(172)).is_none());
            }
        }
    }
}
