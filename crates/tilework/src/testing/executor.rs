//! A small executor of command lists over any manager, as an engine or an execution provider has one: it records,
//! submits, and records again only when a block lies elsewhere.
//!
//! Its model is a chain of layers. Each reads the output of the one before and weights of its own, and writes a new
//! output; what it read is freed as soon as the layer is recorded, so that later layers of the same list use the
//! memory. Contents tell whether that went well: every word of an output depends on all layers.
//!
//! What it needs of an allocator, and where it has it from:
//!
//! | need | answer |
//! |---|---|
//! | a name of a binding that is never another's | [`Block::range`] and [`Block::offset`] |
//! | freed memory at once, within a queue | [`Manager::free`] while commands are being recorded |
//! | nothing unmapped that a list names which is not submitted | a refusal of [`Waiting`]'s |
//! | across queues, and for readers on the host, a fence | [`Fenced::retain`] |
//! | weights made to size, temporaries pooled | [`Manager::set_rounding`] |
//! | a barrier between two uses of memory | [`Caps::aliasing`](crate::device::Caps::aliasing) |

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::device::waiting::{Wait, Waiting};
use crate::device::{Call, Device, DeviceError, RangeId};
use crate::error::{Error, Result};
use crate::manager::{Block, Fenced, Kind, Manager, Options, Rounding, Stream, build};
use crate::shared::streams::Event;

/// The queue that everything but snapshots runs on.
const QUEUE: Stream = Stream(0);

/// Layers of the model.
const LAYERS: usize = 12;

/// One command, over words of 32 bits: [`Queue::output`] tells which.
#[derive(Debug, Clone, Copy)]
pub struct Layer {
    /// What is read.
    pub input: Block,
    /// What is added.
    pub weights: Block,
    /// What is written.
    pub output: Block,
}

/// What runs commands, in the order in which they are submitted, later than that or not.
pub trait Queue {
    /// Commands that were recorded: they may be submitted any number of times.
    type List;

    /// What a layer writes that has an output of `words` words. Where nothing else is said, the i-th of these is
    /// `3 * input[i % inputs] + weights[i % weights]`.
    fn output(input: &[u32], weights: &[u32], words: usize) -> Vec<u32> {
        let word = |i: usize| input[i % input.len()].wrapping_mul(3).wrapping_add(weights[i % weights.len()]);
        (0..words).map(word).collect()
    }

    /// Records layers, each behind the one before.
    fn record(&mut self, layers: &[Layer]) -> Self::List;

    /// Submits a list.
    fn submit(&mut self, list: &Self::List);

    /// Submits a write to the beginning of a block.
    fn upload(&mut self, block: &Block, words: &[u32]);

    /// Submits a copy of a block elsewhere, and hands out its number and its fence. Where there is a second queue it
    /// runs there, behind what was submitted so far.
    fn snapshot(&mut self, block: &Block) -> (usize, Event);

    /// Waits for a snapshot, and shows it.
    fn seen(&mut self, snapshot: usize) -> Vec<u32>;

    /// What has to be done before something is unmapped: nothing where the device unmaps in the order of the queue,
    /// elsewhere waiting for all that was submitted.
    fn before_unmapping(&self) -> Wait;
}

struct Weights {
    block: Block,
    words: Vec<u32>,
}

/// A list, and what it binds.
struct Recorded<L> {
    bound: Vec<(RangeId, u64)>,
    list: L,
}

/// The executor.
pub struct Executor<Q: Queue> {
    // Before the manager: where a check fails, a queue that is held back lets go of what the device waits for.
    queue: Q,
    manager: Fenced,
    /// True while commands name blocks that are free already, and are not submitted.
    recording: Arc<AtomicBool>,
    weights: Vec<Weights>,
    /// By shape.
    lists: BTreeMap<u64, Recorded<Q::List>>,
    /// Lists recorded so far.
    pub recordings: u64,
    /// Times a list was cut since memory lacked.
    pub cuts: u64,
}

