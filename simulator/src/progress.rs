//! Progress, live on a terminal and as plain lines elsewhere. All of it goes to standard error.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// The progress of one stage.
#[derive(Debug)]
pub struct Progress {
    name: String,
    started: Instant,
    bar: Option<ProgressBar>,
    total: usize,
}

impl Progress {
    /// Begins a stage of `total` steps.
    pub fn start(name: impl Into<String>, total: usize) -> Self {
        let name = name.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total as u64);
            let style =
                ProgressStyle::with_template("{spinner} {msg:34} {wide_bar} {pos}/{len} {elapsed:>4}");
            bar.set_style(style.expect("the template is well-formed"));
            bar.set_message(name.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { name, started: Instant::now(), bar, total }
    }

    /// So many steps are done.
    pub fn set(&self, done: usize) {
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
        }
    }

    /// Ends the stage, and says how it went.
    pub fn finish(self, done: usize) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let mark = if done == self.total { "ok " } else { "!! " };
        eprintln!(
            "{mark}{:36} {done:>6}/{:<6} {:>7.2} s",
            self.name,
            self.total,
            self.started.elapsed().as_secs_f64()
        );
    }
}
