//! The SQLite store: the suite that every store passes, and what is its own: secrets at rest, one user at a time.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

use std::path::{Path, PathBuf};

use fleetkey_coordinator::{OpenError, SCHEMA_VERSION, SharedStore, SqliteStore};
use fleetkey_coordinator_core::records::{AuditRecord, MetaRecord, OldAuditRecord, Record};
use fleetkey_coordinator_core::{Coordinator, Store, StoreError, Table, Write, conformance};
use fleetkey_vault::MasterKey;
use rand_core::OsRng;
use rusqlite::Connection;
use tempfile::TempDir;
use zeroize::Zeroizing;

const SECRET: &[u8] = b"a secret that must not lie in the file as it is";

struct Place {
    _directory: TempDir,
    path: PathBuf,
    master: MasterKey,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fleetkey.db");
        Self { path, _directory: directory, master: MasterKey::generate(&mut OsRng) }
    }

    fn create(&self) -> SqliteStore {
        SqliteStore::create(&self.path, &self.master, &Coordinator::initial_rows(1_800_000_000)).unwrap()
    }

    fn open(&self) -> Result<SqliteStore, OpenError> {
        SqliteStore::open(&self.path, &self.master)
    }

    /// As somebody with the file and without the master key.
    fn tamper(&self, sql: &str) {
        let connection = Connection::open(&self.path).unwrap();
        connection.execute_batch(sql).unwrap();
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = std::fs::read(&self.path).unwrap();
        for beside in ["-wal", "-journal"] {
            let mut path = self.path.clone().into_os_string();
            path.push(beside);
            bytes.extend(std::fs::read(path).unwrap_or_default());
        }
        bytes
    }
}

