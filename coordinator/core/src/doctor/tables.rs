//! Everything that a store holds, read as far as it can be read.

use std::collections::BTreeMap;

use fleetkey_wire::{CellId, DeviceId, GroupId, KeyEpoch};

use super::Examination;
use super::finding::Kind;
use crate::records::{
    AuditRecord, CellRecord, CertificateRecord, ClaimRecord, CommitRecord, DeviceRecord, GroupRecord,
    IssuedRecord, KeyPackageRecord, KeyRecord, MemberRecord, MetaRecord, OperatorRecord, OutboxRecord,
    PskRecord, Record, RequestRecord, WelcomeRecord,
};
use crate::store::{Store, StoreError};

/// The rows, as records.
#[derive(Default)]
pub(super) struct Tables {
    pub(super) meta: Vec<MetaRecord>,
    pub(super) devices: BTreeMap<DeviceId, DeviceRecord>,
    pub(super) groups: BTreeMap<GroupId, GroupRecord>,
    pub(super) keys: BTreeMap<GroupId, BTreeMap<KeyEpoch, KeyRecord>>,
    pub(super) psks: BTreeMap<GroupId, PskRecord>,
    pub(super) members: BTreeMap<(GroupId, DeviceId), MemberRecord>,
    pub(super) cells: BTreeMap<CellId, CellRecord>,
    pub(super) commits: BTreeMap<CellId, Vec<CommitRecord>>,
    pub(super) welcomes: Vec<WelcomeRecord>,
    pub(super) key_packages: Vec<KeyPackageRecord>,
    pub(super) outbox: Vec<OutboxRecord>,
    pub(super) audit: Vec<AuditRecord>,
    pub(super) issued: BTreeMap<(GroupId, KeyEpoch), IssuedRecord>,
}

impl Tables {
    pub(super) fn read(store: &mut dyn Store, found: &mut Examination) -> Result<Self, StoreError> {
        let mut tables = Self {
            meta: records(store, found)?,
            devices: by(records(store, found)?, |device: &DeviceRecord| device.id),
            groups: by(records(store, found)?, |group: &GroupRecord| group.id),
            psks: by(records(store, found)?, |psk: &PskRecord| psk.group),
            members: by(records(store, found)?, |member: &MemberRecord| (member.group, member.device)),
            cells: by(records(store, found)?, |cell: &CellRecord| cell.id),
            welcomes: records(store, found)?,
            key_packages: records(store, found)?,
            outbox: records(store, found)?,
            audit: records(store, found)?,
            issued: by(records(store, found)?, |issued: &IssuedRecord| (issued.group, issued.key_epoch)),
            ..Self::default()
        };
        for key in records::<KeyRecord>(store, found)? {
            tables.keys.entry(key.group).or_default().insert(key.key_epoch, key);
        }
        // Nothing follows from these but that they can be read, and whose they are.
        for certificate in records::<CertificateRecord>(store, found)? {
            if !tables.devices.contains_key(&certificate.device) {
                let subject = format!("certificate of {}", certificate.device);
                found.note(Kind::OrphanedRow, subject, "the device is not there".to_owned());
            }
        }
        records::<ClaimRecord>(store, found)?;
        records::<RequestRecord>(store, found)?;
        records::<OperatorRecord>(store, found)?;
        for commit in records::<CommitRecord>(store, found)? {
            tables.commits.entry(commit.cell).or_default().push(commit);
        }
        Ok(tables)
    }
}

fn by<K: Ord, R>(records: Vec<R>, key: impl Fn(&R) -> K) -> BTreeMap<K, R> {
    records.into_iter().map(|record| (key(&record), record)).collect()
}

/// The records of a table; what cannot be read is a finding.
fn records<R: Record>(store: &mut dyn Store, found: &mut Examination) -> Result<Vec<R>, StoreError> {
    let rows = match store.rows(R::TABLE) {
        Ok(rows) => rows,
        // One row that does not open under the master key, and the table is closed.
        Err(error @ StoreError::Corrupt { .. }) => {
            found.note(Kind::UnreadableRow, format!("table {}", R::TABLE.name()), error.to_string());
            return Ok(Vec::new());
        }
        Err(error @ StoreError::Failed { .. }) => return Err(error),
    };
    let mut records = Vec::with_capacity(rows.len());
    for row in rows {
        match R::read(&row) {
            Ok(record) if record.key() == row.key => records.push(record),
            Ok(_) => {
                let why = "its key is not the one of what it holds".to_owned();
                found.note(Kind::UnreadableRow, subject(&row), why);
            }
            Err(error) => found.note(Kind::UnreadableRow, subject(&row), error.to_string()),
        }
    }
    Ok(records)
}

fn subject(row: &crate::store::Row) -> String {
    let key: String = row.key.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("row {key} of {}", row.table.name())
}
