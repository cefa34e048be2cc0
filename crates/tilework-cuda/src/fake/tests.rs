use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::driver::{
    AccessDesc, AllocationProp, Event, Functions, HOST_MEMORY_ALREADY_REGISTERED, HOST_MEMORY_NOT_REGISTERED,
    INVALID_VALUE, NOT_READY, NOT_SUPPORTED,
};
use crate::gpu::Gpu;

const TILE: usize = 2 << 20;

/// Calls one function of the fake in the context of its first GPU.
fn code(gpu: &Gpu, call: impl FnOnce(&Functions) -> Code) -> Code {
    match gpu.enter().unwrap().call("a function", call) {
        Ok(()) => SUCCESS,
        Err(error) => error.code().unwrap(),
    }
}

fn gpu() -> (Fake, Gpu) {
    let fake = Fake::new(Config::default());
    let gpu = Gpu::open(fake.driver(), 0).unwrap();
    (fake, gpu)
}

#[test]
fn mapping_has_the_rules_of_the_real_driver() {
    let (fake, gpu) = gpu();
    let prop = AllocationProp::device(0);
    let access = AccessDesc::read_write(0);
    let (mut range, mut handle) = (0, 0);
    // SAFETY: all pointers are valid; what the fake refuses it does not do.
    unsafe {
        assert_eq!(code(&gpu, |f| (f.mem_address_reserve)(&mut range, 4 * TILE, 0, 0, 0)), SUCCESS);
        assert_eq!(code(&gpu, |f| (f.mem_create)(&mut handle, TILE + 4096, &prop, 0)), INVALID_VALUE);
        assert_eq!(code(&gpu, |f| (f.mem_create)(&mut handle, 2 * TILE, &prop, 0)), SUCCESS);
        assert_eq!(code(&gpu, |f| (f.mem_map)(range, TILE, 0, handle, 0)), NOT_SUPPORTED);
        assert_eq!(code(&gpu, |f| (f.mem_map)(range, TILE, TILE, handle, 0)), NOT_SUPPORTED);
        assert_eq!(code(&gpu, |f| (f.mem_map)(range, 2 * TILE, 0, handle, 0)), SUCCESS);
        assert_eq!(code(&gpu, |f| (f.mem_map)(range, 2 * TILE, 0, handle, 0)), INVALID_VALUE);
        let mut byte = [1u8; 1];
        let byte = byte.as_mut_ptr().cast::<c_void>();
        assert_eq!(code(&gpu, |f| (f.memcpy_device_to_host)(byte, range, 1)), INVALID_VALUE);
        assert_eq!(code(&gpu, |f| (f.mem_set_access)(range, TILE, &access, 1)), INVALID_VALUE);
        assert_eq!(code(&gpu, |f| (f.mem_set_access)(range, 2 * TILE, &access, 1)), SUCCESS);
        assert_eq!(code(&gpu, |f| (f.memcpy_device_to_host)(byte, range, 1)), SUCCESS);
        assert_eq!(code(&gpu, |f| (f.mem_address_free)(range, 4 * TILE)), INVALID_VALUE);
        assert_eq!(code(&gpu, |f| (f.mem_unmap)(range, TILE)), INVALID_VALUE);

        assert_eq!(code(&gpu, |f| (f.mem_release)(handle)), SUCCESS);
        assert_eq!(code(&gpu, |f| (f.mem_release)(handle)), INVALID_VALUE);
        assert_eq!(fake.held_bytes(), 2 * TILE as u64, "mapped memory outlives its handle");
        assert_eq!(code(&gpu, |f| (f.mem_unmap)(range, 2 * TILE)), SUCCESS);
        assert_eq!(fake.held_bytes(), 0);
        assert_eq!(code(&gpu, |f| (f.mem_unmap)(range, 2 * TILE)), SUCCESS, "nothing is mapped there");
        assert_eq!(code(&gpu, |f| (f.mem_unmap)(range, 5 * TILE)), INVALID_VALUE, "beyond the reservation");
        assert_eq!(code(&gpu, |f| (f.mem_address_free)(range, 2 * TILE)), INVALID_VALUE);
        assert_eq!(code(&gpu, |f| (f.mem_address_free)(range, 4 * TILE)), SUCCESS);
        assert_eq!(code(&gpu, |f| (f.mem_address_free)(range, 4 * TILE)), INVALID_VALUE);
    }
}

