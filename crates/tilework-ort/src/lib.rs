//! ONNX Runtime seam.
