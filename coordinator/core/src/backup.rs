//! What a backup holds: the registry, groups and policies, who is in which group, the audit log, and what was issued.
//!
//! No MLS state, no group secret, no pre-shared key, no key package, no claim, no outbox: whoever is restored from this makes
//! new cells and new keys, and cannot reuse an old one. Leaves to [`crate::restore`] how a database is made of it, and to the service
//! the file, its encryption and its checksum.

use serde::{Deserialize, Serialize};

use fleetkey_wire::{DeviceId, GroupId};

use crate::audit::{self, AuditHead};
use crate::error::LoadError;
use crate::records::{
    AuditRecord, CertificateRecord, DeviceRecord, GroupRecord, IssuedRecord, MemberRecord, MetaRecord,
    OldAuditRecord, Record, Superseded,
};
use crate::store::{Store, StoreError};

/// The layout that this build writes.
pub const BACKUP_VERSION: u8 = 3;
/// The newest whose audit log is not chained.
const UNCHAINED_VERSION: u8 = 2;
/// The oldest that it reads: it lacks certificates besides, and knows of no group that asks for a pre-shared key.
const OLDEST_BACKUP_VERSION: u8 = 1;

/// One device in one group, whatever its cell was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Membership {
    /// The group.
    pub group: GroupId,
    /// The device.
    pub device: DeviceId,
}

/// Everything that a coordinator can be made anew from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    /// When it was taken. Whatever was decided later is not in it.
    pub taken_unix_seconds: u64,
    /// The incarnation that key epochs were issued in.
    pub incarnation: u32,
    /// What had shown the coordinator to be a copy, or to have been rolled back.
    pub superseded: Option<Superseded>,
    /// Every device with its standing.
    pub devices: Vec<DeviceRecord>,
    /// Every group with its policy.
    pub groups: Vec<GroupRecord>,
    /// Who is in which group, or wanted in it.
    pub memberships: Vec<Membership>,
    /// The audit log, chained.
    pub audit: Vec<AuditRecord>,
    /// How far the audit log had come, whatever is left of it.
    pub audit_head: AuditHead,
    /// What key epochs were issued, and the commitments to their secrets.
    pub issued: Vec<IssuedRecord>,
    /// Which certificates devices hold.
    pub certificates: Vec<CertificateRecord>,
    /// The number of the newest revocation list.
    pub crl_number: u64,
}

/// The layouts without a chain.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UnchainedBackup {
    taken_unix_seconds: u64,
    incarnation: u32,
    superseded: Option<Superseded>,
    devices: Vec<DeviceRecord>,
    groups: Vec<GroupRecord>,
    memberships: Vec<Membership>,
    audit: Vec<OldAuditRecord>,
    issued: Vec<IssuedRecord>,
    #[serde(default)]
    certificates: Vec<CertificateRecord>,
    #[serde(default)]
    crl_number: u64,
}

impl From<UnchainedBackup> for Backup {
    fn from(old: UnchainedBackup) -> Self {
        let audit = audit::chained(old.audit);
        Self {
            taken_unix_seconds: old.taken_unix_seconds,
            incarnation: old.incarnation,
            superseded: old.superseded,
            devices: old.devices,
            groups: old.groups,
            memberships: old.memberships,
            audit_head: audit.last().map(AuditRecord::head).unwrap_or_default(),
            audit,
            issued: old.issued,
            certificates: old.certificates,
            crl_number: old.crl_number,
        }
    }
}

/// Bytes that are no backup's contents.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadBackup {
    /// Written by another build.
    #[error("the backup's contents have version {got}, this build knows version {BACKUP_VERSION}")]
    OtherVersion {
        /// The version.
        got: u8,
    },
    /// Not what this build wrote.
    #[error("the backup's contents cannot be read: {0}")]
    Unreadable(String),
}

impl Backup {
    /// What a store holds now. Read from a store that nobody writes to meanwhile, it is one consistent state: that of
    /// the last committed transaction.
    ///
    /// # Errors
    /// When a row cannot be read, or the store was never initialised.
    pub fn of_store(store: &mut dyn Store, unix_seconds: u64) -> Result<Self, LoadError> {
        let meta = read::<MetaRecord>(store)?.pop().ok_or(LoadError::NotInitialised)?;
        let members = read::<MemberRecord>(store)?;
        let audit = read::<AuditRecord>(store)?;
        let last = audit.last().map(AuditRecord::head).unwrap_or_default();
        let audit_head = if last.sequence > meta.audit.sequence { last } else { meta.audit };
        Ok(Self {
            taken_unix_seconds: unix_seconds,
            incarnation: meta.incarnation,
            superseded: meta.superseded,
            devices: read(store)?,
            groups: read(store)?,
            memberships: members
                .into_iter()
                .map(|member| Membership { group: member.group, device: member.device })
                .collect(),
            audit,
            audit_head,
            issued: read(store)?,
            certificates: read(store)?,
            crl_number: meta.crl_number,
        })
    }

    /// When the newest thing happened that it knows of: for a database that nobody is known to have run until now, the
    /// last sign of life.
    pub fn newest_unix_seconds(&self) -> u64 {
        let audit = self.audit.iter().map(|entry| entry.unix_seconds);
        let groups = self.groups.iter().map(|group| group.last_rekey_unix_seconds);
        let superseded = self.superseded.iter().map(|superseded| superseded.unix_seconds);
        audit.chain(groups).chain(superseded).max().unwrap_or_default()
    }

    /// Its bytes, to be encrypted before they are kept anywhere.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![BACKUP_VERSION];
        ciborium::into_writer(self, &mut bytes).expect("writing to memory does not fail");
        bytes
    }

    /// Reads what [`Self::encode`] wrote. The caller bounds the length, and has found the bytes authentic.
    ///
    /// # Errors
    /// [`BadBackup`].
    pub fn decode(bytes: &[u8]) -> Result<Self, BadBackup> {
        let unreadable =
            |error: ciborium::de::Error<std::io::Error>| BadBackup::Unreadable(error.to_string());
        match bytes.split_first() {
            Some((&BACKUP_VERSION, contents)) => ciborium::from_reader(contents).map_err(unreadable),
            Some((OLDEST_BACKUP_VERSION..=UNCHAINED_VERSION, contents)) => {
                ciborium::from_reader::<UnchainedBackup, _>(contents).map(Self::from).map_err(unreadable)
            }
            Some((&got, _)) => Err(BadBackup::OtherVersion { got }),
            None => Err(BadBackup::Unreadable("they are empty".into())),
        }
    }
}

fn read<R: Record>(store: &mut dyn Store) -> Result<Vec<R>, StoreError> {
    store.rows(R::TABLE)?.iter().map(R::read).collect()
}
