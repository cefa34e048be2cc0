//! A worker process, as `compare` sees it.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::thread::JoinHandle;

use anyhow::{Context, bail};

use crate::child;
use crate::engine::Subject;
use crate::exit::Usage as Misuse;
use crate::worker::{self, Answer};

/// As much of a worker's stderr as is kept: the end of it tells why it died.
const STDERR_KEPT: usize = 4096;

/// A worker.
pub struct Process {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
    stderr: Option<JoinHandle<String>>,
}

impl Process {
    /// Starts a worker for a model under `subject`.
    pub fn start(model: &Path, subject: Subject, arguments: &[OsString]) -> anyhow::Result<Process> {
        let mut child = child::command()?
            .arg("worker")
            .arg(format!("--subject={subject}"))
            .args(arguments)
            .arg("--")
            .arg(model)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start a process for a manager")?;
        let to = child.stdin.take();
        let from = BufReader::new(child.stdout.take().expect("it was asked to be piped"));
        let mut stderr = child.stderr.take().expect("it was asked to be piped");
        // Read all the time, so that the worker never waits for room.
        let stderr = std::thread::spawn(move || {
            let mut kept = Vec::new();
            let mut piece = [0; STDERR_KEPT];
            while let Ok(n @ 1..) = stderr.read(&mut piece) {
                kept.extend_from_slice(&piece[..n]);
                let excess = kept.len().saturating_sub(STDERR_KEPT);
                kept.drain(..excess);
            }
            String::from_utf8_lossy(&kept).trim().to_owned()
        });
        Ok(Process { child, to, from, stderr: Some(stderr) })
    }

    /// Gives a command and waits for its answer.
    ///
    /// # Errors
    /// The worker's own words when it failed; what it left on stderr when it died.
    pub fn ask(&mut self, command: &worker::Command) -> anyhow::Result<Answer> {
        let mut line = serde_json::to_string(command)?;
        line.push('\n');
        let sent = self.to.as_mut().is_some_and(|to| to.write_all(line.as_bytes()).is_ok());
        let mut answer = String::new();
        if !sent || self.from.read_line(&mut answer)? == 0 {
            return self.died();
        }
        match serde_json::from_str(&answer).context("a worker printed something else")? {
            Answer::Failed { why, misuse: true } => Err(Misuse(why).into()),
            Answer::Failed { why, misuse: false } => bail!("{why}"),
            answer => Ok(answer),
        }
    }

    fn died(&mut self) -> anyhow::Result<Answer> {
        self.to = None;
        let status = self.child.wait()?;
        let stderr = self.stderr.take().and_then(|s| s.join().ok()).unwrap_or_default();
        let words = if stderr.is_empty() { String::new() } else { format!("; its last words:\n{stderr}") };
        bail!("its process died ({status}){words}")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The end of its input is the sign to end.
        self.to = None;
        let _ = self.child.wait();
    }
}
