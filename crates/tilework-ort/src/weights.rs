//! Which requests of a session that is being made are weights: nothing writes to them once it is there.
//!
//! Initializers are written while the session is made, and so is what kernels pack of them, before it or in place of it. A
//! run writes to neither: an initializer counts as used to the end, so no output is laid over it.
//!
//! But kernels of the CUDA provider may request memory for themselves as they are made, and write to it in a run. Of
//! those that ONNX Runtime brings, `MultiHeadAttention` does: it notes sums of sequence lengths in 516 bytes, in the
//! first run that wants them and never again. Nothing in the request tells it from a weight, but that it is small.
//! `docs/onnxruntime.md` has more of it.

use tilework::manager::Stream;

use crate::table::Place;

/// Requests below this are no weights on a GPU, bytes. Kernels' own are around a hundredth of it; of the bundled decoder's weights those
/// below it are a thousandth, all together.
pub const LEAST: u64 = 64 << 10;

/// Whether a request made while a session is created is a weight, which may leave the device and whose copy on the host
/// stays good. What is none is the kernels' own, or work's: it stays on the device.
pub fn is_weight(place: Place, bytes: u64, stream: Stream) -> bool {
    // What names a stream is for work that is queued there. Of the CPU's kernels none is known that requests such memory.
    stream == Stream::default() && (place == Place::Cpu || bytes >= LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_may_write_to_in_a_run_is_no_weight() {
        let is_weight = |place, bytes, stream| is_weight(place, bytes, Stream(stream));
        let sums_of_lengths = 4 * (128 + 1);
        assert!(!is_weight(Place::Cuda(0), sums_of_lengths, 0));
        assert!(is_weight(Place::Cuda(0), LEAST, 0) && !is_weight(Place::Cuda(0), LEAST - 1, 0));
        assert!(is_weight(Place::Cpu, 1, 0));
        for place in [Place::Cpu, Place::Cuda(1)] {
            assert!(!is_weight(place, 1 << 30, 7), "it is for work on a stream");
        }
    }
}
