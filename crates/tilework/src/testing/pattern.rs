//! Contents that tell a block from every other, written when it is lent and checked when it is freed.
//!
//! Written in windows: both ends of every extent that backs the block, and steps between. Two blocks that
//! shared memory would share a whole tile's worth of it, and a mapping that was replaced would show at
//! the ends of its extents.

use super::checked::Extent;
use crate::device::{Device, DeviceError};
use crate::manager::Block;

/// Bytes of one window.
const WINDOW: u64 = 64;

/// Windows in the midst of a block.
const STEPS: u64 = 16;

/// Fills the windows of a block.
pub(super) fn write(device: &dyn Device, block: &Block, extents: &[Extent]) -> Result<(), DeviceError> {
    for (at, bytes) in windows(block.bytes, extents) {
        device.write(block.address + at, &contents(block, at, bytes))?;
    }
    Ok(())
}

/// Reads the windows of a block; a sentence when one is not as written.
pub(super) fn check(device: &dyn Device, block: &Block, extents: &[Extent]) -> Result<(), String> {
    let mut seen = [0; WINDOW as usize];
    for (at, bytes) in windows(block.bytes, extents) {
        let seen = &mut seen[..bytes as usize];
        device.read(block.address + at, seen).map_err(|error| error.to_string())?;
        if *seen != *contents(block, at, bytes) {
            return Err(format!("{bytes} bytes at offset {at} are not those that were written there"));
        }
    }
    Ok(())
}

/// Offset and length of each window in a block of `bytes`.
fn windows(bytes: u64, extents: &[Extent]) -> impl Iterator<Item = (u64, u64)> {
    let ends = extents.iter().scan(0, |end, extent| {
        let begin = *end;
        *end += extent.bytes;
        Some([begin, end.saturating_sub(WINDOW).max(begin)])
    });
    let steps = (1..STEPS).map(move |n| bytes / STEPS * n);
    ends.flatten().chain(steps).map(move |at| (at, WINDOW.min(bytes - at)))
}

/// What belongs at an offset of a block: each byte depends on the block and on its own place only, so
/// windows that overlap agree.
fn contents(block: &Block, at: u64, bytes: u64) -> Vec<u8> {
    let byte = |at: u64| {
        let mixed = (block.id.0 ^ at.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 56) as u8 ^ at as u8
    };
    (at..at + bytes).map(byte).collect()
}
