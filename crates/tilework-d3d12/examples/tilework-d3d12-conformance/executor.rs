//! The executor of the test bed with copies for layers, and blocks of no rhythm. The device's queue is held back until
//! somebody wants to see something: what is mapped, unmapped and given back before waits for nobody.

use std::rc::Rc;
use std::sync::Arc;

use tilework::device::DeviceError;
use tilework::device::limit::Limit;
use tilework::device::waiting::Wait;
use tilework::manager::{Block, Kind, Manager, Options, Stream, build};
use tilework::shared::streams::{Event, Mark};
use tilework::testing::executor::{self, Layer};
use tilework_d3d12::bindings::Win32::Graphics::Direct3D12::{
    D3D12_COMMAND_LIST_TYPE_DIRECT, ID3D12CommandQueue, ID3D12Fence, ID3D12GraphicsCommandList,
};
use tilework_d3d12::{Backing, Slice, View};

use crate::device;
use crate::program::{Gate, Recorded, Words, at, copy, fence, record, value_of, wait};

const MIB: u64 = 1 << 20;
const TILE: u64 = 64 << 10;

/// How much of a layer's output comes from one place, words.
const PIECE: usize = 1000;

/// As many words as any layer reads.
const RELAY: usize = 1 << 20;

struct Queue {
    view: View,
    gate: Gate,
    /// Takes the snapshots, and signals the number of each.
    other: ID3D12CommandQueue,
    done: ID3D12Fence,
    snapshots: Vec<Words>,
    /// What layers copy through. Two blocks may lie in one buffer, which is either source or target in a command list;
    /// each list finds it in the state COMMON.
    relay: Words,
    /// Whatever was queued, until the end.
    queued: Vec<Rc<[Recorded]>>,
    uploads: Vec<Words>,
}

/// A value of a fence of the program's.
#[derive(Debug)]
struct Fence(ID3D12Fence, u64);

impl Mark for Fence {
    fn wait(&self, _: Stream) -> Result<(), DeviceError> {
        unreachable!("no stream is waited for here")
    }

    fn passed(&self) -> bool {
        value_of(&self.0) >= self.1
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        wait(&self.0, self.1);
        Ok(())
    }
}

/// What a layer copies, in words: from where in the input followed by the weights, and how many. It takes from either by
/// turns, each from its beginning to its end and over again.
fn pieces(input: usize, weights: usize, output: usize) -> Vec<(usize, usize)> {
    let mut sources = [(0, input, 0), (input, weights, 0)];
    let (mut pieces, mut written) = (Vec::new(), 0);
    while written < output {
        let (first, length, read) = &mut sources[pieces.len() % 2];
        let from = *read % *length;
        let count = PIECE.min(output - written).min(*length - from);
        pieces.push((*first + from, count));
        *read += count;
        written += count;
    }
    pieces
}

impl Queue {
    /// A queue that is held back.
    fn new(view: View) -> Queue {
        let gate = Gate(fence(view.device()), 1);
        // SAFETY: the fence is of the device, and the gate gives it the value.
        unsafe { view.queue().Wait(&gate.0, gate.1) }.expect("the device works");
        Queue {
            gate,
            other: device::queue(view.device(), D3D12_COMMAND_LIST_TYPE_DIRECT),
            done: fence(view.device()),
            snapshots: Vec::new(),
            relay: Words::relay(view.device(), RELAY),
            queued: Vec::new(),
            uploads: Vec::new(),
            view,
        }
    }

    fn place(&self, block: &Block) -> Slice {
        let slice = self.view.find(block.address).expect("an allocated block has a place");
        assert_eq!(slice.range, block.range);
        slice
    }

    fn recorded(&self, commands: impl FnOnce(&ID3D12GraphicsCommandList)) -> Recorded {
        record(self.view.device(), D3D12_COMMAND_LIST_TYPE_DIRECT, commands)
    }

    /// Queues a copy of a block for the host.
    fn store(&mut self, block: &Block, queue: &ID3D12CommandQueue) -> Words {
        let words = Words::readback(self.view.device(), block.bytes as usize / 4);
        let from = self.place(block);
        let list = self.recorded(|list| copy(list, (&words.buffer, 0), at(&from), block.bytes));
        list.execute(queue);
        self.queued.push(Rc::new([list]));
        words
    }

    /// Opens the gate, and waits until all has happened.
    fn let_go(&self) {
        self.gate.open();
        let (done, value) = self.view.ready().expect("the device works");
        wait(&done, value);
    }
}

impl executor::Queue for Queue {
    type List = Rc<[Recorded]>;

    fn output(input: &[u32], weights: &[u32], words: usize) -> Vec<u32> {
        let read = [input, weights].concat();
        let pieces = pieces(input.len(), weights.len(), words);
        pieces.into_iter().flat_map(|(from, count)| read[from..from + count].to_vec()).collect()
    }

    fn record(&mut self, layers: &[Layer]) -> Rc<[Recorded]> {
        let lists = layers.iter().flat_map(|Layer { input, weights, output }| {
            let relay = &self.relay.buffer;
            let gather = self.recorded(|list| {
                copy(list, (relay, 0), at(&self.place(input)), input.bytes);
                copy(list, (relay, input.bytes), at(&self.place(weights)), weights.bytes);
            });
            let scatter = self.recorded(|list| {
                let to = self.place(output);
                let [inputs, weights, outputs] =
                    [input, weights, output].map(|block| block.bytes as usize / 4);
                let mut written = to.offset;
                for (from, count) in pieces(inputs, weights, outputs) {
                    copy(list, (&to.resource, written), (relay, 4 * from as u64), 4 * count as u64);
                    written += 4 * count as u64;
                }
            });
            [gather, scatter]
        });
        lists.collect()
    }

