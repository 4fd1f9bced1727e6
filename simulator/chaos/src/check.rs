//! What is looked at beyond the model: what is stored after every crash, and everything when the faults have stopped.

use std::collections::BTreeSet;

use fleetkey_coordinator_core::doctor::{self, About, Severity};
use fleetkey_coordinator_core::{
    Coordinator, GroupStatus, MemoryStore, Place, Standing, Store as _, Table, Writer,
};
use fleetkey_wire::{DeviceId, GroupId};

use crate::model::{Rule, Voice};
use crate::world::{Runner, World};

/// What `docs/LIMITS.md` says of rows.
const KEPT_COMMITS: usize = 16;
const KEY_PACKAGES_PER_DEVICE: usize = 2;
const MAX_LIVE_KEYS: usize = 2;
/// A device keeps the private halves of so many.
const MAX_DEVICE_KEY_PACKAGES: usize = 16;

/// An empty coordinator's database.
pub(crate) fn new_store(unix_seconds: u64) -> MemoryStore {
    let mut store = MemoryStore::default();
    store.commit(&Coordinator::initial_rows(unix_seconds)).expect("memory does not fail");
    store
}

impl World {
    /// The doctor finds nothing wrong with what is stored.
    pub(crate) fn examine(&mut self, at: usize) {
        let about = About { fleet: self.fleet.id, coordinator: self.fleet.identity.public_key() };
        let host = &self.hosts[at];
        if host.voice == Voice::Copy {
            return;
        }
        let now = host.clock.now(self.time);
        match doctor::examine(&mut host.disk.image(), &about, now.unix_seconds) {
            Ok(findings) => {
                if let Some(worst) = findings.iter().find(|found| found.severity() < Severity::Attention) {
                    self.broken(Rule::StoreMakesSense, worst.to_string());
                }
            }
            Err(error) => self.broken(Rule::StoreMakesSense, error.to_string()),
        }
    }

    /// Everything that must hold once the faults have stopped and there was time.
    pub(crate) fn check_quiescence(&mut self) {
        self.examine(0);
        self.check_limits(0);
        let owed = self.hosts[0].owed();
        if owed > 0 {
            self.broken(Rule::StoredThenSpoken, format!("{owed} frames were stored and never sent"));
        }
        let missing = self.still_missing();
        if missing > 0 && self.profile.is_plain {
            self.broken(
                Rule::EveryoneEndsCurrent,
                format!("{missing} devices never came back from a power cut"),
            );
        }
        if !self.is_operator_idle() {
            self.broken(Rule::EveryoneEndsCurrent, "an order of the operator cannot be carried out".into());
        }
        self.check_revoked();
        let now = self.hosts[0].clock.now(self.time);
        for number in 0..self.groups.len() {
            let Some(coordinator) = self.hosts[0].writer.as_mut().and_then(Writer::coordinator) else {
                return self.broken(Rule::EveryoneEndsCurrent, "the coordinator does not run".into());
            };
            let Some(group) = self.groups[number] else { continue };
            let Some(status) = coordinator.group_status(group, now) else { continue };
            let members: Vec<_> = coordinator.members(group).cloned().collect();
            self.check_membership(number, &members.iter().map(|member| member.device).collect());
            for member in members {
                self.check_member(number, group, &status, &member);
            }
            self.check_traffic(number, group);
        }
    }

    /// Revoked is for ever.
    fn check_revoked(&mut self) {
        let Some(coordinator) = self.hosts[0].writer.as_mut().and_then(Writer::coordinator) else { return };
        let is_back = |device: &&DeviceId| {
            let standing = coordinator.device(**device).map(|known| &known.standing);
            !matches!(standing, Some(Standing::Revoked { .. }))
        };
        if let Some(device) = self.operator.revoked.iter().find(is_back) {
            let what = format!("{device} was revoked, and the coordinator knows nothing of it");
            self.broken(Rule::RemovedLearnsNothing, what);
        }
    }

    /// What is kept for devices has limits, whatever they do.
    pub(crate) fn check_limits(&mut self, at: usize) {
        let mut store = self.hosts[at].disk.image();
        let mut count = |table| store.rows(table).map_or(0, |rows| rows.len());
        let devices = count(Table::Device);
        let (cells, members) = (count(Table::Cell), count(Table::Member));
        let limits = [
            (Table::Commit, cells * KEPT_COMMITS),
            (Table::Welcome, members),
            (Table::KeyPackage, devices * KEY_PACKAGES_PER_DEVICE),
            (Table::GroupKey, self.groups.len() * MAX_LIVE_KEYS),
        ];
        for (table, most) in limits {
            let rows = count(table);
            if rows > most {
                let what = format!("{rows} rows of {}, at most {most} may be", table.name());
                self.broken(Rule::WithinLimits, what);
            }
        }
        let device = |device: &crate::device::Device| {
            let entries = device.disk.image();
            let packages = entries.keys().filter(|key| key.starts_with("keypackage/")).count();
            (packages > MAX_DEVICE_KEY_PACKAGES)
                .then(|| format!("{} keeps {packages} key packages", device.id))
        };
        if let Some(what) = self.devices.iter().find_map(device) {
            self.broken(Rule::WithinLimits, what);
        }
    }

