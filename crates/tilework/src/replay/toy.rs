//! The simplest manager that can be replayed on, and a device of ordinary memory: for the tests of what
//! stands above managers, which must not depend on how the real ones place.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use crate::device::{Aliasing, Bind, Calls, Caps, Device, DeviceError, HeapId, Range, RangeId};
use crate::error::{Error, Result};
use crate::manager::{Block, BlockId, Kind, Manager, Rounding, Stats, Stream, Usage};

/// Blocks begin at multiples of this.
const SPACING: u64 = 1 << 40;

/// One vector of bytes for each block.
pub(crate) struct ToyDevice {
    caps: Caps,
    calls: Calls,
    memory: RefCell<BTreeMap<u64, Vec<u8>>>,
    /// Turns a byte round whenever this address is written.
    pub stuck: Option<u64>,
    /// What it adds to the truth about what it holds.
    pub lie: u64,
}

/// One physical allocation of exactly the bytes asked for per request.
pub(crate) struct Toy {
    pub device: ToyDevice,
    pub limit: u64,
    live: BTreeMap<BlockId, u64>,
    freed: BTreeSet<BlockId>,
    next: u64,
    usage: Usage,
}

impl Toy {
    pub fn new() -> Toy {
        let caps = Caps {
            tile_bytes: 512,
            tiling: false,
            partial_maps: false,
            needs_access: false,
            max_range_bytes: SPACING,
            memory: true,
            capacity_bytes: None,
            host_heaps: false,
            aliasing: Aliasing::Ordered,
        };
        let device =
            ToyDevice { caps, calls: Calls::default(), memory: RefCell::default(), stuck: None, lie: 0 };
        Toy {
            device,
            limit: u64::MAX,
            live: BTreeMap::new(),
            freed: BTreeSet::new(),
            next: 0,
            usage: Usage::default(),
        }
    }

    /// One that can neither be read nor written.
    pub fn without_memory() -> Toy {
        let mut toy = Toy::new();
        toy.device.caps.memory = false;
        toy
    }

    pub fn limited(limit: u64) -> Toy {
        Toy { limit, ..Toy::new() }
    }
}

impl Manager for Toy {
    fn kind(&self) -> Kind {
        Kind::Committed
    }

    fn alloc(&mut self, bytes: u64, _stream: Stream) -> Result<Block> {
        let Usage { live, mapped, held, .. } = self.usage;
        if bytes > self.limit - live {
            return Err(Error::OutOfMemory {
                request: bytes,
                live,
                mapped,
                held,
                limit: Some(self.limit),
                device_free: None,
            });
        }
        self.next += 1;
        let id = BlockId(self.next);
        let address = self.next * SPACING;
        if self.device.caps.memory {
            self.device.memory.get_mut().insert(address, vec![0; bytes as usize]);
        }
        self.device.calls.create += 1;
        self.device.calls.nanos += 1500;
        self.live.insert(id, bytes);
        self.usage.live += bytes;
        self.usage.held = self.usage.live;
        self.usage.peak_live = self.usage.peak_live.max(self.usage.live);
        self.usage.peak_held = self.usage.peak_live;
        Ok(Block { id, address, range: RangeId(id.0), offset: 0, bytes })
    }

    fn free(&mut self, id: BlockId) -> Result<()> {
        let Some(bytes) = self.live.remove(&id) else {
            let freed = self.freed.contains(&id);
            return Err(if freed { Error::DoubleFree(id) } else { Error::UnknownBlock(id) });
        };
        self.freed.insert(id);
        self.device.memory.get_mut().remove(&(id.0 * SPACING));
        self.device.calls.release += 1;
        self.usage.live -= bytes;
        self.usage.held = self.usage.live;
        Ok(())
    }

    fn set_rounding(&mut self, _: Rounding) {}

    fn end_of_execution(&mut self) -> Result<()> {
        self.device.calls.unmap += 1;
        Ok(())
    }

    fn trim(&mut self) -> Result<u64> {
        Ok(0)
    }

    fn usage(&self) -> Usage {
        self.usage
    }

    fn reset_peaks(&mut self) {
        self.usage.peak_live = self.usage.live;
        self.usage.peak_held = self.usage.held;
    }

    fn stats(&self) -> Stats {
        Stats { usage: self.usage, blocks: self.live.len() as u64, ..Stats::default() }
    }

    fn device(&self) -> &dyn Device {
        &self.device
    }

    fn check_invariants(&self) {
        assert_eq!(self.usage.live, self.live.values().sum::<u64>());
    }
}

impl ToyDevice {
    fn refused<T>() -> Result<T, DeviceError> {
        unreachable!("the toy manager makes no such call")
    }
}

impl Device for ToyDevice {
    fn name(&self) -> &'static str {
        "toy"
    }

    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn reserve(&mut self, _bytes: u64) -> Result<Range, DeviceError> {
        ToyDevice::refused()
    }

    fn unreserve(&mut self, _range: RangeId) -> Result<(), DeviceError> {
        ToyDevice::refused()
    }

    fn create(&mut self, _bytes: u64) -> Result<HeapId, DeviceError> {
        ToyDevice::refused()
    }

    fn create_on_host(&mut self, _bytes: u64) -> Result<HeapId, DeviceError> {
        ToyDevice::refused()
    }

    fn release(&mut self, _heap: HeapId) -> Result<(), DeviceError> {
        ToyDevice::refused()
    }

    fn map(&mut self, _range: RangeId, _binds: &[Bind]) -> Result<(), DeviceError> {
        ToyDevice::refused()
    }

    fn set_access(&mut self, _range: RangeId, _offset: u64, _bytes: u64) -> Result<(), DeviceError> {
        ToyDevice::refused()
    }

    fn unmap(&mut self, _range: RangeId, _offset: u64, _bytes: u64) -> Result<(), DeviceError> {
        ToyDevice::refused()
    }

    fn add_peer(&mut self, _: u32) -> Result<(), DeviceError> {
        Ok(())
    }

    fn calls(&self) -> Calls {
        self.calls
    }

    fn held_bytes(&self) -> Result<u64, DeviceError> {
        Ok(self.memory.borrow().values().map(|v| v.len() as u64).sum::<u64>() + self.lie)
    }

    fn free_bytes(&self) -> Option<u64> {
        None
    }

    fn ready(&self, _: u64) -> Option<u64> {
        None
    }

    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        let offset = (address % SPACING) as usize;
        out.copy_from_slice(&self.memory.borrow()[&(address - offset as u64)][offset..][..out.len()]);
        Ok(())
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        let offset = (address % SPACING) as usize;
        let mut memory = self.memory.borrow_mut();
        let block = memory.get_mut(&(address - offset as u64)).expect("an address of a live block");
        block[offset..][..bytes.len()].copy_from_slice(bytes);
        if let Some(at) = self.stuck.and_then(|stuck| stuck.checked_sub(address))
            && at < bytes.len() as u64
        {
            block[offset + at as usize] ^= 0xff;
        }
        Ok(())
    }
}
