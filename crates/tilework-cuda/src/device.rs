//! GPUs as devices: [`Cuda`] where the GPU maps memory, [`Plain`] where it does not.

mod mapping;
mod plain;

use std::time::Instant;

pub use self::mapping::Cuda;
pub use self::plain::Plain;

/// The name a GPU is chosen by.
fn device_name(ordinal: u32) -> &'static str {
    match ordinal {
        0 => "cuda",
        // Names live as long as the program, and devices are few: a handful of bytes each.
        _ => Box::leak(format!("cuda:{ordinal}").into_boxed_str()),
    }
}

/// Runs one call of the driver and adds the time it took, nanoseconds.
fn timed<T>(nanos: &mut u64, call: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let answer = call();
    *nanos += u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    answer
}

#[cfg(all(test, target_os = "linux"))]
mod tests;
