//! One physical allocation per request: what a driver's own allocator does, and the yardstick for what
//! a pool costs. Holds least between runs, pays the device for every request.

use crate::device::Device;
use crate::error::Result;
use crate::manager::blocks::Blocks;
use crate::manager::memory::{Home, Memory};
use crate::manager::{Block, BlockId, Kind, Manager, Rounding, Stats, Stream, Usage};

/// The manager of kind [`Kind::Committed`]. Freeing gives the memory back to the device at once.
pub struct Committed {
    memory: Memory,
    blocks: Blocks<Lent>,
}

struct Lent {
    home: Home,
    bytes: u64,
}

impl Committed {
    /// A manager over `device`, which nothing was taken from yet.
    pub fn new(device: Box<dyn Device>) -> Committed {
        Committed { memory: Memory::new(device), blocks: Blocks::new() }
    }
}

impl Manager for Committed {
    fn kind(&self) -> Kind {
        Kind::Committed
    }

    fn alloc(&mut self, bytes: u64, _stream: Stream) -> Result<Block> {
        let home = self.memory.home_for(bytes, bytes)?;
        let id = self.blocks.insert(Lent { home, bytes });
        self.memory.account_mut().lent(bytes);
        Ok(Block { id, address: home.range.address, range: home.range.id, offset: 0, bytes })
    }

    fn free(&mut self, id: BlockId) -> Result<()> {
        let Lent { home, bytes } = self.blocks.remove(id)?;
        self.memory.account_mut().returned(bytes);
        // The block is freed whatever the device says: what stays held is a leftover, whose failure
        // `end_of_execution` and `trim` report.
        let _remembered = self.memory.give_back(home);
        Ok(())
    }

    fn set_rounding(&mut self, _: Rounding) {}

    fn end_of_execution(&mut self) -> Result<()> {
        self.memory.retry().map(drop)
    }

    fn trim(&mut self) -> Result<u64> {
        self.memory.retry()
    }

    fn usage(&self) -> Usage {
        self.memory.account().usage()
    }

    fn reset_peaks(&mut self) {
        self.memory.account_mut().reset_peaks();
    }

    fn stats(&self) -> Stats {
        self.memory.stats()
    }

    fn device(&self) -> &dyn Device {
        self.memory.device()
    }

    fn check_invariants(&self) {
        self.memory.check_invariants(self.blocks.iter().map(|(_, lent)| lent.home.range.bytes).sum());
        let stats = self.stats();
        assert_eq!(stats.blocks, self.blocks.len() as u64, "blocks counted and blocks known");
        let live: u64 = self.blocks.iter().map(|(_, lent)| lent.bytes).sum();
        assert_eq!(stats.usage.live, live, "bytes counted live and bytes of live blocks");
    }
}
