//! The operator: what he wants, said again until it is done; and what he does about what he is told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use fleetkey_coordinator_core::backup::Backup;
use fleetkey_coordinator_core::restore::{Restoring, Revocation};
use fleetkey_coordinator_core::{
    CommandError, Coordinator, MemoryStore, OnJoin, Policy, Standing, Store as _, Writer,
};
use fleetkey_wire::{DeviceId, GroupId, Now, Psk};
use rand_core::CryptoRngCore;

use crate::device::Device;
use crate::dice::Dice;
use crate::disk::CoordinatorDisk;
use crate::model::{Rule, Voice};
use crate::world::{Due, Runner, World};

/// Between attempts to give a command that could not be stored.
const AGAIN_MILLISECONDS: u64 = 5_000;
/// How long the operator takes to see to a device that was quarantined, or to a copy.
const REACTION_MILLISECONDS: u64 = 300_000;

/// What the operator wants to have done.
#[derive(Debug, Clone)]
pub(crate) enum Order {
    CreateGroup { number: usize, policy: Policy, psk: Option<Psk> },
    InstallPsk { group: usize, psk: Psk },
    Enroll { runner: Runner },
    Add { group: usize, devices: Vec<DeviceId> },
    Evict { group: usize, device: DeviceId },
    Revoke { devices: Vec<DeviceId> },
    Rekey { group: usize },
    Rotate { group: usize },
    Release { device: DeviceId },
}

/// The operator, and his notebook.
#[derive(Debug, Default)]
pub(crate) struct Operator {
    orders: VecDeque<Order>,
    /// Who is to be in which group.
    pub(crate) wanted: BTreeMap<usize, BTreeSet<DeviceId>>,
    pub(crate) revoked: BTreeSet<DeviceId>,
    /// Devices that may have left by themselves.
    pub(crate) leaving: BTreeSet<(usize, DeviceId)>,
    pub(crate) policies: Vec<Policy>,
    pub(crate) backup: Option<Backup>,
    pub(crate) snapshot: Option<MemoryStore>,
    is_coming: bool,
    pub(crate) restores: u64,
}

impl World {
    pub(crate) fn order(&mut self, order: Order) {
        self.operator.orders.push_back(order);
        self.operator_comes(0);
    }

    fn operator_comes(&mut self, in_milliseconds: u64) {
        if !std::mem::replace(&mut self.operator.is_coming, true) {
            self.after(in_milliseconds, Due::Operator);
        }
    }

    /// Whether the operator has nothing left to do.
    pub(crate) fn is_operator_idle(&self) -> bool {
        self.operator.orders.is_empty()
    }

    /// Gives every order that waits, until one cannot be carried out now.
    pub(crate) fn operate(&mut self) {
        self.operator.is_coming = false;
        while let Some(order) = self.operator.orders.front().cloned() {
            if !self.carry_out(&order) {
                self.operator_comes(AGAIN_MILLISECONDS);
                return;
            }
            self.operator.orders.pop_front();
        }
    }

    /// Whether it is done, or not to be done any more.
    fn carry_out(&mut self, order: &Order) -> bool {
        // While there is a copy, nobody knows which of the two he talks to.
        let copies: Vec<usize> =
            (1..self.hosts.len()).filter(|host| self.hosts[*host].writer.is_some()).collect();
        let of_a_copy = matches!(order, Order::Rekey { .. } | Order::Rotate { .. } | Order::Evict { .. });
        let at = match copies.first() {
            Some(copy) if of_a_copy && self.hosts[0].dice.happens(500) => *copy,
            Some(_) | None => 0,
        };
        if !self.is_ready(at) {
            return false;
        }
        let host = &mut self.hosts[at];
        let now = host.clock.now(self.time);
        let Some(coordinator) = host.writer.as_mut().and_then(Writer::coordinator) else { return false };
        // What the copy did is lost with it: the operator says it again, until the one that counts has heard.
        let is_to_be_said_again = at != 0 && matches!(order, Order::Evict { .. });
        match give(coordinator, order, &self.groups, &self.devices, now, host.dice.rng()) {
            Ok(made) => {
                if !self.conclude(at) {
                    return false;
                }
                if let (Order::CreateGroup { number, .. }, Some(group)) = (order, made) {
                    self.groups[*number] = Some(group);
                }
                if is_to_be_said_again {
                    self.operator.orders.push_back(order.clone());
                }
                self.done(order);
                true
            }
            Err(CommandError::Superseded) if at == 0 => {
                self.restore_in_place();
                false
            }
            // It says that it is not the one: the operator ends it, and turns to the other.
            Err(CommandError::Superseded) => {
                self.end_copy(at);
                false
            }
            Err(CommandError::Internal(why)) => {
                self.broken(Rule::NothingBreaks, format!("a decision failed half-way: {why}"));
                true
            }
            // It was done before, and the answer was lost; or it makes no sense any more.
            Err(_) => {
                let _ = self.conclude(at);
                if is_to_be_said_again {
                    self.operator.orders.push_back(order.clone());
                }
                self.done(order);
                true
            }
        }
    }

