//! `tilework replay`: one trace on one manager, pass by pass.

use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;
use tilework::manager::{Choice, Manager};
use tilework::record::Recorder;
use tilework::replay::{ReplayError, ReplayOptions, Report, replay};
use tilework::timeline::POINTS;
use tilework::trace::Trace;

use crate::choose::{Replaying, open};
use crate::compare::Details;
use crate::exit::Usage;
use crate::files;
use crate::plot::{self, Line, Panel};
use crate::progress::Progress;
use crate::{table, units};

/// Replay an allocation trace on one manager
///
/// Serves every request of the trace, pass after pass on the same manager, and reports what was live,
/// what was held, and what the device had to do. Without options: the manager that suits the device, on the
/// simulated device sim-h200, three passes, so that the last one shows the steady state.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The trace: CSV `time_us,op,id,bytes,stream`, gzip-compressed or plain
    trace: PathBuf,

    /// Who serves: tiled, placed, bucketized, committed, or auto, the safe choice: tiled where the device maps
    /// tiles, else placed
    #[arg(long, value_name = "NAME", default_value_t = Choice::Auto)]
    manager: Choice,

    /// Passes over the trace [default: 3, 1 with --record]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repeat: Option<u32>,

    #[command(flatten)]
    replaying: Replaying,

    /// Record what the manager was asked, all passes, as a trace
    #[arg(long, value_name = "TRACE")]
    record: Option<PathBuf>,

    /// Draw live and held bytes over the passes
    #[arg(long, value_name = "SVG")]
    plot: Option<PathBuf>,

    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,

    /// Add to the JSON what `compare` needs from its child processes
    #[arg(long, hide = true, requires = "json")]
    details: bool,

    /// Add the timeline to the details
    #[arg(long, hide = true, requires = "details")]
    timeline: bool,
}

const EXAMPLES: &str = "\
Examples:
  tilework replay trace.csv.gz
  tilework replay trace.csv.gz --manager bucketized --device sim-d3d12 --repeat 5 --json
  tilework replay trace.csv.gz --device cuda --repeat 5
  tilework replay trace.csv.gz --device vulkan --verify --scale 0.02
  tilework replay trace.csv.gz --verify --scale 0.1 --limit 2GiB --plot held.svg";

/// Runs the subcommand.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let Replaying { managing, verify, .. } = &args.replaying;
    let writes = [("--record", args.record.as_deref()), ("--plot", args.plot.as_deref())];
    files::check(&[("the trace", &args.trace)], &writes)?;
    let trace = args.replaying.load(&args.trace)?;
    let built = managing.build(args.manager, open(args.replaying.device())?)?;
    let options = ReplayOptions {
        repeat: args.repeat.unwrap_or(if args.record.is_some() { 1 } else { 3 }),
        verify: *verify,
        timeline: (args.plot.is_some() || args.timeline).then_some(POINTS),
    };

    let mut report = match &args.record {
        Some(path) => {
            let mut recorder = Recorder::new(built.manager, path)?;
            let report = observed(&trace, &mut recorder, &options)?;
            recorder.finish()?;
            report
        }
        None => {
            let mut manager = built.manager;
            observed(&trace, manager.as_mut(), &options)?
        }
    };
    report.fallback = built.serving.fallback().map(str::to_owned);
    report.why = Some(built.serving.why);

    if let Some(path) = &args.plot {
        plot::write(path, &[panel(&trace, &report)])?;
    }
    if args.json { print_json(args, &report) } else { print_table(&trace, &report) }
}

fn observed(trace: &Trace, manager: &mut dyn Manager, options: &ReplayOptions) -> anyhow::Result<Report> {
    let total = trace.steps().len() as u64 * u64::from(options.repeat);
    let (kind, device) = (manager.kind(), manager.device().name());
    let mut progress = Progress::new(kind.to_string(), total);
    replay(trace, manager, options, &mut progress).map_err(|error| match error {
        ReplayError::NoMemory { .. } => Usage(error.to_string()).into(),
        // Named, since compare's children report on the same stderr.
        error => anyhow::Error::new(error).context(format!("{kind} on {device}")),
    })
}

/// The object of `--json`.
#[derive(Serialize)]
struct Printed<'a> {
    #[serde(flatten)]
    report: &'a Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
}

fn print_json(args: &Args, report: &Report) -> anyhow::Result<()> {
    let printed = Printed { report, details: args.details.then(|| Details::of(report)) };
    writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&printed)?)?;
    Ok(())
}

fn print_table(trace: &Trace, report: &Report) -> anyhow::Result<()> {
    let mut out = io::stdout();
    writeln!(
        out,
        "{}: {} allocations, {} blocks live at most",
        trace.name(),
        units::count(trace.allocations()),
        units::count(trace.slots() as u64)
    )?;
    writeln!(
        out,
        "{} on {}: peak live {}, peak held {}, held/live {}",
        report.manager,
        report.device,
        units::bytes(report.peak_live_bytes),
        units::bytes(report.peak_held_bytes),
        units::ratio(report.peak_held_bytes, report.peak_live_bytes)
    )?;
    if let Some(why) = &report.why {
        writeln!(out, "note: {why}")?;
    }
    let header = [
        "pass",
        "peak held",
        "held/live",
        "reserve",
        "create",
        "map",
        "access",
        "unmap",
        "release",
        "device",
        "policy/op",
    ];
    let rows: Vec<Vec<String>> = (1..)
        .zip(&report.passes)
        .map(|(number, pass)| {
            let calls = &pass.device_calls;
            let counts =
                [calls.reserve, calls.create, calls.map, calls.set_access, calls.unmap, calls.release];
            let mut row = vec![
                number.to_string(),
                units::bytes(pass.peak_held_bytes),
                units::ratio(pass.peak_held_bytes, pass.peak_live_bytes),
            ];
            row.extend(counts.map(units::count));
            row.push(units::micros(pass.device_us));
            row.push(format!("{:.0} ns", pass.policy_ns_per_op));
            row
        })
        .collect();
    table::print(&header.map(str::to_owned), 1, &rows)?;
    Ok(())
}

fn panel(trace: &Trace, report: &Report) -> Panel {
    let samples = report.timeline.as_ref().map(|t| t.samples().to_vec()).unwrap_or_default();
    let label = report.manager.to_string();
    let title = format!("{} on {}", trace.name(), report.device);
    Panel::of_trace(&title, trace.steps().len() as u64, vec![Line { label, samples }])
}
