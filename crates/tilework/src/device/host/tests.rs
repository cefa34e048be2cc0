use std::fs;
use std::os::fd::{AsRawFd, RawFd};

use super::*;
use crate::device::conformance::device_conformance;
use crate::device::fault::Fault;
use crate::device::limit::Limit;

device_conformance!(conformance, || Host::new().unwrap());
device_conformance!(behind_a_limit, || Limit::new(Host::new().unwrap(), 64 * TILE));
device_conformance!(behind_faults, || Fault::new(Host::new().unwrap()));

const TILE: u64 = TILE_BYTES;

/// A device whose mappings no other test counts.
fn host_with(entries: u64) -> Host {
    Host::with_budget(Arc::new(MapBudget::new(entries))).unwrap()
}

/// All in tiles.
fn bind(at: u64, heap: HeapId, from: u64, tiles: u64) -> Bind {
    Bind { range_offset: at * TILE, heap, heap_offset: from * TILE, bytes: tiles * TILE }
}

/// The kernel's list of mappings, cut to what overlaps `bytes` from `start`.
fn kernel_entries(start: u64, bytes: u64) -> Vec<String> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let overlaps = |line: &&str| {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [from, to] = [from, to].map(|text| u64::from_str_radix(text, 16).unwrap());
        from < start + bytes && start < to
    };
    maps.lines().filter(overlaps).map(String::from).collect()
}

fn is_open_on(fd: RawFd, inode: u64) -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(format!("/proc/self/fd/{fd}")).is_ok_and(|meta| meta.ino() == inode)
}

#[test]
fn held_is_what_the_kernel_says_and_equals_the_books() {
    let mut host = Host::new().unwrap();
    let mut heaps = Vec::new();
    for tiles in [1, 7, 64, 3] {
        heaps.push(host.create(tiles * TILE).unwrap());
        assert_eq!(host.held_bytes(), Ok(host.books.held_bytes()));
    }
    assert_eq!(host.held_bytes(), Ok(75 * TILE));
    for heap in [heaps[1], heaps[3]] {
        host.release(heap).unwrap();
        assert_eq!(host.held_bytes(), Ok(host.books.held_bytes()));
    }
    assert_eq!(host.held_bytes(), Ok(65 * TILE));
}

#[test]
fn using_memory_does_not_change_what_is_held() {
    let mut host = Host::new().unwrap();
    let heap = host.create(4 * TILE).unwrap();
    let [one, other] = [0; 2].map(|_| host.reserve(4 * TILE).unwrap());
    for range in [one, other] {
        host.map(range.id, &[bind(0, heap, 0, 4)]).unwrap();
        host.write(range.address, &vec![3; 4 * TILE as usize]).unwrap();
    }
    assert_eq!(host.held_bytes(), Ok(4 * TILE));
}

#[test]
fn dropping_gives_back_the_file_and_the_address_space() {
    use std::os::unix::fs::MetadataExt;
    let mut host = host_with(100);
    let budget = Arc::clone(&host.budget);
    let heap = host.create(2 * TILE).unwrap();
    let range = host.reserve(4 * TILE).unwrap();
    host.map(range.id, &[bind(1, heap, 0, 2)]).unwrap();
    let fd = host.file.as_raw_fd();
    let inode = fs::metadata(format!("/proc/self/fd/{fd}")).unwrap().ino();
    let ours = |lines: Vec<String>| lines.iter().any(|line| line.contains("memfd:tilework"));
    assert!(is_open_on(fd, inode));
    assert!(ours(kernel_entries(range.address, range.bytes)));
    assert!(budget.used() > 0);
    drop(host);
    assert!(!is_open_on(fd, inode));
    // Another test may have reserved the same addresses since, but not with this file.
    let of_this_file = |line: &String| line.split_whitespace().nth(4) == Some(inode.to_string().as_str());
    assert!(!kernel_entries(range.address, range.bytes).iter().any(of_this_file));
    assert_eq!(budget.used(), 0);
}

#[test]
fn neighbours_in_range_and_file_take_one_call_across_heaps() {
    let mut host = Host::new().unwrap();
    let heaps = [0; 3].map(|_| host.create(2 * TILE).unwrap());
    let range = host.reserve(8 * TILE).unwrap();
    let before = host.calls();
    host.map(
        range.id,
        &[bind(0, heaps[0], 0, 2), bind(2, heaps[1], 0, 1), bind(3, heaps[1], 1, 1), bind(4, heaps[2], 0, 2)],
    )
    .unwrap();
    assert_eq!(host.calls().since(&before).map, 1);
    let before = host.calls();
    host.map(range.id, &[bind(6, heaps[2], 1, 1), bind(7, heaps[2], 0, 1)]).unwrap();
    assert_eq!(host.calls().since(&before).map, 2);
    // Pieces are still taken one by one, whatever the kernel has joined.
    host.unmap(range.id, 2 * TILE, TILE).unwrap();
    host.unmap(range.id, 0, 2 * TILE).unwrap();
    let before = host.calls();
    host.unmap(range.id, 3 * TILE, 5 * TILE).unwrap();
    assert_eq!(host.calls().since(&before).unmap, 1);
}

