//! What a device is given before it says its first word: the provisioning bundle, read.

use fleetkey_identity::{FleetRoots, IdentityKey};
use fleetkey_wire::{DeviceId, FleetId};

/// Who the device is, and whom it trusts.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The fleet.
    pub fleet: FleetId,
    /// The device.
    pub device: DeviceId,
    /// Its identity key: TLS, MLS leaves and signed payloads.
    pub identity: IdentityKey,
    /// The pinned roots of the fleet.
    pub roots: FleetRoots,
    /// The coordinator's certificate as provisioned, leaf first, DER. A newer one that was stored since counts
    /// instead of it.
    pub coordinator_chain: Vec<Vec<u8>>,
}
