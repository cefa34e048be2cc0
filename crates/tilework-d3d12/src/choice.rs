//! What an adapter can do, and what its memory is made of therefore.

use std::fmt;

use crate::error::D3d12Error;

/// What ranges and heaps are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Ranges are reserved buffers, and tiles of heaps are mapped into them.
    Tiled,
    /// Each heap has one placed buffer over all of it.
    Placed,
    /// Each heap is a committed buffer.
    Committed,
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backing::Tiled => "reserved buffers",
            Backing::Placed => "placed buffers",
            Backing::Committed => "committed buffers",
        })
    }
}

/// What a device's memory is made of, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The device's `TiledResourcesTier`, 0 to 4.
    pub tier: u8,
    /// What was chosen.
    pub backing: Backing,
    /// One sentence that says why.
    pub reason: String,
}

/// An adapter that DXGI found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its index, by which [`open`](crate::open) takes it.
    pub index: u32,
    /// What it is called.
    pub name: String,
    /// The memory it has, bytes: its own, and the system's too where it has no other. 0 where it does not tell.
    pub memory_bytes: u64,
    /// What it would be as a device, or why it cannot be one.
    pub choice: Result<Choice, D3d12Error>,
}

#[cfg(any(windows, test))]
impl Choice {
    /// Chooses by the tier, never by what calls return: an implementation of tier 0 may make reserved buffers and ignore
    /// what is mapped to them. What the tier allows is tried once on a buffer of one tile, by `make`.
    ///
    /// # Errors
    /// Those of the last that was tried, when none can be made.
    pub(crate) fn of(
        tier: u8,
        mut make: impl FnMut(Backing) -> Result<(), D3d12Error>,
    ) -> Result<Choice, D3d12Error> {
        let mut reason = if tier == 0 {
            "the device has no tiled resources (TiledResourcesTier 0)".to_owned()
        } else {
            match make(Backing::Tiled) {
                Ok(()) => {
                    let reason = format!("the device has tiled resources (TiledResourcesTier {tier})");
                    return Ok(Choice { tier, backing: Backing::Tiled, reason });
                }
                Err(error) => {
                    format!("it has TiledResourcesTier {tier} and makes no reserved buffer ({error})")
                }
            }
        };
        match make(Backing::Placed) {
            Ok(()) => return Ok(Choice { tier, backing: Backing::Placed, reason }),
            Err(error) => reason += &format!(", and makes no placed buffer ({error})"),
        }
        make(Backing::Committed)?;
        Ok(Choice { tier, backing: Backing::Committed, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Hresult;

    fn refused() -> D3d12Error {
        D3d12Error::Refused { function: "CreateHeap", code: Hresult::OUT_OF_MEMORY }
    }

    /// What is chosen on a device of a tier that makes some of the three, and what was tried.
    fn choose(tier: u8, makes: &[Backing]) -> (Result<Choice, D3d12Error>, Vec<Backing>) {
        let mut tried = Vec::new();
        let choice = Choice::of(tier, |backing| {
            tried.push(backing);
            if makes.contains(&backing) { Ok(()) } else { Err(refused()) }
        });
        (choice, tried)
    }

    #[test]
    fn reserved_buffers_are_not_even_tried_without_a_tier() {
        let (choice, tried) = choose(0, &[Backing::Tiled, Backing::Placed, Backing::Committed]);
        let choice = choice.unwrap();
        assert_eq!((choice.tier, choice.backing), (0, Backing::Placed));
        assert_eq!(tried, [Backing::Placed]);
        assert!(choice.reason.contains("TiledResourcesTier 0"), "{}", choice.reason);
    }

    #[test]
    fn every_tier_above_has_reserved_buffers() {
        for tier in 1..=4 {
            let (choice, tried) = choose(tier, &[Backing::Tiled, Backing::Placed, Backing::Committed]);
            assert_eq!(choice.unwrap().backing, Backing::Tiled);
            assert_eq!(tried, [Backing::Tiled]);
        }
    }

    #[test]
    fn what_is_refused_is_passed_over_and_told() {
        let (choice, _) = choose(2, &[Backing::Placed, Backing::Committed]);
        let choice = choice.unwrap();
        assert_eq!(choice.backing, Backing::Placed);
        assert!(
            choice.reason.contains("no reserved buffer (CreateHeap: E_OUTOFMEMORY)"),
            "{}",
            choice.reason
        );
        let (choice, _) = choose(0, &[Backing::Committed]);
        let choice = choice.unwrap();
        assert_eq!(choice.backing, Backing::Committed);
        assert!(choice.reason.contains("no placed buffer"), "{}", choice.reason);
        let (choice, tried) = choose(1, &[]);
        assert_eq!(choice, Err(refused()));
        assert_eq!(tried, [Backing::Tiled, Backing::Placed, Backing::Committed]);
    }
}
