//! Reserved address space and what appears in it: every `mmap` of the host device is here.

use std::os::fd::AsFd;
use std::ptr;

use rustix::io::Result;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// Address space that belongs to this device alone, inaccessible where nothing is mapped. Given back,
/// with all that is mapped in it, when dropped.
///
/// Nothing in this crate holds a reference into it: its memory is reached by raw addresses only, so
/// that changing what is mapped never invalidates a Rust reference.
#[derive(Debug)]
pub(super) struct Reservation {
    /// What the kernel returned. The part in use begins at the first multiple of the tile.
    base: usize,
    base_bytes: usize,
    address: usize,
    bytes: usize,
}

impl Reservation {
    /// Reserves `bytes` aligned to `align`, a power of two no less than a page.
    pub(super) fn new(bytes: u64, align: u64) -> Result<Reservation> {
        // The kernel aligns to pages only. What the alignment leaves over stays reserved: address space
        // costs nothing, and it keeps an overrun of this range from reaching the next.
        let too_long = rustix::io::Errno::NOMEM;
        let base_bytes = bytes.checked_add(align).and_then(|b| usize::try_from(b).ok()).ok_or(too_long)?;
        let (bytes, align) = (bytes as usize, align as usize);
        // SAFETY: the address is the kernel's to choose, so no existing mapping is touched.
        let base = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                base_bytes,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        // Exposed, since users of the device reach the memory through addresses made from integers.
        let base = base.expose_provenance();
        Ok(Reservation { base, base_bytes, address: base.next_multiple_of(align), bytes })
    }

    /// The first address.
    pub(super) fn address(&self) -> u64 {
        self.address as u64
    }

    /// Makes `bytes` of `file` from `file_offset` appear at `offset`. All in whole pages.
    ///
    /// # Panics
    /// When the part does not lie within the reservation.
    pub(super) fn map(&self, offset: u64, bytes: u64, file: impl AsFd, file_offset: u64) -> Result<()> {
        let (start, bytes) = self.part(offset, bytes);
        // SAFETY: MAP_FIXED replaces what is mapped at `start..start + bytes`, which `part` has found to
        // lie within this reservation. That address space came from `new`, is not yet given back, and
        // holds nothing that Rust knows of: no object, no reference.
        unsafe {
            mmap(
                ptr::with_exposed_provenance_mut(start),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::FIXED | MapFlags::POPULATE,
                file,
                file_offset,
            )
        }?;
        Ok(())
    }

    /// Makes `bytes` from `offset` inaccessible again, in one step: at no time are the addresses free.
    ///
    /// # Panics
    /// When the part does not lie within the reservation.
    pub(super) fn unmap(&self, offset: u64, bytes: u64) -> Result<()> {
        let (start, bytes) = self.part(offset, bytes);
        // SAFETY: as in `map`, only address space of this reservation is replaced. Whether someone still
        // uses a raw address in it is the caller's to know, as `Device::unmap` says; such a use traps.
        unsafe {
            mmap_anonymous(
                ptr::with_exposed_provenance_mut(start),
                bytes,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED,
            )
        }?;
        Ok(())
    }

    /// The first address and the length of a part.
    fn part(&self, offset: u64, bytes: u64) -> (usize, usize) {
        let end = offset.checked_add(bytes).expect("a part ends within the address space");
        assert!(end <= self.bytes as u64, "{bytes} bytes from {offset} leave the {} reserved", self.bytes);
        (self.address + offset as usize, bytes as usize)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: `base_bytes` from `base` are what `new` reserved, given back once, here; nothing in
        // Rust refers to them (see the type).
        let given_back = unsafe { munmap(ptr::with_exposed_provenance_mut(self.base), self.base_bytes) };
        debug_assert!(given_back.is_ok(), "munmap: {given_back:?}");
    }
}

/// Copies memory at `address` to `out`.
///
/// # Safety
/// `out.len()` bytes from `address` must be mapped, readable and stay so. Whoever else writes them
/// meanwhile, through raw addresses, must answer for the race.
pub(super) unsafe fn read(address: u64, out: &mut [u8]) {
    let from = ptr::with_exposed_provenance::<u8>(address as usize);
    // SAFETY: the source is readable for `out.len()` bytes, by this function's contract, and the
    // destination writable, being a slice; bytes need no alignment. They may overlap, where the caller
    // has made the slice from an address of the device.
    unsafe { ptr::copy(from, out.as_mut_ptr(), out.len()) }
}

/// Copies `bytes` to memory at `address`.
///
/// # Safety
/// `bytes.len()` bytes from `address` must be mapped, writable and stay so. Whoever else uses them
/// meanwhile, through raw addresses, must answer for the race.
pub(super) unsafe fn write(address: u64, bytes: &[u8]) {
    let to = ptr::with_exposed_provenance_mut::<u8>(address as usize);
    // SAFETY: the destination is writable for `bytes.len()` bytes, by this function's contract, and the
    // source readable, being a slice; bytes need no alignment. They may overlap, where the caller has
    // made the slice from an address of the device.
    unsafe { ptr::copy(bytes.as_ptr(), to, bytes.len()) }
}
