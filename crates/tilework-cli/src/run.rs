//! `tilework run`: a model through ONNX Runtime on one manager, run by run; several are a [`pipeline`].

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use tilework::device::Calls;
use tilework::manager::{Choice, Kind};
use tilework::replay::Observer;
use tilework_ort::{Output, fingerprint};

use crate::choose::{Managing, parse_device};
use crate::engine::{Engine, ModelOptions, Subject, peak_rss_bytes, save};
use crate::files;
use crate::pipeline::{self, Keep, parse_keep};
use crate::plot::{self, Line, Panel};
use crate::progress::Progress;
use crate::site::Site;
use crate::units::parse_bytes;
use crate::{table, units};

/// Run a model through ONNX Runtime on one manager, or several in one process
///
/// Registers the manager as the allocator of a stock ONNX Runtime, loads the model and runs it, and
/// reports what was live, what was held, and what the device had to do in each run.
///
/// Several models are a pipeline: run in order, from one pool, which is theirs together. The weights of each are a group, resident
/// while the model runs. What lacks memory under --budget evicts the weights used longest ago: their contents go to
/// the host, and come back before the model runs again: where the budget has room for both, while the one before it runs.
/// Weights are copied to the host once, the first time they leave. The copy is kept to the end, so count with as much memory of
/// the host as the weights of all models that ever leave.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The model, an ONNX file; of several, run in order, one may be named more than once and has a session for each
    #[arg(required = true, value_name = "MODEL")]
    pub models: Vec<PathBuf>,

    /// Who serves: tiled, placed, bucketized, committed, or auto, the safe choice: tiled where the device maps
    /// tiles, else placed; several models take tiled or auto
    #[arg(long, value_name = "NAME", default_value_t = Choice::Auto)]
    pub manager: Choice,

    /// Where it runs: host (the CPU), cuda or cuda:N (an NVIDIA GPU, the first or the one numbered N)
    #[arg(long, value_name = "NAME", value_parser = parse_device, default_value = "host")]
    pub device: String,

    /// How often to run the model, or all of them in order
    #[arg(long, visible_alias = "loop", value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,

    /// The most physical memory to hold, such as 6GiB: models that are not running leave when it lacks [default: no limit]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, conflicts_with = "limit")]
    pub budget: Option<u64>,

    /// Where the weights of models that left are kept, to the end: pinned=BYTES, in memory that a GPU copies by itself, up to
    /// so much, best as much as all weights; DIR, what exceeds that in files there [default: ordinary memory]
    #[arg(long, value_name = "pinned=BYTES|DIR", value_parser = parse_keep)]
    pub keep: Vec<Keep>,

    /// Use memory of the host, at the bus's speed, where the budget does not suffice and nothing can leave
    #[arg(long)]
    pub spill: bool,

    #[command(flatten)]
    pub model_options: ModelOptions,

    #[command(flatten)]
    pub managing: Managing,

    /// Record what the manager was asked as a trace, from loading the model to unloading it
    #[arg(long, value_name = "TRACE")]
    pub record: Option<PathBuf>,

    /// Draw live and held bytes over the runs, of several models with where each one's weights are
    #[arg(long, value_name = "SVG")]
    pub plot: Option<PathBuf>,

    /// Save the last run's output as a NumPy file; several outputs as FILE.NAME.npy each, those of
    /// several models as FILE.MODEL.npy
    #[arg(long, value_name = "NPY")]
    pub save: Option<PathBuf>,

    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

impl Args {
    /// Whether weights are groups.
    fn is_pipeline(&self) -> bool {
        self.models.len() > 1 || self.budget.is_some() || self.spill || !self.keep.is_empty()
    }
}

const EXAMPLES: &str = "\
Examples:
  tilework run model.onnx --shape latent=1x4x64x64
  tilework run model.onnx --input latent=latent.npy --save out.npy --limit 2GiB
  tilework run model.onnx --shape latent=1x4x64x64 --device cuda
  tilework run text.onnx unet.onnx vae.onnx --budget 6GiB --keep pinned=8GiB --loop 4 --device cuda --plot held.svg
  tilework run model.onnx --manager bucketized --record trace.csv.gz --plot held.svg --json";

/// The object of `--json`.
#[derive(Serialize)]
struct Report {
    model: String,
    /// The one that served.
    manager: Kind,
    /// Why this one.
    why: String,
    device: String,
    /// The same sentence, when another served than was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    fallback: Option<String>,
    onnxruntime: String,
    onnxruntime_library: PathBuf,
    peak_live_bytes: u64,
    peak_held_bytes: u64,
    /// The most of the host's memory that the process ever had resident, by the kernel.
    peak_rss_bytes: Option<u64>,
    runs: Vec<Run>,
    outputs: Vec<Shape>,
    /// SHA-256 over names, types, shapes and bits of the last run's outputs.
    fingerprint: String,
}

#[derive(Serialize)]
struct Run {
    us: f64,
    peak_live_bytes: u64,
    peak_held_bytes: u64,
    device_calls: Calls,
    device_us: f64,
}

/// An output's name, type and shape.
#[derive(Clone, Serialize)]
pub struct Shape {
    name: String,
    element: &'static str,
    shape: Vec<u64>,
}

