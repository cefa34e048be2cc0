//! Contents in ordinary memory, through pinned buffers that are used again and again.
//!
//! *Split*: one thread hands the buffers round, and all threads copy a part of each. *Each*: every thread takes whole
//! chunks in turn, through two buffers of its own.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::{ptr, thread};

use tilework::shared::transfers::Staging;

use super::{MIB, Ordinary, Pages, World, rate, seconds};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Down,
    Up,
}

/// How bytes are copied on the host.
#[derive(Clone, Copy)]
struct Copier {
    name: &'static str,
    /// From, to, how many.
    copy: unsafe fn(*const u8, *mut u8, usize),
}

const PLAIN: Copier = Copier { name: "memcpy", copy: plain };
const STREAMED: Copier = Copier { name: "stores past the cache", copy: streamed };

unsafe fn plain(from: *const u8, to: *mut u8, bytes: usize) {
    // SAFETY: by this function's contract, which is `copy_nonoverlapping`'s.
    unsafe { ptr::copy_nonoverlapping(from, to, bytes) };
}

unsafe fn streamed(from: *const u8, to: *mut u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx") && bytes.is_multiple_of(128) && to.addr().is_multiple_of(32)
    {
        // SAFETY: the processor has AVX; the rest by this function's contract.
        return unsafe { by_avx(from, to, bytes) };
    }
    // SAFETY: by this function's contract.
    unsafe { plain(from, to, bytes) };
}

/// # Safety
/// As `copy_nonoverlapping`; `to` a multiple of 32, `bytes` one of 128.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn by_avx(from: *const u8, to: *mut u8, bytes: usize) {
    use std::arch::x86_64::{_mm_sfence, _mm256_loadu_si256, _mm256_stream_si256};
    for at in (0..bytes).step_by(128) {
        // SAFETY: within both, by this function's contract; the stores are aligned.
        unsafe {
            let [a, b, c, d] =
                [0, 32, 64, 96].map(|more| _mm256_loadu_si256(from.wrapping_add(at + more).cast()));
            _mm256_stream_si256(to.wrapping_add(at).cast(), a);
            _mm256_stream_si256(to.wrapping_add(at + 32).cast(), b);
            _mm256_stream_si256(to.wrapping_add(at + 64).cast(), c);
            _mm256_stream_si256(to.wrapping_add(at + 96).cast(), d);
        }
    }
    _mm_sfence();
}

pub fn run(world: &World) {
    let (_device, address) = world.contents();
    let mut buffers: Vec<_> = (0..32).map(|_| world.staging(32 * MIB)).collect();
    println!("GB/s; each figure a pass over {} GiB, a quarter of it for one thread", world.bytes >> 30);
    let bytes = |threads| if threads == 1 { world.bytes / 4 } else { world.bytes };
    alone(world, &mut buffers);
    for pages in [Pages::Huge, Pages::Small] {
        println!("\ndown to memory never touched, {} pages, memcpy", pages.name());
        for threads in [1, 4, 8] {
            let memory = Ordinary::new(bytes(threads), pages);
            let part = Part { address, memory: &memory, bytes: memory.bytes };
            let (took, ()) = seconds(|| part.split(Way::Down, &mut buffers[..3], 32 * MIB, threads, PLAIN));
            println!("  split 3 x 32 MiB, {threads:>2} threads: {:.2}", rate(part.bytes, took));
        }
        for threads in [4, 8, 16] {
            let memory = Ordinary::new(bytes(threads), pages);
            let part = Part { address, memory: &memory, bytes: memory.bytes };
            let (took, ()) = seconds(|| part.each(Way::Down, &mut buffers[..2 * threads], 8 * MIB, PLAIN));
            println!("  each thread 2 x 8 MiB, {threads:>2} threads: {:.2}", rate(part.bytes, took));
        }

        let memory = Ordinary::new(world.bytes, pages);
        memory.touch(8);
        for copier in [PLAIN, STREAMED] {
            println!("\nmemory touched before, {} pages, {}: down, up", pages.name(), copier.name);
            for threads in [1, 4, 8] {
                let part = Part { address, memory: &memory, bytes: bytes(threads) };
                let rates = part.passes(|way| part.split(way, &mut buffers[..3], 32 * MIB, threads, copier));
                println!("  split 3 x 32 MiB, {threads:>2} threads: {rates}");
            }
            for chunk in [2, 8, 32].map(|mib| mib * MIB) {
                for threads in [4, 8, 16] {
                    let part = Part { address, memory: &memory, bytes: bytes(threads) };
                    let rates = part.passes(|way| part.each(way, &mut buffers[..2 * threads], chunk, copier));
                    println!("  each thread 2 x {} MiB, {threads:>2} threads: {rates}", chunk / MIB);
                }
            }
        }
    }
}

