//! The order of everything on the queue: one timeline semaphore, a value for each thing that was queued.
//!
//! ```text
//!   value      1          2           3            4
//!         zero heap ► bind tiles ► unbind ► bind tiles      each waits for the one before it
//!                                    ▲
//!                         the last use that was told of (another semaphore)
//! ```
//!
//! Binds and submissions of one queue begin in order, but nothing else is promised of them; so each waits for the
//! value before its own. What the host gives back while it may still be named by something queued is buried with
//! the value of the latest, and destroyed once that has passed.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use ash::vk;

use crate::error::{VulkanError, answer};
use crate::gpu::Gpu;

/// Something that is destroyed once what is queued has passed.
#[derive(Debug)]
pub enum Dead {
    /// The buffer of a range, and the address space it takes.
    Sparse(vk::Buffer, u64),
    /// Another buffer.
    Buffer(vk::Buffer),
    Memory(vk::DeviceMemory),
    Commands(vk::CommandBuffer),
}

/// What something queued waits for, beside all that was queued before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Nothing.
    Earlier,
    /// The uses that were told of.
    Uses,
}

#[derive(Debug)]
struct Line {
    pool: vk::CommandPool,
    /// By rising value.
    graves: VecDeque<(u64, Dead)>,
    /// Address space of the sparse buffers that are not destroyed, bytes.
    address_space: u64,
}

/// The timeline, and what is queued along it.
#[derive(Debug)]
pub struct Order {
    gpu: Arc<Gpu>,
    semaphore: vk::Semaphore,
    /// The value of the latest thing that was queued; it changes with `line` locked.
    last: AtomicU64,
    /// Semaphores of the user, each with the value that its latest use signals.
    uses: Mutex<Vec<(vk::Semaphore, u64)>>,
    /// Locked before the queue, never while it is.
    line: Mutex<Line>,
}

