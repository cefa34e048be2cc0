//! A program on a device that a manager has: it records copies and fills over blocks, submits them behind
//! `View::ready` and tells of them by `View::used_by`, and never waits before its end.

use std::collections::VecDeque;

use ash::vk;
use tilework::device::Device;
use tilework::manager::{Block, Kind, Manager, Options, Stream, build};

use super::{rig::Rig, vulkan};
use crate::{View, Vulkan};

/// What the program looks at of a block: three words of it.
const WORDS: u64 = 3;

/// A timeline semaphore.
pub(super) fn timeline(device: &ash::Device) -> vk::Semaphore {
    let mut kind = vk::SemaphoreTypeCreateInfo::default().semaphore_type(vk::SemaphoreType::TIMELINE);
    let info = vk::SemaphoreCreateInfo::default().push_next(&mut kind);
    // SAFETY: a device of the rig's, which has timeline semaphores.
    unsafe { device.create_semaphore(&info, None) }.unwrap()
}

/// What a timeline semaphore has.
pub(super) fn value_of(view: &View, semaphore: vk::Semaphore) -> u64 {
    // SAFETY: a timeline semaphore of the device's that is alive.
    unsafe { view.device().get_semaphore_counter_value(semaphore) }.unwrap()
}

/// Gives a timeline semaphore a value, from the host.
fn signal(view: &View, semaphore: vk::Semaphore, value: u64) {
    let info = vk::SemaphoreSignalInfo::default().semaphore(semaphore).value(value);
    // SAFETY: as above; the value is greater than any it has or is to get.
    unsafe { view.device().signal_semaphore(&info) }.unwrap();
}

/// Gives a semaphore its value at the end, also of a test that fails: a device waits for the uses it was told of.
struct Opened<'a>(&'a View, vk::Semaphore, u64);

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        if value_of(self.0, self.1) < self.2 {
            signal(self.0, self.1, self.2);
        }
    }
}

pub(super) fn wait(view: &View, semaphore: vk::Semaphore, value: u64) {
    let (semaphores, values) = ([semaphore], [value]);
    let info = vk::SemaphoreWaitInfo::default().semaphores(&semaphores).values(&values);
    // SAFETY: as above.
    unsafe { view.device().wait_semaphores(&info, 10_000_000_000) }.unwrap();
}

/// A buffer of the program's own, which the host reads.
pub(super) struct Plain {
    pub buffer: vk::Buffer,
    memory: vk::DeviceMemory,
    bytes: u64,
}

impl Plain {
    pub fn new(view: &View, bytes: u64) -> Plain {
        let device = view.device();
        let usage = vk::BufferUsageFlags::TRANSFER_SRC | vk::BufferUsageFlags::TRANSFER_DST;
        let info = vk::BufferCreateInfo::default().size(bytes).usage(usage);
        // SAFETY: all of it is alive, and asked for as the driver told.
        unsafe {
            let buffer = device.create_buffer(&info, None).unwrap();
            let wants = device.get_buffer_memory_requirements(buffer);
            let types = view.instance().get_physical_device_memory_properties(view.physical_device());
            let seen = vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT;
            let memory_type = (0..types.memory_type_count)
                .filter(|index| wants.memory_type_bits & (1 << index) != 0)
                .find(|&index| types.memory_types[index as usize].property_flags.contains(seen))
                .unwrap();
            let info =
                vk::MemoryAllocateInfo::default().allocation_size(wants.size).memory_type_index(memory_type);
            let memory = device.allocate_memory(&info, None).unwrap();
            device.bind_buffer_memory(buffer, memory, 0).unwrap();
            Plain { buffer, memory, bytes }
        }
    }

    /// Shows its words to `look`.
    fn mapped<T>(&self, view: &View, look: impl FnOnce(&mut [u32]) -> T) -> T {
        let flags = vk::MemoryMapFlags::empty();
        // SAFETY: seen by the host, not mapped, as long as this; whoever uses it has finished.
        unsafe {
            let mapped = view.device().map_memory(self.memory, 0, vk::WHOLE_SIZE, flags).unwrap();
            let seen = look(std::slice::from_raw_parts_mut(mapped.cast(), self.bytes as usize / 4));
            view.device().unmap_memory(self.memory);
            seen
        }
    }