#[test]
fn the_count_of_mappings_is_the_kernels() {
    let mut host = host_with(1000);
    let heap = host.create(8 * TILE).unwrap();
    let range = host.reserve(16 * TILE).unwrap();
    let agree = |host: &Host| {
        let kernel = kernel_entries(range.address, range.bytes);
        // The kernel's last entry is what the alignment left over, or reaches into it.
        let tail =
            kernel_entries(range.address + range.bytes, 1).iter().filter(|l| !kernel.contains(l)).count();
        let head = kernel_entries(range.address - 1, 1).iter().filter(|l| !kernel.contains(l)).count();
        let mine = kernel.len() + tail;
        let counted = host.entries as usize;
        // Before the range there is an entry of its own only where the alignment left something there.
        assert!(counted == mine || counted == mine + head, "{counted} counted: {kernel:#?}");
        assert_eq!(host.budget.used(), host.entries);
    };
    agree(&host);
    host.map(range.id, &[bind(2, heap, 0, 2)]).unwrap();
    agree(&host);
    host.map(range.id, &[bind(4, heap, 2, 2)]).unwrap();
    agree(&host);
    host.map(range.id, &[bind(0, heap, 7, 1), bind(7, heap, 1, 1), bind(6, heap, 0, 1), bind(8, heap, 4, 1)])
        .unwrap();
    agree(&host);
    host.map(range.id, &[bind(15, heap, 0, 1), bind(14, heap, 0, 1)]).unwrap();
    agree(&host);
    host.unmap(range.id, 4 * TILE, 2 * TILE).unwrap();
    agree(&host);
    host.unmap(range.id, 6 * TILE, 3 * TILE).unwrap();
    agree(&host);
    host.unmap(range.id, 2 * TILE, 2 * TILE).unwrap();
    host.unmap(range.id, 0, TILE).unwrap();
    host.unmap(range.id, 14 * TILE, 2 * TILE).unwrap();
    assert_eq!(host.entries, 1);
    host.unreserve(range.id).unwrap();
    assert_eq!(host.entries, 0);
}

#[test]
fn too_many_mappings_are_refused_and_nothing_is_lost() {
    let mut host = host_with(6);
    let heap = host.create(8 * TILE).unwrap();
    let range = host.reserve(8 * TILE).unwrap();
    let backwards: Vec<Bind> = (0..8).map(|i| bind(i, heap, 7 - i, 1)).collect();
    let refused = host.map(range.id, &backwards);
    assert!(matches!(&refused, Err(DeviceError::Failed { call: Call::Map, reason })
        if reason.contains("more than 6 mappings") && reason.contains("vm.max_map_count")));
    assert_eq!(host.entries, 1);
    assert!(host.read(range.address, &mut [0]).is_err());

    host.map(range.id, &[bind(0, heap, 0, 3), bind(3, heap, 3, 5)]).unwrap();
    host.unmap(range.id, 0, 3 * TILE).unwrap();
    host.map(range.id, &backwards[..3]).unwrap();
    assert_eq!(host.entries, 6);
    assert!(matches!(host.reserve(TILE), Err(DeviceError::Failed { call: Call::Reserve, .. })));
}

#[test]
fn unmapping_is_never_refused_for_want_of_mappings() {
    let mut host = host_with(4);
    let heap = host.create(8 * TILE).unwrap();
    let range = host.reserve(8 * TILE).unwrap();
    let forwards: Vec<Bind> = (0..8).map(|i| bind(i, heap, i, 1)).collect();
    host.map(range.id, &forwards).unwrap();
    assert_eq!(host.entries, 3);
    host.unmap(range.id, 2 * TILE, TILE).unwrap();
    host.unmap(range.id, 5 * TILE, TILE).unwrap();
    assert_eq!(host.entries, 7);
    assert!(host.reserve(TILE).is_err());
    host.map(range.id, &[forwards[2]]).unwrap();
    assert_eq!(host.entries, 5);
}

#[test]
fn a_map_that_the_kernel_refuses_half_way_is_undone() {
    let mut host = Host::new().unwrap();
    let heap = host.create(2 * TILE).unwrap();
    let range = host.reserve(3 * TILE).unwrap();
    host.map(range.id, &[bind(2, heap, 0, 1)]).unwrap();
    // The kernel takes file offsets in whole pages only.
    let good = Run { range_offset: 0, file_offset: 0, bytes: TILE };
    let bad = Run { range_offset: TILE, file_offset: 1, bytes: TILE };
    let before = host.calls();
    assert!(matches!(host.map_runs(range.id, &[good, bad]), Err(DeviceError::Failed { .. })));
    let spent = host.calls().since(&before);
    assert_eq!((spent.map, spent.unmap), (2, 1));
    let entries = kernel_entries(range.address, 2 * TILE);
    assert!(entries.iter().all(|line| line.contains(" ---p ")), "{entries:#?}");
    host.read(range.address + 2 * TILE, &mut [0]).unwrap();
}

#[test]
fn more_memory_than_the_system_has_is_refused() {
    let mut host = Host::new().unwrap();
    let bytes = 1 << 50;
    assert_eq!(host.create(bytes), Err(DeviceError::OutOfMemory { bytes }));
    assert_eq!(host.held_bytes(), Ok(0));
    host.create(TILE).unwrap();
}

#[test]
fn offsets_in_the_file_are_used_again() {
    let mut host = Host::new().unwrap();
    for _ in 0..20 {
        let heap = host.create(16 * TILE).unwrap();
        assert_eq!(host.heaps[&heap], 0);
        host.release(heap).unwrap();
    }
}

#[test]
fn time_is_measured() {
    let mut host = Host::new().unwrap();
    host.create(16 * TILE).unwrap();
    assert!(host.calls().nanos > 0);
}
