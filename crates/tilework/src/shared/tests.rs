mod groups;
mod removed;
mod world;

use std::collections::BTreeMap;

use self::world::World;
use super::*;
use crate::device::fault::{Fault, Faults, Plan};
use crate::device::sim::Sim;
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

#[test]
fn what_is_freed_on_a_stream_is_used_again_there_at_once() {
    let mut rig = Rig::new();
    let first = rig.used(3 * MIB, A);
    rig.free(first);
    let calls = rig.witness.calls();
    rig.used(3 * MIB, A);
    assert_eq!((rig.witness.calls(), rig.world.recorded()), (calls, 0));
    rig.check();
}

#[test]
fn another_stream_does_not_touch_what_is_in_use() {
    let mut rig = Rig::new();
    let first = rig.used(TILE, A);
    rig.free(first);
    let held = rig.front.usage().held;
    let second = rig.used(TILE, B);
    assert_ne!(first, second);
    assert!(rig.front.usage().held > held, "a stream that has work to do keeps what it has");
    assert_eq!(rig.world.waits(), []);
    rig.check();
}

#[test]
fn another_stream_takes_what_is_no_longer_in_use() {
    let mut rig = Rig::new();
    let first = rig.used(TILE, A);
    rig.free(first);
    rig.world.run(A);
    let held = rig.front.usage().held;
    rig.used(TILE, B);
    assert_eq!(rig.front.usage().held, held);
    assert_eq!(rig.world.waits(), [], "nothing is left to wait for");
    rig.check();
}

#[test]
fn streams_that_work_by_turns_do_not_hand_memory_to_and_fro() {
    let mut rig = Rig::new();
    let mut calls = Vec::new();
    for _ in 0..4 {
        for (stream, bytes) in [(A, 8 * TILE), (B, 6 * TILE)] {
            let block = rig.used(bytes, stream);
            rig.free(block);
            rig.world.run(stream);
        }
        calls.push(rig.witness.calls());
    }
    assert_eq!(calls[1], calls[3], "each has what it needs");
    assert!(rig.front.usage().held <= 14 * TILE);
    rig.check();
}

#[test]
fn when_memory_is_out_the_stream_waits_and_the_host_does_not() {
    let mut rig = Rig::limited(4 * TILE);
    let first = rig.used(4 * TILE, A);
    rig.free(first);
    rig.used(4 * TILE, B);
    let mut waits = rig.world.waits();
    waits.dedup();
    assert_eq!(waits, [(B.0, A.0)]);
    assert_eq!(rig.world.host_waits(), 0);
    assert!(rig.front.usage().mapped > 4 * TILE, "the old mappings stay until their work is over");
    rig.world.run(B);
    rig.front.end_of_execution().unwrap();
    assert_eq!(rig.front.usage().mapped, 4 * TILE);
    rig.check();
}

#[test]
fn a_heap_comes_home_to_a_place_that_is_still_mapped_only_behind_its_work() {
    let mut rig = Rig::limited(4 * TILE);
    let first = rig.used(4 * TILE, A);
    rig.free(first);
    let second = rig.used(4 * TILE, B);
    rig.free(second);
    // A's old addresses are late; B's work waits for A's, so what A waits for covers them.
    rig.used(4 * TILE, A);
    rig.check();
    assert!(rig.world.waits().contains(&(A.0, B.0)));
}

#[test]
fn a_block_that_another_stream_used_comes_back_behind_that_stream() {
    let mut rig = Rig::new();
    let first = rig.used(TILE, A);
    rig.front.record_stream(first, B).unwrap();
    rig.world.order(B, A);
    rig.launch(B, first);
    rig.free(first);
    assert_eq!(rig.front.stats().pending, TILE);
    assert_eq!(rig.world.recorded(), 1);
    rig.world.run(B);
    // Looked at on the slow path.
    let big = rig.used(8 * TILE, A);
    assert_eq!(rig.front.stats().pending, 0);
    assert_eq!(rig.world.waits(), []);
    rig.free(big);
    rig.check();
}

