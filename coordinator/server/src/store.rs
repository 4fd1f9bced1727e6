//! The coordinator's rows in SQLite: one table per kind of record, secrets sealed, one coordinator at a time.
//!
//! WAL with `synchronous = FULL`: what was committed survives a power cut. Locking is exclusive from the moment
//! of opening, so that a second coordinator on the same file is turned away instead of forking cells.
//!
//! Leaves to the core what rows mean, and to `fleetkey-vault` how a value is sealed.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fleetkey_coordinator_core::audit;
use fleetkey_coordinator_core::{Row, Store, StoreError, Table, Write};
use fleetkey_vault::{MasterKey, Vault, VaultError};
use rand_core::OsRng;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior, params};
use zeroize::Zeroizing;

/// Marks the file as ours (`PRAGMA application_id`): "fkco".
pub(crate) const APPLICATION_ID: i32 = 0x666b_636f;

/// The layout that this build writes and reads (`PRAGMA user_version`).
pub const SCHEMA_VERSION: i32 = 4;
/// The newest layout whose audit log is not chained.
const UNCHAINED_SCHEMA_VERSION: i32 = 3;
/// The oldest layout that is brought up to date when it is opened: it lacks tables besides.
const OLDEST_SCHEMA_VERSION: i32 = 1;

/// Statements kept prepared: a put and a delete for every table, and some.
const PREPARED_STATEMENTS: usize = 64;

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is none.
    #[error("database {} does not exist: `fleetkey init` makes one, or `fleetkey restore`", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// There is one already, and it is not written over.
    #[error("database {} exists already", path.display())]
    Exists {
        /// Where it is.
        path: PathBuf,
    },
    /// Another coordinator runs on it.
    #[error("database {} is in use by another process: one coordinator at a time", path.display())]
    InUse {
        /// Where it is.
        path: PathBuf,
    },
    /// Some other file.
    #[error("{} is not a coordinator's database", path.display())]
    NotOurs {
        /// Where it is.
        path: PathBuf,
    },
    /// Written by another version.
    #[error("database {} has schema version {got}, this build knows version {SCHEMA_VERSION}", path.display())]
    OtherSchema {
        /// Where it is.
        path: PathBuf,
        /// Its version.
        got: i32,
    },
    /// Its secrets cannot be read with this master key.
    #[error("database {} was made with another master key", path.display())]
    WrongMasterKey {
        /// Where it is.
        path: PathBuf,
    },
    /// The database or the system failed.
    #[error("database {}: {doing}: {why}", path.display())]
    Failed {
        /// Where it is.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What was said.
        why: String,
    },
}

/// A store in one SQLite file.
pub struct SqliteStore {
    connection: Connection,
    vault: Vault,
}

impl SqliteStore {
    /// Makes a new database, readable by its owner alone, that holds `rows`.
    ///
    /// # Errors
    /// [`OpenError`]; a file that exists is left as it is.
    pub fn create(path: &Path, master: &MasterKey, rows: &[Write]) -> Result<Self, OpenError> {
        create_private(path)?;
        let mut store = Self { connection: connect(path)?, vault: vault(master) };
        store.lay_out().map_err(|error| failed(path, "create tables", &error))?;
        store.commit(rows).map_err(|error| OpenError::Failed {
            path: path.to_owned(),
            doing: "store the first rows",
            why: error.to_string(),
        })?;
        Ok(store)
    }

