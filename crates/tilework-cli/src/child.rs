//! Processes of this program that it starts for its own work: they end when it does, however it ends.

use std::process::{self, Command};

use anyhow::Context;

/// This program again, as a child of this process. To be started by the main thread: Linux ends the child with the
/// thread that started it.
///
/// # Errors
/// When the program's file cannot be found.
pub fn command() -> anyhow::Result<Command> {
    let program = std::env::current_exe().context("cannot find the program itself to start it again")?;
    let mut command = Command::new(program);
    command.arg(format!("--parent={}", process::id()));
    Ok(command)
}

/// Makes this process end with `parent`, which started it.
///
/// # Errors
/// When the system refuses, or the parent is gone.
#[cfg(target_os = "linux")]
pub fn end_with(parent: u32) -> anyhow::Result<()> {
    use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

    set_parent_process_death_signal(Some(Signal::KILL))
        .context("cannot be told that the parent has ended")?;
    // Whoever ended before that is no longer our parent.
    let parent = i32::try_from(parent).ok().and_then(Pid::from_raw);
    anyhow::ensure!(getppid() == parent, "the process that started this one has ended");
    Ok(())
}

/// Elsewhere nothing tells: a worker ends with its input, a replay when it is done.
#[cfg(not(target_os = "linux"))]
pub fn end_with(_parent: u32) -> anyhow::Result<()> {
    Ok(())
}
