//! `tilework compare`: every manager side by side, each in a process of its own.

mod model;
mod process;
mod trace;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::bail;
use serde::{Deserialize, Serialize};
use tilework::manager::{Kind, Serving};
use tilework::replay::Report;
use tilework::timeline::Sample;

use crate::choose::Replaying;
use crate::engine::{ModelOptions, peak_rss_bytes};
use crate::exit::Usage;
use crate::files;
use crate::plot::{self, Line, Panel};
use crate::run::name;
use crate::site::Site;
use crate::{table, units};

/// Compare the managers on models or traces
///
/// Runs each model under every manager and under ONNX Runtime's own arena, or replays each trace on every
/// manager, each in a process of its own so that the kernel's figures are that manager's alone, and prints
/// one table, and what auto would take. A model runs on host or, with --device cuda, on a GPU; its processes run in turn, and their outputs
/// must be the same to the bit.
/// The time of a trace's pass is what the manager took and what the device took or was charged. The peak RSS
/// is the kernel's; it counts a page as often as it is mapped, so that memory with two addresses, as stitched
/// tiles have, is in it twice. Without --verify nothing touches a trace's memory, and the peak RSS is that of
/// the books alone.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The models (*.onnx), or the traces: files, as every process reads them from their beginning
    #[arg(required = true, value_name = "MODEL|TRACE")]
    inputs: Vec<PathBuf>,

    /// Timed runs of a model, after two that are not [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    runs: Option<u32>,

    #[command(flatten)]
    model_options: ModelOptions,

    /// Passes over each trace; the last one is the one after warm-up
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,

    #[command(flatten)]
    replaying: Replaying,

    /// Draw every manager's held bytes in one picture
    #[arg(long, value_name = "SVG")]
    plot: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  tilework compare model.onnx --shape latent=1x4x64x64 --plot held.svg
  tilework compare model.onnx --shape latent=1x4x96x96 --device cuda
  tilework compare trace.csv.gz --plot held.svg
  tilework compare trace.csv.gz --device host --verify --scale 0.1";

/// Runs the subcommand.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let inputs = args.inputs.iter().map(|input| ("what is compared", input.as_path()));
    let reads: Vec<_> = inputs.chain(args.model_options.files()).collect();
    files::check_regular(&reads)?;
    files::check(&reads, &[("--plot", args.plot.as_deref())])?;
    let is_model = |path: &&PathBuf| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx"));
    match args.inputs.iter().filter(is_model).count() {
        0 => run_traces(args),
        n if n == args.inputs.len() => run_models(args),
        _ => {
            Err(Usage("models and traces have different figures: compare them in separate calls".into())
                .into())
        }
    }
}

fn run_models(args: &Args) -> anyhow::Result<()> {
    if args.replaying.verify || args.replaying.scale != 1.0 {
        return Err(Usage("--verify and --scale are for traces".into()).into());
    }
    args.model_options.check()?;
    let site = Site::open(args.replaying.device.as_deref().unwrap_or("host"))?;
    let mut all = Vec::new();
    let mut outcome = Ok(());
    for input in &args.inputs {
        match model::compare(args, &site, input) {
            Ok(compared) => all.push(compared),
            Err(error) => {
                // What is done is still shown.
                outcome = Err(if args.inputs.len() > 1 { error.context(name(input)) } else { error });
                break;
            }
        }
    }
    let outcome = model::print(args, &all).and(outcome);
    if let Some(path) = &args.plot
        && !all.is_empty()
    {
        let panels: Vec<_> = all.into_iter().map(model::Compared::panel).collect();
        plot::write(path, &panels)?;
    }
    outcome
}

