//! `tilework run` on several models: a pipeline, under one budget.
//!
//! ```text
//!   load   weights of each model ──► a group of its own, which may leave once the model is loaded, copied once
//!   run    pin ─ restore ─ run ─ unpin, model by model, as often as asked
//!               │           └── the next one comes back meanwhile, if the run wants none of the memory
//!               └── what lacks memory evicts the group that was used longest ago
//! ```

mod picture;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use serde::Serialize;
use tempfile::TempDir;
use tilework::manager::{Choice, Kind, Stream};
use tilework::replay::Observer;
use tilework::shared::{GroupId, GroupStats, Hosting, Residence};
use tilework_ort::{Environment, Session, SessionOptions, Tensor, find, fingerprint};

use self::picture::Picture;
use crate::engine::{peak_rss_bytes, save};
use crate::exit::Usage as Misuse;
use crate::pool::Pool;
use crate::progress::Progress;
use crate::run::{Args, Shape, name};
use crate::site::Site;
use crate::{table, units};

/// Where the contents of evicted groups are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keep {
    /// In pinned memory, up to so many bytes.
    Pinned(u64),
    /// What exceeds that: in files here.
    Directory(PathBuf),
}

/// Reads a `--keep`.
pub fn parse_keep(text: &str) -> Result<Keep, String> {
    if let Some(bytes) = text.strip_prefix("pinned=") {
        return units::parse_bytes(bytes).map(Keep::Pinned);
    }
    if Path::new(text).is_dir() {
        return Ok(Keep::Directory(text.into()));
    }
    Err(format!(
        "{text:?} is no place to keep contents: write pinned=BYTES, such as pinned=8GiB, or a directory that exists"
    ))
}

/// The object of `--json`.
#[derive(Serialize)]
struct Report {
    manager: Kind,
    /// Why this one.
    why: String,
    device: String,
    onnxruntime: String,
    onnxruntime_library: PathBuf,
    budget_bytes: Option<u64>,
    /// The most that was requested and not freed, of all models, wherever it was.
    peak_live_bytes: u64,
    /// The most that was held of the device.
    peak_held_bytes: u64,
    /// The most of the host's memory that the process ever had resident, by the kernel.
    peak_rss_bytes: Option<u64>,
    /// Weights on the host at the end: of every model that ever left.
    kept_bytes: u64,
    /// Memory of the host that the device used as its own at the end.
    spilled_bytes: u64,
    /// Whether every run of a model gave the same outputs to the bit.
    outputs_agree: bool,
    models: Vec<Model>,
}

/// A model's part of it.
#[derive(Serialize)]
struct Model {
    name: String,
    /// What its group has: its weights, without small ones on a GPU.
    weights_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    runs: Vec<Run>,
    residence: Residence,
    evictions: u64,
    restores: u64,
    bytes_out: u64,
    bytes_in: u64,
    kept_bytes: u64,
    outputs: Vec<Shape>,
    /// SHA-256 over names, types, shapes and bits of the last run's outputs.
    fingerprint: String,
}

#[derive(Serialize)]
struct Run {
    /// The time ONNX Runtime took.
    us: f64,
    /// Before that, to make the model resident; of what was prefetched, the part that the pipeline waited for.
    restore_us: f64,
    /// Where the model's weights were when its turn came.
    found: Residence,
}

/// A loaded model.
struct Stage {
    name: String,
    session: Session,
    group: GroupId,
    weights: u64,
    note: Option<String>,
    inputs: Vec<(String, Tensor)>,
    /// What streams had beside all groups after its last run, bytes: as much as a run takes.
    takes: Option<u64>,
    /// A run lacked the memory that the next model had been prefetched to: it has all there is.
    crowded: bool,
    /// The time it took to begin with prefetching it.
    prefetching: Duration,
    runs: Vec<Run>,
    outputs: Vec<Shape>,
    fingerprint: Option<String>,
    agrees: bool,
}

