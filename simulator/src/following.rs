//! Runs of scenarios, told to whoever watches.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use fleetkey_report::{Moment, Observer, RunReport, live};
use fleetkey_scenario::{Looked, Phase, Watch};

/// Whoever watches a run. A clone is the same one: the one who runs it and the world both tell.
#[derive(Clone)]
pub struct Following(Rc<RefCell<Box<dyn Observer>>>);

impl Following {
    /// Whoever looks at standard error.
    pub fn live() -> Self {
        Self(Rc::new(RefCell::new(live())))
    }

    /// A run begins.
    pub fn begins(&self, scenario: &str, phases: usize) {
        self.0.borrow_mut().run_begins(scenario, phases);
    }

    /// It goes on.
    pub fn moment(&self, moment: &Moment<'_>) {
        self.0.borrow_mut().moment(moment);
    }

    /// It has ended.
    pub fn ended(&self, report: &RunReport) {
        self.0.borrow_mut().run_ended(report);
    }
}

impl Watch for Following {
    fn begins(&mut self, _number: usize, _of: usize, phase: &Phase) {
        self.0.borrow_mut().phase_begins(&phase.name);
    }

    fn stands(&mut self, now: Duration, looked: &Looked) {
        let behind = looked.stragglers + looked.wanted;
        let all = looked.members + looked.wanted;
        self.moment(&Moment {
            now,
            done: all.saturating_sub(behind) as u64,
            of: Some(all as u64),
            members: looked.members as u64,
            stragglers: behind as u64,
            latencies: &[],
        });
    }

    fn ended(&mut self, phase: &fleetkey_report::Phase) {
        self.0.borrow_mut().phase_ended(phase);
    }
}
