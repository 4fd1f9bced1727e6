//! What is stored, byte for byte: keys as text, values as a version byte and CBOR (RFC 8949).
//!
//! | key | value |
//! | --- | --- |
//! | `identity` | whose store it is |
//! | `certificate` | the coordinator's certificate chain |
//! | `cell/{cell}` | the cell as the MLS crate writes it |
//! | `group/{group}` | the group's name, keys and newest statement |
//! | `keypackage/{reference}` | the private half of a key package, with its place in the stock |
//! | `evidence/{group}` | a genuine statement that contradicts what was held |
//! | `psk/{id}` | an external pre-shared key, the group it is for, and its place in the order they were given |
//! | `silence` | how long the coordinator has been silent, and what it said of that |
//!
//! Leaves encryption to the store. Statements were verified before they were stored, and are not again.

use std::fmt;
use std::io::Write as _;

use fleetkey_mls::{KeyPackageRef, LocalError};
use fleetkey_wire::{CellId, DeviceId, FleetId, GroupId, KeyEpoch, PskId, SecretWriter, Suite};
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// The version of every value but those of the MLS crate, which carry their own.
const VERSION: u8 = 1;

/// Most values take no more.
const USUAL_BYTES: usize = 512;

/// What a stored value is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum EntryKey {
    Identity,
    Certificate,
    Cell(CellId),
    Group(GroupId),
    KeyPackage(KeyPackageRef),
    Evidence(GroupId),
    Psk(PskId),
    Silence,
}

/// A stored value that does not make sense: the disk's fault, or another build's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoredError {
    /// A key of no kind that this build knows.
    #[error("stored entry {key:?} is of no kind that this build knows")]
    UnknownKey {
        /// The key.
        key: String,
    },
    /// A value of a version that this build does not know.
    #[error("stored entry {key} has version {got}, this build knows only version {VERSION}")]
    UnknownVersion {
        /// The key.
        key: String,
        /// Its version.
        got: u8,
    },
    /// A value that does not decode.
    #[error("stored entry {key} is damaged: {reason}")]
    Damaged {
        /// The key.
        key: String,
        /// Why.
        reason: String,
    },
    /// A cell or key package that the MLS crate does not take back.
    #[error("stored entry {key}: {source}")]
    Mls {
        /// The key.
        key: String,
        /// Why.
        source: LocalError,
    },
}

impl fmt::Display for EntryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity => f.write_str("identity"),
            Self::Certificate => f.write_str("certificate"),
            Self::Cell(cell) => write!(f, "cell/{cell}"),
            Self::Group(group) => write!(f, "group/{group}"),
            Self::KeyPackage(reference) => {
                f.write_str("keypackage/")?;
                reference.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
            Self::Evidence(group) => write!(f, "evidence/{group}"),
            Self::Psk(psk) => write!(f, "psk/{psk}"),
            Self::Silence => f.write_str("silence"),
        }
    }
}

impl EntryKey {
    pub(crate) fn parse(text: &str) -> Result<Self, StoredError> {
        let unknown = || StoredError::UnknownKey { key: text.chars().take(128).collect() };
        let key = match text.split_once('/') {
            None if text == "identity" => Self::Identity,
            None if text == "certificate" => Self::Certificate,
            None if text == "silence" => Self::Silence,
            Some(("cell", id)) => Self::Cell(id.parse().map_err(|_| unknown())?),
            Some(("group", id)) => Self::Group(id.parse().map_err(|_| unknown())?),
            Some(("evidence", id)) => Self::Evidence(id.parse().map_err(|_| unknown())?),
            Some(("psk", id)) => Self::Psk(id.parse().map_err(|_| unknown())?),
            Some(("keypackage", hex)) => Self::KeyPackage(reference(hex).ok_or_else(unknown)?),
            None | Some(_) => return Err(unknown()),
        };
        Ok(key)
    }

    pub(crate) fn damaged(&self, reason: impl fmt::Display) -> StoredError {
        StoredError::Damaged { key: self.to_string(), reason: reason.to_string() }
    }

    pub(crate) fn mls(&self, source: LocalError) -> StoredError {
        StoredError::Mls { key: self.to_string(), source }
    }
}

fn reference(hex: &str) -> Option<KeyPackageRef> {
    let mut bytes = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(KeyPackageRef::from_bytes(bytes))
}

/// Bytes, as a CBOR byte string; secret ones among them, so they are zeroized.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) Zeroizing<Vec<u8>>);

impl Bytes {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BytesVisitor;
        impl Visitor<'_> for BytesVisitor {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a byte string")
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes::of(bytes))
            }

            fn visit_byte_buf<E: serde::de::Error>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
                Ok(Bytes(Zeroizing::new(bytes)))
            }
        }
        deserializer.deserialize_byte_buf(BytesVisitor)
    }
}

/// Whose store it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredIdentity {
    pub(crate) fleet: FleetId,
    pub(crate) device: DeviceId,
    pub(crate) public_key: [u8; 32],
}

/// The coordinator's certificate, leaf first, DER.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct StoredCertificate {
    pub(crate) chain: Vec<Bytes>,
}

/// A group's keys. What is accepted for the length of an overlap only is not stored: a restart ends it.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct StoredGroup {
    pub(crate) name: String,
    pub(crate) cell: CellId,
    pub(crate) suite: Suite,
    pub(crate) send: KeyEpoch,
    pub(crate) oldest: KeyEpoch,
    pub(crate) keys: Vec<(KeyEpoch, Bytes)>,
    pub(crate) newest: Option<Bytes>,
}

/// The private half of a key package.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct StoredKeyPackage {
    /// Its place in the stock: the lowest goes first.
    pub(crate) number: u64,
    pub(crate) private: Bytes,
}

