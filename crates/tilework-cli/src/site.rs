//! Where a model runs: on the host, or on a GPU.

use anyhow::Context;
use tilework::device::waiting::{Wait, Waiting};
use tilework::manager::{Choice, Manager, Options, Serving};
use tilework::shared::Shared;
use tilework::shared::streams::{InOrder, Streams};
use tilework_cuda::driver::Driver;
use tilework_cuda::gpu::Gpu;
use tilework_cuda::streams::CudaStreams;
use tilework_ort::{Allocator, Place, find};

use crate::choose::{self, Managing};
use crate::engine::ModelOptions;
use crate::exit::Usage as Misuse;
use crate::pool::Pool;

/// A device that a model can run on, there and working.
pub struct Site {
    name: String,
    /// None: the host.
    gpu: Option<Gpu>,
}

impl Site {
    /// The device with this name.
    ///
    /// # Errors
    /// When no model can run there, or there is no such GPU.
    pub fn open(name: &str) -> anyhow::Result<Site> {
        let gpu = match tilework_cuda::ordinal(name) {
            Some(ordinal) => Some(gpu(ordinal).with_context(|| format!("cannot open {name}"))?),
            None if name == "host" => None,
            None => {
                let sentence = format!(
                    "the device {name} has no memory that a model could run in: use host, or cuda for a GPU"
                );
                return Err(Misuse(sentence).into());
            }
        };
        Ok(Site { name: name.to_owned(), gpu })
    }

    /// The name it is chosen by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// As ONNX Runtime knows it.
    pub fn place(&self) -> Place {
        match &self.gpu {
            Some(gpu) => Place::Cuda(gpu.ordinal() as i32),
            None => Place::Cpu,
        }
    }

    /// Whether it is a GPU.
    pub fn is_gpu(&self) -> bool {
        self.gpu.is_some()
    }

    /// The memory of a GPU that is free, bytes, all processes together.
    pub fn free_bytes(&self) -> Option<u64> {
        self.gpu.as_ref()?.free_and_total().ok().map(|(free, _)| free)
    }

    /// A runtime that can run models here; what takes time is told on stderr.
    ///
    /// # Errors
    /// When there is none.
    pub fn library(&self, options: &ModelOptions) -> anyhow::Result<find::Found> {
        if self.is_gpu() { options.library_with_cuda() } else { options.library() }
    }

    /// A manager of the memory here, for ONNX Runtime: `dress` puts on it what else there is to be. Also which
    /// kind serves, and why.
    ///
    /// # Errors
    /// When the device does not open.
    #[expect(unsafe_code, reason = "ONNX Runtime takes the manager's word for what is memory")]
    pub fn allocator(
        &self,
        managing: &Managing,
        choice: Choice,
        dress: impl FnOnce(Box<dyn Manager>) -> anyhow::Result<Box<dyn Manager>>,
    ) -> anyhow::Result<(Allocator, Serving)> {
        let device = choose::open(&self.name)?;
        let Some(gpu) = &self.gpu else {
            let built = managing.build(choice, device)?;
            // SAFETY: the manager is one of `tilework`'s, dressed or not, and its device is the host, whose
            // addresses are memory of this process.
            return Ok((unsafe { Allocator::new(dress(built.manager)?) }, built.serving));
        };
        let ordinal = gpu.ordinal();
        let built = managing.build(choice, Box::new(Waiting::new(device, wait(ordinal)?)))?;
        // SAFETY: the manager is one of `tilework`'s, dressed or not; its device is this GPU, whose memory is in
        // the primary context, and unmaps nothing before the GPU has done what was queued.
        let allocator = unsafe { Allocator::on_gpu(dress(built.manager)?, ordinal, wait(ordinal)?) };
        Ok((allocator, built.serving))
    }

    /// The memory here for several models.
    ///
    /// # Errors
    /// When the device does not open.
    pub fn shared(&self, options: &Options) -> anyhow::Result<Shared> {
        let streams: Box<dyn Streams> = match &self.gpu {
            Some(of) => Box::new(CudaStreams::new(gpu(of.ordinal())?)),
            None => Box::new(InOrder),
        };
        Ok(Shared::new(choose::open(&self.name)?, streams, options)?)
    }

    /// A pool of the memory here, for ONNX Runtime.
    #[expect(unsafe_code, reason = "ONNX Runtime takes the pool's word for what is memory")]
    pub fn pooled(&self, pool: Pool) -> Allocator {
        // SAFETY: the pool is over this device's memory, by `Site::shared`. It serves streams as guests, whose memory goes
        // to no other before the host has waited for the device, and groups only while they are resident: whoever runs
        // a model keeps its group pinned until the run, at whose end ONNX Runtime waits, is over.
        unsafe { Allocator::over(self.place(), Box::new(pool)) }
    }

    /// Waits for all work of the device.
    ///
    /// # Errors
    /// When a GPU cannot be waited for.
    pub fn wait(&self) -> anyhow::Result<()> {
        match &self.gpu {
            Some(gpu) => Ok(wait(gpu.ordinal())?()?),
            None => Ok(()),
        }
    }
}

fn gpu(ordinal: u32) -> anyhow::Result<Gpu> {
    Ok(Gpu::open(Driver::load()?, ordinal)?)
}

/// What waits for all work of a GPU.
fn wait(ordinal: u32) -> anyhow::Result<Wait> {
    let streams = CudaStreams::new(gpu(ordinal)?);
    Ok(Box::new(move || streams.synchronize_device()))
}
