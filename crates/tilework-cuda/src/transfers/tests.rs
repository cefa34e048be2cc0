use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tilework::device::{Bind, Device};
use tilework::manager::{Options, Stream};
use tilework::shared::streams::Streams as _;
use tilework::shared::{Hosting, Shared};

use super::*;
use crate::device::Cuda;
use crate::driver::{DEINITIALIZED, HOST_MEMORY_ALREADY_REGISTERED, INVALID_VALUE, OUT_OF_MEMORY};
use crate::fake::{Config, Fake};
use crate::streams::CudaStreams;

const TILE: u64 = 2 << 20;
const KIB: usize = 1 << 10;

/// A GPU with some tiles of memory at `address`, and its streams.
struct World {
    fake: Fake,
    streams: CudaStreams,
    device: Cuda,
    address: u64,
}

impl World {
    fn new() -> World {
        let fake = Fake::new(Config::default());
        let gpu = || Gpu::open(fake.driver(), 0).unwrap();
        let (streams, mut device) = (CudaStreams::new(gpu()), Cuda::new(gpu()).unwrap());
        let range = device.reserve(4 * TILE).unwrap();
        for at in 0..2 {
            let heap = device.create(TILE).unwrap();
            device
                .map(range.id, &[Bind { range_offset: at * TILE, heap, heap_offset: 0, bytes: TILE }])
                .unwrap();
        }
        device.set_access(range.id, 0, 2 * TILE).unwrap();
        World { fake, streams, device, address: range.address }
    }

    fn staging(&self, bytes: usize) -> Result<Box<dyn Staging>, DeviceError> {
        self.streams.transfers().unwrap().staging(bytes)
    }

    fn buffer(&self) -> Box<dyn Staging> {
        self.staging(64 * KIB).unwrap()
    }

    /// The stream of the copies that go one way. The fake names them in the order in which they are made.
    fn stream(&self, way: Way) -> driver::Stream {
        self.streams.transfers.link.stream(way).unwrap()
    }

    fn write(&self, stamp: u8) {
        self.device.write(self.address, &[stamp; 16]).unwrap();
    }

    fn read(&self) -> u8 {
        let mut found = [0; 16];
        self.device.read(self.address, &mut found).unwrap();
        assert_eq!(found, [found[0]; 16]);
        found[0]
    }
}

#[test]
fn contents_travel_both_ways() {
    let world = World::new();
    let data: Vec<u8> = (0..2 * TILE).map(|at| (at % 251) as u8).collect();
    world.device.write(world.address, &data).unwrap();
    let mut buffer = world.staging(2 * TILE as usize + 100).unwrap();
    assert_eq!(buffer.bytes(), 2 * TILE as usize + 100);
    assert!(buffer.contents().unwrap().iter().all(|&byte| byte == 0), "zeroed");
    // Over both heaps at once, and apart.
    buffer.download(100, world.address, data.len()).unwrap();
    assert!(buffer.contents().unwrap()[100..] == data);
    buffer.contents().unwrap().reverse();
    buffer.upload(0, world.address + 8, 100).unwrap();
    buffer.download(1000, world.address, 108).unwrap();
    let expected: Vec<u8> = data[..8].iter().chain(data[data.len() - 100..].iter().rev()).copied().collect();
    assert_eq!(buffer.contents().unwrap()[1000..1108], expected);
}