    fn check_membership(&mut self, number: usize, members: &BTreeSet<DeviceId>) {
        let wanted = self.operator.wanted.get(&number).cloned().unwrap_or_default();
        let missing: Vec<_> = wanted
            .difference(members)
            .filter(|device| !self.operator.leaving.contains(&(number, **device)))
            .collect();
        if let Some(device) = missing.first() {
            let what = format!("{device} was to stay in group {number}, and is out of it");
            return self.broken(Rule::OnlyTheCoordinatorMoves, what);
        }
        if let Some(device) = members.difference(&wanted).next() {
            let what = format!("{device} is in group {number}, where nobody wants it");
            self.broken(Rule::OnlyTheCoordinatorMoves, what);
        }
    }

    fn check_member(
        &mut self,
        number: usize,
        group: GroupId,
        status: &GroupStatus,
        member: &fleetkey_coordinator_core::MemberRecord,
    ) {
        let Some(runner) = self.honest_runner(member.device) else { return };
        if self.operator.leaving.contains(&(number, member.device)) {
            return;
        }
        let Some(shown) = self.devices[runner].status(self.time) else {
            let what = format!("{} does not run", member.device);
            return self.broken(Rule::EveryoneEndsCurrent, what);
        };
        let of_group = shown.groups.iter().find(|of| of.group == group);
        let what = match of_group {
            _ if member.place == Place::Wanted => Some("was not let in".to_owned()),
            None => Some("is not in it, and the coordinator thinks it is".to_owned()),
            Some(of) if of.send.to_string() != status.send => {
                Some(format!("seals with {}, the group with {}", of.send, status.send))
            }
            Some(of) if of.oldest.to_string() != status.oldest => {
                Some(format!("accepts from {} on, the group from {}", of.oldest, status.oldest))
            }
            Some(of) if of.held.last().map(ToString::to_string).as_ref() != Some(&status.key_epoch) => {
                Some(format!("holds {:?}, the newest is {}", of.held, status.key_epoch))
            }
            Some(_) if member.confirmed.to_string() != status.key_epoch => {
                Some(format!("confirmed {}, the newest is {}", member.confirmed, status.key_epoch))
            }
            Some(_) => None,
        };
        if let Some(what) = what {
            let what = format!("{} in group {number}: {what}", member.device);
            self.broken(Rule::EveryoneEndsCurrent, what);
        }
    }

    /// What one member seals the others open, and nobody else does.
    fn check_traffic(&mut self, number: usize, group: GroupId) {
        let is_in = |world: &Self, runner: Runner| {
            let id = world.devices[runner].id;
            world.operator.wanted.get(&number).is_some_and(|wanted| wanted.contains(&id))
                && !world.operator.leaving.contains(&(number, id))
        };
        let all = 0..self.devices.len();
        let honest: Vec<Runner> =
            all.filter(|runner| self.devices[*runner].is_honest() && !self.devices[*runner].is_off).collect();
        let Some(first) = honest.iter().copied().find(|runner| is_in(self, *runner)) else { return };
        let Some(sealed) = self.seal(first, group) else {
            let what = format!("{} cannot seal in group {number}", self.devices[first].id);
            return self.broken(Rule::EveryoneEndsCurrent, what);
        };
        for runner in honest {
            let id = self.devices[runner].id;
            let opens = self.opens(runner, &sealed);
            if is_in(self, runner) && !opens {
                let what = format!("{id} in group {number} cannot open what a member sealed");
                return self.broken(Rule::EveryoneEndsCurrent, what);
            }
            let is_member = self.model.is_member(group, id);
            if !is_member && opens {
                let what = format!("{id} is out of group {number}, and opens what a member sealed");
                return self.broken(Rule::RemovedLearnsNothing, what);
            }
        }
    }

    fn seal(&mut self, runner: Runner, group: GroupId) -> Option<Vec<u8>> {
        let time = self.time;
        let device = &mut self.devices[runner];
        let now = device.clock.now(time);
        let crate::device::Mind::Agent(Some(keeper)) = &mut device.mind else { return None };
        keeper.agent_mut().seal(group, b"traffic", b"", false, now, device.dice.rng()).ok()
    }

    fn opens(&mut self, runner: Runner, sealed: &[u8]) -> bool {
        let device = &self.devices[runner];
        let now = device.clock.now(self.time);
        let crate::device::Mind::Agent(Some(keeper)) = &device.mind else { return false };
        keeper.agent().open(sealed, b"", now).is_ok()
    }

    fn honest_runner(&self, device: DeviceId) -> Option<Runner> {
        let runners = self.runners.get(&device)?;
        runners.iter().copied().find(|runner| self.devices[*runner].is_honest())
    }
}
