//! The file of a backup: a header in the clear, the contents under the master key, a checksum over both.
//!
//! ```text
//! magic (16) || version (1) || fleet (16) || taken, Unix seconds (8) || sealed contents || SHA-256 (32)
//! ```
//!
//! The checksum is no protection from anybody; it tells a damaged file from another master key. The header is bound to
//! the contents: a file whose header was changed does not open. Leaves to the core what the contents are.

use fleetkey_coordinator_core::backup::{Backup, BadBackup};
use fleetkey_vault::{MasterKey, Vault, VaultError};
use fleetkey_wire::FleetId;
use rand_core::OsRng;
use sha2::{Digest, Sha256};

/// What every backup begins with.
const MAGIC: &[u8; 16] = b"fleetkey backup\n";
/// The layout that this build writes and reads.
pub const BACKUP_FILE_VERSION: u8 = 1;
const HEADER_BYTES: usize = MAGIC.len() + 1 + 16 + 8;
const CHECKSUM_BYTES: usize = 32;
/// No backup is larger: a million devices with their history fit.
pub const MAX_BACKUP_BYTES: usize = 1024 * 1024 * 1024;

/// Why a file is not restored from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadBackupFile {
    /// Something else.
    #[error("this is not a backup of a coordinator")]
    NotABackup,
    /// Written by another build.
    #[error("the backup has version {got}, this build knows version {BACKUP_FILE_VERSION}")]
    OtherVersion {
        /// Its version.
        got: u8,
    },
    /// Cut off, or changed on its way.
    #[error("the backup is damaged: its checksum does not match; take another copy of it")]
    Damaged,
    /// Longer than any backup.
    #[error("the backup has {bytes} bytes, more than {MAX_BACKUP_BYTES}")]
    TooLarge {
        /// Its length.
        bytes: u64,
    },
    /// Of another fleet.
    #[error("the backup is of fleet {got}, not of fleet {expected}")]
    OtherFleet {
        /// Whose it is.
        got: FleetId,
        /// Whose it should be.
        expected: FleetId,
    },
    /// Sealed under another master key, or changed on purpose together with its checksum.
    #[error("the backup was made with another master key")]
    WrongMasterKey,
    /// It opens, and holds something else.
    #[error(transparent)]
    Contents(#[from] BadBackup),
}

/// What a backup says of itself without a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupHeader {
    /// The fleet.
    pub fleet: FleetId,
    /// When it was taken.
    pub taken_unix_seconds: u64,
}

/// The vault that backups are sealed in: no value of the database opens there, and none of a backup elsewhere.
pub(crate) fn vault(master: &MasterKey) -> Vault {
    Vault::new(master, "coordinator backup")
}

/// The file of a backup of `fleet`, for those who run a [`crate::Service`] without its API.
///
/// # Errors
/// [`BadBackupFile::TooLarge`].
pub fn seal_backup(master: &MasterKey, fleet: FleetId, backup: &Backup) -> Result<Vec<u8>, BadBackupFile> {
    seal(&vault(master), fleet, backup)
}

/// The backup of `fleet` in a file, for those who run no [`crate::restore()`].
///
/// # Errors
/// [`BadBackupFile`].
pub fn open_backup(master: &MasterKey, fleet: FleetId, file: &[u8]) -> Result<Backup, BadBackupFile> {
    open(&vault(master), fleet, file)
}

/// The file of a backup.
///
/// # Errors
/// [`BadBackupFile::TooLarge`].
pub(crate) fn seal(vault: &Vault, fleet: FleetId, backup: &Backup) -> Result<Vec<u8>, BadBackupFile> {
    let contents = zeroize::Zeroizing::new(backup.encode());
    let mut file = Vec::with_capacity(HEADER_BYTES + contents.len() + 128);
    file.extend_from_slice(MAGIC);
    file.push(BACKUP_FILE_VERSION);
    file.extend_from_slice(fleet.as_bytes());
    file.extend_from_slice(&backup.taken_unix_seconds.to_be_bytes());
    let sealed = vault.seal(&mut OsRng, &file, &contents);
    file.extend_from_slice(&sealed);
    let checksum = Sha256::digest(&file);
    file.extend_from_slice(&checksum);
    let bytes = file.len();
    if bytes > MAX_BACKUP_BYTES {
        return Err(BadBackupFile::TooLarge { bytes: u64::try_from(bytes).unwrap_or(u64::MAX) });
    }
    Ok(file)
}

