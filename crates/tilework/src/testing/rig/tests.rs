//! The rig finds what it is there to find: a manager that does one thing wrong.

use super::*;
use crate::device::RangeId;
use crate::device::null::Null;
use crate::device::sim::Sim;
use crate::manager::{Committed, Kind, Rounding, Stats, Usage};

/// What is wrong with a [`Wrong`] manager.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Hands out half of the last block again.
    Shares,
    /// Calls blocks by ids that were used before.
    RepeatsIds,
    /// Forgets to count.
    Miscounts,
    /// Says a block lies in another range.
    WrongRange,
}

/// A manager that works, with one fault added.
struct Wrong {
    inner: Committed,
    fault: Fault,
    last: Option<Block>,
}

impl Manager for Wrong {
    fn kind(&self) -> Kind {
        self.inner.kind()
    }

    fn alloc(&mut self, bytes: u64, stream: Stream) -> Result<Block> {
        let mut block = self.inner.alloc(bytes, stream)?;
        match (self.fault, self.last.replace(block)) {
            (Fault::Shares, Some(last)) => block = Block { id: block.id, ..last },
            (Fault::RepeatsIds, Some(last)) => block.id = last.id,
            (Fault::WrongRange, _) => block.range = RangeId(u64::MAX),
            _ => {}
        }
        Ok(block)
    }

    fn free(&mut self, id: BlockId) -> Result<()> {
        self.inner.free(id)
    }

    fn set_rounding(&mut self, rounding: Rounding) {
        self.inner.set_rounding(rounding);
    }

    fn end_of_execution(&mut self) -> Result<()> {
        self.inner.end_of_execution()
    }

    fn trim(&mut self) -> Result<u64> {
        self.inner.trim()
    }

    fn usage(&self) -> Usage {
        let usage = self.inner.usage();
        if self.fault == Fault::Miscounts { Usage { held: usage.held / 2, ..usage } } else { usage }
    }

    fn reset_peaks(&mut self) {
        self.inner.reset_peaks();
    }

    fn stats(&self) -> Stats {
        Stats { usage: self.usage(), ..self.inner.stats() }
    }

    fn device(&self) -> &dyn Device {
        self.inner.device()
    }

    fn check_invariants(&self) {}
}

/// Two blocks of a MiB and their end, with a manager that has `fault`.
fn story(fault: Fault) {
    let mut rig = Rig::new(Box::new(Sim::h200()), |device| {
        Box::new(Wrong { inner: Committed::new(device), fault, last: None })
    });
    rig.run(&[Op::Alloc { bytes: 1 << 20, stream: 0 }; 2]);
    rig.run(&[Op::Free { nth: 1 }, Op::EndOfExecution, Op::Trim]);
}

#[test]
fn a_manager_without_fault_passes() {
    story(Fault::None);
}

#[test]
#[should_panic(expected = "shares addresses with")]
fn a_block_lent_twice_is_found() {
    story(Fault::Shares);
}

#[test]
#[should_panic(expected = "was issued twice")]
fn an_id_used_twice_is_found() {
    story(Fault::RepeatsIds);
}

#[test]
#[should_panic(expected = "bytes held, by the manager and by the device's calls")]
fn a_wrong_figure_is_found() {
    story(Fault::Miscounts);
}

#[test]
#[should_panic(expected = "lies in unknown")]
fn a_block_in_a_range_that_does_not_exist_is_found() {
    story(Fault::WrongRange);
}

#[test]
fn a_free_with_nothing_live_is_skipped() {
    let mut rig = Rig::new(Box::new(Null::new()), |device| Box::new(Committed::new(device)));
    rig.run(&[Op::Free { nth: 7 }]);
    assert_eq!(rig.manager().stats().frees, 0);
}
