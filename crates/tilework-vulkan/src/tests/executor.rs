//! The executor of the test bed with a compute shader, under each manager: nothing waits before its results are looked
//! at, and what is unmapped is unmapped by the queue.

use std::sync::Arc;

use ash::vk;
use tilework::device::waiting::Wait;
use tilework::device::{DeviceError, limit::Limit};
use tilework::manager::{Block, Kind, Options, Stream};
use tilework::shared::streams::{Event, Mark};
use tilework::testing::executor::{self, Layer};

use super::program::{Plain, barrier, timeline, value_of, wait};
use super::shader::{MULTIPLY_ADD, Pipeline};
use super::{plain, vulkan};
use crate::{Live, View, Vulkan};

const MIB: u64 = 1 << 20;

/// Descriptor sets that all lists of a test have together.
const SETS: u32 = 2000;

struct Queue {
    view: View,
    pipeline: Pipeline,
    pool: vk::CommandPool,
    done: vk::Semaphore,
    submitted: u64,
    /// Buffers of the program's own that submitted work may use, until the end.
    plain: Vec<Plain>,
    /// Which of these are snapshots, and when they are there.
    snapshots: Vec<(usize, u64)>,
}

/// A value of the program's timeline.
#[derive(Debug)]
struct Fence(View, vk::Semaphore, u64);

impl Mark for Fence {
    fn wait(&self, _: Stream) -> Result<(), DeviceError> {
        // There is one queue, in order.
        Ok(())
    }

    fn passed(&self) -> bool {
        value_of(&self.0, self.1) >= self.2
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        wait(&self.0, self.1, self.2);
        Ok(())
    }
}

impl Queue {
    fn new(view: View) -> Queue {
        let pipeline = Pipeline::new(view.device(), MULTIPLY_ADD, 3, SETS).unwrap();
        let info = vk::CommandPoolCreateInfo::default().queue_family_index(view.family());
        // SAFETY: the device is alive and has a queue of the family.
        let pool = unsafe { view.device().create_command_pool(&info, None) }.unwrap();
        let done = timeline(view.device());
        Queue { view, pipeline, pool, done, submitted: 0, plain: Vec::new(), snapshots: Vec::new() }
    }

    fn place(&self, block: &Block) -> (vk::Buffer, u64, u64) {
        let slice = self.view.find(block.address).unwrap();
        assert_eq!(slice.range, block.range);
        (slice.buffer, slice.offset, block.bytes)
    }

    /// Records what may be submitted again while it runs, behind a barrier.
    fn commands(&self, record: impl FnOnce(&ash::Device, vk::CommandBuffer)) -> vk::CommandBuffer {
        let device = self.view.device();
        let info = vk::CommandBufferAllocateInfo::default().command_pool(self.pool).command_buffer_count(1);
        let begin =
            vk::CommandBufferBeginInfo::default().flags(vk::CommandBufferUsageFlags::SIMULTANEOUS_USE);
        // SAFETY: the pool is alive until the end; what is recorded are commands over blocks that are allocated.
        unsafe {
            let commands = device.allocate_command_buffers(&info).unwrap()[0];
            device.begin_command_buffer(commands, &begin).unwrap();
            barrier(device, commands);
            record(device, commands);
            device.end_command_buffer(commands).unwrap();
            commands
        }
    }

    /// Submits behind all binds, and tells the device of it.
    fn queue(&mut self, commands: vk::CommandBuffer) {
        let (ready, value) = self.view.ready();
        self.submitted += 1;
        let (waits, values) = ([ready], [value]);
        let (signals, signal_values, commands) = ([self.done], [self.submitted], [commands]);
        let mut timeline = vk::TimelineSemaphoreSubmitInfo::default()
            .wait_semaphore_values(&values)
            .signal_semaphore_values(&signal_values);
        let batch = vk::SubmitInfo::default()
            .wait_semaphores(&waits)
            .wait_dst_stage_mask(&[vk::PipelineStageFlags::ALL_COMMANDS])
            .command_buffers(&commands)
            .signal_semaphores(&signals)
            .push_next(&mut timeline);
        // SAFETY: all of it is alive until the end; the queue is locked. The value is that of a submission.
        unsafe {
            let queue = self.view.queue().lock().unwrap();
            self.view.device().queue_submit(*queue, &[batch], vk::Fence::null()).unwrap();
            drop(queue);
            self.view.used_by(self.done, self.submitted);
        }
    }

