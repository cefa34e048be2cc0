//! One suite of checks that every device must pass, stamped on each in a line. Feature `testing`.
//!
//! ```ignore
//! use tilework::device::conformance::device_conformance;
//!
//! device_conformance!(my_device, MyDevice::new);
//! ```
//!
//! makes a module `my_device` with one `#[test]` per check. The expression is a function without
//! arguments that makes a fresh device, or a `Box<dyn Device>`. A third argument, `trusting`, leaves
//! out the checks that a device passes only by refusing what breaks its rules.
//!
//! What is checked follows from [`Caps`](super::Caps), so a device without memory, without tiling or
//! without offsets passes what applies to it. A check needs at most 16 tiles of physical memory.

use super::{Bind, Device, DeviceError, HeapId, Range, RangeId};

mod shadow;

pub use shadow::random_calls_match_a_shadow;

/// Makes a fresh device.
pub type Open<'a> = &'a dyn Fn() -> Box<dyn Device>;

/// `open` with its device boxed: what the checks take.
pub fn boxed<D: Device + 'static>(open: impl Fn() -> D) -> impl Fn() -> Box<dyn Device> {
    move || Box::new(open())
}

#[doc(hidden)]
#[macro_export]
macro_rules! __device_conformance {
    ($name:ident, $open:expr $(,)?) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            $crate::__device_conformance!(@always @tests $open);
            $crate::__device_conformance!(@strict @tests $open);
            $crate::__device_conformance!(@random $open, true);
        }
    };
    ($name:ident, $open:expr, trusting $(,)?) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            $crate::__device_conformance!(@always @tests $open);
            $crate::__device_conformance!(@random $open, false);
        }
    };
    (@always @$make:ident $($open:expr)?) => {
        $crate::__device_conformance! { @$make $($open)? => [
            life_cycle,
            ranges_are_aligned_and_disjoint,
            ids_are_fresh,
            aliases_agree,
            contents_follow_the_heap,
            a_part_is_remapped_beside_others,
            memory_is_zero_when_created,
            requests_beyond_the_device_fail,
            held_bytes_follow_the_heaps,
            heaps_on_the_host_are_used_as_the_others,
            calls_are_counted,
        ] }
    };
    (@strict @$make:ident $($open:expr)?) => {
        $crate::__device_conformance! { @$make $($open)? => [
            what_breaks_a_rule_is_refused,
            a_refused_map_has_no_effect,
            offsets_are_as_the_caps_say,
            without_tiling_a_heap_backs_one_range,
            access_comes_before_use,
            use_is_refused_where_nothing_is_mapped,
        ] }
    };
    (@tests $open:expr => [$($check:ident,)*]) => {
        $(
            #[test]
            fn $check() {
                let open = $crate::device::conformance::boxed($open);
                $crate::device::conformance::$check(&open);
            }
        )*
    };
    (@list => [$($check:ident,)*]) => {
        [$((stringify!($check), $crate::device::conformance::$check as fn($crate::device::conformance::Open))),*]
    };
    (@random $open:expr, $enforcing:literal) => {
        #[test]
        fn random_calls_match_a_shadow() {
            let open = $crate::device::conformance::boxed($open);
            $crate::device::conformance::random_calls_match_a_shadow(&open, $enforcing);
        }
    };
}

#[doc(inline)]
pub use crate::__device_conformance as device_conformance;

/// A check and its name.
pub type Check = (&'static str, fn(Open<'_>));

/// Every check, in the order of the suite, for programs that run it without a test harness.
pub fn checks() -> Vec<Check> {
    let mut checks = Vec::new();
    checks.extend(device_conformance!(@always @list));
    checks.extend(device_conformance!(@strict @list));
    checks.push(("random_calls_match_a_shadow", |open| random_calls_match_a_shadow(open, true)));
    checks
}

/// A device with the few combined steps that checks are made of.
struct Bench {
    device: Box<dyn Device>,
    tile: u64,
}

