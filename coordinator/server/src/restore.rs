//! `fleetkey restore`: a new database from a backup, or from a database whose coordinator may issue no more.
//!
//! Everything is found out, and refused where too little is known, before anything is written; the new database is
//! examined before it takes its place, and nothing is deleted. Leaves to the core what the new database holds.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use fleetkey_coordinator_core::backup::Backup;
use fleetkey_coordinator_core::doctor::{self, About, Severity};
use fleetkey_coordinator_core::restore::{RestoredRows, Restoring, Revocation, Window, backup_in_place};
use fleetkey_coordinator_core::{LoadError, Standing, StoreError};
use fleetkey_identity::{Crl, FleetRoots, certificates_among_crls};
use fleetkey_vault::MasterKey;
use fleetkey_wire::{DeviceId, FleetId};
use serde::Serialize;

use crate::backup_file::{self, BadBackupFile, MAX_BACKUP_BYTES};
use crate::clock;
use crate::config::Config;
use crate::evidence::{BadAudit, Evidence, after};
use crate::remains;
use crate::serve::{Identity, ServeError, master_key};
use crate::store::{OpenError, SqliteStore};
use crate::when;
use fleetkey_vault::files::{self, FileError};

/// Seconds of an incarnation.
const INCARNATION_SECONDS: u64 = 60;

/// What to restore from.
#[derive(Debug, Clone)]
pub enum RestoreFrom {
    /// A backup.
    File(PathBuf),
    /// The database that is there.
    InPlace,
}

/// What to restore, and what is known.
#[derive(Debug)]
pub struct RestoreOptions {
    /// As for `serve`.
    pub config: Config,
    /// What to restore from.
    pub from: RestoreFrom,
    /// Whether a database that is there goes aside. In place it always does.
    pub replace: bool,
    /// Exported audit logs.
    pub audits: Vec<PathBuf>,
    /// What is left of former databases.
    pub old_databases: Vec<PathBuf>,
    /// Restore even where revocations may have been made that nothing tells of.
    pub accept_unknown_revocations: bool,
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoreDone {
    /// The fleet.
    pub fleet: FleetId,
    /// The new database.
    pub database: PathBuf,
    /// Where the one went that was there.
    pub set_aside: Option<PathBuf>,
    /// When the backup was taken, or the database last gave a sign of life.
    pub backup_unix_seconds: u64,
    /// The incarnation that the backup was made in.
    pub former_incarnation: u32,
    /// The incarnation from now on.
    pub incarnation: u32,
    /// Devices, the revoked ones included.
    pub devices: usize,
    /// Groups.
    pub groups: usize,
    /// Members that will come in anew.
    pub wanted: usize,
    /// Devices whose revocation after the backup was made again.
    pub revoked: Vec<DeviceId>,
    /// Members that were put in or taken out as the audit log after the backup tells.
    pub moved: usize,
    /// Devices enrolled after the backup, as far as is known: they are to be adopted.
    pub unknown: Vec<UnknownDevice>,
    /// When revocations may have been made that nothing tells of.
    pub uncertain: Vec<UncertainWindow>,
}

/// A device enrolled after the backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnknownDevice {
    /// Its id.
    pub device: DeviceId,
    /// Its name.
    pub name: String,
}

/// When revocations may have been made that nothing tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct UncertainWindow {
    /// From when on.
    pub from_unix_seconds: u64,
    /// Until when.
    pub to_unix_seconds: u64,
}

