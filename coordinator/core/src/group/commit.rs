//! The one transaction in which cells and the group's key move.
//!
//! First the cells commit, so that what they refuse can be seen; then, where the change asks for it, a new key
//! epoch is issued, with one statement for all cells; then each cell's frame is made, its wrap under the epoch
//! after its commit. A cell that still held a leaf to be removed would have failed before any wrap was made.

use std::collections::{BTreeMap, BTreeSet};

use fleetkey_mls::{AddDevice, Changes, Committed, ManagedCell};
use fleetkey_wire::error::Named;
use fleetkey_wire::{
    CellFrame, CellId, CommitMessages, DeviceId, DownBody, GroupSecret, KeyEpoch, Now, Reason, Statement,
    Welcome,
};
use rand_core::CryptoRngCore;

use super::{Cell, Devices, Group, Key, PendingWelcome, resend};
use crate::context::Context;
use crate::effects::{Access, Event};
use crate::records::{CommitRecord, KeyRecord, MemberRecord, Place, WelcomeRecord};

/// What a transaction wants of one cell.
#[derive(Debug, Default)]
pub(crate) struct CellPlan {
    /// Devices to add, each with a key package in stock. One that is in `remove` too joins afresh.
    pub(crate) add: BTreeSet<DeviceId>,
    /// Devices to remove.
    pub(crate) remove: BTreeSet<DeviceId>,
    /// Update proposals to cover.
    pub(crate) updates: Vec<(DeviceId, Vec<u8>)>,
    /// Renew the path all the same.
    pub(crate) force_path: bool,
}

/// What a transaction wants of the group's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rekey {
    /// Nothing.
    No,
    /// A new one, if anybody joined.
    IfJoined,
    /// A new one.
    Yes(Reason),
}

/// The state could not be changed as planned; the context is poisoned.
#[derive(Debug)]
pub(crate) struct Failed;

