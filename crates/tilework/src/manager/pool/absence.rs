//! A pool whose heaps are gone while everything else stays: blocks, free runs, positions, ranges.
//!
//! ```text
//!   present ──detach──► homes and stitched mappings unmapped, heaps released ──► absent
//!      ▲                                                                            │
//!      └────── mapped as before ◄──── heaps created for the same places ◄──attach───┘
//! ```
//!
//! Blocks may be freed meanwhile. Nothing else may be asked of the pool: whoever detaches it sees to that.

use tilework_policy::{Cut, GRAIN, Heap, Mapping, Serial, grains};

use super::{Pool, range_of};
use crate::device::{Call, DeviceError, HeapId, RangeId};
use crate::error::Result;
use crate::manager::Manager;
use crate::manager::memory::Return;

/// A heap that is ready is taken unless it is shorter than this part of what could be created instead.
const SHORT: u64 = 4;

/// A run of bytes in use, where the pool's heaps have their homes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// Its first address.
    pub address: u64,
    /// Its length, bytes.
    pub bytes: u64,
}

impl Span {
    /// The address behind it.
    pub fn end(&self) -> u64 {
        self.address + self.bytes
    }
}

impl Pool {
    /// Whether its heaps are gone.
    pub(crate) fn is_absent(&self) -> bool {
        self.absent
    }

