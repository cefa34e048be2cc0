//! Comparing the managers, and ONNX Runtime's own arena, on a model.
//!
//! Each has a process of its own. All are loaded and warmed up, then they run in turn, A B C A B C …, so
//! that whatever else the machine does falls on all alike; a ratio of times is taken within a round.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

use anyhow::bail;
use tilework::manager::{Choice, Serving};
use tilework::replay::Observer;

use super::process::Process;
use super::{Args, note};
use crate::engine::{Subject, Tick, kib_of};
use crate::exit::Usage;
use crate::plot::{Line, Panel};
use crate::progress::Progress;
use crate::run::name;
use crate::site::Site;
use crate::units;
use crate::worker::{Answer, Command, Report};

/// Runs before the timed ones; they are the ones that are drawn. The second finds what the first has
/// left, and a manager that learns has learnt after it.
const WARM_UP: u64 = 2;

/// Timed runs, unless told otherwise.
pub const RUNS: u32 = 5;

const HEADER: [&str; 10] = [
    "model",
    "manager",
    "peak live",
    "peak held",
    "held/live",
    "peak RSS",
    "peak PSS",
    "time/run",
    "to arena",
    "calls",
];

/// The columns about memory of the process.
const RESIDENT: Range<usize> = 5..7;

/// The one the others are measured against.
const REFERENCE: Subject = Subject::Arena;

/// A model under every manager.
pub struct Compared {
    title: String,
    library: String,
    lanes: Vec<Lane>,
    /// Whether the processes ran in turn; one after the other where memory is short.
    in_turn: bool,
    /// Whether a limit was set.
    limited: bool,
    /// The device it ran on.
    device: String,
    /// Whether that is a GPU: then the process's own memory says nothing about the model's.
    on_gpu: bool,
}

/// A model under one manager.
struct Lane {
    subject: Subject,
    process: Option<Process>,
    serving: Option<Serving>,
    /// The time of each timed run, microseconds.
    us: Vec<f64>,
    /// Of the outputs of each run.
    fingerprints: BTreeSet<String>,
    report: Option<Report>,
    /// Why it was given up.
    failure: Option<anyhow::Error>,
}

/// Runs `model` under everyone.
pub fn compare(args: &Args, site: &Site, model: &Path) -> anyhow::Result<Compared> {
    let found = site.library(&args.model_options)?;
    let mut arguments: Vec<OsString> =
        args.replaying.managing.arguments().into_iter().map(Into::into).collect();
    arguments.extend(args.model_options.arguments(found.library.path()));
    arguments.push(format!("--device={}", site.name()).into());
    let rounds = u64::from(args.runs.unwrap_or(RUNS));

    let mut lanes: Vec<Lane> = Subject::all().into_iter().map(Lane::new).collect();
    let total = (WARM_UP + rounds) * lanes.len() as u64;
    let mut progress = Steps { bar: Progress::new(name(model), total), done: 0 };

    // The arena goes first: it is the hungriest, so it tells whether there is room for all at once; and
    // where it does not even load the model, no manager is to blame and none need be tried.
    let reference = lanes.iter().position(|lane| lane.subject == REFERENCE).expect("it is one of all");
    let before = site.free_bytes();
    lanes[reference].load(model, &arguments)?;
    lanes[reference].attempt(|lane| lane.warm_up(&mut progress));
    let (appetite, available) = match (before, site.free_bytes()) {
        // Of a GPU each process takes a context, too.
        (Some(before), Some(now)) => (Some(before.saturating_sub(now)), Some(now)),
        _ => (
            lanes[reference].report.as_ref().and_then(|r| r.peak_rss_bytes),
            kib_of("/proc/meminfo", "MemAvailable:"),
        ),
    };
    let others = lanes.len() as u64 - 1;
    let in_turn = match (appetite, available) {
        (Some(each), Some(available)) => each.saturating_mul(others) <= available,
        _ => true,
    };
    if in_turn {
        for (at, lane) in lanes.iter_mut().enumerate() {
            if at != reference {
                lane.attempt(|lane| {
                    lane.load(model, &arguments)?;
                    lane.warm_up(&mut progress)
                });
            }
        }
        for _ in 0..rounds {
            for lane in &mut lanes {
                lane.attempt(|lane| lane.timed(&mut progress));
            }
        }
        for lane in &mut lanes {
            lane.attempt(Lane::finish);
        }
    } else {
        let order = std::iter::once(reference).chain((0..lanes.len()).filter(|&at| at != reference));
        for at in order {
            lanes[at].attempt(|lane| {
                if at != reference {
                    lane.load(model, &arguments)?;
                    lane.warm_up(&mut progress)?;
                }
                for _ in 0..rounds {
                    lane.timed(&mut progress)?;
                }
                lane.finish()
            });
        }
    }
    Ok(Compared {
        title: name(model),
        library: format!("ONNX Runtime {}, {}", found.library.version(), found.source),
        lanes,
        in_turn,
        limited: args.replaying.managing.limit.is_some(),
        device: site.name().to_owned(),
        on_gpu: site.is_gpu(),
    })
}