/// Runs the models.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if !matches!(args.manager, Choice::Auto | Choice::Of(Kind::Tiled)) {
        let sentence =
            format!("{} knows no groups: several models, or a budget, take tiled or auto", args.manager);
        return Err(Misuse(sentence).into());
    }
    let site = Site::open(&args.device)?;
    let found = site.library(&args.model_options)?;
    let pool = pool(args, &site)?;
    if let Some(path) = &args.record {
        pool.shared().record_to(path)?;
    }
    let environment = Environment::new(&found.library, Some(site.pooled(pool.clone())))?;
    let mut stages = load(args, &site, &environment, &pool)?;
    let sessions: Vec<_> = stages.iter().map(|stage| &stage.session).collect();
    let inputs = args.model_options.prepare_each(&sessions)?;
    for (stage, inputs) in stages.iter_mut().zip(inputs) {
        stage.inputs = inputs;
    }
    let groups: Vec<_> = stages.iter().map(|stage| stage.group).collect();
    let mut picture = args.plot.as_ref().map(|_| Picture::new(stages.len()));
    let mut progress = Progress::new("pipeline".to_owned(), u64::from(args.runs) * stages.len() as u64);
    let mut done = 0;
    for pass in 1..=args.runs {
        for at in 0..stages.len() {
            if picture.is_some() {
                pool.watch(&groups);
            }
            let is_last_pass = pass == args.runs;
            let next = (at + 1) % stages.len();
            let is_followed = next != at && !(is_last_pass && next == 0);
            let next_group = is_followed.then(|| stages[next].group);
            let prefetching = stages[at].run(args, &site, &pool, next_group, is_last_pass)?;
            stages[next].prefetching = prefetching;
            if let Some(picture) = &mut picture {
                picture.add(at, &pool.unwatch());
            }
            done += 1;
            progress.progress(done);
        }
    }
    drop(progress);
    let report = report(args, &found, &pool, &stages)?;
    if let (Some(path), Some(picture)) = (&args.plot, picture) {
        picture.write(path, args, &report)?;
    }
    drop(stages);
    if args.record.is_some() {
        pool.shared().stop_recording()?;
    }
    if args.json {
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&report)?)?;
        return Ok(());
    }
    writeln!(
        io::stdout(),
        "ONNX Runtime {}, {}: {}",
        report.onnxruntime,
        found.source,
        found.library.path().display()
    )?;
    print_table(&report, !site.is_gpu())
}

/// The pool, as the options want it.
fn pool(args: &Args, site: &Site) -> anyhow::Result<Pool> {
    let mut hosting = Hosting::default();
    for keep in &args.keep {
        match keep {
            Keep::Pinned(bytes) => hosting.pinned_bytes = *bytes,
            Keep::Directory(path) => hosting.directory = Some(path.clone()),
        }
    }
    let shared = site.shared(&args.managing.options())?;
    shared.set_limit(budget(args))?;
    shared.set_hosting(hosting);
    if args.spill {
        shared.set_spill(true)?;
    }
    Ok(Pool::new(shared, site.place()))
}

/// What may be held.
fn budget(args: &Args) -> Option<u64> {
    args.budget.or(args.managing.limit)
}

/// Loads the models, each into a group.
fn load(args: &Args, site: &Site, environment: &Arc<Environment>, pool: &Pool) -> anyhow::Result<Vec<Stage>> {
    let options =
        SessionOptions { place: site.place(), threads: args.model_options.threads(), memory_pattern: false };
    let mut converted = Converted::default();
    let mut stages: Vec<Stage> = Vec::new();
    for path in &args.models {
        let plain = name(path);
        let numbered = (1u32..).map(|n| if n == 1 { plain.clone() } else { format!("{plain} #{n}") });
        let is_free = |name: &String| stages.iter().all(|stage| stage.name != *name);
        let name = { numbered }.find(is_free).expect("numbers do not end");
        let (file, note) =
            if site.is_gpu() { (path.clone(), None) } else { converted.get(environment, path, &options)? };
        let group = pool.shared().group(&name)?;
        let (session, lacked) = pool.load(group, || Session::load(environment, &file, &options));
        let session = session.map_err(|error| match (lacked, budget(args)) {
            (Some(bytes), Some(budget)) => anyhow!(
                "the budget of {} is less than the weights of {name} alone, which take at least {}: raise it",
                units::bytes(budget),
                units::bytes(bytes)
            ),
            _ => error.into(),
        })?;
        // What fills the weights may still be queued, on streams that an eviction does not know of.
        site.wait()?;
        // Loading leaves memory free that only the group could use.
        pool.shared().trim()?;
        let weights = pool.shared().group_stats(group)?.live;
        // No run writes to them, so one copy on the host is good for every eviction.
        pool.shared().set_constant(group, true)?;
        // Made pinned; from here on it may leave.
        pool.shared().unpin(group)?;
        stages.push(Stage {
            name,
            session,
            group,
            weights,
            note,
            inputs: Vec::new(),
            takes: None,
            crowded: false,
            prefetching: Duration::ZERO,
            runs: Vec::new(),
            outputs: Vec::new(),
            fingerprint: None,
            agrees: true,
        });
    }
    Ok(stages)
}