fn put(table: Table, key: &[u8], value: &[u8]) -> Write {
    Write { table, key: key.to_vec(), value: Some(Zeroizing::new(value.to_vec())) }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn refused(opened: Result<SqliteStore, OpenError>) -> OpenError {
    opened.err().unwrap()
}

#[test]
fn it_is_a_store() {
    let place = Place::new();
    drop(place.create());
    conformance::run(|| place.open().unwrap());
}

#[test]
fn shared_it_is_a_store_too() {
    let place = Place::new();
    drop(place.create());
    conformance::run(|| SharedStore::new(place.open().unwrap()));
}

#[test]
fn secrets_do_not_lie_in_the_file() {
    let place = Place::new();
    let mut store = place.create();
    for table in Table::ALL {
        store.commit(&[put(table, b"k", SECRET)]).unwrap();
        let rows = store.rows(table).unwrap();
        assert!(rows.iter().any(|row| row.value.as_slice() == SECRET), "{table:?}");
        let is_in_file = contains(&place.bytes(), SECRET);
        assert_eq!(is_in_file, !table.is_secret(), "{table:?}");
        store.commit(&[Write { table, key: b"k".to_vec(), value: None }]).unwrap();
        drop(store);
        place.tamper("PRAGMA secure_delete = ON; VACUUM");
        store = place.open().unwrap();
    }
}

#[test]
fn a_row_moved_to_another_key_or_table_is_refused() {
    let place = Place::new();
    let mut store = place.create();
    store.commit(&[put(Table::GroupKey, b"old", SECRET), put(Table::Cell, b"cell", SECRET)]).unwrap();
    drop(store);

    place.tamper("UPDATE group_key SET key = x'00'");
    place.tamper("INSERT INTO cell (key, value) SELECT x'01', value FROM cell");
    let mut store = place.open().unwrap();

    for (table, moved) in [(Table::GroupKey, "00"), (Table::Cell, "01")] {
        let failed = store.rows(table).unwrap_err();
        let StoreError::Corrupt { table: named, key, .. } = failed else { panic!("{failed}") };
        assert_eq!((named, key.as_str()), (table.name(), moved));
    }
}

#[test]
fn a_changed_secret_is_refused() {
    let place = Place::new();
    let mut store = place.create();
    store.commit(&[put(Table::GroupKey, b"k", SECRET)]).unwrap();
    drop(store);
    let connection = Connection::open(&place.path).unwrap();
    let mut sealed: Vec<u8> =
        connection.query_row("SELECT value FROM group_key", [], |row| row.get(0)).unwrap();
    *sealed.last_mut().unwrap() ^= 1;
    connection.execute("UPDATE group_key SET value = ?1", [sealed]).unwrap();
    drop(connection);
    let failed = place.open().unwrap().rows(Table::GroupKey).unwrap_err();
    assert!(matches!(failed, StoreError::Corrupt { .. }), "{failed}");
}

#[test]
fn a_wrong_master_key_is_told_from_damage() {
    let place = Place::new();
    drop(place.create());
    let other = MasterKey::generate(&mut OsRng);
    let wrong = refused(SqliteStore::open(&place.path, &other));
    assert!(matches!(wrong, OpenError::WrongMasterKey { .. }), "{wrong}");
    place.open().unwrap();
}

#[test]
fn only_one_at_a_time_may_have_it_open() {
    let place = Place::new();
    let mut first = place.create();
    let second = refused(place.open());
    assert!(matches!(second, OpenError::InUse { .. }), "{second}");
    assert!(second.to_string().contains("in use"), "{second}");
    first.commit(&[put(Table::Device, b"k", b"v")]).unwrap();
    let third = refused(place.open());
    assert!(matches!(third, OpenError::InUse { .. }), "{third}");
    drop(first);
    place.open().unwrap();
}

#[test]
fn what_is_no_database_of_ours_is_refused_by_name() {
    let place = Place::new();
    let missing = refused(place.open());
    assert!(matches!(missing, OpenError::Missing { .. }), "{missing}");
    assert!(missing.to_string().contains("fleetkey init"), "{missing}");

    std::fs::write(
        &place.path,
        "not a database at all, but long enough to have a header of 100 bytes: ".repeat(3),
    )
    .unwrap();
    let text = refused(place.open());
    assert!(matches!(text, OpenError::NotOurs { .. }), "{text}");
    let exists = refused(SqliteStore::create(&place.path, &place.master, &[]));
    assert!(matches!(exists, OpenError::Exists { .. }), "{exists}");

    std::fs::remove_file(&place.path).unwrap();
    place.tamper("CREATE TABLE somebody_elses (x)");
    let foreign = refused(place.open());
    assert!(matches!(foreign, OpenError::NotOurs { .. }), "{foreign}");
}

#[test]
fn a_later_schema_is_refused_with_its_version() {
    let place = Place::new();
    drop(place.create());
    place.tamper(&format!("PRAGMA user_version = {}", SCHEMA_VERSION + 1));
    let later = refused(place.open());
    let OpenError::OtherSchema { got, .. } = later else { panic!("{later}") };
    assert_eq!(got, SCHEMA_VERSION + 1);
}

#[test]
fn a_database_of_an_older_layout_is_brought_up_to_date() {
    let later = [
        "DROP TABLE psk; DROP TABLE operator;",
        "DROP TABLE certificate; DROP TABLE claim; DROP TABLE request;",
        "DROP TABLE issued;",
    ];
    for version in [3, 2, 1] {
        let place = Place::new();
        let mut store = place.create();
        let old = [1, 2].map(|number| OldAuditRecord {
            unix_seconds: 1_800_000_000,
            number,
            action: "rekey".into(),
            subject: format!("group-{number}"),
            detail: String::new(),
        });
        store.commit(&[put(Table::Device, b"k", b"v"), old[1].put(), old[0].put()]).unwrap();
        drop(store);
        let lacking = later[..=(3 - version)].concat();
        place.tamper(&format!("{lacking} PRAGMA user_version = {version}"));
        let mut store = place.open().unwrap();
        let log: Vec<AuditRecord> =
            store.rows(Table::Audit).unwrap().iter().map(|row| AuditRecord::read(row).unwrap()).collect();
        let told: Vec<(u64, &str)> =
            log.iter().map(|entry| (entry.sequence, entry.subject.as_str())).collect();
        assert_eq!(told, [(1, "audit"), (2, "group-1"), (3, "group-2")], "chained, and says so first");
        let meta = MetaRecord::read(&store.rows(Table::Meta).unwrap()[0]).unwrap();
        assert_eq!(meta.audit, log[2].head());
        drop(store);
        let mut store = place.open().unwrap();
        assert_eq!(store.count(Table::Audit).unwrap(), 3, "once");
        for table in
            [Table::Issued, Table::Certificate, Table::Claim, Table::Request, Table::Psk, Table::Operator]
        {
            store.commit(&[put(table, b"k", b"v")]).unwrap();
            assert_eq!(store.rows(table).unwrap().len(), 1, "{}", table.name());
        }
        assert_eq!(store.rows(Table::Device).unwrap().len(), 1, "what was there is there");
    }
}

#[cfg(unix)]
#[test]
fn the_file_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let mut store = place.create();
    store.commit(&[put(Table::Device, b"k", b"v")]).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for entry in std::fs::read_dir(place.path.parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}
