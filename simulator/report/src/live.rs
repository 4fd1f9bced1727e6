//! The live view of a run, on standard error: redrawn in place on a terminal, plain lines elsewhere.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IsTerminal as _, Write};
use std::time::{Duration, Instant};

use fleetkey_plot::Unit;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::measure::Times;
use crate::observer::{Moment, Observer};
use crate::quantity::{microseconds, seconds};
use crate::run::{Phase, RunReport};

/// How often plain lines tell of a phase that goes on.
const PACE: Duration = Duration::from_secs(10);
/// How often a terminal is drawn anew, at most.
const REDRAW: Duration = Duration::from_millis(200);
/// Moments that the sparkline shows.
const SPARKS: usize = 32;

/// Whoever looks at standard error: a terminal, or a file.
pub fn live() -> Box<dyn Observer> {
    if io::stderr().is_terminal() {
        Box::new(Terminal::default())
    } else {
        Box::new(Lines::new(io::stderr(), PACE))
    }
}

/// What is known of a phase that is under way.
#[derive(Debug)]
struct Running {
    name: String,
    started: Instant,
    /// In the run's own time; known from the first moment on.
    began: Option<(Duration, u64)>,
    now: Duration,
    done: u64,
    of: Option<u64>,
    members: u64,
    stragglers: u64,
    latencies: Times,
    /// Since the last spark.
    fresh: Times,
    sparks: VecDeque<u64>,
}

impl Running {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            started: Instant::now(),
            began: None,
            now: Duration::ZERO,
            done: 0,
            of: None,
            members: 0,
            stragglers: 0,
            latencies: Times::default(),
            fresh: Times::default(),
            sparks: VecDeque::new(),
        }
    }

    fn take(&mut self, moment: &Moment<'_>) {
        self.began.get_or_insert((moment.now, moment.done));
        (self.now, self.done, self.of) = (moment.now, moment.done, moment.of);
        (self.members, self.stragglers) = (moment.members, moment.stragglers);
        for latency in moment.latencies {
            self.latencies.record(*latency);
            self.fresh.record(*latency);
        }
    }

    /// Goes on with the sparkline: 99 of 100 of those since the last time took at most this.
    fn spark(&mut self) {
        let fresh = std::mem::take(&mut self.fresh).histogram();
        if fresh.count() > 0 {
            self.sparks.push_back(fresh.quantile(0.99));
            if self.sparks.len() > SPARKS {
                self.sparks.pop_front();
            }
        }
    }

    /// Steps for each second of the run's own time.
    fn rate(&self) -> Option<f64> {
        let (began, before) = self.began?;
        let took = self.now.checked_sub(began).filter(|took| *took > Duration::ZERO)?;
        let done = self.done.checked_sub(before).filter(|done| *done > 0)?;
        Some(done as f64 / took.as_secs_f64())
    }
}

/// Rate, stragglers, latency: one line.
impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {}", seconds(self.now.as_secs_f64()))?;
        if let Some(rate) = self.rate() {
            write!(f, ", {}/s", Unit::Count.show(if rate < 100.0 { rate } else { rate.round() }))?;
        }
        let count = |of: u64| Unit::Count.show(of as f64);
        write!(f, ", {} members, {} behind", count(self.members), count(self.stragglers))?;
        let latencies = self.latencies.histogram();
        if latencies.count() > 0 {
            let at = |share| microseconds(latencies.quantile(share));
            write!(f, ", new key p50 {} p99 {} max {}", at(0.5), at(0.99), at(1.0))?;
        }
        if !self.sparks.is_empty() {
            write!(f, " {}", sparkline(self.sparks.iter().copied()))?;
        }
        Ok(())
    }
}

/// Eight heights for what is between the least and the most.
fn sparkline(values: impl Iterator<Item = u64> + Clone) -> String {
    const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let (low, high) = values.clone().fold((u64::MAX, 0), |(low, high), of| (low.min(of), high.max(of)));
    let span = high.saturating_sub(low).max(1);
    values
        .map(|of| HEIGHTS[usize::try_from((of - low).saturating_mul(7) / span).unwrap_or(7).min(7)])
        .collect()
}

/// What is said of a phase that has ended.
fn ended(phase: &Phase) -> String {
    let mut line = format!("{:<28} {:>9}", phase.name, seconds(phase.took_seconds));
    if let Some(latency) = phase.latency.as_ref().filter(|latency| latency.count() > 0) {
        let at = |share| microseconds(latency.quantile(share));
        line.push_str(&format!(
            "  {} devices, new key p50 {} p99 {} max {}",
            Unit::Count.show(latency.count() as f64),
            at(0.5),
            at(0.99),
            at(1.0)
        ));
    }
    line
}

/// What is said of a run that has ended.
fn over(report: &RunReport) -> String {
    let failed = report.checks.iter().filter(|check| !check.held).count();
    let checks = match failed {
        0 => format!("all {} checks held", report.checks.len()),
        failed => format!("{failed} of {} checks FAILED", report.checks.len()),
    };
    format!("{}: {checks}, in {}", report.scenario, seconds(report.seconds))
}

fn begun(scenario: &str, phases: usize) -> String {
    format!("{scenario}: {phases} phases")
}

/// Plain lines.
struct Lines<W> {
    to: W,
    pace: Duration,
    running: Option<Running>,
    said: Instant,
}

impl<W: Write> Lines<W> {
    fn new(to: W, pace: Duration) -> Self {
        Self { to, pace, running: None, said: Instant::now() }
    }

    fn say(&mut self, line: &str) {
        self.said = Instant::now();
        // Whoever has closed standard error does not want to be told.
        _ = writeln!(self.to, "{line}");
    }
}

