use std::{ptr, thread};

use tilework::device::conformance::{self, device_conformance};
use tilework::device::fault::Fault;
use tilework::device::limit::Limit;
use tilework::device::waiting::Waiting;
use tilework::device::{Bind, Device, DeviceError, HeapId, Range};
use tilework::manager::{self, Kind, Options, Stream};
use tilework::shared::streams::Streams as _;
use tilework::testing::conformance::Subject;

use super::*;
use crate::driver::{CAPTURE_GLOBAL, DEINITIALIZED, INVALID_VALUE, OUT_OF_MEMORY};
use crate::fake::{Config, Fake};
use crate::gpu::Gpu;
use crate::streams::CudaStreams;

const TILE: u64 = 2 << 20;

fn cuda_with(fake: &Fake) -> Cuda {
    Cuda::new(Gpu::open(fake.driver(), 0).unwrap()).unwrap()
}

fn plain_with(fake: &Fake) -> Plain {
    Plain::new(Gpu::open(fake.driver(), 0).unwrap())
}

/// A device on this thread's driver, which several devices may share.
fn cuda() -> Cuda {
    cuda_with(&Fake::of_this_thread())
}

const PLAIN: Config = Config {
    gpus: 1,
    maps_memory: false,
    granularity: 4096,
    total_bytes: 1 << 30,
    maps_host_memory: false,
    tells_host_addresses: false,
};

/// Keeps this thread's driver when it has one of the configuration.
fn of_this_thread(config: Config) -> Fake {
    let fake = Fake::of_this_thread();
    if fake.config() == config { fake } else { Fake::new(config) }
}

fn plain() -> Plain {
    plain_with(&of_this_thread(PLAIN))
}

device_conformance!(mapping, cuda);
device_conformance!(mapping_behind_a_limit, || Limit::new(cuda(), 64 * TILE));
device_conformance!(mapping_behind_faults, || Fault::new(cuda()));

/// The suite for a device whose memory does not move: all of it but the checks that map a heap again
/// elsewhere, `contents_follow_the_heap`, `without_tiling_a_heap_backs_one_range`,
/// `access_comes_before_use` and the random calls. The first test below has the rule in their place.
macro_rules! plain_conformance {
    ($($check:ident)*) => {
        mod without_mapping {
            use super::*;

            $(
                #[test]
                fn $check() {
                    conformance::$check(&conformance::boxed(plain));
                }
            )*
        }
    };
}

plain_conformance! {
    life_cycle
    ranges_are_aligned_and_disjoint
    ids_are_fresh
    aliases_agree
    a_part_is_remapped_beside_others
    memory_is_zero_when_created
    requests_beyond_the_device_fail
    held_bytes_follow_the_heaps
    calls_are_counted
    a_refused_map_has_no_effect
    offsets_are_as_the_caps_say
    use_is_refused_where_nothing_is_mapped
}

/// A tile small enough for the sizes of the suite, which is made for memory that someone zeroes.
const SMALL_TILES: Config = Config {
    gpus: 1,
    maps_memory: true,
    granularity: 64 << 10,
    total_bytes: 1 << 30,
    maps_host_memory: true,
    tells_host_addresses: false,
};

fn small_tiles() -> Box<dyn Device> {
    Box::new(cuda_with(&of_this_thread(SMALL_TILES)))
}

fn no_tiles() -> Box<dyn Device> {
    Box::new(plain())
}

tilework::manager_conformance! {
    tiled_on_cuda: Subject::of(Kind::Tiled, small_tiles);
    placed_on_cuda: Subject::of(Kind::Placed, small_tiles);
    bucketized_on_cuda: Subject::of(Kind::Bucketized, small_tiles);
    committed_on_cuda: Subject::of(Kind::Committed, small_tiles);
    placed_without_mapping: Subject::of(Kind::Placed, no_tiles);
    bucketized_without_mapping: Subject::of(Kind::Bucketized, no_tiles);
    committed_without_mapping: Subject::of(Kind::Committed, no_tiles);
}

/// All in tiles of [`TILE`].
fn bind(at: u64, heap: HeapId, tiles: u64) -> Bind {
    Bind { range_offset: at * TILE, heap, heap_offset: 0, bytes: tiles * TILE }
}

