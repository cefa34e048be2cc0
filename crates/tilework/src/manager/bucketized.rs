//! Power-of-two buckets, never trimmed: the allocator that ONNX Runtime's DirectML provider has today,
//! rebuilt as it is to be measured against.
//!
//! ```text
//!   bucket 0    64 KiB   [a] [b] [c]◄─ freed last, used first
//!   bucket 1   128 KiB   [d]
//!   bucket 2   256 KiB
//!   …                            each entry is a physical allocation of its own
//! ```
//!
//! * A request is *pooled* when [`Rounding::PowerOfTwo`] is on, or when it is as large as its bucket
//!   anyway. It takes the entry freed last of its bucket, or a fresh one of the bucket's size.
//! * Any other request is *unpooled*: rounded up to four bytes, made afresh, released after use.
//! * A pooled entry may be lent again as soon as it is freed: there is one queue, in order, with a
//!   barrier after every operator, so its next user runs behind its last one.
//! * An unpooled entry is released once the queue's fence has passed, since work queued before the free
//!   may still read it. The queue is modelled as one that is flushed and waited for at the end of each
//!   execution; nothing the interface tells comes sooner.
//! * Nothing in a bucket is ever released, so what it holds is the sum of every bucket's own peak.
//!
//! Devices create memory in tiles. A bucket smaller than a tile therefore holds a whole one.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::manager::blocks::Blocks;
use crate::manager::memory::{Home, Memory};
use crate::manager::options::Rounding;
use crate::manager::{Block, BlockId, Kind, Manager, Stats, Stream, Usage};

/// The smallest bucket: two to this power, 64 KiB.
const SMALLEST_LOG2: u32 = 16;

/// As many buckets as there are powers of two from the smallest up.
const BUCKETS: usize = (u64::BITS - SMALLEST_LOG2) as usize;

/// What a block that belongs to no bucket is rounded to, bytes.
const UNPOOLED_GRAIN: u64 = 4;

/// The manager of kind [`Kind::Bucketized`].
pub struct Bucketized {
    memory: Memory,
    blocks: Blocks<Lent>,
    rounding: Rounding,
    /// Free entries of each bucket, the one freed last at the end.
    buckets: [Vec<Home>; BUCKETS],
    /// Unpooled, freed, and waiting for the queue's fence.
    behind_fence: Vec<Home>,
}

struct Lent {
    home: Home,
    bytes: u64,
    /// The bucket it goes back to; none for an unpooled block.
    bucket: Option<u8>,
}

impl Bucketized {
    /// A manager over `device`, which nothing was taken from yet.
    pub fn new(device: Box<dyn Device>, rounding: Rounding) -> Bucketized {
        Bucketized {
            memory: Memory::new(device),
            blocks: Blocks::new(),
            rounding,
            buckets: [const { Vec::new() }; BUCKETS],
            behind_fence: Vec::new(),
        }
    }

    /// The bucket that serves a request, none when it is to be unpooled.
    #[inline]
    fn bucket_of(&self, bytes: u64) -> Option<u8> {
        let log2 = ceil_log2(bytes).max(SMALLEST_LOG2);
        let pooled = match self.rounding {
            Rounding::PowerOfTwo => true,
            Rounding::Exact => bytes.is_power_of_two() && bytes.trailing_zeros() == log2,
        };
        pooled.then_some((log2 - SMALLEST_LOG2) as u8)
    }

    /// The largest bucket, or the largest block where those are not rounded, that the device can address.
    fn largest(&self) -> u64 {
        let max = self.memory.caps().max_range_bytes;
        match self.rounding {
            Rounding::PowerOfTwo => 1 << max.ilog2(),
            Rounding::Exact => max,
        }
    }

    #[cold]
    fn fresh(&mut self, request: u64, bucket: Option<u8>) -> Result<Home> {
        let largest = self.largest();
        if request > largest {
            return Err(Error::TooLarge { bytes: request, max: largest });
        }
        let bytes = match bucket {
            Some(bucket) => 1 << (u32::from(bucket) + SMALLEST_LOG2),
            None => request.next_multiple_of(UNPOOLED_GRAIN),
        };
        self.memory.home_for(request, bytes)
    }

