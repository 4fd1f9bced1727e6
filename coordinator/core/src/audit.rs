//! The audit log as a chain: each entry holds the hash of the one before, so that nothing can be changed, taken out, put
//! in or moved without everything after it telling so.
//!
//! What a chain cannot tell is that its end was cut off, or that all of it was written anew: for that its head is noted
//! elsewhere, and looked for ([`Verifier::expecting`]). Leaves storing to [`crate::records`], and who acts to
//! [`crate::Actor`].

mod migrate;
mod verify;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::ByteArray;

pub use migrate::{chained, migrated, read_any};
pub use verify::{Fault, Verified, Verifier};

/// The action of the entry that the first unchained entries are told by when they are chained.
pub(crate) const CHAINED: &str = "chain";
/// The action of the entry that those follow which a restore takes over from a log that does not continue this one.
pub(crate) const TAKEN_OVER: &str = "take_over";

/// The SHA-256 of an entry and of all before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct AuditHash(pub [u8; 32]);

impl fmt::Display for AuditHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for AuditHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuditHash({self})")
    }
}

/// A text that is no hash, or no head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the head of an audit log: SEQUENCE:HASH, the hash as 64 hexadecimal digits")]
pub struct BadAuditHead;

impl FromStr for AuditHash {
    type Err = BadAuditHead;

    fn from_str(text: &str) -> Result<Self, BadAuditHead> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| BadAuditHead)?;
        Ok(Self(bytes))
    }
}

/// Hex where people read it, bytes where they do not.
impl Serialize for AuditHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_bytes(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for AuditHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            ByteArray::<32>::deserialize(deserializer).map(|bytes| Self(bytes.into_array()))
        }
    }
}

/// How far a log has come: its last entry. Noted elsewhere, it proves what the log was then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditHead {
    /// The entry's number; 0 of a log without entries.
    pub sequence: u64,
    /// The entry's hash; all zero of a log without entries.
    pub hash: AuditHash,
}

impl AuditHead {
    /// Whether nothing was entered yet.
    pub fn is_start(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for AuditHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.sequence, self.hash)
    }
}

impl FromStr for AuditHead {
    type Err = BadAuditHead;

    fn from_str(text: &str) -> Result<Self, BadAuditHead> {
        let (sequence, hash) = text.split_once(':').ok_or(BadAuditHead)?;
        Ok(Self { sequence: sequence.parse().map_err(|_| BadAuditHead)?, hash: hash.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_reads_as_it_is_shown() {
        let head = AuditHead { sequence: 17, hash: AuditHash([0xab; 32]) };
        assert_eq!(head.to_string(), format!("17:{}", "ab".repeat(32)));
        assert_eq!(head.to_string().parse(), Ok(head));
        for bad in ["", "17", "17:", ":ab", "17:abc", "-1:00", &format!("17:{}", "ab".repeat(33))] {
            assert_eq!(bad.parse::<AuditHead>(), Err(BadAuditHead), "{bad:?}");
        }
    }
}
