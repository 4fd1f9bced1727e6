//! What the coordinator can say of itself: views, read-only, ready to be shown as JSON.

use std::collections::BTreeMap;

use fleetkey_wire::{CellEpoch, CellId, DeviceId, GroupId, KeyEpoch, Now, PskId};
use serde::Serialize;

use crate::behind::{Behind, Stranger};
use crate::coordinator::Coordinator;
use crate::effects::Access;
use crate::group::Group;
use crate::policy::Policy;
use crate::records::{
    Deadline, DeviceRecord, GroupRecord, MemberRecord, Outcome, Restored, Rotation, Standing, Superseded,
};

/// One cell, as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CellStatus {
    /// Its id.
    pub id: CellId,
    /// Its MLS epoch.
    pub epoch: CellEpoch,
    /// Devices in it.
    pub members: usize,
    /// Seconds since its last commit with a path.
    pub path_age_seconds: u64,
}

/// By when the members of a group are to hold a key, and whether they did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeadlineStatus {
    /// The key, or any later one.
    pub key_epoch: String,
    /// When it was set.
    pub set_unix_seconds: u64,
    /// When it ends.
    pub until_unix_seconds: u64,
    /// What became of it.
    pub outcome: Outcome,
}

impl From<&Deadline> for DeadlineStatus {
    fn from(deadline: &Deadline) -> Self {
        let Deadline { key_epoch, set_unix_seconds, until_unix_seconds, outcome, gone_owing: _ } = deadline;
        Self {
            key_epoch: key_epoch.to_string(),
            set_unix_seconds: *set_unix_seconds,
            until_unix_seconds: *until_unix_seconds,
            outcome: *outcome,
        }
    }
}

/// The external pre-shared key that a group asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PskStatus {
    /// Its name.
    pub id: PskId,
    /// Whether its secret is here. It is not after a restore: nobody can be added until an operator installs it again.
    pub installed: bool,
    /// Members, and devices that are to come in, that have not said to hold it.
    pub lacking: usize,
}

/// One group, as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GroupStatus {
    /// Its id.
    pub id: GroupId,
    /// Its name.
    pub name: String,
    /// How it is run.
    pub policy: Policy,
    /// The newest key epoch handed out.
    pub key_epoch: String,
    /// The key epoch to seal with.
    pub send: String,
    /// The oldest key epoch to accept.
    pub oldest: String,
    /// The rotation under way.
    pub rotation: Option<Rotation>,
    /// Deadlines of revocations, oldest first.
    pub deadlines: Vec<DeadlineStatus>,
    /// Devices in a cell.
    pub members: usize,
    /// Devices that are to come in.
    pub wanted: usize,
    /// Members that have applied the newest statement.
    pub confirmed: usize,
    /// Members that have not.
    pub stragglers: usize,
    /// Of those, the ones heard lately.
    pub stragglers_online: usize,
    /// Members that do not hold the newest key, by cause.
    pub behind: Behind,
    /// The external pre-shared key that it asks for.
    pub psk: Option<PskStatus>,
    /// Seconds since the last rekey.
    pub key_age_seconds: u64,
    /// Its cells.
    pub cells: Vec<CellStatus>,
}

/// The coordinator, as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The fleet.
    pub fleet: String,
    /// The incarnation that key epochs are issued in.
    pub incarnation: u32,
    /// Whether it has stopped issuing, as a copy or a rolled-back one.
    pub superseded: bool,
    /// What showed that.
    pub superseded_by: Option<Superseded>,
    /// That its database was made from a backup.
    pub restored: Option<Restored>,
    /// Enrolled devices.
    pub enrolled: usize,
    /// Quarantined devices.
    pub quarantined: usize,
    /// Revoked devices.
    pub revoked: usize,
    /// Devices heard lately.
    pub online: usize,
    /// Groups.
    pub groups: usize,
    /// Cells of all groups.
    pub cells: usize,
    /// Devices in a cell, counted in each group.
    pub members: usize,
    /// Devices that are to come in, counted in each group.
    pub wanted: usize,
    /// Members that do not hold their group's newest key, by cause, counted in each group.
    pub behind: Behind,
    /// Devices that are not enrolled and speak.
    pub strangers: Vec<Stranger>,
    /// Signatures made outside MLS since the start: one for each statement.
    pub signatures: u64,
    /// Devices' messages refused since the start, by name.
    pub refusals: BTreeMap<&'static str, u64>,
}

impl Coordinator {
    /// The device of this id.
    pub fn device(&self, id: DeviceId) -> Option<&DeviceRecord> {
        self.devices.get(&id).map(|device| &device.record)
    }

    /// Every device, in the order of their ids.
    pub fn devices(&self) -> impl Iterator<Item = &DeviceRecord> {
        self.devices.values().map(|device| &device.record)
    }

    /// The groups a device is in, or wanted in.
    pub fn groups_of(&self, id: DeviceId) -> impl Iterator<Item = &MemberRecord> {
        let groups = self.devices.get(&id).into_iter().flat_map(|device| &device.groups);
        groups.filter_map(move |group| self.groups.get(group)?.members.get(&id)).map(|member| &member.record)
    }

