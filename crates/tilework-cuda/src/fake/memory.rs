//! The memory of the fake's GPUs: a file for what is physical, reservations for addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Unbounded};
use std::os::fd::OwnedFd;
use std::ptr;

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};

use super::Config;
use super::streams::{Copy, Way};
use crate::driver::{
    Code, HOST_MEMORY_ALREADY_REGISTERED, HOST_MEMORY_NOT_REGISTERED, INVALID_VALUE, NOT_SUPPORTED,
    OUT_OF_MEMORY,
};

/// What fresh memory of `cuMemAlloc` is filled with: anything but zeros.
const JUNK: u8 = 0xcd;

pub(super) struct Memory {
    config: Config,
    file: OwnedFd,
    /// Everything of the file from here on was never used, so it is zeros.
    end: u64,
    next_handle: u64,
    handles: BTreeMap<u64, Physical>,
    /// By first address.
    ranges: BTreeMap<u64, Space>,
    /// By address; disjoint, each within a reservation.
    mappings: BTreeMap<u64, Mapping>,
    /// Memory of the host that GPUs copy to and from: length by first address.
    registered: BTreeMap<u64, u64>,
}

struct Physical {
    offset: u64,
    bytes: u64,
    mapped: u32,
    released: bool,
    on_host: bool,
}

struct Space {
    bytes: u64,
    /// What the kernel gave, for the alignment.
    base: (usize, usize),
    /// True: made by `cuMemAlloc`, memory and all.
    allocated: bool,
}

struct Mapping {
    bytes: u64,
    handle: u64,
    /// The GPUs that may use it.
    access: BTreeSet<usize>,
}

impl Memory {
    pub fn new(config: Config) -> Memory {
        Memory {
            config,
            file: memfd_create("tilework-fake-gpu", MemfdFlags::CLOEXEC).expect("a file in memory"),
            end: 0,
            next_handle: 1,
            handles: BTreeMap::new(),
            ranges: BTreeMap::new(),
            mappings: BTreeMap::new(),
            registered: BTreeMap::new(),
        }
    }

    pub fn held_bytes(&self) -> u64 {
        let allocated = self.ranges.values().filter(|space| space.allocated).map(|space| space.bytes);
        let created = self.handles.values().filter(|handle| !handle.on_host).map(|handle| handle.bytes);
        created.chain(allocated).sum()
    }

    pub fn host_bytes(&self) -> u64 {
        self.handles.values().filter(|handle| handle.on_host).map(|handle| handle.bytes).sum()
    }

    pub fn ranges(&self) -> usize {
        self.ranges.len()
    }

    pub fn reserve(&mut self, bytes: u64, alignment: u64) -> Result<u64, Code> {
        let page = rustix::param::page_size() as u64;
        if bytes == 0 || !bytes.is_multiple_of(page) || !(alignment == 0 || alignment.is_power_of_two()) {
            return Err(INVALID_VALUE);
        }
        let alignment = alignment.max(self.config.granularity.next_power_of_two());
        self.take_addresses(bytes, alignment, false)
    }

    pub fn unreserve(&mut self, address: u64, bytes: u64) -> Result<(), Code> {
        let space = self.ranges.get(&address).filter(|space| !space.allocated && space.bytes == bytes);
        if space.is_none() || self.mappings.range(address..address + bytes).next().is_some() {
            return Err(INVALID_VALUE);
        }
        self.give_addresses(address);
        Ok(())
    }

    pub fn create(&mut self, bytes: u64, on_host: bool) -> Result<u64, Code> {
        if !self.config.maps_memory {
            return Err(NOT_SUPPORTED);
        }
        if bytes == 0 || !bytes.is_multiple_of(self.config.granularity) {
            return Err(INVALID_VALUE);
        }
        if !on_host {
            self.check_room(bytes)?;
        }
        let offset = self.end;
        let end = offset.checked_add(bytes).ok_or(OUT_OF_MEMORY)?;
        ftruncate(&self.file, end).map_err(|_| OUT_OF_MEMORY)?;
        self.end = end;
        let handle = self.next_handle;
        self.next_handle += 1;
        self.handles.insert(handle, Physical { offset, bytes, mapped: 0, released: false, on_host });
        Ok(handle)
    }

    pub fn release(&mut self, handle: u64) -> Result<(), Code> {
        let physical = self.handles.get_mut(&handle).filter(|h| !h.released).ok_or(INVALID_VALUE)?;
        physical.released = true;
        self.drop_unused(handle);
        Ok(())
    }