#[test]
fn pending_blocks_are_looked_at_every_so_many_frees() {
    let mut rig = Rig::new();
    let shared = rig.used(TILE, A);
    rig.front.record_stream(shared, B).unwrap();
    rig.free(shared);
    rig.world.run(B);
    for _ in 0..64 {
        let small = rig.alloc(512, A);
        rig.free(small);
    }
    assert_eq!(rig.front.stats().pending, 0);
}

#[test]
fn a_stream_that_lacks_memory_waits_for_what_is_pending_rather_than_take_more() {
    let mut rig = Rig::new();
    let first = rig.used(2 * TILE, A);
    rig.front.record_stream(first, B).unwrap();
    rig.world.order(B, A);
    rig.launch(B, first);
    rig.free(first);
    let held = rig.front.usage().held;
    rig.used(2 * TILE, A);
    assert_eq!(rig.front.usage().held, held);
    assert_eq!(rig.world.waits(), [(A.0, B.0)]);
    assert_eq!(rig.world.host_waits(), 0);
    rig.check();
}

#[test]
fn a_stream_that_is_behind_is_asked_once_for_all_that_waits_for_it() {
    let mut rig = Rig::new();
    for _ in 0..100 {
        let block = rig.used(512, A);
        rig.front.record_stream(block, B).unwrap();
        rig.world.order(B, A);
        rig.launch(B, block);
        rig.free(block);
    }
    let asked = rig.world.asked();
    for _ in 0..64 {
        let small = rig.alloc(512, A);
        rig.free(small);
    }
    assert_eq!(rig.world.asked(), asked + 1);
    rig.world.run(B);
    rig.front.end_of_execution().unwrap();
    assert_eq!(rig.front.stats().pending, 0);
}

#[test]
fn heaps_that_change_hands_are_asked_about_a_few_times_each() {
    let mut rig = Rig::limited(32 * TILE);
    let blocks: Vec<u64> = (0..16).map(|_| rig.used(2 * TILE, A)).collect();
    blocks.into_iter().for_each(|block| rig.free(block));
    let asked = rig.world.asked();
    rig.used(32 * TILE, B);
    let asked = rig.world.asked() - asked;
    assert!(asked < 32 * 4, "asked {asked} times for 32 heaps at most");
    rig.check();
}

/// An event that passes only once a thread has had memory for the work that lets it pass, as in a collective.
#[derive(Debug, Clone)]
struct Collective {
    front: Arc<std::sync::OnceLock<std::sync::Weak<Shared>>>,
    passed: Arc<AtomicBool>,
}

impl Streams for Collective {
    fn record(&self, _: Stream) -> std::result::Result<streams::Event, DeviceError> {
        Ok(Arc::new(self.clone()))
    }

    fn is_capturing(&self, _: Stream) -> bool {
        false
    }

    fn synchronize_device(&self) -> std::result::Result<(), DeviceError> {
        Ok(())
    }
}

impl streams::Mark for Collective {
    fn wait(&self, _: Stream) -> std::result::Result<(), DeviceError> {
        Ok(())
    }

    fn passed(&self) -> bool {
        self.passed.load(Ordering::Relaxed)
    }

    fn synchronize(&self) -> std::result::Result<(), DeviceError> {
        let front = self.front.get().and_then(std::sync::Weak::upgrade).unwrap();
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || send.send(front.alloc(512, A).is_ok()));
        let served = receive.recv_timeout(std::time::Duration::from_secs(5)) == Ok(true);
        self.passed.store(served, Ordering::Relaxed);
        let reason = || DeviceError::Failed { call: Call::Order, reason: "nobody was served".into() };
        served.then_some(()).ok_or_else(reason)
    }
}

#[test]
fn a_host_that_waits_keeps_no_thread_from_its_memory() {
    let streams = Collective { front: Arc::default(), passed: Arc::default() };
    let device = device::open("sim-h200").unwrap();
    let front = Arc::new(Shared::new(device, Box::new(streams.clone()), &Options::default()).unwrap());
    streams.front.set(Arc::downgrade(&front)).unwrap();
    let block = front.alloc(TILE, A).unwrap();
    front.record_stream(block, B).unwrap();
    front.free(block).unwrap();
    front.trim().unwrap();
    assert!(streams.passed.load(Ordering::Relaxed));
    assert_eq!(front.stats().pending, 0);
}