/// Whether a file is a whole backup, and what it says of itself.
///
/// # Errors
/// [`BadBackupFile`], short of what only the key tells.
pub fn inspect(file: &[u8]) -> Result<BackupHeader, BadBackupFile> {
    let rest = file.strip_prefix(MAGIC).ok_or(BadBackupFile::NotABackup)?;
    match rest.first() {
        Some(&BACKUP_FILE_VERSION) => {}
        Some(&got) => return Err(BadBackupFile::OtherVersion { got }),
        None => return Err(BadBackupFile::Damaged),
    }
    let (content, checksum) = file.split_last_chunk::<CHECKSUM_BYTES>().ok_or(BadBackupFile::Damaged)?;
    if content.len() < HEADER_BYTES || Sha256::digest(content).as_slice() != checksum {
        return Err(BadBackupFile::Damaged);
    }
    let (fleet, rest) = rest[1..].split_first_chunk::<16>().ok_or(BadBackupFile::Damaged)?;
    let (taken, _) = rest.split_first_chunk::<8>().ok_or(BadBackupFile::Damaged)?;
    Ok(BackupHeader { fleet: FleetId::from_bytes(*fleet), taken_unix_seconds: u64::from_be_bytes(*taken) })
}

/// The backup of `fleet` in a file.
///
/// # Errors
/// [`BadBackupFile`].
pub(crate) fn open(vault: &Vault, fleet: FleetId, file: &[u8]) -> Result<Backup, BadBackupFile> {
    let header = inspect(file)?;
    if header.fleet != fleet {
        return Err(BadBackupFile::OtherFleet { got: header.fleet, expected: fleet });
    }
    let (header, sealed) = file[..file.len() - CHECKSUM_BYTES].split_at(HEADER_BYTES);
    let contents = vault.open(header, sealed).map_err(|error| match error {
        VaultError::TooShort { .. } => BadBackupFile::Damaged,
        VaultError::UnknownVersion { version, .. } => BadBackupFile::OtherVersion { got: version },
        VaultError::Corrupt { .. } | VaultError::WrongMasterKey { .. } => BadBackupFile::WrongMasterKey,
    })?;
    Ok(Backup::decode(&contents)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLEET: FleetId = FleetId::from_bytes([1; 16]);

    fn backup() -> Backup {
        Backup {
            taken_unix_seconds: 1_800_000_000,
            incarnation: 30_000_000,
            superseded: None,
            devices: Vec::new(),
            groups: Vec::new(),
            memberships: Vec::new(),
            audit: Vec::new(),
            audit_head: Default::default(),
            issued: Vec::new(),
            certificates: Vec::new(),
            crl_number: 0,
        }
    }

    fn vault_of(byte: u8) -> Vault {
        let mut key = [byte; 32];
        key[0] = 0;
        vault(&MasterKey::from_bytes(&key))
    }

    #[test]
    fn a_backup_opens_where_it_belongs_alone() {
        let file = seal(&vault_of(1), FLEET, &backup()).unwrap();
        assert_eq!(inspect(&file), Ok(BackupHeader { fleet: FLEET, taken_unix_seconds: 1_800_000_000 }));
        assert_eq!(open(&vault_of(1), FLEET, &file), Ok(backup()));
        assert_eq!(open(&vault_of(2), FLEET, &file), Err(BadBackupFile::WrongMasterKey));
        let other = FleetId::from_bytes([2; 16]);
        let refused = open(&vault_of(1), other, &file);
        assert_eq!(refused, Err(BadBackupFile::OtherFleet { got: FLEET, expected: other }));
    }

    #[test]
    fn damage_anywhere_is_told_from_another_key() {
        let file = seal(&vault_of(1), FLEET, &backup()).unwrap();
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 1;
            let refused = open(&vault_of(1), FLEET, &damaged).unwrap_err();
            match at {
                0..16 => assert_eq!(refused, BadBackupFile::NotABackup, "at {at}"),
                16 => assert_eq!(refused, BadBackupFile::OtherVersion { got: 0 }),
                _ => assert_eq!(refused, BadBackupFile::Damaged, "at {at}"),
            }
        }
        for length in 0..file.len() {
            assert!(open(&vault_of(1), FLEET, &file[..length]).is_err(), "cut to {length}");
        }
    }

    #[test]
    fn a_header_changed_with_its_checksum_does_not_open() {
        let file = seal(&vault_of(1), FLEET, &backup()).unwrap();
        let mut changed = file[..file.len() - CHECKSUM_BYTES].to_vec();
        changed[HEADER_BYTES - 1] ^= 1;
        let checksum = Sha256::digest(&changed);
        changed.extend_from_slice(&checksum);
        assert!(inspect(&changed).is_ok());
        assert_eq!(open(&vault_of(1), FLEET, &changed), Err(BadBackupFile::WrongMasterKey));
    }
}
