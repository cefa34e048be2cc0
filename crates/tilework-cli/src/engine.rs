//! A model in ONNX Runtime, with one of our managers under it or with ONNX Runtime's own arena.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tilework::device::Calls;
use tilework::manager::{Choice, Kind, Serving, Usage};
use tilework::timeline::{POINTS, Sample, Timeline};
use tilework_ort::{Environment, Error, Output, Place, Session, SessionOptions, Tensor, find, inputs, npy};

use crate::choose::Managing;
use crate::exit::Usage as Misuse;
use crate::site::Site;
use crate::tap::{Reading, Watch};

/// A run's length on the axis of a picture.
pub const TICKS_PER_RUN: u64 = 1000;

/// At which part of the time the requests had come to which part of their number. Requests are the same
/// under every manager and take each its own time, so pictures lay them side by side by request; what is
/// only known by time, the arena, is put in its place with the clock of a manager.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Tick {
    /// Requests and frees so far, [`TICKS_PER_RUN`] a run.
    pub event: u64,
    /// Time so far, [`TICKS_PER_RUN`] a run.
    pub time: u64,
}

/// How often ONNX Runtime's arena is asked for its figures while a run is drawn.
const ARENA_PERIOD: Duration = Duration::from_millis(1);

/// Options about the model and the runtime.
#[derive(clap::Args)]
pub struct ModelOptions {
    /// The shape of an input, such as latent=1x4x64x64; needed where the model leaves it open. No dimension is zero: an
    /// input without elements is given with --input
    #[arg(long = "shape", value_name = "NAME=DIMS", value_parser = parse_shape)]
    shapes: Vec<(String, Vec<u64>)>,

    /// Read an input from a NumPy file; the others are random: floats standard normal, integers
    /// below 16, booleans true
    #[arg(id = "given_inputs", long = "input", value_name = "NAME=NPY", value_parser = parse_input)]
    inputs: Vec<(String, PathBuf)>,

    /// Seed of the random inputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Threads within an operator [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,

    /// The libonnxruntime to load [default: ORT_DYLIB_PATH, else that of the installed Python package
    /// onnxruntime, else one fetched with pip into the cache directory; on a GPU that of onnxruntime-gpu, which is
    /// not fetched]
    #[arg(long, value_name = "FILE")]
    ort_lib: Option<PathBuf>,
}

impl ModelOptions {
    /// The options as arguments, for a process that runs the same with `library`.
    pub fn arguments(&self, library: &Path) -> Vec<std::ffi::OsString> {
        let mut arguments = vec![format!("--seed={}", self.seed).into()];
        let mut named = |option: &str, name: &str, value: &std::ffi::OsStr| {
            let mut argument = std::ffi::OsString::from(format!("--{option}={name}="));
            argument.push(value);
            arguments.push(argument);
        };
        for (name, shape) in &self.shapes {
            let dims: Vec<_> = shape.iter().map(u64::to_string).collect();
            named("shape", name, dims.join("x").as_ref());
        }
        for (name, path) in &self.inputs {
            // Commands come by a worker's /dev/stdin.
            let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
            named("input", name, path.as_ref());
        }
        arguments.extend(self.threads.map(|n| format!("--threads={n}").into()));
        let mut argument = std::ffi::OsString::from("--ort-lib=");
        argument.push(library);
        arguments.push(argument);
        arguments
    }

    /// Whether anything is said about a particular input.
    pub fn names_inputs(&self) -> bool {
        !self.shapes.is_empty() || !self.inputs.is_empty()
    }

    /// Checks that no input is named twice.
    ///
    /// # Errors
    /// [`Misuse`]: which of the two was meant nobody knows.
    pub fn check(&self) -> anyhow::Result<()> {
        let shapes = self.shapes.iter().map(|(name, _)| ("--shape", name));
        let inputs = self.inputs.iter().map(|(name, _)| ("--input", name));
        let mut seen = BTreeSet::new();
        match shapes.chain(inputs).find(|named| !seen.insert(*named)) {
            Some((option, name)) => Err(Misuse(format!("{option} names input {name:?} twice")).into()),
            None => Ok(()),
        }
    }

