//! Memory on the host that the GPU maps as its own.

use tilework::device::{Bind, Device};

use super::{GIB, MIB, World, map, median, must, rate, seconds};

pub fn run(world: &World) {
    let mut device = world.device();
    println!("heaps on the host: {}, {:?}", device.caps().host_heaps, world.gpu.host_location());
    if !device.caps().host_heaps {
        return;
    }
    println!("milliseconds, median of 5: create, map and access, unmap, release");
    for bytes in [2 * MIB, 32 * MIB, 256 * MIB, GIB] {
        let mut times: [Vec<f64>; 4] = Default::default();
        for _ in 0..5 {
            let range = device.reserve(bytes as u64).expect("address space");
            let (made, heap) = seconds(|| device.create_on_host(bytes as u64).expect("memory"));
            let (mapped, ()) = seconds(|| map(&mut device, range, 0, heap, bytes));
            let (unmapped, ()) = seconds(|| device.unmap(range.id, 0, bytes as u64).expect("an unmap"));
            let (released, ()) = seconds(|| device.release(heap).expect("a release"));
            device.unreserve(range.id).expect("an unreserve");
            for (times, took) in times.iter_mut().zip([made, mapped, unmapped, released]) {
                times.push(1e3 * took);
            }
        }
        let [made, mapped, unmapped, released] = times.map(median);
        println!("{:>5} MiB: {made:.3} {mapped:.3} {unmapped:.3} {released:.3}", bytes / MIB);
    }

    // Both side by side in one range, with access by one call.
    let bytes = 256 * MIB;
    let range = device.reserve(2 * bytes as u64).expect("address space");
    let heaps =
        [device.create(bytes as u64), device.create_on_host(bytes as u64)].map(|heap| heap.expect("memory"));
    let at = |which: usize| (which * bytes) as u64;
    let bind = |which: usize| Bind {
        range_offset: at(which),
        heap: heaps[which],
        heap_offset: 0,
        bytes: bytes as u64,
    };
    device.map(range.id, &[bind(0), bind(1)]).expect("a map");
    device.set_access(range.id, 0, 2 * bytes as u64).expect("access to both in one call");
    let data: Vec<u8> = (0..bytes).map(|at| (at ^ at >> 9 ^ at >> 17) as u8).collect();
    let mut found = vec![0; bytes];
    device.read(range.address + at(1), &mut found).expect("a read");
    assert!(found.iter().all(|&byte| byte == 0), "not all zeros");
    device.write(range.address, &data).expect("a write");
    let entered = world.gpu.enter().expect("a context");
    for (name, from, to) in [("to the host's", 0, 1), ("from the host's", 1, 0)] {
        let mut rates = Vec::new();
        for _ in 0..5 {
            let (took, ()) = seconds(|| {
                // SAFETY: both parts are mapped with access.
                must(unsafe {
                    (world.extra.device_to_device)(range.address + at(to), range.address + at(from), bytes)
                });
                // SAFETY: no arguments; the context is current.
                entered.call("cuCtxSynchronize", |f| unsafe { (f.ctx_synchronize)() }).expect("the copy");
            });
            rates.push(rate(bytes, took));
        }
        found.fill(0);
        device.read(range.address + at(to), &mut found).expect("a read");
        assert!(found == data, "wrong bytes {name}");
        // So that the way back shows something.
        device.write(range.address, &vec![0; bytes]).expect("a write");
        println!("cuMemcpyDtoD of 256 MiB {name}: {:.2} GB/s, the bytes are right", median(rates));
    }
    // Across the border of the two, by a buffer.
    let mut buffer = world.staging(4 * MIB);
    let border = range.address + at(1) - 2 * MIB as u64;
    buffer.download(0, border, 4 * MIB).expect("a copy across the border");
    let expected: Vec<u8> = [vec![0; 2 * MIB], data[..2 * MIB].to_vec()].concat();
    assert!(buffer.contents().expect("a copy") == expected, "wrong bytes across the border");
    println!("a download across the border of both: the bytes are right");
}
