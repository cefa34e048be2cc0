//! Groups: lanes that belong together, and go and come together.
//!
//! ```text
//!               evict, or a request that lacks memory
//!      resident ─────────────────────────────────────► evicted ──discard──► discarded
//!       ▲   ▲                                          │     │                  │
//!       │   └───────────────── restore ────────────────┼─────┼──────────────────┘  contents undefined
//!       │                                              │ prefetch
//!       └── restore: streams wait ── arriving ◄────────┘
//! ```
//!
//! This file has what callers see. How a group leaves and comes is in `residency`.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde::Serialize;

use super::Shared;
use super::contents::{Hosting, in_buffers};
use super::depot::lock;
use super::lane::{Key, Lane};
use super::residency::State;
use crate::error::{Error, Result};
use crate::manager::{Manager, Stream};

/// The name of a group. Never given to a second one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u32);

/// Groups that there can be at once: far more than fit into the address space of a process. What is left of the 31
/// bits that a number has tells those apart that had a slot one after the other.
const SLOTS: u32 = 1 << 16;

/// Behind the last number of a group.
const END: u32 = u32::MAX >> 1;

impl GroupId {
    /// Which lanes are its own, while there is such a group.
    pub(super) fn slot(self) -> u32 {
        self.0 % SLOTS
    }
}

/// Where the memory of a group is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Residence {
    /// On the device.
    Resident,
    /// On the host, or nowhere if it was discarded.
    Evicted,
    /// On the device, its contents on the way.
    Arriving,
}

/// The part of a report that belongs to one group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GroupStats {
    /// What it was called when it was made.
    pub name: String,
    /// Where it is.
    pub residence: Residence,
    /// How often it was pinned and not unpinned since.
    pub pins: u32,
    /// Requested and not yet freed, bytes, whether resident or not.
    pub live: u64,
    /// Physical memory of the device it has, bytes.
    pub held: u64,
    /// Its contents on the host, bytes.
    pub kept: u64,
    /// How often it was evicted or discarded.
    pub evictions: u64,
    /// How often it was restored.
    pub restores: u64,
    /// Bytes copied to the host, ever.
    pub bytes_out: u64,
    /// Bytes copied back, ever.
    pub bytes_in: u64,
}

/// A group.
pub(super) struct Group {
    pub id: GroupId,
    pub name: String,
    /// In the order in which groups were made.
    serial: u64,
    pub pins: AtomicU32,
    /// Its contents do not change, so that those on the host are good for the next time.
    pub constant: AtomicBool,
    /// The tick of the clock at which it was used last.
    used: AtomicU64,
    /// Held while it goes or comes.
    pub state: Mutex<State>,
    /// Who has `state` locked waits to be alone in bringing groups back.
    pub queues: AtomicBool,
    pub moves: Mutex<Moves>,
}

/// What a group has done so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Moves {
    pub evictions: u64,
    pub restores: u64,
    pub bytes_out: u64,
    pub bytes_in: u64,
}

/// The groups there are.
#[derive(Default)]
pub(super) struct Groups {
    list: RwLock<List>,
    /// Ticks at each use of a group.
    clock: AtomicU64,
}

#[derive(Default)]
struct List {
    slots: Vec<Slot>,
    made: u64,
}

/// Where one group is after the other.
struct Slot {
    group: Option<Arc<Group>>,
    /// The number that the next one gets.
    next: u32,
}

impl List {
    fn groups(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.slots.iter().filter_map(|slot| slot.group.as_ref())
    }

    /// A slot without a group that has numbers left; a further one where there is none.
    fn vacant(&mut self) -> Option<&mut Slot> {
        let count = self.slots.len() as u32;
        let found = self.slots.iter().position(|slot| slot.group.is_none() && slot.next < END);
        if found.is_none() && count < SLOTS {
            self.slots.push(Slot { group: None, next: count });
        }
        self.slots.get_mut(found.unwrap_or(count as usize))
    }

    /// Adds a group; `None` where there are too many.
    fn add(&mut self, make: impl FnOnce(GroupId, u64) -> Group) -> Option<&Arc<Group>> {
        let serial = self.made;
        self.made += 1;
        let slot = self.vacant()?;
        let id = GroupId(slot.next);
        slot.next += SLOTS;
        Some(slot.group.insert(Arc::new(make(id, serial))))
    }

    fn remove(&mut self, id: GroupId) {
        let slot = self.slots.get_mut(id.slot() as usize);
        slot.into_iter().for_each(|slot| drop(slot.group.take_if(|group| group.id == id)));
    }
}

