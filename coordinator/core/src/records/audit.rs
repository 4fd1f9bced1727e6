//! The audit log's entries, as they are stored and told.

use ciborium::into_writer;
use serde::{Deserialize, Serialize};
use serde_bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{Record, Table, pair};
use crate::audit::{AuditHash, AuditHead};

/// What every hash of an entry begins with.
const LABEL: &str = "fleetkey audit";

/// Something that was done, and by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deed {
    /// When.
    pub unix_seconds: u64,
    /// Who did it.
    pub who: String,
    /// What was done, in one word.
    pub action: String,
    /// To what.
    pub subject: String,
    /// More, for people.
    pub detail: String,
}

/// Who did what, and which entry it was entered after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Its place in the log, from 1 on, without a gap.
    pub sequence: u64,
    /// When.
    pub unix_seconds: u64,
    /// Who did it: an operator's name, `coordinator`, or `device:`, `claim:` or `manufacturer:` and whose.
    pub who: String,
    /// What was done, in one word.
    pub action: String,
    /// To what.
    pub subject: String,
    /// More, for people.
    pub detail: String,
    /// The hash of the entry before; all zero in the first.
    pub previous: AuditHash,
    /// The hash of all of the above.
    pub hash: AuditHash,
}

impl AuditRecord {
    /// The entry that tells of this after `head`.
    pub fn following(head: AuditHead, deed: Deed) -> Self {
        let Deed { unix_seconds, who, action, subject, detail } = deed;
        let (sequence, previous) = (head.sequence.saturating_add(1), head.hash);
        let hash = AuditHash::default();
        let mut entry = Self { sequence, unix_seconds, who, action, subject, detail, previous, hash };
        entry.hash = entry.hashed();
        entry
    }

    /// SHA-256 over the CBOR array of label, previous hash, and everything that the entry tells.
    fn hashed(&self) -> AuditHash {
        let Self { sequence, unix_seconds, who, action, subject, detail, previous, hash: _ } = self;
        let previous = Bytes::new(&previous.0);
        let mut told = Vec::new();
        into_writer(&(LABEL, previous, sequence, unix_seconds, who, action, subject, detail), &mut told)
            .expect("writing to memory does not fail");
        AuditHash(Sha256::digest(&told).into())
    }

    /// Whether its hash is the hash of what it tells.
    pub fn is_intact(&self) -> bool {
        self.hash == self.hashed()
    }

    /// How far the log had come with it.
    pub const fn head(&self) -> AuditHead {
        AuditHead { sequence: self.sequence, hash: self.hash }
    }

    /// What it tells.
    pub fn deed(&self) -> Deed {
        let Self { unix_seconds, who, action, subject, detail, .. } = self.clone();
        Deed { unix_seconds, who, action, subject, detail }
    }
}

impl Record for AuditRecord {
    const TABLE: Table = Table::Audit;
    const VERSION: u8 = 2;
    fn key(&self) -> Vec<u8> {
        self.sequence.to_be_bytes().to_vec()
    }
}

/// An entry as it was stored before entries were chained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OldAuditRecord {
    /// When.
    pub unix_seconds: u64,
    /// Its place among the entries of its time.
    pub number: u64,
    /// What was done, in one word.
    pub action: String,
    /// To what.
    pub subject: String,
    /// More, for people.
    pub detail: String,
}

impl Record for OldAuditRecord {
    const TABLE: Table = Table::Audit;
    fn key(&self) -> Vec<u8> {
        pair(&self.unix_seconds.to_be_bytes(), &self.number.to_be_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes by hand (RFC 8949): so that anybody can follow the chain with a CBOR encoder and SHA-256.
    #[test]
    fn the_hash_is_that_of_a_cbor_array() {
        let head = AuditHead { sequence: 23, hash: AuditHash([7; 32]) };
        let deed = Deed {
            unix_seconds: 1_800_000_000,
            who: "ops1".into(),
            action: "revoke".into(),
            subject: "d".into(),
            detail: String::new(),
        };
        let mut told = vec![0x88, 0x6e];
        told.extend(b"fleetkey audit");
        told.extend([0x58, 32]);
        told.extend([7; 32]);
        told.extend([0x18, 24]);
        told.extend([0x1a, 0x6b, 0x49, 0xd2, 0x00]);
        told.extend([0x64]);
        told.extend(b"ops1");
        told.extend([0x66]);
        told.extend(b"revoke");
        told.extend([0x61, b'd', 0x60]);
        let entry = AuditRecord::following(head, deed.clone());
        assert_eq!(entry.hash.0, <[u8; 32]>::from(Sha256::digest(&told)));
        assert!(entry.is_intact());
        assert_eq!((entry.deed(), entry.previous), (deed, head.hash));
    }

    #[test]
    fn in_json_the_hashes_are_hex_and_read_back() {
        let deed = Deed {
            unix_seconds: 1,
            who: "ops1".into(),
            action: "rekey".into(),
            subject: "g".into(),
            detail: "\u{e9}".into(),
        };
        let entry = AuditRecord::following(AuditHead::default(), deed);
        let text = serde_json::to_string(&entry).unwrap();
        assert!(text.contains(&format!("\"previous\":\"{}\"", "00".repeat(32))), "{text}");
        assert_eq!(serde_json::from_str::<AuditRecord>(&text).unwrap(), entry);
    }
}
