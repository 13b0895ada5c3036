// SPDX-License-Identifier: GPL-2.0

//! Geometry against a walk over all sectors of small targets, and its bounds on large ones.

use proptest::prelude::*;
use std::format;
use std::vec::Vec;

use super::range;
use crate::env::{
    Error,
    EINVAL, //
};
use crate::logic::clone::geometry::*;
use crate::logic::regions::Region;
use crate::logic::units::*;

fn size(sectors: u64) -> RegionSize {
    RegionSize::from_sectors(sectors).unwrap()
}

#[test]
fn region_size_texts() {
    let not_a_size = c"Invalid region size";
    let not_a_power = c"Region size is not a power of 2";
    let cases: &[(&[u8], Result<u64, _>)] = &[
        (b"8", Ok(8)),
        (b"2097152", Ok(2_097_152)),
        (b"4294967304", Ok(8)),
        (b"7", Err(not_a_size)),
        (b"0", Err(not_a_size)),
        (b"4194304", Err(not_a_size)),
        (b"2097153", Err(not_a_size)),
        (b"-8", Err(not_a_size)),
        (b"8x", Err(not_a_size)),
        (b"abc", Err(not_a_size)),
        (b"", Err(not_a_size)),
        (b"9", Err(not_a_power)),
        (b"12", Err(not_a_power)),
        (b"2097151", Err(not_a_power)),
    ];
    for (word, expected) in cases {
        let result = RegionSize::parse(word).map(|size| size.sectors().get());
        assert_eq!(result, *expected, "{word:?}");
    }
}

#[test]
fn region_size_fits_blocks() {
    for (sectors, block, fits) in [(8, 1, true), (8, 8, true), (8, 16, false), (64, 8, true)] {
        assert_eq!(size(sectors).is_multiple_of(Sectors(block)), fits);
    }
    for (sectors, block) in [(8u64, 3u64), (64, 24), (1 << 21, 1 << 21), (8, 7)] {
        let expected = sectors % block == 0;
        assert_eq!(size(sectors).is_multiple_of(Sectors(block)), expected);
    }
}

#[test]
fn most_regions() {
    let len = (1u64 << 31) * 8;
    assert_eq!(
        Geometry::new(size(8), Sectors(len)).unwrap().regions(),
        1 << 31
    );
    assert_eq!(
        Geometry::new(size(8), Sectors(len - 7)).unwrap().regions(),
        1 << 31
    );
    assert_eq!(
        Geometry::new(size(8), Sectors(len + 1)),
        Err(TooManyRegions)
    );
    assert_eq!(
        Geometry::new(size(1 << 21), Sectors(u64::MAX)),
        Err(TooManyRegions)
    );
    assert_eq!(Error::from(TooManyRegions), EINVAL);
    assert_eq!(
        TooManyRegions::TEXT,
        c"Too many regions. Consider increasing the region size"
    );
}

/// A target of up to 40 regions, and an access, often at a border, that may reach beyond it.
fn small() -> impl Strategy<Value = (Geometry, u64, u64)> {
    let access = |len: u64| {
        let borders = || prop_oneof![(0u64..44).prop_map(|n| n * 8), Just(len), 0u64..340];
        (Just(len), borders(), borders(), any::<bool>())
    };
    (3u32..6, (1u64..320).prop_flat_map(access)).prop_map(|(shift, (len, start, end, empty))| {
        let geometry = Geometry::new(size(1 << shift), Sectors(len)).unwrap();
        let count = if empty { 0 } else { end.saturating_sub(start) };
        (geometry, start, count)
    })
}

