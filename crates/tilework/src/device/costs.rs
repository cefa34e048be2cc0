//! What driver calls cost, as plain data: the figures the simulated devices charge.
//!
//! All were measured by us on an idle NVIDIA H200, driver 580 (CUDA 13.0), unless a source is named;
//! medians. Absolute times are that machine's, ratios hold in general.

/// A cost that depends on a size: points of (bytes, nanoseconds), by rising size.
///
/// Between two points it is linear in bytes, as zeroing and page tables are. Below the first point it
/// is the first point's cost, beyond the last one it goes on with the last slope.
#[derive(Debug, Clone, Copy)]
pub struct Curve(pub &'static [(u64, u64)]);

impl Curve {
    /// The cost at `bytes`, nanoseconds.
    ///
    /// # Panics
    /// When the curve has no points.
    pub fn at(&self, bytes: u64) -> u64 {
        let points = self.0;
        let (first, cost) = points[0];
        if bytes <= first || points.len() == 1 {
            return cost;
        }
        let upper = points.partition_point(|&(size, _)| size < bytes).min(points.len() - 1);
        let ((b0, n0), (b1, n1)) = (points[upper - 1], points[upper]);
        // Through 128 bits, and signed: a measured curve may fall.
        let rise = (i128::from(n1) - i128::from(n0)) * i128::from(bytes - b0) / i128::from(b1 - b0);
        u64::try_from((i128::from(n0) + rise).max(0)).unwrap_or(u64::MAX)
    }
}

/// The cost of a call over several pieces: once for the call, then for each piece its own.
#[derive(Debug, Clone, Copy)]
pub struct PerPiece {
    /// What a call over a single piece of this size costs, `call` included.
    pub alone: Curve,
    /// The part of it that is paid once however many pieces there are, nanoseconds.
    pub call: u64,
}

impl PerPiece {
    /// The cost of one call over pieces of these sizes (bytes), nanoseconds.
    pub fn of(&self, pieces: impl Iterator<Item = u64>) -> u64 {
        self.call + pieces.map(|bytes| self.alone.at(bytes).saturating_sub(self.call)).sum::<u64>()
    }
}

/// The cost of a call over runs of tiles: `call + runs * run + tiles * tile`, nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct PerRun {
    /// Once per call.
    pub call: u64,
    /// For each run of tiles that are adjacent both in the range and in the heap.
    pub run: u64,
    /// For each tile.
    pub tile: u64,
}

impl PerRun {
    /// The cost of one call over `runs` runs with `tiles` tiles together, nanoseconds.
    pub fn of(&self, runs: u64, tiles: u64) -> u64 {
        self.call + runs * self.run + tiles * self.tile
    }
}

/// How mapping and unmapping are charged.
#[derive(Debug, Clone, Copy)]
pub enum MapCosts {
    /// A driver call for each heap mapped, one for a whole part unmapped: CUDA.
    Handles {
        /// Mapping one handle.
        map: Curve,
        /// Setting access over a part.
        set_access: PerPiece,
        /// Unmapping a part.
        unmap: PerPiece,
    },
    /// A driver call for each run of consecutive binds on one heap, one for a part unmapped: D3D12.
    Tiles(PerRun),
}

/// What a device's calls cost.
#[derive(Debug, Clone, Copy)]
pub struct Costs {
    /// Reserving address space or giving it back, nanoseconds.
    pub reserve: u64,
    /// Creating a heap.
    pub create: Curve,
    /// Creating a heap on the host, where there are such.
    pub create_on_host: Curve,
    /// Releasing a heap.
    pub release: Curve,
    /// Mapping, setting access and unmapping.
    pub map: MapCosts,
}

const MIB: u64 = 1 << 20;

/// `cuMemAddressReserve` of 64 GiB: 18 us. The size hardly matters (16 TiB was accepted as readily), and
/// for want of a figure of its own giving back is charged the same.
const RESERVE: u64 = 18_000;

/// `cuMemCreate`.
const CREATE: Curve = Curve(&[
    (2 * MIB, 7_200),
    (16 * MIB, 7_300),
    (64 * MIB, 7_700),
    (256 * MIB, 20_800),
    (1024 * MIB, 25_900),
]);

/// `cuMemCreate` on the host, on an H100, the quicker of two runs (`docs/results/transfers.md`): on the H200 we have
/// 256 MiB only, which took 55 ms. That mapping, unmapping and releasing such a heap take longer than the
/// device's, together a sixth of what creating it takes, is not charged.
const CREATE_ON_HOST: Curve =
    Curve(&[(2 * MIB, 255_000), (32 * MIB, 6_047_000), (256 * MIB, 59_481_000), (1024 * MIB, 203_000_000)]);

/// `cuMemRelease`.
const RELEASE: Curve = Curve(&[
    (2 * MIB, 9_100),
    (16 * MIB, 15_000),
    (64 * MIB, 25_000),
    (256 * MIB, 75_000),
    (1024 * MIB, 258_000),
]);

/// CUDA virtual memory management on the H200.
pub const H200: Costs = Costs {
    reserve: RESERVE,
    create: CREATE,
    create_on_host: CREATE_ON_HOST,
    release: RELEASE,
    map: MapCosts::Handles {
        // cuMemMap.
        map: Curve(&[(2 * MIB, 700), (16 * MIB, 600), (64 * MIB, 600), (256 * MIB, 800), (1024 * MIB, 800)]),
        // cuMemSetAccess. 4 GiB as 2 MiB handles took 54 ms in one call: 26 us for each further handle,
        // which leaves 6.7 us of a lone handle's 32.7 for the call itself.
        set_access: PerPiece {
            alone: Curve(&[
                (2 * MIB, 32_700),
                (16 * MIB, 32_900),
                (64 * MIB, 33_600),
                (256 * MIB, 35_600),
                (1024 * MIB, 58_400),
            ]),
            call: 6_700,
        },
        // cuMemUnmap. 4 GiB as 2 MiB handles took 34 ms in one call: 16.6 us for each further handle,
        // which leaves 3.9 us of a lone handle's 20.5 for the call itself.
        unmap: PerPiece {
            alone: Curve(&[
                (2 * MIB, 20_500),
                (16 * MIB, 20_500),
                (64 * MIB, 20_800),
                (256 * MIB, 21_000),
                (1024 * MIB, 29_400),
            ]),
            call: 3_900,
        },
    },
};

/// D3D12 reserved resources. We have no figures of D3D12, so others stand in.
///
/// Mapping is charged as Vulkan sparse binding on lavapipe (software): 25 us for one tile, 4.1 ms for
/// 1000 scattered tiles in one batch, 1.5 ms for one run of 1000 tiles. These three fix the three
/// terms of [`PerRun`]. Creating and releasing are charged as CUDA's.
pub const D3D12: Costs = Costs {
    reserve: RESERVE,
    create: CREATE,
    create_on_host: CREATE_ON_HOST,
    release: RELEASE,
    map: MapCosts::Tiles(PerRun { call: 20_921, run: 2_603, tile: 1_476 }),
};

#[cfg(test)]
mod tests;