#[test]
fn nothing_is_recorded_on_a_stream_that_is_captured() {
    let mut rig = Rig::limited(4 * TILE);
    let block = rig.used(TILE, A);
    let other = rig.used(TILE, B);
    rig.front.record_stream(block, B).unwrap();
    rig.world.capture(B, true);
    rig.free(block);
    rig.free(other);
    // All of these look at B; the world panics where they record on it.
    rig.front.end_of_execution().unwrap();
    rig.front.trim().unwrap();
    let error = rig.try_alloc(8 * TILE, A).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    assert_eq!(rig.front.stats().pending, TILE);
    rig.world.capture(B, false);
    rig.front.trim().unwrap();
    assert_eq!(rig.front.stats().pending, 0);
    assert_eq!(rig.front.usage().held, 0);
    rig.check();
}

#[test]
fn a_graphs_pool_keeps_addresses_and_tiles_until_it_is_released() {
    let mut rig = Rig::limited(16 * TILE);
    let pool = PoolId(7, 0);
    rig.front.begin_pool(pool, Box::new(|stream| stream == B)).unwrap();
    rig.world.capture(B, true);
    let blocks: Vec<(u64, u64)> =
        [TILE, 3 * MIB, 512, 5 * TILE].into_iter().map(|bytes| (rig.alloc(bytes, B), bytes)).collect();
    let behind: Vec<_> = blocks.iter().map(|&(at, bytes)| rig.witness.resolve(at, bytes).unwrap()).collect();
    for &(address, _) in &blocks {
        rig.free(address);
    }
    rig.world.capture(B, false);
    rig.front.end_pool(pool).unwrap();
    // Others, on the same stream too, get none of it.
    let eager = rig.used(TILE, B);
    let mut taken = vec![eager];
    for _ in 0..10 {
        rig.front.end_of_execution().unwrap();
        rig.front.trim().unwrap();
    }
    while let Ok(address) = rig.try_alloc(TILE, A) {
        taken.push(address);
    }
    assert!(rig.front.usage().held <= 16 * TILE);
    for (&(address, bytes), behind) in blocks.iter().zip(&behind) {
        assert_eq!(rig.witness.resolve(address, bytes).as_ref(), Ok(behind));
        for &other in &taken {
            let theirs = rig.witness.resolve(other, TILE).unwrap();
            assert!(
                theirs.iter().all(|a| behind.iter().all(|b| a.heap != b.heap)),
                "a graph's heap was given away"
            );
        }
        // A replay that is queued when the pool is released.
        rig.world.launch(C, address, bytes, &rig.witness);
    }
    rig.front.release_pool(pool).unwrap();
    let host_waits = rig.world.host_waits();
    let room = rig.alloc(4 * TILE, A);
    assert!(rig.world.host_waits() > host_waits, "the device was waited for");
    taken.push(room);
    rig.check();
    for address in taken {
        rig.free(address);
    }
    rig.front.trim().unwrap();
    assert_eq!(rig.front.usage().held, 0);
}

#[test]
fn a_pool_lasts_as_long_as_its_references() {
    let mut rig = Rig::new();
    let pool = PoolId(0, 1);
    rig.front.retain_pool(pool).unwrap();
    for _ in 0..2 {
        rig.front.begin_pool(pool, Box::new(|_| true)).unwrap();
        let block = rig.used(TILE, A);
        rig.free(block);
        rig.front.end_pool(pool).unwrap();
        rig.front.release_pool(pool).unwrap();
        rig.world.run(A);
        rig.front.trim().unwrap();
        assert_ne!(rig.front.usage().held, 0);
    }
    rig.front.release_pool(pool).unwrap();
    rig.front.release_pool(pool).unwrap();
    rig.front.trim().unwrap();
    assert_eq!(rig.front.usage().held, 0);
}