impl Group {
    /// Carries out `plans` on their cells, and `rekey` on the group.
    pub(crate) fn transact(
        &mut self,
        context: &mut Context,
        devices: &mut Devices,
        plans: BTreeMap<CellId, CellPlan>,
        rekey: Rekey,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<(), Failed> {
        let mut moved = BTreeMap::new();
        for (cell, plan) in plans {
            if let Some(committed) = self.commit_cell(context, devices, cell, &plan, now)? {
                moved.insert(cell, (plan, committed));
            }
        }
        let has_joined = moved.values().any(|(plan, committed): &(CellPlan, Committed)| {
            committed.welcomes.keys().any(|device| !plan.remove.contains(device))
        });
        let reason = match rekey {
            Rekey::Yes(reason) => Some(reason),
            Rekey::IfJoined if has_joined => Some(Reason::Join),
            Rekey::No | Rekey::IfJoined => None,
        };
        if let Some(reason) = reason {
            self.issue(context, reason, now, rng)?;
        }
        for (cell, (plan, committed)) in &moved {
            self.seat(context, devices, *cell, plan, committed, now);
        }
        self.publish(context, &moved, reason.is_some());
        for (cell, (_, committed)) in &moved {
            self.welcome(context, devices, *cell, committed);
        }
        self.drop_empty_cells(context);
        if let Some(reason) = reason {
            self.take_off(context, reason, now);
        }
        Ok(())
    }

    /// A new cell, with the coordinator alone in it.
    pub(crate) fn create_cell(
        &mut self,
        context: &mut Context,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<CellId, Failed> {
        let id = CellId::random(rng.as_rngcore());
        let at = self.cell_context(context, id);
        let managed = ManagedCell::create(at, self.record.policy.suite, &context.leaf_signer)
            .map_err(|error| fail(context, error))?;
        let cell = Cell {
            managed,
            last_path_unix_seconds: now.unix_seconds,
            commits: BTreeMap::new(),
            welcomes: BTreeMap::new(),
            replayed: BTreeMap::new(),
            renewal: None,
        };
        self.cells.insert(id, cell);
        Ok(id)
    }

    /// Puts a plan into one commit of its cell.
    fn commit_cell(
        &mut self,
        context: &mut Context,
        devices: &mut Devices,
        id: CellId,
        plan: &CellPlan,
        now: Now,
    ) -> Result<Option<Committed>, Failed> {
        if !plan.add.is_empty() && self.awaits_psk() {
            return Err(fail(context, "nobody is added without the group's pre-shared key"));
        }
        let suite = self.record.policy.suite;
        let mut changes = Changes {
            psk: self.psk().cloned(),
            remove: plan.remove.iter().copied().collect(),
            updates: plan.updates.clone(),
            force_path: plan.force_path,
            ..Changes::default()
        };
        for device in &plan.add {
            let Some(device) = devices.get_mut(device) else { continue };
            let Some(key_package) = device.take_key_package(context, suite) else { continue };
            let signature_key = device.record.public_key;
            changes.add.push(AddDevice { device: device.id(), signature_key, key_package });
        }
        let has_path = plan.force_path || !changes.remove.is_empty() || !changes.updates.is_empty();
        let Some(cell) = self.cells.get_mut(&id) else { return Ok(None) };
        let authenticator = cell.managed.epoch_authenticator8();
        let outcome =
            cell.managed.commit(&context.leaf_signer, changes).map_err(|error| fail(context, error))?;
        cell.renewal = None;
        for dropped in &outcome.dropped {
            context.count(dropped.why.name());
            tracing::warn!(group = %self.record.id, cell = %id, device = %dropped.device, why = %dropped.why, "dropped from commit");
            if let Some(device) = devices.get_mut(&dropped.device) {
                device.refill(context, suite, now);
            }
        }
        let Some(committed) = outcome.committed else { return Ok(None) };
        if plan.remove.iter().any(|gone| !plan.add.contains(gone) && cell.managed.contains(*gone)) {
            return Err(fail(context, "a removed device is still in its cell"));
        }
        if has_path {
            cell.last_path_unix_seconds = now.unix_seconds;
        }
        let alone =
            CellFrame { cell_epoch: committed.epoch_before, commit: Some(messages(&committed)), rekey: None };
        let kept =
            CommitRecord { cell: id, epoch: committed.epoch_before, authenticator, frame: alone.encode() };
        cell.keep(context, kept);
        cell.put(context);
        Ok(Some(committed))
    }

    /// A new key epoch that is used at once, with the one statement on it. Every key before it is given up: one
    /// that was only handed out is never used.
    pub(crate) fn issue(
        &mut self,
        context: &mut Context,
        reason: Reason,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<(), Failed> {
        let key_epoch = self.next_key_epoch(context)?;
        self.record.last_issued = key_epoch;
        self.record.send = key_epoch;
        self.record.oldest = key_epoch;
        self.record.rotation = None;
        self.record.last_rekey_unix_seconds = now.unix_seconds;
        let secret = GroupSecret::random(rng);
        self.state(context, key_epoch, secret, reason, now);
        self.give_up_before(context, key_epoch);
        Ok(())
    }

    /// The next key epoch to issue, never issued before.
    pub(super) fn next_key_epoch(&self, context: &mut Context) -> Result<KeyEpoch, Failed> {
        let used_up = "the key epochs of this incarnation are used up";
        self.record.last_issued.next_in(context.meta.incarnation).ok_or_else(|| fail(context, used_up))
    }

    /// Signs the newest statement, on `key_epoch` and what the record says of `send` and `oldest`.
    pub(super) fn state(
        &mut self,
        context: &mut Context,
        key_epoch: KeyEpoch,
        secret: GroupSecret,
        reason: Reason,
        now: Now,
    ) {
        let statement = context.sign(Statement {
            group: self.id(),
            key_epoch,
            commitment: secret.commitment(self.id(), key_epoch),
            reason,
            send: self.record.send,
            oldest: self.record.oldest,
            overlap_seconds: self.record.policy.overlap_seconds,
            issued_unix_seconds: now.unix_seconds,
        });
        context.put(&KeyRecord {
            group: self.id(),
            key_epoch,
            secret: *secret.as_bytes(),
            statement: statement.as_bytes().to_vec(),
        });
        self.issued.note(context, &statement);
        self.tick_soon(now);
        self.keys.insert(key_epoch, Key { secret, statement });
        context.put(&self.record);
        self.acknowledged = 0;
    }

    pub(super) fn give_up_before(&mut self, context: &mut Context, key_epoch: KeyEpoch) {
        let kept = self.keys.split_off(&key_epoch);
        for (old, key) in std::mem::replace(&mut self.keys, kept) {
            let gone = KeyRecord {
                group: self.record.id,
                key_epoch: old,
                secret: *key.secret.as_bytes(),
                statement: Vec::new(),
            };
            context.delete(&gone);
        }
    }

    /// Brings the members' records in line with a commit, and tells the broker.
    fn seat(
        &mut self,
        context: &mut Context,
        devices: &mut Devices,
        cell: CellId,
        plan: &CellPlan,
        committed: &Committed,
        now: Now,
    ) {
        let group = self.id();
        let newest = self.newest_digest();
        for gone in plan.remove.iter().filter(|gone| !committed.welcomes.contains_key(gone)) {
            // A member whose fresh join dropped out goes back to being wanted; anybody else is out.
            let is_out = self.cells.get(&cell).is_none_or(|cell| !cell.managed.contains(*gone));
            if plan.add.contains(gone) && is_out {
                self.want_again(context, devices, *gone, now);
            }
            if let Some(cell) = self.cells.get_mut(&cell) {
                cell.forget_welcome(context, *gone);
                cell.replayed.remove(gone);
            }
        }
        for joined in committed.welcomes.keys().copied() {
            self.ready.remove(&joined);
            self.afresh.remove(&joined);
            if let Some(cell) = self.cells.get_mut(&cell) {
                cell.replayed.remove(&joined);
            }
            if let Some(device) = devices.get_mut(&joined) {
                device.lost.remove(&group);
            }
            let before = self.members.get(&joined).map(|member| member.record.clone());
            let is_fresh = before.as_ref().is_some_and(|record| record.place != Place::Wanted);
            let record = MemberRecord {
                group,
                device: joined,
                place: Place::In { cell },
                admitted: before.filter(|_| is_fresh).map_or(self.record.send, |record| record.admitted),
                confirmed: KeyEpoch::default(),
                acknowledged: [0; 8],
                confirmed_unix_seconds: 0,
            };
            // Anew: a store may lay rows as they come, and those of a cell are changed together from here on.
            context.delete(&record);
            context.put(&record);
            if let Some(member) = self.members.get_mut(&joined) {
                if !is_fresh {
                    self.placed += 1;
                } else if member.has_acknowledged(newest) {
                    self.acknowledged = self.acknowledged.saturating_sub(1);
                }
                member.record = record;
            }
            context.event(Event::Joined { group, device: joined, cell, fresh: is_fresh });
        }
        if let Some(cell) = self.cells.get(&cell) {
            context
                .access(Access::CellMembers { cell: cell.id(), members: cell.managed.members().collect() });
        }
    }

    /// Publishes each cell's frame, where somebody is there to hear it.
    fn publish(
        &mut self,
        context: &mut Context,
        moved: &BTreeMap<CellId, (CellPlan, Committed)>,
        is_rekeyed: bool,
    ) {
        let key = self.newest();
        for (id, cell) in &self.cells {
            let committed = moved.get(id).map(|(_, committed)| committed);
            let joined = committed.map_or(0, |committed| committed.welcomes.len());
            if cell.managed.len() == joined || (committed.is_none() && !is_rekeyed) {
                continue;
            }
            let frame = CellFrame {
                cell_epoch: committed.map_or(cell.managed.epoch(), |committed| committed.epoch_before),
                commit: committed.map(messages),
                rekey: is_rekeyed.then(|| self.wrap_for(context, &cell.managed, key)),
            };
            context.publish_cell(*id, &frame);
        }
    }

    /// Sends each joiner its way in, and keeps it until it is seen to have arrived.
    fn welcome(&mut self, context: &mut Context, devices: &mut Devices, id: CellId, committed: &Committed) {
        for (device, welcome) in &committed.welcomes {
            let record =
                WelcomeRecord { cell: id, device: *device, epoch: committed.epoch, welcome: welcome.clone() };
            context.put(&record);
            if let Some(body) = self.welcome_body(context, &record)
                && let Some(device) = devices.get_mut(device)
            {
                device.say_durably(context, &body);
            }
            if let Some(cell) = self.cells.get_mut(&id) {
                cell.welcomes.insert(*device, PendingWelcome { record, resent: 0 });
            }
        }
    }

    /// A Welcome as it is sent: with every live secret, where the cell is still at the epoch it leads to.
    pub(crate) fn welcome_body(&self, context: &Context, record: &WelcomeRecord) -> Option<DownBody> {
        let cell = self.cells.get(&record.cell)?;
        let is_current = cell.managed.epoch() == record.epoch;
        let statements = if is_current {
            self.live_keys().map(|key| self.wrap_for(context, &cell.managed, key)).collect()
        } else {
            Vec::new()
        };
        Some(DownBody::Welcome(Welcome {
            group: self.id(),
            group_name: self.record.name.clone(),
            cell: record.cell,
            suite: self.record.policy.suite,
            cell_epoch: record.epoch,
            welcome: record.welcome.clone(),
            statements,
        }))
    }

    fn drop_empty_cells(&mut self, context: &mut Context) {
        let empty: Vec<CellId> =
            self.cells.iter().filter(|(_, cell)| cell.managed.is_empty()).map(|(id, _)| *id).collect();
        for id in empty {
            let Some(cell) = self.cells.remove(&id) else { continue };
            for record in cell.commits.values() {
                context.delete(record);
            }
            for welcome in cell.welcomes.values() {
                context.delete(&welcome.record);
            }
            context.delete(&crate::records::CellRecord {
                id,
                group: self.record.id,
                last_path_unix_seconds: 0,
                snapshot: Vec::new(),
            });
            context.access(Access::CellGone { cell: id });
        }
    }

    /// A statement is on its way to everybody: joins wait for those online, and who does not answer is sent it again.
    pub(super) fn take_off(&mut self, context: &mut Context, reason: Reason, now: Now) {
        self.begin_flight(context, now);
        self.resend = Some(resend::Resend::first(now, context.setup.timing.resend_milliseconds));
        let statement = self.newest().statement.statement();
        context.event(Event::Rekeyed {
            group: self.record.id,
            key_epoch: statement.key_epoch,
            reason,
            cells: self.cells.len(),
            members: self.placed,
        });
    }
}

fn messages(committed: &Committed) -> CommitMessages {
    CommitMessages { covered_updates: committed.covered_updates.clone(), commit: committed.commit.clone() }
}

pub(super) fn fail(context: &mut Context, why: impl ToString) -> Failed {
    context.poison(why);
    Failed
}
