//! Who is behind, and why: members that do not hold the newest key as far as the coordinator knows, by cause.
//!
//! Leaves what is done about them to [`crate::group`].

use fleetkey_wire::{DeviceId, Now};
use serde::{Deserialize, Serialize};

use crate::coordinator::Coordinator;
use crate::group::{Group, Member};
use crate::records::{Place, Standing};

/// Members that are behind, each counted under the first cause that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Behind {
    /// Put aside until an operator decides.
    pub quarantined: usize,
    /// Not heard since this start.
    pub never_heard: usize,
    /// Heard since this start, and not lately.
    pub offline: usize,
    /// Heard lately, and without the pre-shared key that the group asks for: to be given it by hand.
    #[serde(default)]
    pub lacks_psk: usize,
    /// Heard lately, and to come in once they have sent a key package, for which they were asked.
    pub asked_for_key_packages: usize,
    /// Heard lately, with all that is needed to come in with the next rekey.
    pub coming_in: usize,
    /// Heard lately, sent the newest statement, and it is not confirmed.
    pub unconfirmed: usize,
}

impl Behind {
    /// All of them.
    pub const fn total(&self) -> usize {
        self.quarantined
            + self.never_heard
            + self.offline
            + self.lacks_psk
            + self.asked_for_key_packages
            + self.coming_in
            + self.unconfirmed
    }

    /// Both together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            quarantined: self.quarantined + other.quarantined,
            never_heard: self.never_heard + other.never_heard,
            offline: self.offline + other.offline,
            lacks_psk: self.lacks_psk + other.lacks_psk,
            asked_for_key_packages: self.asked_for_key_packages + other.asked_for_key_packages,
            coming_in: self.coming_in + other.coming_in,
            unconfirmed: self.unconfirmed + other.unconfirmed,
        }
    }
}

/// A device that is not enrolled here, and speaks. Nothing that it says can be verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stranger {
    /// The id in its topic.
    pub device: DeviceId,
    /// When it was last heard.
    pub heard_unix_seconds: u64,
}

impl Coordinator {
    /// Devices that are not enrolled here and were heard since this start: after a restore, perhaps those enrolled
    /// after the backup. As many as are remembered.
    pub fn strangers(&self) -> Vec<Stranger> {
        let strangers = self.context.strangers.iter();
        strangers.map(|(device, heard_unix_seconds)| Stranger { device, heard_unix_seconds }).collect()
    }

    pub(crate) fn behind_in(&self, group: &Group, now: Now) -> Behind {
        let newest = group.newest_digest();
        let mut behind = Behind::default();
        for member in group.members.values() {
            let device = self.devices.get(&member.record.device);
            let is_lost = device.is_some_and(|device| device.lost.contains(&group.id()));
            if !member.has_acknowledged(newest) || is_lost {
                *self.cause(&mut behind, group, member, is_lost, now) += 1;
            }
        }
        behind
    }

    /// Where a member that is behind is to be counted.
    fn cause<'a>(
        &self,
        behind: &'a mut Behind,
        group: &Group,
        member: &Member,
        is_lost: bool,
        now: Now,
    ) -> &'a mut usize {
        let Some(device) = self.devices.get(&member.record.device) else { return &mut behind.never_heard };
        if matches!(device.record.standing, Standing::Quarantined { .. }) {
            &mut behind.quarantined
        } else if device.heard.is_none() {
            &mut behind.never_heard
        } else if !device.is_online(&self.context, now) {
            &mut behind.offline
        } else if group.is_lacked_by(device) {
            &mut behind.lacks_psk
        } else if member.record.place != Place::Wanted && !is_lost {
            &mut behind.unconfirmed
        } else if device.stock_of(group.record.policy.suite) == 0 {
            &mut behind.asked_for_key_packages
        } else {
            &mut behind.coming_in
        }
    }
}
