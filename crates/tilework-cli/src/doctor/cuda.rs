//! NVIDIA GPUs, by their driver.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tilework_cuda::CudaError;
use tilework_cuda::driver::Driver;
use tilework_cuda::gpu::Gpu;

use super::found::Found;

/// What the kernel tells of the driver's module.
const MODULE: &str = "/proc/driver/nvidia/version";

/// What there is to tell of a GPU beyond its capabilities.
#[derive(Serialize, Deserialize)]
pub struct Details {
    /// The driver's own version, such as "580.95.05", where the kernel tells it.
    driver_version: Option<String>,
    /// The CUDA that the driver speaks, such as "13.0".
    cuda_version: String,
    /// Such as "9.0".
    compute_capability: String,
    /// Whether physical memory is created and mapped apart from address space.
    virtual_memory_management: bool,
    /// Whether memory of the host is mapped in the same way.
    maps_host_memory: bool,
    /// The ordinals of the GPUs that can use its memory.
    peers: Vec<u32>,
}

impl Details {
    /// The lines to print.
    pub fn lines(&self) -> Vec<String> {
        let yes = |has| if has { "yes" } else { "no" };
        let peers: Vec<_> = self.peers.iter().map(|peer| format!("cuda:{peer}")).collect();
        vec![format!(
            "driver {} for CUDA {}, compute capability {}, virtual memory management: {}, memory of the host mapped: {}, \
             peers: {}",
            self.driver_version.as_deref().unwrap_or("of unknown version"),
            self.cuda_version,
            self.compute_capability,
            yes(self.virtual_memory_management),
            yes(self.maps_host_memory),
            if peers.is_empty() { "none".to_owned() } else { peers.join(", ") }
        )]
    }
}

/// Every GPU, or why there is none.
pub fn find() -> Vec<Found> {
    let broken = |error: CudaError| vec![Found::broken("cuda", "", &error, fix(&error))];
    let driver = match Driver::load() {
        Ok(driver) => driver,
        Err(error) => return broken(error),
    };
    match driver.count() {
        Ok(count) => (0..count).map(|ordinal| look(&driver, ordinal, count)).collect(),
        Err(error) => broken(error),
    }
}

fn look(driver: &Arc<Driver>, ordinal: u32, count: u32) -> Found {
    let mut what = String::new();
    open(driver, ordinal, count, &mut what).unwrap_or_else(|error| {
        let name = if ordinal == 0 { "cuda".to_owned() } else { format!("cuda:{ordinal}") };
        Found::broken(name, what, &error, fix(&error))
    })
}

fn open(driver: &Arc<Driver>, ordinal: u32, count: u32, what: &mut String) -> Result<Found, CudaError> {
    let gpu = Gpu::open(Arc::clone(driver), ordinal)?;
    gpu.name().clone_into(what);
    let (free, total) = gpu.free_and_total()?;
    let dotted = |(major, minor): (u32, u32)| format!("{major}.{minor}");
    let details = Details {
        driver_version: std::fs::read_to_string(MODULE).ok().and_then(|text| version_in(&text)),
        cuda_version: dotted(driver.version()?),
        compute_capability: dotted(gpu.compute_capability()?),
        virtual_memory_management: gpu.maps_memory(),
        maps_host_memory: gpu.host_location().is_some(),
        peers: (0..count).filter(|&peer| peer != ordinal && gpu.peer(peer).is_ok()).collect(),
    };
    let mut found = Found::working(&*tilework_cuda::open_on(gpu)?, &**what);
    if !details.virtual_memory_management {
        let fix = "nothing needs to be done; mapping tiles takes a driver and a GPU with virtual memory management: bare \
                   metal, or a virtual GPU whose profile allows unified memory";
        found.fix = Some(fix.to_owned());
    }
    found.total_bytes = Some(total);
    found.free_bytes = Some(free);
    found.cuda = Some(details);
    Ok(found)
}

/// The first word of the kernel's that is a version.
fn version_in(text: &str) -> Option<String> {
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.split_whitespace().find(is_version).map(str::to_owned)
}

/// What to do about an error.
fn fix(error: &CudaError) -> &'static str {
    match error {
        CudaError::NoDriver { .. } => {
            "for an NVIDIA GPU install its driver (nvidia-driver on Debian), and start containers with it (--gpus all)"
        }
        CudaError::TooOld { .. } => "update the NVIDIA driver to one for CUDA 11.2 or later",
        CudaError::NoGpu => {
            "see whether nvidia-smi finds the GPU, unset CUDA_VISIBLE_DEVICES, and start containers with --gpus all"
        }
        _ => {
            "see what nvidia-smi and the kernel's log (dmesg) say of the GPU; a driver that was updated wants a restart"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::version_in;

    #[test]
    fn the_version_is_found_in_what_the_kernel_tells() {
        for text in [
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 10:11:16 UTC 2025\nGCC version: gcc 12.2.0",
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22)",
        ] {
            assert_eq!(version_in(text).as_deref(), Some("580.95.05"));
        }
        assert_eq!(version_in("no such module"), None);
    }
}
