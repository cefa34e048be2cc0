//! Bytes live and held over time, in as many points as a picture can show.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::manager::Usage;

/// Enough for a picture twice as wide as a screen's window.
pub const POINTS: usize = 2000;

/// One stretch of a timeline: the most that was live and held in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Where the stretch begins, in the unit the timeline was filled in: events or microseconds.
    pub at: u64,
    /// The most bytes live.
    pub live: u64,
    /// The most bytes held.
    pub held: u64,
}

impl Sample {
    fn absorb(&mut self, later: &Sample) {
        self.live = self.live.max(later.live);
        self.held = self.held.max(later.held);
    }
}

/// A series of readings kept in bounded memory, however long it grows, without losing a peak.
///
/// ```text
///   readings   r r r r r r r r r r r r …
///   samples    └─┬─┘ └─┬─┘ └─┬─┘ └─┬─┘      each keeps the maxima of `stride` readings
///   full:      └────┬────┘ └────┬────┘      neighbours merge, the stride doubles
/// ```
#[derive(Debug, Clone)]
pub struct Timeline {
    samples: Vec<Sample>,
    capacity: usize,
    /// Readings a sample stands for.
    stride: u64,
    /// Readings in the last sample.
    filled: u64,
}

impl Default for Timeline {
    fn default() -> Timeline {
        Timeline::new(POINTS)
    }
}

impl Timeline {
    /// An empty timeline of at most `capacity` samples (at least two), and at least half as many once
    /// it has had that many readings.
    pub fn new(capacity: usize) -> Timeline {
        Timeline { samples: Vec::new(), capacity: capacity.max(2), stride: 1, filled: 1 }
    }

    /// Adds a reading. `at` must not be below the reading before.
    pub fn push(&mut self, at: u64, usage: &Usage) {
        let reading = Sample { at, live: usage.live, held: usage.held };
        if self.filled < self.stride
            && let Some(last) = self.samples.last_mut()
        {
            last.absorb(&reading);
            self.filled += 1;
            return;
        }
        if self.samples.len() == self.capacity {
            self.halve();
            if self.filled < self.stride {
                return self.push(at, usage);
            }
        }
        self.samples.push(reading);
        self.filled = 1;
    }

    /// The samples, in order.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    fn halve(&mut self) {
        let odd = self.samples.len() % 2 == 1;
        self.samples = self
            .samples
            .chunks(2)
            .map(|pair| {
                let mut merged = pair[0];
                if let Some(second) = pair.get(1) {
                    merged.absorb(second);
                }
                merged
            })
            .collect();
        // Every sample was full when this is called, so a last one without neighbour is half full now.
        self.filled = if odd { self.stride } else { 2 * self.stride };
        self.stride *= 2;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filled(capacity: usize, readings: &[(u64, u64)]) -> Timeline {
        let mut timeline = Timeline::new(capacity);
        for (at, &(live, held)) in readings.iter().enumerate() {
            timeline.push(at as u64, &Usage { live, held, ..Usage::default() });
        }
        timeline
    }

    #[test]
    fn keeps_every_reading_while_there_is_room() {
        let timeline = filled(4, &[(1, 9), (2, 9), (3, 9)]);
        let live: Vec<_> = timeline.samples().iter().map(|s| (s.at, s.live)).collect();
        assert_eq!(live, [(0, 1), (1, 2), (2, 3)]);
    }

    proptest! {
        #[test]
        fn each_sample_is_the_maximum_of_its_stretch(
            capacity in 2usize..9,
            readings in prop::collection::vec((0u64..50, 0u64..50), 0..200),
        ) {
            let timeline = filled(capacity, &readings);
            let samples = timeline.samples();
            prop_assert!(samples.len() <= capacity);
            prop_assert!(samples.len() >= readings.len().min(capacity / 2));
            for (i, sample) in samples.iter().enumerate() {
                let end = samples.get(i + 1).map_or(readings.len(), |next| next.at as usize);
                let stretch = &readings[sample.at as usize..end];
                prop_assert_eq!(Some(sample.live), stretch.iter().map(|r| r.0).max());
                prop_assert_eq!(Some(sample.held), stretch.iter().map(|r| r.1).max());
            }
        }
    }
}