#[test]
fn a_group_comes_back_with_its_contents_though_some_lay_on_the_host() {
    for (tells_host_addresses, pinned_bytes) in [(false, 0), (true, 0), (true, 1 << 30)] {
        let fake = Fake::new(Config { tells_host_addresses, ..Config::default() });
        let gpu = || Gpu::open(fake.driver(), 0).unwrap();
        let (device, streams) = (Cuda::new(gpu()).unwrap(), CudaStreams::new(gpu()));
        let options = Options { heap_bytes: 2 * TILE, ..Options::default() };
        let front = Shared::new(Box::new(device), Box::new(streams), &options).unwrap();
        front.set_limit(Some(2 * TILE)).unwrap();
        front.set_spill(true).unwrap();
        front.set_hosting(Hosting { pinned_bytes, directory: None });
        let group = front.group("unet").unwrap();
        front.unpin(group).unwrap();
        // The first block fits, the second does not.
        let blocks = [1, 2].map(|seed| {
            let address = front.alloc_for(group, 2 * TILE, Stream(0)).unwrap();
            let contents: Vec<u8> = (0..2 * TILE).map(|at| (at * seed % 251) as u8).collect();
            front.write(address, &contents).unwrap();
            (address, contents)
        });
        assert_eq!((front.stats().spilled, fake.host_bytes()), (2 * TILE, 2 * TILE));
        assert_eq!(front.evict(group), Ok(4 * TILE), "an address on the host: {tells_host_addresses}");
        assert_eq!(front.stats().kept, 4 * TILE);
        front.trim().unwrap();
        assert_eq!((front.stats().spilled, fake.host_bytes()), (0, 0));
        assert_eq!(front.restore(group, Some(Stream(0))), Ok(4 * TILE));
        assert_eq!(fake.host_bytes(), 2 * TILE, "it does not fit now either");
        for (address, contents) in blocks {
            let mut found = vec![0; contents.len()];
            front.read(address, &mut found).unwrap();
            assert!(found == contents, "what was at {address:#x}");
            front.free(address).unwrap();
        }
        front.remove_group(group).unwrap();
        front.trim().unwrap();
        assert_eq!((fake.host_bytes(), fake.unmapped_under_work()), (0, 0));
    }
}

#[test]
fn copies_of_one_buffer_keep_their_order_though_they_change_direction() {
    let world = World::new();
    let (down, up) = (world.stream(Way::Down), world.stream(Way::Up));
    let mut buffer = world.buffer();
    buffer.contents().unwrap()[..16].fill(1);
    world.fake.hold(up);
    buffer.upload(0, world.address, 16).unwrap();
    world.write(2);
    // The latter would overtake the former: nothing holds its own stream back.
    buffer.download(16, world.address, 16).unwrap();
    let place = buffer.mark().unwrap();
    assert!(!place.passed());
    world.fake.let_go(up);
    assert!(place.passed());
    assert_eq!(buffer.contents().unwrap()[16..32], [1; 16]);

    world.fake.hold(down);
    buffer.download(0, world.address, 16).unwrap();
    buffer.upload(32, world.address, 16).unwrap();
    assert_eq!(world.read(), 1, "the upload waits");
    world.fake.let_go(down);
    assert_eq!(world.read(), 0);
    assert_eq!(buffer.contents().unwrap()[..16], [1; 16]);
}

#[test]
fn a_stream_waits_only_where_a_buffer_changes_direction() {
    let world = World::new();
    let mut buffer = world.buffer();
    for _ in 0..3 {
        buffer.download(0, world.address, 16).unwrap();
    }
    assert_eq!(world.fake.calls("cuStreamWaitEvent"), 0);
    buffer.upload(0, world.address, 16).unwrap();
    assert_eq!(world.fake.calls("cuStreamWaitEvent"), 1);
    buffer.contents().unwrap();
    buffer.download(0, world.address, 16).unwrap();
    assert_eq!(world.fake.calls("cuStreamWaitEvent"), 1, "all were made already");
}

#[test]
fn buffers_do_not_wait_for_each_other() {
    let world = World::new();
    let (mut one, mut other) = (world.buffer(), world.buffer());
    world.write(7);
    one.download(0, world.address, 16).unwrap();
    // What is queued behind it is not waited for, even this way.
    world.fake.hold(world.stream(Way::Down));
    other.download(0, world.address, 16).unwrap();
    assert_eq!(one.contents().unwrap()[..16], [7; 16]);
    // Nor does the other way wait.
    one.contents().unwrap().fill(9);
    one.upload(0, world.address + TILE, 16).unwrap();
    one.contents().unwrap();
    assert!(!other.mark().unwrap().passed());
    world.fake.let_go(world.stream(Way::Down));
    assert_eq!(other.contents().unwrap()[..16], [7; 16]);
}

#[test]
fn other_streams_wait_for_the_mark() {
    let world = World::new();
    let mut buffer = world.buffer();
    assert!(buffer.mark().unwrap().passed(), "nothing was queued");
    let theirs = tilework::manager::Stream(0);
    let up = world.stream(Way::Up);
    world.fake.hold(up);
    buffer.upload(0, world.address, 16).unwrap();
    buffer.mark().unwrap().wait(theirs).unwrap();
    let behind = world.streams.record(theirs).unwrap();
    assert!(!behind.passed());
    world.fake.let_go(up);
    assert!(behind.passed());
}