/// What the host copies between its own memory and buffers, without a GPU: more than that no ring can have.
fn alone(world: &World, buffers: &mut [Box<dyn Staging>]) {
    let memory = &Ordinary::new(world.bytes, Pages::Huge);
    memory.touch(8);
    println!("\nthe host alone, 2 x 8 MiB a thread, 2 MiB pages: down, up");
    for copier in [PLAIN, STREAMED] {
        for threads in [4, 8, 16] {
            let mut pass = |way: Way| {
                let part = world.bytes / threads;
                let (took, ()) = seconds(|| {
                    thread::scope(|scope| {
                        for (thread, pair) in buffers[..2 * threads].chunks_mut(2).enumerate() {
                            scope.spawn(move || {
                                for at in (thread * part..(thread + 1) * part).step_by(8 * MIB) {
                                    let buffer = &mut pair[at / (8 * MIB) % 2];
                                    let staged = buffer.contents().expect("nothing is queued").as_mut_ptr();
                                    let ours = memory.at(at);
                                    let (from, to) =
                                        if way == Way::Down { (staged, ours) } else { (ours, staged) };
                                    // SAFETY: a chunk in the buffer, and one of the memory that is this thread's.
                                    unsafe { (copier.copy)(from, to, 8 * MIB) };
                                }
                            });
                        }
                    });
                });
                rate(world.bytes, took)
            };
            println!("  {}, {threads:>2} threads: {:.2}, {:.2}", copier.name, pass(Way::Down), pass(Way::Up));
        }
    }
}

/// What a pass carries: the first bytes of the contents and of the memory.
struct Part<'a> {
    address: u64,
    memory: &'a Ordinary,
    bytes: usize,
}

