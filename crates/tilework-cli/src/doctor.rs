//! `tilework doctor`: which devices there are, what they can do, what serves on them, and how to mend what does not work.
//!
//! Drivers are asked in processes of their own: one that dies takes none of the others' answers with it.

mod cuda;
mod d3d12;
mod found;
mod limits;
mod vulkan;

use std::io::{self, Write};
use std::process::Command;

use anyhow::{Context, bail};
use clap::ValueEnum;
use serde::Serialize;
use tilework::device;

use self::found::Found;
use self::limits::Limit;
use crate::engine::kib_of;
use crate::{table, units};

/// What to do where the device `host` does not open.
const HOST_FIX: &str =
    "use Linux 3.17 or later, and in a container a seccomp profile that lets memfd_create and mmap through";

/// List the devices, what they can do, and how to mend what does not work
///
/// Prints every device with its tier (tiles: any part of a heap maps anywhere; whole heaps: heaps map as a whole; none:
/// nothing maps), its tile, its memory and the manager that auto takes there, then what its driver says; then the limits
/// of this system and of this process. What does not work comes with the reason and with what to do about it.
///
/// What auto takes is the safe choice on each device: tiled on host, sim-h200, sim-d3d12 and null, which map tiles; on
/// cuda where the GPU has virtual memory management, on vulkan where it has sparse buffers, on d3d12 where it has tiled
/// resources, else placed.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,

    /// Print what one kind of driver finds, as JSON: what a process of the doctor's does
    #[arg(long, hide = true)]
    probe: Option<Driver>,
}

const EXAMPLES: &str = "\
Examples:
  tilework doctor
  tilework doctor --json

Exit codes: 0 if a device that has memory works (host does on every Linux), 1 if none.";

/// A kind of driver.
#[derive(Clone, Copy, ValueEnum)]
enum Driver {
    Cuda,
    Vulkan,
    D3d12,
}

/// The object of `--json`.
#[derive(Serialize)]
struct Report {
    /// Whether a device that has memory works.
    ok: bool,
    devices: Vec<Found>,
    limits: Vec<Limit>,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if let Some(driver) = args.probe {
        writeln!(io::stdout(), "{}", serde_json::to_string(&driver.find())?)?;
        return Ok(());
    }
    let mut devices: Vec<_> = device::NAMES.into_iter().map(of_library).collect();
    for &driver in Driver::value_variants() {
        devices.extend(driver.ask());
    }
    let report = Report::new(devices, limits::read());
    match args.json {
        true => writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&report)?)?,
        false => report.print()?,
    }
    report.verdict()
}

/// A device that the library itself has.
fn of_library(name: &str) -> Found {
    let what = match name {
        "host" => "memory of the host",
        "null" => "no memory, and free: to time the policy",
        _ => "no memory: rules and costs of a GPU, simulated",
    };
    match device::open(name) {
        Ok(device) if name == "host" => Found {
            total_bytes: kib_of("/proc/meminfo", "MemTotal:"),
            free_bytes: kib_of("/proc/meminfo", "MemAvailable:"),
            ..Found::working(&*device, what)
        },
        Ok(device) => Found::working(&*device, what),
        Err(error) => Found::broken(name, what, error, HOST_FIX),
    }
}

impl Driver {
    fn name(self) -> &'static str {
        match self {
            Driver::Cuda => "cuda",
            Driver::Vulkan => "vulkan",
            Driver::D3d12 => "d3d12",
        }
    }

    /// What it finds, by this process.
    fn find(self) -> Vec<Found> {
        match self {
            Driver::Cuda => cuda::find(),
            Driver::Vulkan => vulkan::find(),
            Driver::D3d12 => d3d12::find(),
        }
    }

    /// What it finds, by a process of its own.
    fn ask(self) -> Vec<Found> {
        self.ask_process().unwrap_or_else(|error| {
            let fix = "update or reinstall the driver, and see what the kernel's log (dmesg) says";
            vec![Found::broken(self.name(), "", format!("{error:#}"), fix)]
        })
    }

    fn ask_process(self) -> anyhow::Result<Vec<Found>> {
        let program = std::env::current_exe().context("cannot find the program itself to start it again")?;
        let output = Command::new(program).args(["doctor", "--probe", self.name()]).output();
        let output = output.context("cannot start a process to look for it")?;
        let words = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            bail!("the driver ended the process that looked for it ({}): {}", output.status, words.trim());
        }
        // Drivers may have said something first.
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(text.lines().next_back().unwrap_or_default())
            .with_context(|| format!("the process that looked for it said nothing of use: {}", words.trim()))
    }
}