    /// The files that inputs are read from, and what they are.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        self.inputs.iter().map(|(_, path)| ("an input", path.as_path()))
    }

    /// Finds the runtime; what takes time is told on stderr.
    pub fn library(&self) -> anyhow::Result<find::Found> {
        Ok(find::find(self.ort_lib.as_deref(), &mut |step| {
            let _ = writeln!(std::io::stderr(), "{step}");
        })?)
    }

    /// As [`ModelOptions::library`], one with the CUDA provider.
    pub fn library_with_cuda(&self) -> anyhow::Result<find::Found> {
        Ok(find::find_with_cuda(self.ort_lib.as_deref())?)
    }

    /// Threads within an operator.
    pub fn threads(&self) -> Option<u32> {
        self.threads
    }

    /// The inputs of several models: each takes of the shapes and files those that are named as inputs of its own.
    pub fn prepare_each(&self, sessions: &[&Session]) -> anyhow::Result<Vec<Vec<(String, Tensor)>>> {
        let has = |session: &Session, name: &str| session.inputs().iter().any(|input| input.name == name);
        let mut named =
            self.shapes.iter().map(|(name, _)| name).chain(self.inputs.iter().map(|(name, _)| name));
        if let Some(name) = named.find(|name| !sessions.iter().any(|session| has(session, name)))
            && sessions.len() > 1
        {
            return Err(Misuse(format!("none of the models has an input {name:?}")).into());
        }
        let alone = sessions.len() == 1;
        sessions.iter().map(|session| self.prepare(session, |name| alone || has(session, name))).collect()
    }

    /// The inputs of a model, as far as what is said of them is `wanted`, by name.
    fn prepare(
        &self,
        session: &Session,
        wanted: impl Fn(&str) -> bool,
    ) -> anyhow::Result<Vec<(String, Tensor)>> {
        let mut given = BTreeMap::new();
        for (name, path) in self.inputs.iter().filter(|(name, _)| wanted(name)) {
            given.insert(name.clone(), npy::read(path)?);
        }
        let shapes = self.shapes.iter().filter(|(name, _)| wanted(name)).cloned().collect();
        inputs::prepare(session.inputs(), &shapes, given, self.seed).map_err(|error| match error {
            Error::UnknownInput { .. }
            | Error::OpenShape { .. }
            | Error::WrongInput { .. }
            | Error::TwoShapes { .. } => Misuse(error.to_string()).into(),
            error => error.into(),
        })
    }
}

/// Whose memory a model runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// One of our managers', registered as ONNX Runtime's allocator.
    Manager(Choice),
    /// ONNX Runtime's own arena, as it comes.
    Arena,
    /// ONNX Runtime's own arena with the memory pattern off, which holds less with some models.
    ArenaWithoutPattern,
}

impl Subject {
    /// All there are, ours first.
    pub fn all() -> Vec<Subject> {
        let mut all: Vec<_> = Kind::ALL.into_iter().map(|kind| Subject::Manager(kind.into())).collect();
        all.extend([Subject::Arena, Subject::ArenaWithoutPattern]);
        all
    }

    /// The name in tables and pictures.
    pub fn label(self) -> String {
        match self {
            Subject::Manager(choice) => choice.to_string(),
            Subject::Arena => "ort arena".to_owned(),
            Subject::ArenaWithoutPattern => "ort arena, no pattern".to_owned(),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Manager(choice) => choice.fmt(f),
            Subject::Arena => f.write_str("arena"),
            Subject::ArenaWithoutPattern => f.write_str("arena-without-pattern"),
        }
    }
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(name: &str) -> Result<Subject, String> {
        match name {
            "arena" => Ok(Subject::Arena),
            "arena-without-pattern" => Ok(Subject::ArenaWithoutPattern),
            _ => name.parse().map(Subject::Manager),
        }
    }
}

/// How often the kernel is asked for the process's resident memory while a run is drawn. It walks the page
/// tables for it, which takes milliseconds.
const PSS_PERIOD: Duration = Duration::from_millis(20);