#[test]
fn blocks_outlive_their_pool_and_slots_are_used_again() {
    let mut rig = Rig::new();
    for n in 0..5 {
        let pool = PoolId(n, 0);
        rig.front.begin_pool(pool, Box::new(|_| true)).unwrap();
        let block = rig.used(TILE, A);
        rig.front.end_pool(pool).unwrap();
        rig.front.release_pool(pool).unwrap();
        rig.front.trim().unwrap();
        rig.check();
        rig.launch(A, block);
        rig.free(block);
        rig.front.trim().unwrap();
        assert_eq!(rig.front.usage().held, 0);
    }
    assert_eq!(rig.front.stats().streams.len(), 1, "one lane served all pools");
}

#[test]
fn the_first_open_pool_that_wants_a_request_has_it() {
    let mut rig = Rig::new();
    rig.front.begin_pool(PoolId(1, 0), Box::new(|stream| stream == A)).unwrap();
    rig.front.begin_pool(PoolId(2, 0), Box::new(|_| true)).unwrap();
    rig.alloc(512, A);
    rig.alloc(512, B);
    rig.front.end_pool(PoolId(1, 0)).unwrap();
    rig.alloc(512, A);
    rig.front.end_pool(PoolId(2, 0)).unwrap();
    rig.alloc(512, A);
    let graphs: Vec<bool> = rig.front.stats().streams.iter().map(|lane| lane.graph).collect();
    assert_eq!(graphs, [true, true, true, false]);
}

#[test]
fn heaps_that_come_back_are_used_again_and_not_created() {
    let mut rig = Rig::new();
    let first = rig.used(4 * TILE, A);
    rig.free(first);
    rig.front.forget_stream(A).unwrap();
    let creates = |rig: &Rig| rig.witness.log(0).iter().filter(|logged| logged.call == Call::Create).count();
    let (stock, made) = (rig.front.stats().stock, creates(&rig));
    assert_eq!((stock, rig.front.usage().held), (4 * TILE, 4 * TILE));
    rig.used(4 * TILE, B);
    assert_eq!((creates(&rig), rig.front.stats().stock), (made, 0));
    rig.check();
}

#[test]
fn stock_that_stays_unused_goes_back() {
    let mut rig = Rig::new();
    let first = rig.used(4 * TILE, A);
    rig.free(first);
    rig.world.run(A);
    for _ in 0..20 {
        rig.front.end_of_execution().unwrap();
    }
    assert_eq!(rig.front.usage().held, 0);
    assert_eq!(rig.world.host_waits(), 0);
    rig.check();
}

#[test]
fn running_out_names_every_figure() {
    let mut rig = Rig::limited(4 * TILE);
    let live = rig.used(TILE, A);
    let error = rig.try_alloc(4 * TILE, B).unwrap_err();
    let Error::OutOfMemory { request, live: told, mapped, held, limit, .. } = error else {
        panic!("{error}")
    };
    assert_eq!((request, told, limit), (4 * TILE, TILE, Some(4 * TILE)));
    assert_eq!((mapped, held), (rig.front.usage().mapped, rig.front.usage().held));
    let stats = rig.front.stats();
    assert_eq!((stats.ooms, stats.retries), (1, 2));
    rig.free(live);
    rig.check();
    rig.used(4 * TILE, B);
}

#[test]
fn a_limit_changes_while_memory_is_in_use() {
    let mut rig = Rig::new();
    let first = rig.used(8 * TILE, A);
    rig.front.set_limit(Some(4 * TILE)).unwrap();
    assert!(rig.try_alloc(TILE, A).is_err());
    rig.free(first);
    rig.used(4 * TILE, B);
    rig.world.run(A);
    rig.front.trim().unwrap();
    assert_eq!(rig.front.usage().held, 4 * TILE);
    rig.front.set_limit(None).unwrap();
    rig.used(16 * TILE, A);
    rig.check();
}

#[test]
fn a_stream_that_is_no_more_is_never_asked_again() {
    let mut rig = Rig::new();
    let kept = rig.used(TILE, B);
    let shared = rig.used(TILE, A);
    let gone = rig.used(4 * TILE, B);
    rig.front.record_stream(shared, B).unwrap();
    rig.free(gone);
    rig.front.forget_stream(B).unwrap();
    rig.world.destroy(B);
    rig.check();
    rig.free(shared);
    rig.free(kept);
    rig.front.end_of_execution().unwrap();
    rig.world.run(A);
    rig.front.trim().unwrap();
    assert_eq!(rig.front.usage().held, 0);
}

