//! What the coordinator stores: one record per row, versioned CBOR, the key of its row made from its ids.
//!
//! Leaves to the store how rows are kept, and which are encrypted at rest (see [`Table::is_secret`]).

mod audit;
mod enrolment;
mod operator;

use std::collections::BTreeSet;
use std::io::Write as _;

use fleetkey_wire::keys::SECRET_BYTES;
use fleetkey_wire::{CellEpoch, CellId, DeviceId, GroupId, KeyEpoch, Psk, PskId, SecretWriter, Suite};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::audit::AuditHead;
use crate::labels::Labels;
use crate::policy::Policy;
use crate::store::{Row, StoreError, Write};

pub use audit::{AuditRecord, Deed, OldAuditRecord};
pub use enrolment::{BadClaimId, CertificateRecord, ClaimId, ClaimRecord, Origin, RequestRecord};
pub use operator::{BadOperatorName, OperatorName, OperatorRecord, OperatorRole, Scope};

/// The version in front of every stored value whose record names no other.
pub const RECORD_VERSION: u8 = 1;

/// Most records take no more.
const USUAL_BYTES: usize = 256;

/// Which kind of record a row holds. The names and numbers are part of the stored format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// [`MetaRecord`]: one row.
    Meta,
    /// [`DeviceRecord`] by device.
    Device,
    /// [`GroupRecord`] by group.
    Group,
    /// [`KeyRecord`] by group and key epoch.
    GroupKey,
    /// [`MemberRecord`] by group and device.
    Member,
    /// [`CellRecord`] by cell.
    Cell,
    /// [`CommitRecord`] by cell and cell epoch.
    Commit,
    /// [`WelcomeRecord`] by cell and device.
    Welcome,
    /// [`KeyPackageRecord`] by device and number.
    KeyPackage,
    /// [`OutboxRecord`] by number.
    Outbox,
    /// [`AuditRecord`] by sequence number.
    Audit,
    /// [`IssuedRecord`] by group and key epoch.
    Issued,
    /// [`CertificateRecord`] by device, issuer and serial number.
    Certificate,
    /// [`ClaimRecord`] by its id.
    Claim,
    /// [`RequestRecord`] by the device that it will be.
    Request,
    /// [`PskRecord`] by group.
    Psk,
    /// [`OperatorRecord`] by name.
    Operator,
}

impl Table {
    /// Every table, in the order in which they are loaded.
    pub const ALL: [Self; 17] = [
        Self::Meta,
        Self::Device,
        Self::Group,
        Self::GroupKey,
        Self::Member,
        Self::Cell,
        Self::Commit,
        Self::Welcome,
        Self::KeyPackage,
        Self::Outbox,
        Self::Audit,
        Self::Issued,
        Self::Certificate,
        Self::Claim,
        Self::Request,
        Self::Psk,
        Self::Operator,
    ];

    /// Its name in the database.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Device => "device",
            Self::Group => "fleet_group",
            Self::GroupKey => "group_key",
            Self::Member => "member",
            Self::Cell => "cell",
            Self::Commit => "cell_commit",
            Self::Welcome => "welcome",
            Self::KeyPackage => "key_package",
            Self::Outbox => "outbox",
            Self::Audit => "audit",
            Self::Issued => "issued",
            Self::Certificate => "certificate",
            Self::Claim => "claim",
            Self::Request => "request",
            Self::Psk => "psk",
            Self::Operator => "operator",
        }
    }

    /// Whether its values hold secrets, and so are encrypted at rest.
    pub const fn is_secret(self) -> bool {
        match self {
            Self::GroupKey | Self::Cell | Self::Psk => true,
            Self::Meta
            | Self::Device
            | Self::Group
            | Self::Member
            | Self::Commit
            | Self::Welcome
            | Self::KeyPackage
            | Self::Outbox
            | Self::Audit
            | Self::Issued
            | Self::Certificate
            | Self::Claim
            | Self::Request
            | Self::Operator => false,
        }
    }
}

/// A record and the row it lives in.
pub trait Record: Serialize + DeserializeOwned {
    /// Its table.
    const TABLE: Table;
    /// The version in front of its value.
    const VERSION: u8 = RECORD_VERSION;

    /// The key of its row.
    fn key(&self) -> Vec<u8>;