impl Groups {
    fn read(&self) -> RwLockReadGuard<'_, List> {
        self.list.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, List> {
        self.list.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, id: GroupId) -> Result<Arc<Group>> {
        let list = self.read();
        let group = list.slots.get(id.slot() as usize).and_then(|slot| slot.group.as_ref());
        group.filter(|group| group.id == id).cloned().ok_or(Error::UnknownGroup(id.0))
    }

    /// All of them, the one used longest ago first.
    pub fn by_use(&self) -> Vec<Arc<Group>> {
        let mut groups: Vec<Arc<Group>> = self.read().groups().cloned().collect();
        // Each is asked once: others use groups meanwhile, and an order that changes is none to sort by.
        groups.sort_by_cached_key(|group| group.used.load(Ordering::Relaxed));
        groups
    }

    pub fn touch(&self, group: &Group) {
        group.used.store(self.clock.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

impl Shared {
    /// The group of this name; makes it where there is none: resident, and pinned once, so that nothing is taken from
    /// one who does not expect it. [Unpin](Shared::unpin) it when it may be evicted.
    ///
    /// # Errors
    /// [`Error::NoGroups`] where the device cannot map memory elsewhere, so that nothing could be evicted, and where
    /// there are 65,536 groups already; [`Error::Forked`].
    pub fn group(&self, name: &str) -> Result<GroupId> {
        self.process.check()?;
        if !self.depot.caps().tiling {
            return Err(Error::NoGroups);
        }
        let named = |list: &List| list.groups().find(|group| group.name == name).map(|group| group.id);
        if let Some(known) = named(&self.groups.read()) {
            return Ok(known);
        }
        let mut list = self.groups.write();
        if let Some(known) = named(&list) {
            return Ok(known);
        }
        let make = |id, serial| Group {
            id,
            name: name.into(),
            serial,
            pins: AtomicU32::new(1),
            constant: AtomicBool::new(false),
            used: AtomicU64::new(0),
            state: Mutex::default(),
            queues: AtomicBool::new(false),
            moves: Mutex::default(),
        };
        let group = list.add(make).ok_or(Error::NoGroups)?;
        self.groups.touch(group);
        Ok(group.id)
    }

    /// As [`alloc`](Shared::alloc), of memory that goes and comes with `group`. While a graph's pool is open that serves
    /// the stream, the memory is the pool's.
    ///
    /// # Errors
    /// As [`alloc`](Shared::alloc); [`Error::UnknownGroup`]; [`Error::Evicted`] while the group is not resident.
    #[inline]
    pub fn alloc_for(&self, group: GroupId, bytes: u64, stream: Stream) -> Result<u64> {
        self.process.check()?;
        let slot = self.pools.slot_for(stream);
        if slot == 0 {
            loop {
                match self.alloc_in(Key::group(group, stream), Some(group), bytes) {
                    // Closed, and yet it did not go: it was being removed, or something went wrong on the way out.
                    Err(Error::Evicted { .. }) if self.residence(group)? == Residence::Resident => {}
                    served => return served,
                }
            }
        }
        self.groups.get(group)?;
        self.alloc_in(Key { slot, stream }, None, bytes)
    }

    /// Notes that `stream` uses the memory of a group: an eviction waits for what is queued there by then. The streams
    /// of its requests, and those it was restored for, are known. To be told anew after each restore.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`].
    pub fn used_on(&self, group: GroupId, stream: Stream) -> Result<()> {
        let group = self.known(group)?;
        lock(&group.state).used_on(stream);
        Ok(())
    }

    /// Copies the contents of a group to the host, gives its physical memory to others and keeps its addresses, at
    /// which nothing is until it is [restored](Shared::restore). Waits on the host for the work that uses it: on the streams of its requests, on
    /// those its blocks were [recorded](Shared::record_stream) for, and on those it was restored for. Work queued on
    /// others, and work that is queued later, must not use it. Does nothing to a group that is evicted.
    ///
    /// Blocks may be freed while they are evicted; what is kept of a group goes with the last of them. Returns the
    /// bytes of physical memory released.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`]; [`Error::Pinned`]; [`Error::Host`] when the host has no room for the contents;
    /// [`Error::Device`] when a copy or a wait failed, or a stream of its is being captured. The group is resident
    /// then, as it was, or evicted if what failed is a prefetch of it. [`Error::Device`] also when the device refused to take memory back: that stays held and is
    /// tried again, and the group is evicted.
    pub fn evict(&self, group: GroupId) -> Result<u64> {
        self.leave(group, true)
    }

    /// As [`evict`](Shared::evict), without keeping the contents: undefined when the group is restored. What was kept
    /// of an evicted group is forgotten.
    ///
    /// # Errors
    /// As [`evict`](Shared::evict).
    pub fn discard(&self, group: GroupId) -> Result<u64> {
        self.leave(group, false)
    }

    /// Makes a group resident, at the same addresses and with the contents it had. The streams of its requests, and
    /// `stream`, wait for the contents; the host does not, where the device copies by itself and what is kept of the group is pinned.
    /// To a group that is resident this is a sign of use. Returns the bytes copied.
    ///
    /// Where memory lacks, everything unused is given back, then groups are evicted, the one used longest ago first.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`]; [`Error::OutOfMemory`] when the group does not fit beside what is pinned, in use or
    /// in no group; [`Error::Host`], [`Error::Device`]. The group stays evicted, and what is kept of it is kept.
    pub fn restore(&self, group: GroupId, stream: Option<Stream>) -> Result<u64> {
        let group = self.known(group)?;
        self.groups.touch(&group);
        self.come(&group, stream)
    }

    /// Begins to restore a group: takes the physical memory, and copies the contents while the caller goes on. No
    /// stream waits for them, and nothing may use them, before [`restore`](Shared::restore). Does nothing to a group
    /// that is not evicted.
    ///
    /// # Errors
    /// As [`restore`](Shared::restore), which reports what goes wrong later.
    pub fn prefetch(&self, group: GroupId) -> Result<()> {
        let group = self.known(group)?;
        self.groups.touch(&group);
        self.set_out(&group)
    }

    /// As [`prefetch`](Shared::prefetch), if the group fits within the limit beside what streams and pinned groups have
    /// and `spare` bytes that they will want yet. Nothing is taken from streams, and other groups are evicted only if that
    /// makes all the room, the one used longest ago first; such an eviction the caller waits for. True when the group is resident, or on its way.
    ///
    /// For those who know what comes next, and would rather have it later than slow down what runs.
    ///
    /// # Errors
    /// As [`restore`](Shared::restore), but for the want of memory.
    pub fn prefetch_beside(&self, group: GroupId, spare: u64) -> Result<bool> {
        let group = self.known(group)?;
        let sets_out = self.set_out_beside(&group, spare)?;
        if sets_out {
            self.groups.touch(&group);
        }
        Ok(sets_out)
    }

    /// Says that the contents of a group do not change any more once they are on the host, as weights of a model that
    /// only runs: what is kept of it stays when it is restored, and the next eviction copies nothing. A change after
    /// the first eviction is lost with the second. Blocks requested later are copied with the whole lane they are in.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`].
    pub fn set_constant(&self, group: GroupId, constant: bool) -> Result<()> {
        let group = self.known(group)?;
        let state = lock(&group.state);
        group.constant.store(constant, Ordering::Relaxed);
        if !constant && matches!(*state, State::Resident { .. }) {
            self.lanes_of(group.id).for_each(|lane| lane.lock().kept = None);
        }
        Ok(())
    }

    /// Sees to it that a group is not evicted until it is unpinned as often: neither by request nor for want of
    /// memory. It need not be resident. Whoever uses a group under a limit pins it, restores it, queues his work,
    /// and unpins it.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`].
    pub fn pin(&self, group: GroupId) -> Result<()> {
        let group = self.known(group)?;
        group.pins.fetch_add(1, Ordering::SeqCst);
        self.groups.touch(&group);
        Ok(())
    }

    /// Takes one pin away.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`]; [`Error::NotPinned`].
    pub fn unpin(&self, group: GroupId) -> Result<()> {
        let group = self.known(group)?;
        let less = |pins: u32| pins.checked_sub(1);
        let unpinned = group.pins.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
        unpinned.map(drop).map_err(|_| Error::NotPinned { group: group.name.clone() })
    }

    /// Where a group is. Waits for one who is moving it.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`].
    pub fn residence(&self, group: GroupId) -> Result<Residence> {
        let group = self.known(group)?;
        Ok(lock(&group.state).residence())
    }

    /// Ends a group of which nothing is live, and that nobody has pinned but its maker. Waits for one who is moving it. Pinned
    /// memory of the host that the other groups could not fill goes back to the system.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`]; [`Error::GroupInUse`] while blocks of its are live, or freed and waiting for streams;
    /// [`Error::Pinned`]; [`Error::Device`]. The group stays then.
    pub fn remove_group(&self, group: GroupId) -> Result<()> {
        let group = self.known(group)?;
        let mut state = lock(&group.state);
        if group.pins.load(Ordering::SeqCst) > 1 {
            return Err(Error::Pinned { group: group.name.clone() });
        }
        // What is freed while it is evicted is known as soon as it is resident; without blocks nothing is copied.
        let blocks = self.lanes_of(group.id).map(|lane| lane.lock().blocks.len() as u64).sum();
        if blocks > 0 {
            return Err(Error::GroupInUse { group: group.name.clone(), blocks });
        }
        self.arrive(&group, &mut state)?;
        let closed = self.lanes_of(group.id).try_for_each(|lane| self.close(&group, lane));
        if closed.is_err() {
            self.lanes_of(group.id).for_each(|lane| lane.home.set_away(false));
            return closed;
        }
        self.lanes_of(group.id).for_each(|lane| lane.vacate(&self.depot, &self.options));
        self.groups.write().remove(group.id);
        let others = self.lanes.iter().filter(|lane| lane.home.group().is_some());
        self.store.shrink(others.map(|lane| in_buffers(lane.lock().pool.usage().live)).sum());
        Ok(())
    }

    /// Closes a lane of which nothing is in use, for good.
    fn close(&self, group: &Group, lane: &Lane) -> Result<()> {
        let mut books = lane.lock();
        self.absorb(lane, &mut books, true)?;
        if !books.is_idle() || !self.depot.may_give(&lane.home) {
            let blocks = books.blocks.len() as u64;
            return Err(Error::GroupInUse { group: group.name.clone(), blocks });
        }
        lane.home.begin();
        books.pool.trim()?;
        lane.home.set_away(true);
        Ok(())
    }

    /// Says where contents are kept from now on while groups are evicted; what is kept already stays where it is. Pinned memory
    /// beyond the new budget goes back to the system once nothing is kept in it.
    pub fn set_hosting(&self, hosting: Hosting) {
        if !self.process.is_this() {
            return;
        }
        self.store.set_hosting(hosting);
    }

    /// The groups, in the order in which they were made. Waits for those who are moving one.
    pub fn groups(&self) -> Vec<GroupStats> {
        if !self.process.is_this() {
            return Vec::new();
        }
        let mut groups: Vec<Arc<Group>> = self.groups.read().groups().cloned().collect();
        groups.sort_unstable_by_key(|group| group.serial);
        groups.iter().map(|group| self.stats_of(group)).collect()
    }

    /// What a group has and did. Waits for one who is moving it.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`].
    pub fn group_stats(&self, group: GroupId) -> Result<GroupStats> {
        Ok(self.stats_of(&*self.known(group)?))
    }

    /// A group, unless this is a child of the process that has it.
    pub(super) fn known(&self, group: GroupId) -> Result<Arc<Group>> {
        self.process.check()?;
        self.groups.get(group)
    }

    fn stats_of(&self, group: &Group) -> GroupStats {
        let residence = lock(&group.state).residence();
        let Moves { evictions, restores, bytes_out, bytes_in } = *lock(&group.moves);
        let mut stats = GroupStats {
            name: group.name.clone(),
            residence,
            pins: group.pins.load(Ordering::SeqCst),
            live: 0,
            held: 0,
            kept: 0,
            evictions,
            restores,
            bytes_out,
            bytes_in,
        };
        for lane in self.lanes_of(group.id) {
            let books = lane.lock();
            let usage = books.pool.usage();
            stats.live += usage.live - books.pending_bytes;
            stats.held += usage.held - lane.home.spilled_bytes();
            stats.kept += books.kept.as_ref().map_or(0, |kept| kept.bytes());
        }
        stats
    }

    /// What groups hold that are pinned, bytes.
    pub(super) fn pinned_bytes(&self) -> u64 {
        let groups = self.groups.by_use();
        let pinned = groups.iter().filter(|group| group.pins.load(Ordering::SeqCst) > 0);
        pinned.map(|group| self.held_by(group)).sum()
    }

    /// The physical memory of the device that a group has, bytes.
    pub(super) fn held_by(&self, group: &Group) -> u64 {
        self.lanes_of(group.id).map(Lane::held).sum()
    }

    pub(super) fn lanes_of(&self, group: GroupId) -> impl Iterator<Item = &Lane> {
        self.lanes.iter().filter(move |lane| lane.home.group() == Some(group))
    }
}
