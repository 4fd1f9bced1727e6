//! The external pre-shared key of a group that asks for one: which it is, who lacks it, and that nobody is added without.
//!
//! What keeps a thief out is that cells' keys depend on it, see `fleetkey-mls`. What a device says to hold decides only
//! whether there is any use in adding it: one that lacks the key waits, by name, instead of coming in afresh for ever.

use fleetkey_wire::{DeviceId, DownBody, Now, Psk, PskId};

use super::{Devices, Group};
use crate::context::Context;
use crate::device::Device;
use crate::records::{PskRecord, Record as _};
use crate::store::StoreError;

impl Group {
    /// Takes in the stored secret.
    pub(crate) fn load_psk(&mut self, record: &PskRecord) -> Result<(), StoreError> {
        let psk = record.psk();
        if self.record.psk != Some(psk.id()) {
            return Err(StoreError::Corrupt {
                table: PskRecord::TABLE.name(),
                key: record.group.to_string(),
                why: "it is not the pre-shared key that the group names".to_owned(),
            });
        }
        self.psk = Some(psk);
        Ok(())
    }

    /// From now on nobody is added without `psk`, and nobody with a former one.
    pub(crate) fn set_psk(&mut self, context: &mut Context, psk: Psk) {
        self.record.psk = Some(psk.id());
        context.put(&self.record);
        context.put(&PskRecord::new(self.record.id, &psk));
        self.psk = Some(psk);
    }

    /// What commits that add are made with.
    pub(super) const fn psk(&self) -> Option<&Psk> {
        self.psk.as_ref()
    }

    /// Whether the group asks for a pre-shared key whose secret is not here: nobody can be added.
    pub(crate) const fn awaits_psk(&self) -> bool {
        self.record.psk.is_some() && self.psk.is_none()
    }

    /// Whether a device has not said that it holds the group's pre-shared key.
    pub(crate) fn is_lacked_by(&self, device: &Device) -> bool {
        self.record.psk.is_some_and(|psk| !device.psks.contains(&psk))
    }

    /// A device has said anew which pre-shared keys it holds, or the group has another. A member that lacked the key and does
    /// not now shows where it stands: what it is brought then counts like any other catch-up, as it may have lied.
    pub(crate) fn weigh_psk(
        &mut self,
        context: &mut Context,
        devices: &mut Devices,
        id: DeviceId,
        did_lack: bool,
        now: Now,
    ) {
        let (Some(member), Some(device)) = (self.members.get(&id), devices.get_mut(&id)) else { return };
        if did_lack && !self.is_lacked_by(device) && member.cell().is_some() {
            device.nudge(context, &DownBody::RequestHello, now);
        }
        self.make_ready(context, devices, id, now);
    }

    /// A member without the pre-shared key has lost its state: it cannot come in afresh, and is behind until it can.
    pub(super) fn set_behind(&mut self, context: &mut Context, id: DeviceId) {
        let newest = self.newest_digest();
        if let Some(member) = self.members.get_mut(&id)
            && member.has_acknowledged(newest)
        {
            member.record.acknowledged = [0; 8];
            context.put(&member.record);
            self.acknowledged = self.acknowledged.saturating_sub(1);
        }
    }

    /// The pre-shared key `former` has become another, or is there again.
    pub(crate) fn weigh_psks(
        &mut self,
        context: &mut Context,
        devices: &mut Devices,
        former: PskId,
        now: Now,
    ) {
        let members: Vec<DeviceId> = self.members.keys().copied().collect();
        for id in members {
            let did_lack = devices.get(&id).is_some_and(|device| !device.psks.contains(&former));
            self.weigh_psk(context, devices, id, did_lack, now);
        }
    }
}
