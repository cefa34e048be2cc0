//! How a group leaves the device and comes back.
//!
//! ```text
//!   leave   lanes closed to requests ─ events awaited ─ contents saved │ lanes detached
//!                                              undone by a failure ────┤ not undone
//!   come    lanes attached, room made where need be ─ contents queued  │ streams wait ─ lanes open to requests
//! ```
//!
//! The group's lock is held throughout; a lane's only for what changes its books, so that blocks can be freed
//! while contents travel.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::Shared;
use super::contents::Contents;
use super::depot::lock;
use super::groups::{Group, GroupId, Residence};
use super::lane::{Key, Lane, Wait};
use super::streams::Event;
use crate::device::{Call, DeviceError};
use crate::error::{Error, Result};
use crate::manager::{Manager, Span, Stream};

/// Between two looks whether others are through with a group.
const PAUSE: Duration = Duration::from_micros(20);

/// Where a group is.
pub(super) enum State {
    Resident {
        /// On which it was used, beside those of its lanes.
        users: Vec<Stream>,
        /// Behind which its contents are there.
        arrived: Option<Event>,
    },
    /// Not on the device; what is kept lies with the lanes.
    Evicted,
    /// Its lanes are attached, and still closed to requests.
    Arriving {
        cargo: Arc<Mutex<Vec<Cargo>>>,
        /// Queues it.
        loading: JoinHandle<Result<Option<Event>>>,
    },
}

impl Default for State {
    fn default() -> State {
        State::Resident { users: Vec::new(), arrived: None }
    }
}

impl State {
    /// Notes a stream that uses the group while it is resident.
    pub fn used_on(&mut self, stream: Stream) {
        if let State::Resident { users, .. } = self
            && !users.contains(&stream)
        {
            users.push(stream);
        }
    }

    pub fn residence(&self) -> Residence {
        match self {
            State::Resident { .. } => Residence::Resident,
            State::Evicted => Residence::Evicted,
            State::Arriving { .. } => Residence::Arriving,
        }
    }
}

/// Contents on their way back to a lane.
pub(super) struct Cargo {
    key: Key,
    contents: Option<Contents>,
    spans: Vec<Span>,
}

impl Cargo {
    fn bytes(&self) -> u64 {
        if self.contents.is_some() { self.spans.iter().map(|span| span.bytes).sum() } else { 0 }
    }
}

/// Queues what is kept. The event, if there is one, stands behind all of it. After an error nothing is under way.
fn load(cargo: &mut [Cargo]) -> Result<Option<Event>> {
    let mut events: Vec<Event> = Vec::new();
    let mut each =
        cargo.iter_mut().filter_map(|Cargo { contents, spans, .. }| Some((contents.as_mut()?, spans)));
    let loaded = each.try_for_each(|(contents, spans)| contents.load(spans, &mut events));
    if loaded.is_err() {
        for event in events.iter().filter(|event| !event.passed()) {
            if let Err(error) = event.synchronize() {
                tracing::warn!(%error, "a copy of contents back to the device cannot be waited for");
            }
        }
    }
    loaded.map(|()| (!events.is_empty()).then(|| Arc::new(events) as Event))
}

impl Shared {
    /// Evicts a group, or discards it.
    pub(super) fn leave(&self, group: GroupId, keep: bool) -> Result<u64> {
        let group = self.known(group)?;
        let mut state = lock(&group.state);
        if matches!(*state, State::Evicted) {
            if !keep {
                self.lanes_of(group.id).for_each(|lane| lane.lock().kept = None);
            }
            return Ok(0);
        }
        if group.pins.load(Ordering::SeqCst) > 0 {
            return Err(Error::Pinned { group: group.name.clone() });
        }
        self.arrive(&group, &mut state)?;
        self.go(&group, &mut state, keep)
    }

