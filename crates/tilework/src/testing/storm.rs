//! Groups that come and go at random under a limit that changes, with contents that are looked after.
//!
//! Whatever happens, a block has what was written to it, unless its group was discarded; and whatever is refused
//! leaves everything as it was. Errors of the device are taken as they come, so that faults can be injected.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::manager::Stream;
use crate::shared::{GroupId, Residence, Shared};

/// Bytes between two places of a long block that are written and checked; a shorter one is filled.
const STRIDE: u64 = 64 << 10;

/// What a storm did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Storm {
    /// Blocks handed out.
    pub allocations: u64,
    /// Blocks whose contents were looked at.
    pub checks: u64,
    /// Requests refused for want of memory.
    pub refused: u64,
    /// Times the device or the host failed.
    pub failed: u64,
    /// Bytes that groups took to the host.
    pub bytes_out: u64,
    /// Evictions and discards.
    pub evictions: u64,
    /// Restores.
    pub restores: u64,
}

/// How a storm is to blow.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// Where the random numbers begin.
    pub seed: u64,
    /// Operations.
    pub operations: u32,
    /// Groups.
    pub groups: u32,
    /// The limit that suffices for about half of what is live, bytes; it changes between half of this and twice it.
    pub limit: u64,
    /// The longest block, bytes.
    pub longest: u64,
}

struct Random(u64);

impl Random {
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

struct Held {
    address: u64,
    group: GroupId,
    bytes: u64,
    /// None: undefined.
    seed: Option<u64>,
}

struct Member {
    id: GroupId,
    pins: u32,
}

/// Runs one, on streams of these. Others may blow on the same front at the same time, under names of their own.
/// Memory is used as under any limit: pinned meanwhile. `calm` is called before the end, at which everything is looked
/// at and nothing may fail any more.
///
/// # Panics
/// When a byte is wrong, a refusal is not one of those documented, or the books contradict themselves.
pub fn storm(front: &Shared, name: &str, streams: &[Stream], weather: Weather, calm: impl FnOnce()) -> Storm {
    let mut random = Random(weather.seed);
    let mut told = Storm::default();
    let mut members: Vec<Member> = (0..weather.groups)
        .map(|n| {
            let id = front.group(&format!("{name} {n}")).expect("a group");
            front.unpin(id).expect("its maker's pin");
            Member { id, pins: 0 }
        })
        .collect();
    // By age and not by address, so that a seed chooses the same blocks wherever the system put them.
    let mut blocks: BTreeMap<u64, Held> = BTreeMap::new();
    for _ in 0..weather.operations {
        let group = random.below(u64::from(weather.groups)) as usize;
        let id = members[group].id;
        let pinned = members[group].pins > 0;
        match random.below(100) {
            0..45 => {
                let halved = random.below(12);
                let bytes = 1 + random.below(weather.longest >> halved);
                let stream = streams[random.below(streams.len() as u64) as usize];
                front.pin(id).expect("a group");
                // Asking waits for whoever is evicting it.
                let here = resident(front, id);
                match front.alloc_for(id, bytes, stream) {
                    Ok(address) => {
                        told.allocations += 1;
                        let seed = random.next();
                        let filled = fill(front, address, bytes, seed);
                        let seed = filled.inspect_err(|error| told.note(error)).ok().map(|()| seed);
                        blocks.insert(told.allocations, Held { address, group: id, bytes, seed });
                    }
                    Err(Error::Evicted { .. }) => assert!(!here, "a request was refused"),
                    Err(error) => told.note(&error),
                }
                front.unpin(id).expect("a pinned group");
            }
            45..58 => {
                if let Some((&age, _)) = blocks.range(pick(&mut random, &blocks)..).next() {
                    let block = blocks.remove(&age).expect("a live block");
                    told.check(front, &block);
                    front.free(block.address).expect("a live block is freed");
                }
            }
            58..68 => match front.evict(id) {
                Ok(_) => assert!(!resident(front, id)),
                Err(Error::Pinned { .. }) => assert!(pinned),
                Err(error) => told.note(&error),
            },
            68..69 => {
                let outcome = front.discard(id);
                if let Err(Error::Pinned { .. }) = outcome {
                    assert!(pinned);
                } else {
                    outcome.map_or_else(|error| told.note(&error), drop);
                    if !resident(front, id) {
                        blocks.values_mut().filter(|b| b.group == id).for_each(|b| b.seed = None);
                    }
                }
            }
            69..84 => match front.restore(id, Some(streams[0])) {
                Ok(_) => {}
                Err(error) => told.note(&error),
            },
            84..88 => front.prefetch(id).unwrap_or_else(|error| told.note(&error)),
            88..90 if !pinned => {
                front.pin(id).expect("a group");
                members[group].pins += 1;
            }
            88..92 if pinned => {
                front.unpin(id).expect("a pinned group");
                members[group].pins -= 1;
            }
            88..94 => {
                let limit = weather.limit / 2 + random.below(weather.limit * 3 / 2);
                front.set_limit(Some(limit)).unwrap_or_else(|error| told.note(&error));
            }
            94..96 => front.trim().map_or_else(|error| told.note(&error), drop),
            96..98 => front.end_of_execution().unwrap_or_else(|error| told.note(&error)),
            _ => {
                let at = pick(&mut random, &blocks);
                if let Some((_, block)) = blocks.range(at..).next() {
                    told.check(front, block);
                }
            }
        }
    }
    calm();
    front.set_limit(None).expect("no limit is too small");
    for member in &members {
        front.pin(member.id).expect("a group");
        // The first may report what a prefetch met.
        let _earlier = front.restore(member.id, Some(streams[0])).inspect_err(|error| told.note(error));
        front.restore(member.id, Some(streams[0])).expect("without a limit and faults a group comes back");
        for block in blocks.values().filter(|block| block.group == member.id) {
            told.check(front, block);
        }
    }
    for block in blocks.values() {
        front.free(block.address).expect("a live block is freed");
    }
    for group in front.groups().iter().filter(|group| group.name.starts_with(name)) {
        told.bytes_out += group.bytes_out;
        told.evictions += group.evictions;
        told.restores += group.restores;
        assert_eq!(group.kept, 0, "nothing is kept of what has nothing live");
    }
    told
}

impl Storm {
    fn note(&mut self, error: &Error) {
        match error {
            Error::OutOfMemory { .. } | Error::LimitBelowPinned { .. } => self.refused += 1,
            Error::Device(_) | Error::Host { .. } => self.failed += 1,
            other => panic!("an error that has no reason: {other}"),
        }
    }

