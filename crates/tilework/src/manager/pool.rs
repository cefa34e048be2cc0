//! One pool of heaps that every request shares: the managers `tiled` and `placed`.
//!
//! ```text
//!   alloc(bytes)
//!     │ a free run is long enough ───────────────► carve it              no device call, the usual way
//!     │ no run is                                                        ── only tiled, from here ──
//!     │ free tiles suffice ──► compose pieces ──► the same tiles mapped before ► reuse  no device call
//!     │                                      └──► reserve, map, set access
//!     └ too little is free ──► create what lacks, map it at home, look again
//! ```
//!
//! Every heap is mapped once at its *home* and stays there. In `tiled` the homes stand side by side in
//! long ranges, so that a run of bytes crosses heaps freely, and a block that fits no run is stitched: the
//! free tiles are mapped a second time, in a range of their own, while their homes stay as they are. In
//! `placed` each heap has a range of its own and nothing is mapped twice, which every device can do.
//!
//! Where the bytes go is decided in [`tilework_policy`]; here the decisions are carried out, and undone
//! when the device fails.

use std::collections::BTreeMap;

use tilework_policy::{
    Cover, Cut, Extents, FreeError, GRAIN, Growth, Heap, Heaps, MAX_GRAINS, Mapping, MappingSlot, Mappings,
    Piece, Place, Serial, Slot, compose, grains,
};

use crate::device::{Bind, Device, DeviceError, HeapId, Range, RangeId};
use crate::error::{Error, Result};
use crate::manager::memory::{Memory, Return};
use crate::manager::{Block, BlockId, Kind, Manager, Options, Rounding, Stats, Stream, Usage};

mod absence;

pub(crate) use self::absence::Span;

/// Address space that `tiled` reserves for homes at a time, bytes. Reserving costs the same whatever the
/// length; this leaves room for any card of today in one range.
const REGION_BYTES: u64 = 256 << 30;

/// Heaps that grew old are given back once they make up this part of what is held.
const WORTH_RELEASING: u64 = 64;

/// Idle mappings may show this many times the memory held before the oldest are undone.
const IDLE_MAPPINGS: u64 = 64;

/// What a pool could do with the memory it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// It served the request.
    Block(Block),
    /// It would have to create at least this much, bytes.
    Lacks(u64),
}

/// The managers of kind [`Kind::Tiled`] and [`Kind::Placed`].
pub struct Pool {
    kind: Kind,
    memory: Memory,
    extents: Extents,
    heaps: Heaps,
    mappings: Mappings,
    /// By position: the ranges in which heaps have their homes.
    regions: BTreeMap<u32, Region>,
    /// The region that served last.
    recent: Region,
    /// Address space that is reserved next for the homes of new heaps, bytes. Twice as much each time, up to
    /// `longest_region_bytes`.
    region_bytes: u64,
    /// Less than `REGION_BYTES` once the device had no range that long.
    longest_region_bytes: u64,
    options: Options,
    tile: u32,
    growth: Growth,
    /// How often it has grown.
    growths: u64,
    /// Its heaps are gone: see `absence`.
    absent: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Region {
    start: u32,
    len: u32,
    range: Range,
}

impl Region {
    fn offset(&self, position: u32) -> u64 {
        u64::from(position - self.start) * GRAIN
    }
}

impl Pool {
    /// A tiled pool over `device`, which must have [tiling](crate::device::Caps::tiling) and of which
    /// nothing was taken yet.
    pub fn tiled(device: Box<dyn Device>, options: &Options) -> Pool {
        debug_assert!(device.caps().tiling);
        Pool::new(Kind::Tiled, device, options)
    }

    /// A placed pool over `device`, of which nothing was taken yet.
    pub fn placed(device: Box<dyn Device>, options: &Options) -> Pool {
        Pool::new(Kind::Placed, device, options)
    }

    /// Reserves `bytes` of address space first, whole tiles, instead of room for any card of today: for pools of
    /// which there may be hundreds. Later ranges are longer.
    pub fn reserving(mut self, bytes: u64) -> Pool {
        self.region_bytes = bytes.min(self.longest_region_bytes);
        self
    }

    /// For blocks that are expected to stay, side by side: weights. Heaps are as long as the options allow.
    pub fn lasting(mut self) -> Pool {
        self.growth.set_lasting();
        self
    }