    pub fn words(&self, view: &View) -> Vec<u32> {
        self.mapped(view, |words| words.to_vec())
    }

    pub fn set_words(&self, view: &View, words: &[u32]) {
        self.mapped(view, |own| own.copy_from_slice(words));
    }

    /// # Safety
    /// Nothing that uses it is unfinished.
    pub unsafe fn destroy(self, device: &ash::Device) {
        // SAFETY: as said.
        unsafe {
            device.destroy_buffer(self.buffer, None);
            device.free_memory(self.memory, None);
        }
    }
}

struct Program {
    view: View,
    pool: vk::CommandPool,
    /// Nothing runs before the host gives it the value 1.
    gate: vk::Semaphore,
    done: vk::Semaphore,
    submitted: u64,
    /// What blocks are copied through.
    relay: Plain,
    results: Plain,
    /// What the words in `results` must be.
    expected: Vec<u32>,
}

impl Program {
    fn new(view: View, longest: u64, words: u64) -> Program {
        let info = vk::CommandPoolCreateInfo::default().queue_family_index(view.family());
        // SAFETY: the device is alive and has a queue of the family.
        let pool = unsafe { view.device().create_command_pool(&info, None) }.unwrap();
        let (gate, done) = (timeline(view.device()), timeline(view.device()));
        let (relay, results) = (Plain::new(&view, longest), Plain::new(&view, words * 4));
        Program { view, pool, gate, done, submitted: 0, relay, results, expected: Vec::new() }
    }

    /// Submits what is recorded, behind all binds, and tells the device of it.
    fn submit(&mut self, record: impl FnOnce(&ash::Device, vk::CommandBuffer)) {
        let device = self.view.device();
        let info = vk::CommandBufferAllocateInfo::default().command_pool(self.pool).command_buffer_count(1);
        let begin = vk::CommandBufferBeginInfo::default();
        let (ready, value) = self.view.ready();
        let waits = [ready, self.gate];
        let values = [value, 1];
        let signals = [self.submitted + 1];
        let done = [self.done];
        let mut timeline = vk::TimelineSemaphoreSubmitInfo::default()
            .wait_semaphore_values(&values)
            .signal_semaphore_values(&signals);
        // SAFETY: all of it is alive until the program's end; the queue is locked; what is recorded are copies and
        // fills within blocks that are allocated.
        unsafe {
            let commands = device.allocate_command_buffers(&info).unwrap();
            device.begin_command_buffer(commands[0], &begin).unwrap();
            barrier(device, commands[0]);
            record(device, commands[0]);
            device.end_command_buffer(commands[0]).unwrap();
            let batch = vk::SubmitInfo::default()
                .wait_semaphores(&waits)
                .wait_dst_stage_mask(&[vk::PipelineStageFlags::ALL_COMMANDS; 2])
                .command_buffers(&commands)
                .signal_semaphores(&done)
                .push_next(&mut timeline);
            let queue = self.view.queue().lock().unwrap();
            device.queue_submit(*queue, &[batch], vk::Fence::null()).unwrap();
        }
        self.submitted += 1;
        // SAFETY: the semaphore is alive until the device is gone, and the value's submission is queued.
        unsafe { self.view.used_by(self.done, self.submitted) };
    }

    fn fill(&mut self, block: &Block, pattern: u32) {
        let slice = self.view.find(block.address).unwrap();
        self.submit(|device, commands| {
            // SAFETY: the block is allocated, its offset a multiple of 4, as is its length.
            unsafe { device.cmd_fill_buffer(commands, slice.buffer, slice.offset, block.bytes, pattern) };
        });
    }

