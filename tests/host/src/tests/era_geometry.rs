// SPDX-License-Identifier: GPL-2.0

//! Block sizes and geometry of an era target: against a walk over all sectors of small targets, and
//! against 128-bit arithmetic for large ones.

use proptest::prelude::*;

use super::text;
use crate::logic::era::geometry::*;
use crate::logic::units::{
    Sector,
    Sectors, //
};

fn size(sectors: u32) -> BlockSize {
    BlockSize::from_sectors(sectors).unwrap()
}

fn blocks_in_word(sectors: u32, len: u64) -> Option<u32> {
    Geometry::new(size(sectors), Sectors(len)).map(|geometry| geometry.blocks())
}

/// Any block size, powers of two among them.
fn sizes() -> impl Strategy<Value = u32> {
    prop_oneof![
        (3u32..32).prop_map(|shift| 1 << shift),
        (1u32..1 << 29).prop_map(|eights| eights * 8),
        (1u32..8).prop_map(|eights| eights * 8),
    ]
}

/// Sectors everywhere, and some at both ends.
fn sectors() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0u64..3,
        (0u64..3).prop_map(|n| u64::MAX - n),
        (0u32..64).prop_map(|shift| 1 << shift),
    ]
}

#[test]
fn error_messages() {
    assert_eq!(BlockSize::INVALID, c"Invalid block size");
    assert_eq!(BlockSize::UNREADABLE, c"Error parsing block size");
    assert_eq!(
        Geometry::TOO_MANY,
        c"Too many blocks: choose a larger block size"
    );
}

/// A target has 1 to 2^31 - 1 blocks, of any size.
#[test]
fn bounds() {
    const MOST: u64 = (1 << 31) - 1;
    assert_eq!(MAX_BLOCKS, MOST);
    for sectors in [8u32, 24, 128, 1 << 31, u32::MAX - 7] {
        let per = u64::from(sectors);
        assert_eq!(blocks_in_word(sectors, 0), None);
        assert_eq!(blocks_in_word(sectors, 1), Some(1));
        assert_eq!(blocks_in_word(sectors, per), Some(1));
        assert_eq!(blocks_in_word(sectors, per + 1), Some(2));
        for (len, blocks) in [
            ((MOST - 1) * per, Some(MOST as u32 - 1)),
            ((MOST - 1) * per + 1, Some(MOST as u32)),
            (MOST * per, Some(MOST as u32)),
            (MOST * per + 1, None),
            ((MOST + 1) * per, None),
            ((MOST + 1) * per + 1, None),
        ] {
            assert_eq!(blocks_in_word(sectors, len), blocks, "{len} of {sectors}");
        }
        assert_eq!(blocks_in_word(sectors, u64::MAX), None);
    }
}

/// The last block of the largest target, also for sectors beyond it.
#[test]
fn last_block_of_the_largest() {
    for sectors in [8u32, 24] {
        let len = MAX_BLOCKS * u64::from(sectors);
        let geometry = Geometry::new(size(sectors), Sectors(len)).unwrap();
        let last = MAX_BLOCKS as u32 - 1;
        for (start, count, first) in [
            (0, len, 0),
            (len - 1, 1, last),
            (len - u64::from(sectors) - 1, 2, last - 1),
            (len, 1, last),
            (u64::MAX, u64::MAX, last),
            (0, u64::MAX, 0),
        ] {
            let touched = geometry.touched(Sector(start), Sectors(count));
            assert_eq!(touched, Blocks { first, last });
        }
    }
}

proptest! {
    /// Multiples of eight except zero are valid; their size in bytes may exceed 32 bits.
    #[test]
    fn block_sizes(sectors in prop_oneof![any::<u32>(), 0u32..100, sizes()]) {
        let made = BlockSize::from_sectors(sectors);
        prop_assert_eq!(made.is_some(), sectors >= 8 && sectors & 7 == 0);
        if let Some(size) = made {
            prop_assert_eq!(size.get(), sectors);
            prop_assert_eq!(text(&size), text(&sectors));
            let bytes = u128::from(sectors) * 512;
            prop_assert_eq!(size.bytes().map(u128::from), (bytes < 1 << 32).then_some(bytes));
        }
    }

    /// An access touches the blocks of its sectors, at least that of the first. Sectors beyond the
    /// end are in the last block.
    #[test]
    fn small_targets(
        sectors in (1u32..12).prop_map(|eights| eights * 8),
        len in 1u64..1000, start in 0u64..1100, count in prop_oneof![0u64..4, 0u64..300],
    ) {
        let geometry = Geometry::new(size(sectors), Sectors(len)).unwrap();
        prop_assert_eq!((geometry.size(), geometry.len()), (size(sectors), Sectors(len)));
        let per = sectors as usize;
        let blocks = (0..len).step_by(per).count() as u32;
        prop_assert_eq!(geometry.blocks(), blocks);

        let block = |sector: u64| {
            (0..blocks)
                .find(|block| sector < u64::from(block + 1) * per as u64)
                .unwrap_or(blocks - 1)
        };
        let hit = || (start..start + count.max(1)).map(block);
        let model = Blocks { first: hit().min().unwrap(), last: hit().max().unwrap() };
        prop_assert_eq!(geometry.touched(Sector(start), Sectors(count)), model);
    }

    /// The same for all sizes, powers of two and others.
    #[test]
    fn all_targets(sectors in sizes(), len in sectors(), start in sectors(), count in sectors()) {
        let (per, wide) = (u128::from(sectors), u128::from(len));
        let blocks = wide.div_ceil(per);
        let Some(geometry) = Geometry::new(size(sectors), Sectors(len)) else {
            prop_assert!(blocks == 0 || blocks >= 1 << 31);
            return Ok(());
        };
        prop_assert_eq!(u128::from(geometry.blocks()), blocks);
        let block = |sector: u128| (sector / per).min(blocks - 1) as u32;
        let start_wide = u128::from(start);
        let model = Blocks {
            first: block(start_wide),
            last: block(start_wide + u128::from(count.max(1)) - 1),
        };
        prop_assert_eq!(geometry.touched(Sector(start), Sectors(count)), model);
    }
}