/// Models in ONNX Runtime's own format: on the CPU, weights come through an allocator only from there.
#[derive(Default)]
struct Converted {
    folder: Option<TempDir>,
    files: BTreeMap<PathBuf, (PathBuf, Option<String>)>,
}

impl Converted {
    /// The file to load for a model, and what there is to say of it.
    fn get(
        &mut self,
        environment: &Arc<Environment>,
        model: &Path,
        options: &SessionOptions,
    ) -> anyhow::Result<(PathBuf, Option<String>)> {
        if model.extension().is_some_and(|extension| extension == "ort") {
            return Ok((model.to_owned(), None));
        }
        if let Some(known) = self.files.get(model) {
            return Ok(known.clone());
        }
        if self.folder.is_none() {
            self.folder = Some(TempDir::with_prefix("tilework-").context("no folder for converted models")?);
        }
        let folder = self.folder.as_ref().expect("just made");
        let file = folder.path().join(format!("{}.ort", self.files.len()));
        let found = match Session::convert(environment, model, options, &file) {
            Ok(()) => (file, None),
            // Loading it tells what is wrong with a model that is wrong.
            Err(error) => {
                let note =
                    format!("ONNX Runtime keeps some of its weights itself, out of the budget: {error}");
                (model.to_owned(), Some(note))
            }
        };
        self.files.insert(model.to_owned(), found.clone());
        Ok(found)
    }
}

impl Stage {
    /// Makes the model resident, runs it and lets it go. Returns the time it took to begin with prefetching the next.
    fn run(
        &mut self,
        args: &Args,
        site: &Site,
        pool: &Pool,
        next: Option<GroupId>,
        is_last: bool,
    ) -> anyhow::Result<Duration> {
        let shared = pool.shared();
        let found = shared.residence(self.group)?;
        let start = Instant::now();
        shared.pin(self.group)?;
        let result = self.restore(site, pool, found).and_then(|()| {
            let restored = start.elapsed() + std::mem::take(&mut self.prefetching);
            let start = Instant::now();
            let prefetched = next.filter(|&next| self.prefetch(pool, next));
            let prefetching = start.elapsed();
            let start = Instant::now();
            let outputs = self.session.run(&self.inputs)?;
            Ok((outputs, restored, start.elapsed(), prefetched, prefetching))
        });
        shared.unpin(self.group)?;
        let (outputs, restored, took, prefetched, prefetching) = result.with_context(|| {
            let within =
                budget(args).map_or(String::new(), |bytes| format!(" within {}", units::bytes(bytes)));
            format!("{} with {} of weights does not run{within}", self.name, units::bytes(self.weights))
        })?;
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        self.runs.push(Run { us: us(took), restore_us: us(restored), found });
        self.takes = Some(pool.apart());
        if let Some(next) = prefetched {
            self.crowded |= shared.residence(next)? == Residence::Evicted;
        }
        let print = fingerprint(&outputs);
        self.agrees &= self.fingerprint.as_ref().is_none_or(|before| *before == print);
        self.fingerprint = Some(print);
        if !is_last {
            return Ok(prefetching);
        }
        self.outputs = outputs.iter().map(Shape::of).collect();
        match &args.save {
            Some(path) if args.models.len() == 1 => save(path, &outputs)?,
            Some(path) => {
                let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                let model = self.name.replace(' ', "");
                save(&path.with_file_name(format!("{stem}.{model}.npy")), &outputs)?;
            }
            None => {}
        }
        Ok(prefetching)
    }

    /// Makes the model resident, its contents there.
    fn restore(&self, site: &Site, pool: &Pool, found: Residence) -> anyhow::Result<()> {
        let restore = || pool.shared().restore(self.group, Some(Stream::default()));
        let mut restored = restore();
        if restored.is_err() && found == Residence::Arriving {
            // The prefetch failed, which leaves the group evicted: it may go well without one.
            restored = restore();
        }
        // The run has a stream of its own, which waits for nothing here.
        if restored? > 0 {
            site.wait()?;
        }
        Ok(())
    }