    pub fn map(&mut self, address: u64, bytes: u64, offset: u64, handle: u64) -> Result<(), Code> {
        let physical = self.handles.get(&handle).filter(|h| !h.released).ok_or(INVALID_VALUE)?;
        let granularity = self.config.granularity;
        if bytes == 0 || !bytes.is_multiple_of(granularity) || !address.is_multiple_of(granularity) {
            return Err(INVALID_VALUE);
        }
        if offset != 0 || bytes != physical.bytes {
            return Err(NOT_SUPPORTED);
        }
        if !self.is_reserved(address, bytes) || self.is_mapped(address, bytes) {
            return Err(INVALID_VALUE);
        }
        let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: the part lies in a reservation of this driver, found above, of which Rust holds no
        // reference; only its addresses are replaced.
        unsafe {
            mmap(pointer(address), bytes as usize, ProtFlags::empty(), flags, &self.file, physical.offset)
        }
        .map_err(|_| OUT_OF_MEMORY)?;
        self.mappings.insert(address, Mapping { bytes, handle, access: BTreeSet::new() });
        self.handles.get_mut(&handle).expect("found above").mapped += 1;
        Ok(())
    }

    pub fn set_access(&mut self, address: u64, bytes: u64, gpus: &[usize]) -> Result<(), Code> {
        let keys = self.whole_mappings(address, bytes)?;
        for key in keys {
            let mapping = self.mappings.get_mut(&key).expect("found above");
            // SAFETY: a mapping of this driver, of which Rust holds no reference.
            unsafe {
                mprotect(pointer(key), mapping.bytes as usize, MprotectFlags::READ | MprotectFlags::WRITE)
            }
            .map_err(|_| OUT_OF_MEMORY)?;
            mapping.access.extend(gpus);
        }
        Ok(())
    }

    pub fn unmap(&mut self, address: u64, bytes: u64) -> Result<(), Code> {
        // The driver takes it, as seen on an H200: where nothing is mapped, nothing is undone.
        if bytes > 0 && self.is_reserved(address, bytes) && !self.is_mapped(address, bytes) {
            return Ok(());
        }
        for key in self.whole_mappings(address, bytes)? {
            let mapping = self.mappings.remove(&key).expect("found above");
            // SAFETY: as in `map`; what was there goes back to being reserved.
            unsafe { block(key, mapping.bytes) };
            self.handles.get_mut(&mapping.handle).expect("mapped, so not gone").mapped -= 1;
            self.drop_unused(mapping.handle);
        }
        Ok(())
    }

    pub fn alloc(&mut self, bytes: u64) -> Result<u64, Code> {
        if bytes == 0 {
            return Err(INVALID_VALUE);
        }
        self.check_room(bytes)?;
        let address = self.take_addresses(bytes, 512, true)?;
        // Both ends suffice to show that nobody relies on zeros, and leave the rest untouched.
        for at in [address, address + bytes.saturating_sub(4096)] {
            // SAFETY: at most what was allocated a moment ago, readable and writable.
            unsafe { ptr::write_bytes(pointer(at).cast::<u8>(), JUNK, bytes.min(4096) as usize) };
        }
        Ok(address)
    }

    pub fn free(&mut self, address: u64) -> Result<(), Code> {
        self.ranges.get(&address).filter(|space| space.allocated).ok_or(INVALID_VALUE)?;
        self.give_addresses(address);
        Ok(())
    }

    /// Whether a GPU may use `bytes` from `address`.
    pub fn check_use(&self, gpu: usize, address: u64, bytes: u64) -> Result<(), Code> {
        let end = address.checked_add(bytes).ok_or(INVALID_VALUE)?;
        let (&start, space) = self.ranges.range(..=address).next_back().ok_or(INVALID_VALUE)?;
        if end > start + space.bytes {
            return Err(INVALID_VALUE);
        }
        let mut next = if space.allocated { end } else { address };
        while next < end {
            let (&at, mapping) = self.mappings.range(..=next).next_back().ok_or(INVALID_VALUE)?;
            if at + mapping.bytes <= next || !mapping.access.contains(&gpu) {
                return Err(INVALID_VALUE);
            }
            next = at + mapping.bytes;
        }
        Ok(())
    }

    pub fn register(&mut self, start: u64, bytes: u64) -> Result<(), Code> {
        let end = start.checked_add(bytes).ok_or(INVALID_VALUE)?;
        let before = self.registered.range(..end).next_back();
        if before.is_some_and(|(&at, &bytes)| at + bytes > start) {
            return Err(HOST_MEMORY_ALREADY_REGISTERED);
        }
        self.registered.insert(start, bytes);
        Ok(())
    }

    /// Returns its length.
    pub fn unregister(&mut self, start: u64) -> Result<u64, Code> {
        self.registered.remove(&start).ok_or(HOST_MEMORY_NOT_REGISTERED)
    }

    pub fn registered_bytes(&self) -> u64 {
        self.registered.values().sum()
    }

    /// What is mapped at an address.
    fn mapping_at(&self, address: u64) -> Option<&Mapping> {
        let (at, mapping) = self.mappings.range(..=address).next_back()?;
        (address - at < mapping.bytes).then_some(mapping)
    }

    /// Whether an address is one at which memory of the host is mapped.
    pub fn is_mapped_from_host(&self, address: u64) -> bool {
        self.mapping_at(address).is_some_and(|mapping| self.handles[&mapping.handle].on_host)
    }

    /// Whether a GPU may use what is mapped at an address.
    pub fn access(&self, gpu: usize, address: u64) -> Result<bool, Code> {
        self.mapping_at(address).map(|mapping| mapping.access.contains(&gpu)).ok_or(INVALID_VALUE)
    }