/// Why nothing was restored. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The coordinator's files.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The backup's file, or a directory.
    #[error(transparent)]
    File(#[from] FileError),
    /// The backup.
    #[error("{}: {why}", path.display())]
    Backup {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        why: BadBackupFile,
    },
    /// A database.
    #[error(transparent)]
    Database(#[from] OpenError),
    /// There is a database already.
    #[error("database {} exists: --replace moves it aside, --in-place makes it anew from itself", path.display())]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// What the database holds cannot be read.
    #[error("the database cannot be read: {0}")]
    Load(#[from] LoadError),
    /// The new database cannot be read again.
    #[error("the new database cannot be read: {0}")]
    Store(#[from] StoreError),
    /// An exported audit log.
    #[error(transparent)]
    Audit(#[from] BadAudit),
    /// Too little is known of what was revoked.
    #[error("{}", unknown(windows))]
    UnknownRevocations {
        /// Of when.
        windows: Vec<Window>,
    },
    /// What would be restored is not sound.
    #[error("what would be restored is not sound: {finding}")]
    Unsound {
        /// The gravest finding.
        finding: String,
    },
}

fn unknown(windows: &[Window]) -> String {
    let shown: Vec<String> = windows
        .iter()
        .map(|window| {
            format!("from {} to {}", when::show(window.from_unix_seconds), when::show(window.to_unix_seconds))
        })
        .collect();
    format!(
        "nothing shows which devices were revoked {}: give --audit FILE (from `fleetkey audit export`) or --old-database PATH, or say --accept-unknown-revocations; nothing was changed",
        shown.join(", and ")
    )
}

/// Restores.
///
/// # Errors
/// [`RestoreError`]; nothing has changed then.
pub fn restore(options: RestoreOptions) -> Result<RestoreDone, RestoreError> {
    let RestoreOptions { config, from, replace, audits, old_databases, accept_unknown_revocations } = options;
    let master = master_key(&config).map_err(ServeError::from)?;
    let identity = Identity::read(&config.identity)?;
    let database = config.database.clone();
    let now = clock::unix_seconds();

    let mut evidence = Evidence::default();
    for path in &old_databases {
        evidence.add_remains(remains::read(path)?);
    }
    for path in &audits {
        evidence.add_audit(path, identity.fleet)?;
    }
    let is_there = fs::symlink_metadata(&database).is_ok();
    let (backup, window) = match &from {
        RestoreFrom::File(path) => {
            if is_there {
                look_at_replaced(&database, replace, &mut evidence)?;
            }
            let backup = read_backup(path, &master, identity.fleet)?;
            let window = until_now(uncertain_from(&backup), now);
            (backup, window)
        }
        RestoreFrom::InPlace => in_place(&database, &master, now)?,
    };
    evidence.revocations.extend(published(&config.enrolment.crl, &identity.roots, &backup)?);
    let uncertain = evidence.uncertain(window);
    if !uncertain.is_empty() && !accept_unknown_revocations {
        return Err(RestoreError::UnknownRevocations { windows: uncertain });
    }
    let Evidence { audit, revocations, incarnation_floor, .. } = evidence;
    let known =
        Restoring { unix_seconds: now, incarnation_floor, audit, revocations, uncertain: uncertain.clone() };
    let restored = backup.restored_rows(&known);
    let about = About { fleet: identity.fleet, coordinator: identity.party.key.public_key() };
    let set_aside = put_in_place(&database, &master, &about, now, &restored)?;
    Ok(done(identity.fleet, database, set_aside, &backup, restored, &uncertain))
}

fn done(
    fleet: FleetId,
    database: PathBuf,
    set_aside: Option<PathBuf>,
    backup: &Backup,
    restored: RestoredRows,
    uncertain: &[Window],
) -> RestoreDone {
    RestoreDone {
        fleet,
        database,
        set_aside,
        backup_unix_seconds: backup.taken_unix_seconds,
        former_incarnation: backup.incarnation,
        incarnation: restored.incarnation,
        devices: backup.devices.len(),
        groups: backup.groups.len(),
        wanted: restored.wanted,
        revoked: restored.revoked,
        moved: restored.moved,
        unknown: restored.unknown.into_iter().map(|(device, name)| UnknownDevice { device, name }).collect(),
        uncertain: uncertain
            .iter()
            .map(|window| UncertainWindow {
                from_unix_seconds: window.from_unix_seconds,
                to_unix_seconds: window.to_unix_seconds,
            })
            .collect(),
    }
}

/// What the published revocation lists say of the backup's devices. They cover no time: what was enrolled since they do not
/// tell by name. The last list of a CA that is retired names everybody, and is passed over.
fn published(path: &Path, roots: &FleetRoots, backup: &Backup) -> Result<Vec<Revocation>, RestoreError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(FileError::Io { doing: "read", path: path.to_owned(), source }.into());
        }
    };
    let bad = |source| ServeError::Crl { path: path.to_owned(), source };
    let lists = Crl::read_all(&text).map_err(bad)?;
    let cas = certificates_among_crls(&String::from_utf8_lossy(&text));
    let mut found = Vec::new();
    for list in lists.iter().filter(|list| !list.is_last()) {
        roots.check_crl(list, &cas).map_err(bad)?;
        found.extend(backup.certificates.iter().filter_map(|certificate| {
            let unix_seconds = list.revoked.get(&certificate.serial)?.unsigned_abs();
            let reason = "named by the published revocation list".to_owned();
            Some(Revocation { device: certificate.device, unix_seconds, reason })
        }));
    }
    let is_honest = |id| {
        backup
            .devices
            .iter()
            .any(|device| device.id == id && !matches!(device.standing, Standing::Revoked { .. }))
    };
    found.retain(|revocation| is_honest(revocation.device));
    found.dedup_by_key(|revocation| revocation.device);
    Ok(found)
}

/// The database that is replaced is a former one: what survives of it is known, and its incarnation is used up.
fn look_at_replaced(database: &Path, replace: bool, evidence: &mut Evidence) -> Result<(), RestoreError> {
    if !replace {
        return Err(RestoreError::Exists { path: database.to_owned() });
    }
    match remains::read(database) {
        Ok(remains) => evidence.add_remains(remains),
        Err(error @ OpenError::InUse { .. }) => return Err(error.into()),
        // It is moved aside because it is of no use any more.
        Err(
            OpenError::Missing { .. }
            | OpenError::Exists { .. }
            | OpenError::NotOurs { .. }
            | OpenError::OtherSchema { .. }
            | OpenError::WrongMasterKey { .. }
            | OpenError::Failed { .. },
        ) => {}
    }
    Ok(())
}

/// The database as a backup of itself, and of when it cannot tell.
fn in_place(database: &Path, master: &MasterKey, now: u64) -> Result<(Backup, Window), RestoreError> {
    let mut store = SqliteStore::open(database, master)?;
    let backup = backup_in_place(&mut store)?;
    let window = until_now(uncertain_from(&backup), now);
    Ok((backup, window))
}

/// From when on revocations may have been made that the backup does not hold.
fn uncertain_from(backup: &Backup) -> u64 {
    match backup.superseded {
        // Another copy may have revoked devices ever since there was something to copy. An incarnation can be ahead of
        // the calendar.
        Some(_) => (u64::from(backup.incarnation) * INCARNATION_SECONDS).min(backup.taken_unix_seconds),
        None => backup.taken_unix_seconds,
    }
}

/// Never empty: much can happen in the second of a backup. A clock that was set back hides how long it was.
fn until_now(from_unix_seconds: u64, now: u64) -> Window {
    Window { from_unix_seconds, to_unix_seconds: after(now.max(from_unix_seconds)) }
}

fn read_backup(path: &Path, master: &MasterKey, fleet: FleetId) -> Result<Backup, RestoreError> {
    let io = |source| FileError::Io { doing: "read", path: path.to_owned(), source };
    let bad = |why| RestoreError::Backup { path: path.to_owned(), why };
    let file = File::open(path).map_err(io)?;
    let limit = u64::try_from(MAX_BACKUP_BYTES).unwrap_or(u64::MAX);
    let bytes = file.metadata().map_err(io)?.len();
    if bytes > limit {
        return Err(bad(BadBackupFile::TooLarge { bytes }));
    }
    let mut contents = Vec::new();
    file.take(limit).read_to_end(&mut contents).map_err(io)?;
    backup_file::open(&backup_file::vault(master), fleet, &contents).map_err(bad)
}

/// Makes the new database beside its place, examines it, and lets it take the place.
fn put_in_place(
    database: &Path,
    master: &MasterKey,
    about: &About,
    now: u64,
    restored: &RestoredRows,
) -> Result<Option<PathBuf>, RestoreError> {
    let draft = beside(database, &format!("restoring-{}", std::process::id()));
    let made = SqliteStore::create(&draft, master, &restored.writes)
        .map_err(RestoreError::from)
        .and_then(|mut store| Ok(doctor::examine(&mut store, about, now)?));
    let findings = made.inspect_err(|_| discard(&draft))?;
    // What is still in its log would be left behind: it was closed on a disk that is full.
    if SUFFIXES.iter().any(|suffix| !suffix.is_empty() && suffixed(&draft, suffix).exists()) {
        discard(&draft);
        return Err(RestoreError::Unsound {
            finding: "the new database could not be completed: is the disk full?".into(),
        });
    }
    if let Some(finding) = findings.first().filter(|finding| finding.severity() == Severity::Broken) {
        discard(&draft);
        return Err(RestoreError::Unsound { finding: finding.to_string() });
    }
    let aside = free(database, now);
    let mut set_aside = None;
    for suffix in SUFFIXES {
        let (from, to) = (suffixed(database, suffix), suffixed(&aside, suffix));
        // A log that is not there has been taken into its database.
        if fs::symlink_metadata(&from).is_ok() {
            rename(&from, &to)?;
            set_aside = Some(aside.clone());
        }
    }
    rename(&draft, database)?;
    files::sync_directory(database)?;
    Ok(set_aside)
}

/// The files of a database, the one that it is known by last: it alone where it was closed in order. A log must never
/// be left beside a database that it is not of.
const SUFFIXES: [&str; 3] = ["-wal", "-shm", ""];

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn beside(path: &Path, what: &str) -> PathBuf {
    suffixed(path, &format!(".{what}"))
}

/// A name beside the database that nothing has.
fn free(database: &Path, now: u64) -> PathBuf {
    let name = |n: u32| beside(database, &if n == 0 { format!("{now}") } else { format!("{now}-{n}") });
    let is_free = |path: &PathBuf| fs::symlink_metadata(path).is_err();
    (0..).map(name).find(is_free).unwrap_or_else(|| name(0))
}

fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    fs::rename(from, to).map_err(|source| FileError::Io { doing: "move", path: from.to_owned(), source })
}

fn discard(draft: &Path) {
    for suffix in SUFFIXES {
        // It holds no secret, and its name says what it is.
        let _ = fs::remove_file(suffixed(draft, suffix));
    }
}