impl Bench {
    fn new(open: Open) -> Bench {
        let device = open();
        let tile = device.caps().tile_bytes;
        Bench { device, tile }
    }

    fn reserve(&mut self, tiles: u64) -> Range {
        self.device.reserve(tiles * self.tile).expect("a few tiles of address space")
    }

    fn create(&mut self, tiles: u64) -> HeapId {
        self.device.create(tiles * self.tile).expect("a few tiles of memory")
    }

    /// All in tiles.
    fn bind(&self, at: u64, heap: HeapId, from: u64, tiles: u64) -> Bind {
        let tile = self.tile;
        Bind { range_offset: at * tile, heap, heap_offset: from * tile, bytes: tiles * tile }
    }

    /// Maps and makes usable.
    fn map(&mut self, range: RangeId, binds: &[Bind]) {
        self.device.map(range, binds).expect("a map within the rules");
        if self.device.caps().needs_access {
            for bind in binds {
                self.device
                    .set_access(range, bind.range_offset, bind.bytes)
                    .expect("access to what is mapped");
            }
        }
    }

    fn unmap(&mut self, range: RangeId, at: u64, tiles: u64) {
        self.device.unmap(range, at * self.tile, tiles * self.tile).expect("unmapping what is mapped");
    }

    /// Writes `stamp` to both ends of `tiles` tiles of `range`. Nothing on a device without memory.
    fn stamp(&self, range: Range, at: u64, tiles: u64, stamp: u8) {
        if self.device.caps().memory {
            for address in self.ends(range, at, tiles) {
                self.device.write(address, &[stamp; 16]).expect("writing what is mapped");
            }
        }
    }

    /// Finds `stamp` at both ends of `tiles` tiles of `range`.
    #[track_caller]
    fn expect(&self, range: Range, at: u64, tiles: u64, stamp: u8) {
        if self.device.caps().memory {
            for address in self.ends(range, at, tiles) {
                let mut found = [!stamp; 16];
                self.device.read(address, &mut found).expect("reading what is mapped");
                assert_eq!(found, [stamp; 16], "at {address:#x}");
            }
        }
    }

    fn ends(&self, range: Range, at: u64, tiles: u64) -> [u64; 2] {
        let first = range.address + at * self.tile;
        [first, first + tiles * self.tile - 16]
    }

    fn held(&self) -> u64 {
        self.device.held_bytes().expect("a figure for what is held")
    }
}

/// The device refused, and not for want of memory.
#[track_caller]
fn refused<T>(result: Result<T, DeviceError>, why: &str) {
    match result {
        Ok(_) => panic!("the device took what it must refuse: {why}"),
        Err(DeviceError::OutOfMemory { .. }) => panic!("the device blamed memory instead: {why}"),
        Err(_) => {}
    }
}

/// Reserve, create, map, use, unmap, release, unreserve; then nothing is held.
pub fn life_cycle(open: Open) {
    let mut b = Bench::new(open);
    let before = b.held();
    for tiles in [1, 4] {
        let range = b.reserve(tiles);
        assert_eq!(range.bytes, tiles * b.tile);
        let heap = b.create(tiles);
        b.map(range.id, &[b.bind(0, heap, 0, tiles)]);
        b.stamp(range, 0, tiles, 7);
        b.expect(range, 0, tiles, 7);
        b.unmap(range.id, 0, tiles);
        b.device.release(heap).expect("releasing what is not mapped");
        b.device.unreserve(range.id).expect("giving back what is not mapped");
    }
    assert_eq!(b.held(), before);
}

/// Ranges begin at a multiple of the tile and never overlap, also after some were given back.
pub fn ranges_are_aligned_and_disjoint(open: Open) {
    let mut b = Bench::new(open);
    let mut ranges: Vec<Range> = [1, 3, 2, 8, 1, 1, 5, 2].map(|tiles| b.reserve(tiles)).into();
    for at in [6, 4, 1] {
        b.device.unreserve(ranges.swap_remove(at).id).expect("giving back what is not mapped");
    }
    ranges.extend([2, 1, 4].map(|tiles| b.reserve(tiles)));
    ranges.sort_by_key(|range| range.address);
    for range in &ranges {
        assert!(range.address > 0 && range.address.is_multiple_of(b.tile), "{range:?}");
    }
    for pair in ranges.windows(2) {
        assert!(pair[0].address + pair[0].bytes <= pair[1].address, "{pair:?} overlap");
    }
}