impl Shape {
    pub fn of(output: &Output) -> Shape {
        Shape { name: output.name().into(), element: output.element().name(), shape: output.shape().into() }
    }
}

/// Runs the subcommand.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let models = args.models.iter().map(|model| ("the model", model.as_path()));
    let reads: Vec<_> = models.chain(args.model_options.files()).collect();
    let writes = [("--record", &args.record), ("--plot", &args.plot), ("--save", &args.save)];
    args.model_options.check()?;
    files::check(&reads, &writes.map(|(what, path)| (what, path.as_deref())))?;
    match &args.models[..] {
        [model] if !args.is_pipeline() => run_one(args, model),
        _ => pipeline::run(args),
    }
}

fn run_one(args: &Args, model: &Path) -> anyhow::Result<()> {
    let site = Site::open(&args.device)?;
    let found = site.library(&args.model_options)?;
    let subject = Subject::Manager(args.manager);
    let loading = Progress::of_unknown(format!("loading {}", model.display()));
    let mut engine = Engine::load(
        &found.library,
        model,
        &args.model_options,
        subject,
        &args.managing,
        &site,
        args.record.as_deref(),
    )?;
    drop(loading);
    let serving = engine.serving.clone().context("the arena serves")?;
    let mut progress = Progress::new(serving.kind.to_string(), u64::from(args.runs));
    let mut runs = Vec::new();
    // What loading the model took counts as part of the first run.
    let mut calls = Calls::default();
    let mut last = None;
    for number in 1..=u64::from(args.runs) {
        // The last run's outputs go first: keeping them would make the next run's peak higher.
        drop(last.take());
        let (outputs, took) = if args.plot.is_some() { engine.run_drawn()? } else { engine.run()? };
        let usage = engine.usage().unwrap_or_default();
        let now = engine.calls().unwrap_or_default();
        let since = now.since(&calls);
        runs.push(Run {
            us: took.as_secs_f64() * 1e6,
            peak_live_bytes: usage.peak_live,
            peak_held_bytes: usage.peak_held,
            device_calls: since,
            device_us: since.nanos as f64 / 1e3,
        });
        calls = now;
        engine.reset_peaks();
        progress.progress(number);
        last = Some(outputs);
    }
    drop(progress);
    let outputs = last.context("there was no run")?;
    if let Some(path) = &args.save {
        save(path, &outputs)?;
    }
    let report = Report {
        model: name(model),
        manager: serving.kind,
        fallback: serving.fallback().map(str::to_owned),
        why: serving.why,
        device: args.device.clone(),
        onnxruntime: found.library.version().to_owned(),
        onnxruntime_library: found.library.path().to_owned(),
        peak_live_bytes: runs.iter().map(|r| r.peak_live_bytes).max().unwrap_or(0),
        peak_held_bytes: runs.iter().map(|r| r.peak_held_bytes).max().unwrap_or(0),
        peak_rss_bytes: peak_rss_bytes(),
        runs,
        outputs: outputs.iter().map(Shape::of).collect(),
        fingerprint: fingerprint(&outputs),
    };
    drop(outputs);
    if let Some(path) = &args.plot {
        let line = Line { label: report.manager.to_string(), samples: engine.samples().to_vec() };
        let title = format!("{} on {}", report.model, args.device);
        plot::write(path, &[Panel::of_runs(&title, u64::from(args.runs), vec![line])])?;
    }
    let watch = engine.close();
    if args.record.is_some() {
        watch.recorded()?;
    }
    if args.json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&report)?)?;
        return Ok(());
    }
    writeln!(
        io::stdout(),
        "{} with ONNX Runtime {}, {}: {}",
        report.model,
        report.onnxruntime,
        found.source,
        found.library.path().display()
    )?;
    print_table(&report, !site.is_gpu())
}

/// A file's own name.
pub fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn print_table(report: &Report, resident: bool) -> anyhow::Result<()> {
    let mut out = io::stdout();
    let rss = report.peak_rss_bytes.map_or("unknown".to_owned(), units::bytes);
    writeln!(
        out,
        "{} on {}: peak live {}, peak held {}, held/live {}{}",
        report.manager,
        report.device,
        units::bytes(report.peak_live_bytes),
        units::bytes(report.peak_held_bytes),
        units::ratio(report.peak_held_bytes, report.peak_live_bytes),
        if resident { format!(", peak RSS of the process {rss}") } else { String::new() },
    )?;
    writeln!(out, "note: {}", report.why)?;
    let header = ["run", "time", "peak live", "peak held", "held/live", "device calls", "device"];
    let rows: Vec<Vec<String>> = (1..)
        .zip(&report.runs)
        .map(|(number, run)| {
            vec![
                number.to_string(),
                units::micros(run.us),
                units::bytes(run.peak_live_bytes),
                units::bytes(run.peak_held_bytes),
                units::ratio(run.peak_held_bytes, run.peak_live_bytes),
                units::count(run.device_calls.total()),
                units::micros(run.device_us),
            ]
        })
        .collect();
    table::print(&header.map(str::to_owned), 1, &rows)?;
    for output in &report.outputs {
        let shape: Vec<_> = output.shape.iter().map(u64::to_string).collect();
        writeln!(out, "output {}: {} {}", output.name, output.element, shape.join("x"))?;
    }
    Ok(())
}
