//! What a replay found, as plain data.

use serde::Serialize;

use crate::device::Calls;
use crate::manager::Kind;
use crate::timeline::Timeline;

/// The report of a replay. Its serialised form is that of `tilework replay --json`, and its names are
/// a contract.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The trace's name.
    pub trace: String,
    /// The manager that served.
    pub manager: Kind,
    /// Why this one: one sentence. Filled in by who chose it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The device under it.
    pub device: &'static str,
    /// The same sentence, when another manager served than was asked for. Filled in by who chose it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// The most bytes live in any pass.
    pub peak_live_bytes: u64,
    /// The most bytes of physical memory held in any pass.
    pub peak_held_bytes: u64,
    /// Each pass, in order.
    pub passes: Vec<PassReport>,
    /// Live and held by event, all passes together, when asked for.
    #[serde(skip)]
    pub timeline: Option<Timeline>,
}

/// The report of one pass over the trace.
#[derive(Debug, Clone, Serialize)]
pub struct PassReport {
    /// Requests served.
    pub allocations: u64,
    /// Blocks freed, those that the trace left live among them.
    pub frees: u64,
    /// The most bytes live in this pass.
    pub peak_live_bytes: u64,
    /// The most bytes of physical memory held in this pass.
    pub peak_held_bytes: u64,
    /// Calls the device served, the end of the execution among them.
    pub device_calls: Calls,
    /// Time in these calls, microseconds: measured on real devices, charged on simulated ones.
    pub device_us: f64,
    /// Time per event of the trace outside the device, nanoseconds. Verifying is not in it, but the caches
    /// it empties are: measure without.
    pub policy_ns_per_op: f64,
}
