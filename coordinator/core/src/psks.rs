//! Pre-shared keys of groups: an operator's command, and what devices say of those that they hold.
//!
//! Leaves to `group::psk` what follows for one group.

use fleetkey_wire::{DeviceId, GroupId, Now, Psk, PskId};

use crate::coordinator::Coordinator;
use crate::error::{CommandError, UpRefused};

impl Coordinator {
    /// Gives a group its next pre-shared key, or installs the one again whose secret a restore has lost. From now on
    /// nobody is added with a former one. Whether that is another than before.
    ///
    /// # Errors
    /// When the group was created without one, or the key is another group's.
    pub fn set_psk(&mut self, group: GroupId, psk: Psk, now: Now) -> Result<bool, CommandError> {
        self.check_issuing()?;
        self.check_group(group)?;
        let unknown = CommandError::UnknownGroup(group);
        let former = self.groups.get(&group).ok_or(unknown.clone())?.record.psk;
        let former = former.ok_or(CommandError::NoPskGroup(group))?;
        self.check_psk(&psk, Some(group))?;
        let of = self.groups.get_mut(&group).ok_or(unknown)?;
        let (id, was_awaited) = (psk.id(), of.awaits_psk());
        if former == id && !was_awaited {
            return Ok(false);
        }
        of.set_psk(&mut self.context, psk);
        self.context.audit(now, "psk", group, id);
        of.weigh_psks(&mut self.context, &mut self.devices, former, now);
        Ok(former != id)
    }

    /// Whether a pre-shared key is no other group's.
    pub(crate) fn check_psk(&self, psk: &Psk, of: Option<GroupId>) -> Result<(), CommandError> {
        let psk = psk.id();
        let mut others = self.groups.values().filter(|group| Some(group.id()) != of);
        match others.find(|group| group.record.psk == Some(psk)) {
            Some(other) => Err(CommandError::PskInUse { psk, group: other.id() }),
            None => Ok(()),
        }
    }

    /// A device says which ones it holds.
    pub(crate) fn handle_psks(&mut self, id: DeviceId, held: Vec<PskId>, now: Now) -> Result<(), UpRefused> {
        let device = self.devices.get_mut(&id).ok_or(UpRefused::UnknownDevice { device: id })?;
        let before = std::mem::replace(&mut device.psks, held.into_iter().collect());
        for group in device.groups.clone() {
            let Some(group) = self.groups.get_mut(&group) else { continue };
            let Some(psk) = group.record.psk else { continue };
            let did_lack = !before.contains(&psk);
            group.weigh_psk(&mut self.context, &mut self.devices, id, did_lack, now);
        }
        Ok(())
    }
}
