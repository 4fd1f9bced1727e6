//! What is stored of the ways in: certificates issued, claims, and who waits for an operator's word.

use std::fmt;
use std::str::FromStr;

use fleetkey_wire::DeviceId;
use rand_core::CryptoRngCore;
use serde::{Deserialize, Serialize};

use super::{Record, Table, pair};
use crate::labels::Labels;

/// Names a claim: 8 random bytes, shown in hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ClaimId([u8; 8]);

/// A text that names no claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the id of a claim: 16 hex digits")]
pub struct BadClaimId;

impl ClaimId {
    /// A fresh one.
    pub fn random(rng: &mut dyn CryptoRngCore) -> Self {
        let mut bytes = [0; 8];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }
}

impl fmt::Display for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClaimId({self})")
    }
}

impl FromStr for ClaimId {
    type Err = BadClaimId;

    fn from_str(text: &str) -> Result<Self, BadClaimId> {
        let is_hex = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let number = u64::from_str_radix(text, 16).ok().filter(|_| is_hex).ok_or(BadClaimId)?;
        Ok(Self(number.to_be_bytes()))
    }
}

impl From<ClaimId> for String {
    fn from(id: ClaimId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for ClaimId {
    type Error = BadClaimId;

    fn try_from(text: String) -> Result<Self, BadClaimId> {
        text.parse()
    }
}

/// The way by which a device came in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// An operator made its identity, or enrolled it by its certificate.
    #[default]
    Operator,
    /// It showed a claim.
    Claim(ClaimId),
    /// It showed a certificate of its manufacturer's.
    Manufacturer {
        /// The manufacturer, as the rule that let it in is named.
        manufacturer: String,
    },
}

impl Origin {
    /// Whether it is what a device has when nothing else is said.
    pub(crate) fn is_operator(&self) -> bool {
        matches!(self, Self::Operator)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => f.write_str("operator"),
            Self::Claim(id) => write!(f, "claim {id}"),
            Self::Manufacturer { manufacturer } => write!(f, "manufacturer {manufacturer}"),
        }
    }
}

/// A certificate that was issued to a device. It is stored before anybody gets the certificate, so that whoever holds
/// one is on the revocation list when the device is revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRecord {
    /// The device.
    pub device: DeviceId,
    /// The certificate's serial number.
    #[serde(with = "serde_bytes")]
    pub serial: Vec<u8>,
    /// Which CA issued it: the first 8 bytes of the SHA-256 of that CA's certificate.
    #[serde(with = "serde_bytes")]
    pub issuer: [u8; 8],
    /// Its last second.
    pub not_after_unix_seconds: u64,
}

impl Record for CertificateRecord {
    const TABLE: Table = Table::Certificate;
    fn key(&self) -> Vec<u8> {
        // Two CAs may give one request the same serial number.
        pair(self.device.as_bytes(), &pair(&self.issuer, &self.serial))
    }
}

/// A pre-shared secret that lets devices in: once, or as often as it says.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRecord {
    /// Its id, which is no secret.
    pub id: ClaimId,
    /// For people: what it is for.
    pub note: String,
    /// The SHA-256 of its secret, which has 32 random bytes and is kept by nobody but its holders.
    #[serde(with = "serde_bytes")]
    pub secret_digest: [u8; 32],
    /// When it was made.
    pub created_unix_seconds: u64,
    /// Its last second.
    pub expires_unix_seconds: u64,
    /// How many devices it lets in.
    pub uses: u32,
    /// How many it has let in.
    pub used: u32,
    /// What those devices are labelled with.
    pub labels: Labels,
    /// Whether each of them waits for an operator's word.
    pub needs_approval: bool,
}

impl fmt::Debug for ClaimRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClaimRecord({}, {} of {} used, redacted)", self.id, self.used, self.uses)
    }
}

impl Record for ClaimRecord {
    const TABLE: Table = Table::Claim;
    fn key(&self) -> Vec<u8> {
        self.id.0.to_vec()
    }
}

/// A device that has shown that it may ask, and waits for an operator's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// The id that it will have.
    pub device: DeviceId,
    /// The name that it will have, if it is free by then.
    pub name: String,
    /// Its Ed25519 identity key.
    #[serde(with = "serde_bytes")]
    pub public_key: [u8; 32],
    /// The way by which it came.
    pub origin: Origin,
    /// What it will be labelled with.
    pub labels: Labels,
    /// Since when it waits.
    pub unix_seconds: u64,
    /// Whether an operator has said no.
    pub is_denied: bool,
}

impl Record for RequestRecord {
    const TABLE: Table = Table::Request;
    fn key(&self) -> Vec<u8> {
        self.device.as_bytes().to_vec()
    }
}
