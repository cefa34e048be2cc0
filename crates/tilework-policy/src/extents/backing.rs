//! What backs home space: regions, the heaps in them, and what is out of use for a while.
//!
//! ```text
//!            back                close
//!    void ─────────► free ◄───────────────► closed
//!     ▲  │             open, open_fitting      │
//!     │  │ lose                                │ unback
//!     │  ▼                                     │
//!     └─ lost ◄────────────────────────────────┤ when the device would not let go
//!  regain                                      │
//!     ▲────────────────────────────────────────┘
//! ```

use super::{ALIGN, Closed, Extent, Extents, FreeRun, Kind, NIL, Void};
use crate::heaps::{Heap, Serial};

impl Extents {
    /// Adds a region of `len` grains, all void. Returns its position, or none when home space is full.
    pub fn add_region(&mut self, len: u32) -> Option<u32> {
        let padded = len.checked_next_multiple_of(ALIGN)?;
        let (start, _) = self.positions.smallest(padded)?;
        self.positions.carve(start, padded);
        let node = self.node(start, len, Kind::Void);
        self.voids.insert((len, start, node));
        self.regions.insert(start);
        Some(start)
    }

    /// Takes away the region at `start` of `len` grains, which must be void from end to end.
    pub fn remove_region(&mut self, start: u32, len: u32) {
        let &(.., node) = self.voids.range((len, start, 0)..).next().expect("a void region");
        assert!(self.voids.remove(&(len, start, node)), "region {start}+{len} is not void");
        self.discard(node);
        self.regions.remove(&start);
        self.positions.insert(start, len.next_multiple_of(ALIGN));
    }

    /// Whether nothing backs the region at `start` of `len` grains.
    pub fn is_void(&self, start: u32, len: u32) -> bool {
        self.voids.range((len, start, 0)..).next().is_some_and(|v| (v.0, v.1) == (len, start))
    }

    /// Where `len` grains could be backed by new heaps: the smallest void that fits.
    pub fn find_void(&self, len: u32) -> Option<Void> {
        self.voids.range((len, 0, 0)..).next().map(|&(len, start, node)| Void { start, len, node })
    }

    /// Makes the first `len` grains of a void free: they are backed now.
    pub fn back(&mut self, void: Void, len: u32) {
        let node = self.take_void(void, len);
        self.release(node);
    }

    /// Takes the first `len` grains of a void out of use until they are [regained](Extents::regain): the
    /// device has something there that it would not let go.
    pub fn lose(&mut self, void: Void, len: u32) {
        let node = self.take_void(void, len);
        self.mark_lost(node);
    }

    fn mark_lost(&mut self, node: u32) {
        let extent = &mut self.nodes[node as usize];
        extent.kind = Kind::Lost;
        self.lost.insert(extent.start, node);
    }

    /// The positions of what is lost, each as it was lost.
    pub fn lost(&self) -> Vec<u32> {
        self.lost.keys().copied().collect()
    }

    /// Makes what was lost at `start` void: the device has let it go.
    pub fn regain(&mut self, start: u32) {
        let node = self.lost.remove(&start).expect("something lost");
        self.empty(node);
    }

    fn take_void(&mut self, void: Void, len: u32) -> u32 {
        let Void { start, len: whole, node } = void;
        assert!(self.voids.remove(&(whole, start, node)) && len <= whole, "a void that holds {len} grains");
        if len == whole {
            return node;
        }
        let low = self.split(node, len);
        self.voids.insert((whole - len, start + len, node));
        low
    }

    /// Closes a heap that lies in the free run `run`: nothing is placed in it until it is opened again.
    /// Returns what is left of the run before it.
    ///
    /// Heaps that are free from end to end are closed between executions and opened, in the order in which
    /// they were created, only when what is open does not suffice. So every execution packs its blocks as
    /// tightly as the first one did, which had to create what it opened, and the same execution finds the
    /// same places again. A heap that stays closed is one that is not needed.
    pub fn close(&mut self, run: FreeRun, heap: &Heap) -> Option<FreeRun> {
        let node = self.cut_out(run.node, heap.start, heap.len);
        self.nodes[node as usize].kind = Kind::Closed;
        self.closed
            .insert(heap.serial, Closed { node, start: heap.start, len: heap.len, since: self.execution });
        self.closed_by_len.insert((heap.len, heap.serial));
        (heap.start > run.start).then(|| {
            let node = self.nodes[node as usize].prev;
            FreeRun { start: run.start, len: heap.start - run.start, node }
        })
    }

    /// Opens closed heaps, the first created first, until at least `len` grains were opened. What was created
    /// together is opened together, so that memory comes back in the portions in which it first came.
    /// Returns how many grains were opened.
    pub fn open(&mut self, len: u32) -> u64 {
        let mut opened = 0;
        let mut last = None;
        while let Some((&serial, &Closed { len: heap_len, .. })) = self.closed.first_key_value()
            && (opened < u64::from(len) || last == Some(serial.growth))
        {
            self.open_one(serial);
            opened += u64::from(heap_len);
            last = Some(serial.growth);
        }
        opened
    }

    /// Opens the smallest closed heap of at least `len` grains, if there is one.
    pub fn open_fitting(&mut self, len: u32) -> bool {
        let found = self.closed_by_len.range((len, Serial::FIRST)..).next().copied();
        found.is_some_and(|(_, serial)| {
            self.open_one(serial);
            true
        })
    }

    fn open_one(&mut self, serial: Serial) {
        let Closed { node, len, .. } = self.closed.remove(&serial).expect("a closed heap");
        self.closed_by_len.remove(&(len, serial));
        self.release(node);
    }

    /// The heaps, as (position, length), that have stayed closed for `age` whole executions.
    pub fn closed_for(&self, age: u32) -> Vec<(u32, u32)> {
        let old = |c: &&Closed| self.execution - c.since >= age;
        self.closed.values().filter(old).map(|c| (c.start, c.len)).collect()
    }

    /// Takes a closed heap out of home space: nothing backs its grains any more. With `lost`, the device
    /// still has something there, and the grains are out of use until they are [regained](Extents::regain).
    pub fn unback(&mut self, heap: &Heap, lost: bool) {
        let Closed { node, len, .. } = self.closed.remove(&heap.serial).expect("a closed heap");
        self.closed_by_len.remove(&(len, heap.serial));
        match lost {
            true => self.mark_lost(node),
            false => self.empty(node),
        }
    }

    /// Makes a run void and merges it with void neighbours.
    fn empty(&mut self, mut node: u32) {
        let Extent { prev, next, .. } = self.nodes[node as usize];
        for (low, high) in [(node, next), (prev, node)] {
            let beside = if low == node { high } else { low };
            if beside == NIL || self.nodes[beside as usize].kind != Kind::Void {
                continue;
            }
            let Extent { start, len, .. } = self.nodes[beside as usize];
            self.voids.remove(&(len, start, beside));
            self.nodes[low as usize].len += self.nodes[high as usize].len;
            self.discard(high);
            node = low;
        }
        let extent = &mut self.nodes[node as usize];
        extent.kind = Kind::Void;
        self.voids.insert((extent.len, extent.start, node));
    }
}
