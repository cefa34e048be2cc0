//! Random operations shaped like a model's: a few sizes, asked for again and again, most of them small.

use proptest::collection::vec;
use proptest::prelude::*;

use super::Op;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Sizes as they occur in the traces of real models: from single bytes to about a hundred MiB, round
/// ones and odd ones.
pub fn sizes() -> impl Strategy<Value = u64> {
    let magnitude = prop_oneof![
        3 => 1..=KIB,
        3 => KIB..=64 * KIB,
        3 => 64 * KIB..=2 * MIB,
        3 => 2 * MIB..=32 * MIB,
        1 => 32 * MIB..=96 * MIB,
    ];
    // Tensors are multiples of their element; powers of two, and one byte either side of them, are where
    // rounding goes wrong.
    (magnitude, 0..6_u8).prop_map(|(bytes, shape)| match shape {
        0 => bytes,
        1 => bytes.next_power_of_two(),
        2 => bytes.next_power_of_two() + 1,
        3 => (bytes.next_power_of_two() - 1).max(1),
        _ => bytes.next_multiple_of(512.min(bytes.next_power_of_two())),
    })
}

/// Up to `most` operations on blocks of a handful of sizes.
pub fn ops(most: usize) -> impl Strategy<Value = Vec<Op>> {
    let step = prop_oneof![
        12 => (any::<prop::sample::Index>(), prop_oneof![9 => Just(0), 1 => 0..4_u64])
            .prop_map(|(size, stream)| Step::Alloc(size, stream)),
        10 => (0..64_usize).prop_map(|nth| Step::Op(Op::Free { nth })),
        2 => Just(Step::Op(Op::EndOfExecution)),
        1 => Just(Step::Op(Op::Trim)),
        1 => Just(Step::Op(Op::ResetPeaks)),
    ];
    (vec(sizes(), 1..10), vec(step, 0..most)).prop_map(|(palette, steps)| {
        let op = |step| match step {
            Step::Alloc(size, stream) => Op::Alloc { bytes: palette[size.index(palette.len())], stream },
            Step::Op(op) => op,
        };
        steps.into_iter().map(op).collect()
    })
}

/// An operation whose size is still a place in the palette, so that both shrink by themselves.
#[derive(Debug, Clone)]
enum Step {
    Alloc(prop::sample::Index, u64),
    Op(Op),
}
