//! The end of a run: the faults stop, everybody comes back, and there is time.

use std::collections::BTreeSet;

use fleetkey_coordinator_core::records::{IssuedRecord, Record as _};
use fleetkey_coordinator_core::{Standing, Store as _, Table, Writer};
use fleetkey_wire::{Commitment, GroupId, KeyEpoch, SignedStatement};

use crate::device::Mind;
use crate::model::{Rule, Voice};
use crate::world::{Due, Weather, World};

const MINUTE: u64 = 60_000;
/// How long a fleet is given to come to rest: several hello intervals, and the longest back-off.
const REST_MINUTES: u64 = 70;
/// How long the operator needs to see that a coordinator is not the only one.
const LOOK_MINUTES: u64 = 40;

impl World {
    /// Stops all faults, lets time pass, and looks at everything.
    pub(crate) fn heal_and_check(&mut self) {
        self.heal();
        if self.model.has_copy_issued() || self.hosts[0].voice == Voice::Copy {
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
        self.edits_to_come = 0;
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
            } else {
                // Whoever sleeps wakes up.
                self.start_later(runner, 1_000);
            }
        }
        self.release_quarantined();
        self.after(0, Due::Operator);
    }

    /// A live device that holds what this coordinator never issued, or keeps it as evidence, has told it so: it has
    /// stopped.
    fn check_detection(&mut self) {
        let now = self.hosts[0].clock.now(self.time);
        let rows = self.hosts[0].disk.rows(Table::Issued).unwrap_or_default();
        let issued: BTreeSet<(GroupId, KeyEpoch, [u8; 32])> = rows
            .iter()
            .filter_map(|row| IssuedRecord::read(row).ok())
            .map(|issued| (issued.group, issued.key_epoch, issued.commitment))
            .collect();
        let Some(coordinator) = self.hosts[0].writer.as_mut().and_then(Writer::coordinator) else { return };
        let status = coordinator.status(now);
        if status.superseded {
            self.figures.copies_detected += 1;
            return;
        }
        let groups: BTreeSet<GroupId> = self
            .groups
            .iter()
            .flatten()
            .filter(|group| coordinator.group(**group).is_some())
            .copied()
            .collect();
        let is_strange = |(group, key_epoch, commitment): &(GroupId, KeyEpoch, Commitment)| {
            groups.contains(group)
                && key_epoch.incarnation() >= status.incarnation
                && !issued.contains(&(*group, *key_epoch, commitment.0))
        };
        let live = self.devices.iter().find_map(|device| {
            let Mind::Agent(Some(keeper)) = &device.mind else { return None };
            let counts = device.is_honest()
                && device.is_connected
                && coordinator.device(device.id).is_some_and(|known| known.standing == Standing::Enrolled);
            let held = groups.iter().flat_map(|group| {
                let held = keeper.agent().commitments(*group);
                held.into_iter().map(|(key_epoch, commitment)| (*group, key_epoch, commitment))
            });
            let kept = keeper.agent().evidence().filter_map(|statement| {
                let signed = SignedStatement::from_trusted(statement).ok()?;
                let said = signed.statement();
                Some((said.group, said.key_epoch, said.commitment))
            });
            let strange = held.chain(kept).find(is_strange);
            strange.filter(|_| counts).map(|(group, key_epoch, _)| (device.id, group, key_epoch))
        });
        if let Some((device, group, key_epoch)) = live {
            let what = format!(
                "{device} holds, or has seen, a {key_epoch} of {group} that this coordinator did not issue, and it has not noticed"
            );
            self.broken(Rule::OneSecretPerKeyEpoch, what);
        }
    }
}