impl Lane {
    fn new(subject: Subject) -> Lane {
        Lane {
            subject,
            process: None,
            serving: None,
            us: Vec::new(),
            fingerprints: BTreeSet::new(),
            report: None,
            failure: None,
        }
    }

    /// Goes on with a lane that has not failed, and keeps the reason if it does now.
    fn attempt(&mut self, step: impl FnOnce(&mut Lane) -> anyhow::Result<()>) {
        if self.failure.is_none()
            && let Err(error) = step(self)
        {
            self.failure = Some(error);
            self.report = None;
            self.process = None;
        }
    }

    fn load(&mut self, model: &Path, arguments: &[OsString]) -> anyhow::Result<()> {
        self.process = Some(Process::start(model, self.subject, arguments)?);
        match self.ask(&Command::Load)? {
            Answer::Loaded(loaded) => self.serving = loaded.serving,
            _ => bail!("a worker answered something else"),
        }
        Ok(())
    }

    fn warm_up(&mut self, progress: &mut Steps) -> anyhow::Result<()> {
        for _ in 0..WARM_UP {
            self.run(true, progress)?;
        }
        self.ask(&Command::Settle)?;
        self.ask_report()
    }

    fn timed(&mut self, progress: &mut Steps) -> anyhow::Result<()> {
        let us = self.run(false, progress)?;
        self.us.push(us);
        Ok(())
    }

    /// Takes the last figures and lets the process go.
    fn finish(&mut self) -> anyhow::Result<()> {
        self.ask_report()?;
        self.process = None;
        Ok(())
    }

    fn run(&mut self, draw: bool, progress: &mut Steps) -> anyhow::Result<f64> {
        let Answer::Ran(ran) = self.ask(&Command::Run { draw })? else {
            bail!("a worker answered something else")
        };
        self.fingerprints.insert(ran.fingerprint);
        progress.step();
        Ok(ran.us)
    }

    fn ask_report(&mut self) -> anyhow::Result<()> {
        let Answer::Report(report) = self.ask(&Command::Report)? else {
            bail!("a worker answered something else")
        };
        self.report = Some(report);
        Ok(())
    }

    fn ask(&mut self, command: &Command) -> anyhow::Result<Answer> {
        match &mut self.process {
            Some(process) => process.ask(command),
            None => bail!("there is no process"),
        }
    }
}

