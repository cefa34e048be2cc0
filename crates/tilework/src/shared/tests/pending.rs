//! Blocks that other streams used, and that come back behind these.

use super::*;

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
