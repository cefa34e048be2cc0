//! The front on streams whose work a test holds back, over a device that is watched.

mod graphs;
mod groups;
mod guests;
mod handover;
mod pending;
mod random;
mod requests;
mod world;

use std::collections::BTreeMap;

use self::world::World;
use super::*;
use crate::device::fault::{Fault, Faults, Plan};
use crate::device::{self, Call, DeviceError};
use crate::testing::checked::{Extent, Witness};

const MIB: u64 = 1 << 20;
const TILE: u64 = 2 * MIB;
const A: Stream = Stream(0xa0);
const B: Stream = Stream(0xb0);
const C: Stream = Stream(0xc0);

/// A front over a simulated card that maps whole heaps, on streams that run when told to.
struct Rig {
    front: Shared,
    world: World,
    witness: Witness,
    faults: Faults,
    /// The live blocks: bytes, stream, and what is behind them.
    live: BTreeMap<u64, (u64, Stream, Vec<Extent>)>,
}

impl Rig {
    fn new() -> Rig {
        Rig::with(Options { heap_bytes: 2 * TILE, ..Options::default() })
    }

    fn with(options: Options) -> Rig {
        let world = World::new();
        let device = Fault::new(device::open("sim-h200").unwrap());
        let faults = device.faults();
        let (device, witness) = world.device(Box::new(device));
        let front = Shared::new(device, world.streams(), &options).unwrap();
        Rig { front, world, witness, faults, live: BTreeMap::new() }
    }

    fn limited(bytes: u64) -> Rig {
        let rig = Rig::new();
        rig.front.set_limit(Some(bytes)).unwrap();
        rig
    }

    fn try_alloc(&mut self, bytes: u64, stream: Stream) -> Result<u64> {
        let address = self.front.alloc(bytes, stream)?;
        Ok(self.enter(address, bytes, stream))
    }

    /// A block of a guest's that work on its stream uses.
    fn used_by_guest(&mut self, bytes: u64, stream: Stream) -> u64 {
        let address = self.front.alloc_guest(bytes, stream).unwrap();
        self.world.launch(stream, address, bytes, &self.witness);
        self.enter(address, bytes, stream)
    }

    fn enter(&mut self, address: u64, bytes: u64, stream: Stream) -> u64 {
        assert_eq!(address % 512, 0);
        let extents = self.witness.resolve(address, bytes).expect("a block is mapped");
        for (other, (_, _, theirs)) in &self.live {
            for (a, b) in extents.iter().flat_map(|a| theirs.iter().map(move |b| (a, b))) {
                let apart =
                    a.heap != b.heap || a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset;
                assert!(apart, "{address:#x} and {other:#x} share physical memory");
            }
        }
        self.live.insert(address, (bytes, stream, extents));
        address
    }

    fn alloc(&mut self, bytes: u64, stream: Stream) -> u64 {
        self.try_alloc(bytes, stream).unwrap()
    }

    /// A block whose first use is queued.
    fn used(&mut self, bytes: u64, stream: Stream) -> u64 {
        let address = self.alloc(bytes, stream);
        self.launch(stream, address);
        address
    }

    fn launch(&self, stream: Stream, address: u64) {
        self.world.launch(stream, address, self.live[&address].0, &self.witness);
    }

    fn free(&mut self, address: u64) {
        self.live.remove(&address);
        self.front.free(address).unwrap();
    }

    /// That every live block lies where it did, and the books agree.
    fn check(&self) {
        self.front.depot.finish();
        self.front.check_invariants();
        for (&address, (bytes, _, extents)) in &self.live {
            assert_eq!(
                self.witness.resolve(address, *bytes).as_ref(),
                Ok(extents),
                "the tiles of {address:#x}"
            );
        }
        let usage = self.front.usage();
        assert_eq!(usage.live, self.live.values().map(|(bytes, ..)| bytes).sum::<u64>());
        let totals = self.witness.totals();
        assert_eq!((usage.held, usage.mapped), (totals.held, totals.mapped));
        assert_eq!(usage.reserved, totals.reserved);
    }
}

/// Numbers that look random and are the same each time.
fn xorshift(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x2545_F491_4F6C_DD1D) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}
