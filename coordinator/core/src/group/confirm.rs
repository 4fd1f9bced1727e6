//! Confirmations: who has proved to hold which key, and what that moves on.

use fleetkey_wire::{Confirmation, DeviceId, GroupId, KeyEpoch, Now, ShortDigest};

use super::{Devices, Group};
use crate::context::Context;
use crate::effects::Event;
use crate::error::UpRefused;

/// What a device says to hold.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) group: GroupId,
    pub(crate) key_epoch: KeyEpoch,
    pub(crate) statement: ShortDigest,
    pub(crate) proof: [u8; 32],
}

impl Group {
    /// Checks a confirmation and takes note of it. A repeated one changes nothing.
    pub(crate) fn confirm(
        &mut self,
        context: &mut Context,
        devices: &mut Devices,
        device: DeviceId,
        claim: &Claim,
        now: Now,
    ) -> Result<(), UpRefused> {
        // What comes after the time was over does not keep it.
        if self.deadline_due().is_some_and(|until| until <= now.unix_seconds) {
            self.close_deadlines(context, now);
        }
        let (group, key_epoch) = (self.id(), claim.key_epoch);
        let newest = self.newest_digest();
        let not_a_member = UpRefused::NotAMember { device, group };
        let Some(member) = self.members.get_mut(&device) else { return Err(not_a_member) };
        let cell = member.cell().ok_or(not_a_member)?;
        let Some(key) = self.keys.get(&key_epoch) else {
            return Err(UpRefused::KeyEpochNotLive { device, group, key_epoch });
        };
        let wrong_proof = UpRefused::WrongProof { device, group, key_epoch };
        let confirmation = Confirmation {
            fleet: context.fleet(),
            group,
            key_epoch,
            commitment: key.statement.statement().commitment,
            device,
        };
        let pairwise = devices
            .get_mut(&device)
            .and_then(|device| device.pairwise(context).ok())
            .ok_or_else(|| wrong_proof.clone())?;
        if !confirmation.holds(pairwise, &key.secret, &claim.proof) {
            return Err(wrong_proof);
        }

        let had_acknowledged = member.has_acknowledged(newest);
        let is_newer = key_epoch > member.record.confirmed;
        // Acknowledging the newest statement counts only with proof of the key that it is on.
        let is_newest_key = self.keys.last_key_value().is_some_and(|(newest, _)| *newest == key_epoch);
        let acknowledges = claim.statement == newest && is_newest_key && !had_acknowledged;
        if !is_newer && !acknowledges {
            return Ok(());
        }
        member.record.confirmed = member.record.confirmed.max(key_epoch);
        member.record.confirmed_unix_seconds = now.unix_seconds;
        if acknowledges {
            member.record.acknowledged = claim.statement.0;
            self.acknowledged += 1;
        }
        context.put(&member.record);
        if let Some(cell) = self.cells.get_mut(&cell) {
            cell.forget_welcome(context, device);
        }
        if acknowledges && self.record.rotation.is_some() {
            // It may have been the one that the rotation waited for.
            self.tick_soon(now);
        }
        context.event(Event::Confirmed { group, device, key_epoch, is_current: acknowledges });
        if acknowledges {
            self.goes_on_after(context, devices, device, now);
        }
        if acknowledges && self.behind() == 0 {
            self.resend = None;
            if self.batch.is_empty() {
                context.event(Event::AllConfirmed { group, key_epoch });
            }
            self.close_deadlines(context, now);
        }
        Ok(())
    }
}
