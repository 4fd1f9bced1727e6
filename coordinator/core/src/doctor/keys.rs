//! The groups' keys: whether each is what its statement says, and the record of the group agrees with them.

use ed25519_dalek::VerifyingKey;
use fleetkey_wire::{GroupId, GroupSecret, KeyEpoch, SignedStatement};

use super::finding::Kind;
use super::tables::Tables;
use super::{About, Examination};
use crate::records::{GroupRecord, KeyRecord, MetaRecord, Rotation};

pub(super) fn examine(tables: &Tables, about: &About, found: &mut Examination) {
    let meta = tables.meta.first();
    for (id, group) in &tables.groups {
        let empty = Default::default();
        let keys = tables.keys.get(id).unwrap_or(&empty);
        let Some((newest, newest_key)) = keys.last_key_value() else {
            let has_cells = tables.cells.values().any(|cell| cell.group == *id);
            if meta.is_none_or(|meta| meta.restored.is_none()) || has_cells {
                found.note(Kind::GroupWithoutKey, of(group), "none of its keys is there".into());
            }
            continue;
        };
        for key in keys.values() {
            one(tables, about, group, key, found);
        }
        let live: Vec<KeyEpoch> = keys.keys().copied().collect();
        agree(group, &live, *newest, newest_key, found);
        if let Some(meta) = meta {
            incarnation(group, meta, found);
        }
    }
}

fn of(group: &GroupRecord) -> String {
    format!("group {} ({})", group.name, group.id)
}

/// One live key by itself.
fn one(tables: &Tables, about: &About, group: &GroupRecord, key: &KeyRecord, found: &mut Examination) {
    let subject = format!("{}, key epoch {}", of(group), key.key_epoch);
    let signed = match SignedStatement::verify(&key.statement, about.fleet, |_| {
        VerifyingKey::from_bytes(&about.coordinator).ok()
    }) {
        Ok(signed) => signed,
        Err(why) => return found.note(Kind::BadStatement, subject, why.to_string()),
    };
    let statement = signed.statement();
    if (statement.group, statement.key_epoch) != (key.group, key.key_epoch) {
        let why = format!("its statement is on {} of group {}", statement.key_epoch, statement.group);
        return found.note(Kind::BadStatement, subject, why);
    }
    let commitment = commitment(key.group, key.key_epoch, &key.secret);
    if statement.commitment.0 != commitment {
        let why = "the secret is not the one that the statement commits to".to_owned();
        found.note(Kind::WrongCommitment, subject.clone(), why);
    }
    match tables.issued.get(&(key.group, key.key_epoch)) {
        None => found.note(Kind::NotIssued, subject, "it is not among those issued".into()),
        Some(issued) if issued.commitment != statement.commitment.0 => {
            found.note(Kind::TwoCommitments, subject, "it was issued with another commitment".into());
        }
        Some(_) => {}
    }
}

fn commitment(group: GroupId, key_epoch: KeyEpoch, secret: &[u8; 32]) -> [u8; 32] {
    GroupSecret::from_bytes(*secret).commitment(group, key_epoch).0
}

/// The record against the live keys: which there are, and in what order, follows from the rotation under way.
fn agree(
    group: &GroupRecord,
    live: &[KeyEpoch],
    newest: KeyEpoch,
    newest_key: &KeyRecord,
    found: &mut Examination,
) {
    let GroupRecord { send, oldest, last_issued, rotation, .. } = group;
    let (expected, phase) = match rotation {
        None => (vec![*send], "no rotation is under way"),
        Some(Rotation::Distributing { .. }) => (vec![*send, *last_issued], "the next key is handed out"),
        Some(Rotation::Activated { .. }) => (vec![*oldest, *send], "the former key is still accepted"),
    };
    let is_ordered = match rotation {
        None => oldest == send && send == last_issued,
        Some(Rotation::Distributing { .. }) => oldest == send && send < last_issued,
        Some(Rotation::Activated { .. }) => oldest < send && send == last_issued,
    };
    if !is_ordered || live != expected || newest != *last_issued {
        let live: Vec<String> = live.iter().map(ToString::to_string).collect();
        let why = format!(
            "{phase}, with send {send}, oldest {oldest}, last issued {last_issued}, and {} live",
            live.join(" and ")
        );
        found.note(Kind::KeysDisagree, of(group), why);
    }
    let Ok(newest) = SignedStatement::from_trusted(&newest_key.statement) else { return };
    let said = newest.statement();
    if (said.send, said.oldest) != (*send, *oldest) {
        let why = format!(
            "devices were told send {} and oldest {}, the record says {send} and {oldest}",
            said.send, said.oldest
        );
        found.note(Kind::KeysDisagree, of(group), why);
    }
}

fn incarnation(group: &GroupRecord, meta: &MetaRecord, found: &mut Examination) {
    if group.last_issued.incarnation() > meta.incarnation {
        let why = format!("last issued {}, the database is at {}", group.last_issued, meta.incarnation);
        found.note(Kind::ForeignIncarnation, of(group), why);
    }
}