/// A statement that contradicts what was held.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct StoredEvidence {
    pub(crate) statement: Bytes,
}

/// An external pre-shared key.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct StoredPsk {
    /// Its place among those that were given: a later one replaces an earlier one of the same group.
    pub(crate) number: u64,
    /// The group it is for: an id, or a name.
    pub(crate) group: String,
    pub(crate) secret: Bytes,
    /// The group that has used it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bound: Option<GroupId>,
}

/// How long the coordinator has been silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredSilence {
    pub(crate) elapsed_ms: u64,
    pub(crate) hello_interval_seconds: u32,
    pub(crate) max_silence_seconds: u32,
}

/// A value's bytes.
pub(crate) fn encode(value: &impl Serialize) -> Zeroizing<Vec<u8>> {
    let mut bytes = SecretWriter::with_capacity(USUAL_BYTES);
    bytes.write_all(&[VERSION]).expect("writing to memory does not fail");
    ciborium::into_writer(value, &mut bytes).expect("writing to memory does not fail");
    bytes.into_bytes()
}

/// A value from its bytes.
pub(crate) fn decode<T: DeserializeOwned>(key: &EntryKey, bytes: &[u8]) -> Result<T, StoredError> {
    match bytes.split_first() {
        None => Err(key.damaged("it is empty")),
        Some((&VERSION, mut rest)) => {
            let value = ciborium::from_reader(&mut rest).map_err(|error| key.damaged(error))?;
            if rest.is_empty() { Ok(value) } else { Err(key.damaged("something is left over")) }
        }
        Some((&got, _)) => Err(StoredError::UnknownVersion { key: key.to_string(), got }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_as_written() {
        for key in [
            EntryKey::Identity,
            EntryKey::Certificate,
            EntryKey::Cell(CellId::from_bytes([1; 16])),
            EntryKey::Group(GroupId::from_bytes([2; 16])),
            EntryKey::KeyPackage(KeyPackageRef::from_bytes([0xab; 32])),
            EntryKey::Evidence(GroupId::from_bytes([3; 16])),
            EntryKey::Psk(PskId::from_bytes([4; 16])),
            EntryKey::Silence,
        ] {
            assert_eq!(EntryKey::parse(&key.to_string()), Ok(key));
        }
    }

    #[test]
    fn a_key_of_no_known_kind_is_refused() {
        for text in ["", "cell", "cell/", "cell/x", "identity/1", "keypackage/00", "other/1", "group/é"] {
            assert!(matches!(EntryKey::parse(text), Err(StoredError::UnknownKey { .. })), "{text}");
        }
    }

    #[test]
    fn damage_and_other_versions_are_told_apart() {
        let silence = StoredSilence { elapsed_ms: 1, hello_interval_seconds: 2, max_silence_seconds: 3 };
        let whole = encode(&silence);
        assert_eq!(decode(&EntryKey::Silence, &whole), Ok(silence));
        for length in 0..whole.len() {
            let cut = decode::<StoredSilence>(&EntryKey::Silence, &whole[..length]);
            assert!(matches!(cut, Err(StoredError::Damaged { .. })), "cut to {length}");
        }
        let mut newer = whole.to_vec();
        newer[0] = 2;
        let newer = decode::<StoredSilence>(&EntryKey::Silence, &newer);
        assert_eq!(newer, Err(StoredError::UnknownVersion { key: "silence".into(), got: 2 }));
        let tailed = [whole.as_slice(), &[0]].concat();
        assert!(matches!(
            decode::<StoredSilence>(&EntryKey::Silence, &tailed),
            Err(StoredError::Damaged { .. })
        ));
    }

    /// What is stored must be read by every later build: a change here needs a version bump and a way to read both.
    #[test]
    fn the_stored_format_stays() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let statement = Bytes::of(&[0x5e; 4]);
        let keys = vec![
            (KeyEpoch::new(7, 1), Bytes::of(&[0x11; 32])),
            (KeyEpoch::new(7, 2), Bytes::of(&[0x22; 32])),
        ];
        let values = [
            (
                "identity",
                encode(&StoredIdentity {
                    fleet: FleetId::from_bytes([1; 16]),
                    device: DeviceId::from_bytes([2; 16]),
                    public_key: [3; 32],
                }),
            ),
            (
                "certificate",
                encode(&StoredCertificate { chain: vec![Bytes::of(&[0x30]), Bytes::of(&[0x31])] }),
            ),
            (
                "group",
                encode(&StoredGroup {
                    name: "pumps".to_owned(),
                    cell: CellId::from_bytes([4; 16]),
                    suite: Suite::ChaCha20Poly1305,
                    send: KeyEpoch::new(7, 1),
                    oldest: KeyEpoch::new(7, 1),
                    keys,
                    newest: Some(statement.clone()),
                }),
            ),
            ("keypackage", encode(&StoredKeyPackage { number: 5, private: Bytes::of(&[0x66; 3]) })),
            ("evidence", encode(&StoredEvidence { statement })),
            (
                "psk",
                encode(&StoredPsk {
                    number: 6,
                    group: "pumps".to_owned(),
                    secret: Bytes::of(&[0x77; 32]),
                    bound: None,
                }),
            ),
            (
                "silence",
                encode(&StoredSilence {
                    elapsed_ms: 600_000,
                    hello_interval_seconds: 1800,
                    max_silence_seconds: 86_400,
                }),
            ),
        ];
        let lines: Vec<String> = values.iter().map(|(key, value)| format!("{key} {}", hex(value))).collect();
        insta::assert_snapshot!("stored", lines.join("\n"));
        let group: StoredGroup =
            decode(&EntryKey::Group(GroupId::from_bytes([9; 16])), &values[2].1).unwrap();
        assert_eq!(encode(&group), values[2].1);
    }
}
