// SPDX-License-Identifier: GPL-2.0

//! Upper bounds of the metadata blocks that a commit allocates.

use crate::logic::pdata::space_map::*;

#[test]
fn margin_of_an_array_block() {
    // The block, the only node, the bitmap, the index.
    assert_eq!(array_margin(1, 10), 4);
    assert_eq!(array_margin(252, BLOCKS_PER_BITMAP), 4);
    assert_eq!(array_margin(252, BLOCKS_PER_BITMAP + 1), 5);
    // Two levels: the root may be split.
    assert_eq!(array_margin(253, 10), 8);
    // The largest clone: 2^31 regions on a device of 16 GiB.
    assert_eq!(
        array_margin((1u64 << 31).div_ceil(64 * 509), 1 << 22),
        1 + 8 + 255 + 2
    );
}
