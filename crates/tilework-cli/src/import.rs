//! `tilework import`: a memory snapshot of PyTorch as a trace.

mod events;
mod pickle;
mod snapshot;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tilework::trace::{Event, Trace, Writer};

use crate::exit::Usage;
use crate::{files, units};
use snapshot::Snapshot;

/// Turn a memory snapshot of PyTorch into a trace
///
/// Reads what torch.cuda.memory._dump_snapshot() wrote after torch.cuda.memory._record_memory_history(),
/// and writes the requests and frees of one GPU as a trace that replay and compare read. Nothing in the
/// file is executed. What was live before the recording began is requested at its start.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The snapshot, a pickle file
    snapshot: PathBuf,

    /// Where to write the trace [default: beside the snapshot, ending in .csv.gz]
    #[arg(short, long, value_name = "TRACE")]
    output: Option<PathBuf>,

    /// Which GPU, where the snapshot has the allocations of several
    #[arg(long, value_name = "N")]
    device: Option<usize>,
}

const EXAMPLES: &str = "\
Examples:
  tilework import snapshot.pickle
  tilework import snapshot.pickle --device 1 -o second.csv.gz
  tilework import snapshot.pickle -o t.csv.gz && tilework compare t.csv.gz --plot held.svg";

/// Runs the subcommand.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let path = &args.snapshot;
    files::check(&[("the snapshot", path)], &[("the trace", args.output.as_deref())])?;
    let snapshot = fs::read(path).map_err(Into::into).and_then(Snapshot::read);
    let snapshot = snapshot.with_context(|| path.display().to_string())?;
    let device = device(&snapshot, args.device)?;
    let events = events::of(&snapshot, device);
    if events.is_empty() {
        bail!(
            "{}: no allocation was recorded on GPU {device}: call \
             torch.cuda.memory._record_memory_history() before the work, \
             and torch.cuda.memory._dump_snapshot() after it",
            path.display()
        );
    }
    // What does not make sense together is better refused here than when it is replayed.
    let trace = Trace::from_events(&path.display().to_string(), events.iter().copied())?;

    let output = args.output.clone().unwrap_or_else(|| path.with_extension("csv.gz"));
    write(&output, &events).with_context(|| format!("cannot write {}", output.display()))?;
    writeln!(
        io::stdout(),
        "{}: {} allocations, {} frees, at most {} live, GPU {device}",
        output.display(),
        units::count(trace.allocations()),
        units::count(trace.frees()),
        units::bytes(trace.peak_live_bytes())
    )?;
    Ok(())
}

/// The GPU to take: the one that was asked for, or the only one with anything in it.
fn device(snapshot: &Snapshot, asked: Option<usize>) -> anyhow::Result<usize> {
    let used = snapshot.devices();
    let named = || used.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    match (asked, used.as_slice()) {
        (Some(device), _) if used.is_empty() || used.contains(&device) => Ok(device),
        (Some(device), _) => Err(Usage(format!(
            "the snapshot has nothing of GPU {device}: it has allocations of GPU {}",
            named()
        ))
        .into()),
        (None, []) => Ok(0),
        (None, [only]) => Ok(*only),
        (None, _) => Err(Usage(format!(
            "the snapshot has allocations of the GPUs {}: choose one with --device",
            named()
        ))
        .into()),
    }
}

fn write(path: &Path, events: &[Event]) -> io::Result<()> {
    let mut writer = Writer::create(path)?;
    for event in events {
        writer.write(event)?;
    }
    writer.finish()
}

#[cfg(test)]
mod tests {
    use tilework::manager::Stream;

    use super::snapshot::Block;
    use super::*;

    fn with_live(devices: &[usize]) -> Snapshot {
        let block = |&device| Block { device, address: 512, bytes: 1, stream: Stream(0) };
        Snapshot { live: devices.iter().map(block).collect(), traces: vec![] }
    }

    #[test]
    fn one_gpu_needs_no_choice_and_several_do() {
        assert_eq!(device(&with_live(&[2, 2]), None).unwrap(), 2);
        assert_eq!(device(&with_live(&[0, 3]), Some(3)).unwrap(), 3);
        let error = device(&with_live(&[3, 0]), None).unwrap_err();
        assert!(error.is::<Usage>());
        assert_eq!(
            error.to_string(),
            "the snapshot has allocations of the GPUs 0, 3: choose one with --device"
        );
        assert!(device(&with_live(&[0, 3]), Some(1)).unwrap_err().is::<Usage>());
    }

    #[test]
    fn damaged_snapshots_are_refused_or_read_and_never_more() {
        let whole = include_bytes!("../tests/data/snapshot.pickle");
        for at in 0..whole.len() {
            for damage in [0x01, 0x80, 0xff] {
                let mut file = whole.to_vec();
                file[at] ^= damage;
                if let Ok(snapshot) = Snapshot::read(file) {
                    let events = events::of(&snapshot, 0);
                    // What makes no sense is an error here, at the latest.
                    _ = Trace::from_events("damaged", events);
                }
            }
            assert!(Snapshot::read(whole[..at].to_vec()).is_err(), "cut at {at}");
        }
    }
}
