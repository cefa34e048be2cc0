//! Simulated devices: no memory, but the constraints and the costs of real ones.
//!
//! | | `sim-h200` | `sim-d3d12` |
//! |---|---|---|
//! | tile | 2 MiB | 64 KiB |
//! | a heap maps | whole, at any number of addresses | in parts, at any number of addresses |
//! | one driver call maps | one heap | consecutive binds on one heap |
//! | usable | after `set_access` | once mapped |
//! | longest range | 16 TiB | 1 TiB |
//! | capacity | 143771 MiB | 143771 MiB |
//! | heaps on the host | as many as asked for | none |
//!
//! Breaking a constraint is a violation. Each call adds to [`Calls`] what [`costs`] says.

use super::books::Books;
use super::costs::{self, Costs, MapCosts};
use super::{Aliasing, Bind, Call, Calls, Caps, Device, DeviceError, HeapId, Range, RangeId};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

/// What an NVIDIA H200 lets a process hold, bytes.
const H200_BYTES: u64 = 143_771 * MIB;

/// Where the first range begins: as good as any address, and not null.
const FIRST_ADDRESS: u64 = 1 << 32;

/// A simulated device.
///
/// There is nothing behind its addresses: [`read`](Device::read) and [`write`](Device::write) check that
/// they are mapped and usable and copy nothing.
#[derive(Debug)]
pub struct Sim {
    name: &'static str,
    books: Books,
    costs: Costs,
    calls: Calls,
    next_address: u64,
}

impl Sim {
    /// CUDA on an H200: `sim-h200`.
    pub fn h200() -> Sim {
        let caps = Caps {
            tile_bytes: 2 * MIB,
            tiling: true,
            partial_maps: false,
            needs_access: true,
            max_range_bytes: 16 * TIB,
            memory: false,
            capacity_bytes: Some(H200_BYTES),
            host_heaps: true,
            aliasing: Aliasing::Ordered,
        };
        Sim::new("sim-h200", caps, costs::H200)
    }

    /// D3D12 reserved resources on a card of the same size: `sim-d3d12`.
    pub fn d3d12() -> Sim {
        let caps = Caps {
            tile_bytes: 64 * KIB,
            tiling: true,
            partial_maps: true,
            needs_access: false,
            max_range_bytes: TIB,
            memory: false,
            capacity_bytes: Some(H200_BYTES),
            host_heaps: false,
            aliasing: Aliasing::Ordered,
        };
        Sim::new("sim-d3d12", caps, costs::D3D12)
    }

    /// Any device without memory: what `caps` says is enforced, what `costs` says is charged.
    ///
    /// # Panics
    /// When `caps.tile_bytes` is not a power of two, or `caps.memory` is set.
    pub fn new(name: &'static str, caps: Caps, costs: Costs) -> Sim {
        assert!(!caps.memory, "a simulated device has no memory");
        Sim { name, books: Books::new(caps), costs, calls: Calls::default(), next_address: FIRST_ADDRESS }
    }

    /// The same device where tiles are not supported: a heap maps whole, once, into a range of its own
    /// length.
    ///
    /// # Panics
    /// When it has served a call.
    #[must_use]
    pub fn without_tiling(self) -> Sim {
        let caps = Caps { tiling: false, partial_maps: false, ..self.books.caps().clone() };
        self.with_caps(caps)
    }

    /// The same device with `bytes` of physical memory.
    ///
    /// # Panics
    /// When it has served a call.
    #[must_use]
    pub fn with_capacity(self, bytes: u64) -> Sim {
        let caps = Caps { capacity_bytes: Some(bytes), ..self.books.caps().clone() };
        self.with_caps(caps)
    }

    fn with_caps(self, caps: Caps) -> Sim {
        assert_eq!(self.calls, Calls::default(), "the capabilities of a device in use are fixed");
        Sim::new(self.name, caps, self.costs)
    }

    /// Charges the mapping of `binds`, driver call by driver call.
    fn charge_map(&mut self, binds: &[Bind]) {
        match self.costs.map {
            MapCosts::Handles { map, .. } => {
                self.calls.map += binds.len() as u64;
                self.calls.nanos += binds.iter().map(|bind| map.at(bind.bytes)).sum::<u64>();
            }
            MapCosts::Tiles(costs) => {
                for call in binds.chunk_by(|a, b| a.heap == b.heap) {
                    let runs = call.chunk_by(Bind::continued_by).count() as u64;
                    self.calls.map += 1;
                    self.calls.nanos += costs.of(runs, self.tiles(call));
                }
            }
        }
    }

