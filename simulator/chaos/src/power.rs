//! After a power cut: who is back, and when the last one was.

use std::collections::BTreeSet;

use crate::device::Mind;
use crate::world::{Runner, World};

/// The devices that are not back yet since the power came back.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    missing: BTreeSet<Runner>,
}

impl World {
    /// The power of some devices comes back in so many milliseconds.
    pub(crate) fn power_is_out(&mut self, cut: &[Runner], milliseconds: u64) {
        self.figures.power_back_at = Some(self.time + milliseconds);
        self.figures.all_current_at = None;
        self.outage.missing =
            cut.iter().copied().filter(|runner| self.devices[*runner].is_honest()).collect();
    }

    /// A device has done something: is it back? It is when the coordinator has answered it, and it holds what is current.
    pub(crate) fn may_be_back(&mut self, runner: Runner) {
        if !self.outage.missing.contains(&runner) {
            return;
        }
        let device = &self.devices[runner];
        let Mind::Agent(Some(keeper)) = &device.mind else { return };
        let status = keeper.agent().status(device.clock.now(self.time));
        let is_current = |group: &fleetkey_agent_core::GroupStatus| {
            self.model.newest(group.group).is_none_or(|newest| group.held.last() == Some(&newest))
        };
        let is_out = self.operator.revoked.contains(&device.id);
        if is_out || (status.is_answered && status.groups.iter().all(is_current)) {
            self.outage.missing.remove(&runner);
            if self.outage.missing.is_empty() {
                self.figures.all_current_at = Some(self.time);
            }
        }
    }

    /// Devices that never came back from a power cut.
    pub(crate) fn still_missing(&self) -> usize {
        self.outage.missing.len()
    }
}
