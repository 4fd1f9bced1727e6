//! A device's store in one SQLite file, with every value sealed under the device's master key.
//!
//! Write-ahead log, `synchronous = FULL`: a transaction that has returned survives a power cut. A value opens only
//! under the key it was stored by. What this does not stop is a whole file put back: see `fleetkey-vault`.

use std::path::Path;

use fleetkey_agent_core::{Entries, Store, StoreError, Write, Writes};
use fleetkey_vault::{MasterKey, Vault};
use rand_core::OsRng;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

/// The layout of the file that this build writes and reads.
const LAYOUT: i64 = 1;
/// What the vault's keys are for.
const PURPOSE: &str = "fleetkey agent store";

const SCHEMA: &str = "
    CREATE TABLE entry (key TEXT PRIMARY KEY NOT NULL, sealed BLOB NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE vault (sentinel BLOB NOT NULL) STRICT;
";

/// A store in one SQLite file, which one process opens at a time.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Connection,
    vault: Vault,
}

impl SqliteStore {
    /// Opens the store at `path`, and makes one if there is none.
    ///
    /// # Errors
    /// When the file cannot be opened, is in use by another process, was made under another master key, or is of
    /// another layout.
    pub fn open(path: &Path, master: &MasterKey) -> Result<Self, StoreError> {
        let doing = "open key store";
        let vault = Vault::new(master, PURPOSE);
        create_private(path).map_err(failed(doing))?;
        let mut connection = Connection::open(path).map_err(failed(doing))?;
        connection.busy_timeout(std::time::Duration::ZERO).map_err(failed(doing))?;
        // One process: two agents with one identity would confuse the coordinator and each other.
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE").map_err(failed(doing))?;
        let mode: String = connection
            .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
            .map_err(failed(doing))?;
        if mode != "wal" {
            return Err(StoreError { doing, reason: format!("journal mode is {mode}, not wal") });
        }
        connection.pragma_update(None, "synchronous", "FULL").map_err(failed(doing))?;
        // Secrets that were deleted do not stay in free pages.
        connection.pragma_update(None, "secure_delete", true).map_err(failed(doing))?;
        prepare(&mut connection, &vault)?;
        Ok(Self { connection, vault })
    }
}

/// Makes the file, its owner's alone, before SQLite does: its log and index take over the file's permissions.
fn create_private(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}

/// Makes the tables of a new file, and looks whether an old one is ours.
fn prepare(connection: &mut Connection, vault: &Vault) -> Result<(), StoreError> {
    let doing = "open key store";
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed(doing))?;
    let layout: i64 =
        transaction.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed(doing))?;
    match layout {
        0 => {
            transaction.execute_batch(SCHEMA).map_err(failed(doing))?;
            transaction
                .execute("INSERT INTO vault (sentinel) VALUES (?1)", [vault.sentinel(&mut OsRng)])
                .map_err(failed(doing))?;
            transaction.pragma_update(None, "user_version", LAYOUT).map_err(failed(doing))?;
        }
        LAYOUT => {
            let sentinel: Option<Vec<u8>> = transaction
                .query_row("SELECT sentinel FROM vault", [], |row| row.get(0))
                .optional()
                .map_err(failed(doing))?;
            vault.check_sentinel(&sentinel.unwrap_or_default()).map_err(failed(doing))?;
        }
        other => {
            let reason = format!("the file has layout {other}, this build knows only layout {LAYOUT}");
            return Err(StoreError { doing, reason });
        }
    }
    transaction.commit().map_err(failed(doing))
}

impl Store for SqliteStore {
    fn load_all(&mut self) -> Result<Entries, StoreError> {
        let doing = "read key store";
        let mut statement =
            self.connection.prepare("SELECT key, sealed FROM entry").map_err(failed(doing))?;
        let rows = statement
            .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?)))
            .map_err(failed(doing))?;
        rows.map(|row| {
            let (key, sealed) = row.map_err(failed(doing))?;
            let value = self.vault.open(key.as_bytes(), &sealed).map_err(failed(doing))?;
            Ok((key, value))
        })
        .collect()
    }

    fn commit(&mut self, writes: &Writes) -> Result<(), StoreError> {
        let doing = "write key store";
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed(doing))?;
        for write in writes {
            carry_out(&transaction, &self.vault, write).map_err(failed(doing))?;
        }
        transaction.commit().map_err(failed(doing))
    }
}