    pub fn is_registered(&self, start: u64, bytes: u64) -> bool {
        let around = self.registered.range(..=start).next_back();
        around.is_some_and(|(at, registered)| start + bytes <= at + registered)
    }

    /// Whether the device's side of a copy may be used. Registered memory of the host may, as a real driver takes it.
    pub fn check_copied(&self, Copy { gpu, device, bytes, .. }: Copy) -> Result<(), Code> {
        if self.is_registered(device, bytes as u64) {
            return Ok(());
        }
        self.check_use(gpu, device, bytes as u64)
    }

    /// Makes a queued copy whose turn has come, unless what it uses was taken away: that was counted then.
    pub fn copy(&self, copy: Copy) {
        let Copy { way, device, host, bytes, .. } = copy;
        if self.check_copied(copy).is_err() || !self.is_registered(host, bytes as u64) {
            return;
        }
        let (device, host) = (pointer(device).cast::<u8>(), pointer(host).cast::<u8>());
        // SAFETY: the device's part was found mapped, readable and writable. The host's is registered, and who
        // queued the copy answers for its being there, and used by nobody else, until it was made.
        unsafe {
            match way {
                Way::Down => host.copy_from(device, bytes),
                Way::Up => device.copy_from(host, bytes),
            }
        }
    }

    fn check_room(&self, bytes: u64) -> Result<(), Code> {
        let held = self.held_bytes();
        match held.checked_add(bytes) {
            Some(sum) if sum <= self.config.total_bytes => Ok(()),
            _ => Err(OUT_OF_MEMORY),
        }
    }

    /// Whether the part lies in one reservation.
    fn is_reserved(&self, address: u64, bytes: u64) -> bool {
        let range = self.ranges.range(..=address).next_back();
        range.is_some_and(|(start, space)| !space.allocated && address + bytes <= start + space.bytes)
    }

    /// Whether any of the part is mapped.
    fn is_mapped(&self, address: u64, bytes: u64) -> bool {
        let last = self.mappings.range(..address + bytes).next_back();
        last.is_some_and(|(start, mapping)| start + mapping.bytes > address)
    }

    /// The addresses of the mappings that make up the part without a gap.
    fn whole_mappings(&self, address: u64, bytes: u64) -> Result<Vec<u64>, Code> {
        let end = address.checked_add(bytes).filter(|_| bytes > 0).ok_or(INVALID_VALUE)?;
        let mut next = address;
        let mut keys = Vec::new();
        for (&at, mapping) in self.mappings.range(address..end) {
            if at != next {
                return Err(INVALID_VALUE);
            }
            next = at + mapping.bytes;
            keys.push(at);
        }
        if next == end { Ok(keys) } else { Err(INVALID_VALUE) }
    }

    /// Gives the memory of a handle back once nothing names it.
    fn drop_unused(&mut self, handle: u64) {
        let unused = |physical: &Physical| physical.released && physical.mapped == 0;
        if self.handles.get(&handle).is_some_and(unused) {
            let Physical { offset, bytes, .. } = self.handles.remove(&handle).expect("found above");
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&self.file, hole, offset, bytes).expect("a hole in a file in memory");
        }
    }

    fn take_addresses(&mut self, bytes: u64, alignment: u64, allocated: bool) -> Result<u64, Code> {
        let base_bytes = bytes.checked_add(alignment).ok_or(OUT_OF_MEMORY)? as usize;
        let rights = if allocated { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::empty() };
        // SAFETY: the kernel chooses the place, so nothing that exists is touched.
        let base = unsafe {
            mmap_anonymous(ptr::null_mut(), base_bytes, rights, MapFlags::PRIVATE | MapFlags::NORESERVE)
        }
        .map_err(|_| OUT_OF_MEMORY)?
        .expose_provenance();
        let address = (base as u64).next_multiple_of(alignment);
        self.ranges.insert(address, Space { bytes, base: (base, base_bytes), allocated });
        Ok(address)
    }

    fn give_addresses(&mut self, address: u64) {
        let Space { base: (base, bytes), .. } = self.ranges.remove(&address).expect("found before");
        // SAFETY: reserved by `take_addresses`, given back once; Rust holds no reference into it.
        unsafe { munmap(pointer(base as u64), bytes) }.expect("a reservation can be undone");
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        while let Some((&address, _)) = self.ranges.range((Excluded(0), Unbounded)).next() {
            self.give_addresses(address);
        }
    }
}

pub(super) fn pointer(address: u64) -> *mut std::ffi::c_void {
    ptr::with_exposed_provenance_mut(address as usize)
}

/// Makes a part inaccessible without giving it up.
///
/// # Safety
/// It must lie in a reservation of which Rust holds no reference.
unsafe fn block(address: u64, bytes: u64) {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
    // SAFETY: by this function's contract.
    unsafe { mmap_anonymous(pointer(address), bytes as usize, ProtFlags::empty(), flags) }
        .expect("inaccessible pages in a reservation");
}
