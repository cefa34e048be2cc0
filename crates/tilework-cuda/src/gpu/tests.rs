#![cfg(target_os = "linux")]

use super::*;
use crate::driver::{CAPTURE_GLOBAL, DEINITIALIZED, INVALID_CONTEXT};
use crate::fake::{Config, Fake};

fn failure(config: Config, ordinal: u32) -> CudaError {
    Gpu::open(Fake::new(config).driver(), ordinal).map(drop).unwrap_err()
}

#[test]
fn a_gpu_tells_what_it_is() {
    let fake = Fake::new(Config::default());
    let gpu = Gpu::open(fake.driver(), 1).unwrap();
    assert_eq!((gpu.ordinal(), gpu.name(), gpu.maps_memory()), (1, "Fake GPU", true));
    assert_eq!((gpu.total_bytes(), gpu.granularity()), (4 << 30, Ok(2 << 20)));
    assert_eq!(gpu.free_and_total(), Ok((4 << 30, 4 << 30)));
    assert_eq!(gpu.compute_capability(), Ok((9, 0)));
    assert_eq!((gpu.driver().version(), gpu.driver().count()), (Ok((13, 0)), Ok(2)));
    let none = Fake::new(Config { gpus: 0, ..Config::default() });
    assert_eq!(none.driver().count(), Err(CudaError::NoGpu));
}

#[test]
fn no_gpu_and_no_such_gpu_are_told_apart() {
    let config = Config::default();
    assert_eq!(failure(Config { gpus: 0, ..config }, 0), CudaError::NoGpu);
    for ordinal in [2, u32::MAX] {
        let error = failure(config, ordinal);
        assert_eq!(error, CudaError::NoSuchGpu { ordinal, count: 2 });
        assert!(error.to_string().contains(&format!("no GPU {ordinal}: the driver has 2")), "{error}");
    }
}

#[test]
fn a_driver_that_does_not_start_is_an_error() {
    for function in ["cuInit", "cuDeviceGetCount", "cuDeviceTotalMem", "cuDevicePrimaryCtxRetain"] {
        let fake = Fake::new(Config::default());
        fake.fail(function, 1, INVALID_CONTEXT);
        let error = Gpu::open(fake.driver(), 0).map(drop).unwrap_err();
        assert!(error.to_string().starts_with(function), "{error}");
        assert_eq!(fake.retained(0), 0);
    }
}

#[test]
fn the_context_is_retained_while_the_gpu_is_open() {
    let fake = Fake::new(Config::default());
    let gpu = Gpu::open(fake.driver(), 1).unwrap();
    assert_eq!((fake.retained(0), fake.retained(1)), (0, 1));
    let again = Gpu::open(fake.driver(), 1).unwrap();
    assert_eq!(fake.retained(1), 2);
    drop((gpu, again));
    assert_eq!(fake.retained(1), 0);
}

#[test]
fn entering_and_leaving_restores_context_and_mode() {
    let fake = Fake::new(Config::default());
    let gpu = Gpu::open(fake.driver(), 1).unwrap();
    for theirs in [vec![], vec![0], vec![1], vec![2], vec![1, 2, 0]] {
        for &context in &theirs {
            fake.push_context(context);
        }
        {
            let _entered = gpu.enter().unwrap();
            assert_eq!(fake.contexts().last(), Some(&2));
            assert_eq!(fake.capture_mode(), CAPTURE_RELAXED);
            // No push where the context is the GPU's already.
            let pushed = usize::from(theirs.last() != Some(&2));
            assert_eq!(fake.contexts().len(), theirs.len() + pushed);
            let _nested = gpu.enter().unwrap();
            assert_eq!(fake.contexts().len(), theirs.len() + pushed);
        }
        assert_eq!((fake.contexts(), fake.capture_mode()), (theirs.clone(), CAPTURE_GLOBAL));
        for _ in theirs {
            let mut popped = ptr::null_mut();
            // SAFETY: valid for the write.
            gpu.driver.call("cuCtxPopCurrent", |f| unsafe { (f.ctx_pop_current)(&mut popped) }).unwrap();
        }
    }
}

#[test]
fn failing_to_enter_leaves_nothing_behind() {
    let fake = Fake::new(Config::default());
    let gpu = Gpu::open(fake.driver(), 0).unwrap();
    for function in ["cuCtxGetCurrent", "cuCtxPushCurrent", "cuThreadExchangeStreamCaptureMode"] {
        fake.fail(function, 1, DEINITIALIZED);
        let error = gpu.enter().map(drop).unwrap_err();
        assert_eq!(error.code(), Some(DEINITIALIZED));
        assert_eq!((fake.contexts(), fake.capture_mode()), (vec![], CAPTURE_GLOBAL));
    }
}

#[test]
fn peers_are_checked() {
    let fake = Fake::new(Config::default());
    let gpu = Gpu::open(fake.driver(), 0).unwrap();
    assert_eq!(gpu.peer(1), Ok(1));
    assert_eq!(gpu.peer(0), Err(CudaError::NoPeer { ordinal: 0, peer: 0 }));
    assert_eq!(gpu.peer(2), Err(CudaError::NoSuchGpu { ordinal: 2, count: 2 }));
}
