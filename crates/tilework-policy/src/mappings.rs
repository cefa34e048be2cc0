//! Stitched mappings, kept to be found again.

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

/// Where a mapping is kept.
pub type MappingSlot = u32;

/// The runs of home space, (position, length) in grains, that a mapping shows side by side.
pub type Cover = Box<[(u32, u32)]>;

/// A mapping of tiles outside their home. Once made it never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// What it shows.
    pub cover: Cover,
    /// The device's name for its range.
    pub range: u64,
    /// Its first address.
    pub address: u64,
}

impl Mapping {
    /// Its length, grains.
    pub fn len(&self) -> u64 {
        self.cover.iter().map(|&(_, len)| u64::from(len)).sum()
    }

    /// Whether it shows nothing; never so for a mapping that was made.
    pub fn is_empty(&self) -> bool {
        self.cover.is_empty()
    }
}

#[derive(Debug, Clone)]
struct Entry {
    mapping: Mapping,
    in_use: bool,
    /// The epoch it was last used in.
    epoch: u32,
    /// Its place among the idle ones: the order in which they were given up.
    turn: u64,
}

/// Stitched mappings by what they show.
///
/// The clock by which idle mappings grow old ticks at the end of an execution that had to make a mapping.
/// An execution that found all it needed leaves no reason to undo any, so a steady run makes no device call.
#[derive(Debug, Clone, Default)]
pub struct Mappings {
    by_cover: FxHashMap<Cover, MappingSlot>,
    entries: Vec<Option<Entry>>,
    vacant: Vec<MappingSlot>,
    /// Mappings that no block uses, the longest unused first.
    idle: BTreeSet<(u64, MappingSlot)>,
    idle_grains: u64,
    turn: u64,
    epoch: u32,
    made_in_epoch: bool,
}

impl Mappings {
    /// Finds the idle mapping of `cover` and puts it to use.
    pub fn reuse(&mut self, cover: &[(u32, u32)]) -> Option<MappingSlot> {
        let &slot = self.by_cover.get(cover)?;
        let entry = self.entries[slot as usize].as_mut().expect("a mapping that is kept");
        assert!(!entry.in_use, "a block uses tiles that were free");
        entry.in_use = true;
        self.idle.remove(&(entry.turn, slot));
        self.idle_grains -= entry.mapping.len();
        Some(slot)
    }

    /// Keeps a mapping that was just made, in use.
    pub fn insert(&mut self, mapping: Mapping) -> MappingSlot {
        self.made_in_epoch = true;
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() as u32 - 1
        });
        self.by_cover.insert(mapping.cover.clone(), slot);
        self.entries[slot as usize] = Some(Entry { mapping, in_use: true, epoch: self.epoch, turn: 0 });
        slot
    }

    /// Notes that its block is gone. The mapping stays.
    pub fn rest(&mut self, slot: MappingSlot) {
        self.turn += 1;
        let entry = self.entries[slot as usize].as_mut().expect("a mapping that is kept");
        entry.in_use = false;
        entry.epoch = self.epoch;
        entry.turn = self.turn;
        self.idle.insert((self.turn, slot));
        self.idle_grains += entry.mapping.len();
    }

    /// The mapping in `slot`.
    pub fn get(&self, slot: MappingSlot) -> &Mapping {
        &self.entries[slot as usize].as_ref().expect("a mapping that is kept").mapping
    }

    /// The mappings that blocks lie in.
    pub fn in_use(&self) -> impl Iterator<Item = &Mapping> {
        self.entries.iter().flatten().filter(|entry| entry.in_use).map(|entry| &entry.mapping)
    }

    /// Forgets an idle mapping that the device has undone.
    pub fn remove(&mut self, slot: MappingSlot) -> Mapping {
        let entry = self.entries[slot as usize].take().expect("a mapping that is kept");
        assert!(!entry.in_use, "a block still lies in this mapping");
        self.idle.remove(&(entry.turn, slot));
        self.idle_grains -= entry.mapping.len();
        self.by_cover.remove(&entry.mapping.cover);
        self.vacant.push(slot);
        entry.mapping
    }

    /// The idle mapping that was given up longest ago.
    pub fn oldest_idle(&self) -> Option<MappingSlot> {
        self.idle.first().map(|&(_, slot)| slot)
    }

    /// The idle mapping that was given up longest ago, if more than `age` ticks of the clock have passed.
    pub fn stale(&self, age: u32) -> Option<MappingSlot> {
        self.oldest_idle().filter(|&slot| {
            let entry = self.entries[slot as usize].as_ref().expect("an idle mapping is kept");
            self.epoch - entry.epoch > age
        })
    }

    /// Idle mappings that show any of the grains from `start` to `end`.
    pub fn idle_over(&self, start: u32, end: u32) -> Vec<MappingSlot> {
        let shows =
            |slot: MappingSlot| self.get(slot).cover.iter().any(|&(s, len)| s < end && s + len > start);
        self.idle.iter().map(|&(_, slot)| slot).filter(|&slot| shows(slot)).collect()
    }

    /// Lets the clock tick if a mapping was made since it last did.
    pub fn end_of_execution(&mut self) {
        self.epoch += u32::from(std::mem::take(&mut self.made_in_epoch));
    }

    /// How many mappings no block uses.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// The grains that idle mappings show.
    pub fn idle_grains(&self) -> u64 {
        self.idle_grains
    }
}