/// No id is handed out twice.
pub fn ids_are_fresh(open: Open) {
    let mut b = Bench::new(open);
    let (mut ranges, mut heaps) = (Vec::new(), Vec::new());
    for _ in 0..6 {
        let (range, heap) = (b.reserve(1).id, b.create(1));
        assert!(!ranges.contains(&range) && !heaps.contains(&heap));
        ranges.push(range);
        heaps.push(heap);
        b.device.unreserve(range).expect("giving back what is not mapped");
        b.device.release(heap).expect("releasing what is not mapped");
    }
}

/// A heap mapped at several addresses is the same memory at each. With tiling only.
pub fn aliases_agree(open: Open) {
    let mut b = Bench::new(open);
    if !b.device.caps().tiling {
        return;
    }
    let heap = b.create(2);
    let (one, other) = (b.reserve(2), b.reserve(5));
    b.map(one.id, &[b.bind(0, heap, 0, 2)]);
    b.map(other.id, &[b.bind(0, heap, 0, 2), b.bind(3, heap, 0, 2)]);
    b.stamp(one, 0, 2, 1);
    b.expect(other, 0, 2, 1);
    b.expect(other, 3, 2, 1);
    b.stamp(other, 3, 2, 2);
    b.expect(one, 0, 2, 2);
    b.unmap(one.id, 0, 2);
    b.expect(other, 0, 2, 2);
    b.unmap(other.id, 0, 2);
    b.expect(other, 3, 2, 2);
}

/// What was written stays with the heap when it is mapped elsewhere, in another order.
pub fn contents_follow_the_heap(open: Open) {
    let mut b = Bench::new(open);
    if !b.device.caps().tiling {
        let heap = b.create(2);
        for turn in 0..3 {
            let range = b.reserve(2);
            b.map(range.id, &[b.bind(0, heap, 0, 2)]);
            b.expect(range, 0, 2, turn);
            b.stamp(range, 0, 2, turn + 1);
            b.unmap(range.id, 0, 2);
        }
        return;
    }
    let heaps = [1, 2, 1, 2].map(|tiles| (b.create(tiles), tiles));
    let mut order: Vec<usize> = (0..heaps.len()).collect();
    for turn in 0..4 {
        let range = b.reserve(6);
        let mut at = 0;
        let mut binds = Vec::new();
        for &which in &order {
            let (heap, tiles) = heaps[which];
            binds.push(b.bind(at, heap, 0, tiles));
            at += tiles;
        }
        b.map(range.id, &binds);
        at = 0;
        for &which in &order {
            let (stamp, tiles) = (which as u8 + 1, heaps[which].1);
            if turn == 0 {
                b.stamp(range, at, tiles, stamp);
            }
            b.expect(range, at, tiles, stamp);
            at += tiles;
        }
        b.unmap(range.id, 0, 6);
        order.rotate_left(1);
        order.swap(0, 2);
    }
}

/// One piece is exchanged for another while its neighbours stay in use. With tiling only.
pub fn a_part_is_remapped_beside_others(open: Open) {
    let mut b = Bench::new(open);
    if !b.device.caps().tiling {
        return;
    }
    let heaps = [0; 4].map(|_| b.create(1));
    let range = b.reserve(3);
    b.map(range.id, &[0, 1, 2].map(|i| b.bind(i, heaps[i as usize], 0, 1)));
    for i in 0..3 {
        b.stamp(range, i, 1, i as u8 + 1);
    }
    b.unmap(range.id, 1, 1);
    b.expect(range, 0, 1, 1);
    b.expect(range, 2, 1, 3);
    b.map(range.id, &[b.bind(1, heaps[3], 0, 1)]);
    b.expect(range, 1, 1, 0);
    b.stamp(range, 1, 1, 9);
    b.expect(range, 0, 1, 1);
    b.expect(range, 2, 1, 3);
    b.unmap(range.id, 0, 3);
}