fn run_traces(args: &Args) -> anyhow::Result<()> {
    if args.runs.is_some() || args.model_options.names_inputs() {
        return Err(Usage("--runs, --shape and --input are for models; a trace has --repeat".into()).into());
    }
    let last = format!("pass {}", args.repeat);
    let header = [
        "trace",
        "manager",
        "peak live",
        "peak held",
        "held/live",
        "peak RSS",
        "pass 1",
        &last,
        "calls in it",
    ];
    let mut table = vec![header.map(str::to_owned).to_vec()];
    let mut panels = Vec::new();
    let mut notes = Vec::new();
    let mut failures = 0;
    for input in &args.inputs {
        let compared = trace::compare(args, input)?;
        failures += compared.outcomes.iter().filter(|outcome| outcome.measured.is_none()).count();
        // Each input finds the same on the device.
        notes = compared.notes();
        table.extend(compared.outcomes.iter().map(|outcome| outcome.row(input)));
        panels.push(compared.panel());
    }
    let runs = table.len() - 1;
    if args.repeat == 1 {
        // The last pass is the first.
        for row in &mut table {
            row.remove(LAST_PASS);
        }
    }
    print(args, &table)?;
    for note in notes {
        writeln!(io::stdout(), "note: {note}")?;
    }
    if let Some(path) = &args.plot {
        plot::write(path, &panels)?;
    }
    if failures > 0 {
        bail!("{failures} of {runs} runs failed: the reasons are above");
    }
    Ok(())
}

/// The column with the time of the last pass.
const LAST_PASS: usize = 7;

/// One input under every manager.
struct Compared {
    title: String,
    /// Events in a pass.
    events: u64,
    outcomes: Vec<Outcome>,
}

/// One input under one manager.
struct Outcome {
    asked: Kind,
    label: String,
    /// None when the run failed, for a reason that its process has printed.
    measured: Option<Measured>,
}

/// What one run has come to.
struct Measured {
    peak_live_bytes: u64,
    peak_held_bytes: u64,
    first_us: f64,
    last_us: f64,
    last_calls: u64,
    serving: Serving,
    details: Details,
}

impl Compared {
    /// What there is to say about who served.
    fn notes(&self) -> Vec<String> {
        let served = self
            .outcomes
            .iter()
            .filter_map(|outcome| Some((outcome.asked, &outcome.measured.as_ref()?.serving)));
        served.filter_map(|(asked, serving)| note(asked, serving)).collect()
    }

    fn panel(self) -> Panel {
        let lines = self.outcomes.into_iter().filter_map(|outcome| {
            let Outcome { label, measured, .. } = outcome;
            measured.map(|measured| Line { label, samples: measured.details.timeline })
        });
        Panel::of_trace(&self.title, self.events, lines.collect())
    }
}

impl Outcome {
    fn row(&self, input: &Path) -> Vec<String> {
        let mut row = vec![name(input), self.label.clone()];
        match &self.measured {
            Some(measured) => row.extend([
                units::bytes(measured.peak_live_bytes),
                units::bytes(measured.peak_held_bytes),
                units::ratio(measured.peak_held_bytes, measured.peak_live_bytes),
                measured.details.peak_rss_bytes.map_or("-".to_owned(), units::bytes),
                units::micros(measured.first_us),
                units::micros(measured.last_us),
                units::count(measured.last_calls),
            ]),
            None => {
                row.push("failed".to_owned());
                row.extend(vec!["-".to_owned(); 6]);
            }
        }
        row
    }
}

/// What there is to say about the manager that serves where `asked` was asked for.
fn note(asked: Kind, serving: &Serving) -> Option<String> {
    match asked {
        // What `auto` asks for, and what takes its place.
        Kind::Tiled => Some(format!("with auto, {}", serving.why)),
        _ => serving.fallback().map(str::to_owned),
    }
}

/// Prints a table, its header first; the inputs, in the first column, are named where there are several.
fn print(args: &Args, table: &[Vec<String>]) -> io::Result<()> {
    let skip = usize::from(args.inputs.len() == 1);
    let table: Vec<Vec<String>> = table.iter().map(|row| row[skip..].to_vec()).collect();
    table::print(&table[0], 2 - skip, &table[1..])
}

/// What a child process tells beside its report.
#[derive(Serialize, Deserialize)]
pub struct Details {
    /// The most memory of the process that was ever resident, bytes, by the kernel.
    peak_rss_bytes: Option<u64>,
    /// Live and held by event, when asked for.
    timeline: Vec<Sample>,
}

impl Details {
    /// Those of this process, which has made `report`.
    pub fn of(report: &Report) -> Details {
        Details {
            peak_rss_bytes: peak_rss_bytes(),
            timeline: report.timeline.as_ref().map(|t| t.samples().to_vec()).unwrap_or_default(),
        }
    }
}
