//! The key epochs that were issued: what each names, and what was stated of it.
//!
//! A statement that bears the coordinator's signature and is not among them was made by a copy of this coordinator,
//! or by itself before it was rolled back. Kept as far back as [`MAX_ISSUED`]; leaves to the caller what follows.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use fleetkey_wire::{KeyEpoch, ShortDigest, SignedStatement, Statement};

use crate::context::Context;
use crate::records::IssuedRecord;

/// Key epochs of one group that are remembered. Whatever is older counts as its own.
const MAX_ISSUED: usize = 4_096;
/// Statements on one key epoch that are remembered: a rotation makes three.
const MAX_STATEMENTS: usize = 16;

/// What one group has issued.
#[derive(Debug, Default)]
pub(crate) struct Issued(BTreeMap<KeyEpoch, IssuedRecord>);

impl Issued {
    pub(crate) fn load(&mut self, record: IssuedRecord) {
        self.0.insert(record.key_epoch, record);
    }

    /// A live key that was issued before such things were written down: what was stated of it is not known.
    pub(super) fn remember(&mut self, context: &mut Context, statement: &Statement) {
        if let Entry::Vacant(place) = self.0.entry(statement.key_epoch) {
            context.put(place.insert(record(statement)));
        }
    }

    /// Takes note of a statement that was just signed.
    pub(super) fn note(&mut self, context: &mut Context, signed: &SignedStatement) {
        let statement = signed.statement();
        let record = match self.0.entry(statement.key_epoch) {
            Entry::Vacant(place) => place.insert(record(statement)),
            // Some of its statements are not known: so none of them says anything.
            Entry::Occupied(known) if known.get().statements.is_empty() => return,
            Entry::Occupied(known) => known.into_mut(),
        };
        let digest = signed.digest().short().0;
        let excess = (record.statements.len() + digest.len()).saturating_sub(MAX_STATEMENTS * digest.len());
        record.statements.drain(..excess);
        record.statements.extend_from_slice(&digest);
        context.put(record);
        while self.0.len() > MAX_ISSUED {
            if let Some((_, oldest)) = self.0.pop_first() {
                context.delete(&oldest);
            }
        }
    }

    /// Whether this key epoch was issued, or lies among those that were, and the statement was not made.
    pub(super) fn contradicts(&self, key_epoch: KeyEpoch, digest: ShortDigest) -> bool {
        let Some((oldest, _)) = self.0.first_key_value() else { return false };
        match self.0.get(&key_epoch) {
            Some(record) if record.statements.is_empty() => false,
            Some(record) => !record.statements.chunks_exact(digest.0.len()).any(|made| made == digest.0),
            None => key_epoch > *oldest,
        }
    }
}

fn record(statement: &Statement) -> IssuedRecord {
    IssuedRecord {
        group: statement.group,
        key_epoch: statement.key_epoch,
        commitment: statement.commitment.0,
        statements: Vec::new(),
    }
}