/// A heap is all zeros when created, also right after a dirty one was released. With memory only.
pub fn memory_is_zero_when_created(open: Open) {
    let mut b = Bench::new(open);
    if !b.device.caps().memory {
        return;
    }
    let range = b.reserve(3);
    let bytes = usize::try_from(range.bytes).expect("three tiles");
    for _ in 0..3 {
        let heap = b.create(3);
        b.map(range.id, &[b.bind(0, heap, 0, 3)]);
        let mut found = vec![1; bytes];
        b.device.read(range.address, &mut found).expect("reading what is mapped");
        assert!(found.iter().all(|&byte| byte == 0), "a created heap is not all zeros");
        b.device.write(range.address, &vec![0xa5; bytes]).expect("writing what is mapped");
        b.unmap(range.id, 0, 3);
        b.device.release(heap).expect("releasing what is not mapped");
    }
}

/// More memory or address space than there is fails, as the right error, and leaves no trace.
pub fn requests_beyond_the_device_fail(open: Open) {
    let mut b = Bench::new(open);
    let held = b.held();
    let most = u64::MAX - (b.tile - 1);
    // A device with neither memory nor a capacity never runs out.
    let all = b.device.caps().memory.then_some(most);
    let more = b.device.caps().capacity_bytes.map(|capacity| capacity / b.tile * b.tile + b.tile);
    for bytes in all.into_iter().chain(more) {
        assert_eq!(b.device.create(bytes), Err(DeviceError::OutOfMemory { bytes }));
    }
    let longest = b.device.caps().max_range_bytes;
    for bytes in [most, longest.saturating_add(b.tile)] {
        refused(b.device.reserve(bytes), "a range longer than any");
    }
    assert_eq!(b.held(), held);
    b.device.reserve(longest).expect("the longest range there is");
    b.create(1);
}

/// `held_bytes` rises by each heap and falls again. A driver may round a heap up.
pub fn held_bytes_follow_the_heaps(open: Open) {
    let mut b = Bench::new(open);
    let empty = b.held();
    let one = b.create(1);
    let first = b.held();
    assert!(first >= empty + b.tile);
    let four = b.create(4);
    assert!(b.held() >= first + 4 * b.tile);
    b.device.release(four).expect("releasing what is not mapped");
    assert_eq!(b.held(), first);
    b.device.release(one).expect("releasing what is not mapped");
    assert_eq!(b.held(), empty);
}

