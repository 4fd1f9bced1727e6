//! The stored state of one MLS group: a few named byte strings, and the codec that fills them.
//!
//! The values are openmls's own types, encoded as MessagePack with byte strings kept as byte strings. Which
//! value goes where is `storage`'s business; how all of them become one snapshot is `snapshot`'s.

use std::collections::BTreeMap;

use rmp_serde::config::BytesMode;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

/// What a slot holds. The number is part of the stored format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Slot {
    JoinConfig = 1,
    Tree = 2,
    GroupContext = 3,
    InterimTranscriptHash = 4,
    ConfirmationTag = 5,
    GroupState = 6,
    MessageSecrets = 7,
    ResumptionPsks = 8,
    OwnLeafIndex = 9,
    EpochSecrets = 10,
    EpochKeyPairs = 11,
    OwnLeafNodes = 12,
    EncryptionKeyPair = 13,
    QueuedProposal = 14,
    KeyPackage = 15,
    /// Held for the length of one operation, and never stored.
    Psk = 16,
}

impl Slot {
    /// Slots that an own Update proposal fills, and that are worth nothing once its epoch has ended.
    const OF_AN_UPDATE: [Self; 3] = [Self::OwnLeafNodes, Self::EncryptionKeyPair, Self::QueuedProposal];
}

/// A slot's number, and what tells several of a kind apart.
pub(crate) type Key = Vec<u8>;

/// What a slot holds; most of it is secret.
pub(crate) type Value = Zeroizing<Vec<u8>>;

/// Values to write, and slots to empty (`None`).
pub(crate) type Changes = BTreeMap<Key, Option<Value>>;

/// Room for the largest secret value of a cell at the default capacity, several times over.
const SCRATCH_BYTES: usize = 16 * 1024;

/// Every slot of one group.
#[derive(Clone, Default)]
pub(crate) struct Slots(BTreeMap<Key, Value>);

impl Slots {
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Value> {
        self.0.get(key)
    }

    pub(crate) fn insert(&mut self, key: Key, value: Value) {
        self.0.insert(key, value);
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (&Key, &Value)> {
        self.0.iter()
    }

    pub(crate) fn of_kind(&self, slot: Slot) -> impl Iterator<Item = (&Key, &Value)> {
        let first = slot as u8;
        self.0.range(vec![first]..vec![first + 1])
    }

    pub(crate) fn apply(&mut self, changes: Changes) {
        for (key, change) in changes {
            match change {
                Some(value) => self.0.insert(key, value),
                None => self.0.remove(&key),
            };
        }
    }

    /// Makes openmls keep no resumption secrets. Whoever creates a group would keep 32, whatever the settings say.
    pub(crate) fn keep_no_resumption_psks(&mut self) -> Result<(), SlotError> {
        let slot = Slot::ResumptionPsks;
        self.0.insert(vec![slot as u8], encode(slot, &NO_RESUMPTION_PSKS)?);
        Ok(())
    }

    /// Forgets the private keys of own updates. openmls leaves those of an uncovered update behind.
    pub(crate) fn forget_own_updates(&mut self) {
        let gone = Slot::OF_AN_UPDATE.map(|slot| slot as u8);
        self.0.retain(|key, _| !key.first().is_some_and(|kind| gone.contains(kind)));
    }
}

/// openmls's store of resumption secrets with no room and nothing in it: the most it may hold, what it holds, and
/// where it goes on. We use none, and they would outlive their epochs.
const NO_RESUMPTION_PSKS: (usize, [(); 0], usize) = (0, [], 0);

/// The stored state of a group does not hold what it should. Always our own fault or the disk's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{slot:?} of the cell's stored state cannot be {action}: {reason}")]
pub(crate) struct SlotError {
    slot: Slot,
    action: &'static str,
    reason: String,
}

/// The key of `slot`, told apart from others of its kind by `which`.
pub(crate) fn key<T: Serialize>(slot: Slot, which: &T) -> Result<Key, SlotError> {
    let mut key = vec![slot as u8];
    write(&mut key, which).map_err(|error| SlotError { slot, action: "named", reason: error.to_string() })?;
    Ok(key)
}

/// `value` as bytes.
pub(crate) fn encode<T: Serialize>(slot: Slot, value: &T) -> Result<Value, SlotError> {
    // Written once into a buffer that need not grow (growing leaves copies of secrets behind), then cut to size.
    let mut scratch = Zeroizing::new(Vec::with_capacity(SCRATCH_BYTES));
    write(&mut scratch, value).map_err(|error| SlotError {
        slot,
        action: "encoded",
        reason: error.to_string(),
    })?;
    Ok(Zeroizing::new(scratch.as_slice().to_vec()))
}

/// `bytes` as a value.
pub(crate) fn decode<T: DeserializeOwned>(slot: Slot, bytes: &[u8]) -> Result<T, SlotError> {
    rmp_serde::from_slice(bytes).map_err(|error| SlotError {
        slot,
        action: "decoded",
        reason: error.to_string(),
    })
}

fn write<T: Serialize>(bytes: &mut Vec<u8>, value: &T) -> Result<(), rmp_serde::encode::Error> {
    let mut serializer = rmp_serde::Serializer::new(bytes).with_bytes(BytesMode::ForceIterables);
    value.serialize(&mut serializer)
}