#[test]
fn what_cannot_be_copied_is_refused_and_nothing_is_queued() {
    let world = World::new();
    let mut buffer = world.buffer();
    let end = 64 * KIB;
    for (at, bytes) in [(0, end + 1), (end, 1), (1, end), (usize::MAX, 2)] {
        for refused in [buffer.download(at, world.address, bytes), buffer.upload(at, world.address, bytes)] {
            assert!(matches!(refused, Err(DeviceError::Violation { .. })), "{refused:?}");
        }
    }
    // Only reserved; running out of what is mapped; nowhere.
    for address in [world.address + 2 * TILE, world.address + 2 * TILE - 8, 4096] {
        for refused in [buffer.download(0, address, 16), buffer.upload(0, address, 16)] {
            assert!(matches!(refused, Err(DeviceError::Failed { .. })), "{refused:?}");
        }
    }
    // Memory of the host, which the driver would take: nobody's contents are to be overwritten by a wrong address.
    let mut other = world.buffer();
    let theirs = other.contents().unwrap().as_ptr().addr() as u64;
    for address in [theirs, theirs + TILE - 1] {
        for refused in [buffer.download(0, address, 1), buffer.upload(0, address, 1)] {
            assert!(refused.is_err_and(|error| error.to_string().contains("memory of the host")));
        }
    }
    assert!(buffer.mark().unwrap().passed());
    assert_eq!(world.fake.calls("cuEventRecord"), 0);
    // Nothing is nothing, wherever.
    buffer.download(end, 0, 0).unwrap();
    assert!(matches!(world.staging(usize::MAX), Err(DeviceError::Failed { .. })));
}

#[test]
fn dropping_a_buffer_waits_for_its_copies() {
    let world = World::new();
    for way in [Way::Down, Way::Up] {
        let stream = world.stream(way);
        world.fake.hold(stream);
        let mut buffer = world.buffer();
        match way {
            Way::Down => buffer.download(0, world.address, 16).unwrap(),
            Way::Up => buffer.upload(0, world.address, 16).unwrap(),
        }
        let waits = world.fake.calls("cuEventSynchronize");
        let (told, gone) = mpsc::channel();
        let fake = world.fake.clone();
        let dropping = thread::spawn(move || {
            fake.attach();
            drop(buffer);
            told.send(()).unwrap();
        });
        while world.fake.calls("cuEventSynchronize") == waits {
            thread::yield_now();
        }
        assert!(gone.recv_timeout(Duration::from_millis(20)).is_err(), "dropped before it was copied");
        assert_ne!(world.fake.registered_bytes(), 0);
        world.fake.let_go(stream);
        dropping.join().unwrap();
        assert_eq!((world.fake.registered_bytes(), world.fake.unmapped_under_work()), (0, 0));
    }
}

#[test]
fn streams_are_made_when_needed_and_everything_goes_back() {
    let world = World::new();
    let fake = world.fake.clone();
    let mut buffer = world.buffer();
    assert_eq!(fake.calls("cuStreamCreate"), 0);
    for _ in 0..2 {
        buffer.download(0, world.address, 16).unwrap();
    }
    assert_eq!(fake.calls("cuStreamCreate"), 1);
    buffer.upload(0, world.address, 16).unwrap();
    assert_eq!(fake.calls("cuStreamCreate"), 2);
    // A buffer may outlive what made it.
    drop(world);
    assert_eq!(fake.calls("cuStreamDestroy"), 0);
    buffer.contents().unwrap();
    drop(buffer);
    let back = ["cuStreamDestroy", "cuMemHostUnregister"].map(|function| fake.calls(function));
    assert_eq!(back, [2, 1]);
    assert_eq!(fake.calls("cuEventDestroy"), fake.calls("cuEventCreate"));
    assert_eq!((fake.registered_bytes(), fake.retained(0), fake.contexts()), (0, 0, vec![]));
}

#[test]
fn copies_are_made_while_a_stream_is_captured() {
    let world = World::new();
    world.fake.capture(ptr::without_provenance_mut(7), true);
    world.write(5);
    let mut buffer = world.buffer();
    buffer.download(0, world.address, 16).unwrap();
    assert_eq!(buffer.contents().unwrap()[..16], [5; 16]);
}