#[test]
fn addresses_that_are_not_live_are_errors_and_harm_nothing() {
    let mut rig = Rig::new();
    let block = rig.alloc(TILE, A);
    for wrong in [0, 512, block + 512, u64::MAX] {
        assert_eq!(rig.front.free(wrong), Err(Error::UnknownAddress(wrong)));
        assert_eq!(rig.front.free_on(wrong, A), Err(Error::UnknownAddress(wrong)));
        assert_eq!(rig.front.record_stream(wrong, B), Err(Error::UnknownAddress(wrong)));
    }
    assert_eq!(rig.front.block_of(block + 512), Some((block, TILE)));
    assert_eq!(rig.front.block_of(block + TILE), None);
    assert_eq!(rig.front.alloc(0, A), Err(Error::ZeroSize));
    assert!(matches!(rig.front.alloc(u64::MAX, A), Err(Error::TooLarge { .. })));
    rig.front.free_on(block, B).unwrap();
    rig.live.clear();
    assert_eq!(rig.front.free(block), Err(Error::UnknownAddress(block)));
    rig.check();
}

#[test]
fn a_hint_that_is_wrong_costs_a_look_and_no_more() {
    let mut rig = Rig::new();
    let (a, b) = (rig.alloc(TILE, A), rig.alloc(TILE, B));
    let lane = |stream| rig.front.lanes.get(Key { slot: 0, stream }).unwrap();
    rig.front.hints.note(a, lane(B));
    rig.front.hints.note(b, lane(A));
    rig.front.free(a).unwrap();
    assert_eq!(rig.front.hinted(a).unwrap().key.stream, A, "it is right from then on");
    assert_eq!(rig.front.free(a), Err(Error::UnknownAddress(a)));
    rig.front.free(b).unwrap();
    assert_eq!(rig.front.free(b), Err(Error::UnknownAddress(b)));
    rig.live.clear();
    rig.check();
}

#[test]
fn a_block_freed_on_another_stream_waits_for_it() {
    let mut rig = Rig::new();
    let block = rig.alloc(TILE, A);
    rig.launch(B, block);
    rig.live.remove(&block);
    rig.front.free_on(block, B).unwrap();
    assert_eq!(rig.front.stats().pending, TILE);
    let other = rig.used(TILE, A);
    rig.world.run(B);
    rig.front.end_of_execution().unwrap();
    assert_eq!(rig.front.stats().pending, 0);
    rig.free(other);
    rig.check();
}

#[test]
fn many_graphs_fit_in_the_address_space_and_large_ones_find_room() {
    const GIB: u64 = 1 << 30;
    let rig = Rig::new();
    for n in 0..1000 {
        rig.front.begin_pool(PoolId(n, 0), Box::new(|_| true)).unwrap();
        rig.front.alloc(TILE, A).unwrap();
        rig.front.end_pool(PoolId(n, 0)).unwrap();
    }
    assert!(rig.front.usage().reserved <= 1000 * 8 * GIB, "{} bytes reserved", rig.front.usage().reserved);
    let before = rig.front.usage().reserved;
    rig.front.begin_pool(PoolId(0, 0), Box::new(|_| true)).unwrap();
    for _ in 0..100 {
        rig.front.alloc(GIB, A).unwrap();
    }
    assert_eq!(rig.front.usage().reserved - before, (16 + 32 + 64) * GIB, "each range is twice as long");
    rig.front.check_invariants();
}

#[test]
fn devices_without_tiles_are_served() {
    let world = World::new();
    let device = Sim::h200().without_tiling();
    let (device, witness) = world.device(Box::new(device));
    let front = Shared::new(device, world.streams(), &Options::default()).unwrap();
    let block = front.alloc(TILE, A).unwrap();
    world.launch(A, block, TILE, &witness);
    front.free(block).unwrap();
    front.trim().unwrap();
    assert_eq!(world.host_waits(), 1, "what cannot be mapped twice is waited for");
    assert_eq!(front.usage().held, 0);
    front.check_invariants();
}