#[test]
fn memory_needs_a_context_and_an_uncaptured_or_relaxed_thread() {
    let (fake, gpu) = gpu();
    let create = || {
        let mut handle = 0;
        gpu.driver().call("cuMemCreate", |f| {
            // SAFETY: both pointers are valid.
            unsafe { (f.mem_create)(&mut handle, TILE, &AllocationProp::device(0), 0) }
        })
    };
    assert_eq!(create().unwrap_err().code(), Some(INVALID_CONTEXT));
    fake.push_context(1);
    create().unwrap();
    fake.capture(ptr::null_mut(), true);
    assert_eq!(create().unwrap_err().code(), Some(STREAM_CAPTURE_UNSUPPORTED));
    fake.capture(ptr::null_mut(), false);
    create().unwrap();
}

#[test]
fn allocations_are_not_zeros_and_are_freed_once() {
    let (fake, gpu) = gpu();
    let mut address = 0;
    let mut found = [0u8; 512];
    // SAFETY: all pointers are valid.
    unsafe {
        assert_eq!(code(&gpu, |f| (f.mem_alloc)(&mut address, 512)), SUCCESS);
        let out = found.as_mut_ptr().cast();
        assert_eq!(code(&gpu, |f| (f.memcpy_device_to_host)(out, address, 512)), SUCCESS);
        assert_eq!((found[0], found[511], fake.held_bytes()), (0xcd, 0xcd, 512));
        assert_eq!(code(&gpu, |f| (f.mem_free)(address)), SUCCESS);
        assert_eq!(code(&gpu, |f| (f.mem_free)(address)), INVALID_VALUE);
    }
}

#[test]
fn memory_of_the_host_is_registered_once_and_copied_to_when_the_stream_gets_there() {
    let (fake, gpu) = gpu();
    let mut host = vec![0u8; 8192];
    let start = host.as_mut_ptr().cast::<c_void>();
    let (mut stream, mut address): (Stream, u64) = (ptr::null_mut(), 0);
    // SAFETY: all pointers are valid, also when copies are made, as `host` outlives them; what the fake refuses it
    // does not do.
    unsafe {
        assert_eq!(code(&gpu, |f| (f.mem_alloc)(&mut address, 512)), SUCCESS);
        assert_eq!(code(&gpu, |f| (f.stream_create)(&mut stream, 1)), SUCCESS);
        let down = |to, bytes| code(&gpu, |f| (f.memcpy_device_to_host_async)(to, address, bytes, stream));
        assert_eq!(down(start, 16), NOT_SUPPORTED, "not registered");
        assert_eq!(code(&gpu, |f| (f.mem_host_register)(start, 0, 1)), INVALID_VALUE);
        assert_eq!(code(&gpu, |f| (f.mem_host_register)(start, 4096, 1)), SUCCESS);
        let inside = start.wrapping_byte_add(4000);
        let again = code(&gpu, |f| (f.mem_host_register)(inside, 8, 1));
        assert_eq!(again, HOST_MEMORY_ALREADY_REGISTERED);
        assert_eq!(down(inside, 128), NOT_SUPPORTED, "beyond what is registered");
        assert_eq!(down(start, 513), INVALID_VALUE, "beyond the allocation");

        fake.hold(stream);
        assert_eq!(down(start, 16), SUCCESS);
        assert_eq!(start.cast::<u8>().read_volatile(), 0, "not yet");
        fake.let_go(stream);
        assert_eq!(start.cast::<u8>().read_volatile(), 0xcd);

        fake.hold(stream);
        assert_eq!(down(start, 16), SUCCESS);
        start.cast::<u8>().write_volatile(1);
        assert_eq!(code(&gpu, |f| (f.mem_host_unregister)(start)), SUCCESS);
        assert_eq!(fake.unmapped_under_work(), 1);
        fake.let_go(stream);
        assert_eq!(start.cast::<u8>().read_volatile(), 1, "not copied to what is no longer registered");
        assert_eq!(code(&gpu, |f| (f.mem_host_unregister)(start)), HOST_MEMORY_NOT_REGISTERED);
    }
}