/// A heap on the host maps beside others and in their place, and counts apart from them. Where there is no such
/// thing it is refused.
pub fn heaps_on_the_host_are_used_as_the_others(open: Open) {
    let mut b = Bench::new(open);
    let tile = b.tile;
    if !b.device.caps().host_heaps {
        refused(b.device.create_on_host(tile), "a heap on the host where the caps have none");
        return;
    }
    let empty = b.held();
    let here = b.create(2);
    let held = b.held();
    let create = b.device.calls().create;
    let there = b.device.create_on_host(2 * tile).expect("a few tiles of the host's memory");
    assert_eq!((b.held(), b.device.calls().create), (held, create + 1));
    if b.device.caps().tiling {
        let range = b.reserve(4);
        let binds = [b.bind(0, there, 0, 2), b.bind(2, here, 0, 2)];
        b.device.map(range.id, &binds).expect("a map within the rules");
        if b.device.caps().needs_access {
            b.device.set_access(range.id, 0, 4 * tile).expect("access to both in one call");
        }
        b.expect(range, 0, 2, 0);
        b.stamp(range, 0, 2, 1);
        b.stamp(range, 2, 2, 2);
        // Changed for each other: what was written stays with the heap.
        b.unmap(range.id, 0, 4);
        b.map(range.id, &[b.bind(0, here, 0, 2), b.bind(2, there, 0, 2)]);
        b.expect(range, 0, 2, 2);
        b.expect(range, 2, 2, 1);
        b.unmap(range.id, 0, 4);
    } else {
        let range = b.reserve(2);
        b.map(range.id, &[b.bind(0, there, 0, 2)]);
        b.expect(range, 0, 2, 0);
        b.unmap(range.id, 0, 2);
    }
    b.device.release(there).expect("releasing what is not mapped");
    assert_eq!(b.held(), held);
    b.device.release(here).expect("releasing what is not mapped");
    assert_eq!(b.held(), empty);
    // What the device has is not what bounds them.
    if let Some(capacity) = b.device.caps().capacity_bytes.filter(|_| !b.device.caps().memory) {
        let bytes = capacity.next_multiple_of(tile) + tile;
        b.device.create_on_host(bytes).expect("more than the device has");
    }
    assert_eq!(b.held(), empty);
    // Dirty memory comes back as zeros.
    if b.device.caps().memory && b.device.caps().tiling {
        let range = b.reserve(2);
        for _ in 0..2 {
            let heap = b.device.create_on_host(2 * tile).expect("a few tiles of the host's memory");
            b.map(range.id, &[b.bind(0, heap, 0, 2)]);
            let mut found = vec![1; 2 * tile as usize];
            b.device.read(range.address, &mut found).expect("reading what is mapped");
            assert!(found.iter().all(|&byte| byte == 0), "a heap on the host is not all zeros");
            b.device.write(range.address, &found.iter().map(|_| 0xa5).collect::<Vec<_>>()).expect("writing");
            b.unmap(range.id, 0, 2);
            b.device.release(heap).expect("releasing what is not mapped");
        }
    }
    refused(b.device.create_on_host(0), "a heap of nothing on the host");
    refused(b.device.create_on_host(tile + 1), "a heap of no whole tiles on the host");
}

/// Each call counts under its own name, and under no other.
pub fn calls_are_counted(open: Open) {
    let mut b = Bench::new(open);
    let tile = b.tile;
    let mut last = b.device.calls();
    let mut spent = |device: &dyn Device| {
        let now = device.calls();
        let since = now.since(&last);
        last = now;
        (since.reserve, since.create, since.map, since.set_access, since.unmap, since.release)
    };
    let range = b.reserve(2).id;
    assert_eq!(spent(&b.device), (1, 0, 0, 0, 0, 0));
    let heap = b.create(2);
    assert_eq!(spent(&b.device), (0, 1, 0, 0, 0, 0));
    let bind = b.bind(0, heap, 0, 2);
    b.device.map(range, &[bind]).expect("a map within the rules");
    assert_eq!(spent(&b.device), (0, 0, 1, 0, 0, 0));
    if b.device.caps().needs_access {
        b.device.set_access(range, 0, 2 * tile).expect("access to what is mapped");
        assert_eq!(spent(&b.device), (0, 0, 0, 1, 0, 0));
    }
    b.unmap(range, 0, 2);
    assert_eq!(spent(&b.device), (0, 0, 0, 0, 1, 0));
    b.device.release(heap).expect("releasing what is not mapped");
    assert_eq!(spent(&b.device), (0, 0, 0, 0, 0, 1));
    b.device.unreserve(range).expect("giving back what is not mapped");
    assert_eq!(spent(&b.device), (1, 0, 0, 0, 0, 0));
    b.device.map(RangeId(u64::MAX), &[]).err();
    assert_eq!(b.device.calls().total(), last.total(), "a map of nothing reaches no driver");
}