/// A loaded model, ready to run.
pub struct Engine {
    session: Session,
    inputs: Vec<(String, Tensor)>,
    watch: Watch,
    timeline: Timeline,
    /// Runs drawn so far.
    drawn: u64,
    clock: Vec<Tick>,
    peak_pss: Option<u64>,
    arena: Arena,
    /// Which manager serves, and why. None: the arena.
    pub serving: Option<Serving>,
}

/// The figures of ONNX Runtime's arena as far as they were seen, bytes.
#[derive(Default)]
struct Arena {
    known: bool,
    held: u64,
    peak_held: u64,
}

impl Engine {
    /// Loads a model.
    pub fn load(
        library: &Arc<tilework_ort::Library>,
        model: &Path,
        options: &ModelOptions,
        subject: Subject,
        managing: &Managing,
        site: &Site,
        record: Option<&Path>,
    ) -> anyhow::Result<Engine> {
        let watch = Watch::default();
        let mut serving = None;
        let allocator = match subject {
            Subject::Manager(choice) => {
                let watched = |manager| Ok(watch.over(manager, record)?);
                let (allocator, chosen) = site.allocator(managing, choice, watched)?;
                serving = Some(chosen);
                Some(allocator)
            }
            Subject::Arena | Subject::ArenaWithoutPattern => None,
        };
        let environment = Environment::new(library, allocator)?;
        let session_options = SessionOptions {
            place: site.place(),
            threads: options.threads,
            memory_pattern: subject != Subject::ArenaWithoutPattern,
        };
        let session = Session::load(&environment, model, &session_options)?;
        let inputs = options.prepare(&session, |_| true)?;
        Ok(Engine {
            session,
            inputs,
            watch,
            timeline: Timeline::new(POINTS),
            drawn: 0,
            clock: Vec::new(),
            peak_pss: None,
            arena: Arena::default(),
            serving,
        })
    }

    /// Runs the model once; returns the outputs and the time the runtime took.
    pub fn run(&mut self) -> anyhow::Result<(Vec<Output>, Duration)> {
        let start = Instant::now();
        let outputs = self.session.run(&self.inputs)?;
        let took = start.elapsed();
        self.ask_arena()?;
        Ok((outputs, took))
    }

    /// As [`Engine::run`], and keeps what was live and held meanwhile.
    pub fn run_drawn(&mut self) -> anyhow::Result<(Vec<Output>, Duration)> {
        self.watch.begin();
        let before = self.usage();
        let start = Instant::now();
        let (outputs, peak_pss) = self.run_asking();
        let took = start.elapsed();
        let readings = self.watch.end();
        let outputs = outputs?;
        self.peak_pss = self.peak_pss.max(peak_pss);
        self.ask_arena()?;
        let origin = self.drawn * TICKS_PER_RUN;
        if let Some(before) = before {
            self.timeline.push(origin, &before);
        }
        let managed = self.session.environment().allocator().is_some();
        let count = readings.len() as u64;
        for (number, Reading { when, live, held }) in (0..).zip(readings) {
            let part = when.saturating_duration_since(start).as_secs_f64() / took.as_secs_f64();
            let time = origin + ((part * TICKS_PER_RUN as f64) as u64).min(TICKS_PER_RUN - 1);
            let event = origin + number * TICKS_PER_RUN / count;
            if managed && self.clock.last().is_none_or(|tick| tick.event < event) {
                self.clock.push(Tick { event, time });
            }
            let at = if managed { event } else { time };
            self.timeline.push(at, &Usage { live, held, ..Usage::default() });
        }
        self.drawn += 1;
        Ok((outputs, took))
    }