    fn charge_unmap(&mut self, pieces: &[Bind]) {
        self.calls.unmap += 1;
        self.calls.nanos += match self.costs.map {
            MapCosts::Handles { unmap, .. } => unmap.of(pieces.iter().map(|piece| piece.bytes)),
            // Nothing is bound in its place, so the whole part is one run.
            MapCosts::Tiles(costs) => costs.of(1, self.tiles(pieces)),
        };
    }

    fn charge_access(&mut self, pieces: &[Bind]) {
        self.calls.set_access += 1;
        if let MapCosts::Handles { set_access, .. } = self.costs.map {
            self.calls.nanos += set_access.of(pieces.iter().map(|piece| piece.bytes));
        }
    }

    fn tiles(&self, pieces: &[Bind]) -> u64 {
        pieces.iter().map(|piece| piece.bytes).sum::<u64>() / self.books.caps().tile_bytes
    }
}

impl Device for Sim {
    fn name(&self) -> &'static str {
        self.name
    }

    fn caps(&self) -> &Caps {
        self.books.caps()
    }

    fn reserve(&mut self, bytes: u64) -> Result<Range, DeviceError> {
        self.books.check_reserve(bytes)?;
        // A tile is left between ranges, so that running off the end of one never ends in the next.
        let next = self
            .next_address
            .checked_add(bytes)
            .and_then(|end| end.checked_add(self.books.caps().tile_bytes))
            .ok_or_else(|| DeviceError::Failed {
                call: Call::Reserve,
                reason: "the address space is used up".into(),
            })?;
        let range = self.books.reserve(self.next_address, bytes)?;
        self.next_address = next;
        self.calls.reserve += 1;
        self.calls.nanos += self.costs.reserve;
        Ok(range)
    }

    fn unreserve(&mut self, range: RangeId) -> Result<(), DeviceError> {
        self.books.unreserve(range)?;
        self.calls.reserve += 1;
        self.calls.nanos += self.costs.reserve;
        Ok(())
    }

    fn create(&mut self, bytes: u64) -> Result<HeapId, DeviceError> {
        let heap = self.books.create(bytes)?;
        self.calls.create += 1;
        self.calls.nanos += self.costs.create.at(bytes);
        Ok(heap)
    }

    fn create_on_host(&mut self, bytes: u64) -> Result<HeapId, DeviceError> {
        let heap = self.books.create_on_host(bytes)?;
        self.calls.create += 1;
        self.calls.nanos += self.costs.create_on_host.at(bytes);
        Ok(heap)
    }

    fn release(&mut self, heap: HeapId) -> Result<(), DeviceError> {
        let bytes = self.books.release(heap)?;
        self.calls.release += 1;
        self.calls.nanos += self.costs.release.at(bytes);
        Ok(())
    }

    fn map(&mut self, range: RangeId, binds: &[Bind]) -> Result<(), DeviceError> {
        self.books.map(range, binds)?;
        self.charge_map(binds);
        Ok(())
    }

    fn set_access(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        let pieces = self.books.set_access(range, offset, bytes)?;
        self.charge_access(&pieces);
        Ok(())
    }

    fn unmap(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        let pieces = self.books.unmap(range, offset, bytes)?;
        self.charge_unmap(&pieces);
        Ok(())
    }

    fn add_peer(&mut self, _: u32) -> Result<(), DeviceError> {
        Ok(())
    }

    fn calls(&self) -> Calls {
        self.calls
    }

    fn held_bytes(&self) -> Result<u64, DeviceError> {
        Ok(self.books.held_bytes())
    }

    fn free_bytes(&self) -> Option<u64> {
        None
    }

    fn ready(&self, _: u64) -> Option<u64> {
        None
    }

    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        self.books.check_use(Call::Read, address, out.len() as u64)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.books.check_use(Call::Write, address, bytes.len() as u64)
    }
}

#[cfg(test)]
mod tests;