    /// Destroys what is its own, once the device is gone.
    fn end(self) {
        let device = self.view.device();
        // SAFETY: the device has waited for all of it.
        unsafe {
            device.destroy_command_pool(self.pool, None);
            device.destroy_semaphore(self.done, None);
            self.plain.into_iter().for_each(|plain| plain.destroy(device));
            self.pipeline.destroy(device);
        }
    }
}

impl executor::Queue for Queue {
    type List = vk::CommandBuffer;

    fn record(&mut self, layers: &[Layer]) -> vk::CommandBuffer {
        let sets: Vec<_> = layers
            .iter()
            .map(|layer| {
                let places = [layer.input, layer.weights, layer.output].map(|block| self.place(&block));
                (self.pipeline.bind(self.view.device(), &places).unwrap(), layer.output.bytes / 4)
            })
            .collect();
        self.commands(|device, commands| {
            for (set, words) in sets {
                // SAFETY: the commands are being recorded; the set and its buffers are alive whenever they run.
                unsafe { self.pipeline.dispatch(device, commands, set, words) };
                barrier(device, commands);
            }
        })
    }

    fn submit(&mut self, list: &vk::CommandBuffer) {
        self.queue(*list);
    }

    fn upload(&mut self, block: &Block, words: &[u32]) {
        let size = 4 * words.len() as u64;
        let plain = Plain::new(&self.view, size);
        plain.set_words(&self.view, words);
        let (buffer, dst_offset, _) = self.place(block);
        let copy = [vk::BufferCopy { src_offset: 0, dst_offset, size }];
        let commands = self.commands(|device, commands| {
            // SAFETY: both are as long, and alive until the work is done.
            unsafe { device.cmd_copy_buffer(commands, plain.buffer, buffer, &copy) };
        });
        self.plain.push(plain);
        self.queue(commands);
    }

    fn snapshot(&mut self, block: &Block) -> (usize, Event) {
        let plain = Plain::new(&self.view, block.bytes);
        let (buffer, src_offset, size) = self.place(block);
        let copy = [vk::BufferCopy { src_offset, dst_offset: 0, size }];
        let commands = self.commands(|device, commands| {
            // SAFETY: as above.
            unsafe { device.cmd_copy_buffer(commands, buffer, plain.buffer, &copy) };
        });
        self.queue(commands);
        self.snapshots.push((self.plain.len(), self.submitted));
        self.plain.push(plain);
        let fence = Fence(self.view.clone(), self.done, self.submitted);
        (self.snapshots.len() - 1, Arc::new(fence))
    }

    fn seen(&mut self, snapshot: usize) -> Vec<u32> {
        let (plain, value) = self.snapshots[snapshot];
        wait(&self.view, self.done, value);
        self.plain[plain].words(&self.view)
    }

    fn before_unmapping(&self) -> Wait {
        // The device unmaps behind the uses that it was told of.
        Box::new(|| Ok(()))
    }
}

fn options() -> Options {
    Options { heap_bytes: MIB, mapping_age: 2, heap_age: 2, ..Options::default() }
}

/// Executes on a device of its own, and sees to it that nothing is left.
fn on(device: Option<Vulkan>, run: impl FnOnce(Vulkan, Queue) -> Queue) {
    let Some(device) = device else { return };
    let view = device.view();
    let queue = run(device, Queue::new(view.clone()));
    assert_eq!(view.live(), Live::default());
    queue.end();
}

#[test]
fn each_manager_serves_an_executor() {
    for kind in Kind::ALL {
        on(vulkan(), |device, queue| executor::execute(kind, Box::new(device), &options(), queue));
    }
}

#[test]
fn placed_serves_an_executor_where_nothing_is_sparse() {
    // For `tiled`, which falls back.
    on(plain(), |device, queue| executor::execute(Kind::Tiled, Box::new(device), &options(), queue));
}

#[test]
fn an_executor_cuts_its_lists_where_memory_lacks() {
    on(vulkan(), |device, queue| {
        let device = Box::new(Limit::new(device, 13 * MIB));
        let (queue, cuts) = executor::execute_within(Kind::Committed, device, &options(), queue);
        assert!(cuts > 0);
        queue
    });
}