    fn new(kind: Kind, device: Box<dyn Device>, options: &Options) -> Pool {
        let caps = device.caps();
        let tile = grains(caps.tile_bytes) as u32;
        let cut = if caps.partial_maps { Cut::Tiles(tile) } else { Cut::Heaps };
        let heap_bytes = options.heap_bytes.clamp(caps.tile_bytes, caps.max_range_bytes);
        let options = Options { heap_bytes: heap_bytes.next_multiple_of(caps.tile_bytes), ..*options };
        Pool {
            kind,
            region_bytes: REGION_BYTES.min(caps.max_range_bytes),
            longest_region_bytes: REGION_BYTES.min(caps.max_range_bytes),
            memory: Memory::new(device),
            extents: Extents::new(),
            heaps: Heaps::new(cut),
            mappings: Mappings::default(),
            regions: BTreeMap::new(),
            recent: Region { start: 0, len: 0, range: Range { id: RangeId(u64::MAX), address: 0, bytes: 0 } },
            options,
            tile,
            growth: Growth::new(tile, grains(options.heap_bytes).min(MAX_GRAINS) as u32, cut),
            growths: 0,
            absent: false,
        }
    }

    /// Serves a request from a run of free bytes that is long enough, without the device; `None` when there
    /// is no such run.
    #[inline]
    pub fn lend(&mut self, bytes: u64) -> Option<Block> {
        let place = if bytes == 0 { None } else { self.extents.alloc(bytes) };
        place.map(|place| self.home_block(place, bytes))
    }

    /// Serves a request from the memory that the pool has, stitched where need be; creates nothing.
    ///
    /// # Errors
    /// As [`Manager::alloc`].
    pub fn serve(&mut self, bytes: u64) -> Result<Served> {
        self.check_request(bytes)?;
        Ok(match self.place_in_held(bytes, false)? {
            Ok(block) => Served::Block(block),
            Err(lacks) => Served::Lacks(u64::from(lacks) * GRAIN),
        })
    }

    /// Gives back heaps that are free from end to end, of at most `most` bytes together. Returns the bytes
    /// released.
    ///
    /// # Errors
    /// As [`Manager::trim`].
    pub fn give_up(&mut self, most: u64) -> Result<u64> {
        let mut released = self.retry()?;
        self.close_unused();
        for (start, len) in self.extents.closed_for(0) {
            if u64::from(len) * GRAIN <= most.saturating_sub(released) {
                let heap = self.heaps.get(start).expect("a closed heap is held");
                released += self.release_heap(heap)?;
            }
        }
        Ok(released)
    }

    /// Bytes of its heaps that no block uses.
    pub fn free_bytes(&self) -> u64 {
        self.extents.free_grains() * GRAIN
    }

    #[inline]
    fn home_block(&mut self, place: Place, bytes: u64) -> Block {
        let Region { start, len, .. } = self.recent;
        if place.start.wrapping_sub(start) >= len {
            self.recent = self.region_of(place.start);
        }
        let offset = self.recent.offset(place.start);
        let range = self.recent.range;
        self.memory.account_mut().lent(bytes);
        Block { id: id(place.slot), address: range.address + offset, range: range.id, offset, bytes }
    }

    fn region_of(&self, position: u32) -> Region {
        *self.regions.range(..=position).next_back().expect("a position lies in a region").1
    }

    /// Serves a request that no free run is long enough for.
    #[cold]
    fn alloc_slow(&mut self, bytes: u64) -> Result<Block> {
        self.check_request(bytes)?;
        let mut grown = Vec::new();
        let served = self.grow_and_place(bytes, &mut grown);
        if served.is_err() {
            // Nothing was placed, so what was created for the request is free from end to end.
            self.close_unused();
            for heap in grown {
                let _logged = self.release_heap(heap);
            }
        }
        served
    }

    fn check_request(&self, bytes: u64) -> Result<()> {
        let max = self.memory.caps().max_range_bytes.min(MAX_GRAINS * GRAIN);
        match bytes {
            0 => Err(Error::ZeroSize),
            _ if bytes > max => Err(Error::TooLarge { bytes, max }),
            _ => Ok(()),
        }
    }

    fn grow_and_place(&mut self, bytes: u64, grown: &mut Vec<Heap>) -> Result<Block> {
        let mut added = false;
        loop {
            match self.place_in_held(bytes, added)? {
                Ok(block) => return Ok(block),
                Err(lacks) => self.grow(bytes, lacks, grown)?,
            }
            added = true;
        }
    }