    /// What must be true once an order is carried out.
    fn done(&mut self, order: &Order) {
        self.figures.commands += 1;
        let Order::Revoke { devices } = order else { return };
        if self.hosts[0].voice == Voice::Copy {
            return;
        }
        for group in self.groups.clone().into_iter().flatten() {
            if let Some(device) = devices.iter().find(|device| self.model.is_member(group, **device)) {
                let what = format!("{device} is revoked, and still a member of {group}");
                return self.broken(Rule::RemovedLearnsNothing, what);
            }
        }
    }

    /// Whoever is still put aside when the faults have stopped is let back in.
    pub(crate) fn release_quarantined(&mut self) {
        let Some(coordinator) = self.hosts[0].writer.as_mut().and_then(Writer::coordinator) else { return };
        let is_aside = |standing: &Standing| matches!(standing, Standing::Quarantined { .. });
        let aside: Vec<DeviceId> = coordinator
            .devices()
            .filter(|device| is_aside(&device.standing))
            .map(|device| device.id)
            .collect();
        self.operator.orders.extend(aside.into_iter().map(|device| Order::Release { device }));
    }

    pub(crate) fn operator_hears_of_quarantine(&mut self, device: DeviceId) {
        self.figures.quarantined += 1;
        self.operator.orders.push_back(Order::Release { device });
        self.operator_comes(REACTION_MILLISECONDS);
    }

    pub(crate) fn end_copies(&mut self) {
        for host in 1..self.hosts.len() {
            if !self.hosts[host].has_ended {
                self.end_copy(host);
            }
        }
    }

    /// Ends the copies, and restores the coordinator from its own database.
    pub(crate) fn restore_in_place(&mut self) {
        self.end_copies();
        let unix_seconds = self.hosts[0].clock.now(self.time).unix_seconds;
        let mut store = self.hosts[0].disk.image();
        match Backup::of_store(&mut store, unix_seconds) {
            Ok(backup) => self.restore(&backup),
            Err(error) => self.broken(Rule::StoreMakesSense, format!("no backup can be taken: {error}")),
        }
    }

    pub(crate) fn take_backup(&mut self) {
        let unix_seconds = self.hosts[0].clock.now(self.time).unix_seconds;
        let mut store = self.hosts[0].disk.image();
        match Backup::of_store(&mut store, unix_seconds) {
            Ok(backup) => self.operator.backup = Some(backup),
            Err(error) => self.broken(Rule::StoreMakesSense, format!("no backup can be taken: {error}")),
        }
    }

    /// The coordinator's disk is lost, and made anew from a backup. What was revoked since is known from outside, or from
    /// the audit log where that survives; what else was done since the operator does again.
    pub(crate) fn restore(&mut self, backup: &Backup) {
        let unix_seconds = crate::fleet::START_UNIX_SECONDS + self.time / 1_000;
        let has_audit = self.hosts[0].dice.happens(500);
        let lost = if has_audit {
            Backup::of_store(&mut self.hosts[0].disk.image(), unix_seconds).ok()
        } else {
            None
        };
        let revocation =
            |device: &DeviceId| Revocation { device: *device, unix_seconds, reason: "simulated".into() };
        let known = Restoring {
            unix_seconds,
            audit: lost.map(|lost| lost.audit).unwrap_or_default(),
            revocations: self.operator.revoked.iter().map(revocation).collect(),
            ..Restoring::default()
        };
        let restored = backup.restored_rows(&known);
        let mut store = MemoryStore::default();
        if let Err(error) = store.commit(&restored.writes) {
            return self.broken(Rule::StoreMakesSense, format!("a restored store: {error}"));
        }
        self.model.restored(restored.incarnation);
        self.kill_host(0, 1_000);
        self.operator.restores += 1;
        match Backup::of_store(&mut store, unix_seconds) {
            Ok(present) => self.do_again_what_was_lost(&present),
            Err(error) => self.broken(Rule::StoreMakesSense, format!("a restored store: {error}")),
        }
        self.hosts[0].replace_disk(CoordinatorDisk::holding(store));
        self.hosts[0].voice = Voice::Main;
    }

