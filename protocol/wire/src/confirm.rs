//! The confirmation: a device's proof that it holds a group secret, made after the secret is stored.
//!
//! It proves identity and possession at once: its key takes both the secret, which neighbours hold, and what
//! only this device and the coordinator share. A member and a hostile broker together cannot forge another's.

use hmac::Mac;

use crate::cbor;
use crate::ids::{DeviceId, FleetId, GroupId, KeyEpoch};
use crate::keys::{Commitment, GroupSecret, Pairwise, mac};

/// What is confirmed, and by whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confirmation {
    /// The fleet.
    pub fleet: FleetId,
    /// The group.
    pub group: GroupId,
    /// The key epoch whose secret is held.
    pub key_epoch: KeyEpoch,
    /// The commitment of its statement.
    pub commitment: Commitment,
    /// The device that holds it.
    pub device: DeviceId,
}

/// Length of a confirmation's MAC, in bytes.
pub const CONFIRM_MAC_BYTES: usize = 32;

impl Confirmation {
    /// The MAC: HMAC-SHA-256 under the device's confirm key.
    pub fn prove(&self, pairwise: &Pairwise, secret: &GroupSecret) -> [u8; CONFIRM_MAC_BYTES] {
        self.mac(pairwise, secret).finalize().into_bytes().into()
    }

    /// Whether `proof` is what the device would have made, compared in constant time.
    pub fn holds(&self, pairwise: &Pairwise, secret: &GroupSecret, proof: &[u8; CONFIRM_MAC_BYTES]) -> bool {
        self.mac(pairwise, secret).verify_slice(proof).is_ok()
    }

    fn mac(&self, pairwise: &Pairwise, secret: &GroupSecret) -> hmac::Hmac<sha2::Sha256> {
        let message = cbor::array(&[
            cbor::bytes(self.fleet.as_bytes()),
            cbor::bytes(self.group.as_bytes()),
            cbor::uint(self.key_epoch.0),
            cbor::bytes(&self.commitment.0),
            cbor::bytes(self.device.as_bytes()),
        ]);
        mac(pairwise.confirm_key(secret).as_bytes(), &message)
    }
}
