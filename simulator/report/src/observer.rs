//! Who is told of a run while it goes on.
//!
//! Leaves to the one who runs it when that is; several times a second of the machine's time is often enough.

use std::time::Duration;

use crate::run::{Phase, RunReport};

/// How the phase that is under way stands.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moment<'a> {
    /// Since the run began, in the run's own time.
    pub now: Duration,
    /// Steps of the phase that are done: devices that are in, connected, or current.
    pub done: u64,
    /// Steps that there are; none when nobody knows, as in a phase that ends with its time.
    pub of: Option<u64>,
    /// Devices that are members.
    pub members: u64,
    /// Members that do not hold the newest key yet.
    pub stragglers: u64,
    /// How long devices took to a new key, those that were heard of since the last moment.
    pub latencies: &'a [Duration],
}

/// Somebody who is told of a run while it goes on. Whoever wants to hear of one thing alone, says so of that one.
pub trait Observer {
    /// A run begins.
    fn run_begins(&mut self, scenario: &str, phases: usize) {
        _ = (scenario, phases);
    }

    /// A phase begins.
    fn phase_begins(&mut self, name: &str) {
        _ = name;
    }

    /// It goes on.
    fn moment(&mut self, moment: &Moment<'_>) {
        _ = moment;
    }

    /// It has ended.
    fn phase_ended(&mut self, phase: &Phase) {
        _ = phase;
    }

    /// The run has ended.
    fn run_ended(&mut self, report: &RunReport) {
        _ = report;
    }
}

/// Nobody.
impl Observer for () {}