    /// What the operator has done and the restored database does not show.
    fn do_again_what_was_lost(&mut self, present: &Backup) {
        let known: BTreeSet<DeviceId> = present.devices.iter().map(|device| device.id).collect();
        let mut orders = Vec::new();
        for runner in 0..self.devices.len() {
            let device = &self.devices[runner];
            if !device.is_clone && !known.contains(&device.id) {
                orders.push(Order::Enroll { runner });
            }
        }
        for number in 0..self.groups.len() {
            let name = group_name(number);
            // A group that is lost is made again under its name, with another id: its devices come into it anew.
            self.groups[number] =
                present.groups.iter().find(|group| group.name == name).map(|group| group.id);
            if self.groups[number].is_none() {
                let (policy, psk) = (self.operator.policies[number], self.psk_of(number));
                orders.push(Order::CreateGroup { number, policy, psk });
            } else if let Some(psk) = self.psk_of(number) {
                // A backup does not hold it.
                orders.push(Order::InstallPsk { group: number, psk });
            }
            let wanted = self.operator.wanted.get(&number).cloned().unwrap_or_default();
            let in_it = |membership: &&fleetkey_coordinator_core::backup::Membership| {
                Some(membership.group) == self.groups[number]
            };
            let members: BTreeSet<DeviceId> =
                present.memberships.iter().filter(in_it).map(|membership| membership.device).collect();
            let extra = members.difference(&wanted).copied();
            orders.extend(extra.map(|device| Order::Evict { group: number, device }));
            let missing: Vec<DeviceId> = wanted.difference(&members).copied().collect();
            if !missing.is_empty() {
                orders.push(Order::Add { group: number, devices: missing });
            }
        }
        orders.extend(std::mem::take(&mut self.operator.orders));
        self.operator.orders = orders.into();
        self.operator_comes(2_000);
    }

    /// Runs a copy of the coordinator beside it.
    pub(crate) fn copy_coordinator(&mut self, length: u64) {
        self.was_copied = true;
        let image = self.hosts[0].disk.image();
        let number = self.hosts.len() as u64;
        let dice = Dice::of(self.seed, "host", number);
        let clock = self.hosts[0].clock;
        let mut copy = crate::host::Host::new(Voice::Copy, CoordinatorDisk::holding(image), dice, clock);
        copy.has_said(self.hosts[0].said());
        self.hosts.push(copy);
        let host = self.hosts.len() - 1;
        self.start_host(host);
        let mut dice = Dice::of(self.seed, "copy", number);
        for _ in 0..dice.within((1, 6)) {
            let of_copy = dice.happens(700);
            let at = if of_copy { host } else { 0 };
            self.after(dice.below(length), Due::Mistake { host: at, number: dice.number() });
        }
        self.after(length, Due::CopyEnds { host });
    }

    /// A command to whichever of several coordinators the operator happens to reach.
    pub(crate) fn mistake(&mut self, at: usize, number: u64) {
        if self.is_healed || !self.is_ready(at) {
            return;
        }
        let Some((_, group)) = self.group_named(number / 4) else { return };
        let time = self.time;
        let host = &mut self.hosts[at];
        let now = host.clock.now(time);
        let Some(coordinator) = host.writer.as_mut().and_then(Writer::coordinator) else { return };
        // Whatever becomes of it: it may be refused, by one that knows what it is.
        let _ = match number % 4 {
            0 => coordinator.rotate(group, now, host.dice.rng()).map(drop),
            _ => coordinator.rekey(group, now, host.dice.rng()).map(drop),
        };
        let _ = self.conclude(at);
    }

    /// The coordinator's disk is as it was when it was copied, and it does not know.
    pub(crate) fn roll_back(&mut self) {
        let Some(image) = self.operator.snapshot.take() else { return };
        self.was_copied = true;
        self.kill_host(0, 1_000);
        self.hosts[0].replace_disk(CoordinatorDisk::holding(image));
        self.hosts[0].voice = Voice::Copy;
    }

