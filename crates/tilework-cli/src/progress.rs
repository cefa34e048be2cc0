//! A progress bar for what takes longer than a moment.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tilework::replay::Observer;

/// What ends before this needs no bar.
const PATIENCE: Duration = Duration::from_secs(2);

/// A bar on stderr that shows itself after two seconds, and never when stderr is no terminal.
pub struct Progress {
    label: String,
    total: u64,
    bar: Bar,
}

enum Bar {
    Never,
    Waiting(Instant),
    Shown(ProgressBar),
}

impl Progress {
    /// A bar that is full at `total` events.
    pub fn new(label: String, total: u64) -> Progress {
        let bar = if io::stderr().is_terminal() { Bar::Waiting(Instant::now()) } else { Bar::Never };
        Progress { label, total, bar }
    }
}

impl Observer for Progress {
    fn progress(&mut self, events: u64) {
        match &self.bar {
            Bar::Never => {}
            Bar::Waiting(since) if since.elapsed() < PATIENCE => {}
            Bar::Waiting(_) => {
                let bar =
                    ProgressBar::with_draw_target(Some(self.total), ProgressDrawTarget::stderr_with_hz(5));
                let style = ProgressStyle::with_template("{msg} {wide_bar} {percent}% ({eta} left)");
                bar.set_style(style.expect("the template is a constant"));
                bar.set_message(self.label.clone());
                bar.set_position(events);
                self.bar = Bar::Shown(bar);
            }
            Bar::Shown(bar) => bar.set_position(events),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Bar::Shown(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