    /// Opens a database, and keeps everybody else out of it until it is dropped.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: &Path, master: &MasterKey) -> Result<Self, OpenError> {
        match path.try_exists() {
            Ok(true) => {}
            Ok(false) => return Err(OpenError::Missing { path: path.to_owned() }),
            Err(error) => {
                return Err(OpenError::Failed {
                    path: path.to_owned(),
                    doing: "look for the file",
                    why: error.to_string(),
                });
            }
        }
        let connection = connect(path)?;
        let pragma = |name: &str| {
            connection
                .pragma_query_value(None, name, |row| row.get::<_, i32>(0))
                .map_err(|error| failed(path, "read its header", &error))
        };
        if pragma("application_id")? != APPLICATION_ID {
            return Err(OpenError::NotOurs { path: path.to_owned() });
        }
        let got = pragma("user_version")?;
        if !(OLDEST_SCHEMA_VERSION..=SCHEMA_VERSION).contains(&got) {
            return Err(OpenError::OtherSchema { path: path.to_owned(), got });
        }
        let vault = vault(master);
        check_sentinel(path, &connection, &vault)?;
        let mut store = Self { connection, vault };
        if got < SCHEMA_VERSION {
            store.bring_up_to_date(path, got)?;
        }
        Ok(store)
    }

    fn lay_out(&mut self) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
        create_tables(&transaction)?;
        transaction.execute_batch("CREATE TABLE vault (sentinel BLOB NOT NULL) STRICT")?;
        transaction.execute("INSERT INTO vault (sentinel) VALUES (?1)", [self.vault.sentinel(&mut OsRng)])?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        transaction.commit()
    }

    fn bring_up_to_date(&mut self, path: &Path, from: i32) -> Result<(), OpenError> {
        let doing = "bring it up to date";
        let sql = |error| failed(path, doing, &error);
        let told =
            |error: StoreError| OpenError::Failed { path: path.to_owned(), doing, why: error.to_string() };
        let chains = if from <= UNCHAINED_SCHEMA_VERSION {
            audit::migrated(&self.rows(Table::Meta).map_err(told)?, &self.rows(Table::Audit).map_err(told)?)
                .map_err(told)?
        } else {
            Vec::new()
        };
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Exclusive).map_err(sql)?;
        create_tables(&transaction).map_err(sql)?;
        write(&transaction, &self.vault, &chains).map_err(sql)?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION).map_err(sql)?;
        transaction.commit().map_err(sql)
    }

    fn apply(&mut self, writes: &[Write]) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        write(&transaction, &self.vault, writes)?;
        transaction.commit()
    }

    fn read(&self, table: Table, after: Option<(&[u8], usize)>) -> rusqlite::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let pair = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        let name = table.name();
        match after {
            None => self
                .connection
                .prepare(&format!("SELECT key, value FROM {name} ORDER BY key"))?
                .query_map([], pair)?
                .collect(),
            Some((after, max)) => self
                .connection
                .prepare(&format!("SELECT key, value FROM {name} WHERE key > ?1 ORDER BY key LIMIT ?2"))?
                .query_map(params![after, i64::try_from(max).unwrap_or(i64::MAX)], pair)?
                .collect(),
        }
    }

    fn open_rows(
        &self,
        table: Table,
        read: rusqlite::Result<Vec<(Vec<u8>, Vec<u8>)>>,
    ) -> Result<Vec<Row>, StoreError> {
        let rows =
            read.map_err(|error| StoreError::Failed { doing: "read a table", why: error.to_string() })?;
        rows.into_iter()
            .map(|(key, value)| {
                let value = if table.is_secret() {
                    self.vault.open(&location(table, &key), &value).map_err(|error| StoreError::Corrupt {
                        table: table.name(),
                        key: hex::encode(&key),
                        why: error.to_string(),
                    })?
                } else {
                    Zeroizing::new(value)
                };
                Ok(Row { table, key, value })
            })
            .collect()
    }
}

impl Store for SqliteStore {
    fn rows(&mut self, table: Table) -> Result<Vec<Row>, StoreError> {
        self.open_rows(table, self.read(table, None))
    }

    fn rows_after(&mut self, table: Table, after: &[u8], max: usize) -> Result<Vec<Row>, StoreError> {
        self.open_rows(table, self.read(table, Some((after, max))))
    }

    fn count(&mut self, table: Table) -> Result<usize, StoreError> {
        let counted =
            self.connection
                .query_row(&format!("SELECT COUNT(*) FROM {}", table.name()), [], |row| row.get::<_, i64>(0));
        counted
            .map(|rows| usize::try_from(rows).unwrap_or(0))
            .map_err(|error| StoreError::Failed { doing: "count rows", why: error.to_string() })
    }

    fn commit(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        self.apply(writes)
            .map_err(|error| StoreError::Failed { doing: "commit a transaction", why: error.to_string() })
    }
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.connection.path()).finish_non_exhaustive()
    }
}