#[test]
fn every_failing_call_is_an_error_or_made_up_for() {
    // Whether somebody is told; the rest is made up for.
    for (function, told) in [
        ("cuMemHostRegister", true),
        ("cuStreamCreate", true),
        ("cuMemcpyDtoHAsync", true),
        ("cuMemcpyHtoDAsync", true),
        ("cuStreamWaitEvent", true),
        ("cuEventSynchronize", true),
        ("cuEventCreate", false),
        ("cuEventRecord", false),
    ] {
        let world = World::new();
        world.write(3);
        world.fake.fail(function, 1, OUT_OF_MEMORY);
        let mut failed = 0;
        let mut error = |error: DeviceError| {
            assert!(error.to_string().contains(function), "{error}");
            failed += 1;
        };
        let mut buffer = world.buffer_or(&mut error);
        let mut twice = |call: &mut dyn FnMut() -> Result<(), DeviceError>| {
            if let Err(refused) = call() {
                error(refused);
                call().unwrap();
            }
        };
        twice(&mut || buffer.download(0, world.address, 16));
        twice(&mut || buffer.upload(0, world.address + TILE, 16));
        twice(&mut || buffer.download(16, world.address + TILE, 16));
        twice(&mut || buffer.contents().map(drop));
        assert_eq!(failed > 0, told, "{function}");
        assert_eq!(buffer.contents().unwrap()[..32], [3; 32], "{function}");
        let fake = world.fake.clone();
        drop((buffer, world));
        assert_eq!(
            (fake.registered_bytes(), fake.retained(0), fake.contexts()),
            (0, 0, vec![]),
            "{function}"
        );
    }
}

impl World {
    /// A buffer, at the second try if the first fails.
    fn buffer_or(&self, told: &mut impl FnMut(DeviceError)) -> Box<dyn Staging> {
        self.staging(64 * KIB).unwrap_or_else(|error| {
            told(error);
            self.buffer()
        })
    }
}

#[test]
fn a_mark_that_fails_is_an_error_and_the_copy_is_waited_for_all_the_same() {
    let world = World::new();
    let mut buffer = world.buffer();
    for call in [1, 2] {
        world.fake.fail("cuEventRecord", call, INVALID_VALUE);
    }
    buffer.download(0, world.address, 16).unwrap();
    assert!(buffer.mark().is_err());
    assert!(buffer.mark().unwrap().passed());
}

#[test]
fn memory_that_the_driver_may_still_use_is_never_freed() {
    for (function, code) in [
        ("cuEventSynchronize", INVALID_VALUE),
        ("cuMemHostUnregister", INVALID_VALUE),
        // The process ends: buffers in statics are dropped after the driver is gone.
        ("cuCtxGetCurrent", DEINITIALIZED),
    ] {
        let world = World::new();
        let mut buffer = world.buffer();
        buffer.download(0, world.address, 16).unwrap();
        world.fake.fail(function, 1, code);
        drop(buffer);
        assert_ne!(world.fake.registered_bytes(), 0, "{function}");
        // The same memory would be refused, were it given out again.
        let others: Vec<_> = (0..4).map(|_| world.staging(64 * KIB).unwrap()).collect();
        assert_eq!(others.len(), 4, "not {HOST_MEMORY_ALREADY_REGISTERED}");
    }
}

#[test]
fn a_forked_child_is_told_and_touches_nothing() {
    let world = World::new();
    world.write(4);
    let mut buffer = world.buffer();
    buffer.download(0, world.address, 16).unwrap();
    // SAFETY: the child calls what this thread alone uses, the allocator, which the C library keeps usable
    // over a fork, and `_exit`; it never returns into the harness.
    match unsafe { libc::fork() } {
        -1 => panic!("{}", std::io::Error::last_os_error()),
        0 => {
            let calls = world.fake.all_calls();
            let told = |outcome: Result<(), DeviceError>| {
                outcome.is_err_and(|error| error.to_string().contains("start processes with spawn"))
            };
            let all_told = told(world.staging(KIB).map(drop))
                && told(buffer.download(0, world.address, 16))
                && told(buffer.contents().map(drop));
            let fake = world.fake.clone();
            drop((buffer, world));
            let good = all_told && fake.all_calls() == calls;
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(if good { 0 } else { 1 }) }
        }
        child => {
            let mut status = -1;
            // SAFETY: `status` is valid for the write; the child is this test's own.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            assert_eq!(status, 0, "the child's status");
            assert_eq!(buffer.contents().unwrap()[..16], [4; 16]);
        }
    }
}
