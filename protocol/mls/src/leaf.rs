//! Leaves: whose they are, and whether anything can be encrypted to them.
//!
//! openmls leaves both to us. An all-zero X25519 key would pass its checks and then make every later commit
//! fail, and an Update could put any identity in a leaf.

use fleetkey_wire::{DeviceId, FleetId, Suite};
use openmls::prelude::{
    BasicCredential, Credential, CredentialType, CredentialWithKey, LeafNode, ParentNode, ProtocolVersion,
};
use openmls_traits::crypto::OpenMlsCrypto;
use openmls_traits::types::VerifiableCiphersuite;
use tls_codec::{Deserialize as _, Serialize as _, Size as _, VLBytes};

use crate::crypto::Crypto;
use crate::error::Refused;
use crate::provider::ciphersuite;
use crate::signer::LeafSigner;

/// No device's leaf is longer, in bytes: every member stores every leaf. Ours take about 150, and their encryption key.
pub const fn max_leaf_bytes(suite: Suite) -> usize {
    224 + suite.kem_public_key_bytes()
}

/// The credential of a device's leaf: its id.
pub(crate) fn device_credential(device: DeviceId) -> Credential {
    BasicCredential::new(device.as_bytes().to_vec()).into()
}

/// The credential of the coordinator's leaf: the fleet's id.
pub(crate) fn coordinator_credential(fleet: FleetId) -> Credential {
    BasicCredential::new(fleet.as_bytes().to_vec()).into()
}

/// `credential` with the public key of `signer`.
pub(crate) fn with_key(credential: Credential, signer: &LeafSigner) -> CredentialWithKey {
    CredentialWithKey { credential, signature_key: signer.public_key().as_slice().into() }
}

/// Whether `leaf` may stand in the tree for `device`, which enrolled with `signature_key`.
pub(crate) fn check_device_leaf(
    leaf: &LeafNode,
    device: DeviceId,
    signature_key: &[u8; 32],
    suite: Suite,
) -> Result<(), Refused> {
    if *leaf.credential() != device_credential(device) {
        return Err(Refused::WrongIdentity { expected: format!("device {device}") });
    }
    if leaf.signature_key().as_slice() != signature_key {
        return Err(Refused::WrongSignatureKey { device });
    }
    if leaf.extensions().iter().next().is_some() {
        return Err(Refused::Extensions { what: "the leaf" });
    }
    let can = leaf.capabilities();
    if !can.versions().contains(&ProtocolVersion::Mls10)
        || !can.ciphersuites().contains(&VerifiableCiphersuite::from(ciphersuite(suite)))
        || !can.credentials().contains(&CredentialType::Basic)
    {
        return Err(Refused::Capabilities);
    }
    let (bytes, max) = (leaf.tls_serialized_len(), max_leaf_bytes(suite));
    if bytes > max {
        return Err(Refused::TooLarge { what: "the leaf", bytes, max });
    }
    Ok(())
}

/// The leaf's public encryption key.
pub(crate) fn encryption_key(leaf: &LeafNode) -> Result<Vec<u8>, Refused> {
    const UNUSABLE: Refused = Refused::UnusableKey { key: "encryption" };
    let encoded = leaf.encryption_key().tls_serialize_detached().map_err(|_| UNUSABLE)?;
    VLBytes::tls_deserialize_exact(encoded).map(Into::into).map_err(|_| UNUSABLE)
}

/// The parent node's public encryption key, the first field of it (RFC 9420 §7.1).
pub(crate) fn parent_key(parent: &ParentNode) -> Option<Vec<u8>> {
    let encoded = parent.tls_serialize_detached().ok()?;
    VLBytes::tls_deserialize(&mut encoded.as_slice()).map(Into::into).ok()
}

/// Seals to `public_key`, once, for the sake of knowing that it can be done: whether a key is of small order, or
/// no key of ML-KEM, does not depend on the randomness, so what works now works in every later commit.
pub(crate) fn trial_seal(
    crypto: &Crypto,
    suite: Suite,
    key: &'static str,
    public_key: &[u8],
) -> Result<(), Refused> {
    let config = ciphersuite(suite).hpke_config();
    crypto
        .hpke_seal(config, public_key, b"fleetkey trial", &[], &[])
        .map(drop)
        .map_err(|_| Refused::UnusableKey { key })
}
