//! What the header is written from. No part of the library: it leaves out what only PyTorch and ONNX Runtime call.

#[path = "../../src/call.rs"]
mod call;
#[path = "../../src/manager.rs"]
mod manager;
#[path = "../../src/groups.rs"]
mod groups;
#[path = "../../src/log.rs"]
mod log;
#[path = "../../src/vulkan.rs"]
mod vulkan;
#[cfg(windows)]
#[path = "../../src/d3d12.rs"]
mod d3d12;
