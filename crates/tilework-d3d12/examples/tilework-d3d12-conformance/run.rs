//! Runs every check, each in a process of its own.

use std::env;
use std::process::{Command, ExitCode};
use std::time::Instant;

use crate::{checks, device};

/// How many random sequences are run where nobody says: each read waits for the device.
const CASES: &str = "48";

/// Which the checks named are, or all of them, each by this program with its name.
pub fn main() -> ExitCode {
    let all = checks::all();
    if let Some(name) = env::args().nth(1) {
        let Some((_, check)) = all.iter().find(|(known, _)| *known == name) else {
            eprintln!("there is no check {name}; without arguments all are run");
            return ExitCode::FAILURE;
        };
        check();
        device::check_that_nothing_is_left();
        return ExitCode::SUCCESS;
    }
    match device::describe() {
        Ok(lines) => lines.iter().for_each(|line| println!("{line}")),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    }
    let this = match env::current_exe() {
        Ok(path) => path,
        Err(error) => {
            eprintln!("this program does not find itself: {error}");
            return ExitCode::FAILURE;
        }
    };
    let cases = env::var("PROPTEST_CASES").unwrap_or_else(|_| CASES.to_owned());
    let mut failed = 0;
    for (name, _) in &all {
        let start = Instant::now();
        let status = Command::new(&this).arg(name).env("PROPTEST_CASES", &cases).status();
        let held = status.is_ok_and(|status| status.success());
        failed += u32::from(!held);
        println!("{:6} {name} ({:.1} s)", if held { "ok" } else { "FAILED" }, start.elapsed().as_secs_f64());
    }
    println!("{} of {} checks held", all.len() - failed as usize, all.len());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
