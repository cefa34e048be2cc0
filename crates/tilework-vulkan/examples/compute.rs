//! A compute shader over tiled buffers, without a wait between allocating, freeing and submitting.
//!
//! ```text
//! cargo run --release -p tilework-vulkan --example compute [INDEX]
//! ```

mod shader;

use std::error::Error;

use tilework::manager::{Block, Kind, Options, Stream, build};
use tilework_vulkan::{View, Vulkan, ash::vk};

use shader::{MULTIPLY_ADD, Pipeline};

const MIB: u64 = 1 << 20;
const QUEUE: Stream = Stream(0);

fn main() -> Result<(), Box<dyn Error>> {
    let index = std::env::args().nth(1).map_or(Ok(0), |index| index.parse())?;
    let device = Vulkan::open(index)?;
    let view = device.view();
    // Small heaps, so that this small program needs several.
    let options = Options { heap_bytes: 4 * MIB, ..Options::default() };
    let mut manager = build(Kind::Tiled, Box::new(device), &options)?.manager;

    // Blocks of which every second one goes leave holes, and no hole is long enough for what comes next: it is stitched
    // together from them.
    let blocks: Vec<Block> = (0..12).map(|_| manager.alloc(2 * MIB, QUEUE)).collect::<Result<_, _>>()?;
    for block in blocks.iter().step_by(2) {
        manager.free(block.id)?;
    }
    let [inputs, weights] = [blocks[1], blocks[3]];
    let outputs = manager.alloc(9 * MIB, QUEUE)?;
    let held = manager.usage().held;
    println!("{} MiB live, {} MiB held", manager.usage().live / MIB, held / MIB);

    let words = |seed: u32| -> Vec<u32> {
        (0..MIB as u32 / 2).map(|i| (i ^ seed).wrapping_mul(2_654_435_761)).collect()
    };
    let (given, added) = (words(1), words(2));
    for (block, words) in [(inputs, &given), (weights, &added)] {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        manager.device().write(block.address, &bytes)?;
    }

    let program = Program::new(view)?;
    program.run([inputs, weights, outputs])?;
    // Freed while the shader runs. Reading waits for the use that the device was told of.
    manager.free(inputs.id)?;
    let mut found = vec![0; outputs.bytes as usize];
    manager.device().read(outputs.address, &mut found)?;
    for (i, word) in found.chunks_exact(4).enumerate() {
        let expected = given[i % given.len()].wrapping_mul(3).wrapping_add(added[i % added.len()]);
        if word != expected.to_ne_bytes() {
            return Err(format!("word {i} is wrong").into());
        }
    }
    println!("{} words are right", found.len() / 4);
    drop(manager);
    program.end();
    Ok(())
}

/// What the program has of its own on the device.
struct Program {
    view: View,
    pipeline: Pipeline,
    pool: vk::CommandPool,
    /// A timeline: 1 when the work is done.
    done: vk::Semaphore,
}

impl Program {
    fn new(view: View) -> Result<Program, Box<dyn Error>> {
        let device = view.device();
        let pipeline = Pipeline::new(device, MULTIPLY_ADD, 3, 1)?;
        let mut timeline = vk::SemaphoreTypeCreateInfo::default().semaphore_type(vk::SemaphoreType::TIMELINE);
        let info = vk::SemaphoreCreateInfo::default().push_next(&mut timeline);
        // SAFETY: the device is alive as long as the view, and has timeline semaphores.
        let (pool, done) = unsafe {
            let family = vk::CommandPoolCreateInfo::default().queue_family_index(view.family());
            (device.create_command_pool(&family, None)?, device.create_semaphore(&info, None)?)
        };
        Ok(Program { view, pipeline, pool, done })
    }

    /// Submits the shader for these blocks, behind the binds of all of them.
    fn run(&self, blocks: [Block; 3]) -> Result<(), Box<dyn Error>> {
        let device = self.view.device();
        let slices = blocks.map(|block| {
            let slice = self.view.find(block.address).expect("an allocated block has a place");
            (slice.buffer, slice.offset, block.bytes)
        });
        let set = self.pipeline.bind(device, &slices)?;
        let (ready, value) = self.view.ready();
        let (waits, wait_values, signals, signal_values) = ([ready], [value], [self.done], [1]);
        let mut timeline = vk::TimelineSemaphoreSubmitInfo::default()
            .wait_semaphore_values(&wait_values)
            .signal_semaphore_values(&signal_values);
        let info = vk::CommandBufferAllocateInfo::default().command_pool(self.pool).command_buffer_count(1);
        // SAFETY: everything is alive until `end`; the blocks are, until the work that is told of below is done; the
        // queue is locked.
        unsafe {
            let commands = device.allocate_command_buffers(&info)?;
            device.begin_command_buffer(commands[0], &vk::CommandBufferBeginInfo::default())?;
            // The memory may have been another block's: the barrier that `Caps::aliasing` asks for.
            let barrier = vk::MemoryBarrier::default()
                .src_access_mask(vk::AccessFlags::MEMORY_WRITE)
                .dst_access_mask(vk::AccessFlags::MEMORY_READ | vk::AccessFlags::MEMORY_WRITE);
            let (all, none) = (vk::PipelineStageFlags::ALL_COMMANDS, vk::DependencyFlags::empty());
            device.cmd_pipeline_barrier(commands[0], all, all, none, &[barrier], &[], &[]);
            self.pipeline.dispatch(device, commands[0], set, blocks[2].bytes / 4);
            device.end_command_buffer(commands[0])?;
            let batch = vk::SubmitInfo::default()
                .wait_semaphores(&waits)
                .wait_dst_stage_mask(&[vk::PipelineStageFlags::ALL_COMMANDS])
                .command_buffers(&commands)
                .signal_semaphores(&signals)
                .push_next(&mut timeline);
            let queue = self.view.queue().lock().map_err(|_| "the queue's lock is poisoned")?;
            device.queue_submit(*queue, &[batch], vk::Fence::null())?;
            drop(queue);
            self.view.used_by(self.done, 1);
        }
        Ok(())
    }

    fn end(self) {
        let device = self.view.device();
        // SAFETY: the device of the manager waited for all work when it was dropped.
        unsafe {
            device.destroy_command_pool(self.pool, None);
            device.destroy_semaphore(self.done, None);
            self.pipeline.destroy(device);
        }
    }
}
