//! The naive model of a manager: what is live, kept in ordered maps, and what must hold of it.

use std::collections::{BTreeMap, BTreeSet};

use super::checked::{Extent, Witness};
use super::pattern;
use crate::device::{Device, HeapId};
use crate::manager::{Block, BlockId, Manager};

/// Everything live, by address and by physical place, and the figures that follow.
#[derive(Default)]
pub(super) struct Shadow {
    blocks: BTreeMap<u64, Known>,
    /// Where live blocks lie physically: start to end and owner.
    physical: BTreeMap<(HeapId, u64), (u64, BlockId)>,
    issued: BTreeSet<BlockId>,
    live: u64,
    peak_live: u64,
    peak_held: u64,
}

struct Known {
    block: Block,
    extents: Vec<Extent>,
}

impl Shadow {
    /// Takes a block in that was just handed out, and panics unless it is what was asked for, lies apart
    /// from every other and can be used.
    pub fn lent(&mut self, block: Block, asked: u64, witness: &Witness, device: &dyn Device) {
        let Block { id, address, range, offset, bytes } = block;
        assert_eq!(bytes, asked, "{id} is not as long as asked for");
        assert!(self.issued.insert(id), "{id} was issued twice");
        assert!(address.is_multiple_of(512), "{id} lies at {address:#x}, not at a multiple of 512");
        let (home, _) = witness.range(range).unwrap_or_else(|| panic!("{id} lies in unknown {range:?}"));
        assert_eq!(address, home.address + offset, "address, range and offset of {id} disagree");
        assert!(offset + bytes <= home.bytes, "{id} runs past the end of {home:?}");

        let below = self.blocks.range(..address + bytes).next_back().map(|(_, known)| known.block);
        if let Some(other) = below {
            assert!(other.address + other.bytes <= address, "{id} shares addresses with {}", other.id);
        }
        let extents = witness.resolve(address, bytes).unwrap_or_else(|why| panic!("{id}: {why}"));
        for extent in &extents {
            let (begin, end) = (extent.offset, extent.offset + extent.bytes);
            let below = self.physical.range(..(extent.heap, end)).next_back();
            if let Some((&(heap, _), &(taken, owner))) = below {
                assert!(heap != extent.heap || taken <= begin, "{id} shares memory with {owner}: {extent:?}");
            }
            self.physical.insert((extent.heap, begin), (end, id));
        }
        if device.caps().memory {
            pattern::write(device, &block, &extents).unwrap_or_else(|error| panic!("{id}: {error}"));
        }
        self.blocks.insert(address, Known { block, extents });
        self.live += bytes;
        self.peak_live = self.peak_live.max(self.live);
    }

    /// Checks a block that is about to be freed; before the free, since its memory is not the caller's
    /// afterwards.
    pub fn check(&self, block: &Block, witness: &Witness, device: &dyn Device) {
        let known = &self.blocks[&block.address];
        let id = block.id;
        let now = witness.resolve(block.address, block.bytes).unwrap_or_else(|why| panic!("{id}: {why}"));
        assert_eq!(now, known.extents, "{id} was moved to other memory while it was live");
        if device.caps().memory {
            pattern::check(device, block, &known.extents).unwrap_or_else(|why| panic!("{id}: {why}"));
        }
    }

    /// Takes a freed block out.
    pub fn returned(&mut self, block: &Block) {
        let known = self.blocks.remove(&block.address).expect("a live block");
        for extent in known.extents {
            self.physical.remove(&(extent.heap, extent.offset));
        }
        self.live -= block.bytes;
    }

    /// Lets the peaks start again.
    pub fn reset_peaks(&mut self) {
        self.peak_live = self.live;
        self.peak_held = 0;
    }

    /// Checks every live block as [`check`](Shadow::check) does.
    pub fn check_all(&self, witness: &Witness, device: &dyn Device) {
        for known in self.blocks.values() {
            self.check(&known.block, witness, device);
        }
    }

    /// Panics unless the manager's figures agree with what is known here and with what the device was
    /// asked for.
    pub fn compare(&mut self, manager: &dyn Manager, witness: &Witness) {
        let usage = manager.usage();
        let totals = witness.totals();
        assert_eq!(usage.live, self.live, "bytes live, by the manager and by the shadow");
        assert_eq!(usage.peak_live, self.peak_live, "peak of bytes live, by the manager and by the shadow");
        assert_eq!(usage.held, totals.held, "bytes held, by the manager and by the device's calls");
        assert_eq!(usage.reserved, totals.reserved, "bytes reserved, by the manager and by the calls");
        assert_eq!(usage.mapped, totals.mapped, "bytes mapped, by the manager and by the calls");
        assert!(usage.held >= usage.live, "{} bytes live in {} held", usage.live, usage.held);
        // Between two comparisons memory may have come and gone: the peak lies between what was seen here
        // and the most the device ever held.
        self.peak_held = self.peak_held.max(usage.held);
        let possible = self.peak_held..=totals.peak_held;
        assert!(possible.contains(&usage.peak_held), "peak held {} not in {possible:?}", usage.peak_held);
        if let Some(limit) = manager.device().caps().capacity_bytes {
            assert!(usage.held <= limit, "{} bytes held with a limit of {limit}", usage.held);
        }
        let stats = manager.stats();
        assert_eq!(stats.usage, usage, "usage and the report's usage");
        assert_eq!(stats.blocks, self.blocks.len() as u64, "blocks live, by the manager and by the shadow");
        assert_eq!(stats.allocations, self.issued.len() as u64, "blocks ever lent");
        assert_eq!(stats.frees, stats.allocations - stats.blocks, "blocks ever freed");
        manager.check_invariants();
    }
}