impl<Q: Queue> Executor<Q> {
    /// An executor with its weights loaded. `queue` belongs to `device`, of which nothing was taken yet.
    pub fn new(kind: Kind, device: Box<dyn Device>, options: &Options, queue: Q) -> Executor<Q> {
        let recording = Arc::new(AtomicBool::new(false));
        let (is_recording, wait) = (Arc::clone(&recording), queue.before_unmapping());
        let gate: Wait = Box::new(move || {
            if is_recording.load(Ordering::Relaxed) {
                let reason = "commands that use the memory are not submitted yet".to_owned();
                return Err(DeviceError::Failed { call: Call::Unmap, reason });
            }
            wait()
        });
        let built = build(kind, Box::new(Waiting::new(device, gate)), options).expect("a fresh device");
        let mut executor = Executor {
            queue,
            manager: Fenced::new(built.manager),
            recording,
            weights: Vec::new(),
            lists: BTreeMap::new(),
            recordings: 0,
            cuts: 0,
        };
        executor.load();
        executor
    }

    /// The manager.
    pub fn manager(&self) -> &dyn Manager {
        &self.manager
    }

    /// The queue.
    pub fn queue(&mut self) -> &mut Q {
        &mut self.queue
    }

    fn load(&mut self) {
        self.manager.set_rounding(Rounding::Exact);
        for layer in 0..LAYERS {
            let words: Vec<u32> =
                (0..30_000 + 7001 * layer as u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
            let block = self.manager.alloc(4 * words.len() as u64, QUEUE).expect("room for weights");
            self.queue.upload(&block, &words);
            self.weights.push(Weights { block, words });
        }
        self.manager.set_rounding(Rounding::PowerOfTwo);
    }

    /// Executes the model for an input of `shape` times a thousand words, and hands out the output, which is the
    /// caller's to free.
    pub fn run(&mut self, shape: u64, seed: u32) -> Result<Block> {
        let input: Vec<u32> = input(shape, seed).collect();
        let mut at = self.manager.alloc(4 * input.len() as u64, QUEUE)?;
        self.queue.upload(&at, &input);
        self.recording.store(true, Ordering::Relaxed);
        let mut layers: Vec<Layer> = Vec::new();
        let mut cut = false;
        for layer in 0..LAYERS {
            let bytes = 4 * words(shape, layer);
            let mut output = self.manager.alloc(bytes, QUEUE);
            if matches!(output, Err(Error::OutOfMemory { .. })) {
                cut = true;
                self.cut(&mut layers);
                output = self.manager.alloc(bytes, QUEUE);
                self.recording.store(true, Ordering::Relaxed);
            }
            let weights = self.weights[layer].block;
            layers.push(Layer { input: at, weights, output: output? });
            self.manager.free(at.id)?;
            at = layers[layers.len() - 1].output;
        }
        if cut {
            self.cut(&mut layers);
        } else {
            self.submit(shape, &layers);
        }
        self.manager.end_of_execution()?;
        Ok(at)
    }

    /// Submits what has been recorded, so that memory which only that uses can be given back.
    fn cut(&mut self, layers: &mut Vec<Layer>) {
        self.cuts += 1;
        let list = self.queue.record(layers);
        self.queue.submit(&list);
        layers.clear();
        self.recording.store(false, Ordering::Relaxed);
    }

    /// Submits the list of a shape, recorded anew if it binds anything else than it did.
    fn submit(&mut self, shape: u64, layers: &[Layer]) {
        let blocks = layers.iter().flat_map(|layer| [layer.input, layer.weights, layer.output]);
        let bound: Vec<_> = blocks.map(|block| (block.range, block.offset)).collect();
        let known = self.lists.remove(&shape).filter(|known| known.bound == bound);
        let recorded = known.unwrap_or_else(|| {
            self.recordings += 1;
            Recorded { bound, list: self.queue.record(layers) }
        });
        self.queue.submit(&recorded.list);
        self.lists.insert(shape, recorded);
        self.recording.store(false, Ordering::Relaxed);
    }

    /// Submits a copy of an output elsewhere and frees it: its memory waits for the copy.
    pub fn snapshot(&mut self, output: &Block) -> Result<usize> {
        let (snapshot, fence) = self.queue.snapshot(output);
        self.manager.retain(output.id, fence)?;
        self.manager.free(output.id)?;
        Ok(snapshot)
    }

    /// Gives back what is unused.
    pub fn trim(&mut self) -> Result<u64> {
        self.manager.trim()
    }

    /// What a snapshot of an output for `shape` and `seed` must show.
    pub fn expected(&self, shape: u64, seed: u32) -> Vec<u32> {
        let mut at: Vec<u32> = input(shape, seed).collect();
        for (layer, weights) in self.weights.iter().enumerate() {
            at = Q::output(&at, &weights.words, words(shape, layer) as usize);
        }
        at
    }

    /// Frees the weights, and checks that nothing is left but what a manager keeps for ever.
    pub fn end(mut self) -> Q {
        for Weights { block, .. } in std::mem::take(&mut self.weights) {
            self.manager.free(block.id).expect("weights are live");
        }
        self.manager.end_of_execution().expect("nothing is being recorded");
        self.manager.trim().expect("nothing is being recorded");
        self.manager.check_invariants();
        let usage = self.manager.usage();
        assert_eq!(usage.live, 0);
        if self.manager.kind() != Kind::Bucketized {
            assert_eq!(usage.held, 0, "nothing is live, so nothing is held");
        }
        self.queue
    }
}

/// Words of the output of a layer: long and short ones by turns, none as long as another.
fn words(shape: u64, layer: usize) -> u64 {
    shape * [3001, 24_107, 9013, 48_017, 15_031][layer % 5] + 100 * layer as u64
}

fn input(shape: u64, seed: u32) -> impl Iterator<Item = u32> {
    (0..shape as u32 * 1000).map(move |i| (i ^ seed).wrapping_mul(2_246_822_519))
}

/// Runs shapes by turns on a fresh executor, with outputs that users hold for a while, and looks at every word of every
/// output.
///
/// # Panics
/// When a word is wrong, or a list was recorded again where the manager could have found the same places.
pub fn execute<Q: Queue>(kind: Kind, device: Box<dyn Device>, options: &Options, queue: Q) -> Q {
    let mut executor = Executor::new(kind, device, options, queue);
    let shapes = [4, 9, 4, 2];
    let mut held: Vec<(Block, u64, u32)> = Vec::new();
    let mut snapshots: Vec<(usize, u64, u32)> = Vec::new();
    for seed in 0..24 {
        let shape = shapes[seed as usize % shapes.len()];
        let output = executor.run(shape, seed).expect("room");
        held.push((output, shape, seed));
        if held.len() > 3 {
            let (output, shape, seed) = held.remove(1);
            snapshots.push((executor.snapshot(&output).expect("a live output"), shape, seed));
        }
        if seed == 13 {
            executor.trim().expect("nothing is being recorded");
        }
        executor.manager().check_invariants();
    }
    for (output, shape, seed) in held {
        snapshots.push((executor.snapshot(&output).expect("a live output"), shape, seed));
    }
    for (snapshot, shape, seed) in snapshots {
        let seen = executor.queue().seen(snapshot);
        assert!(seen == executor.expected(shape, seed), "{kind}: the output of run {seed} is wrong");
    }
    assert_eq!(executor.cuts, 0);
    // The same shape again and again, its output freed each time: the places are the same.
    let mut again = 0;
    for seed in 100..108 {
        let before = executor.recordings;
        let output = executor.run(5, seed).expect("room");
        let snapshot = executor.snapshot(&output).expect("a live output");
        assert!(executor.queue().seen(snapshot) == executor.expected(5, seed), "{kind}: run {seed} is wrong");
        again = if executor.recordings == before { again + 1 } else { 0 };
    }
    match kind {
        Kind::Committed => assert_eq!(again, 0, "each allocation is a new one"),
        // Its buckets lend what was freed last, so that each run finds the entries in another order.
        Kind::Bucketized => {}
        Kind::Tiled | Kind::Placed => {
            assert!(again >= 5, "{kind}: recorded again though all could be where it was");
        }
    }
    executor.end()
}

/// Runs one shape with less memory than its temporaries take together, so that lists have to be cut where a manager
/// has to give memory back first.
///
/// # Panics
/// When a word is wrong.
pub fn execute_within<Q: Queue>(
    kind: Kind,
    device: Box<dyn Device>,
    options: &Options,
    queue: Q,
) -> (Q, u64) {
    let mut executor = Executor::new(kind, device, options, queue);
    for (seed, shape) in [(1, 7), (2, 12), (3, 5), (4, 12)] {
        let output = executor.run(shape, seed).expect("room once a list was cut");
        let snapshot = executor.snapshot(&output).expect("a live output");
        assert!(
            executor.queue().seen(snapshot) == executor.expected(shape, seed),
            "{kind}: run {seed} is wrong"
        );
    }
    let cuts = executor.cuts;
    (executor.end(), cuts)
}
