//! `tilework worker`: one model under one manager, told what to do line by line.
//!
//! `compare` starts one of these per manager, so that the kernel's figures are that manager's alone, and
//! lets them run in turn. Each line of stdin is a command, each is answered by one line on stdout:
//!
//! ```text
//!   compare                                  worker
//!   {"command":"load"}            ──►
//!                                 ◄──        {"loaded":{…}} | {"failed":{…}}
//!   {"command":"run","draw":true} ──►
//!                                 ◄──        {"ran":{"us":…,"fingerprint":"…"}} | {"failed":{…}}
//!   {"command":"report"}          ──►        figures since "settle"
//!   end of input                  ──►        the process ends
//! ```

use std::io::{self, BufRead, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tilework::device::Calls;
use tilework::manager::Serving;
use tilework::timeline::Sample;
use tilework_ort::fingerprint;

use crate::choose::Managing;
use crate::engine::{Engine, ModelOptions, Subject, Tick, kib_of, peak_rss_bytes};
use crate::exit::Usage as Misuse;
use crate::site::Site;

/// Serve `compare` as one of its processes
#[derive(clap::Args)]
pub struct Args {
    model: PathBuf,

    #[arg(long)]
    subject: Subject,

    #[arg(long)]
    device: String,

    #[command(flatten)]
    model_options: ModelOptions,

    #[command(flatten)]
    managing: Managing,
}

/// What a worker is told.
#[derive(Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase")]
pub enum Command {
    /// Load the model.
    Load,
    /// Run it once.
    Run {
        /// Keep what was live and held meanwhile.
        draw: bool,
    },
    /// Warm-up is over: count the device's calls from here.
    Settle,
    /// Tell all figures.
    Report,
}

/// What a worker answers.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// To [`Command::Load`].
    Loaded(Loaded),
    /// To [`Command::Run`].
    Ran(Ran),
    /// To [`Command::Settle`].
    Settled,
    /// To [`Command::Report`].
    Report(Report),
    /// To any: it did not work, and the worker ends.
    Failed {
        /// Why.
        why: String,
        /// Whether the command line is to blame.
        misuse: bool,
    },
}

/// A loaded model.
#[derive(Serialize, Deserialize)]
pub struct Loaded {
    /// Which manager serves, and why; the arena has none.
    pub serving: Option<Serving>,
}

/// One run.
#[derive(Serialize, Deserialize)]
pub struct Ran {
    /// The time ONNX Runtime took, microseconds.
    pub us: f64,
    /// Of every output's name, type, shape and bits.
    pub fingerprint: String,
}

/// Figures of a worker, bytes; `None` is unknown.
#[derive(Serialize, Deserialize)]
pub struct Report {
    /// The most that was live.
    pub peak_live_bytes: Option<u64>,
    /// The most that was held.
    pub peak_held_bytes: Option<u64>,
    /// The most of the process that was resident: every address that a page is mapped at counts.
    pub peak_rss_bytes: Option<u64>,
    /// The most of the process that was resident in runs that were drawn on the CPU: every page counts once, and
    /// one shared with other processes by its share.
    pub peak_pss_bytes: Option<u64>,
    /// Of what is resident now, how much of the manager's memory is counted again because it is mapped
    /// at a second address.
    pub counted_twice_bytes: Option<u64>,
    /// Calls of the device since the warm-up.
    pub device_calls: Option<u64>,
    /// What was drawn: by request for a manager, by time for the arena.
    pub samples: Vec<Sample>,
    /// A manager's requests over time.
    pub clock: Vec<Tick>,
}

/// Serves commands until the input ends.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut worker = Worker { args, engine: None, settled: None };
    for line in io::stdin().lock().lines() {
        let answer = serde_json::from_str(&line?)
            .map_err(anyhow::Error::from)
            .and_then(|command| worker.obey(&command))
            .unwrap_or_else(|error| Answer::Failed {
                why: format!("{error:#}"),
                misuse: error.is::<Misuse>(),
            });
        let mut out = io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&answer)?)?;
        out.flush()?;
        if let Answer::Failed { .. } = answer {
            break;
        }
    }
    Ok(())
}

struct Worker<'a> {
    args: &'a Args,
    engine: Option<Engine>,
    /// The device's calls when the warm-up ended.
    settled: Option<Calls>,
}

impl Worker<'_> {
    fn obey(&mut self, command: &Command) -> anyhow::Result<Answer> {
        match command {
            Command::Load => self.load(),
            Command::Run { draw } => {
                let engine = self.engine()?;
                let (outputs, took) = if *draw { engine.run_drawn()? } else { engine.run()? };
                Ok(Answer::Ran(Ran { us: took.as_secs_f64() * 1e6, fingerprint: fingerprint(&outputs) }))
            }
            Command::Settle => {
                self.settled = self.engine()?.calls();
                Ok(Answer::Settled)
            }
            Command::Report => self.report(),
        }
    }

    fn load(&mut self) -> anyhow::Result<Answer> {
        let args = self.args;
        let site = Site::open(&args.device)?;
        let found = site.library(&args.model_options)?;
        let engine = Engine::load(
            &found.library,
            &args.model,
            &args.model_options,
            args.subject,
            &args.managing,
            &site,
            None,
        )?;
        let serving = engine.serving.clone();
        self.engine = Some(engine);
        Ok(Answer::Loaded(Loaded { serving }))
    }

    fn report(&mut self) -> anyhow::Result<Answer> {
        let settled = self.settled;
        let managed = matches!(self.args.subject, Subject::Manager(_));
        let engine = self.engine()?;
        let usage = engine.usage();
        let calls = engine.calls().zip(settled).map(|(now, then)| now.since(&then).total());
        Ok(Answer::Report(Report {
            // The arena does not know what its tensors asked for.
            peak_live_bytes: usage.filter(|_| managed).map(|u| u.peak_live),
            peak_held_bytes: usage.map(|u| u.peak_held),
            peak_rss_bytes: peak_rss_bytes(),
            peak_pss_bytes: engine.peak_pss_bytes(),
            // The host's tiles are the only shared memory of this process.
            counted_twice_bytes: usage
                .filter(|_| managed)
                .zip(kib_of("/proc/self/status", "RssShmem:"))
                .map(|(usage, resident)| resident.saturating_sub(usage.held)),
            device_calls: calls,
            samples: engine.samples().to_vec(),
            clock: engine.clock().to_vec(),
        }))
    }

    fn engine(&mut self) -> anyhow::Result<&mut Engine> {
        self.engine.as_mut().ok_or_else(|| anyhow::anyhow!("the model is not loaded yet"))
    }
}