impl Part<'_> {
    /// A pass each way; the bytes are checked.
    fn passes(&self, mut pass: impl FnMut(Way)) -> String {
        self.stamp(1);
        let up = seconds(|| pass(Way::Up)).0;
        self.stamp(0);
        let down = seconds(|| pass(Way::Down)).0;
        self.check(1);
        format!("{:.2}, {:.2}", rate(self.bytes, down), rate(self.bytes, up))
    }

    fn words(&self, salt: u64) -> impl Iterator<Item = (*mut u64, u64)> {
        (0..self.bytes).step_by(MIB).map(move |at| (self.memory.at(at).cast(), (at as u64) << 8 ^ salt))
    }

    fn stamp(&self, salt: u64) {
        for (at, word) in self.words(salt) {
            // SAFETY: within the memory, aligned, and no other thread is there.
            unsafe { at.write(word) };
        }
    }

    fn check(&self, salt: u64) {
        for (at, word) in self.words(salt) {
            // SAFETY: as above.
            assert_eq!(unsafe { at.read() }, word, "wrong bytes");
        }
    }

    fn split(&self, way: Way, ring: &mut [Box<dyn Staging>], chunk: usize, threads: usize, copier: Copier) {
        let job = &Job::default();
        let chunks = self.bytes / chunk;
        let device = |nth: usize| self.address + (nth * chunk) as u64;
        let n = ring.len();
        thread::scope(|scope| {
            for thread in 0..threads {
                scope.spawn(move || job.work(thread, threads, chunk, copier));
            }
            if way == Way::Down {
                for (ahead, buffer) in ring.iter_mut().enumerate() {
                    buffer.download(0, device(ahead), chunk).expect("a copy");
                }
            }
            for nth in 0..chunks {
                let buffer = &mut ring[nth % n];
                let staged = buffer.contents().expect("a copy").as_mut_ptr();
                let ours = self.memory.at(nth * chunk);
                match way {
                    Way::Down => {
                        job.copy(staged, ours, threads);
                        if nth + n < chunks {
                            buffer.download(0, device(nth + n), chunk).expect("a copy");
                        }
                    }
                    Way::Up => {
                        job.copy(ours, staged, threads);
                        buffer.upload(0, device(nth), chunk).expect("a copy");
                    }
                }
            }
            job.turn.store(END, Ordering::Release);
            for buffer in ring {
                buffer.contents().expect("a copy");
            }
        });
    }

    fn each(&self, way: Way, buffers: &mut [Box<dyn Staging>], chunk: usize, copier: Copier) {
        let next = &AtomicUsize::new(0);
        let take = || Some(next.fetch_add(chunk, Ordering::Relaxed)).filter(|&at| at < self.bytes);
        thread::scope(|scope| {
            for pair in buffers.chunks_mut(2) {
                scope.spawn(move || match way {
                    Way::Down => {
                        let mut queued: [Option<usize>; 2] = [None; 2];
                        for turn in 0.. {
                            let (buffer, place) = (&mut pair[turn % 2], &mut queued[turn % 2]);
                            if let Some(at) = place.take() {
                                let staged = buffer.contents().expect("a copy").as_ptr();
                                // SAFETY: a chunk in the buffer, and one of the memory that is this thread's.
                                unsafe { (copier.copy)(staged, self.memory.at(at), chunk) };
                            }
                            if let Some(at) = take() {
                                buffer.download(0, self.address + at as u64, chunk).expect("a copy");
                                *place = Some(at);
                            } else if queued == [None; 2] {
                                return;
                            }
                        }
                    }
                    Way::Up => {
                        for turn in 0.. {
                            let Some(at) = take() else { break };
                            let buffer = &mut pair[turn % 2];
                            let staged = buffer.contents().expect("a copy").as_mut_ptr();
                            // SAFETY: as above.
                            unsafe { (copier.copy)(self.memory.at(at), staged, chunk) };
                            buffer.upload(0, self.address + at as u64, chunk).expect("a copy");
                        }
                        for buffer in pair {
                            buffer.contents().expect("a copy");
                        }
                    }
                });
            }
        });
    }
}

/// A copy that several threads share.
#[derive(Default)]
struct Job {
    from: AtomicPtr<u8>,
    to: AtomicPtr<u8>,
    /// Which copy this is; the last is none.
    turn: AtomicUsize,
    /// How many parts were copied, of all turns.
    done: AtomicUsize,
}

const END: usize = usize::MAX;

impl Job {
    fn work(&self, thread: usize, threads: usize, chunk: usize, copier: Copier) {
        let part = chunk / threads;
        let mut turn = 0;
        loop {
            while self.turn.load(Ordering::Acquire) == turn {
                spin_loop();
            }
            turn = self.turn.load(Ordering::Acquire);
            if turn == END {
                return;
            }
            let [from, to] = [&self.from, &self.to].map(|place| place.load(Ordering::Relaxed));
            // SAFETY: whoever has made it a turn has both places to itself, with a chunk each; each thread has
            // its own part of them.
            unsafe {
                (copier.copy)(from.wrapping_add(thread * part), to.wrapping_add(thread * part), part);
            }
            self.done.fetch_add(1, Ordering::Release);
        }
    }

    fn copy(&self, from: *mut u8, to: *mut u8, threads: usize) {
        self.from.store(from, Ordering::Relaxed);
        self.to.store(to, Ordering::Relaxed);
        let turn = self.turn.fetch_add(1, Ordering::Release) + 1;
        while self.done.load(Ordering::Acquire) < turn * threads {
            spin_loop();
        }
    }
}
