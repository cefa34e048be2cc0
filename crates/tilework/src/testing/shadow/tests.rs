use super::*;
use crate::device::sim::Sim;
use crate::device::{Bind, Range};
use crate::testing::Checked;

const TILE: u64 = 2 << 20;

/// A block of half a tile.
fn half(id: u64, range: Range, offset: u64) -> Block {
    Block { id: BlockId(id), address: range.address + offset, range: range.id, offset, bytes: TILE / 2 }
}

/// Two ranges over the same tile, and a block in each: the first at its start, the second at `offset`.
fn two_blocks_over_one_tile(offset: u64) {
    let (mut device, witness) = Checked::over(Box::new(Sim::h200()));
    let heap = device.create(TILE).unwrap();
    let [one, other] = [(); 2].map(|()| {
        let range = device.reserve(TILE).unwrap();
        device.map(range.id, &[Bind { range_offset: 0, heap, heap_offset: 0, bytes: TILE }]).unwrap();
        device.set_access(range.id, 0, TILE).unwrap();
        range
    });
    let mut shadow = Shadow::default();
    shadow.lent(half(1, one, 0), TILE / 2, &witness, &*device);
    shadow.lent(half(2, other, offset), TILE / 2, &witness, &*device);
}

#[test]
fn two_halves_of_a_tile_share_nothing() {
    two_blocks_over_one_tile(TILE / 2);
}

#[test]
#[should_panic(expected = "shares memory with block 0x1")]
fn blocks_at_different_addresses_that_share_memory_are_found() {
    two_blocks_over_one_tile(TILE / 2 - 512);
}
