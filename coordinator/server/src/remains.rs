//! What can still be read of a database, without its master key and without changing what it holds.
//!
//! Devices, memberships and the audit log are not secret, so a damaged database whose master key is lost still tells
//! who was revoked. Leaves to [`crate::restore`] what that is worth.

use std::path::Path;
use std::time::Duration;

use fleetkey_coordinator_core::audit;
use fleetkey_coordinator_core::records::{AuditRecord, GroupRecord, IssuedRecord, MetaRecord, Record};
use fleetkey_coordinator_core::restore::Revocation;
use fleetkey_coordinator_core::{DeviceRecord, MemberRecord, Row, Standing, Table};
use rusqlite::{Connection, OpenFlags};
use zeroize::Zeroizing;

use crate::store::{APPLICATION_ID, OpenError, failed};

/// What a former database still tells.
#[derive(Debug, Clone, Default)]
pub(crate) struct Remains {
    /// The audit log.
    pub(crate) audit: Vec<AuditRecord>,
    /// Devices that are revoked.
    pub(crate) revocations: Vec<Revocation>,
    /// The highest incarnation that it shows.
    pub(crate) incarnation: u32,
    /// The newest thing that it tells of.
    pub(crate) newest_unix_seconds: u64,
    /// Whether the registry and the audit log were read to their ends.
    pub(crate) is_whole: bool,
}

/// Reads what survives of the database at `path`.
///
/// # Errors
/// [`OpenError`], when another process uses it, or nothing of it can be read at all.
pub(crate) fn read(path: &Path) -> Result<Remains, OpenError> {
    if !path.exists() {
        return Err(OpenError::Missing { path: path.to_owned() });
    }
    // Exclusive, as the store opens it: whoever runs on it is noticed, and nothing is left beside it.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)
        .and_then(|connection| {
            connection.busy_timeout(Duration::ZERO)?;
            connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
            Ok(connection)
        })
        .map_err(|error| failed(path, "open it", &error))?;
    let application_id: i32 = connection
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(|error| failed(path, "read its header", &error))?;
    if application_id != APPLICATION_ID {
        return Err(OpenError::NotOurs { path: path.to_owned() });
    }
    let mut remains = Remains { is_whole: true, ..Remains::default() };
    let mut times = Vec::new();
    for meta in remains.records::<MetaRecord>(&connection) {
        // Beside a copy it was not the only one that revoked.
        remains.is_whole &= meta.superseded.is_none();
        let shown = meta.superseded.map(|superseded| superseded.key_epoch.incarnation());
        remains.saw(shown.unwrap_or_default().max(meta.incarnation));
        times.extend(meta.superseded.map(|superseded| superseded.unix_seconds));
        times.extend(meta.restored.map(|restored| restored.unix_seconds));
    }
    for device in remains.records::<DeviceRecord>(&connection) {
        match device.standing {
            Standing::Enrolled => {}
            Standing::Quarantined { unix_seconds } => times.push(unix_seconds),
            Standing::Revoked { unix_seconds, reason } => {
                remains.revocations.push(Revocation { device: device.id, unix_seconds, reason });
            }
        }
    }
    let (rows, is_all) = rows(&connection, AuditRecord::TABLE);
    let (audit, is_readable) = audit::read_any(&rows);
    remains.audit = audit;
    remains.is_whole &= is_all && is_readable;
    // What is lost of these is no loss: they only show until when it lived, and how far it had come.
    let is_whole = remains.is_whole;
    for group in remains.records::<GroupRecord>(&connection) {
        remains.saw(group.last_issued.incarnation());
        times.push(group.last_rekey_unix_seconds);
    }
    for issued in remains.records::<IssuedRecord>(&connection) {
        remains.saw(issued.key_epoch.incarnation());
    }
    times.extend(remains.records::<MemberRecord>(&connection).iter().map(|m| m.confirmed_unix_seconds));
    times.extend(remains.audit.iter().map(|entry| entry.unix_seconds));
    remains.newest_unix_seconds = times.into_iter().max().unwrap_or_default();
    remains.is_whole = is_whole;
    Ok(remains)
}

impl Remains {
    fn saw(&mut self, incarnation: u32) {
        self.incarnation = self.incarnation.max(incarnation);
    }

    /// The records of a table, up to where it cannot be read any further.
    fn records<R: Record>(&mut self, connection: &Connection) -> Vec<R> {
        let (rows, is_all) = rows(connection, R::TABLE);
        let records: Vec<R> = rows.iter().filter_map(|row| R::read(row).ok()).collect();
        self.is_whole &= is_all && records.len() == rows.len();
        records
    }
}

/// The rows of a table, up to where it cannot be read any further, and whether that is its end.
fn rows(connection: &Connection, table: Table) -> (Vec<Row>, bool) {
    let mut found = Vec::new();
    let read = connection.prepare(&format!("SELECT key, value FROM {} ORDER BY key", table.name())).and_then(
        |mut statement| {
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let value: Vec<u8> = row.get(1)?;
                found.push(Row { table, key: row.get(0)?, value: Zeroizing::new(value) });
            }
            Ok(())
        },
    );
    (found, read.is_ok())
}
