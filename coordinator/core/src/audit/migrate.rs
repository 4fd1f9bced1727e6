//! Logs from before they were chained: read, and chained in their order.
//!
//! What is made of the same entries is always the same, so that a database that was brought up to date and a backup of
//! before that go on as one log.

use super::{AuditHead, CHAINED};
use crate::records::{AuditRecord, Deed, MetaRecord, OldAuditRecord, Record};
use crate::store::{Row, StoreError, Write};

/// Who did what was entered before anybody's name was.
const UNRECORDED: &str = "unrecorded";

/// Chains entries from before there was a chain. The first entry of the chain says so.
pub fn chained(old: impl IntoIterator<Item = OldAuditRecord>) -> Vec<AuditRecord> {
    let deeds = old.into_iter().map(|entry| Deed {
        unix_seconds: entry.unix_seconds,
        who: UNRECORDED.into(),
        action: entry.action,
        subject: entry.subject,
        detail: entry.detail,
    });
    let mut deeds = deeds.peekable();
    let Some(first) = deeds.peek() else { return Vec::new() };
    let told = Deed {
        // Not when that was: it is no sign of life of the database.
        unix_seconds: first.unix_seconds,
        who: "coordinator".into(),
        action: CHAINED.into(),
        subject: "audit".into(),
        detail: format!("entries of {UNRECORDED} were made before the log was chained: nothing proves them"),
    };
    let mut head = AuditHead::default();
    std::iter::once(told)
        .chain(deeds)
        .map(|deed| {
            let entry = AuditRecord::following(head, deed);
            head = entry.head();
            entry
        })
        .collect()
}

/// What brings a database up to date whose log was not chained yet. An entry that cannot be read is told as such.
///
/// # Errors
/// When the database says something of itself that cannot be read.
pub fn migrated(meta: &[Row], audit: &[Row]) -> Result<Vec<Write>, StoreError> {
    let old = audit.iter().map(|row| {
        OldAuditRecord::read(row).unwrap_or_else(|_| OldAuditRecord {
            unix_seconds: 0,
            number: 0,
            action: "unreadable".into(),
            subject: hex::encode(&row.key),
            detail: String::new(),
        })
    });
    let chained = chained(old);
    let mut writes: Vec<Write> =
        audit.iter().map(|row| Write { table: row.table, key: row.key.clone(), value: None }).collect();
    writes.extend(chained.iter().map(Record::put));
    if let (Some(row), Some(last)) = (meta.first(), chained.last()) {
        writes.push(MetaRecord { audit: last.head(), ..MetaRecord::read(row)? }.put());
    }
    Ok(writes)
}

/// The entries of a table, whether they were chained or not, and whether all of them could be read.
pub fn read_any(rows: &[Row]) -> (Vec<AuditRecord>, bool) {
    let mut entries: Vec<AuditRecord> = rows.iter().filter_map(|row| AuditRecord::read(row).ok()).collect();
    let old: Vec<OldAuditRecord> = rows.iter().filter_map(|row| OldAuditRecord::read(row).ok()).collect();
    let is_whole = entries.len() + old.len() == rows.len();
    entries.extend(chained(old));
    (entries, is_whole)
}