fn write(transaction: &Transaction<'_>, vault: &Vault, writes: &[Write]) -> rusqlite::Result<()> {
    // Most come in runs: a hundred confirmations are as many rows of one table.
    for run in
        writes.chunk_by(|one, next| one.table == next.table && one.value.is_some() == next.value.is_some())
    {
        let Some(Write { table, value, .. }) = run.first() else { continue };
        let (table, name) = (*table, table.name());
        let mut statement = transaction.prepare_cached(&if value.is_some() {
            format!(
                "INSERT INTO {name} (key, value) VALUES (?1, ?2) \
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value"
            )
        } else {
            format!("DELETE FROM {name} WHERE key = ?1")
        })?;
        for Write { key, value, .. } in run {
            match value {
                Some(value) if table.is_secret() => {
                    let sealed = vault.seal(&mut OsRng, &location(table, key), value);
                    statement.execute(params![key, sealed])?
                }
                Some(value) => statement.execute(params![key, &value[..]])?,
                None => statement.execute([key])?,
            };
        }
    }
    Ok(())
}

/// Every table that is not there yet.
///
/// Rows lie in the order of their keys, but those of members: in that in which they came to their cells, because it is by cells
/// that devices confirm. A transaction of a hundred confirmations then changes a few pages, and not one for each. (A database
/// that was made when members lay like the rest is as good, and slower.)
fn create_tables(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    for table in Table::ALL {
        let order = if table == Table::Member { "" } else { ", WITHOUT ROWID" };
        transaction.execute_batch(&format!(
            "CREATE TABLE IF NOT EXISTS {} (key BLOB PRIMARY KEY NOT NULL, value BLOB NOT NULL) STRICT{order}",
            table.name()
        ))?;
    }
    Ok(())
}

fn vault(master: &MasterKey) -> Vault {
    Vault::new(master, "coordinator store")
}

/// Where a sealed value belongs: in no other table, under no other key.
fn location(table: Table, key: &[u8]) -> Vec<u8> {
    let mut location = table.name().as_bytes().to_vec();
    location.push(0);
    location.extend_from_slice(key);
    location
}

fn create_private(path: &Path) -> Result<(), OpenError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(OpenError::Exists { path: path.to_owned() })
        }
        Err(error) => {
            Err(OpenError::Failed { path: path.to_owned(), doing: "create the file", why: error.to_string() })
        }
    }
}

fn connect(path: &Path) -> Result<Connection, OpenError> {
    let doing = "open it";
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|error| failed(path, doing, &error))?;
    // The lock is kept for as long as somebody runs: there is nothing to wait for.
    connection.busy_timeout(Duration::ZERO).map_err(|error| failed(path, doing, &error))?;
    connection.set_prepared_statement_cache_capacity(PREPARED_STATEMENTS);
    // The order counts: only a connection that is exclusive before it turns to WAL keeps the lock for good.
    for (name, value) in [
        ("locking_mode", "EXCLUSIVE"),
        ("journal_mode", "WAL"),
        ("synchronous", "FULL"),
        ("trusted_schema", "OFF"),
    ] {
        connection.pragma_update(None, name, value).map_err(|error| failed(path, doing, &error))?;
    }
    connection.execute_batch("BEGIN EXCLUSIVE; COMMIT").map_err(|error| failed(path, doing, &error))?;
    Ok(connection)
}

fn check_sentinel(path: &Path, connection: &Connection, vault: &Vault) -> Result<(), OpenError> {
    let sentinel: Vec<u8> = connection
        .query_row("SELECT sentinel FROM vault", [], |row| row.get(0))
        .map_err(|error| failed(path, "read its sentinel", &error))?;
    match vault.check_sentinel(&sentinel) {
        Ok(()) => Ok(()),
        Err(VaultError::WrongMasterKey { .. }) => Err(OpenError::WrongMasterKey { path: path.to_owned() }),
        Err(
            error @ (VaultError::TooShort { .. }
            | VaultError::UnknownVersion { .. }
            | VaultError::Corrupt { .. }),
        ) => Err(OpenError::Failed {
            path: path.to_owned(),
            doing: "check its sentinel",
            why: error.to_string(),
        }),
    }
}

pub(crate) fn failed(path: &Path, doing: &'static str, error: &rusqlite::Error) -> OpenError {
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => OpenError::InUse { path },
        Some(ErrorCode::NotADatabase) => OpenError::NotOurs { path },
        Some(_) | None => OpenError::Failed { path, doing, why: error.to_string() },
    }
}