    /// Has the next model come back while this one runs, where that takes nothing the run will want. Whether it is on its way,
    /// or there.
    fn prefetch(&self, pool: &Pool, next: GroupId) -> bool {
        // How much a run takes is known once there was one.
        let Some(takes) = self.takes.filter(|_| !self.crowded) else { return false };
        let spare = takes.saturating_sub(pool.apart());
        // What fails is met again, and told, by who restores it.
        pool.shared().prefetch_beside(next, spare).unwrap_or(false)
    }

    fn report(&self, stats: &GroupStats) -> Model {
        Model {
            name: self.name.clone(),
            weights_bytes: self.weights,
            note: self.note.clone(),
            runs: self.runs.iter().map(|run| Run { ..*run }).collect(),
            residence: stats.residence,
            evictions: stats.evictions,
            restores: stats.restores,
            bytes_out: stats.bytes_out,
            bytes_in: stats.bytes_in,
            kept_bytes: stats.kept,
            outputs: self.outputs.clone(),
            fingerprint: self.fingerprint.clone().unwrap_or_default(),
        }
    }
}

fn report(args: &Args, found: &find::Found, pool: &Pool, stages: &[Stage]) -> anyhow::Result<Report> {
    let shared = pool.shared();
    let stats = shared.stats();
    let models = stages.iter().map(|stage| Ok(stage.report(&shared.group_stats(stage.group)?)));
    Ok(Report {
        manager: shared.serving().kind,
        why: shared.serving().why.clone(),
        device: args.device.clone(),
        onnxruntime: found.library.version().to_owned(),
        onnxruntime_library: found.library.path().to_owned(),
        budget_bytes: budget(args),
        peak_live_bytes: stats.usage.peak_live,
        peak_held_bytes: stats.usage.peak_held,
        peak_rss_bytes: peak_rss_bytes(),
        kept_bytes: stats.kept,
        spilled_bytes: stats.spilled,
        outputs_agree: stages.iter().all(|stage| stage.agrees),
        models: models.collect::<tilework::Result<_>>()?,
    })
}

fn print_table(report: &Report, resident: bool) -> anyhow::Result<()> {
    let mut out = io::stdout();
    let budget = report.budget_bytes.map_or(String::new(), |bytes| format!(" of {}", units::bytes(bytes)));
    let rss = report.peak_rss_bytes.map_or("unknown".to_owned(), units::bytes);
    writeln!(
        out,
        "{} on {}: peak live {}, peak held {}{budget}, kept on the host {}, spilled {}{}",
        report.manager,
        report.device,
        units::bytes(report.peak_live_bytes),
        units::bytes(report.peak_held_bytes),
        units::bytes(report.kept_bytes),
        units::bytes(report.spilled_bytes),
        if resident { format!(", peak RSS of the process {rss}") } else { String::new() },
    )?;
    let header =
        ["model", "weights", "runs", "time/run", "restoring", "at the end", "evictions", "restores", "moved"];
    let rows: Vec<Vec<String>> = report
        .models
        .iter()
        .map(|model| {
            vec![
                model.name.clone(),
                units::bytes(model.weights_bytes),
                model.runs.len().to_string(),
                units::micros(median(model.runs.iter().map(|run| run.us))),
                units::micros(median(model.runs.iter().map(|run| run.restore_us))),
                match model.residence {
                    Residence::Resident => "resident",
                    Residence::Evicted => "evicted",
                    Residence::Arriving => "arriving",
                }
                .to_owned(),
                units::count(model.evictions),
                units::count(model.restores),
                units::bytes(model.bytes_out + model.bytes_in),
            ]
        })
        .collect();
    table::print(&header.map(str::to_owned), 1, &rows)?;
    writeln!(out, "note: {}", report.why)?;
    for model in &report.models {
        if let Some(note) = &model.note {
            writeln!(out, "note: {}: {note}", model.name)?;
        }
    }
    let agree =
        if report.outputs_agree { "the same to the bit in every run" } else { "not the same in every run" };
    writeln!(out, "outputs of each model: {agree}")?;
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