#[test]
fn without_mapping_a_heap_is_used_once() {
    let mut device = plain();
    let tile = device.caps().tile_bytes;
    let heap = device.create(tile).unwrap();
    let ranges = [0; 2].map(|_| device.reserve(tile).unwrap());
    let bind = Bind { range_offset: 0, heap, heap_offset: 0, bytes: tile };
    device.map(ranges[0].id, &[bind]).unwrap();
    device.unmap(ranges[0].id, 0, tile).unwrap();
    for range in ranges {
        let error = device.map(range.id, &[bind]).unwrap_err();
        assert!(error.to_string().contains("memory cannot move"), "{error}");
    }
    device.release(heap).unwrap();
    device.unreserve(ranges[0].id).unwrap();
}

#[test]
fn without_mapping_allocations_are_what_is_reserved() {
    let fake = Fake::new(PLAIN);
    let mut device = plain_with(&fake);
    let range = device.reserve(5 * 512).unwrap();
    assert_eq!(fake.held_bytes(), 5 * 512);
    let error = device.reserve(PLAIN.total_bytes).unwrap_err();
    assert_eq!(error, DeviceError::OutOfMemory { bytes: PLAIN.total_bytes });
    device.unreserve(range.id).unwrap();
    device.reserve(512).unwrap();
    drop(device);
    assert_eq!((fake.held_bytes(), fake.ranges(), fake.retained(0)), (0, 0, 0));
}

/// One of each call, in order; what it returned is looked at by other tests.
fn each_call(device: &mut dyn Device, mut after: impl FnMut(&str)) {
    let tile = device.caps().tile_bytes;
    let range = device.reserve(tile).unwrap();
    after("reserve");
    let heap = device.create(tile).unwrap();
    after("create");
    device.map(range.id, &[Bind { range_offset: 0, heap, heap_offset: 0, bytes: tile }]).unwrap();
    after("map");
    if device.caps().needs_access {
        device.set_access(range.id, 0, tile).unwrap();
        after("set_access");
    }
    device.write(range.address, &[1, 2]).unwrap();
    after("write");
    device.read(range.address, &mut [0; 2]).unwrap();
    after("read");
    device.unmap(range.id, 0, tile).unwrap();
    after("unmap");
    device.release(heap).unwrap();
    after("release");
    device.unreserve(range.id).unwrap();
    after("unreserve");
}

#[test]
fn every_call_leaves_the_callers_context_and_mode() {
    let unchanged = |fake: &Fake, contexts: &[usize], device: &mut dyn Device| {
        each_call(device, |call| {
            assert_eq!(fake.contexts(), contexts, "after {call}");
            assert_eq!(fake.capture_mode(), CAPTURE_GLOBAL, "after {call}");
        });
    };
    let fake = Fake::new(Config::default());
    unchanged(&fake, &[], &mut cuda_with(&fake));
    // The other GPU's.
    fake.push_context(2);
    unchanged(&fake, &[2], &mut cuda_with(&fake));
    // The GPU's own.
    fake.push_context(1);
    unchanged(&fake, &[2, 1], &mut cuda_with(&fake));
    assert_eq!(fake.contexts(), [2, 1], "after everything was dropped");
}

#[test]
fn memory_is_managed_while_a_stream_is_captured() {
    let fake = Fake::new(Config::default());
    let mut device = cuda_with(&fake);
    fake.capture(ptr::without_provenance_mut(7), true);
    each_call(&mut device, |_| {});
}

#[test]
fn one_call_sets_access_and_one_unmaps_however_many_heaps() {
    let fake = Fake::new(Config::default());
    let mut device = cuda_with(&fake);
    let range = device.reserve(6 * TILE).unwrap();
    let heaps = [1, 2, 3].map(|tiles| (device.create(tiles * TILE).unwrap(), tiles));
    let binds = [bind(0, heaps[0].0, 1), bind(1, heaps[1].0, 2), bind(3, heaps[2].0, 3)];
    device.map(range.id, &binds).unwrap();
    device.set_access(range.id, 0, 6 * TILE).unwrap();
    device.unmap(range.id, 0, 6 * TILE).unwrap();
    let calls = ["cuMemMap", "cuMemSetAccess", "cuMemUnmap"].map(|function| fake.calls(function));
    assert_eq!(calls, [3, 1, 1]);
    let counted = device.calls();
    assert_eq!([counted.map, counted.set_access, counted.unmap], calls);
    assert!(counted.nanos > 0);
}