    /// Serves a request without creating anything, or says how many grains lack. `added`: memory was just
    /// created for it.
    fn place_in_held(&mut self, bytes: u64, mut added: bool) -> Result<Result<Block, u32>> {
        let len = grains(bytes) as u32;
        loop {
            let place = if added { self.extents.alloc_in_added(bytes) } else { self.extents.alloc(bytes) };
            if let Some(place) = place {
                return Ok(Ok(self.home_block(place, bytes)));
            }
            let mut lacks = len;
            if self.kind == Kind::Tiled && len >= self.tile {
                match compose(&self.extents, &self.heaps, len, self.tile) {
                    Ok(pieces) => return self.stitch(bytes, &pieces).map(Ok),
                    Err(usable) => lacks -= usable,
                }
            }
            if !self.open(lacks) {
                return Ok(Err(lacks));
            }
            added = true;
        }
    }

    /// Opens closed heaps for a request that lacks `lacks` grains; false when there was none to open.
    fn open(&mut self, lacks: u32) -> bool {
        match self.kind {
            Kind::Tiled => self.extents.open(lacks) > 0,
            _ => self.extents.open_fitting(lacks),
        }
    }

    /// Creates at least `lacks` grains for a request of `bytes`.
    fn grow(&mut self, bytes: u64, lacks: u32, grown: &mut Vec<Heap>) -> Result<()> {
        let len = grains(bytes) as u32;
        let held = self.memory.account().usage().held / GRAIN;
        let long_lived = self.extents.long_lived(bytes);
        let wanted = match self.kind {
            Kind::Tiled => {
                let stranded = self.extents.free_grains() - u64::from(len - lacks);
                self.growth.note(self.extents.holes(), self.extents.transients(), stranded);
                self.growth.amount(lacks, len, held, long_lived)
            }
            _ => lacks.max(grains(self.options.heap_bytes) as u32),
        };
        let heap_len = self.growth.heap_len(len, held, long_lived);
        let mut made = self.create(wanted, heap_len, grown);
        if wanted > lacks && out_of_memory(&made) {
            made = self.create(lacks, heap_len, grown);
        }
        if out_of_memory(&made) {
            // Free heaps are part of what a tiled pool could use already; in a placed one each was too short.
            let released = match self.kind {
                Kind::Tiled => self.retry()?,
                _ => self.give_back_unused()?,
            };
            if released > 0 {
                made = self.create(lacks, heap_len, grown);
            }
        }
        made.map_err(|error| self.memory.explain(bytes, error))
    }

    /// Creates `len` grains or more in whole tiles, in heaps of at most `heap_len`, gives them a home, and adds them
    /// to `grown`. In `placed` they are one heap.
    fn create(&mut self, len: u32, heap_len: u32, grown: &mut Vec<Heap>) -> Result<(), DeviceError> {
        let len = len.div_ceil(self.tile) * self.tile;
        let wanted = u64::from(len) * GRAIN;
        if self.kind == Kind::Placed {
            let home = self.memory.take_home(wanted)?;
            let Some(start) = self.extents.add_region(len) else {
                let _logged = self.memory.give_back(home);
                return Err(DeviceError::OutOfMemory { bytes: wanted });
            };
            self.regions.insert(start, Region { start, len, range: home.range });
            self.adopt(start, &[(home.heap, len)], grown);
            return Ok(());
        }
        let mut made = Vec::new();
        let placed = self.take_heaps(wanted, u64::from(heap_len) * GRAIN, &mut made).and_then(|len| {
            let start = self.home_for(len)?;
            let mapped = self.map_home(start, &made);
            if mapped.is_err() && self.stuck(start) {
                let void = self.extents.find_void(len).expect("the void that was found before");
                self.extents.lose(void, len);
            }
            mapped.map(|()| start)
        });
        match placed {
            Ok(start) => {
                self.adopt(start, &made, grown);
                Ok(())
            }
            Err(error) => {
                for (heap, len) in made {
                    let release = Some((heap, u64::from(len) * GRAIN));
                    let _logged = self.memory.give_back(Return { release, ..Return::default() });
                }
                Err(error)
            }
        }
    }

