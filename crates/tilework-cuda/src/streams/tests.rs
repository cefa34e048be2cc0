use tilework::manager::Options;
use tilework::shared::{PoolId, Shared};

use super::*;
use crate::device::Cuda;
use crate::fake::{Config, Fake};

const TILE: u64 = 2 << 20;

fn gpu(fake: &Fake) -> Gpu {
    Gpu::open(fake.driver(), 0).unwrap()
}

fn front(fake: &Fake) -> Shared {
    let device = Cuda::new(gpu(fake)).unwrap();
    let options = Options { heap_bytes: 2 * TILE, ..Options::default() };
    Shared::new(Box::new(device), Box::new(CudaStreams::new(gpu(fake))), &options).unwrap()
}

/// A stream of the driver.
fn stream(fake: &Fake) -> Stream {
    let mut stream = ptr::null_mut();
    // SAFETY: `stream` is valid for the write.
    let made =
        gpu(fake).enter().unwrap().call("cuStreamCreate", |f| unsafe { (f.stream_create)(&mut stream, 0) });
    made.unwrap();
    Stream(stream.expose_provenance() as u64)
}

#[test]
fn events_pass_in_their_turn_and_are_used_again() {
    let fake = Fake::new(Config::default());
    let streams = CudaStreams::new(gpu(&fake));
    let (a, b) = (stream(&fake), stream(&fake));
    fake.hold(handle(a));
    fake.launch(handle(a));
    let on_a = streams.record(a).unwrap();
    assert!(!on_a.passed());
    on_a.wait(b).unwrap();
    let on_b = streams.record(b).unwrap();
    assert!(!on_b.passed(), "b waits for a");
    fake.let_go(handle(a));
    on_b.synchronize().unwrap();
    assert!(on_a.passed());
    drop((on_a, on_b));
    for _ in 0..10 {
        streams.record(a).unwrap().synchronize().unwrap();
    }
    assert_eq!(fake.calls("cuEventCreate"), 2);
    drop(streams);
    assert_eq!(fake.calls("cuEventDestroy"), 2);
}

#[test]
fn the_stream_that_is_another_in_each_thread_has_no_memory_but_is_waited_for() {
    let fake = Fake::new(Config::default());
    let front = front(&fake);
    let refused = front.alloc(TILE, PER_THREAD).unwrap_err().to_string();
    assert!(refused.contains("stream 0x2") && refused.contains("cudaStreamPerThread"), "{refused}");
    assert_eq!(front.usage().held, 0);

    let a = stream(&fake);
    let block = front.alloc(TILE, a).unwrap();
    // The fake's driver does not know the name: it would refuse an event on it.
    fake.hold(handle(Stream(0)));
    fake.launch(handle(Stream(0)));
    front.record_stream(block, PER_THREAD).unwrap();
    front.free(block).unwrap();
    front.end_of_execution().unwrap();
    assert_eq!(front.stats().pending, TILE);
    fake.let_go(handle(Stream(0)));
    front.end_of_execution().unwrap();
    assert_eq!(front.stats().pending, 0);
}

#[test]
fn a_captured_stream_is_known() {
    let fake = Fake::new(Config::default());
    let streams = CudaStreams::new(gpu(&fake));
    let a = stream(&fake);
    assert!(!streams.is_capturing(a) && !streams.is_capturing(Stream(0)));
    fake.capture(handle(a), true);
    assert!(streams.is_capturing(a));
    assert!(streams.synchronize_device().is_err());
    fake.capture(handle(a), false);
    streams.synchronize_device().unwrap();
}

#[test]
fn nothing_is_unmapped_under_work_that_uses_it() {
    let fake = Fake::new(Config { total_bytes: 8 * TILE, ..Config::default() });
    let front = front(&fake);
    let (a, b) = (stream(&fake), stream(&fake));
    fake.hold(handle(a));
    let block = front.alloc(6 * TILE, a).unwrap();
    fake.launch_using(handle(a), block, 6 * TILE);
    front.free_on(block, a).unwrap();
    front.end_of_execution().unwrap();
    // There is no other memory: b's work comes behind a's, and the host does not wait.
    let taken = front.alloc(6 * TILE, b).unwrap();
    fake.launch_using(handle(b), taken, 6 * TILE);
    assert!(fake.calls("cuStreamWaitEvent") > 0);
    assert_eq!(fake.calls("cuEventSynchronize"), 0);
    assert_eq!(fake.unmapped_under_work(), 0);
    fake.let_go(handle(a));
    front.free(taken).unwrap();
    front.trim().unwrap();
    assert_eq!((fake.held_bytes(), fake.unmapped_under_work()), (0, 0));
}

#[test]
fn the_driver_is_asked_nothing_that_breaks_a_capture() {
    let fake = Fake::new(Config::default());
    let front = front(&fake);
    let (a, b) = (stream(&fake), stream(&fake));
    let pool = PoolId(1, 0);
    front.begin_pool(pool, Box::new(move |stream| stream == a)).unwrap();
    fake.capture(handle(a), true);
    let recorded = fake.calls("cuEventRecord");
    let blocks: Vec<u64> = (1..5).map(|n| front.alloc(n * TILE, a).unwrap()).collect();
    front.record_stream(blocks[0], a).unwrap();
    for &block in &blocks {
        front.free_on(block, a).unwrap();
    }
    front.end_of_execution().unwrap();
    front.trim().unwrap();
    assert_eq!(fake.calls("cuEventRecord"), recorded);
    fake.capture(handle(a), false);
    front.end_pool(pool).unwrap();
    let held = fake.held_bytes();
    front.trim().unwrap();
    assert_eq!(fake.held_bytes(), held, "the graph keeps what it has");
    fake.hold(handle(b));
    fake.launch_using(handle(b), blocks[3], 4 * TILE);
    front.release_pool(pool).unwrap();
    front.end_of_execution().unwrap();
    assert_eq!(fake.held_bytes(), held);
    fake.let_go(handle(b));
    front.trim().unwrap();
    assert_eq!((fake.held_bytes(), fake.unmapped_under_work()), (0, 0));
}

#[test]
fn running_out_says_what_the_gpu_has_free() {
    let fake = Fake::new(Config { total_bytes: 8 * TILE, ..Config::default() });
    let front = front(&fake);
    front.alloc(6 * TILE, Stream(0)).unwrap();
    let error = front.alloc(4 * TILE, Stream(0)).unwrap_err();
    assert!(
        matches!(error, tilework::Error::OutOfMemory { device_free: Some(free), .. } if free == 2 * TILE),
        "{error}"
    );
}

#[test]
fn a_peer_reaches_blocks_from_before_and_after() {
    let fake = Fake::new(Config::default());
    let front = front(&fake);
    let peer = Gpu::open(fake.driver(), 1).unwrap();
    let reaches = |address: u64| {
        // SAFETY: the fake looks whether the memory may be read.
        unsafe { peer.enter().unwrap().read(address, &mut [0]) }.is_ok()
    };
    let before = front.alloc(TILE, Stream(0)).unwrap();
    assert!(!reaches(before));
    assert!(front.add_peer(2).is_err());
    front.add_peer(1).unwrap();
    let after = front.alloc(8 * TILE, Stream(0)).unwrap();
    assert!(reaches(before) && reaches(after) && reaches(after + 8 * TILE - 1));
}