/// A range of three tiles and three heaps of one.
fn three(device: &mut Cuda) -> (Range, [Bind; 3]) {
    let range = device.reserve(3 * TILE).unwrap();
    (range, [0, 1, 2].map(|at| bind(at, device.create(TILE).unwrap(), 1)))
}

#[test]
fn a_map_that_fails_halfway_maps_nothing() {
    let fake = Fake::new(Config::default());
    let mut device = cuda_with(&fake);
    let (range, binds) = three(&mut device);
    fake.fail("cuMemMap", 3, INVALID_VALUE);
    let error = device.map(range.id, &binds).unwrap_err();
    let reason = "map failed: cuMemMap: CUDA_ERROR_INVALID_VALUE (1): invalid argument";
    assert_eq!(error.to_string(), reason);
    assert_eq!(fake.calls("cuMemUnmap"), 2);
    device.map(range.id, &binds).unwrap();
}

#[test]
fn what_a_failed_map_could_not_undo_is_undone_later() {
    let fake = Fake::new(Config::default());
    let mut device = cuda_with(&fake);
    let (range, binds) = three(&mut device);
    let fail_both = || {
        fake.fail("cuMemMap", 3, INVALID_VALUE);
        fake.fail("cuMemUnmap", 1, INVALID_VALUE);
        fake.fail("cuMemUnmap", 2, INVALID_VALUE);
    };
    fail_both();
    device.map(range.id, &binds).unwrap_err();
    device.map(range.id, &binds).unwrap();
    device.unmap(range.id, 0, 3 * TILE).unwrap();

    fail_both();
    device.map(range.id, &binds).unwrap_err();
    device.unreserve(range.id).unwrap();

    let range = device.reserve(3 * TILE).unwrap();
    fail_both();
    device.map(range.id, &binds).unwrap_err();
    drop(device);
    assert_eq!((fake.held_bytes(), fake.ranges()), (0, 0));
}

#[test]
fn the_drivers_want_of_memory_is_the_devices() {
    let fake = Fake::new(Config::default());
    let mut device = cuda_with(&fake);
    let out = Err(DeviceError::OutOfMemory { bytes: TILE });
    fake.fail("cuMemCreate", 1, OUT_OF_MEMORY);
    assert_eq!(device.create(TILE).map(drop), out);
    let heap = device.create(TILE).unwrap();
    fake.fail("cuMemAddressReserve", 1, OUT_OF_MEMORY);
    assert!(matches!(device.reserve(TILE), Err(DeviceError::Failed { .. })), "address space is not memory");
    let range = device.reserve(TILE).unwrap();
    // Page tables take memory, too.
    fake.fail("cuMemMap", 1, OUT_OF_MEMORY);
    assert_eq!(device.map(range.id, &[bind(0, heap, 1)]), out);
    device.map(range.id, &[bind(0, heap, 1)]).unwrap();
    fake.fail("cuMemSetAccess", 1, OUT_OF_MEMORY);
    assert_eq!(device.set_access(range.id, 0, TILE), out);
    device.set_access(range.id, 0, TILE).unwrap();
}

#[test]
fn every_failing_call_changes_nothing() {
    for function in [
        "cuMemAddressReserve",
        "cuMemCreate",
        "cuMemMap",
        "cuMemSetAccess",
        "cuMemcpyHtoD",
        "cuMemcpyDtoH",
        "cuStreamSynchronize",
        "cuMemUnmap",
        "cuMemRelease",
        "cuMemAddressFree",
    ] {
        let fake = Fake::new(Config::default());
        let mut device = cuda_with(&fake);
        let range = device.reserve(TILE).unwrap();
        let heap = device.create(TILE).unwrap();
        let bind = bind(0, heap, 1);
        fake.fail(function, 1, INVALID_VALUE);
        let mut failed = 0;
        // Whatever fails is tried again at once, and succeeds.
        let mut twice = |call: &mut dyn FnMut(&mut Cuda) -> Result<(), DeviceError>| {
            if let Err(error) = call(&mut device) {
                assert!(error.to_string().contains(function), "{error}");
                failed += 1;
                call(&mut device).unwrap();
            }
        };
        twice(&mut |device| device.reserve(TILE).map(drop));
        twice(&mut |device| device.create(TILE).map(drop));
        twice(&mut |device| device.map(range.id, &[bind]));
        twice(&mut |device| device.set_access(range.id, 0, TILE));
        twice(&mut |device| device.write(range.address, &[1]));
        twice(&mut |device| device.read(range.address, &mut [0]));
        twice(&mut |device| device.unmap(range.id, 0, TILE));
        twice(&mut |device| device.release(heap));
        twice(&mut |device| device.unreserve(range.id));
        assert_eq!(failed, 1, "{function}");
        drop(device);
        assert_eq!((fake.held_bytes(), fake.ranges(), fake.contexts()), (0, 0, vec![]), "{function}");
    }
}