impl<W: Write> Observer for Lines<W> {
    fn run_begins(&mut self, scenario: &str, phases: usize) {
        self.say(&begun(scenario, phases));
    }

    fn phase_begins(&mut self, name: &str) {
        self.running = Some(Running::new(name));
        self.said = Instant::now();
    }

    fn moment(&mut self, moment: &Moment<'_>) {
        let Some(running) = &mut self.running else { return };
        running.take(moment);
        if self.said.elapsed() < self.pace {
            return;
        }
        running.spark();
        let of = running.of.map_or_else(String::new, |of| format!(" of {}", Unit::Count.show(of as f64)));
        let line =
            format!(".. {:<28} {}{of}, {running}", running.name, Unit::Count.show(running.done as f64));
        self.say(&line);
    }

    fn phase_ended(&mut self, phase: &Phase) {
        self.running = None;
        self.say(&format!("ok {}", ended(phase)));
    }

    fn run_ended(&mut self, report: &RunReport) {
        self.say(&over(report));
    }
}

/// A terminal: a bar for the phase, a line on how it goes, and above them the phases that have ended.
#[derive(Default)]
struct Terminal {
    all: MultiProgress,
    shown: Option<Shown>,
    phases: usize,
    ended: usize,
}

struct Shown {
    running: Running,
    bar: ProgressBar,
    line: ProgressBar,
    drawn: Instant,
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    bar.set_style(ProgressStyle::with_template(template).expect("the template is well-formed"));
    bar
}

impl Observer for Terminal {
    fn run_begins(&mut self, scenario: &str, phases: usize) {
        (self.phases, self.ended) = (phases, 0);
        _ = self.all.println(begun(scenario, phases));
    }

    fn phase_begins(&mut self, name: &str) {
        let bar = styled(ProgressBar::no_length(), "{spinner} {prefix:34} {elapsed:>5} {pos}");
        let bar = self.all.add(bar);
        bar.set_prefix(format!("{} ({} of {})", name, self.ended + 1, self.phases.max(self.ended + 1)));
        bar.enable_steady_tick(REDRAW);
        let line = self.all.add(styled(ProgressBar::no_length(), "  {wide_msg}"));
        let now = Instant::now();
        self.shown = Some(Shown { running: Running::new(name), bar, line, drawn: now });
    }

    fn moment(&mut self, moment: &Moment<'_>) {
        let Some(Shown { running, bar, line, drawn }) = &mut self.shown else { return };
        let is_first_with_an_end = running.of.is_none() && moment.of.is_some();
        running.take(moment);
        if is_first_with_an_end {
            let style =
                ProgressStyle::with_template("{spinner} {prefix:34} {wide_bar} {pos}/{len} {elapsed:>5}");
            bar.set_style(style.expect("the template is well-formed"));
        }
        if let Some(of) = running.of {
            bar.set_length(of);
        }
        if drawn.elapsed() >= REDRAW {
            *drawn = Instant::now();
            running.spark();
            bar.set_position(running.done);
            line.set_message(running.to_string());
        }
    }

    fn phase_ended(&mut self, phase: &Phase) {
        if let Some(Shown { running, bar, line, .. }) = self.shown.take() {
            line.finish_and_clear();
            bar.finish_and_clear();
            self.all.remove(&line);
            self.all.remove(&bar);
            let took = running.started.elapsed().as_secs_f64();
            // In virtual time, also what it took those who wait for it.
            let waited = match took * 2.0 < phase.took_seconds {
                true => format!("  (simulated in {})", seconds(took)),
                false => String::new(),
            };
            _ = self.all.println(format!("ok {}{waited}", ended(phase)));
        }
        self.ended += 1;
    }

    fn run_ended(&mut self, report: &RunReport) {
        _ = self.all.println(over(report));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparkline_goes_from_the_least_to_the_most() {
        assert_eq!(sparkline([0, 50, 100].into_iter()), "▁▄█");
        assert_eq!(sparkline([7, 7].into_iter()), "▁▁");
        assert_eq!(sparkline([0, u64::MAX / 7].into_iter()), "▁█");
    }

    #[test]
    fn lines_tell_of_progress_rate_stragglers_and_latency() {
        let mut said = Vec::new();
        let mut lines = Lines::new(&mut said, Duration::ZERO);
        lines.run_begins("stolen-truck", 2);
        lines.phase_begins("revoke the truck");
        let at = |seconds, done, latencies| Moment {
            now: Duration::from_secs(seconds),
            done,
            of: Some(9_700),
            members: 9_700,
            stragglers: 9_700 - done,
            latencies,
        };
        lines.moment(&at(10, 0, &[]));
        let latencies = [Duration::from_millis(5), Duration::from_millis(80)];
        lines.moment(&at(12, 4_000, &latencies));
        let latency = {
            let mut times = Times::default();
            latencies.iter().for_each(|latency| times.record(*latency));
            times.histogram()
        };
        lines.phase_ended(&Phase {
            name: "revoke the truck".to_owned(),
            began_seconds: 10.0,
            took_seconds: 3.0,
            latency: Some(latency),
            bytes_per_device: None,
            figures: std::collections::BTreeMap::new(),
        });
        let said = String::from_utf8(said).unwrap();
        let second = said.lines().nth(2).unwrap();
        for part in ["4,000 of 9,700", "2,000/s", "5,700 behind", "p50 5 ms p99 80", "▁"] {
            assert!(second.contains(part), "{part} is not in: {second}");
        }
        assert!(said.lines().nth(3).unwrap().contains("2 devices, new key p50 5 ms"), "{said}");
    }
}
