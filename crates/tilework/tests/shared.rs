//! The shared front under many threads, on memory of the host, and in a child process.
#![cfg(target_os = "linux")]

use std::collections::VecDeque;
use std::ptr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use tilework::Error;
use tilework::device;
use tilework::manager::{Options, Stream};
use tilework::shared::streams::InOrder;
use tilework::shared::{PoolId, Shared};

const MIB: u64 = 1 << 20;

fn front(limit: Option<u64>) -> Shared {
    let device = device::open("host").unwrap();
    let options = Options { heap_bytes: 4 * MIB, heap_age: 1, mapping_age: 1, ..Options::default() };
    let front = Shared::new(device, Box::new(InOrder), &options).unwrap();
    front.set_limit(limit).unwrap();
    front
}

/// A block with contents of its own at both ends and in the middle.
#[derive(Clone, Copy)]
struct Filled {
    address: u64,
    bytes: u64,
    mark: u64,
}

impl Filled {
    fn places(&self) -> [u64; 3] {
        let last = self.bytes - 8;
        [0, last / 2 / 8 * 8, last / 8 * 8]
    }

    fn fill(address: u64, bytes: u64, mark: u64) -> Filled {
        let filled = Filled { address, bytes, mark };
        for at in filled.places() {
            // SAFETY: eight bytes within a live block of host memory, aligned as blocks are.
            unsafe { ptr::with_exposed_provenance_mut::<u64>((address + at) as usize).write(mark ^ at) };
        }
        filled
    }

    fn check(&self) {
        for at in self.places() {
            // SAFETY: as in `fill`.
            let seen = unsafe { ptr::with_exposed_provenance::<u64>((self.address + at) as usize).read() };
            assert_eq!(seen, self.mark ^ at, "{} bytes at {:#x}, offset {at}", self.bytes, self.address);
        }
    }
}

/// Four threads on two streams each, sharing them in pairs, pass blocks to each other to free, while one more
/// ends executions, trims, changes the limit and opens pools.
#[test]
fn threads_and_streams_never_share_memory() {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 3_000;
    let front = &front(Some(192 * MIB));
    let (send, receive) = std::sync::mpsc::sync_channel::<Filled>(64);
    let receive = &std::sync::Mutex::new(receive);
    let done = &AtomicBool::new(false);
    let begin = &Barrier::new(THREADS as usize);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let send = send.clone();
                scope.spawn(move || {
                    begin.wait();
                    let mut random = xorshift(thread + 1);
                    let mut live = VecDeque::new();
                    for round in 0..ROUNDS {
                        let stream = Stream(thread / 2 * 2 + random() % 2);
                        let bytes = match random() % 8 {
                            0..5 => 8 + random() % 4096,
                            5 | 6 => 8 + random() % MIB,
                            _ => 8 + random() % (12 * MIB),
                        };
                        match front.alloc(bytes, stream) {
                            Ok(address) => live.push_back(Filled::fill(address, bytes, thread << 32 | round)),
                            Err(Error::OutOfMemory { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                        if live.len() > 12 || random().is_multiple_of(3) {
                            let Some(block): Option<Filled> = live.pop_front() else { continue };
                            block.check();
                            match random() % 4 {
                                0 => send.send(block).unwrap(),
                                1 => {
                                    front.record_stream(block.address, Stream(random() % 4)).unwrap();
                                    front.free(block.address).unwrap();
                                }
                                _ => front.free_on(block.address, stream).unwrap(),
                            }
                        }
                        if let Ok(block) = receive.lock().unwrap().try_recv() {
                            block.check();
                            assert_eq!(front.block_of(block.address), Some((block.address, block.bytes)));
                            front.free(block.address).unwrap();
                        }
                    }
                    for block in live {
                        block.check();
                        front.free(block.address).unwrap();
                    }
                })
            })
            .collect();
        scope.spawn(move || {
            let mut random = xorshift(99);
            for round in 0.. {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                match random() % 6 {
                    0 => drop(front.trim().unwrap()),
                    1 => front.set_limit(Some((128 + random() % 128) * MIB)).unwrap(),
                    2 => {
                        let pool = PoolId(round, 0);
                        let of = Stream(random() % 4);
                        front.begin_pool(pool, Box::new(move |stream| stream == of)).unwrap();
                        std::thread::yield_now();
                        front.end_pool(pool).unwrap();
                        front.release_pool(pool).unwrap();
                    }
                    3 => assert!(front.stats().usage.held <= 1 << 40),
                    _ => front.end_of_execution().unwrap(),
                }
                std::thread::sleep(std::time::Duration::from_micros(50));
            }
        });
        for worker in workers {
            // Told before a panic is passed on, so that the other thread ends too.
            let outcome = worker.join();
            done.store(outcome.is_err(), Ordering::Relaxed);
            outcome.unwrap();
        }
        done.store(true, Ordering::Relaxed);
        while let Ok(block) = receive.lock().unwrap().try_recv() {
            block.check();
            front.free(block.address).unwrap();
        }
    });
    front.check_invariants();
    let stats = front.stats();
    assert_eq!((stats.usage.live, stats.blocks, stats.allocations), (0, 0, stats.frees));
    front.trim().unwrap();
    assert_eq!(front.usage().held, 0, "{:?}", front.stats());
}

