//! Puts the device `d3d12` to the test on a machine that has one: the suites of devices and managers, and what only
//! Direct3D has. No arguments; one line a check; ends with 0 when all held.
//!
//! ```text
//! cargo build --release -p tilework-d3d12 --target x86_64-pc-windows-gnu --example tilework-d3d12-conformance
//! ```
//!
//! Each check runs in a process of its own: one that panics, or takes the driver down with it, leaves the others as they
//! were. `PROPTEST_CASES` sets how many random sequences are run.

use std::process::ExitCode;

#[cfg(windows)]
mod checks;
#[cfg(windows)]
mod device;
#[cfg(windows)]
mod executor;
#[cfg(windows)]
mod own;
#[cfg(windows)]
mod program;
#[cfg(windows)]
mod run;

fn main() -> ExitCode {
    #[cfg(windows)]
    return run::main();
    #[cfg(not(windows))]
    {
        eprintln!("{}", tilework_d3d12::D3d12Error::NotWindows { index: 0 });
        ExitCode::FAILURE
    }
}