    /// Takes a resident group off the device.
    fn go(&self, group: &Group, state: &mut State, keep: bool) -> Result<u64> {
        let State::Resident { users, .. } = state else { return Ok(0) };
        let lanes: Vec<&Lane> = self.lanes_of(group.id).collect();
        let mut bytes_out = 0;
        let saved = self.save(&lanes, users, keep, &mut bytes_out);
        let saved = saved.inspect_err(|_| lanes.iter().for_each(|lane| lane.home.set_away(false)))?;
        let mut released = 0;
        let mut outcome = Ok(());
        for (lane, contents) in lanes.into_iter().zip(saved) {
            let mut books = lane.lock();
            books.keep(contents);
            lane.home.settle(self.depot.done());
            match books.pool.detach() {
                Ok(bytes) => released += bytes,
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        *state = State::Evicted;
        if self.trap.load(Ordering::Relaxed) {
            for (first, last) in self.lanes_of(group.id).flat_map(|lane| self.depot.addresses(lane.key)) {
                tracing::warn!(
                    group = group.name,
                    "nothing is from {first:#x} to {last:#x} until the group is restored"
                );
            }
        }
        let mut moves = lock(&group.moves);
        moves.evictions += 1;
        moves.bytes_out += bytes_out;
        drop(moves);
        self.remark(&format!("evicted {:?}: {released} bytes released, {bytes_out} bytes kept", group.name));
        outcome.map(|()| released)
    }

    /// Closes lanes to requests, waits for what uses them, and copies to the host what is not there yet.
    fn save(
        &self,
        lanes: &[&Lane],
        users: &[Stream],
        keep: bool,
        copied: &mut u64,
    ) -> Result<Vec<Option<Contents>>> {
        let mut awaited = Vec::new();
        let mut spans = Vec::new();
        for &user in users {
            awaited.push(self.depot.record(user).ok_or_else(no_event)?);
        }
        for lane in lanes {
            let mut books = lane.lock();
            if !self.depot.may_give(&lane.home) {
                return Err(no_event());
            }
            self.absorb(lane, &mut books, false)?;
            lane.home.begin();
            awaited.push(self.depot.mark(&lane.home).ok_or_else(no_event)?);
            awaited.extend(books.awaited(&self.depot));
            if books.waits_unknown() {
                return Err(no_event());
            }
            for user in books.blocks.users() {
                awaited.push(self.depot.record(user).ok_or_else(no_event)?);
            }
            lane.home.set_away(true);
            spans.push(books.pool.spans());
        }
        for event in awaited.iter().filter(|event| !event.passed()) {
            event.synchronize()?;
        }
        let mut saved = Vec::with_capacity(lanes.len());
        for (lane, spans) in lanes.iter().zip(spans) {
            let mut books = lane.lock();
            let asked = books.pool.stats().allocations;
            // What was requested since may lie where something else did.
            let before = books.kept.take_if(|kept| keep && kept.asked == asked);
            drop(books);
            let contents = match before {
                Some(contents) => Some(contents),
                None if keep => Some(self.store.save(&spans, asked)?).inspect(|new| *copied += new.bytes()),
                None => None,
            };
            saved.push(contents);
        }
        Ok(saved)
    }

    /// Makes a group resident, and has the streams wait that need it. Returns the bytes copied.
    pub(super) fn come(&self, group: &Group, stream: Option<Stream>) -> Result<u64> {
        let mut state = lock(&group.state);
        let bytes = self.arrive(group, &mut state)?;
        let Some(stream) = stream else { return Ok(bytes) };
        if let State::Resident { arrived, .. } = &mut *state {
            match arrived.as_ref().filter(|event| !event.passed()) {
                // A wait for work outside of it would spoil a capture.
                Some(event) if self.depot.streams().is_capturing(stream) => event.synchronize()?,
                Some(event) => event.wait(stream)?,
                None => *arrived = None,
            }
        }
        state.used_on(stream);
        Ok(bytes)
    }

    /// Begins to make a group resident.
    pub(super) fn set_out(&self, group: &Group) -> Result<()> {
        let mut state = lock(&group.state);
        if !matches!(*state, State::Evicted) || self.trap.load(Ordering::Relaxed) {
            return Ok(());
        }
        let cargo = {
            let _alone = self.alone(group);
            self.attach(group, true)?
        };
        self.load_beside(group, &mut state, cargo)
    }

    /// The same, if that takes nothing from streams and leaves `spare` bytes; false otherwise.
    pub(super) fn set_out_beside(&self, group: &Group, spare: u64) -> Result<bool> {
        let mut state = lock(&group.state);
        if !matches!(*state, State::Evicted) {
            return Ok(true);
        }
        if self.trap.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let cargo = {
            let _alone = self.alone(group);
            let bytes: u64 = self.lanes_of(group.id).map(|lane| lane.lock().pool.heaps_bytes()).sum();
            if !self.clear_for(group.id, bytes.saturating_add(spare)) {
                return Ok(false);
            }
            match self.attach(group, false) {
                Ok(cargo) => cargo,
                Err(Error::OutOfMemory { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
        };
        self.load_beside(group, &mut state, cargo).map(|()| true)
    }

    /// Has a thread queue what is kept, while the caller goes on.
    fn load_beside(&self, group: &Group, state: &mut State, cargo: Vec<Cargo>) -> Result<()> {
        let cargo = Arc::new(Mutex::new(cargo));
        let theirs = Arc::clone(&cargo);
        let loading =
            thread::Builder::new().name("tilework-prefetch".into()).spawn(move || load(&mut lock(&theirs)));
        match loading {
            Ok(loading) => *state = State::Arriving { cargo, loading },
            Err(error) => {
                tracing::warn!(%error, "no thread to prefetch with: the caller waits");
                let mut cargo = std::mem::take(&mut *lock(&cargo));
                let loaded = load(&mut cargo);
                self.open(group, state, cargo, loaded)?;
            }
        }
        Ok(())
    }

    /// Makes a group resident that may not be. Returns the bytes copied.
    pub(super) fn arrive(&self, group: &Group, state: &mut State) -> Result<u64> {
        let (cargo, loaded) = match std::mem::replace(state, State::Evicted) {
            resident @ State::Resident { .. } => {
                *state = resident;
                return Ok(0);
            }
            State::Evicted => {
                let mut cargo = {
                    let _alone = self.alone(group);
                    self.attach(group, true)?
                };
                let loaded = load(&mut cargo);
                (cargo, loaded)
            }
            State::Arriving { cargo, loading } => {
                let reason = "the thread that copied contents back panicked".to_owned();
                let panicked = Error::Device(DeviceError::Failed { call: Call::Write, reason });
                let loaded = loading.join().unwrap_or(Err(panicked));
                let cargo = std::mem::take(&mut *lock(&cargo));
                (cargo, loaded)
            }
        };
        self.open(group, state, cargo, loaded)
    }

    /// Waits for the threads of prefetches that nothing followed.
    pub(super) fn finish_arrivals(&self) {
        for group in self.groups.by_use() {
            if let State::Arriving { loading, .. } = std::mem::take(&mut *lock(&group.state))
                && !matches!(loading.join(), Ok(Ok(_)))
            {
                tracing::warn!(group = group.name, "a prefetch failed that nothing followed");
            }
        }
    }

    /// Opens the lanes of a group to requests once their contents are queued, or sends it back.
    fn open(
        &self,
        group: &Group,
        state: &mut State,
        cargo: Vec<Cargo>,
        loaded: Result<Option<Event>>,
    ) -> Result<u64> {
        let arrived = loaded.and_then(|event| {
            self.have_lanes_wait(&cargo, event.as_ref())?;
            Ok(event)
        });
        let arrived = match arrived {
            Ok(arrived) => arrived,
            Err(error) => {
                self.turn_back(cargo);
                return Err(error);
            }
        };
        let bytes = cargo.iter().map(Cargo::bytes).sum();
        if group.constant.load(Ordering::Relaxed) {
            for Cargo { key, contents, .. } in cargo {
                if let Some(lane) = self.lanes.get(key) {
                    lane.lock().keep(contents);
                }
            }
        }
        // What nothing is live of has no cargo, but may be closed.
        self.lanes_of(group.id).for_each(|lane| lane.home.set_away(false));
        *state = State::Resident { users: Vec::new(), arrived };
        let mut moves = lock(&group.moves);
        moves.restores += 1;
        moves.bytes_in += bytes;
        drop(moves);
        self.remark(&format!("restored {:?}: {bytes} bytes copied", group.name));
        Ok(bytes)
    }

    fn have_lanes_wait(&self, cargo: &[Cargo], event: Option<&Event>) -> Result<()> {
        let Some(event) = event else { return Ok(()) };
        for lane in cargo.iter().filter_map(|cargo| self.lanes.get(cargo.key)) {
            if event.passed() {
                return Ok(());
            }
            if !self.depot.can_queue(&lane.home) || event.wait(lane.key.stream).is_err() {
                event.synchronize()?;
            }
        }
        Ok(())
    }

    /// Waits to be alone in bringing groups back, with the state of one of them locked.
    fn alone(&self, group: &Group) -> MutexGuard<'_, ()> {
        group.queues.store(true, Ordering::SeqCst);
        let alone = lock(&self.coming);
        group.queues.store(false, Ordering::SeqCst);
        alone
    }

    /// Attaches the lanes of an evicted group, all or none, with `makes_room` making room where need be. The caller is
    /// alone in it.
    fn attach(&self, group: &Group, makes_room: bool) -> Result<Vec<Cargo>> {
        let mut cargo = Vec::new();
        for lane in self.lanes_of(group.id) {
            match self.attach_lane(group, lane, makes_room) {
                Ok(None) => {}
                Ok(Some(spans)) => {
                    let contents = lane.lock().kept.take();
                    cargo.push(Cargo { key: lane.key, contents, spans });
                }
                Err(error) => {
                    self.turn_back(cargo);
                    return Err(error);
                }
            }
        }
        Ok(cargo)
    }

    /// What is in use of the lane, `None` where its heaps were not gone.
    fn attach_lane(&self, group: &Group, lane: &Lane, makes_room: bool) -> Result<Option<Vec<Span>>> {
        let mut tried = 0;
        let mut spills = false;
        loop {
            let mut books = lane.lock();
            if !books.pool.is_absent() {
                return Ok(None);
            }
            lane.home.settle(self.depot.done());
            lane.home.set_spilling(spills);
            let attached = books.pool.attach();
            lane.home.set_spilling(false);
            if spills {
                self.remark_spilled();
            }
            let lacks = match attached {
                Ok(()) => return Ok(Some(books.pool.spans())),
                Err(Error::OutOfMemory { request, .. }) if makes_room => request,
                Err(error) => return Err(error),
            };
            drop(books);
            let relieved = match tried {
                0 => {
                    self.take_from_others(lane, lacks, Wait::Nobody);
                    true
                }
                1 => {
                    self.give_back_for_room();
                    true
                }
                _ => self.evict_one(Some(group.id), lacks),
            };
            if !relieved && self.depot.spills() && !spills {
                spills = true;
            } else if !relieved {
                return Err(self.depot.out_of_memory(lacks, self.live.now()));
            }
            tried += 1;
        }
    }

    /// Detaches lanes again whose contents are kept.
    fn turn_back(&self, cargo: Vec<Cargo>) {
        for Cargo { key, contents, .. } in cargo {
            let Some(lane) = self.lanes.get(key) else { continue };
            // What is queued goes to addresses that are about to have nothing behind them.
            let contents = contents.map(Contents::settled);
            let mut books = lane.lock();
            books.keep(contents);
            lane.home.settle(self.depot.done());
            if let Err(error) = books.pool.detach() {
                tracing::warn!(%error, "device memory could not be given back: it stays held and is tried again");
            }
        }
    }

    /// The groups that may be evicted for others, the one used longest ago first.
    fn evictable(&self, except: Option<GroupId>) -> Vec<Arc<Group>> {
        let mut groups = self.groups.by_use();
        groups.retain(|group| Some(group.id) != except && group.pins.load(Ordering::SeqCst) == 0);
        groups
    }

    /// Evicts groups until `bytes` more fit within the limit beside what lanes have. False, and nothing is evicted,
    /// where all that can be would not do.
    fn clear_for(&self, group: GroupId, bytes: u64) -> bool {
        let Some(limit) = self.depot.limit() else { return true };
        let fits_without = |gone: u64| {
            let held: u64 = self.lanes.iter().map(Lane::held).sum();
            held.saturating_sub(gone).saturating_add(bytes) <= limit
        };
        let evictable = self.evictable(Some(group)).iter().map(|group| self.held_by(group)).sum();
        fits_without(evictable) && {
            while !fits_without(0) {
                if !self.evict_one(Some(group), bytes) {
                    return false;
                }
            }
            true
        }
    }

    /// Evicts the group used longest ago that can be: if all of them together would make room for `lacks` bytes, or the
    /// host does for what lacks then. False when there was none, and nothing has changed.
    ///
    /// Where others are about such a group it waits for them. They come to an end, unless they queue to bring it back while
    /// the caller is alone in doing so: then it has nothing on the device.
    pub(super) fn evict_one(&self, except: Option<GroupId>, lacks: u64) -> bool {
        let groups = self.evictable(except);
        let evictable: u64 = groups.iter().map(|group| self.held_by(group)).sum();
        let stays = self.depot.usage().held.saturating_sub(evictable + self.depot.stock_bytes());
        let too_much = self.depot.limit().is_some_and(|limit| stays.saturating_add(lacks) > limit);
        if too_much && !self.depot.spills() {
            return false;
        }
        let mut has_waited = false;
        loop {
            let mut is_busy = false;
            for group in &groups {
                let mut state = match group.state.try_lock() {
                    Ok(state) => state,
                    Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                    Err(TryLockError::WouldBlock) => {
                        is_busy |= !group.queues.load(Ordering::SeqCst);
                        continue;
                    }
                };
                if self.evict_unpinned(group, &mut state) {
                    return true;
                }
            }
            if !is_busy {
                // What those waited for have left may do.
                return has_waited;
            }
            thread::sleep(PAUSE);
            has_waited = true;
        }
    }

    /// Evicts a group that has memory and that nobody has pinned. False where there is none to have.
    fn evict_unpinned(&self, group: &Group, state: &mut State) -> bool {
        // Whoever pins it now waits for the state before he uses it.
        let is_pinned = group.pins.load(Ordering::SeqCst) > 0;
        if is_pinned || matches!(*state, State::Evicted) || self.held_by(group) == 0 {
            return false;
        }
        let gone = self.arrive(group, state).and_then(|_| self.go(group, state, true));
        let gone = gone
            .inspect_err(|error| tracing::warn!(%error, group = group.name, "a group could not be evicted"));
        self.evictions.fetch_add(u64::from(gone.is_ok()), Ordering::Relaxed);
        // A prefetch that failed has given the memory back, too.
        gone.is_ok() || self.held_by(group) == 0
    }

    /// Strikes out a stream that is no more and has done all it was to do.
    pub(super) fn forget_user(&self, stream: Stream) {
        for group in self.groups.by_use() {
            if let State::Resident { users, .. } = &mut *lock(&group.state) {
                users.retain(|&user| user != stream);
            }
        }
    }
}

fn no_event() -> Error {
    let reason = "a stream that uses the group is being captured, or takes no event".to_owned();
    Error::Device(DeviceError::Failed { call: Call::Order, reason })
}
