//! An executor like that of DirectML's provider: one queue, a command list for each operator, recorded once and executed
//! again while its blocks are where they were; blocks are freed while their work is queued.

use std::collections::HashMap;

use tilework::device::RangeId;
use tilework::manager::{Block, Kind, Manager, Options, Stream, build};
use tilework_d3d12::bindings::Win32::Graphics::Direct3D12::{D3D12_COMMAND_LIST_TYPE_DIRECT, ID3D12Resource};
use tilework_d3d12::{Backing, Slice, View};

use crate::device;
use crate::program::{Gate, Recorded, Words, at, copy, fence, record, wait};

const TILE: u64 = 64 << 10;
const PASSES: usize = 8;

/// What each operator's output is as long as, in tiles less words.
const OUTPUTS: [(u64, u64); 10] =
    [(3, 0), (7, 1), (2, 0), (12, 5), (1, 100), (5, 0), (16, 3), (4, 0), (9, 77), (6, 2)];

/// How many operators later an output is freed, so that holes are left.
const KEPT: usize = 3;

/// What an operator was recorded for: its name, and where its blocks were.
type Bound = (usize, (RangeId, u64), (RangeId, u64));

struct Executor {
    view: View,
    /// What operators copy through. Two blocks may lie in one buffer, which is either source or target in a command list;
    /// each list finds it in the state COMMON.
    relay: ID3D12Resource,
    lists: HashMap<usize, (Bound, [Recorded; 2])>,
    /// Lists that others took the place of: they may be queued.
    old: Vec<Recorded>,
    recorded: usize,
}

impl Executor {
    fn new(view: &View) -> Executor {
        let longest = OUTPUTS.iter().map(|(tiles, _)| tiles * TILE / 4).max().unwrap_or(0);
        Executor {
            relay: Words::relay(view.device(), longest as usize).buffer,
            view: view.clone(),
            lists: HashMap::new(),
            old: Vec::new(),
            recorded: 0,
        }
    }

    /// Fills `out` with `input` over and over.
    fn run(&mut self, operator: usize, input: &Block, out: &Block) {
        let (from, to) = (self.place(input), self.place(out));
        let bound = (operator, (from.range, from.offset), (to.range, to.offset));
        if self.lists.get(&operator).is_none_or(|(known, _)| *known != bound) {
            let (inputs, outputs) = (input.bytes, out.bytes);
            let (device, relay) = (self.view.device(), &self.relay);
            let gather = record(device, D3D12_COMMAND_LIST_TYPE_DIRECT, |list| {
                copy(list, (relay, 0), at(&from), inputs);
            });
            let scatter = record(device, D3D12_COMMAND_LIST_TYPE_DIRECT, |list| {
                let mut done = 0;
                while done < outputs {
                    let bytes = inputs.min(outputs - done);
                    copy(list, (&to.resource, to.offset + done), (relay, 0), bytes);
                    done += bytes;
                }
            });
            self.recorded += 1;
            let before = self.lists.insert(operator, (bound, [gather, scatter]));
            self.old.extend(before.into_iter().flat_map(|(_, lists)| lists));
        }
        for list in &self.lists[&operator].1 {
            list.execute(self.view.queue());
        }
    }

    /// Copies between a block and a buffer of the program's, at a word of it.
    fn transfer(&mut self, block: &Block, words: &Words, word: usize, load: bool) {
        let slice = self.place(block);
        let list = record(self.view.device(), D3D12_COMMAND_LIST_TYPE_DIRECT, |list| {
            let own = (&words.buffer, 4 * word as u64);
            let (to, from) = if load { (at(&slice), own) } else { (own, at(&slice)) };
            copy(list, to, from, block.bytes);
        });
        list.execute(self.view.queue());
        self.old.push(list);
    }

    fn place(&self, block: &Block) -> Slice {
        self.view.find(block.address).expect("an allocated block has a place")
    }
}

fn alloc(manager: &mut dyn Manager, (tiles, less): (u64, u64)) -> Block {
    manager.alloc(tiles * TILE - 4 * less, Stream(0)).expect("a few megabytes")
}

/// Lets nothing on the device's queue happen before the gate is open.
fn hold_back(view: &View) -> Gate {
    let gate = Gate(fence(view.device()), 1);
    // SAFETY: the fence is of the device, and the gate gives it the value.
    unsafe { view.queue().Wait(&gate.0, gate.1) }.expect("the device works");
    gate
}

/// Opens it, and waits until all has happened.
fn let_go(view: &View, gate: Gate) {
    gate.open();
    let (done, value) = view.ready().expect("the device works");
    wait(&done, value);
}

/// The words that are loaded in a pass.
fn input(pass: usize) -> Vec<u32> {
    let (tiles, less) = OUTPUTS[0];
    (0..(tiles * TILE / 4 - less) as u32).map(|word| (pass as u32) << 24 | word).collect()
}

/// What comes out of a pass.
fn output(pass: usize) -> Vec<u32> {
    OUTPUTS[1..].iter().fold(input(pass), |before, (tiles, less)| {
        before.iter().copied().cycle().take((tiles * TILE / 4 - less) as usize).collect()
    })
}

