//! Comparing the managers on a trace.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, bail};
use serde::Deserialize;
use tilework::manager::{Kind, Serving};

use super::{Args, Compared, Details, Measured, Outcome};
use crate::child;
use crate::exit::Usage;

/// Replays `input` on every manager, one process after the other so that none slows another.
pub fn compare(args: &Args, input: &Path) -> anyhow::Result<Compared> {
    // A trace that makes no sense is refused once, here, and not by every child.
    let trace = args.replaying.load(input)?;
    let device = args.replaying.device();
    let outcomes =
        Kind::ALL.into_iter().map(|kind| replay(args, input, kind)).collect::<anyhow::Result<_>>()?;
    Ok(Compared {
        title: format!("{} on {device}", trace.name()),
        events: trace.steps().len() as u64,
        outcomes,
    })
}

/// What is used of the object that `replay --json --details` prints.
#[derive(Deserialize)]
struct Report {
    manager: Kind,
    why: String,
    fallback: Option<String>,
    peak_live_bytes: u64,
    peak_held_bytes: u64,
    passes: Vec<Pass>,
    details: Details,
}

#[derive(Deserialize)]
struct Pass {
    allocations: u64,
    frees: u64,
    device_calls: BTreeMap<String, u64>,
    device_us: f64,
    policy_ns_per_op: f64,
}

impl Pass {
    fn micros(&self) -> f64 {
        self.device_us + self.policy_ns_per_op * (self.allocations + self.frees) as f64 / 1000.0
    }
}

fn replay(args: &Args, input: &Path, kind: Kind) -> anyhow::Result<Outcome> {
    let mut command = child::command()?;
    command
        .args(["replay", "--json", "--details"])
        .args([format!("--manager={kind}"), format!("--repeat={}", args.repeat)])
        .args(args.replaying.arguments())
        .args(args.plot.is_some().then_some("--timeline"))
        .arg("--")
        .arg(input)
        // Where that is /dev/stdin.
        .stdin(Stdio::inherit())
        // Logs, errors and progress of the child are this command's own.
        .stderr(Stdio::inherit());
    let output = command.output().context("cannot start a process for a manager")?;
    match output.status.code() {
        Some(0) => {}
        Some(2) => return Err(Usage(format!("{kind} cannot be run in this way: the reason is above")).into()),
        Some(_) => return Ok(Outcome { asked: kind, label: kind.to_string(), measured: None }),
        None => bail!("the process of {kind} was killed ({}): is there enough memory?", output.status),
    }
    let report: Report = serde_json::from_slice(&output.stdout).context("a child printed something else")?;
    let (Some(first), Some(last)) = (report.passes.first(), report.passes.last()) else {
        bail!("the process of {kind} reported no pass");
    };
    let label = match report.fallback {
        Some(_) => format!("{kind} (fell back)"),
        None => kind.to_string(),
    };
    let serving = Serving { kind: report.manager, why: report.why, fell_back: report.fallback.is_some() };
    let measured = Measured {
        peak_live_bytes: report.peak_live_bytes,
        peak_held_bytes: report.peak_held_bytes,
        first_us: first.micros(),
        last_us: last.micros(),
        last_calls: last.device_calls.values().sum(),
        serving,
        details: report.details,
    };
    Ok(Outcome { asked: kind, label, measured: Some(measured) })
}