    /// What blocks use of the heaps, in address order, at home: what is stitched is found there too. Those next to each
    /// other are one.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let mut free = self.extents.unused().into_iter().peekable();
        let mut spans: Vec<Span> = Vec::new();
        for heap in self.heaps.within(0, u32::MAX) {
            let mut at = heap.start;
            while at < heap.end() {
                // A free run may begin before the heap and end behind it.
                while free.next_if(|&(start, len)| start + len <= at).is_some() {}
                let (hole, behind) =
                    free.peek().map_or((heap.end(), heap.end()), |&(start, len)| (start, start + len));
                let end = hole.clamp(at, heap.end());
                if at < end {
                    let region = self.region_of(at);
                    let address = region.range.address + region.offset(at);
                    let bytes = u64::from(end - at) * GRAIN;
                    match spans.last_mut().filter(|last| last.end() == address) {
                        Some(last) => last.bytes += bytes,
                        None => spans.push(Span { address, bytes }),
                    }
                }
                at = behind.clamp(end, heap.end());
            }
        }
        spans
    }

    /// Gives every heap back, whatever uses it, and keeps the rest. Returns the bytes released. Nothing may be
    /// using the memory, and its contents are lost.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) when giving back failed. The pool is absent then too: what could not be given back stays held and
    /// is tried again.
    pub(crate) fn detach(&mut self) -> Result<u64> {
        debug_assert!(!self.absent);
        let held = self.usage().held;
        let mut outcome = self.trim().map(drop);
        let stitched: Vec<(RangeId, u64)> =
            self.mappings.in_use().map(|mapping| (RangeId(mapping.range), mapping.len() * GRAIN)).collect();
        for (range, bytes) in stitched {
            let unmap = Some((range, 0, bytes));
            outcome = outcome.and(self.memory.give_back(Return { unmap, ..Return::default() }).map(drop));
        }
        let heaps: Vec<Heap> = self.heaps.within(0, u32::MAX).collect();
        for heap in heaps {
            let region = self.region_of(heap.start);
            let bytes = u64::from(heap.len) * GRAIN;
            let given = self.memory.give_back(Return {
                unmap: Some((region.range.id, region.offset(heap.start), bytes)),
                release: Some((HeapId(heap.id), bytes)),
                unreserve: None,
            });
            outcome = outcome.and(given.map(drop));
        }
        self.absent = true;
        let bytes = self.heaps_bytes();
        self.memory.account_mut().set_absent(bytes);
        outcome.map(|()| held - self.usage().held)
    }

    /// Creates heaps where there were some, but for those that nothing is in use of by now, and maps them as the others
    /// were: at home, and in the stitched mappings of live blocks. Contents are undefined.
    ///
    /// Heaps may be other than before, and fewer: each costs the driver's time whenever the pool goes or comes. Only
    /// where heaps map whole and a live block is stitched, its mapping asks for the lengths there were.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) with the bytes of all that was to be created;
    /// [`Error::Device`](crate::Error::Device). Nothing is created then and the pool stays absent.
    pub(crate) fn attach(&mut self) -> Result<()> {
        debug_assert!(self.absent);
        self.retry()?;
        self.forget_unused();
        let bytes = self.heaps_bytes();
        let mut made: Vec<Heap> = Vec::new();
        match self.bring_back(&mut made) {
            Ok(()) => {
                self.absent = false;
                self.memory.account_mut().set_absent(0);
                Ok(())
            }
            Err(error) => {
                // None of it is mapped any more: what was is undone already.
                for heap in made {
                    let release = Some((HeapId(heap.id), u64::from(heap.len) * GRAIN));
                    let _logged = self.memory.give_back(Return { release, ..Return::default() });
                }
                Err(self.memory.explain(bytes, error))
            }
        }
    }

    /// Bytes of its heaps, present or not.
    pub(crate) fn heaps_bytes(&self) -> u64 {
        self.heaps.within(0, u32::MAX).map(|heap| u64::from(heap.len) * GRAIN).sum()
    }

    /// Forgets absent heaps of which nothing is in use any more, and mappings of blocks that are gone.
    fn forget_unused(&mut self) {
        while let Some(slot) = self.mappings.oldest_idle() {
            // It is not mapped.
            let range = range_of(&self.mappings.remove(slot));
            let _logged = self.memory.give_back(Return { unreserve: Some(range), ..Return::default() });
        }
        self.close_unused();
        for (start, _) in self.extents.closed_for(0) {
            let heap = self.heaps.remove(start).expect("a closed heap is known");
            let stuck = self.stuck(start);
            self.extents.unback(&heap, stuck);
        }
        let bytes = self.heaps_bytes();
        self.memory.account_mut().set_absent(bytes);
    }

    /// Creates and maps. What is mapped when a call fails is unmapped again.
    fn bring_back(&mut self, made: &mut Vec<Heap>) -> Result<(), DeviceError> {
        let old: Vec<Heap> = self.heaps.within(0, u32::MAX).collect();
        self.check_way(&old)?;
        let stitched: Vec<Mapping> = self.mappings.in_use().cloned().collect();
        if self.heaps.cut() == Cut::Heaps && !stitched.is_empty() {
            for heap in &old {
                let id = self.memory.create(u64::from(heap.len) * GRAIN)?.0;
                made.push(Heap { id, ..*heap });
            }
        } else {
            self.recut(&old, made)?;
        }
        let mut mapped: Vec<Return> = Vec::new();
        let mut outcome = self.map_homes(made, &mut mapped);
        if outcome.is_ok() {
            for heap in &old {
                self.heaps.remove(heap.start);
            }
            made.iter().for_each(|&heap| self.heaps.insert(heap));
            outcome = self.map_stitched(&stitched, &mut mapped);
        }
        if outcome.is_err() {
            for what in mapped.into_iter().rev() {
                let _logged = self.memory.give_back(what);
            }
        }
        outcome
    }

    /// Refuses where the device still has something at the places that are to be mapped.
    fn check_way(&self, heaps: &[Heap]) -> Result<(), DeviceError> {
        let homes = heaps.iter().map(|heap| {
            let region = self.region_of(heap.start);
            let offset = region.offset(heap.start);
            (region.range.id, offset, offset + u64::from(heap.len) * GRAIN)
        });
        let stitched = self.mappings.in_use().map(|m| (RangeId(m.range), 0, m.len() * GRAIN));
        let in_the_way = |(range, from, to): (RangeId, u64, u64)| {
            let inside = |(of, at, bytes)| of == range && at < to && from < at + bytes;
            self.memory.leftovers().iter().any(|left| left.unmap.is_some_and(inside))
        };
        if homes.chain(stitched).any(in_the_way) {
            let reason = "the device has not given up what was mapped here before".into();
            return Err(DeviceError::Failed { call: Call::Map, reason });
        }
        Ok(())
    }

    /// Creates heaps that fill the places of others: such as are ready, unless they are short, and long ones else.
    fn recut(&mut self, old: &[Heap], made: &mut Vec<Heap>) -> Result<(), DeviceError> {
        let longest = self.options.heap_bytes;
        let region = |heap: &Heap| self.region_of(heap.start).range.id;
        let beside = |a: &Heap, b: &Heap| a.end() == b.start && region(a) == region(b);
        let runs: Vec<(u32, u32)> =
            old.chunk_by(beside).map(|run| (run[0].start, run[run.len() - 1].end())).collect();
        for (mut start, end) in runs {
            let growth = self.growths;
            self.growths += 1;
            for part in 0.. {
                if start == end {
                    break;
                }
                let wanted = (u64::from(end - start) * GRAIN).min(longest);
                let ready = self.memory.device().ready(wanted).filter(|ready| ready * SHORT >= wanted);
                let bytes = ready.unwrap_or(wanted);
                let id = self.memory.create(bytes)?.0;
                let len = grains(bytes) as u32;
                made.push(Heap { start, len, id, serial: Serial { growth, part } });
                start += len;
            }
        }
        Ok(())
    }

    fn map_homes(&mut self, made: &[Heap], mapped: &mut Vec<Return>) -> Result<(), DeviceError> {
        // Neighbours of one range in one call.
        let region = |heap: &Heap| self.region_of(heap.start).range.id;
        let runs: Vec<&[Heap]> = made.chunk_by(|a, b| a.end() == b.start && region(a) == region(b)).collect();
        for run in runs {
            let start = run[0].start;
            let parts: Vec<(HeapId, u32)> = run.iter().map(|heap| (HeapId(heap.id), heap.len)).collect();
            self.map_home(start, &parts)?;
            let region = self.region_of(start);
            let bytes = u64::from(run[run.len() - 1].end() - start) * GRAIN;
            let unmap = Some((region.range.id, region.offset(start), bytes));
            mapped.push(Return { unmap, ..Return::default() });
        }
        Ok(())
    }

    fn map_stitched(&mut self, stitched: &[Mapping], mapped: &mut Vec<Return>) -> Result<(), DeviceError> {
        for mapping in stitched {
            let range = RangeId(mapping.range);
            self.memory.map(range, &self.binds(&mapping.cover))?;
            let unmap = Some((range, 0, mapping.len() * GRAIN));
            mapped.push(Return { unmap, ..Return::default() });
        }
        Ok(())
    }
}