    /// Begins a fleet: groups, and devices in them.
    pub(crate) fn begin(&mut self, devices: usize) {
        let mut dice = Dice::of(self.seed, "fleet shape", 0);
        let image = crate::check::new_store(crate::fleet::START_UNIX_SECONDS);
        let host_dice = Dice::of(self.seed, "host", 0);
        let disk = CoordinatorDisk::holding(image);
        self.hosts.push(crate::host::Host::new(Voice::Main, disk, host_dice, Default::default()));
        self.start_host(0);
        let groups = if self.profile.is_plain { 1 } else { 1 + dice.below(2) as usize };
        for number in 0..groups {
            let policy = draw_policy(&mut dice, self.profile.is_plain);
            self.groups.push(None);
            self.operator.policies.push(policy);
            let psk = self.psk_of(number);
            self.order(Order::CreateGroup { number, policy, psk });
        }
        let mut members: Vec<Vec<DeviceId>> = vec![Vec::new(); groups];
        for number in 0..devices {
            let is_rogue = dice.below(100) < self.profile.hostile_devices_percent;
            let runner = self.add_device(is_rogue);
            self.order(Order::Enroll { runner });
            let id = self.devices[runner].id;
            for (group, members) in members.iter_mut().enumerate() {
                // Everybody is in the first group, and some in the others.
                if group == 0 || (number + group).is_multiple_of(4) {
                    members.push(id);
                }
            }
        }
        for (group, devices) in members.into_iter().enumerate() {
            self.operator.wanted.insert(group, devices.iter().copied().collect());
            self.order(Order::Add { group, devices });
        }
    }
}

impl World {
    /// The pre-shared key of a group, in a world where it asks for one: the same in every world, as many begin with one fleet.
    pub(crate) fn psk_of(&self, group: usize) -> Option<Psk> {
        let is_guarded = self.profile.is_guarded && group == 0;
        is_guarded.then(|| Psk::random(Dice::of(0, "psk", group as u64).rng()))
    }
}

/// What the operator calls a group.
pub(crate) fn group_name(number: usize) -> String {
    format!("group-{number}")
}

fn draw_policy(dice: &mut Dice, is_plain: bool) -> Policy {
    if is_plain {
        return Policy::default();
    }
    Policy {
        cell_capacity: 8 + dice.below(4) as u16,
        rekey_window_milliseconds: 200 + dice.below(2_000) as u32,
        overlap_seconds: dice.below(60) as u32,
        rotation_interval_seconds: if dice.happens(300) { 0 } else { 2_400 + dice.below(4 * 3_600) },
        rotation_deadline_seconds: 60 + dice.below(1_800),
        rotation_threshold_percent: 50 + dice.below(51) as u8,
        cell_max_age_seconds: 3_600 + dice.below(10 * 3_600),
        on_join: if dice.happens(250) { OnJoin::Next } else { OnJoin::Rekey },
        ..Policy::default()
    }
}

fn give(
    coordinator: &mut Coordinator,
    order: &Order,
    groups: &[Option<GroupId>],
    devices: &[Device],
    now: Now,
    rng: &mut dyn CryptoRngCore,
) -> Result<Option<GroupId>, CommandError> {
    let unknown = || CommandError::UnknownGroup(GroupId::from_bytes([0; 16]));
    let group_of = |number: usize| groups.get(number).copied().flatten().ok_or_else(unknown);
    match order {
        Order::CreateGroup { number, policy, psk } => {
            let name = group_name(*number);
            match (coordinator.find_group(&name), psk) {
                (Some(group), _) => Ok(Some(group)),
                (None, Some(psk)) => {
                    coordinator.create_guarded_group(&name, *policy, psk.clone(), now, rng).map(Some)
                }
                (None, None) => coordinator.create_group(&name, *policy, now, rng).map(Some),
            }
        }
        Order::InstallPsk { group, psk } => {
            coordinator.set_psk(group_of(*group)?, psk.clone(), now).map(|_| None)
        }
        Order::Enroll { runner } => {
            let device = &devices[*runner];
            let (name, key) = (format!("device-{runner}"), device.identity.public_key());
            coordinator.enroll_device(device.id, &name, key, now).map(|()| None)
        }
        Order::Add { group, devices } => {
            let usable = |id: &DeviceId| {
                let standing = coordinator.device(*id).map(|device| &device.standing);
                standing.is_some_and(|standing| !matches!(standing, Standing::Revoked { .. }))
            };
            let devices: Vec<DeviceId> = devices.iter().filter(|id| usable(id)).copied().collect();
            coordinator.add_members(group_of(*group)?, &devices, now, rng).map(|_| None)
        }
        Order::Evict { group, device } => {
            coordinator.evict(group_of(*group)?, &[*device], now, rng).map(|()| None)
        }
        Order::Revoke { devices } => {
            let known: Vec<DeviceId> =
                devices.iter().filter(|id| coordinator.device(**id).is_some()).copied().collect();
            coordinator.revoke(&known, "simulated", now, rng).map(|()| None)
        }
        Order::Rekey { group } => coordinator.rekey(group_of(*group)?, now, rng).map(|_| None),
        Order::Rotate { group } => coordinator.rotate(group_of(*group)?, now, rng).map(|_| None),
        Order::Release { device } => coordinator.release(*device, now).map(|()| None),
    }
}
