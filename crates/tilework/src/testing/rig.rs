//! A manager under test: runs operations on it and checks everything after each.

use super::checked::{Checked, Witness};
use super::op::Op;
use super::shadow::Shadow;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::manager::{Block, BlockId, Manager, Stream};

/// A manager on a [`Checked`] device beside a naive model of what it has lent.
///
/// After every operation, successful or not: live blocks share neither addresses nor physical memory,
/// are mapped over their whole length with access and where they were; the manager's figures equal the
/// shadow's and those of the calls that reached the device; the manager's own invariants hold. A
/// difference panics.
pub struct Rig {
    manager: Box<dyn Manager>,
    witness: Witness,
    shadow: Shadow,
    /// The live blocks as [`Op::Free`] counts them.
    live: Vec<Block>,
    /// The last id that was freed: what a double free would name.
    freed: Option<BlockId>,
}

impl Rig {
    /// Puts a manager on `device` to the test.
    pub fn new(device: Box<dyn Device>, manager: impl FnOnce(Box<dyn Device>) -> Box<dyn Manager>) -> Rig {
        let (device, witness) = Checked::over(device);
        let manager = manager(device);
        let mut rig = Rig { manager, witness, shadow: Shadow::default(), live: Vec::new(), freed: None };
        rig.shadow.compare(&*rig.manager, &rig.witness);
        rig
    }

    /// Runs one operation and all checks.
    ///
    /// # Errors
    /// What the manager answered; the checks have passed all the same.
    pub fn step(&mut self, op: Op) -> Result<()> {
        match op {
            Op::Alloc { bytes, stream } => self.alloc_on(bytes, stream).map(drop),
            Op::Free { .. } if self.live.is_empty() => Ok(()),
            Op::Free { nth } => self.free(self.live[nth % self.live.len()].id),
            Op::EndOfExecution => self.end_of_execution(),
            Op::Trim => self.trim().map(drop),
            Op::ResetPeaks => {
                self.manager.reset_peaks();
                self.shadow.reset_peaks();
                self.shadow.compare(&*self.manager, &self.witness);
                Ok(())
            }
        }
    }

    /// Runs operations that must all succeed.
    pub fn run(&mut self, ops: &[Op]) {
        for (n, &op) in ops.iter().enumerate() {
            self.step(op).unwrap_or_else(|error| panic!("operation {n}, {op:?}: {error}"));
        }
    }

    /// Requests `bytes` on the first stream.
    ///
    /// # Errors
    /// What the manager answered.
    pub fn alloc(&mut self, bytes: u64) -> Result<Block> {
        self.alloc_on(bytes, 0)
    }

    fn alloc_on(&mut self, bytes: u64, stream: u64) -> Result<Block> {
        let block = self.manager.alloc(bytes, Stream(stream));
        match block {
            Ok(block) => {
                self.shadow.lent(block, bytes, &self.witness, self.manager.device());
                self.live.push(block);
            }
            Err(_) => self.shadow.check_all(&self.witness, self.manager.device()),
        }
        self.shadow.compare(&*self.manager, &self.witness);
        block
    }

    /// Frees a block by its id; one that is not live is passed to the manager all the same.
    ///
    /// # Errors
    /// What the manager answered.
    pub fn free(&mut self, id: BlockId) -> Result<()> {
        let place = self.live.iter().position(|block| block.id == id);
        if let Some(place) = place {
            self.shadow.check(&self.live[place], &self.witness, self.manager.device());
        }
        let answer = self.manager.free(id);
        match (&answer, place) {
            (Ok(()), Some(place)) => {
                let block = self.live.swap_remove(place);
                self.shadow.returned(&block);
                self.freed = Some(id);
            }
            (Ok(()), None) => panic!("{id} was freed and is not live"),
            (Err(error), Some(_)) => panic!("{id} is live and was not freed: {error}"),
            (Err(_), None) => {}
        }
        self.shadow.compare(&*self.manager, &self.witness);
        answer
    }

    /// Ends an execution.
    ///
    /// # Errors
    /// What the manager answered.
    pub fn end_of_execution(&mut self) -> Result<()> {
        let answer = self.manager.end_of_execution();
        self.shadow.check_all(&self.witness, self.manager.device());
        self.shadow.compare(&*self.manager, &self.witness);
        answer
    }

    /// Gives back everything unused, and checks that the manager says how much that was.
    ///
    /// # Errors
    /// What the manager answered.
    pub fn trim(&mut self) -> Result<u64> {
        let held = self.witness.totals().held;
        let answer = self.manager.trim();
        if let Ok(released) = answer {
            let given = held - self.witness.totals().held;
            assert_eq!(released, given, "bytes trimmed, by the manager and by the device's calls");
        }
        self.shadow.check_all(&self.witness, self.manager.device());
        self.shadow.compare(&*self.manager, &self.witness);
        answer
    }

    /// Frees every live block, the newest last.
    pub fn free_all(&mut self) {
        while let Some(block) = self.live.first() {
            let id = block.id;
            self.free(id).unwrap_or_else(|error| panic!("{id}: {error}"));
        }
    }

    /// Frees the block freed last once more, which the manager must refuse.
    pub fn free_again(&mut self) {
        if let Some(id) = self.freed {
            assert_eq!(self.free(id), Err(Error::DoubleFree(id)));
        }
    }

    /// The manager.
    pub fn manager(&self) -> &dyn Manager {
        &*self.manager
    }

    /// The witness on its device.
    pub fn witness(&self) -> &Witness {
        &self.witness
    }

    /// The live blocks, as [`Op::Free`] counts them.
    pub fn live(&self) -> &[Block] {
        &self.live
    }

    /// Where the live blocks lie: for each the number of its range, in order of reserving, and its offset.
    pub fn placement(&self) -> Vec<(u64, u64)> {
        let place = |block: &Block| {
            let (_, number) = self.witness.range(block.range).expect("a live block lies in a range");
            (number, block.offset)
        };
        self.live.iter().map(place).collect()
    }
}