#[test]
fn dropping_gives_everything_back() {
    let fake = Fake::new(Config::default());
    let mut device = cuda_with(&fake);
    let (range, binds) = three(&mut device);
    device.map(range.id, &binds[..1]).unwrap();
    device.map(range.id, &binds[2..]).unwrap();
    device.reserve(TILE).unwrap();
    assert_eq!((fake.held_bytes(), fake.ranges(), fake.retained(0)), (3 * TILE, 2, 1));
    drop(device);
    assert_eq!((fake.held_bytes(), fake.ranges(), fake.retained(0)), (0, 0, 0));
}

#[test]
fn heaps_on_the_host_are_not_the_gpus() {
    let fake = Fake::new(Config { total_bytes: 2 * TILE, ..Config::default() });
    let mut device = cuda_with(&fake);
    let here = device.create(2 * TILE).unwrap();
    fake.fail("cuMemCreate", 1, OUT_OF_MEMORY);
    let out = Err(DeviceError::OutOfMemory { bytes: 3 * TILE });
    assert_eq!(device.create_on_host(3 * TILE), out);
    let there = device.create_on_host(3 * TILE).unwrap();
    assert_eq!((fake.held_bytes(), fake.host_bytes()), (2 * TILE, 3 * TILE));
    let range = device.reserve(5 * TILE).unwrap();
    device.map(range.id, &[bind(0, there, 3), bind(3, here, 2)]).unwrap();
    // One call for both.
    device.set_access(range.id, 0, 5 * TILE).unwrap();
    device.write(range.address + 3 * TILE - 1, &[1, 2]).unwrap();
    drop(device);
    assert_eq!((fake.held_bytes(), fake.host_bytes(), fake.ranges()), (0, 0, 0));
}

#[test]
fn a_driver_that_does_not_map_memory_of_the_host_has_no_heaps_there() {
    let config = Config { maps_host_memory: false, ..Config::default() };
    let unknown = || Fake::new(Config::default()).fail("cuDeviceGetAttribute", 2, INVALID_VALUE);
    let odd = || Fake::new(Config::default()).fail("cuMemGetAllocationGranularity", 2, INVALID_VALUE);
    for make in [&|| drop(Fake::new(config)), &unknown as &dyn Fn(), &odd] {
        make();
        let mut device = cuda();
        assert!(!device.caps().host_heaps);
        let refused = device.create_on_host(TILE);
        assert!(matches!(refused, Err(DeviceError::Violation { .. })), "{refused:?}");
    }
}

#[test]
fn dropping_after_the_driver_has_ended_does_nothing() {
    let fake = Fake::new(Config::default());
    let mut device = cuda_with(&fake);
    let (range, binds) = three(&mut device);
    device.map(range.id, &binds).unwrap();
    fake.fail("cuCtxGetCurrent", 1, DEINITIALIZED);
    drop(device);
    assert_eq!((fake.calls("cuMemUnmap"), fake.calls("cuMemRelease")), (0, 0));
}

#[test]
fn a_peer_reaches_what_is_mapped_and_what_will_be() {
    let fake = Fake::new(Config { gpus: 3, ..Config::default() });
    let mut device = cuda_with(&fake);
    let (range, binds) = three(&mut device);
    let (before, after) = binds.split_at(2);
    device.map(range.id, before).unwrap();
    device.set_access(range.id, 0, 2 * TILE).unwrap();
    let gpus = [0, 1, 2].map(|ordinal| Gpu::open(fake.driver(), ordinal).unwrap());
    let who = |tile: u64| {
        gpus.each_ref().map(|gpu| {
            // SAFETY: the fake looks whether the memory may be read.
            unsafe { gpu.enter().unwrap().read(range.address + tile * TILE, &mut [0]) }.is_ok()
        })
    };
    assert_eq!([0, 1, 2].map(who), [[true, false, false], [true, false, false], [false; 3]]);

    fake.fail("cuMemSetAccess", 2, OUT_OF_MEMORY);
    assert!(device.add_peer(1).is_err());
    device.add_peer(1).unwrap();
    let calls = fake.calls("cuMemSetAccess");
    device.add_peer(1).unwrap();
    assert_eq!((fake.calls("cuMemSetAccess"), device.calls().set_access), (calls, calls));
    assert_eq!([0, 1, 2].map(who), [[true, true, false], [true, true, false], [false; 3]]);

    device.map(range.id, after).unwrap();
    device.set_access(range.id, 2 * TILE, TILE).unwrap();
    assert_eq!([0, 1, 2].map(who), [[true, true, false]; 3]);
    assert!(fake.contexts().is_empty());
}

