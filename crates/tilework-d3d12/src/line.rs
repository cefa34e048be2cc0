//! What is queued along one fence: its values, the uses that were told of, and what is to be destroyed when.
//!
//! ```text
//!   the queue   … use ─ unmap ─ use ─ signal 7 ─ use ─ signal 8 …
//!                                       │                │
//!   graves                          a buffer         its heap        each goes once the fence has its value
//! ```

use std::collections::VecDeque;

/// The values of a fence. `F` is a fence of the user's, `T` what is buried.
#[derive(Debug)]
pub struct Line<F, T> {
    /// The value that was signalled last.
    last: u64,
    /// Fences of the user, each with the value that its latest use signals.
    uses: Vec<(F, u64)>,
    /// By rising value.
    graves: VecDeque<(u64, T)>,
}

impl<F: PartialEq, T> Line<F, T> {
    /// A line on which nothing has happened.
    pub fn new() -> Line<F, T> {
        Line { last: 0, uses: Vec::new(), graves: VecDeque::new() }
    }

    /// The value that was signalled last.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The value to signal next.
    pub fn next(&self) -> u64 {
        self.last + 1
    }

    /// Notes that [`next`](Line::next) was signalled.
    pub fn signalled(&mut self) {
        self.last += 1;
    }

    /// Notes that `fence` has `value` once something of the user's is over.
    pub fn used_by(&mut self, fence: F, value: u64) {
        match self.uses.iter_mut().find(|(known, _)| *known == fence) {
            Some((_, latest)) => *latest = value.max(*latest),
            None => self.uses.push((fence, value)),
        }
    }

    /// The uses that were told of and not waited for.
    pub fn uses(&self) -> &[(F, u64)] {
        &self.uses
    }

    /// Notes that the queue waits for all of them, before whatever comes next.
    pub fn waited(&mut self) {
        self.uses.clear();
    }

    /// Buries something until `value` has passed: the last that was signalled, or the next if that could not be.
    pub fn bury(&mut self, value: u64, dead: T) {
        debug_assert!(self.graves.back().is_none_or(|&(before, _)| before <= value));
        self.graves.push_back((value, dead));
    }

    /// Whether nothing is buried.
    pub fn is_empty(&self) -> bool {
        self.graves.is_empty()
    }

    /// Takes what can go now that the fence has `value`.
    pub fn passed(&mut self, value: u64) -> Vec<T> {
        let gone = self.graves.partition_point(|&(until, _)| until <= value);
        self.graves.drain(..gone).map(|(_, dead)| dead).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_buried_goes_with_its_value_and_not_before() {
        let mut line: Line<(), &str> = Line::new();
        assert_eq!((line.last(), line.next(), line.is_empty()), (0, 1, true));
        line.signalled();
        line.bury(line.last(), "buffer");
        line.bury(line.last(), "heap");
        line.signalled();
        line.bury(line.last(), "later");
        assert_eq!(line.passed(0), [""; 0]);
        assert_eq!(line.passed(1), ["buffer", "heap"]);
        assert_eq!(line.passed(1), [""; 0]);
        // What could not be signalled waits for the value that would have come.
        line.bury(line.next(), "never");
        assert_eq!(line.passed(2), ["later"]);
        assert!(!line.is_empty());
        // A device that is removed has every value.
        assert_eq!(line.passed(u64::MAX), ["never"]);
        assert!(line.is_empty());
    }

    #[test]
    fn of_each_fence_the_latest_use_counts() {
        let mut line: Line<&str, ()> = Line::new();
        for (fence, value) in [("one", 3), ("other", 1), ("one", 2), ("one", 5)] {
            line.used_by(fence, value);
        }
        assert_eq!(line.uses(), [("one", 5), ("other", 1)]);
        line.waited();
        assert_eq!(line.uses(), []);
        line.used_by("one", 6);
        assert_eq!(line.uses(), [("one", 6)]);
    }

    proptest! {
        /// A clock that lags behind by any steps: nothing goes early, everything in the end, in order.
        #[test]
        fn nothing_goes_early(steps in proptest::collection::vec((0..3_u8, 0..4_u64), 1..80)) {
            let mut line: Line<(), u64> = Line::new();
            let mut clock = 0;
            let mut gone = Vec::new();
            let mut buried = 0;
            for (what, by) in steps {
                match what {
                    0 => line.signalled(),
                    1 => {
                        line.bury(line.last(), line.last());
                        buried += 1;
                    }
                    _ => clock = (clock + by).min(line.last()),
                }
                for value in line.passed(clock) {
                    prop_assert!(value <= clock);
                    gone.push(value);
                }
            }
            gone.extend(line.passed(line.last()));
            prop_assert!(gone.is_sorted());
            prop_assert_eq!(gone.len(), buried);
        }
    }
}