/// Prints all models in one table, and what there is to say about it.
///
/// # Errors
/// When a manager failed, or outputs are not the same to the bit.
pub fn print(args: &Args, all: &[Compared]) -> anyhow::Result<()> {
    let Some(first) = all.first() else { return Ok(()) };
    let mut out = io::stdout();
    match args.inputs.as_slice() {
        [_] => writeln!(out, "{}, {}", first.title, first.library)?,
        _ => writeln!(out, "{}", first.library)?,
    }
    let mut table = vec![HEADER.map(str::to_owned).to_vec()];
    table.extend(all.iter().flat_map(|compared| compared.lanes.iter().map(|lane| compared.row(lane))));
    if first.on_gpu {
        for row in &mut table {
            row.drain(RESIDENT);
        }
    }
    super::print(args, &table)?;
    tell("note", all, Compared::notes)?;
    tell("failed", all, Compared::failures)?;
    tell("outputs", all, |compared| vec![compared.verdict()])?;

    if all.iter().any(|compared| compared.fingerprints().len() > 1) {
        bail!("the outputs are not the same under every manager");
    }
    let lanes = || all.iter().flat_map(|compared| &compared.lanes);
    let failed: Vec<_> = lanes().filter_map(|lane| lane.failure.as_ref()).collect();
    match failed.as_slice() {
        [] => Ok(()),
        [failure, ..] if failed.iter().all(|failure| failure.is::<Usage>()) => {
            Err(Usage(failure.to_string()).into())
        }
        _ => bail!("{} of {} failed: the reasons are above", failed.len(), lanes().count()),
    }
}

/// Prints what there is to say of the models, each line headed `what`: once where it is said of all, with the model's
/// name where it is not.
fn tell(what: &str, all: &[Compared], say: impl Fn(&Compared) -> Vec<String>) -> io::Result<()> {
    let said: Vec<_> = all.iter().map(&say).collect();
    for (at, (compared, lines)) in all.iter().zip(&said).enumerate() {
        for line in lines {
            if !said.iter().all(|lines| lines.contains(line)) {
                writeln!(io::stdout(), "{what}: {}: {line}", compared.title)?;
            } else if at == 0 {
                writeln!(io::stdout(), "{what}: {line}")?;
            }
        }
    }
    Ok(())
}

impl Compared {
    /// Of the outputs of every run under everyone.
    fn fingerprints(&self) -> BTreeSet<&str> {
        self.lanes.iter().flat_map(|lane| &lane.fingerprints).map(String::as_str).collect()
    }

    /// Who failed, and why.
    fn failures(&self) -> Vec<String> {
        let failed = self.lanes.iter().filter_map(|lane| Some((lane, lane.failure.as_ref()?)));
        failed.map(|(lane, failure)| format!("{}: {failure:#}", lane.subject.label())).collect()
    }

    /// What there is to say of the outputs.
    fn verdict(&self) -> String {
        let ran = |lane: &Lane| matches!(lane.subject, Subject::Manager(_)) && !lane.fingerprints.is_empty();
        if self.fingerprints().len() > 1 {
            let prints = self.lanes.iter().flat_map(|lane| {
                let label = lane.subject.label();
                lane.fingerprints.iter().map(move |print| format!("\n  {label:<22} {}", &print[..16]))
            });
            return format!("NOT the same; SHA-256 of each:{}", prints.collect::<String>());
        }
        if self.lanes.iter().any(ran) {
            return "the same to the bit in every run".into();
        }
        "nothing to compare, since the model ran under no manager".into()
    }

    fn row(&self, lane: &Lane) -> Vec<String> {
        let mut row = vec![self.title.clone(), lane.subject.label()];
        let Some(report) = &lane.report else {
            row.push("failed".into());
            row.extend(vec!["-".to_owned(); 7]);
            return row;
        };
        let live = report.peak_live_bytes.or(self.peak_live());
        let bytes = |figure: Option<u64>| figure.map_or("-".to_owned(), units::bytes);
        row.extend([
            bytes(live),
            bytes(report.peak_held_bytes),
            live.zip(report.peak_held_bytes).map_or("-".to_owned(), |(l, h)| units::ratio(h, l)),
            bytes(report.peak_rss_bytes),
            bytes(report.peak_pss_bytes),
            median(&lane.us).map_or("-".to_owned(), units::micros),
            self.against_reference(lane).map_or("-".to_owned(), |r| format!("{r:.3}")),
            report.device_calls.map_or("-".to_owned(), units::count),
        ]);
        row
    }

    /// What the model's tensors ask for at most. Every manager sees the same requests.
    fn peak_live(&self) -> Option<u64> {
        self.lanes.iter().filter_map(|lane| lane.report.as_ref()?.peak_live_bytes).max()
    }