/// Every broken rule that does not depend on the device's abilities is refused.
pub fn what_breaks_a_rule_is_refused(open: Open) {
    let mut b = Bench::new(open);
    let tile = b.tile;
    refused(b.device.reserve(0), "a range of nothing");
    refused(b.device.reserve(tile + 1), "a range of no whole tiles");
    refused(b.device.create(0), "a heap of nothing");
    refused(b.device.create(tile + 1), "a heap of no whole tiles");

    let (range, other) = (b.reserve(2).id, b.reserve(2).id);
    let (heap, spare) = (b.create(2), b.create(2));
    let good = b.bind(0, heap, 0, 2);
    let (no_range, no_heap) = (RangeId(u64::MAX), HeapId(u64::MAX));
    refused(b.device.map(no_range, &[good]), "mapping into an unknown range");
    refused(b.device.map(range, &[Bind { heap: no_heap, ..good }]), "mapping an unknown heap");
    refused(b.device.map(range, &[Bind { bytes: 0, ..good }]), "mapping nothing");
    refused(b.device.map(range, &[Bind { bytes: tile / 2, ..good }]), "mapping half a tile");
    refused(b.device.map(range, &[Bind { range_offset: 1, ..good }]), "a misaligned offset in the range");
    refused(b.device.map(range, &[Bind { heap_offset: 1, ..good }]), "a misaligned offset in the heap");
    refused(b.device.map(range, &[Bind { range_offset: tile, ..good }]), "mapping beyond the range");
    refused(b.device.map(range, &[Bind { heap_offset: tile, ..good }]), "mapping beyond the heap");
    refused(b.device.map(range, &[Bind { bytes: 4 * tile, ..good }]), "mapping beyond both");

    refused(b.device.unmap(range, 0, 2 * tile), "unmapping what is not mapped");
    refused(b.device.unmap(no_range, 0, 2 * tile), "unmapping an unknown range");
    b.map(range, &[good]);
    refused(b.device.map(range, &[Bind { heap: spare, ..good }]), "mapping over a mapped part");
    refused(b.device.unmap(range, 0, tile), "unmapping the head of a piece");
    refused(b.device.unmap(range, tile, tile), "unmapping the tail of a piece");
    refused(b.device.unmap(range, 0, 4 * tile), "unmapping beyond the range");
    refused(b.device.unmap(range, 0, 0), "unmapping nothing");
    refused(b.device.unmap(range, 0, tile + 1), "unmapping half a tile");
    refused(b.device.release(heap), "releasing a mapped heap");
    refused(b.device.unreserve(range), "giving back a mapped range");
    b.unmap(range, 0, 2);
    refused(b.device.unmap(range, 0, 2 * tile), "unmapping twice");

    b.device.release(heap).expect("releasing what is not mapped");
    refused(b.device.release(heap), "releasing twice");
    refused(b.device.release(no_heap), "releasing an unknown heap");
    refused(b.device.map(range, &[good]), "mapping a released heap");
    b.device.unreserve(range).expect("giving back what is not mapped");
    refused(b.device.unreserve(range), "giving back twice");
    refused(b.device.unreserve(no_range), "giving back an unknown range");
    refused(b.device.map(range, &[Bind { heap: spare, ..good }]), "mapping into a range given back");
    b.map(other, &[Bind { heap: spare, ..good }]);
}

/// A map whose last bind is bad leaves nothing mapped of the others. With tiling only.
pub fn a_refused_map_has_no_effect(open: Open) {
    let mut b = Bench::new(open);
    if !b.device.caps().tiling {
        return;
    }
    let range = b.reserve(3);
    let heaps = [b.create(1), b.create(1)];
    let good = [b.bind(0, heaps[0], 0, 1), b.bind(1, heaps[1], 0, 1)];
    let bad = [
        b.bind(2, HeapId(u64::MAX), 0, 1),
        b.bind(1, heaps[0], 0, 1),
        b.bind(3, heaps[0], 0, 1),
        b.bind(2, heaps[0], 1, 1),
    ];
    for last in bad {
        refused(b.device.map(range.id, &[good[0], good[1], last]), "a map whose last bind is bad");
        let mut byte = [0];
        refused(b.device.read(range.address, &mut byte), "reading what a refused map named");
    }
    b.device.release(heaps[1]).expect("releasing what no map has taken");
    b.map(range.id, &good[..1]);
}