    /// Takes heaps of `wanted` bytes together, or more: such as are ready, also one that is too long, since it is held
    /// anyway; others are made, of at most `heap_bytes`. Adds them to `made` and returns their length, grains.
    fn take_heaps(
        &mut self,
        wanted: u64,
        heap_bytes: u64,
        made: &mut Vec<(HeapId, u32)>,
    ) -> Result<u32, DeviceError> {
        let mut taken = 0;
        while taken < wanted {
            let rest = wanted - taken;
            let device = self.memory.device();
            let ready = device.ready(rest).or_else(|| device.ready(self.options.heap_bytes.max(rest)));
            let bytes = ready.unwrap_or(rest.min(heap_bytes));
            made.push((self.memory.create(bytes)?, grains(bytes) as u32));
            taken += bytes;
        }
        u32::try_from(grains(taken)).map_err(|_| DeviceError::OutOfMemory { bytes: wanted })
    }

    /// Where `len` grains of new heaps can have their home; reserves a range when no room is left.
    fn home_for(&mut self, len: u32) -> Result<u32, DeviceError> {
        if let Some(void) = self.extents.find_void(len) {
            return Ok(void.start);
        }
        let needed = u64::from(len) * GRAIN;
        let range = loop {
            match self.memory.reserve(self.region_bytes.max(needed)) {
                Ok(range) => break range,
                Err(error) if self.region_bytes <= needed => return Err(error),
                Err(_) => {
                    self.region_bytes =
                        (self.region_bytes / 2).next_multiple_of(self.memory.caps().tile_bytes);
                    self.longest_region_bytes = self.region_bytes;
                }
            }
        };
        self.region_bytes = (self.region_bytes * 2).min(self.longest_region_bytes);
        let whole = grains(range.bytes).min(MAX_GRAINS) as u32;
        // The positions that are left may hold less than the range does; what lies behind stays unused.
        for len in [whole, whole / 2, len].into_iter().filter(|&room| room >= len) {
            if let Some(start) = self.extents.add_region(len) {
                self.regions.insert(start, Region { start, len, range });
                return Ok(start);
            }
        }
        let _logged = self.memory.give_back(Return { unreserve: Some(range), ..Return::default() });
        Err(DeviceError::OutOfMemory { bytes: needed })
    }

    fn map_home(&mut self, start: u32, made: &[(HeapId, u32)]) -> Result<(), DeviceError> {
        let region = self.region_of(start);
        let mut range_offset = region.offset(start);
        let mut binds = Vec::with_capacity(made.len());
        for &(heap, len) in made {
            let bytes = u64::from(len) * GRAIN;
            binds.push(Bind { range_offset, heap, heap_offset: 0, bytes });
            range_offset += bytes;
        }
        self.memory.map(region.range.id, &binds)
    }

    fn adopt(&mut self, mut start: u32, made: &[(HeapId, u32)], grown: &mut Vec<Heap>) {
        let len = made.iter().map(|&(_, len)| len).sum();
        let void = self.extents.find_void(len).expect("the void that was found before");
        debug_assert!(self.kind == Kind::Placed || void.start == start);
        self.extents.back(void, len);
        let growth = self.growths;
        self.growths += 1;
        for (part, &(heap, len)) in (0..).zip(made) {
            let heap = Heap { start, len, id: heap.0, serial: Serial { growth, part } };
            self.heaps.insert(heap);
            grown.push(heap);
            start += len;
        }
    }

    /// Makes one block of `pieces`, in the mapping that shows them.
    fn stitch(&mut self, bytes: u64, pieces: &[Piece]) -> Result<Block> {
        let cover: Cover = pieces
            .iter()
            .map(|p| {
                let start = self.heaps.floor(p.start);
                (start, self.heaps.ceil(p.start + p.len) - start)
            })
            .collect();
        let before = pieces[0].start - cover[0].0;
        let slot = match self.mappings.reuse(&cover) {
            Some(slot) => slot,
            None => self.make_mapping(bytes, cover)?,
        };
        let Mapping { range, address, .. } = *self.mappings.get(slot);
        let place = self.extents.alloc_pieces(bytes, pieces, slot);
        self.memory.account_mut().lent(bytes);
        let offset = u64::from(before) * GRAIN;
        Ok(Block { id: id(place.slot), address: address + offset, range: RangeId(range), offset, bytes })
    }

    fn make_mapping(&mut self, request: u64, cover: Cover) -> Result<MappingSlot> {
        let binds = self.binds(&cover);
        let bytes = binds.iter().map(|bind| bind.bytes).sum();
        let held = self.memory.account().usage().held / GRAIN;
        while self.mappings.idle_grains() > IDLE_MAPPINGS * held {
            let oldest = self.mappings.oldest_idle().expect("an idle mapping");
            self.drop_mapping(oldest)?;
        }
        let mut range = self.memory.take_mapping(bytes, &binds);
        if range.is_err() && self.mappings.idle() > 0 {
            // Address space or mappings may have run out: what no block uses makes room.
            self.drop_idle_mappings()?;
            range = self.memory.take_mapping(bytes, &binds);
        }
        let Range { id, address, .. } = range.map_err(|error| self.memory.explain(request, error))?;
        Ok(self.mappings.insert(Mapping { cover, range: id.0, address }))
    }