    fn submit(&mut self, lists: &Rc<[Recorded]>) {
        lists.iter().for_each(|list| list.execute(self.view.queue()));
        self.queued.push(Rc::clone(lists));
    }

    fn upload(&mut self, block: &Block, words: &[u32]) {
        let upload = Words::upload(self.view.device(), words);
        let to = self.place(block);
        let list = self.recorded(|list| copy(list, at(&to), (&upload.buffer, 0), 4 * words.len() as u64));
        list.execute(self.view.queue());
        self.queued.push(Rc::new([list]));
        self.uploads.push(upload);
    }

    fn snapshot(&mut self, block: &Block) -> (usize, Event) {
        let (other, number) = (self.other.clone(), self.snapshots.len() as u64 + 1);
        let (ready, value) = self.view.ready().expect("the device works");
        // SAFETY: a fence of the device; the value was signalled, if behind the gate.
        unsafe { other.Wait(&ready, value) }.expect("the device works");
        let words = self.store(block, &other);
        self.snapshots.push(words);
        // SAFETY: fences of the device; what was queued before signals the value.
        unsafe {
            other.Signal(&self.done, number).expect("the device works");
            self.view.used_by(&self.done, number);
        }
        (self.snapshots.len() - 1, Arc::new(Fence(self.done.clone(), number)))
    }

    fn seen(&mut self, snapshot: usize) -> Vec<u32> {
        self.let_go();
        wait(&self.done, snapshot as u64 + 1);
        self.snapshots[snapshot].read()
    }

    fn before_unmapping(&self) -> Wait {
        // The device unmaps in the order of its queue, and behind the uses that it was told of.
        Box::new(|| Ok(()))
    }
}

fn options() -> Options {
    Options { heap_bytes: MIB, mapping_age: 2, heap_age: 2, ..Options::default() }
}

/// All runs of some shapes are queued before the first begins; of another shape each is seen before the next.
pub fn finds_the_right_words(kind: Kind, backing: Backing) {
    let device = device::open(backing);
    let queue = Queue::new(device.view());
    executor::execute(kind, Box::new(device), &options(), queue);
}

/// With less memory than a run's temporaries take together.
pub fn cuts_its_lists_where_memory_lacks(kind: Kind, backing: Backing) {
    let device = device::open(backing);
    let queue = Queue::new(device.view());
    let mib = match kind {
        Kind::Tiled => 11,
        _ => 14,
    };
    let device = Box::new(Limit::new(device, mib * MIB));
    let (_, cuts) = executor::execute_within(kind, device, &options(), queue);
    assert!(kind != Kind::Committed || cuts > 0, "what is freed is unmapped, which an open list forbids");
}

/// Blocks of no rhythm come and go, are stitched and unmapped and their memory given back while nothing has run. Each has
/// its words when it goes.
pub fn blocks_keep_their_words(kind: Kind, backing: Backing) {
    const BLOCKS: u32 = 90;
    const LONGEST: u64 = 24;
    let device = device::open(backing);
    let view = device.view();
    let options = Options { heap_bytes: 4 * TILE, mapping_age: 1, heap_age: 1, ..Options::default() };
    let mut manager = build(kind, Box::new(device), &options).expect("a manager").manager;
    // After the manager, so that it goes first where a check fails: the device waits for what is held back.
    let mut queue = Queue::new(view);
    let mut live: Vec<(u32, Block)> = Vec::new();
    let mut stored: Vec<(u32, Words)> = Vec::new();
    let mut random = 12345_u64;
    let words = |seed: u32, bytes: u64| -> Vec<u32> {
        (0..bytes as u32 / 4).map(|word| (word ^ seed << 24).wrapping_mul(2_654_435_761)).collect()
    };
    let mut release = |manager: &mut dyn Manager, queue: &mut Queue, (seed, block): (u32, Block)| {
        stored.push((seed, queue.store(&block, &queue.view.queue().clone())));
        manager.free(block.id).expect("a live block");
    };
    for n in 0..BLOCKS {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let bytes = (1 + (random >> 33) % LONGEST) * TILE - 4 * (random >> 60);
        let block = manager.alloc(bytes, Stream(0)).expect("a few megabytes");
        executor::Queue::upload(&mut queue, &block, &words(n, bytes));
        live.push((n, block));
        if live.len() > 8 {
            // Not the oldest only, so that holes are left.
            let gone = live.remove(live.len() / 2);
            release(&mut *manager, &mut queue, gone);
        }
        if n % 5 == 4 {
            manager.end_of_execution().expect("the device works");
        }
        if n % 21 == 20 {
            manager.trim().expect("the device works");
        }
    }
    for block in live {
        release(&mut *manager, &mut queue, block);
    }
    manager.trim().expect("the device works");
    if kind == Kind::Tiled {
        let calls = manager.device().calls();
        assert!(calls.unmap > 9 && calls.release > 9 && calls.reserve > 9, "nothing was remapped: {calls:?}");
    }
    queue.let_go();
    for (seed, stored) in stored {
        let found = stored.read();
        let wrong = found.iter().zip(words(seed, 4 * found.len() as u64)).position(|(a, b)| *a != b);
        assert_eq!(wrong, None, "the first wrong word of block {seed}, of {}", found.len());
    }
}