    /// Everything held, apart from leftovers, by where it is.
    fn homes(&self) -> impl Iterator<Item = &Home> {
        let free = self.buckets.iter().flatten();
        free.chain(&self.behind_fence).chain(self.blocks.iter().map(|(_, lent)| &lent.home))
    }
}

impl Manager for Bucketized {
    fn kind(&self) -> Kind {
        Kind::Bucketized
    }

    #[inline]
    fn alloc(&mut self, bytes: u64, _stream: Stream) -> Result<Block> {
        if bytes == 0 {
            return Err(Error::ZeroSize);
        }
        let bucket = if bytes <= 1 << 63 { self.bucket_of(bytes) } else { None };
        let kept = bucket.and_then(|bucket| self.buckets[usize::from(bucket)].pop());
        let home = match kept {
            Some(home) => home,
            None => self.fresh(bytes, bucket)?,
        };
        let id = self.blocks.insert(Lent { home, bytes, bucket });
        self.memory.account_mut().lent(bytes);
        Ok(Block { id, address: home.range.address, range: home.range.id, offset: 0, bytes })
    }

    #[inline]
    fn free(&mut self, id: BlockId) -> Result<()> {
        let Lent { home, bytes, bucket } = self.blocks.remove(id)?;
        self.memory.account_mut().returned(bytes);
        match bucket {
            Some(bucket) => self.buckets[usize::from(bucket)].push(home),
            None => self.behind_fence.push(home),
        }
        Ok(())
    }

    fn set_rounding(&mut self, rounding: Rounding) {
        self.rounding = rounding;
    }

    fn end_of_execution(&mut self) -> Result<()> {
        let mut outcome = self.memory.retry();
        for home in self.behind_fence.drain(..) {
            outcome = outcome.and(self.memory.give_back(home));
        }
        outcome.map(drop)
    }

    /// Releases nothing of what the buckets hold; only what an earlier failure left behind.
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
        let largest = self.buckets.iter().rposition(|free| !free.is_empty());
        Stats {
            largest_free_run: largest.map_or(0, |bucket| 1 << (bucket as u32 + SMALLEST_LOG2)),
            cached_mappings: self.buckets.iter().map(|free| free.len() as u64).sum(),
            ..self.memory.stats()
        }
    }

    fn device(&self) -> &dyn Device {
        self.memory.device()
    }

    fn check_invariants(&self) {
        self.memory.check_invariants(self.homes().map(|home| home.range.bytes).sum());
        let stats = self.stats();
        assert_eq!(stats.blocks, self.blocks.len() as u64, "blocks counted and blocks known");
        for (id, lent) in self.blocks.iter() {
            assert!(lent.bytes <= lent.home.range.bytes, "{id} is longer than what backs it");
            let own = ceil_log2(lent.bytes).max(SMALLEST_LOG2) - SMALLEST_LOG2;
            assert!(lent.bucket.is_none_or(|bucket| u32::from(bucket) == own), "{id} is of another bucket");
        }
        for (bucket, free) in self.buckets.iter().enumerate() {
            let bytes = 1_u64 << (bucket as u32 + SMALLEST_LOG2);
            assert!(free.iter().all(|home| home.range.bytes >= bytes), "short entries in bucket {bucket}");
        }
        let live: u64 = self.blocks.iter().map(|(_, lent)| lent.bytes).sum();
        assert_eq!(stats.usage.live, live, "bytes counted live and bytes of live blocks");
        let mut ranges: Vec<_> = self.homes().map(|home| home.range.id).collect();
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|two| two[0] != two[1]), "an entry is in two places");
    }
}

/// The smallest power of two that is no less than `bytes`, as its logarithm. `bytes` must not be 0.
fn ceil_log2(bytes: u64) -> u32 {
    u64::BITS - (bytes - 1).leading_zeros()
}

#[cfg(test)]
mod tests;