    /// The time of a run against the reference's: the median of the rounds' ratios where the processes
    /// ran in turn, the ratio of the medians otherwise.
    fn against_reference(&self, lane: &Lane) -> Option<f64> {
        let reference = self.lanes.iter().find(|l| l.subject == REFERENCE)?;
        if self.in_turn {
            return median(&lane.us.iter().zip(&reference.us).map(|(a, b)| a / b).collect::<Vec<_>>());
        }
        Some(median(&lane.us)? / median(&reference.us)?)
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = vec![format!(
            "\"ort arena\" holds what it took from {}; its peak live is the managers', which see every request",
            if self.on_gpu { "the GPU" } else { "the C library" }
        )];
        let arena_unknown = |l: &&Lane| l.report.as_ref().is_some_and(|r| r.peak_held_bytes.is_none());
        if self.lanes.iter().any(|l| arena_unknown(&l)) {
            notes.push("this ONNX Runtime is too old to tell what its arena holds (before 1.23)".into());
        }
        if self.limited {
            notes.push("the limit is the managers'; ONNX Runtime's arena has none".into());
        }
        if !self.in_turn {
            notes.push(
                "there is not enough memory for all processes at once: they ran one after the other, so their \
                 times were taken at different moments"
                    .into(),
            );
        }
        for lane in &self.lanes {
            let label = lane.subject.label();
            if let (Subject::Manager(Choice::Of(asked)), Some(serving)) = (lane.subject, &lane.serving) {
                notes.extend(note(asked, serving));
            }
            if let Some(twice) = lane.report.as_ref().and_then(|r| r.counted_twice_bytes)
                && twice > 1 << 20
                && !self.on_gpu
            {
                notes.push(format!(
                    "RSS counts a page at every address it is mapped at, PSS once: {} of {label}'s are mapped a \
                     second time",
                    units::bytes(twice)
                ));
            }
        }
        notes
    }

    /// The picture: everyone's held bytes over the warm-up runs, request by request.
    pub fn panel(self) -> Panel {
        let title = format!("{} on {}", self.title, self.device);
        let reports = self.lanes.into_iter().filter_map(|lane| Some((lane.subject.label(), lane.report?)));
        let reports: Vec<_> = reports.collect();
        let clock = reports.iter().map(|(_, r)| r.clock.as_slice()).find(|c| !c.is_empty()).unwrap_or(&[]);
        let lines = reports.iter().filter(|(_, report)| !report.samples.is_empty()).map(|(label, report)| {
            let mut samples = report.samples.clone();
            if report.clock.is_empty() {
                for sample in &mut samples {
                    sample.at = event_at(clock, sample.at);
                }
            }
            Line { label: label.clone(), samples }
        });
        Panel::of_runs(&title, WARM_UP, lines.collect())
    }
}

/// How far the requests had come at a time, by the clock of a manager.
fn event_at(clock: &[Tick], time: u64) -> u64 {
    let passed = clock.partition_point(|tick| tick.time <= time);
    match clock.first() {
        None => time,
        Some(first) => clock[..passed].last().unwrap_or(first).event,
    }
}

/// A progress bar that is moved step by step.
struct Steps {
    bar: Progress,
    done: u64,
}

impl Steps {
    fn step(&mut self) {
        self.done += 1;
        self.bar.progress(self.done);
    }
}

/// The middle one; of an even number, the mean of the two in the middle.
fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    Some(if sorted.len().is_multiple_of(2) { (sorted[sorted.len() / 2 - 1] + upper) / 2.0 } else { upper })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn a_time_finds_its_request() {
        let clock = [(0, 10), (1, 10), (2, 500), (1000, 1010)].map(|(event, time)| Tick { event, time });
        let found = [0, 10, 499, 500, 5000].map(|time| event_at(&clock, time));
        assert_eq!(found, [0, 1, 1, 2, 1000]);
        assert_eq!(event_at(&[], 7), 7);
    }
}
