//! Key packages: what a device gives out to be added once, and the private half it keeps until then.

use std::fmt;

use fleetkey_wire::{DeviceId, Suite};
use openmls::prelude::{KeyPackage, MlsMessageBodyIn, MlsMessageOut, ProtocolVersion};
use openmls_traits::OpenMlsProvider as _;
use zeroize::Zeroizing;

use crate::error::{LocalError, MlsError, Refused};
use crate::leaf::{check_device_leaf, device_credential, encryption_key, trial_seal, with_key};
use crate::message::{body, check_suite, kind, max_key_package_bytes};
use crate::provider::{Provider, capabilities, ciphersuite, lifetime};
use crate::signer::{LeafSigner, MlsSigner};
use crate::slots::{Slot, Slots, Value};
use crate::snapshot::{Reader, Writer};

const WHAT: &str = "a key package";
const VERSION: u8 = 1;

/// Names a key package: its hash (RFC 9420 §5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyPackageRef(pub(crate) [u8; 32]);

impl KeyPackageRef {
    /// The reference with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The private half of a key package. One Welcome uses it up; whoever keeps it deletes it with the join.
#[derive(Clone)]
pub struct PrivateKeyPackage {
    reference: KeyPackageRef,
    device: DeviceId,
    suite: Suite,
    /// The slot that openmls keeps it in.
    slot: (Vec<u8>, Value),
}

/// A fresh key package of `device`, to give out once (an MLSMessage), and its private half to keep.
pub fn make_key_package(
    device: DeviceId,
    suite: Suite,
    signer: &LeafSigner,
) -> Result<(Vec<u8>, PrivateKeyPackage), LocalError> {
    let failed = |reason: String| LocalError::Engine { doing: "making a key package", reason };
    let no_slots = Slots::default();
    let provider = Provider::over(&no_slots);
    provider.storage().record();
    let bundle = KeyPackage::builder()
        .key_package_lifetime(lifetime())
        .leaf_node_capabilities(capabilities(suite))
        .build(ciphersuite(suite), &provider, &MlsSigner(signer), with_key(device_credential(device), signer))
        .map_err(|error| failed(error.to_string()))?;
    let reference = reference(&provider, bundle.key_package()).map_err(|error| failed(error.to_string()))?;
    let public = MlsMessageOut::from(bundle.into_key_package())
        .to_bytes()
        .map_err(|error| failed(error.to_string()))?;
    let slot = provider
        .into_changes()
        .into_iter()
        .find_map(|(key, change)| Some((key, change?)))
        .ok_or_else(|| failed("its private half was not stored".to_owned()))?;
    Ok((public, PrivateKeyPackage { reference, device, suite, slot }))
}

impl PrivateKeyPackage {
    /// The key package it belongs to.
    pub const fn reference(&self) -> KeyPackageRef {
        self.reference
    }

    /// The device that made it.
    pub const fn device(&self) -> DeviceId {
        self.device
    }

    /// The suite it is for.
    pub const fn suite(&self) -> Suite {
        self.suite
    }

    /// Everything of it, to be stored encrypted.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let (key, value) = &self.slot;
        let mut out = Writer::new(VERSION, key.len() + value.len() + 64);
        out.suite(self.suite);
        out.array(self.device.as_bytes());
        out.array(self.reference.as_bytes());
        out.bytes(key);
        out.bytes(value);
        out.finish()
    }

    /// What [`Self::to_bytes`] has written.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, LocalError> {
        let mut input = Reader::new("a stored key package", VERSION, bytes)?;
        let suite = input.suite()?;
        let device = DeviceId::from_bytes(input.array()?);
        let reference = KeyPackageRef(input.array()?);
        let slot = (input.bytes()?.to_vec(), Zeroizing::new(input.bytes()?.to_vec()));
        if slot.0.first() != Some(&(Slot::KeyPackage as u8)) {
            return Err(input.damaged("it holds something else"));
        }
        input.finish()?;
        Ok(Self { reference, device, suite, slot })
    }

    /// The slots of a group that is about to be joined.
    pub(crate) fn slots(&self) -> Slots {
        let mut slots = Slots::default();
        slots.insert(self.slot.0.clone(), self.slot.1.clone());
        slots
    }
}

impl fmt::Debug for PrivateKeyPackage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKeyPackage({:?}, redacted)", self.reference)
    }
}

/// A device's key package that has passed every check but those against the tree.
pub(crate) struct CheckedKeyPackage {
    pub(crate) key_package: KeyPackage,
    pub(crate) reference: KeyPackageRef,
    pub(crate) encryption_key: Vec<u8>,
    pub(crate) init_key: Vec<u8>,
}

/// Whether `bytes` are a key package that `device`, enrolled with `signature_key`, can be added with.
pub(crate) fn check_key_package(
    provider: &Provider<'_>,
    device: DeviceId,
    signature_key: &[u8; 32],
    suite: Suite,
    bytes: &[u8],
) -> Result<CheckedKeyPackage, Refused> {
    let unverified = match body(WHAT, bytes, max_key_package_bytes(suite))? {
        MlsMessageBodyIn::KeyPackage(key_package) => key_package,
        other @ (MlsMessageBodyIn::PublicMessage(_)
        | MlsMessageBodyIn::PrivateMessage(_)
        | MlsMessageBodyIn::Welcome(_)
        | MlsMessageBodyIn::GroupInfo(_)) => {
            return Err(Refused::WrongKind { expected: WHAT, got: kind(&other) });
        }
    };
    let key_package = unverified
        .validate(provider.crypto(), ProtocolVersion::Mls10)
        .map_err(|error| Refused::Invalid { what: WHAT, reason: error.to_string() })?;
    check_suite(key_package.ciphersuite().into(), suite)?;
    check_device_leaf(key_package.leaf_node(), device, signature_key, suite)?;
    if key_package.extensions().iter().next().is_some() {
        return Err(Refused::Extensions { what: WHAT });
    }
    if *key_package.life_time() != lifetime() {
        return Err(Refused::BoundedLifetime);
    }
    let encryption_key = encryption_key(key_package.leaf_node())?;
    let init_key = key_package.hpke_init_key().as_slice().to_vec();
    trial_seal(provider.crypto(), suite, "encryption", &encryption_key)?;
    trial_seal(provider.crypto(), suite, "init", &init_key)?;
    let reference = reference(provider, &key_package)
        .map_err(|error| Refused::Invalid { what: WHAT, reason: error.to_string() })?;
    Ok(CheckedKeyPackage { key_package, reference, encryption_key, init_key })
}

fn reference(provider: &Provider<'_>, key_package: &KeyPackage) -> Result<KeyPackageRef, MlsError> {
    let failed = |reason: String| LocalError::Engine { doing: "hashing a key package", reason };
    let reference = key_package.hash_ref(provider.crypto()).map_err(|error| failed(error.to_string()))?;
    let bytes =
        reference.as_slice().try_into().map_err(|_| failed("the hash has another length".to_owned()))?;
    Ok(KeyPackageRef(bytes))
}
