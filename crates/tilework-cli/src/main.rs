//! The `tilework` command.
#![deny(unsafe_code)]

mod child;
mod choose;
mod compare;
mod doctor;
mod engine;
mod exit;
mod files;
mod import;
mod log;
mod pipeline;
mod plot;
mod pool;
mod progress;
mod replay;
mod run;
mod site;
mod table;
mod tap;
mod units;
mod worker;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Keeps the memory a model's runtime holds close to the memory it has live.
#[derive(Parser)]
#[command(name = "tilework", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Log more to stderr: -v what is done, -vv every detail. RUST_LOG overrules it.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,

    /// The process that this one is to end with: `compare` starts others
    #[arg(long, hide = true)]
    parent: Option<u32>,
}

const EXAMPLES: &str = "\
Examples:
  tilework run model.onnx --shape latent=1x4x64x64
                                                  a model in ONNX Runtime, its memory ours
  tilework compare model.onnx --shape latent=1x4x64x64 --plot held.svg
                                                  every manager and ONNX Runtime's own arena
  tilework compare model.onnx --shape latent=1x4x96x96 --device cuda
                                                  the same on an NVIDIA GPU
  tilework run text.onnx unet.onnx vae.onnx --budget 6GiB --device cuda
                                                  models that do not fit together, by turns
  tilework replay trace.csv.gz                    one manager, pass by pass
  tilework compare trace.csv.gz --plot held.svg   every manager, as a table and a picture
  tilework import snapshot.pickle                 a PyTorch memory snapshot, as a trace
  tilework doctor                                 the devices there are, and what is wrong with the others

Exit codes: 0 done, 1 failed, 2 wrong usage.";

#[derive(Subcommand)]
enum Command {
    Run(run::Args),
    Replay(replay::Args),
    Compare(compare::Args),
    Import(import::Args),
    Doctor(doctor::Args),
    #[command(hide = true)]
    Worker(worker::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    log::start(cli.verbose);
    let result = cli.parent.map_or(Ok(()), child::end_with).and_then(|()| match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Worker(args) => worker::run(&args),
    });
    exit::code(result)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_options_do_not_clash() {
        super::Cli::command().debug_assert();
    }
}
