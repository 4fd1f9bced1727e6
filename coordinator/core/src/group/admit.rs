//! Joins: who is wanted, where there is room, and when the next batch goes in.
//!
//! Joins that arrive within the window share one rekey, and the next batch waits until those online have
//! confirmed the last, so that onboarding N devices costs far fewer than N rekeys. Who is in a batch is settled when its
//! key is issued; their places in cells are given in transactions so short that a revocation in between does not wait.
//! A member that lost its state comes in afresh through its own cell, which changes no key and waits for nobody's
//! confirmation.

use std::collections::{BTreeMap, BTreeSet};

use fleetkey_wire::{CellId, DeviceId, DownBody, Millis, Now, Reason, Suite};
use rand_core::CryptoRngCore;

use super::commit::{CellPlan, Failed, Rekey};
use super::{Devices, Group};
use crate::context::Context;
use crate::policy::OnJoin;
use crate::records::{MemberRecord, Place};

/// Joins in one commit of a cell whose members must take the frame: keeps it below 16 KiB, where no path is in it.
const fn joins_per_commit(suite: Suite) -> usize {
    match suite {
        Suite::Aes128Gcm | Suite::ChaCha20Poly1305 => 24,
        // A key package takes 2.7 KB.
        Suite::XWingChaCha20Poly1305 => 5,
    }
}
/// Those who owe a key package are asked again after this long at first; it doubles each time.
const ASK_AGAIN_MILLISECONDS: u64 = 15_000;
/// Joins in one transaction: keeps the writer free for a revocation.
const JOINS_PER_TRANSACTION: usize = 128;
/// Joins in one rekey: bounds how many ways in are on their way at a time.
const JOINS_PER_REKEY: usize = 8_192;

/// When those who owe a key package are asked again.
#[derive(Debug)]
pub(crate) struct AskAgain {
    pub(super) at: Millis,
    wait_milliseconds: u64,
}

impl AskAgain {
    fn after(now: Now, wait_milliseconds: u64) -> Self {
        Self { at: now.mono.plus(wait_milliseconds), wait_milliseconds }
    }
}

impl Group {
    /// Takes a device in as soon as that can be. Whether it is new here.
    pub(crate) fn want(
        &mut self,
        context: &mut Context,
        devices: &mut Devices,
        id: DeviceId,
        now: Now,
    ) -> bool {
        if self.members.contains_key(&id) {
            return false;
        }
        let record = MemberRecord {
            group: self.id(),
            device: id,
            place: Place::Wanted,
            admitted: Default::default(),
            confirmed: Default::default(),
            acknowledged: [0; 8],
            confirmed_unix_seconds: 0,
        };
        context.put(&record);
        self.members.insert(id, super::Member { record });
        if let Some(device) = devices.get_mut(&id) {
            device.groups.insert(self.record.id);
        }
        self.make_ready(context, devices, id, now);
        true
    }

    /// A member whose fresh join failed half-way: its old leaf is gone, and it is wanted again.
    pub(super) fn want_again(
        &mut self,
        context: &mut Context,
        devices: &mut Devices,
        id: DeviceId,
        now: Now,
    ) {
        let newest = self.newest_digest();
        if let Some(record) = self.members.get(&id).map(|member| member.record.clone()) {
            self.goes_owing(context, &record);
        }
        if let Some(member) = self.members.get_mut(&id) {
            if member.has_acknowledged(newest) {
                self.acknowledged = self.acknowledged.saturating_sub(1);
            }
            member.record.place = Place::Wanted;
            self.placed -= 1;
            context.put(&member.record);
        }
        self.afresh.remove(&id);
        if let Some(device) = devices.get_mut(&id) {
            device.lost.remove(&self.record.id);
        }
        self.make_ready(context, devices, id, now);
    }

    /// Queues a wanted or lost device that has a key package in stock, and asks for one where it has none.
    pub(crate) fn make_ready(
        &mut self,
        context: &mut Context,
        devices: &mut Devices,
        id: DeviceId,
        now: Now,
    ) {
        let suite = self.record.policy.suite;
        let (Some(member), Some(device)) = (self.members.get(&id), devices.get_mut(&id)) else { return };
        let is_lost = device.lost.contains(&self.record.id);
        if !device.may_join() || (member.record.place != Place::Wanted && !is_lost) {
            return;
        }
        if self.is_lacked_by(device) {
            self.ready.remove(&id);
            self.afresh.remove(&id);
            if self.lacking.insert(id) {
                self.ask_again = Some(AskAgain::after(now, ASK_AGAIN_MILLISECONDS));
            }
            return;
        }
        if device.stock_of(suite) == 0 {
            device.refill(context, suite, now);
            if self.lacking.insert(id) {
                self.ask_again = Some(AskAgain::after(now, ASK_AGAIN_MILLISECONDS));
            }
            return;
        }
        self.lacking.remove(&id);
        match member.record.place {
            Place::Wanted => self.ready.insert(id),
            Place::In { .. } => self.afresh.insert(id),
        };
        let window = u64::from(self.record.policy.rekey_window_milliseconds);
        self.window_until.get_or_insert(now.mono.plus(window));
    }