    /// The write that stores it.
    fn put(&self) -> Write {
        let mut value = SecretWriter::with_capacity(USUAL_BYTES);
        value.write_all(&[Self::VERSION]).expect("writing a record to memory does not fail");
        ciborium::into_writer(self, &mut value).expect("writing a record to memory does not fail");
        Write { table: Self::TABLE, key: self.key(), value: Some(value.into_bytes()) }
    }

    /// The write that removes it.
    fn delete(&self) -> Write {
        Write { table: Self::TABLE, key: self.key(), value: None }
    }

    /// Reads a row of its table.
    fn read(row: &Row) -> Result<Self, StoreError> {
        let key = || hex::encode(&row.key);
        let corrupt = |why: String| StoreError::Corrupt { table: row.table.name(), key: key(), why };
        match row.value.split_first() {
            Some((version, encoded)) if *version == Self::VERSION => {
                ciborium::from_reader(encoded).map_err(|error| corrupt(error.to_string()))
            }
            Some((other, _)) => {
                Err(corrupt(format!("record version {other}, this build knows {}", Self::VERSION)))
            }
            None => Err(corrupt("empty value".into())),
        }
    }
}

fn pair(first: &[u8], second: &[u8]) -> Vec<u8> {
    [first, second].concat()
}

/// What holds for the whole database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaRecord {
    /// The incarnation that key epochs are issued in.
    pub incarnation: u32,
    /// That this database was made from a backup, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,
    /// That a device has shown this coordinator to be a copy, or to have been rolled back. It issues nothing
    /// until it is restored, which gives it an incarnation of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superseded: Option<Superseded>,
    /// The number of the newest revocation list.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub crl_number: u64,
    /// How far the audit log has come.
    #[serde(default, skip_serializing_if = "AuditHead::is_start")]
    pub audit: AuditHead,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl MetaRecord {
    /// Of a database that is neither restored nor superseded.
    pub fn new(incarnation: u32) -> Self {
        let audit = AuditHead::default();
        Self { incarnation, restored: None, superseded: None, crl_number: 0, audit }
    }
}

/// Where a restored database comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// When the backup was made.
    pub backup_unix_seconds: u64,
    /// When it was restored.
    pub unix_seconds: u64,
    /// The incarnation that the backup was made in.
    pub former_incarnation: u32,
}

/// What a device has shown to a coordinator that is not the only one, or not the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Superseded {
    /// When.
    pub unix_seconds: u64,
    /// The device.
    pub device: DeviceId,
    /// The group.
    pub group: GroupId,
    /// The key epoch of a genuine statement that this coordinator never made.
    pub key_epoch: KeyEpoch,
}

impl Record for MetaRecord {
    const TABLE: Table = Table::Meta;
    fn key(&self) -> Vec<u8> {
        b"coordinator".to_vec()
    }
}

/// Where a device stands with the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It may be in groups.
    Enrolled,
    /// It asked for fresh joins more often than one device does: perhaps it was cloned. An operator decides.
    Quarantined {
        /// Since when.
        unix_seconds: u64,
    },
    /// Its identity has ended, for ever.
    Revoked {
        /// Since when.
        unix_seconds: u64,
        /// The operator's reason.
        reason: String,
    },
}

/// One enrolled identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRecord {
    /// Its id.
    pub id: DeviceId,
    /// A label for people.
    pub name: String,
    /// Its Ed25519 identity key.
    #[serde(with = "serde_bytes")]
    pub public_key: [u8; 32],
    /// Where it stands.
    pub standing: Standing,
    /// When it was enrolled.
    pub enrolled_unix_seconds: u64,
    /// Fresh joins since the count last began anew.
    pub fresh_joins: u32,
    /// When the last of them was.
    pub last_fresh_join_unix_seconds: u64,
    /// What selectors of groups look at.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// The way by which it came in.
    #[serde(default, skip_serializing_if = "Origin::is_operator")]
    pub origin: Origin,
}

impl Record for DeviceRecord {
    const TABLE: Table = Table::Device;
    fn key(&self) -> Vec<u8> {
        self.id.as_bytes().to_vec()
    }
}

/// A scheduled rotation under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rotation {
    /// The next key is being handed out.
    Distributing {
        /// Since when.
        since_unix_seconds: u64,
    },
    /// The next key is in use, and the former still accepted.
    Activated {
        /// Since when.
        since_unix_seconds: u64,
    },
}