#[test]
fn a_recording_has_the_requests_of_all_streams() {
    let mut rig = Rig::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trace.csv.gz");
    let before = rig.alloc(TILE, A);
    rig.front.record_to(&path).unwrap();
    let (a, b) = (rig.alloc(TILE, A), rig.alloc(MIB, B));
    rig.free(before);
    rig.free(a);
    rig.alloc(TILE, A);
    rig.free(b);
    rig.front.stop_recording().unwrap();
    rig.front.stop_recording().unwrap();
    let events: Vec<(String, u64, u64, u64)> = crate::trace::Reader::open(&path)
        .unwrap()
        .map(|event| event.unwrap())
        .map(|e| (e.op.to_string(), e.id, e.bytes, e.stream.0))
        .collect();
    let expected = [
        ("alloc", 0, TILE, 0),
        ("alloc", 1, MIB, 1),
        ("free", 0, TILE, 0),
        ("alloc", 2, TILE, 0),
        ("free", 1, MIB, 1),
    ];
    let expected: Vec<_> = expected.into_iter().map(|(op, id, n, s)| (op.to_owned(), id, n, s)).collect();
    assert_eq!(events, expected);
}

/// Random operations on four streams, with captures into graphs' pools, forgotten streams, limits and failing
/// calls. The world finds races and unmappings under work, the rig blocks that share memory.
#[test]
fn random_operations_race_with_nothing() {
    for seed in 1..=200 {
        random_operations(seed, seed % 3 == 0);
    }
}

