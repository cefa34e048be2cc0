//! Choosing a manager and the device under it by name.

use anyhow::Context;
use tilework::device::limit::Limit;
use tilework::device::{self, Device};
use tilework::manager::{self, Built, Kind, Options};

use crate::units::parse_bytes;

/// Options shared by everything that runs on a manager.
#[derive(clap::Args)]
pub struct Choice {
    /// The most physical memory the manager may hold, such as 2GiB [default: no limit]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub limit: Option<u64>,

    /// Physical memory that is created at once when a manager grows by heaps
    #[arg(long, value_name = "BYTES", value_parser = parse_heap, default_value = "64MiB")]
    pub heap_size: u64,

    /// Give a mapping back after this many passes (executions) without use
    #[arg(long, value_name = "N", default_value_t = Options::default().mapping_age)]
    pub mapping_age: u32,

    /// Give an empty heap back after this many passes (executions) without use
    #[arg(long, value_name = "N", default_value_t = Options::default().heap_age)]
    pub heap_age: u32,
}

impl Choice {
    /// Opens the device and builds the manager on it.
    pub fn build(&self, kind: Kind, device: &str) -> anyhow::Result<Built> {
        let mut opened = open(device)?;
        if let Some(limit) = self.limit {
            opened = Box::new(Limit::new(opened, limit)) as Box<dyn Device>;
        }
        let options = Options {
            heap_bytes: self.heap_size,
            mapping_age: self.mapping_age,
            heap_age: self.heap_age,
            ..Options::default()
        };
        manager::build(kind, opened, &options).with_context(|| format!("cannot set up {kind} on {device}"))
    }

    /// The options as arguments, for a process that runs the same.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("--heap-size={}", self.heap_size),
            format!("--mapping-age={}", self.mapping_age),
            format!("--heap-age={}", self.heap_age),
        ];
        arguments.extend(self.limit.map(|limit| format!("--limit={limit}")));
        arguments
    }
}

/// Opens a device by its name.
fn open(name: &str) -> anyhow::Result<Box<dyn Device>> {
    match tilework_cuda::ordinal(name) {
        Some(ordinal) => tilework_cuda::open(ordinal).with_context(|| format!("cannot open {name}")),
        None => Ok(device::open(name)?),
    }
}

/// Reads the name of a device.
pub fn parse_device(name: &str) -> Result<String, String> {
    if device::NAMES.contains(&name) || tilework_cuda::ordinal(name).is_some() {
        return Ok(name.to_owned());
    }
    let known = device::NAMES.join(", ");
    Err(format!("unknown device {name:?}: the devices are {known}, cuda and cuda:N (the GPU numbered N)"))
}

/// The device to use: the one that was named, or one that has what is needed.
pub fn device_or_default(named: Option<&str>, needs_memory: bool) -> &str {
    named.unwrap_or(if needs_memory { "host" } else { "sim-h200" })
}

fn parse_heap(text: &str) -> Result<u64, String> {
    match parse_bytes(text)? {
        0 => Err("a heap needs at least one byte".to_owned()),
        bytes => Ok(bytes),
    }
}