/// While there is one lane its lock orders the count of live bytes, and a second one is made beside it.
#[test]
fn every_byte_is_counted_while_lanes_are_made() {
    const THREADS: u64 = 4;
    for _ in 0..200 {
        let front = front(None);
        let at_once = Barrier::new(THREADS as usize);
        let busy = |stream| {
            at_once.wait();
            for _ in 0..100 {
                let blocks = [(); 3].map(|()| front.alloc(512, Stream(stream)).unwrap());
                blocks.into_iter().for_each(|block| front.free(block).unwrap());
            }
        };
        std::thread::scope(|scope| {
            for stream in 0..THREADS {
                scope.spawn({
                    let busy = &busy;
                    move || busy(stream)
                });
            }
        });
        front.check_invariants();
        let usage = front.usage();
        assert_eq!(usage.live, 0);
        assert!((3 * 512..=THREADS * 3 * 512).contains(&usage.peak_live), "{usage:?}");
    }
}

#[test]
fn in_a_child_requests_fail_and_the_rest_does_nothing() {
    let front = &front(None);
    let block = front.alloc(MIB, Stream(1)).unwrap();
    let stop = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Somebody is in every lock at one time or another while the process forks.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let address = front.alloc(3 * MIB, Stream(1)).unwrap();
                front.free(address).unwrap();
                front.trim().unwrap();
            }
        });
        for _ in 0..50 {
            // SAFETY: the child does what is allowed there: it reads its own memory, and ends.
            let child = unsafe { libc::fork() };
            assert!(child >= 0);
            if child == 0 {
                let refused = matches!(front.alloc(512, Stream(1)), Err(Error::Forked))
                    && front.free(block) == Ok(())
                    && front.free_on(block, Stream(1)) == Ok(())
                    && front.record_stream(block, Stream(2)) == Ok(())
                    && front.trim() == Ok(0)
                    && front.end_of_execution() == Ok(())
                    && front.release_pool(PoolId(0, 0)) == Ok(())
                    && front.forget_stream(Stream(1)) == Ok(())
                    && front.stop_recording() == Ok(())
                    && front.block_of(block).is_none()
                    && front.usage().live >= MIB;
                // SAFETY: ends the process without running what belongs to the parent.
                unsafe { libc::_exit(i32::from(!refused)) };
            }
            let mut status = 0;
            // SAFETY: the child made above, waited for once.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            assert_eq!(status, 0, "the child found a difference, or hung in a lock");
        }
        stop.store(true, Ordering::Relaxed);
    });
    front.free(block).unwrap();
    assert!(Error::Forked.to_string().contains("spawn"));
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
