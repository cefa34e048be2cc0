//! What memory is for, and which type that takes.

use ash::vk::{self, MemoryPropertyFlags as Flags};

/// What a device's blocks are for, which decides the type of their memory.
///
/// The host reaches the blocks of [`Upload`](MemoryUsage::Upload) and [`Readback`](MemoryUsage::Readback) by
/// [`View::host`](crate::View::host). For it a block must lie in one piece, so such memory is placed and not tiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MemoryUsage {
    /// Work on the device: its own memory where it has some, and tiled where it binds memory piece by piece.
    #[default]
    Device,
    /// Written by the host, in order, and read by the device: often not cached, so slow to read for the host.
    Upload,
    /// Written by the device and read by the host: cached where there is such.
    Readback,
}

const HOST: Flags = Flags::from_raw(Flags::HOST_VISIBLE.as_raw() | Flags::HOST_COHERENT.as_raw());
const CACHED: Flags = Flags::from_raw(HOST.as_raw() | Flags::HOST_CACHED.as_raw());

impl MemoryUsage {
    /// Whether the host reaches it.
    pub fn on_host(self) -> bool {
        self != MemoryUsage::Device
    }

    /// What the type of memory should have, the best first.
    fn wishes(self) -> [Flags; 2] {
        match self {
            MemoryUsage::Device => [Flags::DEVICE_LOCAL, Flags::empty()],
            MemoryUsage::Upload => [HOST; 2],
            MemoryUsage::Readback => [CACHED, HOST],
        }
    }

    /// The type among `mask` that suits best. Of several the first: a device lists those that have more than others
    /// behind these.
    pub fn memory_type(self, memory: &vk::PhysicalDeviceMemoryProperties, mask: u32) -> Option<u32> {
        let types = (0..).zip(memory.memory_types_as_slice()).filter(|(index, _)| mask & (1 << index) != 0);
        let first = |flags| types.clone().find(|(_, kind)| kind.property_flags.contains(flags));
        self.wishes().into_iter().find_map(first).map(|(index, _)| index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types(all: &[Flags]) -> vk::PhysicalDeviceMemoryProperties {
        let mut memory =
            vk::PhysicalDeviceMemoryProperties { memory_type_count: all.len() as u32, ..Default::default() };
        for (kind, &property_flags) in memory.memory_types.iter_mut().zip(all) {
            *kind = vk::MemoryType { property_flags, heap_index: 0 };
        }
        memory
    }

    #[test]
    fn each_use_has_the_type_that_suits_it() {
        use MemoryUsage::{Device, Readback, Upload};
        // As NVIDIA's driver lists them.
        let gpu = types(&[Flags::empty(), Flags::DEVICE_LOCAL, HOST, CACHED, Flags::DEVICE_LOCAL | HOST]);
        let all = !0;
        assert_eq!(
            [Device, Upload, Readback].map(|usage| usage.memory_type(&gpu, all)),
            [Some(1), Some(2), Some(3)]
        );
        assert_eq!(Device.memory_type(&gpu, 0b10000), Some(4), "only among those that are asked for");
        assert_eq!(Device.memory_type(&gpu, 0b00100), Some(2), "any, where the device has none of its own");
        assert_eq!(Readback.memory_type(&gpu, 0b00110), Some(2), "not cached, where none is");
        assert_eq!(Upload.memory_type(&gpu, 0b00011), None);
        // As a driver with one memory for all, such as lavapipe, does.
        let one = types(&[Flags::DEVICE_LOCAL | CACHED]);
        assert_eq!([Device, Upload, Readback].map(|usage| usage.memory_type(&one, all)), [Some(0); 3]);
    }
}