    /// Whether a device was heard lately.
    pub fn is_online(&self, id: DeviceId, now: Now) -> bool {
        self.devices.get(&id).is_some_and(|device| device.is_online(&self.context, now))
    }

    /// The devices of a group, in the order of their ids.
    pub fn members(&self, group: GroupId) -> impl Iterator<Item = &MemberRecord> {
        self.groups
            .get(&group)
            .into_iter()
            .flat_map(|group| group.members.values())
            .map(|member| &member.record)
    }

    /// The incarnation that key epochs are issued in.
    pub const fn incarnation(&self) -> u32 {
        self.context.meta.incarnation
    }

    /// Whether a device has not said, since this start, that it holds the pre-shared key that a group asks for.
    pub fn lacks_psk(&self, group: GroupId, device: DeviceId) -> bool {
        let (group, device) = (self.groups.get(&group), self.devices.get(&device));
        group.zip(device).is_some_and(|(group, device)| group.is_lacked_by(device))
    }

    /// A device's place in a group.
    pub fn member(&self, group: GroupId, device: DeviceId) -> Option<&MemberRecord> {
        self.groups.get(&group)?.members.get(&device).map(|member| &member.record)
    }

    /// The record of a group.
    pub fn group(&self, group: GroupId) -> Option<&GroupRecord> {
        self.groups.get(&group).map(|group| &group.record)
    }

    /// One group.
    pub fn group_status(&self, group: GroupId, now: Now) -> Option<GroupStatus> {
        self.groups.get(&group).map(|group| self.status_of(group, now))
    }

    /// Every group.
    pub fn group_statuses(&self, now: Now) -> Vec<GroupStatus> {
        self.groups.values().map(|group| self.status_of(group, now)).collect()
    }

    fn status_of(&self, group: &Group, now: Now) -> GroupStatus {
        let newest = group.newest_digest();
        let is_straggling_online = |member: &&crate::group::Member| {
            member.cell().is_some()
                && !member.has_acknowledged(newest)
                && self.is_online(member.record.device, now)
        };
        let name = |key_epoch: KeyEpoch| key_epoch.to_string();
        GroupStatus {
            id: group.id(),
            name: group.record.name.clone(),
            policy: group.record.policy,
            key_epoch: name(group.newest().statement.statement().key_epoch),
            send: name(group.record.send),
            oldest: name(group.record.oldest),
            rotation: group.record.rotation,
            deadlines: group.record.deadlines.iter().map(DeadlineStatus::from).collect(),
            members: group.placed(),
            wanted: group.wanted(),
            confirmed: group.acknowledged(),
            stragglers: group.behind(),
            stragglers_online: group.members.values().filter(is_straggling_online).count(),
            behind: self.behind_in(group, now),
            psk: group.record.psk.map(|id| PskStatus {
                id,
                installed: !group.awaits_psk(),
                lacking: group.members.keys().filter(|id| self.lacks_psk(group.id(), **id)).count(),
            }),
            key_age_seconds: now.unix_seconds.saturating_sub(group.record.last_rekey_unix_seconds),
            cells: group
                .cells
                .values()
                .map(|cell| CellStatus {
                    id: cell.id(),
                    epoch: cell.managed.epoch(),
                    members: cell.managed.len(),
                    path_age_seconds: now.unix_seconds.saturating_sub(cell.last_path_unix_seconds),
                })
                .collect(),
        }
    }

    /// The whole.
    pub fn status(&self, now: Now) -> Status {
        let mut by_standing = [0; 3];
        let mut online = 0;
        for device in self.devices.values() {
            let at = match device.record.standing {
                Standing::Enrolled => 0,
                Standing::Quarantined { .. } => 1,
                Standing::Revoked { .. } => 2,
            };
            by_standing[at] += 1;
            online += usize::from(device.is_online(&self.context, now));
        }
        Status {
            fleet: self.context.fleet().to_string(),
            incarnation: self.context.meta.incarnation,
            superseded: self.context.is_superseded(),
            superseded_by: self.context.meta.superseded,
            restored: self.context.meta.restored,
            enrolled: by_standing[0],
            quarantined: by_standing[1],
            revoked: by_standing[2],
            online,
            groups: self.groups.len(),
            cells: self.groups.values().map(|group| group.cells.len()).sum(),
            members: self.groups.values().map(Group::placed).sum(),
            wanted: self.groups.values().map(Group::wanted).sum(),
            behind: self
                .groups
                .values()
                .map(|group| self.behind_in(group, now))
                .fold(Behind::default(), Behind::and),
            strangers: self.strangers(),
            signatures: self.context.signatures,
            refusals: self.context.refusals.clone(),
        }
    }

    /// All that a broker has to know, as if said from the start.
    pub fn access(&self) -> Vec<Access> {
        let revoked = self
            .devices
            .values()
            .filter(|d| d.is_revoked())
            .map(|device| Access::Revoked { device: device.id() });
        let cells = self.groups.values().flat_map(|group| group.cells.values());
        let members = cells
            .map(|cell| Access::CellMembers { cell: cell.id(), members: cell.managed.members().collect() });
        revoked.chain(members).collect()
    }
}
