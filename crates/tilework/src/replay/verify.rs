//! Patterns that show whether a block kept what was written to it.

use std::time::{Duration, Instant};

use super::Failure;
use super::watch::Made;
use crate::device::Device;

/// Small enough to stay in the cache between being made and being copied.
const CHUNK_BYTES: usize = 256 << 10;

/// An odd number whose multiples spread over all 64 bits (2^64 over the golden ratio).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Fills blocks and checks them.
pub(super) struct Verifier {
    pass: u32,
    /// What each slot was filled with.
    fills: Vec<Fill>,
    buffer: Vec<u8>,
    /// Time spent in this pass.
    pub spent: Duration,
}

#[derive(Clone, Copy, Default)]
struct Fill {
    made: Made,
    seed: u64,
}

/// A wrong byte.
pub(super) struct Wrong {
    /// The step that allocated the block.
    pub step: usize,
    pub bytes: u64,
    pub offset: u64,
    pub found: u8,
    pub expected: u8,
}

impl Verifier {
    pub fn new(slots: usize) -> Verifier {
        Verifier {
            pass: 0,
            fills: vec![Fill::default(); slots],
            buffer: vec![0; CHUNK_BYTES],
            spent: Duration::ZERO,
        }
    }

    pub fn begin(&mut self, pass: u32) {
        self.pass = pass;
        self.spent = Duration::ZERO;
    }

    /// Fills a block with a pattern no other block of the replay has.
    pub fn fill(&mut self, made: Made, device: &dyn Device) -> Result<(), Failure> {
        let start = Instant::now();
        let seed = scrambled((u64::from(self.pass) << 40) ^ made.step as u64);
        self.fills[made.slot as usize] = Fill { made, seed };
        for (offset, bytes) in chunks(made.bytes) {
            let chunk = &mut self.buffer[..bytes];
            write_pattern(seed, offset, chunk);
            device.write(made.address + offset, chunk).map_err(Failure::Unverified)?;
        }
        self.spent += start.elapsed();
        Ok(())
    }

    /// Checks that the block in `slot` holds its pattern.
    pub fn check(&mut self, slot: u32, device: &dyn Device) -> Result<(), Failure> {
        let start = Instant::now();
        let Fill { made, seed } = self.fills[slot as usize];
        for (offset, bytes) in chunks(made.bytes) {
            let chunk = &mut self.buffer[..bytes];
            device.read(made.address + offset, chunk).map_err(Failure::Unverified)?;
            if !has_pattern(seed, offset, chunk) {
                let mut expected = vec![0; bytes];
                write_pattern(seed, offset, &mut expected);
                if let Some(at) = (0..bytes).find(|&i| chunk[i] != expected[i]) {
                    return Err(Failure::Corrupt(Wrong {
                        step: made.step,
                        bytes: made.bytes,
                        offset: offset + at as u64,
                        found: chunk[at],
                        expected: expected[at],
                    }));
                }
            }
        }
        self.spent += start.elapsed();
        Ok(())
    }
}

/// Cuts a block into pieces of at most the buffer's length: offset and length of each.
fn chunks(bytes: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..bytes)
        .step_by(CHUNK_BYTES)
        .map(move |offset| (offset, (bytes - offset).min(CHUNK_BYTES as u64) as usize))
}

/// The eight bytes at `index * 8`: another in each block and at each place, made with one multiplication.
fn word(seed: u64, index: u64) -> u64 {
    seed.wrapping_add(index.wrapping_mul(SPREAD))
}

fn write_pattern(seed: u64, offset: u64, out: &mut [u8]) {
    let first = offset / 8;
    let (words, tail) = out.as_chunks_mut::<8>();
    let whole = words.len() as u64;
    for (i, out) in words.iter_mut().enumerate() {
        *out = word(seed, first + i as u64).to_le_bytes();
    }
    let last = word(seed, first + whole).to_le_bytes();
    tail.copy_from_slice(&last[..tail.len()]);
}

fn has_pattern(seed: u64, offset: u64, data: &[u8]) -> bool {
    let first = offset / 8;
    let (words, tail) = data.as_chunks::<8>();
    // No early end: the loop without one compares several words an instruction.
    let difference = words.iter().enumerate().fold(0, |difference, (i, bytes)| {
        difference | (u64::from_le_bytes(*bytes) ^ word(seed, first + i as u64))
    });
    let last = word(seed, first + words.len() as u64).to_le_bytes();
    difference == 0 && tail == &last[..tail.len()]
}

/// Numbers next to each other become numbers far apart (the finaliser of SplitMix64).
fn scrambled(value: u64) -> u64 {
    let value = value.wrapping_add(SPREAD);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