    /// Copies one block to another by the relay: validation layers of Debian 12 take two places in one sparse buffer
    /// for the same.
    fn copy(&mut self, from: &Block, to: &Block) {
        let (source, target) = (self.view.find(from.address).unwrap(), self.view.find(to.address).unwrap());
        let size = from.bytes.min(to.bytes);
        let relay = self.relay.buffer;
        assert!(size <= self.relay.bytes);
        self.submit(|device, commands| {
            let out = vk::BufferCopy { src_offset: source.offset, dst_offset: 0, size };
            let back = vk::BufferCopy { src_offset: 0, dst_offset: target.offset, size };
            // SAFETY: both blocks are allocated, and all three are this long.
            unsafe {
                device.cmd_copy_buffer(commands, source.buffer, relay, &[out]);
                barrier(device, commands);
                device.cmd_copy_buffer(commands, relay, target.buffer, &[back]);
            }
        });
    }

    /// Notes the first, the middle and the last word of a block.
    fn look(&mut self, block: &Block, expected: u32) {
        let slice = self.view.find(block.address).unwrap();
        let first = self.expected.len() as u64 * 4;
        let words = block.bytes / 4;
        let regions = [0, words / 2, words - 1].map(|word| word * 4);
        let mut at = first;
        let regions = regions.map(|offset| {
            let region = vk::BufferCopy { src_offset: slice.offset + offset, dst_offset: at, size: 4 };
            at += 4;
            region
        });
        assert!(at <= self.results.bytes);
        let results = self.results.buffer;
        self.submit(|device, commands| {
            // SAFETY: the words lie in the block and in the results.
            unsafe { device.cmd_copy_buffer(commands, slice.buffer, results, &regions) };
        });
        self.expected.extend([expected; WORDS as usize]);
    }

    /// Waits for all, then compares what was found.
    fn finish(&self) {
        wait(&self.view, self.done, self.submitted);
        let found = self.results.words(&self.view);
        let wrong = found.iter().zip(&self.expected).position(|(found, expected)| found != expected);
        assert_eq!(wrong, None, "of {} words", self.expected.len());
    }

    /// Destroys what is its own, once the device is gone.
    fn end(self) {
        let device = self.view.device();
        // SAFETY: all of it has passed.
        unsafe {
            device.destroy_command_pool(self.pool, None);
            for semaphore in [self.gate, self.done] {
                device.destroy_semaphore(semaphore, None);
            }
            self.relay.destroy(device);
            self.results.destroy(device);
        }
    }
}

/// Memory that one block had may be another's now: everything waits for everything.
pub(super) fn barrier(device: &ash::Device, commands: vk::CommandBuffer) {
    let all = vk::MemoryBarrier::default()
        .src_access_mask(vk::AccessFlags::MEMORY_WRITE)
        .dst_access_mask(vk::AccessFlags::MEMORY_READ | vk::AccessFlags::MEMORY_WRITE);
    let stage = vk::PipelineStageFlags::ALL_COMMANDS;
    let none = vk::DependencyFlags::empty();
    // SAFETY: a command buffer that is being recorded.
    unsafe { device.cmd_pipeline_barrier(commands, stage, stage, none, &[all], &[], &[]) };
}

