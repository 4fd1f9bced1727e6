//! Removals: evictions and revocations. They wait for nobody, and the new key goes out with them.

use std::collections::BTreeMap;

use fleetkey_wire::{CellId, DeviceId, DismissReason, DownBody, KeyEpoch, Now, Reason};
use rand_core::CryptoRngCore;

use super::commit::{CellPlan, Failed, Rekey};
use super::{Devices, Group};
use crate::context::Context;
use crate::effects::Event;

impl Group {
    /// Takes devices out, and moves the group to a key that they are not given.
    pub(crate) fn remove(
        &mut self,
        context: &mut Context,
        devices: &mut Devices,
        gone: &[DeviceId],
        reason: Reason,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<(), Failed> {
        let newest = self.newest_digest();
        let mut plans: BTreeMap<CellId, CellPlan> = BTreeMap::new();
        let mut left = Vec::new();
        for id in gone {
            let Some(member) = self.members.remove(id) else { continue };
            self.ready.remove(id);
            self.batch.remove(id);
            self.afresh.remove(id);
            context.delete(&member.record);
            if devices.get(id).is_some_and(|device| !device.is_revoked()) {
                self.goes_owing(context, &member.record);
            }
            if let Some(device) = devices.get_mut(id) {
                device.groups.remove(&self.record.id);
                device.lost.remove(&self.record.id);
            }
            if let Some(cell) = member.cell() {
                self.acknowledged -= usize::from(member.has_acknowledged(newest));
                self.placed -= 1;
                plans.entry(cell).or_default().remove.insert(*id);
            }
            // One that lost its place in a cell, and is wanted again, was given keys while it was in.
            if member.cell().is_some() || member.record.admitted > KeyEpoch::default() {
                left.push((*id, member.cell()));
            }
        }
        // Whoever was only wanted never held a key: nothing to move away from.
        if left.is_empty() {
            return Ok(());
        }
        self.transact(context, devices, plans, Rekey::Yes(reason), now, rng)?;
        self.close_crowded_deadlines(context, now);
        for (id, cell) in left {
            context.event(Event::Left { group: self.id(), device: id });
            if let Some(cell) = cell
                && let Some(device) = devices.get_mut(&id).filter(|device| !device.is_revoked())
            {
                let reason = DismissReason::Evicted;
                device.say_durably(context, &DownBody::Dismiss { group: self.record.id, cell, reason });
            }
        }
        Ok(())
    }
}
