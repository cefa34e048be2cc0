//! What it takes to carry contents between a GPU and the host, and what it costs to make the memory for it.
//!
//! ```text
//! cargo run --release -p tilework-cuda --example transfers -- [--gpu N] [--gib N] [PART...]
//!
//!   making     pinned memory, by the driver and by registering pages that were touched before or not
//!   pinned     contents to and from buffers that stay pinned, in copies of several lengths
//!   ring       through a few buffers to ordinary memory and back, by several threads
//!   host       memory on the host that the GPU maps as its own
//!   refusals   what the driver answers to copies of what is not mapped
//! ```
//!
//! All parts without any named, each with contents of 8 GiB. Linux.

#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "linux")]
fn main() {
    linux::main();
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("error: this measures what the pages of Linux cost");
}
