//! Memory that the host reaches: what it writes the device sees, and the other way round.

use std::sync::Arc;

use ash::vk;
use tilework::manager::{Block, Kind, Manager, Options, Stream, build};

use super::program::{timeline, wait};
use super::rig::Rig;
use crate::{MemoryUsage, Parts, View, Vulkan};

/// A manager of memory for each use, all on one device and queue, kept by each.
fn managers() -> Option<[(Box<dyn Manager>, View); 3]> {
    let rig = Arc::new(Rig::new()?);
    let first = rig.made.clone().into_parts(rig.instance.clone(), Box::new(()));
    Some([MemoryUsage::Upload, MemoryUsage::Device, MemoryUsage::Readback].map(|usage| {
        let parts = Parts {
            queue: Arc::clone(&first.queue),
            usage,
            ..rig.made.clone().into_parts(rig.instance.clone(), Box::new(Arc::clone(&rig)))
        };
        // SAFETY: the rig is made with all that is asked for; each owner keeps it, and all share the queue's lock.
        let device = unsafe { Vulkan::over(parts) }.unwrap();
        let view = device.view();
        let options = Options { heap_bytes: 1 << 20, ..Options::default() };
        (build(Kind::Tiled, Box::new(device), &options).unwrap().manager, view)
    }))
}

/// What the host sees of a block.
fn seen<'a>(view: &View, block: &Block) -> &'a mut [u8] {
    let first = view.host(block.address).expect("the host reaches it");
    // SAFETY: the block is allocated for as long as the caller uses this, and nobody else does meanwhile.
    unsafe { std::slice::from_raw_parts_mut(first.as_ptr(), block.bytes as usize) }
}

/// Copies from block to block in turn, and shows the last to the host; waits for it.
fn copy(blocks: &[(&View, &Block)], done: vk::Semaphore, value: u64) {
    let view = blocks[0].0;
    let device = view.device();
    let pool = vk::CommandPoolCreateInfo::default().queue_family_index(view.family());
    let ready: Vec<(vk::Semaphore, u64)> = blocks.iter().map(|(view, _)| view.ready()).collect();
    let (waits, values): (Vec<_>, Vec<_>) = ready.into_iter().unzip();
    // SAFETY: all of it is alive until the wait at the end; the copies lie within blocks that are allocated.
    unsafe {
        let pool = device.create_command_pool(&pool, None).unwrap();
        let info = vk::CommandBufferAllocateInfo::default().command_pool(pool).command_buffer_count(1);
        let commands = device.allocate_command_buffers(&info).unwrap();
        device.begin_command_buffer(commands[0], &vk::CommandBufferBeginInfo::default()).unwrap();
        for pair in blocks.windows(2) {
            let [from, to] = [0, 1].map(|at| pair[at].0.find(pair[at].1.address).unwrap());
            let size = pair[0].1.bytes;
            let region = vk::BufferCopy { src_offset: from.offset, dst_offset: to.offset, size };
            device.cmd_copy_buffer(commands[0], from.buffer, to.buffer, &[region]);
            let shown = vk::MemoryBarrier::default()
                .src_access_mask(vk::AccessFlags::TRANSFER_WRITE)
                .dst_access_mask(vk::AccessFlags::TRANSFER_READ | vk::AccessFlags::HOST_READ);
            let written = vk::PipelineStageFlags::TRANSFER;
            let read = vk::PipelineStageFlags::TRANSFER | vk::PipelineStageFlags::HOST;
            let none = vk::DependencyFlags::empty();
            device.cmd_pipeline_barrier(commands[0], written, read, none, &[shown], &[], &[]);
        }
        device.end_command_buffer(commands[0]).unwrap();
        let (signals, signalled) = ([done], [value]);
        let stages = vec![vk::PipelineStageFlags::ALL_COMMANDS; waits.len()];
        let mut order = vk::TimelineSemaphoreSubmitInfo::default()
            .wait_semaphore_values(&values)
            .signal_semaphore_values(&signalled);
        let batch = vk::SubmitInfo::default()
            .wait_semaphores(&waits)
            .wait_dst_stage_mask(&stages)
            .command_buffers(&commands)
            .signal_semaphores(&signals)
            .push_next(&mut order);
        device.queue_submit(*view.queue().lock().unwrap(), &[batch], vk::Fence::null()).unwrap();
        wait(view, done, value);
        device.destroy_command_pool(pool, None);
    }
}

#[test]
fn the_host_reaches_what_is_for_it() {
    let Some(mut managers) = managers() else { return };
    let [up, work, down] = &mut managers;
    let done = timeline(work.1.device());
    for value in 1..=12_u64 {
        let bytes = (value * 300_000) & !3;
        let blocks = [&mut *up, work, down].map(|(manager, _)| manager.alloc(bytes, Stream(0)).unwrap());
        assert_eq!(work.1.host(blocks[1].address), None);
        assert!([&*up, down].iter().all(|(_, view)| view.host(1).is_none()), "no block is there");
        let pattern = |at: usize| (at as u64 * 31 + value) as u8;
        seen(&up.1, &blocks[0]).iter_mut().enumerate().for_each(|(at, byte)| *byte = pattern(at));
        copy(&[(&up.1, &blocks[0]), (&work.1, &blocks[1]), (&down.1, &blocks[2])], done, value);
        let wrong = seen(&down.1, &blocks[2]).iter().enumerate().position(|(at, &byte)| byte != pattern(at));
        assert_eq!(wrong, None, "of {bytes} bytes");
        for ((manager, _), block) in [&mut *up, work, down].into_iter().zip(blocks) {
            // Some stay, so that later ones lie elsewhere.
            if value % 3 > 0 {
                manager.free(block.id).unwrap();
            }
        }
    }
    // SAFETY: all has passed that signals it.
    unsafe { work.1.device().destroy_semaphore(done, None) };
}

#[test]
fn heaps_that_the_host_reaches_are_zeroed_too() {
    let Some(mut managers) = managers() else { return };
    for at in [0, 2] {
        let (manager, view) = &mut managers[at];
        let block = manager.alloc(3 << 20, Stream(0)).unwrap();
        assert!(seen(view, &block).iter().all(|&byte| byte == 0));
        manager.free(block.id).unwrap();
    }
}