/// Passes are queued one after the other and none has run when the last is: what is mapped, unmapped and given back
/// meanwhile waits for nobody, and when all has run every word is right.
pub fn passes_are_right(kind: Kind, backing: Backing) {
    let device = device::open(backing);
    let view = device.view();
    let options = Options { heap_bytes: 8 * TILE, mapping_age: 1, heap_age: 1, ..Options::default() };
    let mut manager = build(kind, Box::new(device), &options).expect("a manager").manager;
    let uploads = (0..PASSES).flat_map(input).collect::<Vec<_>>();
    let uploads = Words::upload(view.device(), &uploads);
    let results = Words::readback(view.device(), PASSES * output(0).len());
    let gate = hold_back(&view);
    let mut executor = Executor::new(&view);
    let mut recorded = Vec::new();
    for pass in 0..PASSES {
        executor.recorded = 0;
        let mut live = vec![alloc(&mut *manager, OUTPUTS[0])];
        executor.transfer(&live[0], &uploads, pass * input(0).len(), true);
        for (operator, &size) in OUTPUTS.iter().enumerate().skip(1) {
            let out = alloc(&mut *manager, size);
            executor.run(operator, &live[live.len() - 1], &out);
            live.push(out);
            if live.len() > KEPT {
                manager.free(live.remove(0).id).expect("a live block");
            }
        }
        executor.transfer(&live[live.len() - 1], &results, pass * output(0).len(), false);
        for block in live {
            manager.free(block.id).expect("a live block");
        }
        manager.end_of_execution().expect("the device works");
        recorded.push(executor.recorded);
    }
    let operators = OUTPUTS.len() - 1;
    assert_eq!(recorded[0], operators, "{recorded:?}");
    match kind {
        // Each block has a range of its own, and no range's name is used again.
        Kind::Committed => assert_eq!(recorded, [operators; PASSES]),
        // An execution that begins as the one before finds the same places.
        Kind::Tiled | Kind::Placed => assert_eq!(
            recorded[3..],
            [0; PASSES - 3],
            "lists were recorded again in a steady run: {recorded:?}"
        ),
        // Buckets are stacks: they turn.
        Kind::Bucketized => {}
    }
    manager.trim().expect("the device works");
    let_go(&view, gate);
    let found = results.read();
    for (pass, found) in found.chunks(output(0).len()).enumerate() {
        let wrong = found.iter().zip(output(pass)).position(|(found, expected)| *found != expected);
        assert_eq!(wrong, None, "the first wrong word of pass {pass}");
    }
}

/// Blocks of no rhythm come and go, are stitched and unmapped and their memory given back while nothing has run. Each has
/// its words when it goes.
pub fn blocks_keep_their_words(kind: Kind, backing: Backing) {
    const BLOCKS: usize = 90;
    const LONGEST: u64 = 24;
    let device = device::open(backing);
    let view = device.view();
    let options = Options { heap_bytes: 4 * TILE, mapping_age: 1, heap_age: 1, ..Options::default() };
    let mut manager = build(kind, Box::new(device), &options).expect("a manager").manager;
    // Each block is loaded from another word on.
    let words = (LONGEST * TILE / 4) as usize + BLOCKS;
    let words: Vec<u32> = (0..words as u32).map(|word| word.wrapping_mul(2_654_435_761)).collect();
    let uploads = Words::upload(view.device(), &words);
    let results = Words::readback(view.device(), BLOCKS * (LONGEST * TILE / 4) as usize);
    let gate = hold_back(&view);
    let mut executor = Executor::new(&view);
    let mut live: Vec<(usize, Block)> = Vec::new();
    let mut looked: Vec<(usize, usize)> = Vec::new();
    let mut random = 12345_u64;
    let mut stored = 0;
    let mut release = |manager: &mut dyn Manager, executor: &mut Executor, (first, block): (usize, Block)| {
        executor.transfer(&block, &results, stored, false);
        stored += block.bytes as usize / 4;
        looked.push((first, block.bytes as usize / 4));
        manager.free(block.id).expect("a live block");
    };
    for n in 0..BLOCKS {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let block = alloc(&mut *manager, (1 + (random >> 33) % LONGEST, random >> 60));
        executor.transfer(&block, &uploads, n, true);
        live.push((n, block));
        if live.len() > 8 {
            // Not the oldest only, so that holes are left.
            let gone = live.remove(live.len() / 2);
            release(&mut *manager, &mut executor, gone);
        }
        if n % 5 == 4 {
            manager.end_of_execution().expect("the device works");
        }
        if n % 21 == 20 {
            manager.trim().expect("the device works");
        }
    }
    for block in live {
        release(&mut *manager, &mut executor, block);
    }
    manager.trim().expect("the device works");
    if kind == Kind::Tiled {
        let calls = manager.device().calls();
        assert!(calls.unmap > 9 && calls.release > 9 && calls.reserve > 9, "nothing was remapped: {calls:?}");
    }
    let_go(&view, gate);
    let found = results.read();
    let mut at = 0;
    for (first, count) in looked {
        let wrong = (0..count).position(|word| found[at + word] != words[first + word]);
        assert_eq!(wrong, None, "the first wrong word of block {first}, of {count} words");
        at += count;
    }
}