    fn check(&mut self, front: &Shared, block: &Held) {
        let Some(seed) = block.seed else { return };
        front.pin(block.group).expect("a group");
        if resident(front, block.group) {
            self.checks += 1;
            self.compare(front, block.address, block.bytes, seed);
        }
        front.unpin(block.group).expect("a pinned group");
    }

    fn compare(&mut self, front: &Shared, address: u64, whole: u64, seed: u64) {
        for (at, bytes) in places(whole) {
            let mut found = vec![0; bytes];
            if let Err(error) = front.read(address + at, &mut found) {
                self.note(&error);
                continue;
            }
            assert!(found == pattern(seed, at, bytes), "a block of {whole} bytes lost what it had at {at}");
        }
    }
}

fn resident(front: &Shared, group: GroupId) -> bool {
    front.residence(group) == Ok(Residence::Resident)
}

/// An age to look for a block from.
fn pick(random: &mut Random, blocks: &BTreeMap<u64, Held>) -> u64 {
    let (Some((&first, _)), Some((&last, _))) = (blocks.first_key_value(), blocks.last_key_value()) else {
        return 0;
    };
    first + random.below(last - first + 1)
}

/// The parts of a block that have contents: all of a short one, some of a long one, its ends always.
fn places(bytes: u64) -> impl Iterator<Item = (u64, usize)> {
    let part = bytes.min(512);
    let inner = (0..bytes - part).step_by(STRIDE as usize);
    inner.chain([bytes - part]).map(move |at| (at, part as usize))
}

fn fill(front: &Shared, address: u64, bytes: u64, seed: u64) -> Result<()> {
    places(bytes).try_for_each(|(at, bytes)| front.write(address + at, &pattern(seed, at, bytes)))
}

/// Of a byte its seed and its place: parts that overlap agree.
fn pattern(seed: u64, at: u64, bytes: usize) -> Vec<u8> {
    let byte = |at: u64| (seed.wrapping_add(at).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    (at..at + bytes as u64).map(byte).collect()
}