fn carry_out(transaction: &Transaction<'_>, vault: &Vault, write: &Write) -> rusqlite::Result<()> {
    match write {
        Write::Put { key, value } => {
            let sealed = vault.seal(&mut OsRng, key.as_bytes(), value);
            transaction
                .prepare_cached("INSERT OR REPLACE INTO entry (key, sealed) VALUES (?1, ?2)")?
                .execute(params![key, sealed])?;
        }
        Write::Delete { key } => {
            transaction.prepare_cached("DELETE FROM entry WHERE key = ?1")?.execute([key])?;
        }
    }
    Ok(())
}

fn failed<E: std::fmt::Display>(doing: &'static str) -> impl Fn(E) -> StoreError {
    move |error| StoreError { doing, reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use zeroize::Zeroizing;

    fn master(byte: u8) -> MasterKey {
        let mut bytes = [byte; 32];
        bytes[0] = 0;
        MasterKey::from_bytes(&bytes)
    }

    fn put(key: &str, value: &[u8]) -> Writes {
        let mut writes = Writes::default();
        writes.put(key, Zeroizing::new(value.to_vec()));
        writes
    }

    #[test]
    fn the_sqlite_store_conforms() {
        let folder = tempfile::tempdir().unwrap();
        let mut count = 0;
        // The lock is one process's: a copy of the files stands for the file after a restart.
        let copies = std::cell::Cell::new(0);
        let paths = std::cell::RefCell::new(BTreeMap::new());
        fleetkey_agent_core::conformance::check(
            || {
                count += 1;
                let path = folder.path().join(format!("{count}.db"));
                let store = SqliteStore::open(&path, &master(1)).unwrap();
                paths.borrow_mut().insert(count, path);
                store
            },
            |_| {
                let (_, path) = paths.borrow().last_key_value().map(|(n, p)| (*n, p.clone())).unwrap();
                copies.set(copies.get() + 1);
                let copy = folder.path().join(format!("copy-{}.db", copies.get()));
                std::fs::copy(&path, &copy).unwrap();
                let wal = |path: &Path| format!("{}-wal", path.display());
                std::fs::copy(wal(&path), wal(&copy)).unwrap();
                SqliteStore::open(&copy, &master(1)).unwrap()
            },
        );
    }

    #[test]
    fn another_master_key_is_told_apart_from_damage() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        drop(SqliteStore::open(&path, &master(1)).unwrap());
        let error = SqliteStore::open(&path, &master(2)).unwrap_err();
        assert!(error.reason.contains("wrong master key"), "{error}");
    }

    #[test]
    fn a_value_moved_to_another_key_does_not_load() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let mut store = SqliteStore::open(&path, &master(1)).unwrap();
        store.commit(&put("group/a", b"secret")).unwrap();
        store.connection.execute("UPDATE entry SET key = 'group/b'", []).unwrap();
        let error = store.load_all().unwrap_err();
        assert!(error.reason.contains("group/b"), "{error}");
    }

    #[test]
    fn the_file_holds_no_value_in_the_clear_and_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let mut store = SqliteStore::open(&path, &master(1)).unwrap();
        let secret = [0x5a; 64];
        store.commit(&put("group/a", &secret)).unwrap();
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let file = file.unwrap();
            let bytes = std::fs::read(file.path()).unwrap();
            assert!(!bytes.windows(16).any(|window| window == &secret[..16]), "{:?}", file.path());
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt;
                let mode = file.metadata().unwrap().permissions().mode();
                assert_eq!(mode & 0o077, 0, "{:?}", file.path());
            }
        }
    }

    #[test]
    fn a_second_process_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let _first = SqliteStore::open(&path, &master(1)).unwrap();
        let error = SqliteStore::open(&path, &master(1)).unwrap_err();
        assert!(error.reason.contains("locked"), "{error}");
    }

    #[test]
    fn a_file_of_another_layout_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let store = SqliteStore::open(&path, &master(1)).unwrap();
        store.connection.pragma_update(None, "user_version", 2).unwrap();
        drop(store);
        let error = SqliteStore::open(&path, &master(1)).unwrap_err();
        assert!(error.reason.contains("layout 2"), "{error}");
    }
}
