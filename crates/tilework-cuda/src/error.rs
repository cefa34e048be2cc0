//! What can go wrong with a GPU, and how a device tells it.

use tilework::device::{Call, DeviceError};

use crate::driver::{Code, DEINITIALIZED, OUT_OF_MEMORY};

/// Why a GPU cannot be used, or what its driver answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The driver's library could not be loaded.
    #[error("no NVIDIA driver was found: {reason}; install the driver, or use a device without a GPU")]
    NoDriver {
        /// What the system's loader said.
        reason: String,
    },
    /// The driver lacks a function.
    #[error("the NVIDIA driver is too old: it lacks {symbol}; CUDA 11.2 or later is needed")]
    TooOld {
        /// Which function.
        symbol: &'static str,
    },
    /// The driver works and has no GPU.
    #[error("the NVIDIA driver found no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES")]
    NoGpu,
    /// There are GPUs, but not this one.
    #[error("there is no GPU {ordinal}: the driver has {count}, counted from 0")]
    NoSuchGpu {
        /// Which was asked for.
        ordinal: u32,
        /// How many there are.
        count: u32,
    },
    /// A peer that was named cannot reach the GPU's memory.
    #[error("GPU {peer} cannot access the memory of GPU {ordinal}: leave it out of the peers")]
    NoPeer {
        /// Whose memory.
        ordinal: u32,
        /// Who cannot reach it.
        peer: u32,
    },
    /// The process is a child, made by `fork` after the GPU was opened.
    #[error(
        "this process was forked from the one that opened the GPU, and CUDA does not survive a fork: \
         start processes with spawn, or open the GPU after the fork"
    )]
    Forked,
    /// The driver refused a call.
    #[error("{function}: {name} ({code}): {text}")]
    Refused {
        /// The driver's function.
        function: &'static str,
        /// What it returned.
        code: Code,
        /// The driver's name for it.
        name: String,
        /// The driver's sentence on it.
        text: String,
    },
}

impl CudaError {
    /// What the driver returned, when it is the driver that refused.
    pub fn code(&self) -> Option<Code> {
        match *self {
            CudaError::Refused { code, .. } => Some(code),
            _ => None,
        }
    }

    /// True when the driver is gone for this process, and with it everything that was taken from it.
    pub(crate) fn is_the_end(&self) -> bool {
        matches!(self, CudaError::Forked) || self.code() == Some(DEINITIALIZED)
    }

    /// As the failure of a device's call.
    pub(crate) fn failed(self, call: Call) -> DeviceError {
        DeviceError::Failed { call, reason: self.to_string() }
    }

    /// As the failure of a device's call that takes physical memory for `bytes`: for the bytes
    /// themselves, or for the page tables that show them.
    pub(crate) fn failed_for(self, call: Call, bytes: u64) -> DeviceError {
        match self.code() {
            Some(OUT_OF_MEMORY) => DeviceError::OutOfMemory { bytes },
            _ => self.failed(call),
        }
    }
}
