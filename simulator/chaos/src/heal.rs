//! The end of a run: the faults stop, everybody comes back, and there is time.

use crate::model::Rule;
use crate::world::{Due, Weather, World};

const MINUTE: u64 = 60_000;
/// How long a fleet is given to come to rest: several hello intervals, and the longest back-off.
const REST_MINUTES: u64 = 150;
/// How long the operator needs to see that a coordinator is not the only one.
const LOOK_MINUTES: u64 = 40;

impl World {
    /// Stops all faults, lets time pass, and looks at everything.
    pub(crate) fn heal_and_check(&mut self) {
        self.heal();
        if self.model.has_copy_issued() {
            self.run_until(self.time + LOOK_MINUTES * MINUTE);
            self.check_detection();
            self.restore_in_place();
        }
        self.run_until(self.time + REST_MINUTES * MINUTE);
        if self.violation.is_none() {
            self.check_quiescence();
        }
    }

    fn heal(&mut self) {
        self.is_healed = true;
        self.weather = Weather::CALM;
        self.broker_back_at = 0;
        self.end_copies();
        for host in &mut self.hosts {
            host.disk.health().is_full.set(false);
            host.disk.health().disarm();
            host.clock.set_right();
        }
        for runner in 0..self.devices.len() {
            let device = &mut self.devices[runner];
            device.disk.health().is_full.set(false);
            device.disk.health().disarm();
            device.cut_off_until = 0;
            device.withheld_until = 0;
            if device.is_clone {
                self.end_clone(runner);
            }
        }
        self.release_quarantined();
        self.after(0, Due::Operator);
    }

    /// Whoever has met a copy has told the coordinator, or the coordinator has moved past what the copy did.
    fn check_detection(&mut self) {
        let now = self.hosts[0].clock.now(self.time);
        let Some(coordinator) =
            self.hosts[0].writer.as_mut().and_then(fleetkey_coordinator_core::Writer::coordinator)
        else {
            return;
        };
        if coordinator.status(now).superseded {
            self.figures.copies_detected += 1;
            return;
        }
        let met = self.model.holders_of_copies();
        let live = met.into_iter().find(|runner| {
            let device = &self.devices[*runner];
            device.is_honest() && device.is_connected && !self.operator.revoked.contains(&device.id)
        });
        if let Some(runner) = live {
            let what = format!(
                "{} holds a secret of a copy, and the coordinator has not noticed",
                self.devices[runner].id
            );
            self.broken(Rule::OneSecretPerKeyEpoch, what);
        }
    }
}
