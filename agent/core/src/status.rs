//! Where a device stands, for people and for tests. Nothing secret is in it.

use std::collections::BTreeMap;

use fleetkey_wire::{
    CellEpoch, CellId, Commitment, DeviceId, FleetId, Generation, GroupId, KeyEpoch, Now, PskId, ShortDigest,
    Suite,
};

use crate::agent::Agent;
use crate::psks::PskGroup;

/// Where a device stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The fleet.
    pub fleet: FleetId,
    /// The device.
    pub device: DeviceId,
    /// The coordinator certificate it holds.
    pub generation: Generation,
    /// Whether it is connected to the broker.
    pub is_connected: bool,
    /// Whether the coordinator has answered on this connection.
    pub is_answered: bool,
    /// How long ago the last hello was said that the coordinator has answered, in seconds; since the first start if
    /// none was.
    pub silent_seconds: u64,
    /// After how long it stops sealing, in seconds.
    pub max_silence_seconds: u32,
    /// Whether it has stopped sealing.
    pub is_silent: bool,
    /// Each group it is in.
    pub groups: Vec<GroupStatus>,
    /// Key packages it has given out that no Welcome has used yet.
    pub key_packages: usize,
    /// Groups of which it keeps a statement that contradicts what it held.
    pub alarms: Vec<GroupId>,
    /// The pre-shared keys it holds, in the order they were given.
    pub psks: Vec<PskStatus>,
    /// Groups that ask for a pre-shared key that it does not hold for them, as seen since the start.
    pub lacking_psks: BTreeMap<GroupId, PskId>,
    /// How many inputs were refused since the start, by name.
    pub refused: BTreeMap<&'static str, u64>,
}

/// A pre-shared key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PskStatus {
    /// Its name.
    pub psk: PskId,
    /// The group it is for.
    pub group: PskGroup,
}

/// Where a device stands in one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// The group.
    pub group: GroupId,
    /// Its name.
    pub name: String,
    /// Its suite.
    pub suite: Suite,
    /// The cell through which the device is in it.
    pub cell: CellId,
    /// The cell's epoch.
    pub cell_epoch: CellEpoch,
    /// The key epoch to seal with.
    pub send: KeyEpoch,
    /// The oldest key epoch to accept, but for one in overlap.
    pub oldest: KeyEpoch,
    /// Every key epoch whose secret is held, oldest first.
    pub held: Vec<KeyEpoch>,
    /// The newest statement applied.
    pub statement: ShortDigest,
}

impl Agent {
    /// Where the device stands.
    pub fn status(&self, now: Now) -> Status {
        Status {
            fleet: self.fleet,
            device: self.device,
            generation: self.coordinator.generation,
            is_connected: self.connection.is_some(),
            is_answered: self.is_answered(),
            silent_seconds: self.silence.elapsed_ms(now.mono) / 1000,
            max_silence_seconds: self.silence.max_silence_seconds(),
            is_silent: self.silence.is_too_long(now.mono),
            groups: self.groups.values().filter_map(|group| self.group_status(&group.keys)).collect(),
            key_packages: self.key_packages.len(),
            alarms: self.evidence.groups().collect(),
            psks: self.psks.held().map(|(psk, group)| PskStatus { psk, group: group.clone() }).collect(),
            lacking_psks: self.psks.lacking().clone(),
            refused: self.refusals.clone(),
        }
    }

    fn group_status(&self, keys: &crate::group::GroupKeys) -> Option<GroupStatus> {
        Some(GroupStatus {
            group: keys.group,
            name: keys.name.clone(),
            suite: keys.suite,
            cell: keys.cell,
            cell_epoch: self.cells.get(&keys.cell)?.epoch(),
            send: keys.send(),
            oldest: keys.oldest(),
            held: keys.key_epochs().collect(),
            statement: keys.newest_digest(),
        })
    }

    /// What each secret held of `group` commits to: what must be the same for everybody who holds it.
    pub fn commitments(&self, group: GroupId) -> Vec<(KeyEpoch, Commitment)> {
        let Some(group) = self.groups.get(&group) else { return Vec::new() };
        let of = |key_epoch| Some((key_epoch, group.keys.commitment(key_epoch)?));
        group.keys.key_epochs().filter_map(of).collect()
    }

    /// The genuine statements that contradict what it held, as they came: what [`Status::alarms`] are about.
    pub fn evidence(&self) -> impl Iterator<Item = &[u8]> {
        self.evidence.statements()
    }

    /// Who the device is.
    pub const fn device(&self) -> DeviceId {
        self.device
    }

    /// Its fleet.
    pub const fn fleet(&self) -> FleetId {
        self.fleet
    }
}