/// One group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// Its id.
    pub id: GroupId,
    /// Its name.
    pub name: String,
    /// How it is run.
    pub policy: Policy,
    /// When it was created.
    pub created_unix_seconds: u64,
    /// The newest key epoch ever issued: the next one lies beyond it.
    pub last_issued: KeyEpoch,
    /// The key epoch to seal with.
    pub send: KeyEpoch,
    /// The oldest to accept.
    pub oldest: KeyEpoch,
    /// The rotation under way.
    pub rotation: Option<Rotation>,
    /// When the last rekey was, a rotation's activation included: the next rotation counts from here.
    pub last_rekey_unix_seconds: u64,
    /// Devices that are enrolled with these labels belong in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Labels>,
    /// By when members are to hold a key that devices were revoked with, and whether they did; oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deadlines: Vec<Deadline>,
    /// The external pre-shared key that its cells' keys depend on, since it was created with one. The secret has a row
    /// of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psk: Option<PskId>,
}

/// By when the members of a group are to hold a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    /// The key, or any later one.
    pub key_epoch: KeyEpoch,
    /// When it was set.
    pub set_unix_seconds: u64,
    /// When it ends.
    pub until_unix_seconds: u64,
    /// What became of it.
    pub outcome: Outcome,
    /// Devices that went while they owed the key, as long as it is open: should they be members again, they owe it still.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub gone_owing: BTreeSet<DeviceId>,
}

/// What became of a deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing yet.
    Open,
    /// Every member proved to hold the key in time.
    Kept {
        /// When the last of them had.
        unix_seconds: u64,
    },
    /// Some had not.
    Missed {
        /// How many, when time was up.
        missing: u32,
    },
}

impl Record for GroupRecord {
    const TABLE: Table = Table::Group;
    fn key(&self) -> Vec<u8> {
        self.id.as_bytes().to_vec()
    }
}

/// One live group secret, with the newest statement on it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// The group.
    pub group: GroupId,
    /// The key epoch.
    pub key_epoch: KeyEpoch,
    /// The group secret.
    #[serde(with = "serde_bytes")]
    pub secret: [u8; SECRET_BYTES],
    /// COSE_Sign1.
    #[serde(with = "serde_bytes")]
    pub statement: Vec<u8>,
}

impl Drop for KeyRecord {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.secret);
    }
}

impl std::fmt::Debug for KeyRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeyRecord({}, {}, redacted)", self.group, self.key_epoch)
    }
}

impl Record for KeyRecord {
    const TABLE: Table = Table::GroupKey;
    fn key(&self) -> Vec<u8> {
        pair(self.group.as_bytes(), &self.key_epoch.0.to_be_bytes())
    }
}

/// The secret of a group's external pre-shared key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PskRecord {
    /// The group.
    pub group: GroupId,
    /// The secret.
    #[serde(with = "serde_bytes")]
    pub secret: [u8; SECRET_BYTES],
}

impl PskRecord {
    /// That of `group`.
    pub const fn new(group: GroupId, psk: &Psk) -> Self {
        Self { group, secret: *psk.as_bytes() }
    }

    /// The key.
    pub const fn psk(&self) -> Psk {
        Psk::from_bytes(self.secret)
    }
}

impl Drop for PskRecord {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.secret);
    }
}

impl std::fmt::Debug for PskRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PskRecord({}, redacted)", self.group)
    }
}

impl Record for PskRecord {
    const TABLE: Table = Table::Psk;
    fn key(&self) -> Vec<u8> {
        self.group.as_bytes().to_vec()
    }
}

/// A device's place in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// An operator wants it in; it waits for a key package and the next rekey.
    Wanted,
    /// It is in, through this cell.
    In {
        /// The cell.
        cell: CellId,
    },
}

/// One device in one group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// The group.
    pub group: GroupId,
    /// The device.
    pub device: DeviceId,
    /// Its place.
    pub place: Place,
    /// The key epoch that was current when it was admitted: nothing older is ever wrapped for it.
    pub admitted: KeyEpoch,
    /// The newest key epoch it proved to hold.
    pub confirmed: KeyEpoch,
    /// The newest statement it said to have applied (short digest).
    #[serde(with = "serde_bytes")]
    pub acknowledged: [u8; 8],
    /// When it last confirmed.
    pub confirmed_unix_seconds: u64,
}

impl Record for MemberRecord {
    const TABLE: Table = Table::Member;
    fn key(&self) -> Vec<u8> {
        pair(self.group.as_bytes(), self.device.as_bytes())
    }
}