    /// Runs the model while other threads ask the kernel what is resident and, where no manager tells, the
    /// arena what it holds. Returns the most that was resident, too.
    fn run_asking(&self) -> (tilework_ort::Result<Vec<Output>>, Option<u64>) {
        let done = AtomicBool::new(false);
        let until_done = |period: Duration, ask: &mut dyn FnMut()| {
            while !done.load(Ordering::Relaxed) {
                ask();
                std::thread::sleep(period);
            }
        };
        std::thread::scope(|scope| {
            let resident = scope.spawn(|| {
                let mut peak = None;
                // On a GPU the process's own memory says nothing about the model's.
                if self.session.place() == Place::Cpu {
                    until_done(PSS_PERIOD, &mut || {
                        peak = peak.max(kib_of("/proc/self/smaps_rollup", "Pss:"))
                    });
                }
                peak
            });
            if self.session.environment().allocator().is_none() {
                scope.spawn(|| {
                    until_done(ARENA_PERIOD, &mut || {
                        // A library too old for it says so each time; an error shows in `ask_arena`.
                        if let Ok(Some(stats)) = self.session.arena_stats() {
                            self.watch.read(stats.in_use, stats.total_allocated);
                        }
                    });
                });
            }
            let outputs = self.session.run(&self.inputs);
            done.store(true, Ordering::Relaxed);
            (outputs, resident.join().unwrap_or_default())
        })
    }

    fn ask_arena(&mut self) -> anyhow::Result<()> {
        if let Some(stats) = self.session.arena_stats()? {
            self.arena.known = true;
            self.arena.held = stats.total_allocated;
            self.arena.peak_held = self.arena.peak_held.max(stats.total_allocated);
        }
        Ok(())
    }

    /// What is live and held, and the peaks. The arena does not know what is live, and before version
    /// 1.23 not what it holds, either.
    pub fn usage(&self) -> Option<Usage> {
        match self.session.environment().allocator() {
            Some(allocator) => Some(allocator.usage()),
            None => self.arena.known.then(|| Usage {
                held: self.arena.held,
                peak_held: self.arena.peak_held,
                ..Usage::default()
            }),
        }
    }

    /// Calls of the device so far; the arena has none.
    pub fn calls(&self) -> Option<Calls> {
        self.session.environment().allocator().map(tilework_ort::Allocator::calls)
    }

    /// Makes the manager's peaks start again.
    pub fn reset_peaks(&self) {
        if let Some(allocator) = self.session.environment().allocator() {
            allocator.reset_peaks();
        }
    }

    /// The most that was resident in runs that were drawn, bytes, by the kernel, each page counted once.
    pub fn peak_pss_bytes(&self) -> Option<u64> {
        self.peak_pss
    }

    /// When the manager's requests came; nothing for the arena, which is not asked by us.
    pub fn clock(&self) -> &[Tick] {
        &self.clock
    }

    /// What was drawn: by request for a manager, by time for the arena.
    pub fn samples(&self) -> &[Sample] {
        self.timeline.samples()
    }

    /// Unloads everything, and tells how a recording went.
    pub fn close(self) -> Watch {
        self.watch
    }
}

/// The most memory of this process that was ever resident, bytes, by the kernel: the high-water mark since
/// it began its program. The figure that a parent gets from wait4 counts what the process was before, too.
pub fn peak_rss_bytes() -> Option<u64> {
    kib_of("/proc/self/status", "VmHWM:")
}

/// A figure in kB from one of the kernel's files, in bytes.
pub fn kib_of(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

fn parse_shape(text: &str) -> Result<(String, Vec<u64>), String> {
    let wrong = || format!("{text:?} is no shape: write NAME=DIMS, such as latent=1x4x64x64");
    // A name may hold an equals sign, a shape cannot.
    let (name, dims) = text.rsplit_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(wrong)?;
    let dims = match dims {
        "" => Ok(Vec::new()),
        dims => dims.split('x').map(str::parse).collect(),
    };
    Ok((name.to_owned(), dims.map_err(|_| wrong())?))
}

fn parse_input(text: &str) -> Result<(String, PathBuf), String> {
    let wrong = || format!("{text:?} names no input: write NAME=FILE.npy");
    let (name, path) =
        text.split_once('=').filter(|(n, p)| !n.is_empty() && !p.is_empty()).ok_or_else(wrong)?;
    Ok((name.to_owned(), path.into()))
}

/// Saves outputs as NumPy files.
pub fn save(path: &Path, outputs: &[Output]) -> anyhow::Result<()> {
    let names: Vec<_> = outputs.iter().map(Output::name).collect();
    for (path, output) in npy::paths(path, &names).iter().zip(outputs) {
        npy::write(path, output).with_context(|| format!("cannot save output {:?}", output.name()))?;
    }
    Ok(())
}
