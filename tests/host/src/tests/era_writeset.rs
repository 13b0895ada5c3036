// SPDX-License-Identifier: GPL-2.0

//! The in-core writeset against a set of blocks and shared between threads, and the digestion of
//! writesets.

use proptest::prelude::*;
use std::collections::{
    BTreeSet,
    HashSet, //
};
use std::sync::atomic::{
    AtomicBool,
    AtomicU32,
    Ordering, //
};
use std::thread;
use std::vec;
use std::vec::Vec;

use super::with_all_faults;
use crate::env::faults;
use crate::logic::era::{
    digest_cursor::*, //
    era_nr::EraNr,
    geometry::Blocks,
    writeset::*,
};

fn blocks(first: u32, last: u32) -> Blocks {
    Blocks { first, last }
}

fn single(block: u32) -> Blocks {
    blocks(block, block)
}

/// Ranges that favour word boundaries, and may lie beyond the end.
fn ranges() -> impl Strategy<Value = Blocks> {
    let first = prop_oneof![0u32..700, (0u32..12).prop_map(|word| word * 64)];
    let more = prop_oneof![
        Just(0u32),
        0u32..70,
        0u32..700,
        (1u32..5).prop_map(|n| n * 64 - 1)
    ];
    (first, more).prop_map(|(first, more)| blocks(first, first + more))
}

/// Sizes at word boundaries and in between.
fn sizes() -> impl Strategy<Value = u32> {
    prop_oneof![
        prop::sample::select(vec![0u32, 1, 63, 64, 65, 128]),
        0u32..600
    ]
}

#[derive(Clone, Debug)]
enum Op {
    Insert(Blocks),
    Ask(Blocks),
    Clear,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => ranges().prop_map(Op::Insert),
        6 => ranges().prop_map(Op::Ask),
        1 => Just(Op::Clear),
    ];
    prop::collection::vec(op, 0..40)
}

proptest! {
    /// The parts of a range have its blocks and no others, one part per word, in order.
    #[test]
    fn ranges_are_split_into_words(
        range in ranges(), up in prop_oneof![Just(0u32), 0..u32::MAX - 2000],
    ) {
        let range = blocks(range.first + up, range.last + up);
        let parts: Vec<_> = split_into_words(range).collect();
        let mut model = Vec::<WordMask>::new();
        for block in range.first..=range.last {
            let (word, bit) = (block / 64, 1u64 << (block % 64));
            match model.last_mut() {
                Some(part) if part.word == word => part.mask |= bit,
                _ => model.push(WordMask { word, mask: bit }),
            }
        }
        prop_assert_eq!(parts, model);
    }

    /// The writeset is a set of blocks, up to the end of the last word; nothing beyond is marked.
    #[test]
    fn is_a_set(size in sizes(), ops in ops()) {
        let marks = InCoreWriteset::new(size).unwrap();
        let room = words(size) * 64;
        let mut model = HashSet::new();
        for op in ops {
            match op {
                Op::Insert(range) => {
                    marks.insert(range);
                    model.extend((range.first..=range.last).filter(|block| *block < room));
                    prop_assert_eq!(marks.contains(range), range.last < room);
                }
                Op::Ask(range) => {
                    let all = (range.first..=range.last).all(|block| model.contains(&block));
                    prop_assert_eq!(marks.contains(range), all);
                }
                Op::Clear => {
                    marks.clear();
                    model.clear();
                }
            }
        }
        for block in 0..room + 130 {
            prop_assert_eq!(marks.contains(single(block)), model.contains(&block));
        }
    }

    /// The bits of a word give the numbers of its blocks, in order, up to the end of the device.
    #[test]
    fn blocks_of_a_word(
        word in prop_oneof![0u32..4, 0u32..1 << 26, Just((1 << 26) - 1)],
        bits in prop_oneof![any::<u64>(), Just(u64::MAX), (0u32..64).prop_map(|bit| 1 << bit)],
        end in prop_oneof![0i64..130, Just(i64::MAX)],
    ) {
        let end = (i64::from(word) * 64).saturating_add(end - 40).clamp(0, u32::MAX.into()) as u32;
        let all = (0..64).filter(|bit| (bits >> bit) & 1 == 1).map(|bit| word * 64 + bit);
        let model: Vec<u32> = all.filter(|block| *block < end).collect();
        prop_assert_eq!(blocks_in_word(word, bits, end).collect::<Vec<_>>(), model);
    }

    /// Each block that is marked in a writeset and that the device has is digested once, in order.
    /// The device may have been longer or shorter in that era. Nothing beyond the end of the
    /// writeset is read.
    #[test]
    fn writesets_are_digested(
        set in prop::collection::btree_set(0u32..500, 0..60),
        bits in 0u32..500, device in prop_oneof![0u32..500, Just(u32::MAX)],
        (era, empty) in (any::<u32>(), any::<bool>()),
    ) {
        let set: BTreeSet<u32> = set.into_iter().filter(|block| *block < bits).collect();
        let mut bitset = vec![0u64; bits.div_ceil(64) as usize];
        for block in &set {
            bitset[*block as usize / 64] |= 1 << (block % 64);
        }
        let mut cursor = DigestCursor::new(EraNr(era), bits, device);
        let mut found = Vec::new();
        while let Some(word) = cursor.word() {
            let value = bitset[word as usize];
            found.extend(blocks_in_word(word, value, device));
            // Empty words may be skipped.
            let zeros = bitset[word as usize..].iter().take_while(|word| **word == 0).count();
            cursor.advance(if empty { zeros.max(1) as u32 } else { 1 });
        }
        let model: Vec<u32> = set.into_iter().filter(|block| *block < device).collect();
        prop_assert_eq!(found, model);
        prop_assert_eq!(cursor.era, EraNr(era));
        cursor.advance(u32::MAX);
        prop_assert_eq!(cursor.word(), None);
    }
}