/// One cell.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellRecord {
    /// Its id, never reused.
    pub id: CellId,
    /// The group it is part of.
    pub group: GroupId,
    /// When it last had a commit with a path.
    pub last_path_unix_seconds: u64,
    /// The coordinator's side of the MLS group, its epoch's keys included.
    #[serde(with = "serde_bytes")]
    pub snapshot: Vec<u8>,
}

impl Drop for CellRecord {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.snapshot);
    }
}

impl std::fmt::Debug for CellRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CellRecord({}, redacted)", self.id)
    }
}

impl Record for CellRecord {
    const TABLE: Table = Table::Cell;
    fn key(&self) -> Vec<u8> {
        self.id.as_bytes().to_vec()
    }
}

/// One commit, kept for devices that missed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitRecord {
    /// The cell.
    pub cell: CellId,
    /// The cell epoch it applies to.
    pub epoch: CellEpoch,
    /// That epoch's authenticator.
    #[serde(with = "serde_bytes")]
    pub authenticator: [u8; 8],
    /// A cell frame with the commit alone.
    #[serde(with = "serde_bytes")]
    pub frame: Vec<u8>,
}

impl Record for CommitRecord {
    const TABLE: Table = Table::Commit;
    fn key(&self) -> Vec<u8> {
        pair(self.cell.as_bytes(), &self.epoch.0.to_be_bytes())
    }
}

/// A Welcome that has not been seen to arrive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WelcomeRecord {
    /// The cell.
    pub cell: CellId,
    /// The device.
    pub device: DeviceId,
    /// The cell epoch it leads to.
    pub epoch: CellEpoch,
    /// The MLS Welcome.
    #[serde(with = "serde_bytes")]
    pub welcome: Vec<u8>,
}

impl Record for WelcomeRecord {
    const TABLE: Table = Table::Welcome;
    fn key(&self) -> Vec<u8> {
        pair(self.cell.as_bytes(), self.device.as_bytes())
    }
}

/// A key package in stock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPackageRecord {
    /// The device it is for.
    pub device: DeviceId,
    /// Rises with each that is received.
    pub number: u64,
    /// The suite it is for.
    pub suite: Suite,
    /// The MLS message.
    #[serde(with = "serde_bytes")]
    pub key_package: Vec<u8>,
}

impl Record for KeyPackageRecord {
    const TABLE: Table = Table::KeyPackage;
    fn key(&self) -> Vec<u8> {
        pair(self.device.as_bytes(), &self.number.to_be_bytes())
    }
}

/// Something decided and stored, and not yet known to be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outgoing {
    /// A frame for a cell's topic, as it goes out.
    Cell {
        /// The cell.
        cell: CellId,
        /// The frame.
        #[serde(with = "serde_bytes")]
        frame: Vec<u8>,
    },
    /// Something for one device. What exactly, catch-up finds out anew: after a restart the device is only asked
    /// to say hello.
    Device {
        /// The device.
        device: DeviceId,
    },
}

/// One row of the outbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboxRecord {
    /// Its number, in the order of sending.
    pub number: u64,
    /// What is to be sent.
    pub outgoing: Outgoing,
}

impl OutboxRecord {
    /// The write that removes row `number`, once it is known to be sent.
    pub fn delete_number(number: u64) -> Write {
        Write { table: Table::Outbox, key: number.to_be_bytes().to_vec(), value: None }
    }
}

impl Record for OutboxRecord {
    const TABLE: Table = Table::Outbox;
    fn key(&self) -> Vec<u8> {
        self.number.to_be_bytes().to_vec()
    }
}

/// That a key epoch was issued, and which secret it names for ever. Kept long after the secret is gone, so that a
/// statement on it by anybody else is known for what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedRecord {
    /// The group.
    pub group: GroupId,
    /// The key epoch.
    pub key_epoch: KeyEpoch,
    /// The commitment to its secret.
    #[serde(with = "serde_bytes")]
    pub commitment: [u8; 32],
    /// The short digests of all statements made on it, 8 bytes each, one after the other.
    #[serde(with = "serde_bytes")]
    pub statements: Vec<u8>,
}

impl Record for IssuedRecord {
    const TABLE: Table = Table::Issued;
    fn key(&self) -> Vec<u8> {
        pair(self.group.as_bytes(), &self.key_epoch.0.to_be_bytes())
    }
}