fn random_operations(seed: u64, failing: bool) {
    let mut rig =
        Rig::with(Options { heap_bytes: 2 * TILE, mapping_age: 1, heap_age: 1, ..Options::default() });
    rig.front.set_limit(Some(40 * TILE)).unwrap();
    let mut random = xorshift(seed);
    let streams = [A, B, C, Stream(0)];
    let mut users: BTreeMap<u64, Vec<Stream>> = BTreeMap::new();
    let mut pool: Option<(u64, Stream)> = None;
    let mut pools = 0;
    if failing {
        rig.faults.set(Plan::every(13));
    }
    for _ in 0..600 {
        let stream = streams[random() as usize % 4];
        let nth = random() as usize % rig.live.len().max(1);
        let some = rig.live.iter().nth(nth).map(|(&address, (_, stream, _))| (address, *stream));
        match random() % 32 {
            0..10 => {
                let bytes = match random() % 4 {
                    0 => 1 + random() % 4096,
                    1 => 1 + random() % MIB,
                    _ => 1 + random() % (6 * TILE),
                };
                match rig.try_alloc(bytes, stream) {
                    Ok(address) => {
                        users.insert(address, vec![stream]);
                        rig.launch(stream, address);
                    }
                    Err(Error::OutOfMemory { .. }) => {}
                    Err(error) => assert!(failing, "{error}"),
                }
            }
            10..17 => {
                if let Some((address, owner)) = some {
                    // The program orders its own uses of a block; the front is told who they are.
                    let users = users.get_mut(&address).expect("every live block has its users");
                    let user = if random().is_multiple_of(2) { owner } else { stream };
                    users.iter().for_each(|&other| rig.world.order(user, other));
                    if !users.contains(&user) {
                        rig.front.record_stream(address, user).unwrap();
                        users.push(user);
                    }
                    rig.launch(user, address);
                }
            }
            17..25 => {
                if let Some((address, _)) = some {
                    users.remove(&address);
                    rig.free(address);
                }
            }
            25..27 => rig.world.run(stream),
            27 => drop(rig.front.end_of_execution().inspect_err(|error| assert!(failing, "{error}"))),
            28 => drop(rig.front.trim().inspect_err(|error| assert!(failing, "{error}"))),
            29 => rig.front.set_limit(Some((20 + random() % 30) * TILE)).unwrap(),
            30 => match pool.take() {
                None => {
                    pools += 1;
                    pool = Some((pools, stream));
                    rig.world.capture(stream, true);
                    rig.front.begin_pool(PoolId(pools, 0), Box::new(move |of| of == stream)).unwrap();
                }
                Some((id, captured)) => {
                    rig.world.capture(captured, false);
                    rig.front.end_pool(PoolId(id, 0)).unwrap();
                    rig.front.release_pool(PoolId(id, 0)).unwrap();
                }
            },
            _ if pool.is_some_and(|(_, captured)| captured == stream) => {}
            _ => {
                // A stream that is made later may have the same name: its uses are told anew.
                users.values_mut().for_each(|users| users.retain(|&user| user != stream));
                rig.front.forget_stream(stream).unwrap_or_else(|error| assert!(failing, "{error}"));
            }
        }
        rig.check();
    }
    rig.faults.clear();
    let live: Vec<u64> = rig.live.keys().copied().collect();
    live.into_iter().for_each(|address| rig.free(address));
    if let Some((id, captured)) = pool {
        rig.world.capture(captured, false);
        rig.front.release_pool(PoolId(id, 0)).unwrap();
    }
    rig.front.trim().unwrap();
    rig.check();
    assert_eq!(rig.front.usage().held, 0, "seed {seed}");
    assert_eq!(rig.front.usage().mapped, 0, "seed {seed}");
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

#[test]
fn a_guest_uses_its_memory_again_without_a_driver_call() {
    let mut rig = Rig::new();
    let first = rig.used_by_guest(3 * MIB, A);
    rig.free(first);
    let calls = rig.witness.calls();
    rig.used_by_guest(3 * MIB, A);
    assert_eq!((rig.witness.calls(), rig.world.recorded(), rig.world.host_waits()), (calls, 0, 0));
    rig.check();
}

#[test]
fn a_guest_that_is_gone_is_never_asked_and_its_memory_serves_others() {
    let mut rig = Rig::limited(4 * TILE);
    let kept = rig.used_by_guest(TILE, A);
    let freed = rig.used_by_guest(2 * TILE, A);
    rig.free(freed);
    rig.world.destroy(A);
    // Another guest of ONNX Runtime's, a stream of PyTorch's, and one that got the name of the first.
    let other = rig.used_by_guest(2 * TILE, B);
    assert!(rig.world.host_waits() > 0, "what the guest did was waited for");
    rig.free(other);
    let third = rig.used(2 * TILE, C);
    rig.free(third);
    rig.check();
    rig.free(kept);
    rig.front.end_of_execution().unwrap();
    rig.front.trim().unwrap();
    assert_eq!(rig.front.usage().held, 0);
    rig.check();
}

#[test]
fn guests_that_work_by_turns_have_the_same_memory() {
    let mut rig = Rig::new();
    let mut calls = None;
    for turn in 0..4 {
        let (guest, bytes) = if turn % 2 == 0 { (A, 3 * TILE) } else { (B, 5 * TILE) };
        // Two blocks, so that one is live while the other comes; the work is still queued when both are freed.
        let (input, block) = (rig.used_by_guest(TILE, guest), rig.used_by_guest(bytes, guest));
        rig.free(block);
        rig.free(input);
        assert_eq!(rig.world.host_waits(), turn, "once at each change");
        if turn == 1 {
            calls = Some(rig.witness.calls());
        }
    }
    assert_eq!(Some(rig.witness.calls()), calls, "the memory is there");
    assert_eq!(rig.front.usage().held, 6 * TILE, "what the hungrier one needs");
    rig.check();
}

#[test]
fn guests_that_work_at_the_same_time_have_memory_of_their_own_and_do_not_wait() {
    let mut rig = Rig::new();
    let inputs = (rig.used_by_guest(TILE, A), rig.used_by_guest(TILE, B));
    for _ in 0..3 {
        let blocks = (rig.used_by_guest(2 * TILE, A), rig.used_by_guest(2 * TILE, B));
        rig.free(blocks.0);
        rig.free(blocks.1);
    }
    let live = |rig: &Rig| rig.front.stats().streams.iter().map(|part| part.live).collect::<Vec<_>>();
    rig.free(inputs.0);
    // A is between two runs, and comes back to where it was.
    let again = rig.used_by_guest(3 * TILE, A);
    assert_eq!((live(&rig), rig.world.host_waits()), (vec![3 * TILE, TILE], 0));
    rig.free(inputs.1);
    rig.free(again);
    // With nobody else there B moves up, and what A did is waited for.
    rig.used_by_guest(2 * TILE, B);
    assert_eq!((live(&rig), rig.world.host_waits()), (vec![2 * TILE, 0], 1));
    rig.used_by_guest(TILE, C);
    assert_eq!((live(&rig), rig.world.host_waits()), (vec![2 * TILE, TILE], 2));
    rig.check();
}

#[test]
fn guests_move_nowhere_while_the_device_cannot_be_waited_for() {
    let mut rig = Rig::new();
    let first = rig.used_by_guest(TILE, A);
    rig.free(first);
    rig.front.begin_pool(PoolId(1, 1), Box::new(|_| false)).unwrap();
    let second = rig.used_by_guest(TILE, B);
    assert_ne!(first, second);
    assert_eq!(rig.world.host_waits(), 0);
    rig.check();
}

#[test]
fn the_device_is_not_waited_for_while_a_graph_may_be_captured() {
    let mut rig = Rig::new();
    let guests = rig.used_by_guest(2 * TILE, A);
    rig.free(guests);
    rig.front.begin_pool(PoolId(1, 1), Box::new(|stream| stream == B)).unwrap();
    rig.world.capture(B, true);
    let graphs = rig.try_alloc(2 * TILE, B).unwrap();
    // Not the pool's, although its filter would let a stream of this name in.
    let guests = rig.front.alloc_guest(4 * TILE, B).unwrap();
    assert_eq!(
        rig.front.stats().streams.iter().filter(|part| part.graph).map(|part| part.live).sum::<u64>(),
        2 * TILE
    );
    rig.front.free(guests).unwrap();
    rig.front.end_of_execution().unwrap();
    rig.front.trim().unwrap();
    assert_eq!(rig.world.host_waits(), 0);
    rig.world.capture(B, false);
    rig.front.end_pool(PoolId(1, 1)).unwrap();
    rig.free(graphs);
    rig.front.release_pool(PoolId(1, 1)).unwrap();
    rig.front.trim().unwrap();
    assert_eq!(rig.front.usage().held, 0);
    rig.check();
}

#[test]
fn memory_that_came_to_a_pool_too_late_is_given_back() {
    let mut rig = Rig::new();
    // Requests find the pool open; by the time they are served it is closed, its graph through, its slot to be used again.
    rig.front.begin_pool(PoolId(1, 0), Box::new(|_| true)).unwrap();
    let slot = rig.front.pools.slot_for(A);
    let first = rig.used(TILE, A);
    rig.front.end_pool(PoolId(1, 0)).unwrap();
    rig.front.release_pool(PoolId(1, 0)).unwrap();
    rig.front.trim().unwrap();
    for stream in [B, A, C] {
        let late = rig.front.alloc_in(Key { slot, stream }, None, TILE).unwrap();
        rig.front.free(late).unwrap();
        rig.front.trim().unwrap();
        let stats = rig.front.stats();
        let theirs = stats.streams.iter().filter(|lane| lane.graph && lane.stream == stream.0);
        assert_eq!(theirs.map(|lane| lane.held - lane.live).sum::<u64>(), 0, "on stream {stream:?}");
        if stream == B {
            rig.free(first);
        }
    }
    rig.front.trim().unwrap();
    assert_eq!(rig.front.usage().held, 0);
    rig.check();
}

#[test]
fn what_a_burst_needed_is_given_back_after_the_executions_that_were_set() {
    let options = Options { heap_bytes: 2 * TILE, heap_age: 3, ..Options::default() };
    let mut rig = Rig::with(options);
    let weights = rig.used(8 * TILE, A);
    let execution = |rig: &mut Rig, bytes: u64| {
        let block = rig.used(bytes, A);
        rig.free(block);
        rig.world.run(A);
        rig.front.end_of_execution().unwrap();
        rig.front.usage().held
    };
    let small = execution(&mut rig, 2 * TILE);
    let burst = execution(&mut rig, 40 * TILE);
    assert!(burst >= small + 38 * TILE);
    let after: Vec<u64> = (0..4).map(|_| execution(&mut rig, 2 * TILE)).collect();
    assert_eq!(after, [burst, burst, small, small], "after three executions in which it was unused");
    rig.free(weights);
    rig.check();
}
