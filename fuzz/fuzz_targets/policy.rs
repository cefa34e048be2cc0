//! Any operations on the placement policy, with a map of who owns which grains as the oracle.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tilework_policy::testing::{Op, run};
use tilework_policy::{Cut, GRAIN};

#[derive(Arbitrary, Debug)]
struct Input {
    /// A tile is two to this power long, grains; none: heaps map whole.
    tile: Option<u8>,
    steps: Vec<Step>,
}

/// An [`Op`] in few bytes.
#[derive(Arbitrary, Debug)]
enum Step {
    Small { bytes: u16 },
    Alloc { grains: u16, slack: u8 },
    Large { grains: u16 },
    Free { nth: u8 },
    EndOfExecution,
    Close,
    Open { len: u16 },
    OpenFitting { len: u16 },
    Release { lost: u8 },
    Regain,
}

impl From<Step> for Op {
    fn from(step: Step) -> Op {
        match step {
            Step::Small { bytes } => Op::Alloc { bytes: u64::from(bytes) + 1 },
            Step::Alloc { grains, slack } => {
                Op::Alloc { bytes: (u64::from(grains) + 1) * GRAIN - u64::from(slack) }
            }
            Step::Large { grains } => Op::Alloc { bytes: (u64::from(grains) + 1) * 16 * GRAIN },
            Step::Free { nth } => Op::Free { nth: nth.into() },
            Step::EndOfExecution => Op::EndOfExecution,
            Step::Close => Op::Close,
            Step::Open { len } => Op::Open { len: len.into() },
            Step::OpenFitting { len } => Op::OpenFitting { len: len.into() },
            Step::Release { lost } => Op::Release { lost },
            Step::Regain => Op::Regain,
        }
    }
}

fuzz_target!(|input: Input| {
    // Heaps are multiples of the longest of these tiles.
    let cut = input.tile.map_or(Cut::Heaps, |log2| Cut::Tiles(1 << (log2 % 13)));
    run(cut, input.steps.into_iter().map(Op::from));
});