    /// The pieces of heaps that a mapping shows.
    fn binds(&self, cover: &[(u32, u32)]) -> Vec<Bind> {
        let mut binds = Vec::new();
        let mut range_offset = 0;
        for &(start, len) in cover {
            let end = start + len;
            for heap in self.heaps.within(start, end) {
                let (from, to) = (heap.start.max(start), heap.end().min(end));
                let bytes = u64::from(to - from) * GRAIN;
                let heap_offset = u64::from(from - heap.start) * GRAIN;
                binds.push(Bind { range_offset, heap: HeapId(heap.id), heap_offset, bytes });
                range_offset += bytes;
            }
        }
        binds
    }

    fn drop_mapping(&mut self, slot: MappingSlot) -> Result<()> {
        let range = range_of(&self.mappings.remove(slot));
        self.memory.give_back(Return::mapping(range)).map(drop)
    }

    fn drop_idle_mappings(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        while let Some(slot) = self.mappings.oldest_idle() {
            outcome = outcome.and(self.drop_mapping(slot));
        }
        outcome
    }

    /// Closes every heap that is free from end to end.
    fn close_unused(&mut self) {
        for run in self.extents.free_runs(self.tile) {
            let inside = |heap: &Heap| heap.start >= run.start && heap.end() <= run.end();
            let whole: Vec<Heap> = self.heaps.within(run.start, run.end()).filter(inside).collect();
            let mut rest = Some(run);
            for heap in whole.into_iter().rev() {
                rest = self.extents.close(rest.expect("the heap lies in what is left of the run"), &heap);
            }
        }
    }

    /// Gives every heap back that is free from end to end. Returns the bytes released.
    fn give_back_unused(&mut self) -> Result<u64> {
        let released = self.retry()?;
        self.close_unused();
        Ok(released + self.release_closed(0)?)
    }