/// Blocks come and go, are stitched, unmapped and their memory released while nothing has run yet: the host waits for
/// none of it. When all has run, every word is right.
#[test]
fn a_queue_that_is_held_back_holds_nothing_else_and_finds_the_right_bytes() {
    const ROUNDS: u32 = 40;
    const LONGEST: u64 = 24;
    let Some(device) = vulkan() else { return };
    let tile = device.caps().tile_bytes;
    let view = device.view();
    let options = Options { heap_bytes: 4 * tile, mapping_age: 1, heap_age: 1, ..Options::default() };
    let mut manager = build(Kind::Tiled, Box::new(device), &options).unwrap().manager;
    let mut program = Program::new(view.clone(), LONGEST * tile, 4 * WORDS * u64::from(ROUNDS));
    let opened = Opened(&view, program.gate, 1);
    let mut live: VecDeque<(Block, u32)> = VecDeque::new();
    // Sizes without a rhythm: long ones after many short ones were freed must be stitched.
    let mut random = 12345_u64;
    let mut alloc = |manager: &mut dyn Manager| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let tiles = 1 + (random >> 33) % LONGEST;
        manager.alloc(tiles * tile - 4 * (random >> 60), Stream(0)).unwrap()
    };
    for round in 0..ROUNDS {
        let pattern = 0xab00_0000 | round;
        let (one, two) = (alloc(&mut *manager), alloc(&mut *manager));
        program.fill(&two, !pattern);
        program.fill(&one, pattern);
        program.look(&two, !pattern);
        program.copy(&one, &two);
        if one.bytes >= two.bytes {
            program.look(&two, pattern);
        }
        live.push_back((one, pattern));
        // Freed while its work is queued: what comes next on the queue may use the memory.
        manager.free(two.id).unwrap();
        while live.len() > 6 {
            // Not the oldest only, so that holes are left.
            let at = live.len() / 2;
            let (block, pattern) = live.remove(at).unwrap();
            program.look(&block, pattern);
            manager.free(block.id).unwrap();
        }
        manager.end_of_execution().unwrap();
        if round % 7 == 6 {
            manager.trim().unwrap();
        }
    }
    let calls = manager.device().calls();
    assert!(calls.unmap > 0 && calls.release > 0 && calls.reserve > 3, "nothing was remapped: {calls:?}");
    assert_eq!(value_of(&view, program.done), 0, "the gate is shut");
    let held = view.live();
    drop(opened);
    program.finish();
    for (block, _) in live {
        manager.free(block.id).unwrap();
    }
    manager.trim().unwrap();
    drop(manager);
    assert!(held.memories > 0);
    assert_eq!(view.live(), crate::Live::default());
    program.end();
}

#[test]
fn an_unmapping_waits_on_the_device_for_the_use_that_was_told_of() {
    let Some(mut device) = vulkan() else { return };
    let view = device.view();
    let tile = device.caps().tile_bytes;
    let range = device.reserve(2 * tile).unwrap();
    let heap = device.create(tile).unwrap();
    let bind = |at| tilework::device::Bind { range_offset: at * tile, heap, heap_offset: 0, bytes: tile };
    let use_ = timeline(view.device());
    let opened = Opened(&view, use_, 5);
    // SAFETY: the semaphore lives until the device is gone; the host signals the value below.
    unsafe { view.used_by(use_, 5) };
    // A mapping takes nothing from a use.
    device.map(range.id, &[bind(0)]).unwrap();
    let (semaphore, mapped) = view.ready();
    wait(&view, semaphore, mapped);

    device.unmap(range.id, 0, tile).unwrap();
    device.map(range.id, &[bind(1)]).unwrap();
    device.unmap(range.id, tile, tile).unwrap();
    device.release(heap).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(value_of(&view, semaphore), mapped, "unmapped under a use");
    assert_eq!(view.live().memories, 1, "memory was given back under a use");
    signal(&view, use_, 4);
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(value_of(&view, semaphore), mapped, "an earlier value is not the one told of");
    drop(opened);
    wait(&view, semaphore, view.ready().1);
    assert!(device.settle().unwrap());
    assert_eq!(view.live().memories, 0);
    drop(device);
    // SAFETY: all that waited for it has passed.
    unsafe { view.device().destroy_semaphore(use_, None) };
}

/// The user's own objects, kept by the owner, outlive a device that is dropped after them.
#[test]
fn an_owner_lives_as_long_as_the_last_view() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    struct Owner(#[expect(dead_code)] Rig, Arc<AtomicBool>);
    impl Drop for Owner {
        fn drop(&mut self) {
            self.1.store(true, Ordering::Relaxed);
        }
    }

    let Some(rig) = Rig::new() else { return };
    let gone = Arc::new(AtomicBool::new(false));
    let (instance, made) = (rig.instance.clone(), rig.made.clone());
    let parts = made.into_parts(instance, Box::new(Owner(rig, Arc::clone(&gone))));
    // SAFETY: a rig's parts, owned by what they name.
    let mut device = unsafe { Vulkan::over(parts) }.unwrap();
    let view = device.view();
    let range = device.reserve(device.caps().tile_bytes).unwrap();
    assert_eq!(view.find(range.address).unwrap().range, range.id);
    drop(device);
    assert!(view.find(range.address).is_none());
    assert!(!gone.load(Ordering::Relaxed));
    drop(view);
    assert!(gone.load(Ordering::Relaxed));
}
