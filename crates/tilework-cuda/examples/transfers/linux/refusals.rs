//! What the driver answers to copies of what is not mapped.

use std::time::Instant;

use tilework::device::Device;

use super::{GIB, MIB, World, map};

pub fn run(world: &World) {
    let mut device = world.device();
    let range = device.reserve(GIB as u64).expect("address space");
    let heaps = [0; 3].map(|_| device.create(2 * MIB as u64).expect("memory"));
    map(&mut device, range, 0, heaps[0], 2 * MIB);
    map(&mut device, range, 2 * MIB, heaps[1], 2 * MIB);
    // Mapped, without access.
    let bind = tilework::device::Bind {
        range_offset: 8 * MIB as u64,
        heap: heaps[2],
        heap_offset: 0,
        bytes: 2 * MIB as u64,
    };
    device.map(range.id, &[bind]).expect("a map");
    if device.caps().host_heaps {
        let there = device.create_on_host(2 * MIB as u64).expect("memory");
        map(&mut device, range, 16 * MIB, there, 2 * MIB);
    }
    let mut other = world.staging(2 * MIB);
    let theirs = other.contents().expect("nothing is queued").as_ptr().addr() as u64;
    let ordinary = vec![0u8; 64 << 10];
    let places = [
        ("mapped", range.address),
        ("over two heaps", range.address + 2 * MIB as u64 - 32),
        ("only reserved", range.address + 4 * MIB as u64),
        ("running out of what is mapped", range.address + 4 * MIB as u64 - 32),
        ("mapped without access", range.address + 8 * MIB as u64),
        ("never reserved", 4096),
        ("heap on the host", range.address + 16 * MIB as u64),
        ("registered memory of the host", theirs),
        ("ordinary memory of the host", ordinary.as_ptr().addr() as u64),
    ];
    let entered = world.gpu.enter().expect("a context");
    let ask = |address: u64, attribute: u32| {
        let mut value = 0u64;
        // SAFETY: valid for what is written, at most a pointer.
        let code = entered.call("cuPointerGetAttribute", |f| unsafe {
            (f.pointer_get_attribute)((&raw mut value).cast(), attribute, address)
        });
        code.map_or("none".to_owned(), |()| format!("{value:#x}"))
    };
    for (name, address) in places {
        println!("{name}: memory type {}, by the host's address {}", ask(address, 2), ask(address, 4));
    }
    let start = Instant::now();
    for _ in 0..10_000 {
        ask(range.address, 4);
    }
    println!("asking takes {} ns", start.elapsed().as_nanos() / 10_000);
    drop(entered);
    // Downloads only: an upload to memory of the host would write to it.
    for (name, address) in places {
        let mut buffer = world.staging(2 * MIB);
        let queued = buffer.download(0, address, 64);
        println!("{name}: {queued:?}, then {:?}", buffer.contents().map(|contents| contents.len()));
    }
}