/// Parts of heaps map where the caps say so, and only there. With tiling only.
pub fn offsets_are_as_the_caps_say(open: Open) {
    let mut b = Bench::new(open);
    if !b.device.caps().tiling {
        return;
    }
    let heap = b.create(4);
    let range = b.reserve(4);
    if !b.device.caps().partial_maps {
        refused(b.device.map(range.id, &[b.bind(0, heap, 0, 1)]), "mapping the head of a heap");
        refused(b.device.map(range.id, &[b.bind(0, heap, 2, 2)]), "mapping the tail of a heap");
        return;
    }
    b.map(range.id, &[b.bind(0, heap, 0, 4)]);
    for tile in 0..4 {
        b.stamp(range, tile, 1, tile as u8 + 1);
    }
    b.unmap(range.id, 0, 4);
    b.map(range.id, &[b.bind(0, heap, 3, 1), b.bind(1, heap, 1, 2), b.bind(3, heap, 0, 1)]);
    for (tile, stamp) in [4, 2, 3, 1].into_iter().enumerate() {
        b.expect(range, tile as u64, 1, stamp);
    }
    refused(b.device.unmap(range.id, b.tile, b.tile), "unmapping part of a piece");
    b.unmap(range.id, 0, 3);
    b.expect(range, 3, 1, 1);
}

/// Without tiling a heap maps once, whole, into a range of its own length. Nothing to check with it.
pub fn without_tiling_a_heap_backs_one_range(open: Open) {
    let mut b = Bench::new(open);
    if b.device.caps().tiling {
        return;
    }
    let heap = b.create(2);
    let (long, one, other) = (b.reserve(4).id, b.reserve(2).id, b.reserve(2).id);
    refused(b.device.map(long, &[b.bind(0, heap, 0, 2)]), "a range longer than its heap");
    b.map(one, &[b.bind(0, heap, 0, 2)]);
    refused(b.device.map(other, &[b.bind(0, heap, 0, 2)]), "a heap mapped twice");
    b.unmap(one, 0, 2);
    b.map(other, &[b.bind(0, heap, 0, 2)]);
}

/// Where access must be set a fresh mapping is unusable until then; elsewhere it is usable at once.
pub fn access_comes_before_use(open: Open) {
    let mut b = Bench::new(open);
    let range = b.reserve(2);
    let heap = b.create(2);
    let bind = b.bind(0, heap, 0, 2);
    for _ in 0..2 {
        b.device.map(range.id, &[bind]).expect("a map within the rules");
        if b.device.caps().needs_access {
            refused(b.device.write(range.address, &[1]), "use without access");
            refused(b.device.set_access(range.id, 0, 4 * b.tile), "access beyond the range");
            b.device.set_access(range.id, 0, 2 * b.tile).expect("access to what is mapped");
        }
        b.device.write(range.address, &[1]).expect("writing what is mapped");
        b.unmap(range.id, 0, 2);
    }
    if b.device.caps().needs_access {
        refused(b.device.set_access(range.id, 0, 2 * b.tile), "access to what is not mapped");
    }
}

/// Reading and writing are refused unless every byte is mapped.
pub fn use_is_refused_where_nothing_is_mapped(open: Open) {
    let mut b = Bench::new(open);
    let mut two = [0; 2];
    refused(b.device.read(0, &mut two), "reading at null");
    refused(b.device.write(u64::MAX, &two), "writing at the end of the address space");
    let range = b.reserve(2);
    let end = range.address + range.bytes;
    refused(b.device.read(range.address, &mut two), "reading what is only reserved");
    let heap = b.create(2);
    b.map(range.id, &[b.bind(0, heap, 0, 2)]);
    b.device.write(end - 2, &two).expect("writing what is mapped");
    refused(b.device.write(end - 1, &two), "writing across the end");
    refused(b.device.read(range.address - 1, &mut two), "reading across the start");
    b.unmap(range.id, 0, 2);
    refused(b.device.write(range.address, &two), "writing what was unmapped");
    b.device.unreserve(range.id).expect("giving back what is not mapped");
    refused(b.device.write(range.address, &two), "writing what was given back");
}
