use super::*;

#[test]
fn a_missing_library_is_named() {
    // SAFETY: there is no such library.
    let error = unsafe { Driver::load_from("libno-such-driver.so.1") }.map(|_| ()).unwrap_err();
    let CudaError::NoDriver { reason } = &error else { panic!("{error}") };
    assert!(reason.contains("no-such-driver"), "{reason}");
    let message = error.to_string();
    assert!(message.starts_with("no NVIDIA driver was found: "), "{message}");
    assert!(message.contains("install the driver"), "{message}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_missing_function_is_named() {
    // SAFETY: the C library is loaded already, and exports nothing of the driver's.
    let error = unsafe { Driver::load_from("libc.so.6") }.map(|_| ()).unwrap_err();
    assert_eq!(error, CudaError::TooOld { symbol: "cuInit" });
    let message = error.to_string();
    assert!(message.contains("lacks cuInit") && message.contains("CUDA 11.2 or later"), "{message}");
}

#[cfg(target_os = "linux")]
#[test]
fn refusals_are_in_the_drivers_words() {
    let driver = crate::fake::Fake::of_this_thread().driver();
    let message = driver.refused("cuMemMap", NOT_SUPPORTED).to_string();
    assert_eq!(message, "cuMemMap: CUDA_ERROR_NOT_SUPPORTED (801): operation not supported");
    let message = driver.refused("cuMemMap", 4711).to_string();
    assert_eq!(message, "cuMemMap: unknown to the driver (4711): unknown to the driver");
}
