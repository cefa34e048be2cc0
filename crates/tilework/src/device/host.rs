//! Host memory on Linux: tiles of a `memfd` mapped into reserved address space.
//!
//! ```text
//!   address space   │ range 0: PROT_NONE, then file pages where mapped │   │ range 1 │
//!                           │ mmap(MAP_FIXED | MAP_SHARED)      └───┐           │
//!                           ▼                                       ▼           ▼
//!   one memfd       │ heap 0 │ heap 1 │ (hole) │ heap 3 │            any part, any number of times
//! ```
//!
//! * **One file** for all heaps. It takes one file descriptor however many heaps there are, neighbours
//!   in the file merge into one mapping across heaps, and one `fstat` tells what is held.
//! * **create** is `fallocate`: the pages exist when it returns, so that running out is an error there
//!   and no SIGBUS later. **release** punches a hole: the pages are gone, and zeros when created anew.
//! * **map** is one `mmap` for each run of binds that are adjacent in the range and in the file, with
//!   `MAP_POPULATE`: setting up the page tables there costs about half of what the page faults would
//!   later, and none of it falls into a run. **unmap** puts inaccessible pages over the part, so the
//!   reservation is never open to others.
//! * Each run of pages is an entry in the kernel's list of mappings, which is bounded. The device counts
//!   them, all host devices of the process together, and refuses before the kernel would.
//! * **held** is what the kernel says of the file, less what was created as memory on the host: that is the same
//!   memory here, so that managers can be tried where a device has both.
//!
//! Huge pages are left to the administrator's setting for shared memory. Asking for them (`madvise`)
//! does nothing to pages that `fallocate` made, and collapsing them afterwards was ten times as dear as
//! making them.
//!
//! Limits of a control group are not seen: beyond them the kernel may end the process. Put a
//! [`Limit`](super::limit::Limit) around the device there.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use rustc_hash::FxHashMap;
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, fstat, memfd_create};
use rustix::io::{Errno, retry_on_intr};
use rustix::param::page_size;

use self::budget::MapBudget;
use self::file_space::FileSpace;
use self::reservation::Reservation;
use super::books::Books;
use super::{Aliasing, Bind, Call, Calls, Caps, Device, DeviceError, HeapId, Range, RangeId};

mod available;
mod budget;
mod file_space;
mod reservation;

/// The tile where pages are not larger: D3D12's and Vulkan's, so that what is seen here holds there.
const TILE_BYTES: u64 = 64 << 10;

/// The longest range that is tried for. Address space costs nothing, and 47 bits of it are common.
const LONGEST_RANGE: u64 = 1 << 40;

/// Host memory as a device: `host`.
#[derive(Debug)]
pub struct Host {
    books: Books,
    file: OwnedFd,
    file_space: FileSpace,
    /// Where each heap begins in the file, bytes.
    heaps: FxHashMap<HeapId, u64>,
    reservations: FxHashMap<RangeId, Reservation>,
    budget: Arc<MapBudget>,
    /// What this device has taken of the budget.
    entries: u64,
    calls: Calls,
}

/// A part of the file that appears in one piece in a range; bytes.
#[derive(Debug, Clone, Copy)]
struct Run {
    range_offset: u64,
    file_offset: u64,
    bytes: u64,
}

impl Host {
    /// A device that holds nothing yet.
    ///
    /// # Errors
    /// When the system has no `memfd`, or no address space can be reserved.
    pub fn new() -> Result<Host, DeviceError> {
        Host::with_budget(MapBudget::of_process())
    }

    fn with_budget(budget: Arc<MapBudget>) -> Result<Host, DeviceError> {
        let file = memfd_create("tilework", MemfdFlags::CLOEXEC)
            .map_err(|errno| failed(Call::Create, "memfd_create", errno))?;
        let tile_bytes = TILE_BYTES.max(page_size() as u64);
        let caps = Caps {
            tile_bytes,
            tiling: true,
            partial_maps: true,
            needs_access: false,
            max_range_bytes: longest_range(tile_bytes)?,
            memory: true,
            capacity_bytes: None,
            // It is where the others are, and takes part in everything but the count.
            host_heaps: true,
            aliasing: Aliasing::Ordered,
        };
        Ok(Host {
            books: Books::new(caps),
            file,
            file_space: FileSpace::default(),
            heaps: FxHashMap::default(),
            reservations: FxHashMap::default(),
            budget,
            entries: 0,
            calls: Calls::default(),
        })
    }

    /// Makes the pages of a heap. Returns where they begin in the file, bytes.
    fn take_pages(&mut self, bytes: u64) -> Result<u64, DeviceError> {
        let out_of_memory = DeviceError::OutOfMemory { bytes };
        if !available::bytes_available(bytes) {
            return Err(out_of_memory);
        }
        let Some(offset) = self.file_space.take(bytes) else { return Err(out_of_memory) };
        let start = Instant::now();
        let made = retry_on_intr(|| fallocate(&self.file, FallocateFlags::empty(), offset, bytes));
        self.calls.create += 1;
        self.calls.nanos += nanos_since(start);
        if let Err(errno) = made {
            self.file_space.give(offset, bytes);
            return Err(match errno {
                Errno::NOSPC | Errno::NOMEM => out_of_memory,
                other => failed(Call::Create, "fallocate", other),
            });
        }
        Ok(offset)
    }