/// Bits that damage has set beyond the end of a writeset never give a block outside the device.
#[test]
fn bits_beyond_the_end_stay_inside() {
    for (bits, device) in [(1, 3), (70, 66), (130, 64), (64, 1000), (5, 0), (0, 5)] {
        let mut cursor = DigestCursor::new(EraNr(1), bits, device);
        let mut steps = 0;
        while let Some(word) = cursor.word() {
            assert!(blocks_in_word(word, u64::MAX, device).all(|block| block < device));
            cursor.advance(1);
            steps += 1;
        }
        assert_eq!(steps, bits.min(device).div_ceil(64));
    }
}

/// The number of words, up to the largest number of bits.
#[test]
fn number_of_words() {
    for bits in (0..1000).chain(u32::MAX - 200..=u32::MAX) {
        let model = u64::from(bits).div_ceil(64);
        assert_eq!(u64::from(words(bits)), model);
    }
}

/// Making a writeset is one allocation; nothing else allocates.
#[test]
fn allocations_may_fail() {
    let (marks, failures) = with_all_faults(|| InCoreWriteset::new(5000));
    assert_eq!(failures, 1);
    let ((), reached) = faults::with_failing(0, || {
        marks.insert(blocks(3, 4999));
        assert!(marks.contains(blocks(3, 4999)));
        assert!(!marks.contains(single(2)));
        marks.clear();
        assert!(!marks.contains(single(3)));
    });
    assert!(!reached);
}

/// Readers see each mark that was announced to them, no mark that was not being set, and whatever
/// was written before a mark.
#[test]
fn readers_need_no_lock() {
    const BLOCKS: u32 = 64 * 40 + 17;
    for _ in 0..20 {
        let marks = InCoreWriteset::new(BLOCKS).unwrap();
        // What "on disk" is: set before the mark.
        let durable: Vec<_> = (0..BLOCKS).map(|_| AtomicBool::new(false)).collect();
        let done = AtomicU32::new(0);
        let read = || loop {
            let announced = done.load(Ordering::Acquire);
            assert!(announced == 0 || marks.contains(blocks(0, announced - 1)));
            for block in announced.saturating_sub(3)..(announced + 200).min(BLOCKS) {
                let marked = marks.contains(single(block));
                assert!(!marked || durable[block as usize].load(Ordering::Relaxed));
            }
            if announced == BLOCKS {
                break;
            }
        };
        thread::scope(|scope| {
            scope.spawn(read);
            scope.spawn(read);
            let mut first = 0;
            while first < BLOCKS {
                let end = (first + 1 + first % 97).min(BLOCKS);
                for block in first..end {
                    durable[block as usize].store(true, Ordering::Relaxed);
                }
                marks.insert(blocks(first, end - 1));
                done.store(end, Ordering::Release);
                first = end;
            }
        });
    }
}

/// While marks are cleared over and over, readers never see a block that was never marked.
#[test]
fn clearing_makes_no_marks() {
    const BLOCKS: u32 = 1000;
    let marks = InCoreWriteset::new(BLOCKS).unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    for hole in (0..BLOCKS).step_by(7) {
                        assert!(!marks.contains(single(hole)));
                        assert!(!marks.contains(blocks(hole / 2, hole)));
                    }
                }
            });
        }
        for _ in 0..100 {
            for hole in (0..BLOCKS - 7).step_by(7) {
                marks.insert(blocks(hole + 1, hole + 6));
            }
            assert!(marks.contains(blocks(1, 6)));
            marks.clear();
            assert!((0..BLOCKS).all(|block| !marks.contains(single(block))));
        }
        over.store(true, Ordering::Relaxed);
    });
}
