//! What a device holds of one group's keys, and which of them it uses: the rules of statements.
//!
//! Leaves to `cells` how statement and wrap reach the device and are opened; knows neither cells nor frames.

use std::collections::BTreeMap;

use fleetkey_wire::{
    CellId, Commitment, GroupId, GroupSecret, KeyEpoch, Millis, ShortDigest, SignedStatement, Statement,
    Suite,
};

use crate::refused::Refused;
use crate::stored::{Bytes, EntryKey, StoredError, StoredGroup};

/// Live key epochs of one group that are kept at most.
const MAX_KEY_EPOCHS: usize = 64;

/// One group's keys.
#[derive(Debug, Clone)]
pub(crate) struct GroupKeys {
    pub(crate) group: GroupId,
    pub(crate) name: String,
    pub(crate) cell: CellId,
    pub(crate) suite: Suite,
    held: BTreeMap<KeyEpoch, GroupSecret>,
    /// The largest of each field that any statement has shown, so that order does not matter.
    send: KeyEpoch,
    oldest: KeyEpoch,
    newest: Option<SignedStatement>,
    /// The key epoch that was `send` just before, as long as the overlap runs. Never stored.
    overlapping: Option<Overlapping>,
}

#[derive(Debug, Clone, Copy)]
struct Overlapping {
    key_epoch: KeyEpoch,
    until: Millis,
}

/// What a statement did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Applied {
    /// Whether anything changed.
    pub(crate) advanced: bool,
    /// The key epoch that messages are sealed under from now on, if that changed.
    pub(crate) activated: Option<KeyEpoch>,
}

impl GroupKeys {
    pub(crate) const fn new(group: GroupId, name: String, cell: CellId, suite: Suite) -> Self {
        Self {
            group,
            name,
            cell,
            suite,
            held: BTreeMap::new(),
            send: KeyEpoch(0),
            oldest: KeyEpoch(0),
            newest: None,
            overlapping: None,
        }
    }