    /// The binds as runs of the file: what one `mmap` each takes.
    fn runs(&self, binds: &[Bind]) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::with_capacity(binds.len());
        for bind in binds {
            let run = Run {
                range_offset: bind.range_offset,
                file_offset: self.heaps[&bind.heap] + bind.heap_offset,
                bytes: bind.bytes,
            };
            match runs.last_mut() {
                Some(last)
                    if last.range_offset + last.bytes == run.range_offset
                        && last.file_offset + last.bytes == run.file_offset =>
                {
                    last.bytes += run.bytes;
                }
                _ => runs.push(run),
            }
        }
        runs
    }

    /// At how many of these offsets of a range the kernel keeps what lies before and behind apart.
    ///
    /// It joins unmapped to unmapped, and file pages to file pages where the file goes on. What lies
    /// outside the range counts as unmapped; where it is not ours at all the count is one too high.
    fn boundaries(&self, range: RangeId, offsets: &[u64]) -> u64 {
        let file_at = |piece: Bind| self.heaps[&piece.heap] + piece.heap_offset;
        let is_boundary = |&&offset: &&u64| {
            let before = self.books.piece_before(range, offset).map(|piece| file_at(piece) + piece.bytes);
            before != self.books.piece_at(range, offset).map(file_at)
        };
        offsets.iter().filter(is_boundary).count() as u64
    }

    /// Takes `gained` entries of the budget for mappings in exchange for `lost`.
    fn take_entries(&mut self, call: Call, lost: u64, gained: u64) -> Result<(), DeviceError> {
        self.budget.take(lost, gained).map_err(|limit| DeviceError::Failed {
            call,
            reason: format!(
                "the address space would be cut into more than {limit} mappings; raise vm.max_map_count, \
                 or map larger pieces"
            ),
        })?;
        self.entries = self.entries - lost + gained;
        Ok(())
    }

    /// Gives `lost` entries back in exchange for `kept`.
    fn give_entries(&mut self, lost: u64, kept: u64) {
        self.budget.give(lost, kept);
        self.entries = self.entries - lost + kept;
    }

    /// Maps `runs`, all or none.
    fn map_runs(&mut self, range: RangeId, runs: &[Run]) -> Result<(), DeviceError> {
        let reservation = &self.reservations[&range];
        for (done, run) in runs.iter().enumerate() {
            let start = Instant::now();
            let mapped = reservation.map(run.range_offset, run.bytes, &self.file, run.file_offset);
            self.calls.map += 1;
            self.calls.nanos += nanos_since(start);
            let Err(errno) = mapped else { continue };
            for run in &runs[..done] {
                let start = Instant::now();
                // Putting back what was there a moment ago takes no entry, so it cannot be refused for
                // want of one. Should it be all the same, nothing can reach the part: to the books it is
                // unmapped, and the next map replaces it.
                let _ = reservation.unmap(run.range_offset, run.bytes);
                self.calls.unmap += 1;
                self.calls.nanos += nanos_since(start);
            }
            return Err(failed(Call::Map, "mmap", errno));
        }
        Ok(())
    }
}