#[test]
fn queued_work_waits_for_what_it_is_told_to() {
    let (fake, gpu) = gpu();
    let mut streams: [Stream; 2] = [ptr::null_mut(); 2];
    let mut event: Event = ptr::null_mut();
    // SAFETY: all pointers are valid, streams and events those made here, and the flag outlives the call of
    // the host function, which happens below.
    unsafe {
        for stream in &mut streams {
            assert_eq!(code(&gpu, |f| (f.stream_create)(stream, 1)), SUCCESS);
        }
        let [first, second] = streams;
        assert_eq!(code(&gpu, |f| (f.event_create)(&mut event, 2)), SUCCESS);
        assert_eq!(code(&gpu, |f| (f.event_query)(event)), SUCCESS, "never recorded");
        assert_eq!(code(&gpu, |f| (f.stream_wait_event)(second, event, 0)), SUCCESS);
        assert_eq!(code(&gpu, |f| (f.stream_query)(second)), SUCCESS);

        fake.hold(first);
        fake.launch(first);
        assert_eq!(code(&gpu, |f| (f.event_record)(event, first)), SUCCESS);
        assert_eq!(code(&gpu, |f| (f.event_query)(event)), NOT_READY);
        assert_eq!(code(&gpu, |f| (f.stream_wait_event)(second, event, 0)), SUCCESS);
        unsafe extern "system" fn raise(flag: *mut c_void) {
            // SAFETY: the flag that was queued with it.
            unsafe { &*flag.cast::<AtomicBool>() }.store(true, Ordering::SeqCst);
        }
        let flag = AtomicBool::new(false);
        let data = (&raw const flag).cast_mut().cast();
        assert_eq!(code(&gpu, |f| (f.launch_host_func)(second, Some(raise), data)), SUCCESS);
        assert_eq!(code(&gpu, |f| (f.stream_query)(second)), NOT_READY);
        assert!(!flag.load(Ordering::SeqCst));

        let other = fake.clone();
        let first = first.addr();
        let helper = std::thread::spawn(move || other.let_go(ptr::without_provenance_mut(first)));
        assert_eq!(code(&gpu, |f| (f.stream_synchronize)(second)), SUCCESS);
        helper.join().unwrap();
        assert_eq!(code(&gpu, |f| (f.event_synchronize)(event)), SUCCESS);
        assert!(flag.load(Ordering::SeqCst));
        assert_eq!(code(&gpu, |f| (f.event_destroy)(event)), SUCCESS);
        for stream in streams {
            assert_eq!(code(&gpu, |f| (f.stream_destroy)(stream)), SUCCESS);
            assert_eq!(code(&gpu, |f| (f.stream_query)(stream)), crate::driver::INVALID_HANDLE);
        }
    }
}

#[test]
fn each_thread_has_its_own_unless_it_is_given_one() {
    let fake = Fake::new(Config::default());
    let driver = fake.driver();
    assert!(Gpu::open(Arc::clone(&driver), 0).is_ok());
    let (other, fake_there) = (Arc::clone(&driver), fake.clone());
    std::thread::spawn(move || {
        assert!(Gpu::open(Arc::clone(&other), 0).is_err());
        fake_there.attach();
        assert!(Gpu::open(other, 0).is_ok());
    })
    .join()
    .unwrap();
    assert_eq!(fake.calls("cuInit"), 2);
}
