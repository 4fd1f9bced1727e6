//! What travels over the HTTP API, as both sides know it. `fleetkey ... --json` prints these.

use std::fmt;

use fleetkey_coordinator_core::{GroupStatus, Policy, Standing};
use fleetkey_wire::{CellId, DeviceId, FleetId, GroupId};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use crate::stats::Stats;

/// The largest request body, in bytes.
pub const MAX_REQUEST_BYTES: usize = 1024 * 1024;

/// Something went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What, by name: lower case, words joined by `_`.
    pub error: String,
    /// What, for people.
    pub message: String,
}

/// `POST /v1/devices`: provision a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewDevice {
    /// A label for people.
    pub name: String,
}

/// Everything that a new device is equipped with. It is given out once: the private key is not kept.
#[derive(Clone, Serialize, Deserialize)]
pub struct Bundle {
    /// The fleet.
    pub fleet: FleetId,
    /// The device.
    pub device: DeviceId,
    /// Its label.
    pub name: String,
    /// Where its broker is.
    pub broker: String,
    /// Its certificate chain, PEM, leaf first.
    pub certificate: String,
    /// Its private key, PEM.
    pub private_key: String,
    /// The roots that it pins, PEM.
    pub fleet_roots: String,
    /// The coordinator's certificate chain, PEM, leaf first.
    pub coordinator_certificate: String,
}

impl Drop for Bundle {
    fn drop(&mut self) {
        self.private_key.zeroize();
    }
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bundle({}, {:?}, redacted)", self.device, self.name)
    }
}

/// One device in one group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipView {
    /// The group.
    pub group: GroupId,
    /// Its name.
    pub group_name: String,
    /// The device.
    pub device: DeviceId,
    /// Its name.
    pub device_name: String,
    /// The cell it is in; none while it is only wanted.
    pub cell: Option<CellId>,
    /// The newest key epoch it proved to hold.
    pub confirmed: String,
    /// When it last confirmed.
    pub confirmed_unix_seconds: u64,
    /// Whether it has confirmed the group's newest key epoch.
    pub holds_newest: bool,
    /// Whether it was heard lately.
    pub online: bool,
}

/// `GET /v1/devices/{device}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceView {
    /// Its id.
    pub id: DeviceId,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub standing: Standing,
    /// When it was enrolled.
    pub enrolled_unix_seconds: u64,
    /// Whether it was heard lately.
    pub online: bool,
    /// The groups it is in, or wanted in.
    pub groups: Vec<MembershipView>,
}

/// `GET /v1/devices`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceList {
    /// In the order of their names.
    pub devices: Vec<DeviceView>,
}

/// `POST /v1/groups`: create a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewGroup {
    /// Its name.
    pub name: String,
    /// How it is run; what is left out has its default.
    #[serde(default)]
    pub policy: Policy,
}

/// `GET /v1/groups`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GroupList {
    /// In the order of their names.
    pub groups: Vec<GroupStatus>,
}

/// `GET /v1/groups/{group}/members`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberList {
    /// In the order of the devices' names.
    pub members: Vec<MembershipView>,
}

/// `POST /v1/groups/{group}/add` and `/remove`: which devices, by name or id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceNames {
    /// Names or ids.
    pub devices: Vec<String>,
}

/// What became of `POST /v1/groups/{group}/add`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Added {
    /// Devices that were not wanted in the group before.
    pub added: usize,
    /// The group now.
    pub group: GroupStatus,
}

/// `POST /v1/revoke`: end the identities of devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocation {
    /// Names or ids.
    pub devices: Vec<String>,
    /// Why, for the record.
    pub reason: String,
}

/// What became of `POST /v1/revoke`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Revoked {
    /// The devices.
    pub devices: Vec<DeviceId>,
    /// The groups that were rekeyed on their account, as they are now.
    pub groups: Vec<GroupStatus>,
}

/// What became of a rekey or of the start of a rotation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rekeyed {
    /// The new key epoch.
    pub key_epoch: String,
    /// The group now.
    pub group: GroupStatus,
}

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StatusView {
    /// The coordinator.
    pub coordinator: fleetkey_coordinator_core::Status,
    /// Whether there is a connection to the broker.
    pub broker_connected: bool,
    /// What was received, sent and spent.
    pub stats: Stats,
}

/// `GET /readyz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Both of the others.
    pub ready: bool,
    /// Whether the coordinator is loaded and follows commands.
    pub loaded: bool,
    /// Whether there is a connection to the broker.
    pub broker_connected: bool,
}