impl Device for Host {
    fn name(&self) -> &'static str {
        "host"
    }

    fn caps(&self) -> &Caps {
        self.books.caps()
    }

    fn reserve(&mut self, bytes: u64) -> Result<Range, DeviceError> {
        self.books.check_reserve(bytes)?;
        self.take_entries(Call::Reserve, 0, 1)?;
        let start = Instant::now();
        let reserved = Reservation::new(bytes, self.caps().tile_bytes);
        self.calls.reserve += 1;
        self.calls.nanos += nanos_since(start);
        let reservation = match reserved {
            Ok(reservation) => reservation,
            Err(errno) => {
                self.give_entries(1, 0);
                return Err(failed(Call::Reserve, "mmap", errno));
            }
        };
        let range = self.books.reserve(reservation.address(), bytes)?;
        self.reservations.insert(range.id, reservation);
        Ok(range)
    }

    fn unreserve(&mut self, range: RangeId) -> Result<(), DeviceError> {
        self.books.unreserve(range)?;
        self.give_entries(1, 0);
        let start = Instant::now();
        self.reservations.remove(&range);
        self.calls.reserve += 1;
        self.calls.nanos += nanos_since(start);
        Ok(())
    }

    fn create(&mut self, bytes: u64) -> Result<HeapId, DeviceError> {
        self.books.check_create(bytes)?;
        let offset = self.take_pages(bytes)?;
        let heap = self.books.create(bytes)?;
        self.heaps.insert(heap, offset);
        Ok(heap)
    }

    fn create_on_host(&mut self, bytes: u64) -> Result<HeapId, DeviceError> {
        self.books.check_create_on_host(bytes)?;
        let offset = self.take_pages(bytes)?;
        let heap = self.books.create_on_host(bytes)?;
        self.heaps.insert(heap, offset);
        Ok(heap)
    }

    fn release(&mut self, heap: HeapId) -> Result<(), DeviceError> {
        let bytes = self.books.check_release(heap)?;
        let offset = self.heaps[&heap];
        let start = Instant::now();
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let punched = retry_on_intr(|| fallocate(&self.file, hole, offset, bytes));
        self.calls.release += 1;
        self.calls.nanos += nanos_since(start);
        punched.map_err(|errno| failed(Call::Release, "fallocate", errno))?;
        self.books.release(heap)?;
        self.heaps.remove(&heap);
        self.file_space.give(offset, bytes);
        Ok(())
    }

    fn map(&mut self, range: RangeId, binds: &[Bind]) -> Result<(), DeviceError> {
        // Where the binds end counts too: that is where they meet what is mapped already.
        let mut edges: Vec<u64> = Vec::with_capacity(2 * binds.len());
        edges.extend(binds.iter().map(|bind| bind.range_offset));
        edges.extend(binds.iter().map(|bind| bind.range_offset.saturating_add(bind.bytes)));
        edges.sort_unstable();
        edges.dedup();

        let before = self.boundaries(range, &edges);
        self.books.map(range, binds)?;
        let after = self.boundaries(range, &edges);
        if let Err(refused) = self.take_entries(Call::Map, before, after) {
            self.books.undo_map(range, binds);
            return Err(refused);
        }
        let runs = self.runs(binds);
        if let Err(refused) = self.map_runs(range, &runs) {
            self.books.undo_map(range, binds);
            self.give_entries(after, before);
            return Err(refused);
        }
        Ok(())
    }

    fn set_access(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        self.books.set_access(range, offset, bytes).map(|_| ())
    }

    fn unmap(&mut self, range: RangeId, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        let pieces = self.books.pieces(Call::Unmap, range, offset, bytes)?;
        let end = offset + bytes;
        let edges: Vec<u64> = pieces.iter().map(|piece| piece.range_offset).chain([end]).collect();
        let before = self.boundaries(range, &edges);

        let start = Instant::now();
        let unmapped = self.reservations[&range].unmap(offset, bytes);
        self.calls.unmap += 1;
        self.calls.nanos += nanos_since(start);
        unmapped.map_err(|errno| failed(Call::Unmap, "mmap", errno))?;
        self.books.unmap(range, offset, bytes)?;
        self.give_entries(before, self.boundaries(range, &edges));
        Ok(())
    }

    fn add_peer(&mut self, _: u32) -> Result<(), DeviceError> {
        Ok(())
    }

    fn calls(&self) -> Calls {
        self.calls
    }

    fn held_bytes(&self) -> Result<u64, DeviceError> {
        // Blocks are of 512 bytes whatever the file system's own are (stat(2)).
        let stat = fstat(&self.file).map_err(|errno| failed(Call::Read, "fstat", errno))?;
        Ok(stat.st_blocks.cast_unsigned() * 512 - self.books.host_bytes())
    }

    fn free_bytes(&self) -> Option<u64> {
        None
    }

    fn ready(&self, _: u64) -> Option<u64> {
        None
    }

    fn read(&self, address: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        self.books.check_use(Call::Read, address, out.len() as u64)?;
        // SAFETY: the books have found `out.len()` bytes from `address` mapped in one reservation of this
        // device, readable, and none of it can be unmapped while `self` is borrowed.
        unsafe { reservation::read(address, out) };
        Ok(())
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.books.check_use(Call::Write, address, bytes.len() as u64)?;
        // SAFETY: the books have found `bytes.len()` bytes from `address` mapped in one reservation of
        // this device, writable, and none of it can be unmapped while `self` is borrowed.
        unsafe { reservation::write(address, bytes) };
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The file and the reservations close themselves; only the count is shared with others.
        self.budget.give(self.entries, 0);
    }
}

/// The longest range that the system lets this process reserve, bytes, up to [`LONGEST_RANGE`]. Limits
/// on address space or on overcommitment may allow less.
fn longest_range(tile_bytes: u64) -> Result<u64, DeviceError> {
    let mut bytes = LONGEST_RANGE;
    loop {
        match Reservation::new(bytes, tile_bytes) {
            Ok(_) => return Ok(bytes),
            Err(_) if bytes > tile_bytes => bytes /= 2,
            Err(errno) => return Err(failed(Call::Reserve, "mmap", errno)),
        }
    }
}

fn failed(call: Call, function: &str, errno: Errno) -> DeviceError {
    DeviceError::Failed { call, reason: format!("{function}: {}", std::io::Error::from(errno)) }
}

fn nanos_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
