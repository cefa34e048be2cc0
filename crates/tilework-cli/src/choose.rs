//! Choosing a manager and the device under it by name.

use std::path::Path;

use anyhow::{Context, bail};
use tilework::device::limit::Limit;
use tilework::device::{self, Device};
use tilework::manager::{self, Built, Choice, Options};
use tilework::trace::Trace;

use crate::progress::Progress;
use crate::units::{parse_bytes, parse_scale};

/// Options shared by everything that runs on a manager.
#[derive(clap::Args)]
pub struct Managing {
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

impl Managing {
    /// Builds the manager on a device.
    pub fn build(&self, choice: Choice, mut device: Box<dyn Device>) -> anyhow::Result<Built> {
        let name = device.name();
        if let Some(limit) = self.limit {
            device = Box::new(Limit::new(device, limit)) as Box<dyn Device>;
        }
        manager::build(choice, device, &self.options())
            .with_context(|| format!("cannot set up {choice} on {name}"))
    }

    /// How the manager is to serve.
    pub fn options(&self) -> Options {
        Options {
            heap_bytes: self.heap_size,
            mapping_age: self.mapping_age,
            heap_age: self.heap_age,
            ..Options::default()
        }
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
pub fn open(name: &str) -> anyhow::Result<Box<dyn Device>> {
    let cannot = || format!("cannot open {name}");
    if let Some(ordinal) = tilework_cuda::ordinal(name) {
        return tilework_cuda::open(ordinal).with_context(cannot);
    }
    if let Some(index) = tilework_vulkan::index(name) {
        return tilework_vulkan::open(index).with_context(cannot);
    }
    if let Some(index) = tilework_d3d12::index(name) {
        return tilework_d3d12::open(index).with_context(cannot);
    }
    Ok(device::open(name)?)
}

/// Options shared by everything that replays traces.
#[derive(clap::Args)]
pub struct Replaying {
    /// Where: host, sim-h200, sim-d3d12, null, cuda or cuda:N (an NVIDIA GPU, the first or the one numbered N),
    /// vulkan or vulkan:N (a Vulkan device, likewise), d3d12 or d3d12:N (a Direct3D 12 adapter, on Windows); a model
    /// runs on host or cuda [default: for traces sim-h200, host with --verify; for models host]
    #[arg(long, value_name = "NAME", value_parser = parse_device)]
    pub device: Option<String>,

    /// Multiply every size by this, rounding up
    #[arg(long, value_name = "X", value_parser = parse_scale, default_value_t = 1.0)]
    pub scale: f64,

    #[command(flatten)]
    pub managing: Managing,

    /// Fill each block with a pattern of its own and check it before it is freed
    #[arg(long)]
    pub verify: bool,
}

impl Replaying {
    /// The device to use: the one that was named, or one that has what is needed.
    pub fn device(&self) -> &str {
        self.device.as_deref().unwrap_or(if self.verify { "host" } else { "sim-h200" })
    }

    /// Loads a trace that has something to replay.
    pub fn load(&self, path: &Path) -> anyhow::Result<Trace> {
        let reading = Progress::of_unknown(format!("reading {}", path.display()));
        let trace = Trace::load(path)?;
        drop(reading);
        if trace.is_empty() {
            bail!("{}: the trace has a header and no events: there is nothing to replay", path.display());
        }
        trace.scaled(self.scale).with_context(|| path.display().to_string())
    }

    /// The options as arguments, for a process that replays the same.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = self.managing.arguments();
        arguments.extend([format!("--device={}", self.device()), format!("--scale={}", self.scale)]);
        arguments.extend(self.verify.then(|| "--verify".to_owned()));
        arguments
    }
}

/// Reads the name of a device.
pub fn parse_device(name: &str) -> Result<String, String> {
    let numbered = tilework_cuda::ordinal(name)
        .or_else(|| tilework_vulkan::index(name))
        .or_else(|| tilework_d3d12::index(name));
    if device::NAMES.contains(&name) || numbered.is_some() {
        return Ok(name.to_owned());
    }
    let known = device::NAMES.join(", ");
    Err(format!(
        "unknown device {name:?}: the devices are {known}, cuda and cuda:N (the GPU numbered N), vulkan and vulkan:N \
         (the Vulkan device numbered N), d3d12 and d3d12:N (the Direct3D 12 adapter numbered N)"
    ))
}

fn parse_heap(text: &str) -> Result<u64, String> {
    match parse_bytes(text)? {
        0 => Err("a heap needs at least one byte".to_owned()),
        bytes => Ok(bytes),
    }
}