#[test]
fn who_cannot_be_a_peer_is_refused() {
    let fake = Fake::new(Config::default());
    let refusal = |peer| cuda_with(&fake).add_peer(peer).unwrap_err().to_string();
    assert!(refusal(0).contains("leave it out of the peers"), "{}", refusal(0));
    assert!(refusal(2).contains("no GPU 2"), "{}", refusal(2));
}

#[test]
fn a_forked_child_is_told_and_touches_nothing() {
    let fake = Fake::new(Config::default());
    let mut device = cuda_with(&fake);
    let (range, binds) = three(&mut device);
    device.map(range.id, &binds).unwrap();
    // SAFETY: the child calls what this thread alone uses, the allocator, which the C library keeps usable
    // over a fork, and `_exit`; it never returns into the harness.
    match unsafe { libc::fork() } {
        -1 => panic!("{}", std::io::Error::last_os_error()),
        0 => {
            let calls = fake.all_calls();
            let told = |outcome: Result<(), DeviceError>| {
                outcome.is_err_and(|error| error.to_string().contains("start processes with spawn"))
            };
            let all_told = told(device.reserve(TILE).map(drop))
                && told(device.create(TILE).map(drop))
                && told(device.set_access(range.id, 0, TILE))
                && told(device.unmap(range.id, 0, TILE));
            drop(device);
            let good = all_told && fake.all_calls() == calls;
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(if good { 0 } else { 1 }) }
        }
        child => {
            let mut status = -1;
            // SAFETY: `status` is valid for the write; the child is this test's own.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            assert_eq!(status, 0, "the child's status");
            // The parent goes on as if nothing had happened.
            device.set_access(range.id, 0, 3 * TILE).unwrap();
        }
    }
}

/// A GPU whose work is waited for before memory is taken away, as for a runtime whose frees come before its
/// kernels have run.
fn waiting(fake: &Fake) -> Box<dyn Device> {
    let streams = CudaStreams::new(Gpu::open(fake.driver(), 0).unwrap());
    Box::new(Waiting::new(cuda_with(fake), Box::new(move || streams.synchronize_device())))
}

#[test]
fn memory_is_not_taken_away_under_queued_work() {
    for kind in Kind::ALL {
        for waits in [true, false] {
            let fake = Fake::new(Config::default());
            let device = if waits { waiting(&fake) } else { Box::new(cuda_with(&fake)) };
            let mut manager = manager::build(kind, device, &Options::default()).unwrap().manager;
            let block = manager.alloc(3 * TILE, Stream::default()).unwrap();
            fake.hold(ptr::null_mut());
            fake.launch_using(ptr::null_mut(), block.address, block.bytes);
            let freeing = thread::spawn({
                let fake = fake.clone();
                move || {
                    fake.attach();
                    manager.free(block.id).unwrap();
                    manager.trim().unwrap();
                    // Whoever drops it has nothing queued any more.
                    manager
                }
            });
            // That one keeps what it has.
            let unmaps = kind != Kind::Bucketized;
            if waits && unmaps {
                // It is in the wait now, or will be; either way nothing is unmapped before the work has run.
                while fake.calls("cuCtxSynchronize") == 0 {
                    thread::yield_now();
                }
            } else {
                while !freeing.is_finished() {
                    thread::yield_now();
                }
            }
            fake.let_go(ptr::null_mut());
            let manager = freeing.join().unwrap();
            let faulted = !waits && unmaps;
            assert_eq!(fake.unmapped_under_work() > 0, faulted, "{kind}, waiting: {waits}");
            drop(manager);
        }
    }
}
