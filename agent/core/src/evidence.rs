//! Genuine statements that contradict what the device holds: kept, and shown to the coordinator on each connection.

use std::collections::BTreeMap;

use fleetkey_wire::{GroupId, SignedStatement};

use crate::store::Writes;
use crate::stored::{Bytes, EntryKey, StoredEvidence, encode};

/// Groups that evidence is kept of; one statement each.
const MAX_EVIDENCE: usize = 32;

#[derive(Debug, Default)]
pub(crate) struct Evidence(BTreeMap<GroupId, Exhibit>);

#[derive(Debug)]
struct Exhibit {
    statement: Vec<u8>,
    incarnation: u32,
    is_shown: bool,
}

impl Evidence {
    pub(crate) fn restore(&mut self, group: GroupId, stored: &StoredEvidence) {
        let statement = stored.statement.0.to_vec();
        let said = SignedStatement::from_trusted(&statement).ok();
        let incarnation = said.map_or(0, |signed| signed.statement().key_epoch.incarnation());
        self.0.insert(group, Exhibit { statement, incarnation, is_shown: false });
    }

    /// Keeps a statement, the first of its group in an incarnation. Returns whether it is kept.
    pub(crate) fn keep(&mut self, statement: &SignedStatement, writes: &mut Writes) -> bool {
        let group = statement.statement().group;
        let incarnation = statement.statement().key_epoch.incarnation();
        let is_kept = match self.0.get(&group) {
            // What was before a restore has been settled by it.
            Some(kept) => kept.incarnation >= incarnation,
            None => self.0.len() >= MAX_EVIDENCE,
        };
        if is_kept {
            return false;
        }
        let bytes = statement.as_bytes().to_vec();
        let stored = StoredEvidence { statement: Bytes::of(&bytes) };
        writes.put(EntryKey::Evidence(group).to_string(), encode(&stored));
        self.0.insert(group, Exhibit { statement: bytes, incarnation, is_shown: false });
        true
    }

    /// A new connection: all of it is to be shown again.
    pub(crate) fn show_again(&mut self) {
        self.0.values_mut().for_each(|exhibit| exhibit.is_shown = false);
    }

    /// What has not been shown on this connection.
    pub(crate) fn take_unshown(&mut self) -> Vec<Vec<u8>> {
        let unshown = self.0.values_mut().filter(|exhibit| !exhibit.is_shown);
        unshown
            .map(|exhibit| {
                exhibit.is_shown = true;
                exhibit.statement.clone()
            })
            .collect()
    }

    pub(crate) fn statements(&self) -> impl Iterator<Item = &[u8]> {
        self.0.values().map(|exhibit| exhibit.statement.as_slice())
    }

    pub(crate) fn groups(&self) -> impl Iterator<Item = GroupId> {
        self.0.keys().copied()
    }
}