impl Order {
    /// A timeline on which nothing has happened.
    pub fn new(gpu: Arc<Gpu>) -> Result<Order, VulkanError> {
        let mut kind = vk::SemaphoreTypeCreateInfo::default().semaphore_type(vk::SemaphoreType::TIMELINE);
        let info = vk::SemaphoreCreateInfo::default().push_next(&mut kind);
        // SAFETY: the device is alive and has timeline semaphores.
        let semaphore = answer("vkCreateSemaphore", unsafe { gpu.device.create_semaphore(&info, None) })?;
        let info = vk::CommandPoolCreateInfo::default()
            .flags(vk::CommandPoolCreateFlags::TRANSIENT)
            .queue_family_index(gpu.family);
        // SAFETY: the device is alive and was made with a queue of the family.
        let pool = answer("vkCreateCommandPool", unsafe { gpu.device.create_command_pool(&info, None) });
        let pool = pool.inspect_err(|_| {
            // SAFETY: created above, known to nobody.
            unsafe { gpu.device.destroy_semaphore(semaphore, None) }
        })?;
        Ok(Order {
            gpu,
            semaphore,
            last: AtomicU64::new(0),
            uses: Mutex::default(),
            line: Mutex::new(Line { pool, graves: VecDeque::new(), address_space: 0 }),
        })
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The semaphore, and the value it has once all that was queued has passed.
    pub fn ready(&self) -> (vk::Semaphore, u64) {
        (self.semaphore, self.last.load(Ordering::Acquire))
    }

    /// From here on what is [after the uses](After::Uses) waits until `semaphore` has `value`.
    ///
    /// # Safety
    /// As for [`View::used_by`](crate::View::used_by).
    pub unsafe fn used_by(&self, semaphore: vk::Semaphore, value: u64) {
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        match uses.iter_mut().find(|(known, _)| *known == semaphore) {
            Some((_, latest)) => *latest = value.max(*latest),
            None => uses.push((semaphore, value)),
        }
    }

    /// Queues one batch of binds to a buffer.
    ///
    /// # Safety
    /// `buffer` must be a sparse one of the device, alive; the binds must lie within it and its memory, aligned, and
    /// that memory must be alive and of a type that it takes. Nothing may use what they replace once
    /// `after` has passed.
    pub unsafe fn bind(
        &self,
        buffer: vk::Buffer,
        binds: &[vk::SparseMemoryBind],
        after: After,
    ) -> Result<(), VulkanError> {
        let buffers = [vk::SparseBufferMemoryBindInfo::default().buffer(buffer).binds(binds)];
        let mut line = self.lock();
        self.reap(&mut line);
        self.queue(after, |waits, values, semaphore, value| {
            let mut timeline = vk::TimelineSemaphoreSubmitInfo::default()
                .wait_semaphore_values(values)
                .signal_semaphore_values(value);
            let batch = vk::BindSparseInfo::default()
                .wait_semaphores(waits)
                .buffer_binds(&buffers)
                .signal_semaphores(semaphore)
                .push_next(&mut timeline);
            let queue = self.gpu.lock_queue();
            // SAFETY: the queue binds, and its lock is held; the binds are right by this function's contract; every
            // semaphore is a timeline's and has its value beside it, that of ours above all it was to have so far.
            let bound = unsafe { self.gpu.device.queue_bind_sparse(*queue, &[batch], vk::Fence::null()) };
            answer("vkQueueBindSparse", bound)
        })
    }

    /// Queues the commands that `record` puts into a command buffer. Returns the value they signal.
    ///
    /// # Safety
    /// What `record` records must be right for a queue of the family, outside of render passes; all that it names
    /// must stay alive until the value has passed.
    pub unsafe fn submit(
        &self,
        after: After,
        record: impl FnOnce(&ash::Device, vk::CommandBuffer),
    ) -> Result<u64, VulkanError> {
        let device = &self.gpu.device;
        let mut line = self.lock();
        self.reap(&mut line);
        let info = vk::CommandBufferAllocateInfo::default()
            .command_pool(line.pool)
            .level(vk::CommandBufferLevel::PRIMARY)
            .command_buffer_count(1);
        // SAFETY: the pool is ours and nobody else's while the line is locked, here and below.
        let commands = unsafe { device.allocate_command_buffers(&info) };
        let commands = answer("vkAllocateCommandBuffers", commands)?[0];
        let queued = self.record(commands, record).and_then(|()| {
            self.queue(after, |waits, values, semaphore, value| {
                let mut timeline = vk::TimelineSemaphoreSubmitInfo::default()
                    .wait_semaphore_values(values)
                    .signal_semaphore_values(value);
                let stages = vec![vk::PipelineStageFlags::ALL_COMMANDS; waits.len()];
                let commands = [commands];
                let batch = vk::SubmitInfo::default()
                    .wait_semaphores(waits)
                    .wait_dst_stage_mask(&stages)
                    .command_buffers(&commands)
                    .signal_semaphores(semaphore)
                    .push_next(&mut timeline);
                let queue = self.gpu.lock_queue();
                // SAFETY: the queue's lock is held; the commands were recorded for its family and are submitted
                // once; semaphores are as in `bind`.
                let submitted = unsafe { device.queue_submit(*queue, &[batch], vk::Fence::null()) };
                answer("vkQueueSubmit", submitted)
            })
        });
        match queued {
            Ok(()) => {
                let value = self.last.load(Ordering::Relaxed);
                line.graves.push_back((value, Dead::Commands(commands)));
                Ok(value)
            }
            Err(error) => {
                // SAFETY: allocated above and not queued.
                unsafe { device.free_command_buffers(line.pool, &[commands]) };
                Err(error)
            }
        }
    }

    fn record(
        &self,
        commands: vk::CommandBuffer,
        record: impl FnOnce(&ash::Device, vk::CommandBuffer),
    ) -> Result<(), VulkanError> {
        let device = &self.gpu.device;
        let once = vk::CommandBufferBeginInfo::default().flags(vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT);
        // SAFETY: allocated by the caller a moment ago, who holds the line's lock; what is recorded is right by the
        // contract of `submit`.
        unsafe {
            answer("vkBeginCommandBuffer", device.begin_command_buffer(commands, &once))?;
            record(device, commands);
            answer("vkEndCommandBuffer", device.end_command_buffer(commands))
        }
    }

    /// Has `put` queue something with the semaphores and values it waits for, and those it signals. The line is
    /// locked by the caller.
    fn queue(
        &self,
        after: After,
        put: impl FnOnce(&[vk::Semaphore], &[u64], &[vk::Semaphore], &[u64]) -> Result<(), VulkanError>,
    ) -> Result<(), VulkanError> {
        let last = self.last.load(Ordering::Relaxed);
        let (mut waits, mut values) = (vec![self.semaphore], vec![last]);
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        if after == After::Uses {
            waits.extend(uses.iter().map(|&(semaphore, _)| semaphore));
            values.extend(uses.iter().map(|&(_, value)| value));
        }
        put(&waits, &values, &[self.semaphore], &[last + 1])?;
        if after == After::Uses {
            // All that is queued from here on comes after this, and so after them.
            uses.clear();
        }
        self.last.store(last + 1, Ordering::Release);
        Ok(())
    }

    /// Destroys something once all that is queued now has passed.
    pub fn bury(&self, dead: Dead) {
        let mut line = self.lock();
        line.graves.push_back((self.last.load(Ordering::Relaxed), dead));
        self.reap(&mut line);
    }

    /// Takes `bytes` of the address space that sparse buffers have together; waits for what is buried if it lacks.
    pub fn take_address_space(&self, bytes: u64) -> Result<(), VulkanError> {
        let most = self.gpu.abilities.address_space;
        for last_try in [false, true] {
            let mut line = self.lock();
            self.reap(&mut line);
            if line.address_space.checked_add(bytes).is_some_and(|all| all <= most) {
                line.address_space += bytes;
                return Ok(());
            }
            let waiting = line.graves.iter().any(|(_, dead)| matches!(dead, Dead::Sparse(..)));
            drop(line);
            if last_try || !waiting {
                break;
            }
            self.wait(self.last.load(Ordering::Acquire))?;
        }
        Err(VulkanError::Limit { limit: "sparseAddressSpaceSize", most })
    }

    /// Gives address space back of which nothing was made.
    pub fn give_address_space(&self, bytes: u64) {
        self.lock().address_space -= bytes;
    }

    /// Waits until all that was queued has passed, and destroys what is buried. True when something was.
    pub fn settle(&self) -> Result<bool, VulkanError> {
        self.wait(self.last.load(Ordering::Acquire))?;
        let mut line = self.lock();
        let before = line.graves.len();
        self.reap(&mut line);
        Ok(line.graves.len() < before)
    }

    /// Waits on the host until `value` has passed.
    pub fn wait(&self, value: u64) -> Result<(), VulkanError> {
        self.wait_for(&[self.semaphore], &[value])
    }

    fn wait_for(&self, semaphores: &[vk::Semaphore], values: &[u64]) -> Result<(), VulkanError> {
        let info = vk::SemaphoreWaitInfo::default().semaphores(semaphores).values(values);
        // SAFETY: the device is alive, and so are the semaphores, all of them timelines.
        answer("vkWaitSemaphores", unsafe { self.gpu.device.wait_semaphores(&info, u64::MAX) })
    }

    /// Waits for the uses that were told of, and for all that was queued, also by others; then destroys what is buried.
    /// For the end: a device that is lost has nothing left to wait for.
    pub fn finish(&self) {
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut semaphores, mut values): (Vec<_>, Vec<_>) = uses.drain(..).unzip();
        semaphores.push(self.semaphore);
        values.push(self.last.load(Ordering::Acquire));
        while let Err(error) = self.wait_for(&semaphores, &values) {
            tracing::warn!(%error, "the device does not tell when it has finished");
            if matches!(error, VulkanError::Refused { code: vk::Result::ERROR_DEVICE_LOST, .. }) {
                break;
            }
            // What is in use must not be destroyed: until the driver has memory to wait with.
            thread::sleep(Duration::from_millis(1));
        }
        // A queue with a thread of its own, as Mesa has it on the host, may look at a semaphore once more after it has
        // signalled it; not when it is idle.
        let idle = {
            let queue = self.gpu.lock_queue();
            // SAFETY: the queue is alive, and its lock is held.
            answer("vkQueueWaitIdle", unsafe { self.gpu.device.queue_wait_idle(*queue) })
        };
        if let Err(error) = idle {
            tracing::warn!(%error, "the queue does not tell when it is idle");
        }
        self.reap(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        // A panic in between leaves at worst a command buffer that goes with its pool.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Destroys what is buried and was queued before what has passed.
    fn reap(&self, line: &mut Line) {
        if line.graves.is_empty() {
            return;
        }
        // SAFETY: the semaphore is ours, a timeline.
        let passed = unsafe { self.gpu.device.get_semaphore_counter_value(self.semaphore) };
        // A device that cannot tell is lost; what is left goes at the end.
        let Ok(passed) = passed else { return };
        while line.graves.front().is_some_and(|&(value, _)| value <= passed) {
            let Some((_, dead)) = line.graves.pop_front() else { return };
            self.destroy(line, dead);
        }
    }

    fn destroy(&self, line: &mut Line, dead: Dead) {
        match dead {
            Dead::Sparse(buffer, bytes) => {
                self.gpu.destroy_buffer(buffer);
                line.address_space -= bytes;
            }
            Dead::Buffer(buffer) => self.gpu.destroy_buffer(buffer),
            Dead::Memory(memory) => self.gpu.free(memory),
            Dead::Commands(commands) => {
                // SAFETY: allocated from this pool, passed, and nobody else's; the line is locked.
                unsafe { self.gpu.device.free_command_buffers(line.pool, &[commands]) }
            }
        }
    }
}

impl Drop for Order {
    fn drop(&mut self) {
        self.finish();
        let mut line = self.lock();
        while let Some((_, dead)) = line.graves.pop_front() {
            self.destroy(&mut line, dead);
        }
        // SAFETY: both are ours, and nothing that names them is unfinished.
        unsafe {
            self.gpu.device.destroy_command_pool(line.pool, None);
            self.gpu.device.destroy_semaphore(self.semaphore, None);
        }
    }
}