    /// Gives back the heaps that have stayed closed for `age` executions. Returns the bytes released.
    fn release_closed(&mut self, age: u32) -> Result<u64> {
        let mut outcome = Ok(());
        let mut released = 0;
        for (start, _) in self.extents.closed_for(age) {
            let heap = self.heaps.get(start).expect("a closed heap is held");
            match self.release_heap(heap) {
                Ok(bytes) => released += bytes,
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome.map(|()| released)
    }

    /// Gives back a closed heap. Returns the bytes released.
    fn release_heap(&mut self, heap: Heap) -> Result<u64> {
        let mut outcome = Ok(());
        for slot in self.mappings.idle_over(heap.start, heap.end()) {
            outcome = outcome.and(self.drop_mapping(slot));
        }
        let region = self.region_of(heap.start);
        let bytes = u64::from(heap.len) * GRAIN;
        let given = self.memory.give_back(Return {
            unmap: Some((region.range.id, region.offset(heap.start), bytes)),
            release: Some((HeapId(heap.id), bytes)),
            unreserve: (self.kind == Kind::Placed).then_some(region.range),
        });
        let stuck = self.stuck(heap.start);
        self.extents.unback(&heap, stuck);
        self.heaps.remove(heap.start);
        if self.kind == Kind::Placed && !stuck {
            self.forget_region(region);
        }
        outcome.and(given)
    }

    /// Tries again to give back what the device would not take, and uses the homes again that it let go.
    /// Returns the bytes released.
    pub(crate) fn retry(&mut self) -> Result<u64> {
        let released = self.memory.retry();
        for start in self.extents.lost() {
            if !self.stuck(start) {
                self.extents.regain(start);
                if self.kind == Kind::Placed {
                    self.forget_region(self.region_of(start));
                }
            }
        }
        released
    }

    /// Whether something that could not be given back is mapped at `start`, so that nothing else may have
    /// its home there.
    fn stuck(&self, start: u32) -> bool {
        let region = self.region_of(start);
        let home = (region.range.id, region.offset(start));
        self.memory.leftovers().iter().any(|r| r.unmap.is_some_and(|(range, at, _)| (range, at) == home))
    }

    fn forget_region(&mut self, region: Region) {
        self.extents.remove_region(region.start, region.len);
        self.regions.remove(&region.start);
        if self.recent == region {
            self.recent.len = 0;
        }
    }
}

impl Manager for Pool {
    fn kind(&self) -> Kind {
        self.kind
    }

    #[inline]
    fn alloc(&mut self, bytes: u64, _stream: Stream) -> Result<Block> {
        match self.lend(bytes) {
            Some(block) => Ok(block),
            None => self.alloc_slow(bytes),
        }
    }

    #[inline(always)]
    fn free(&mut self, block: BlockId) -> Result<()> {
        let slot = Slot { index: block.0 as u32, generation: (block.0 >> 32) as u32 };
        match self.extents.free(slot) {
            Ok(freed) => {
                self.memory.account_mut().returned(freed.bytes);
                if let Some(mapping) = freed.tag {
                    self.mappings.rest(mapping);
                }
                Ok(())
            }
            Err(FreeError::Unknown) => Err(Error::UnknownBlock(block)),
            Err(FreeError::Twice) => Err(Error::DoubleFree(block)),
        }
    }

    fn set_rounding(&mut self, _: Rounding) {}

    fn end_of_execution(&mut self) -> Result<()> {
        let mut outcome = self.retry().map(drop);
        self.extents.end_of_execution();
        self.mappings.end_of_execution();
        while let Some(slot) = self.mappings.stale(self.options.mapping_age) {
            outcome = outcome.and(self.drop_mapping(slot));
        }
        let age = self.options.heap_age.max(1);
        let old: u64 = self.extents.closed_for(age).into_iter().map(|(_, len)| u64::from(len)).sum();
        if old * GRAIN * WORTH_RELEASING > self.memory.account().usage().held {
            outcome = outcome.and(self.release_closed(age).map(drop));
        }
        self.close_unused();
        outcome
    }

    fn trim(&mut self) -> Result<u64> {
        let mut outcome = self.drop_idle_mappings();
        let released = self.give_back_unused();
        if self.extents.blocks() == 0 {
            // No hole is left that heaps should be short for; what comes next goes the way it first went.
            self.growth.forget();
        }
        let empty: Vec<Region> =
            self.regions.values().copied().filter(|r| self.extents.is_void(r.start, r.len)).collect();
        for region in empty {
            self.forget_region(region);
            let unreserve = Some(region.range);
            outcome = outcome.and(self.memory.give_back(Return { unreserve, ..Return::default() }).map(drop));
        }
        outcome.and(released)
    }

    fn usage(&self) -> Usage {
        self.memory.account().usage()
    }

    fn reset_peaks(&mut self) {
        self.memory.account_mut().reset_peaks();
    }

    fn stats(&self) -> Stats {
        Stats {
            largest_free_run: u64::from(self.extents.longest()) * GRAIN,
            cached_mappings: self.mappings.idle() as u64,
            ..self.memory.stats()
        }
    }

    fn device(&self) -> &dyn Device {
        self.memory.device()
    }

    fn check_invariants(&self) {
        let heaps: u64 = self.heaps.within(0, u32::MAX).map(|h| u64::from(h.len) * GRAIN).sum();
        self.memory.check_invariants(if self.absent { 0 } else { heaps });
        self.extents.check_invariants();
        let stats = self.stats();
        let usage = stats.usage;
        let used = heaps - self.extents.free_grains() * GRAIN;
        assert!(
            usage.live <= used && used < usage.live + GRAIN * (self.extents.blocks() + 1),
            "bytes in use"
        );
        assert_eq!(stats.blocks, self.extents.blocks(), "blocks counted and blocks known");
        let lost = self.extents.lost();
        assert!(lost.iter().all(|&start| self.stuck(start)), "a home is out of use that the device let go");
        if self.kind == Kind::Placed {
            let homes = self.heaps.len();
            assert!(
                self.regions.len() <= homes + lost.len(),
                "{} ranges for {homes} heaps",
                self.regions.len()
            );
        }
    }
}

fn range_of(mapping: &Mapping) -> Range {
    Range { id: RangeId(mapping.range), address: mapping.address, bytes: mapping.len() * GRAIN }
}

fn id(slot: Slot) -> BlockId {
    BlockId(u64::from(slot.generation) << 32 | u64::from(slot.index))
}

fn out_of_memory(made: &Result<(), DeviceError>) -> bool {
    matches!(made, Err(DeviceError::OutOfMemory { .. }))
}
