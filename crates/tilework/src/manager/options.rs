//! How a manager is to behave.

/// The settings of the managers; each takes those that concern it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How much physical memory `tiled` and `placed` create at once when they grow, bytes. Growth takes
    /// what lacks, in heaps of at most this much; where heaps map whole, of three quarters of it at most.
    pub heap_bytes: u64,
    /// How many executions in a row a cached mapping may go unused before `tiled` undoes it.
    pub mapping_age: u32,
    /// How many executions in a row a heap may stay empty before `tiled` and `placed` release it.
    pub heap_age: u32,
    /// Which requests `bucketized` pools.
    pub rounding: Rounding,
}

impl Default for Options {
    fn default() -> Options {
        Options { heap_bytes: 64 << 20, mapping_age: 5, heap_age: 5, rounding: Rounding::default() }
    }
}

/// Which requests `bucketized` serves from its buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rounding {
    /// All, rounded up to their bucket: the mode for temporaries.
    #[default]
    PowerOfTwo,
    /// Only those as large as their bucket already; the rest are made to size: the mode for weights.
    Exact,
}
