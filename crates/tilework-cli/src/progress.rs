//! A progress bar for what takes longer than a moment.

use std::io::{self, IsTerminal};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tilework::replay::Observer;

/// What ends before this needs no bar.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often a bar on which nothing else happens moves.
const TICK: Duration = Duration::from_millis(200);

/// A bar on stderr that shows itself after two seconds, whether there was progress or not, and never when stderr is no
/// terminal.
pub struct Progress(Option<Shown>);

struct Shown {
    bar: ProgressBar,
    /// Waits, and shows the bar; ends when the sender is gone.
    waiting: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// A bar that is full at `total` events.
    pub fn new(label: String, total: u64) -> Progress {
        Progress::styled(label, Some(total), "{spinner} {msg} {wide_bar} {percent}% ({eta} left)")
    }

    /// For work that does not tell how much of it is done.
    pub fn of_unknown(label: String) -> Progress {
        Progress::styled(label, None, "{spinner} {msg} ({elapsed})")
    }

    fn styled(label: String, total: Option<u64>, template: &str) -> Progress {
        if !io::stderr().is_terminal() {
            return Progress(None);
        }
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden());
        bar.set_style(ProgressStyle::with_template(template).expect("the template is a constant"));
        bar.set_message(label);
        let (sender, ended) = mpsc::channel();
        let shown = bar.clone();
        let waiting = thread::spawn(move || {
            if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                shown.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
                shown.enable_steady_tick(TICK);
            }
        });
        Progress(Some(Shown { bar, waiting: Some((sender, waiting)) }))
    }
}

impl Observer for Progress {
    fn progress(&mut self, events: u64) {
        if let Some(shown) = &self.0 {
            shown.bar.set_position(events);
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some((sender, waiting)) = self.waiting.take() {
            drop(sender);
            // It only fails where it panicked, and then there is no bar.
            let _ = waiting.join();
        }
        self.bar.finish_and_clear();
    }
}