proptest! {
    #[test]
    fn small_targets((geometry, start, count) in small()) {
        let len = geometry.len().get();
        let per = geometry.region_size().sectors().get();
        prop_assert_eq!(geometry.regions(), (len - 1) / per + 1);

        let hit = |sector: u64| (start..start + count.max(1)).contains(&sector);
        let inside = |sector: u64| (start..start + count).contains(&sector);
        let sectors = |region: u64| (region * per..(region + 1) * per).filter(|s| *s < len);
        let touched: Vec<u64> =
            (0..geometry.regions()).filter(|r| sectors(*r).any(hit)).collect();
        let covered: Vec<u64> =
            (0..geometry.regions()).filter(|r| sectors(*r).all(inside)).collect();

        let result = geometry.touched(Sector(start), Sectors(count));
        prop_assert_eq!((result.start.0..result.end.0).collect::<Vec<_>>(), touched);
        prop_assert!(result.end.0 <= geometry.regions());
        let result = geometry.covered(Sector(start), Sectors(count));
        prop_assert_eq!((result.start.0..result.end.0).collect::<Vec<_>>(), covered);
        prop_assert!(result.end.0 <= geometry.regions());
    }

    #[test]
    fn extents((geometry, start, count) in small()) {
        let len = geometry.len().get();
        let per = geometry.region_size().sectors().get();
        let regions = range(start / 8, start / 8 + count / 8);
        let (first, sectors) = geometry.extent(regions);
        let model: Vec<u64> =
            (0..len).filter(|s| regions.contains(Region(s / per))).collect();
        prop_assert_eq!(sectors.get(), model.len() as u64);
        prop_assert!(first.get() + sectors.get() <= len);
        if let Some(sector) = model.first() {
            prop_assert_eq!(first.get(), *sector);
        }

        let until = geometry.sectors_until(Sector(start), regions.end).get();
        let model = (start..len).filter(|s| s / per < regions.end.0).count() as u64;
        prop_assert_eq!(until, model);
        if start < len {
            let touched = geometry.touched(Sector(start), Sectors(until));
            prop_assert!(touched.end <= regions.end.max(Region(start / per + 1)));
        }
    }

    #[test]
    fn never_panics(
        shift in 3u32..22, len in any::<u64>(), start in any::<u64>(), count in any::<u64>(),
        first in any::<u64>(), end in any::<u64>(),
    ) {
        let Ok(geometry) = Geometry::new(size(1 << shift), Sectors(len)) else {
            prop_assert!(len.div_ceil(1 << shift) > 1 << 31);
            return Ok(());
        };
        let all = geometry.all();
        for regions in [
            geometry.touched(Sector(start), Sectors(count)),
            geometry.covered(Sector(start), Sectors(count)),
        ] {
            prop_assert!(regions.is_empty() || regions.intersect(all) == regions);
        }
        let (first, sectors) = geometry.extent(range(first, end));
        prop_assert!(first.get().checked_add(sectors.get()).unwrap() <= len);
        geometry.sectors_until(Sector(start), Region(end));
        prop_assert_eq!(geometry.region_of(Sector(start)).get(), start >> shift);
    }

    #[test]
    fn region_sizes_round_trip(
        sectors in prop_oneof![any::<u64>(), (0u32..40).prop_map(|s| 1 << s)],
    ) {
        let word = format!("{sectors}");
        let parsed = RegionSize::parse(word.as_bytes()).ok();
        // Values above 32 bits wrap around in a table line, but not here.
        if sectors < 1 << 32 {
            prop_assert_eq!(parsed, RegionSize::from_sectors(sectors));
        }
        if let Some(size) = RegionSize::from_sectors(sectors) {
            prop_assert_eq!(size.sectors().get(), sectors);
            prop_assert!((8..=2_097_152).contains(&sectors) && sectors.is_power_of_two());
        }
    }

    #[test]
    fn bytes_and_sectors(bytes in any::<u64>()) {
        match Sectors::from_bytes(bytes) {
            Some(sectors) => prop_assert_eq!(sectors.to_bytes(), Some(bytes)),
            None => prop_assert!(bytes % 512 != 0),
        }
        let sectors = Sectors(bytes);
        prop_assert_eq!(sectors.to_bytes().is_none(), bytes >= 1 << 55);
        let (a, b) = (Sector(bytes / 2), Sectors(bytes));
        prop_assert_eq!(a.checked_add(b).and_then(|end| end.since(a)), a.checked_add(b).map(|_| b));
    }
}
