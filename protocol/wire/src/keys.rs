//! The key schedule: from a cell's KEK and a group's secret to every key that is used.
//!
//! HKDF-SHA-256 (RFC 5869) throughout; every input is a CBOR array, never a bare concatenation.
//! Leaves to others where secrets are stored, and for how long.

use ed25519_dalek::{SigningKey, VerifyingKey};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use rand_core::{CryptoRng, RngCore};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::cbor;
use crate::ids::{DeviceId, FleetId, GroupId, KeyEpoch};
use crate::statement::StatementDigest;
use crate::suite::Suite;

/// Length of every symmetric secret of the schedule, in bytes.
pub const SECRET_BYTES: usize = 32;

macro_rules! secret {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Zeroize, ZeroizeOnDrop)]
        pub struct $name([u8; SECRET_BYTES]);

        impl $name {
            /// The secret with these bytes.
            pub const fn from_bytes(bytes: [u8; SECRET_BYTES]) -> Self {
                Self(bytes)
            }

            /// Its bytes, for storage under encryption and for derivations.
            pub const fn as_bytes(&self) -> &[u8; SECRET_BYTES] {
                &self.0
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.0.ct_eq(&other.0).into()
            }
        }

        impl Eq for $name {}

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($name), "(redacted)"))
            }
        }
    };
}

secret!(
    /// 32 random bytes, one per group and key epoch, for ever: what applications derive their keys from.
    GroupSecret
);
secret!(
    /// Key-encryption key of a cell epoch, from the MLS exporter: wraps group secrets for that cell.
    Kek
);
secret!(
    /// What one device and the coordinator alone share.
    Pairwise
);
secret!(
    /// 32 random bytes that devices of a group are given by hand, and that MLS mixes into their cells' keys.
    Psk
);
secret!(
    /// Authenticates frames on a device's topics.
    LinkKey
);
secret!(
    /// Proves that one device holds one group secret.
    ConfirmKey
);

/// An AEAD key of the suite's length.
pub(crate) type AeadKey = Zeroizing<Vec<u8>>;

/// What a statement says of a group secret without giving it away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Commitment(pub [u8; 32]);

/// A Diffie-Hellman exchange that yielded no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPeerKey {
    /// Not a point on the curve.
    #[error("the peer's Ed25519 key is not a point on the curve")]
    NotAPoint,
    /// A point of small order: the shared secret would be all zero (RFC 7748 §6.1).
    #[error("the peer's key has small order, so the shared secret would be known to everybody")]
    SmallOrder,
}

impl GroupSecret {
    /// A fresh one.
    pub fn random(rng: &mut (impl RngCore + CryptoRng + ?Sized)) -> Self {
        let mut bytes = [0; SECRET_BYTES];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// The commitment that the statement of `key_epoch` carries.
    pub fn commitment(&self, group: GroupId, key_epoch: KeyEpoch) -> Commitment {
        let info = cbor::array(&[
            cbor::text("fleetkey commitment"),
            cbor::bytes(group.as_bytes()),
            cbor::uint(key_epoch.0),
        ]);
        Commitment(expand32(&self.0, &info))
    }

    /// A key of `length` bytes (1 to 64) for an application, bound to its `label` and `context`.
    pub fn app_key(&self, label: &str, context: &[u8], length: AppKeyLength) -> Zeroizing<Vec<u8>> {
        let info = cbor::array(&[
            cbor::text("fleetkey app"),
            cbor::text(label),
            cbor::bytes(context),
            cbor::uint(length.0),
        ]);
        expand(&self.0, &info, usize::from(length.0))
    }
}

/// How long an application's key is to be, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppKeyLength(u8);

impl AppKeyLength {
    /// From 1 to 64 bytes, or `None`.
    pub const fn new(bytes: u8) -> Option<Self> {
        match bytes {
            1..=64 => Some(Self(bytes)),
            _ => None,
        }
    }
}

impl Kek {
    /// The key that wraps one group secret, under one statement, for this cell epoch, and nothing else ever.
    pub(crate) fn wrap_key(&self, suite: Suite, statement: &StatementDigest) -> AeadKey {
        let info = cbor::array(&[cbor::text("fleetkey wrap"), cbor::bytes(&statement.0)]);
        expand(&self.0, &info, suite.aead_key_bytes())
    }
}

impl Pairwise {
    /// What `device` and the coordinator share: X25519 of their Ed25519 identity keys (RFC 7748, the birational
    /// map of RFC 7748 §4.1), extracted with fleet and device as salt. Both sides compute the same from their
    /// own private and the other's public key.
    pub fn agree(
        fleet: FleetId,
        device: DeviceId,
        own: &SigningKey,
        peer_public_key: &[u8; 32],
    ) -> Result<Self, BadPeerKey> {
        let peer = VerifyingKey::from_bytes(peer_public_key).map_err(|_| BadPeerKey::NotAPoint)?;
        let own = x25519_dalek::StaticSecret::from(own.to_scalar_bytes());
        let shared = own.diffie_hellman(&x25519_dalek::PublicKey::from(peer.to_montgomery().to_bytes()));
        if !shared.was_contributory() {
            return Err(BadPeerKey::SmallOrder);
        }
        let salt = cbor::array(&[
            cbor::text("fleetkey pairwise"),
            cbor::bytes(fleet.as_bytes()),
            cbor::bytes(device.as_bytes()),
        ]);
        Ok(Self(extract(&salt, shared.as_bytes())))
    }

    /// Authenticates frames between the two.
    pub fn link_key(&self) -> LinkKey {
        LinkKey(expand32(&self.0, &cbor::array(&[cbor::text("fleetkey link")])))
    }

    /// Proves to the coordinator that the device holds `secret`.
    pub fn confirm_key(&self, secret: &GroupSecret) -> ConfirmKey {
        let key = Zeroizing::new(extract(&secret.0, &self.0));
        ConfirmKey(expand32(&*key, &cbor::array(&[cbor::text("fleetkey confirm")])))
    }
}

/// HMAC-SHA-256 over `message`.
pub(crate) fn mac(key: &[u8], message: &[u8]) -> Hmac<Sha256> {
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(message);
    mac
}

fn extract(salt: &[u8], input: &[u8]) -> [u8; SECRET_BYTES] {
    Hkdf::<Sha256>::extract(Some(salt), input).0.into()
}

pub(crate) fn expand(key: &[u8], info: &[u8], length: usize) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(vec![0; length]);
    Hkdf::<Sha256>::from_prk(key)
        .expect("every key of the schedule is at least as long as the hash")
        .expand(info, &mut out)
        .expect("no key of the schedule is longer than 255 hashes");
    out
}

fn expand32(key: &[u8], info: &[u8]) -> [u8; SECRET_BYTES] {
    let mut out = [0; SECRET_BYTES];
    out.copy_from_slice(&expand(key, info, SECRET_BYTES));
    out
}