impl Report {
    fn new(devices: Vec<Found>, limits: Vec<Limit>) -> Report {
        let has_memory = |found: &Found| found.name == "host" || !device::NAMES.contains(&&*found.name);
        Report { ok: devices.iter().any(|found| found.works && has_memory(found)), devices, limits }
    }

    /// How the command ends.
    fn verdict(&self) -> anyhow::Result<()> {
        match self.ok {
            true => Ok(()),
            false => bail!("no device that has memory works: the reasons are above"),
        }
    }

    fn print(&self) -> io::Result<()> {
        let header =
            ["device", "what it is", "tier", "auto takes", "tile", "longest range", "memory", "free"];
        let rows: Vec<_> = self.devices.iter().map(row).collect();
        table::print(&header.map(str::to_owned), 4, &rows)?;
        let mut out = io::stdout().lock();
        for found in &self.devices {
            let cuda = found.cuda.iter().flat_map(cuda::Details::lines);
            let vulkan = found.vulkan.iter().flat_map(vulkan::Details::lines);
            let d3d12 = found.d3d12.iter().flat_map(d3d12::Details::lines);
            let problem = found.problem.iter().map(|problem| format!("does not work: {problem}"));
            let why = found.auto.iter().map(|auto| auto.why.clone());
            let fix = found.fix.iter().map(|fix| format!("to do: {fix}"));
            writeln!(out, "\n{}", found.name)?;
            for line in cuda.chain(vulkan).chain(d3d12).chain(problem).chain(why).chain(fix) {
                writeln!(out, "  {line}")?;
            }
        }
        writeln!(out)?;
        drop(out);
        if self.limits.is_empty() {
            return Ok(());
        }
        let rows: Vec<_> = self
            .limits
            .iter()
            .map(|limit| {
                let used = limit.used.map_or("-".to_owned(), limits::Amount::text);
                vec![limit.name.clone(), limit.bounds.to_owned(), limit.value.text(), used]
            })
            .collect();
        table::print(&["limit", "of what", "value", "in use"].map(str::to_owned), 2, &rows)?;
        for limit in &self.limits {
            if let Some(fix) = &limit.fix {
                writeln!(io::stdout(), "low: {}: {fix}", limit.name)?;
            }
        }
        Ok(())
    }
}

fn row(found: &Found) -> Vec<String> {
    let bytes = |figure: Option<u64>| figure.map_or("-".to_owned(), units::bytes);
    let caps = found.capabilities.as_ref();
    let what = match (found.works, &*found.what) {
        (true, what) => what.to_owned(),
        (false, "") => "does not work".to_owned(),
        (false, what) => format!("{what}: does not work"),
    };
    vec![
        found.name.clone(),
        what,
        caps.map_or("-", |caps| caps.tier.name()).to_owned(),
        found.auto.as_ref().map_or("-", |auto| auto.manager.name()).to_owned(),
        bytes(caps.map(|caps| caps.tile_bytes)),
        bytes(caps.map(|caps| caps.longest_range_bytes)),
        bytes(found.total_bytes),
        bytes(found.free_bytes),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_that_have_memory_decide_how_the_command_ends() {
        let with = |host| {
            let cuda = Found::broken("cuda", "", "no driver", "install it");
            Report::new(vec![host, of_library("null"), cuda], Vec::new())
        };
        let failing = with(Found::broken("host", "memory of the host", "memfd_create failed", HOST_FIX));
        assert!(failing.verdict().is_err() && !failing.ok);
        let gpu = with(Found { name: "vulkan".to_owned(), ..of_library("null") });
        assert!(gpu.verdict().is_ok() && gpu.ok, "a GPU without the host's device will do");
        let found = with(of_library("host"));
        assert_eq!(
            (found.verdict().is_ok(), found.ok),
            (cfg!(target_os = "linux"), cfg!(target_os = "linux"))
        );
    }
}