    /// Asks those again that owe a key package, or lack the pre-shared key as far as is known: the request, or the answer,
    /// may be lost. Those not heard since this start are asked to say hello.
    pub(super) fn ask_again_on_time(&mut self, context: &mut Context, devices: &mut Devices, now: Now) {
        let Some(ask) = self.ask_again.take_if(|ask| ask.at <= now.mono) else { return };
        let suite = self.record.policy.suite;
        let group = self.record.id;
        let members = &self.members;
        self.lacking.retain(|id| {
            let is_wanted = members.get(id).is_some_and(|member| member.cell().is_none());
            devices.get(id).is_some_and(|device| is_wanted || device.lost.contains(&group))
        });
        for device in &self.lacking {
            let Some(device) = devices.get_mut(device).filter(|device| device.may_join()) else { continue };
            if device.heard.is_none() {
                device.nudge(context, &DownBody::HelloAgain, now);
            } else if !device.is_online(context, now) {
                // It says hello when it is back.
            } else if self.is_lacked_by(device) {
                // What it holds is said with each hello, and may have been lost.
                device.nudge(context, &DownBody::RequestHello, now);
            } else {
                device.refill(context, suite, now);
            }
        }
        if !self.lacking.is_empty() {
            let wait = (ask.wait_milliseconds * 2).min(context.setup.timing.resend_max_milliseconds);
            self.ask_again = Some(AskAgain::after(now, wait));
        }
    }

    /// Lets in whoever is ready, when their time has come.
    pub(super) fn admit(
        &mut self,
        context: &mut Context,
        devices: &mut Devices,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) {
        if context.is_superseded() || self.awaits_psk() {
            self.window_until = None;
            self.batch.clear();
        }
        if self.window_until.is_none_or(|until| now.mono < until) {
            return;
        }
        let has_key = !self.batch.is_empty();
        if !has_key && (self.record.policy.on_join == OnJoin::Next || self.has_landed(context, devices, now))
        {
            self.batch = self.ready.iter().take(JOINS_PER_REKEY).copied().collect();
        }
        if self.afresh.is_empty() && self.batch.is_empty() {
            return;
        }
        let ready = &self.ready;
        let joiners: BTreeSet<DeviceId> = std::iter::from_fn(|| self.batch.pop_first())
            .filter(|id| ready.contains(id))
            .take(JOINS_PER_TRANSACTION)
            .collect();
        let Ok(plans) = self.plan_joins(context, devices, &joiners, now, rng) else { return };
        let tried: Vec<DeviceId> = plans.values().flat_map(|plan| plan.add.iter().copied()).collect();
        let rekey = match self.record.policy.on_join {
            OnJoin::Rekey if !has_key => Rekey::IfJoined,
            OnJoin::Rekey | OnJoin::Next => Rekey::No,
        };
        let issued = self.record.last_issued;
        if self.transact(context, devices, plans, rekey, now, rng).is_err() {
            return;
        }
        if has_key {
            self.await_joined(context, now);
        } else if self.record.last_issued == issued {
            // Nobody joined, or no key is asked for: the next transaction is a batch of its own.
            self.batch.clear();
        }
        // Whoever dropped out for a bad key package waits for the next one; the rest waits for the next batch.
        let suite = self.record.policy.suite;
        for id in tried.iter().filter(|id| devices.get(id).is_none_or(|device| device.stock_of(suite) == 0)) {
            self.ready.remove(id);
            self.afresh.remove(id);
        }
        let is_empty = self.ready.is_empty() && self.afresh.is_empty();
        self.window_until = (!is_empty).then_some(now.mono);
    }

    fn plan_joins(
        &mut self,
        context: &mut Context,
        devices: &mut Devices,
        joiners: &BTreeSet<DeviceId>,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<BTreeMap<CellId, CellPlan>, Failed> {
        let mut plans: BTreeMap<CellId, CellPlan> = BTreeMap::new();
        for id in &self.afresh {
            let Some(cell) = self.members.get(id).and_then(super::Member::cell) else { continue };
            let plan = plans.entry(cell).or_default();
            if plan.add.len() < joins_per_commit(self.record.policy.suite) {
                plan.add.insert(*id);
                plan.remove.insert(*id);
                if let Some(device) = devices.get_mut(id) {
                    device.record.fresh_joins += 1;
                    device.record.last_fresh_join_unix_seconds = now.unix_seconds;
                    context.put(&device.record);
                }
            }
        }
        if !joiners.is_empty() {
            self.place(context, &mut plans, joiners.clone(), now, rng)?;
        }
        Ok(plans)
    }

    /// Finds room: first where there is most of it in the cells that exist, then in new ones.
    fn place(
        &mut self,
        context: &mut Context,
        plans: &mut BTreeMap<CellId, CellPlan>,
        mut joiners: BTreeSet<DeviceId>,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<(), Failed> {
        let capacity = usize::from(self.record.policy.cell_capacity);
        let mut rooms: Vec<(usize, CellId)> = self
            .cells
            .iter()
            .map(|(id, cell)| (capacity.saturating_sub(cell.managed.len()), *id))
            .filter(|(room, _)| *room > 0)
            .collect();
        rooms.sort_unstable_by(|a, b| b.cmp(a));
        for (room, id) in rooms {
            let plan = plans.entry(id).or_default();
            let room = room.min(joins_per_commit(self.record.policy.suite).saturating_sub(plan.add.len()));
            plan.add.extend(std::iter::from_fn(|| joiners.pop_first()).take(room));
        }
        while !joiners.is_empty() {
            let id = self.create_cell(context, now, rng)?;
            let add = std::iter::from_fn(|| joiners.pop_first()).take(capacity).collect();
            plans.insert(id, CellPlan { add, ..CellPlan::default() });
        }
        plans.retain(|_, plan| !plan.add.is_empty());
        Ok(())
    }

    /// A rekey that an operator asked for.
    pub(crate) fn rekey_now(
        &mut self,
        context: &mut Context,
        devices: &mut Devices,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<(), Failed> {
        self.transact(context, devices, BTreeMap::new(), Rekey::Yes(Reason::Manual), now, rng)
    }
}