    /// Whether a genuine statement may be applied, before its wrap is opened.
    pub(crate) fn check(&self, statement: &Statement) -> Result<(), Refused> {
        if statement.group != self.group {
            return Err(Refused::OtherGroup { got: statement.group, own: self.group });
        }
        match self.commitment(statement.key_epoch) {
            Some(held) if held != statement.commitment => {
                Err(Refused::ConflictingCommitment { group: self.group, key_epoch: statement.key_epoch })
            }
            Some(_) | None if statement.key_epoch < self.oldest => Err(Refused::StaleKeyEpoch {
                group: self.group,
                got: statement.key_epoch,
                oldest: self.oldest,
            }),
            None if self.held.len() >= MAX_KEY_EPOCHS && statement.oldest <= self.oldest => {
                Err(Refused::TooManyKeyEpochs { group: self.group, held: self.held.len() })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Takes in a statement that [`Self::check`] let pass, with the secret from its wrap.
    pub(crate) fn apply(&mut self, signed: &SignedStatement, secret: GroupSecret, now: Millis) -> Applied {
        let said = signed.statement();
        let sealing_before = self.sealing_key_epoch();
        let mut advanced = !self.held.contains_key(&said.key_epoch);
        self.held.entry(said.key_epoch).or_insert(secret);
        if said.send > self.send {
            let until = now.plus(u64::from(said.overlap_seconds) * 1000);
            self.overlapping = Some(Overlapping { key_epoch: self.send, until });
            self.send = said.send;
            advanced = true;
        }
        if said.oldest > self.oldest {
            self.oldest = said.oldest;
            advanced = true;
        }
        if self.newest.as_ref().is_none_or(|newest| rank(newest.statement()) < rank(said)) {
            self.newest = Some(signed.clone());
            advanced = true;
        }
        self.forget(now);
        let sealing = self.sealing_key_epoch();
        Applied { advanced, activated: sealing.filter(|_| sealing != sealing_before) }
    }

    /// Drops the secrets that are accepted no more.
    pub(crate) fn forget(&mut self, now: Millis) {
        self.overlapping = self.overlapping.filter(|overlapping| now < overlapping.until);
        let overlapping = self.overlapping.map(|overlapping| overlapping.key_epoch);
        let oldest = self.oldest;
        self.held.retain(|key_epoch, _| *key_epoch >= oldest || Some(*key_epoch) == overlapping);
    }

    /// When an overlap ends.
    pub(crate) fn wake_at(&self) -> Option<Millis> {
        self.overlapping.map(|overlapping| overlapping.until)
    }

    /// The secret of a key epoch, if messages under it are accepted now.
    pub(crate) fn accepted(&self, key_epoch: KeyEpoch, now: Millis) -> Option<&GroupSecret> {
        let overlaps = self
            .overlapping
            .is_some_and(|overlapping| overlapping.key_epoch == key_epoch && now < overlapping.until);
        if key_epoch >= self.oldest || overlaps { self.held.get(&key_epoch) } else { None }
    }

    /// The secret of a key epoch, to confirm it.
    pub(crate) fn held(&self, key_epoch: KeyEpoch) -> Option<&GroupSecret> {
        self.held.get(&key_epoch)
    }

    /// Every key epoch held, oldest first.
    pub(crate) fn key_epochs(&self) -> impl DoubleEndedIterator<Item = KeyEpoch> {
        self.held.keys().copied()
    }

    /// What messages are to be sealed with: the key epoch `send`, and its secret if it is held.
    pub(crate) fn sealing(&self) -> (KeyEpoch, Option<&GroupSecret>) {
        (self.send, self.held.get(&self.send))
    }

    fn sealing_key_epoch(&self) -> Option<KeyEpoch> {
        self.held.contains_key(&self.send).then_some(self.send)
    }

    pub(crate) fn commitment(&self, key_epoch: KeyEpoch) -> Option<Commitment> {
        self.held.get(&key_epoch).map(|secret| secret.commitment(self.group, key_epoch))
    }

    pub(crate) const fn send(&self) -> KeyEpoch {
        self.send
    }

    pub(crate) const fn oldest(&self) -> KeyEpoch {
        self.oldest
    }

    pub(crate) const fn newest(&self) -> Option<&SignedStatement> {
        self.newest.as_ref()
    }

    /// The name of the newest statement; all zero when there is none.
    pub(crate) fn newest_digest(&self) -> ShortDigest {
        self.newest.as_ref().map(|newest| newest.digest().short()).unwrap_or_default()
    }

    pub(crate) fn to_stored(&self) -> StoredGroup {
        let live = self.held.iter().filter(|(key_epoch, _)| **key_epoch >= self.oldest);
        StoredGroup {
            name: self.name.clone(),
            cell: self.cell,
            suite: self.suite,
            send: self.send,
            oldest: self.oldest,
            keys: live.map(|(key_epoch, secret)| (*key_epoch, Bytes::of(secret.as_bytes()))).collect(),
            newest: self.newest.as_ref().map(|newest| Bytes::of(newest.as_bytes())),
        }
    }

    pub(crate) fn from_stored(group: GroupId, stored: StoredGroup) -> Result<Self, StoredError> {
        let key = EntryKey::Group(group);
        let mut keys = Self::new(group, stored.name, stored.cell, stored.suite);
        keys.send = stored.send;
        keys.oldest = stored.oldest;
        for (key_epoch, bytes) in stored.keys {
            let secret =
                bytes.0.as_slice().try_into().map_err(|_| key.damaged("a secret of another length"))?;
            keys.held.insert(key_epoch, GroupSecret::from_bytes(secret));
        }
        keys.newest = stored
            .newest
            .map(|bytes| SignedStatement::from_trusted(&bytes.0))
            .transpose()
            .map_err(|bad| key.damaged(bad))?;
        Ok(keys)
    }
}

/// Which of two statements is newer.
const fn rank(statement: &Statement) -> (u64, u64, u64) {
    (statement.key_epoch.0, statement.send.0, statement.oldest.0)
}
