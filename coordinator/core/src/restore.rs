//! A new database from a backup, or from the rows of a coordinator that may issue no more.
//!
//! What comes out can neither reuse a key epoch nor fork a cell, however old the backup is: it lies in an incarnation
//! beyond every one that is known of, holds no cell and no secret, and wants every member in anew. Revocations that
//! were made after the backup are made again as far as they are known; a revoked device is in no group.
//!
//! Leaves to the caller to find out what is known, and to refuse where too little is.

use std::collections::{BTreeMap, BTreeSet};

use fleetkey_wire::{DeviceId, GroupId, KeyEpoch};

use crate::actor::Actor;
use crate::audit::{AuditHash, AuditHead, CHAINED, TAKEN_OVER};
use crate::backup::{Backup, Membership};
use crate::error::LoadError;
use crate::labels::Labels;
use crate::records::{
    AuditRecord, CertificateRecord, Deed, DeviceRecord, MemberRecord, MetaRecord, Origin, Outcome, Place,
    Record, Restored, Standing,
};
use crate::store::{Store, Write};
use crate::traces;

/// Seconds of an incarnation: it is a matter of the calendar.
const INCARNATION_SECONDS: u64 = 60;
/// The public key in the record of a revoked device of which nothing but its id is known. No key agrees with it, and
/// nobody ever agrees one for a revoked device.
const UNKNOWN_KEY: [u8; 32] = [0; 32];

/// A device that was revoked after the backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// The device.
    pub device: DeviceId,
    /// When.
    pub unix_seconds: u64,
    /// The operator's reason.
    pub reason: String,
}

/// A time of which nothing is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Window {
    /// From when on.
    pub from_unix_seconds: u64,
    /// Until when, that second excluded.
    pub to_unix_seconds: u64,
}

/// What is known besides the backup.
#[derive(Debug, Clone, Default)]
pub struct Restoring {
    /// Now.
    pub unix_seconds: u64,
    /// The incarnation is not below this one: one more than any other that is known to have been issued in.
    pub incarnation_floor: u32,
    /// Entries of the audit log, some of them perhaps from after the backup.
    pub audit: Vec<AuditRecord>,
    /// Further revocations.
    pub revocations: Vec<Revocation>,
    /// When revocations may have been made that nothing here tells of.
    pub uncertain: Vec<Window>,
}

/// The database to be, and what is to be told of it.
#[derive(Debug, Clone)]
pub struct RestoredRows {
    /// Its rows: all of them, for an empty database.
    pub writes: Vec<Write>,
    /// The incarnation that it will issue in.
    pub incarnation: u32,
    /// Devices that the backup does not know to be revoked, and that are now.
    pub revoked: Vec<DeviceId>,
    /// Devices taken out of groups, or put into them, by the audit log after the backup.
    pub moved: usize,
    /// Devices enrolled after the backup, by id and name: they are not in it, and are to be adopted.
    pub unknown: Vec<(DeviceId, String)>,
    /// Members to come in anew.
    pub wanted: usize,
}

impl Backup {
    /// The rows of the database that takes up where this backup ends.
    pub fn restored_rows(&self, known: &Restoring) -> RestoredRows {
        let mut draft = Draft::of(self);
        let before = draft.revoked();
        draft.follow(&known.audit);
        for revocation in &known.revocations {
            draft.revoke(revocation);
        }
        draft.settle();
        let revoked: Vec<DeviceId> = draft.revoked().difference(&before).copied().collect();
        let incarnation = self.next_incarnation(known);
        draft.note(self, known, incarnation, &revoked);
        RestoredRows {
            writes: draft.writes(self, known, incarnation),
            incarnation,
            revoked,
            moved: draft.moved,
            unknown: draft.unknown.into_iter().collect(),
            wanted: draft.memberships.len(),
        }
    }

    /// Beyond every incarnation that this backup, or the caller, knows to have been issued in.
    fn next_incarnation(&self, known: &Restoring) -> u32 {
        let calendar = u32::try_from(known.unix_seconds / INCARNATION_SECONDS).unwrap_or(u32::MAX);
        let issued = self.issued.iter().map(|issued| issued.key_epoch);
        let shown = self.superseded.iter().map(|superseded| superseded.key_epoch);
        let beyond = self
            .groups
            .iter()
            .map(|group| group.last_issued)
            .chain(issued)
            .chain(shown)
            .map(KeyEpoch::incarnation)
            .fold(self.incarnation, u32::max)
            .saturating_add(1);
        calendar.max(beyond).max(known.incarnation_floor)
    }
}

/// The rows that a coordinator's own database is replaced by, when it was superseded or rolled back: the same as a
/// restore from a backup of itself, taken at its last sign of life.
///
/// # Errors
/// When a row cannot be read.
pub fn restored_in_place(store: &mut dyn Store, known: &Restoring) -> Result<RestoredRows, LoadError> {
    Ok(backup_in_place(store)?.restored_rows(known))
}

/// A database as a backup of itself, taken at its last sign of life.
///
/// # Errors
/// When a row cannot be read.
pub fn backup_in_place(store: &mut dyn Store) -> Result<Backup, LoadError> {
    let mut backup = Backup::of_store(store, 0)?;
    let mut confirmed = 0;
    for row in store.rows(MemberRecord::TABLE)? {
        confirmed = MemberRecord::read(&row)?.confirmed_unix_seconds.max(confirmed);
    }
    backup.taken_unix_seconds = backup.newest_unix_seconds().max(confirmed);
    Ok(backup)
}

/// What an entry says, whoever it names and whatever log it stands in.
fn content(entry: &AuditRecord) -> (u64, String, String, String) {
    let Deed { unix_seconds, who: _, action, subject, detail } = entry.deed();
    (unix_seconds, action, subject, detail)
}

/// A registry in the making.
struct Draft {
    devices: BTreeMap<DeviceId, DeviceRecord>,
    groups: BTreeSet<GroupId>,
    memberships: BTreeSet<Membership>,
    audit: Vec<AuditRecord>,
    audit_head: AuditHead,
    unknown: BTreeMap<DeviceId, String>,
    /// Keys that the audit log tells.
    keys: BTreeMap<DeviceId, [u8; 32]>,
    /// Certificates that the audit log tells of, as rows.
    certificates: BTreeMap<Vec<u8>, CertificateRecord>,
    moved: usize,
}

impl Draft {
    fn of(backup: &Backup) -> Self {
        Self {
            devices: backup.devices.iter().map(|device| (device.id, device.clone())).collect(),
            groups: backup.groups.iter().map(|group| group.id).collect(),
            memberships: backup.memberships.iter().copied().collect(),
            audit: backup.audit.clone(),
            audit_head: backup.audit_head,
            unknown: BTreeMap::new(),
            keys: BTreeMap::new(),
            certificates: backup.certificates.iter().map(|known| (known.key(), known.clone())).collect(),
            moved: 0,
        }
    }

    fn revoked(&self) -> BTreeSet<DeviceId> {
        let devices = self.devices.values();
        devices.filter(|d| matches!(d.standing, Standing::Revoked { .. })).map(|device| device.id).collect()
    }

    /// Does again what the backup does not hold. What continues its audit log is taken over as it is, with its hashes;
    /// what does not, of a copy's log or of a part of one, is entered anew, after an entry that says so.
    fn follow(&mut self, known: &[AuditRecord]) {
        let mut held: BTreeSet<AuditHash> = self.audit.iter().map(|entry| entry.hash).collect();
        let mut others: Vec<&AuditRecord> = known.iter().filter(|entry| held.insert(entry.hash)).collect();
        others.sort_by_key(|entry| (entry.sequence, entry.unix_seconds));
        others.retain(|entry| {
            let continues = entry.sequence == self.audit_head.sequence + 1
                && entry.previous == self.audit_head.hash
                && entry.is_intact();
            if continues {
                self.audit_head = entry.head();
                self.audit.push((*entry).clone());
                self.replay(entry);
            }
            !continues
        });
        // Also among themselves: two exports may overlap.
        let mut told: BTreeSet<_> = self.audit.iter().map(content).collect();
        others.retain(|entry| entry.action != CHAINED && told.insert(content(entry)));
        others.sort_by_key(|entry| (entry.unix_seconds, entry.sequence));
        let deeds: Vec<AuditRecord> = others.into_iter().cloned().collect();
        if let Some(newest) = deeds.iter().map(|entry| entry.unix_seconds).max() {
            let detail = format!("{} follow, of a log that does not continue this one", deeds.len());
            self.enter(newest, TAKEN_OVER, "audit".into(), detail);
        }
        for entry in deeds {
            self.enter_deed(entry.deed());
            self.replay(&entry);
        }
    }

    /// Does again what an entry of the audit log says was done to a device.
    fn replay(&mut self, entry: &AuditRecord) {
        let Ok(device) = entry.subject.parse::<DeviceId>() else { return };
        let group = entry.detail.parse::<GroupId>().ok();
        let unix_seconds = entry.unix_seconds;
        match entry.action.as_str() {
            "revoke" => self.revoke(&Revocation { device, unix_seconds, reason: entry.detail.clone() }),
            "enroll" if !self.devices.contains_key(&device) => {
                self.unknown.insert(device, entry.detail.clone());
            }
            traces::KEY => {
                self.keys.extend(traces::key(&entry.detail).map(|key| (device, key)));
            }
            traces::CERTIFICATE => {
                let told = traces::certificate(device, &entry.detail);
                self.certificates.extend(told.map(|told| (told.key(), told)));
            }
            "quarantine" => self.stand(device, Standing::Quarantined { unix_seconds }),
            "release" => self.stand(device, Standing::Enrolled),
            "add" => self.seat(group, device, true),
            "evict" | "leave" => self.seat(group, device, false),
            // The rest tells of keys, which are made anew, and of groups, whose policy no entry holds.
            _ => {}
        }
    }

    fn stand(&mut self, device: DeviceId, standing: Standing) {
        if let Some(record) = self.devices.get_mut(&device)
            && !matches!(record.standing, Standing::Revoked { .. })
        {
            record.standing = standing;
        }
    }

    fn seat(&mut self, group: Option<GroupId>, device: DeviceId, is_in: bool) {
        let Some(group) = group.filter(|group| self.groups.contains(group)) else { return };
        let membership = Membership { group, device };
        let is_moved = if is_in {
            self.devices.contains_key(&device) && self.memberships.insert(membership)
        } else {
            self.memberships.remove(&membership)
        };
        self.moved += usize::from(is_moved);
    }

    /// Ends a device's identity, even one that the backup has never heard of.
    fn revoke(&mut self, revocation: &Revocation) {
        let Revocation { device, unix_seconds, reason } = revocation;
        let standing = Standing::Revoked { unix_seconds: *unix_seconds, reason: reason.clone() };
        if self.devices.contains_key(device) {
            return self.stand(*device, standing);
        }
        let name = self.unknown.remove(device).unwrap_or_default();
        let is_free = !name.is_empty() && self.devices.values().all(|other| other.name != name);
        let record = DeviceRecord {
            id: *device,
            name: if is_free { name } else { format!("revoked {device}") },
            // A key that is known stays refused, under whatever claim.
            public_key: self.keys.get(device).copied().unwrap_or(UNKNOWN_KEY),
            standing,
            enrolled_unix_seconds: *unix_seconds,
            fresh_joins: 0,
            last_fresh_join_unix_seconds: 0,
            labels: Labels::default(),
            origin: Origin::default(),
        };
        self.devices.insert(*device, record);
    }

    /// Lets go what does not belong to anything any more.
    fn settle(&mut self) {
        let Self { devices, groups, memberships, .. } = self;
        memberships.retain(|membership| {
            let device = devices.get(&membership.device);
            groups.contains(&membership.group)
                && device.is_some_and(|device| !matches!(device.standing, Standing::Revoked { .. }))
        });
        for device in devices.values_mut() {
            // That all of them join afresh now is no sign of a clone.
            (device.fresh_joins, device.last_fresh_join_unix_seconds) = (0, 0);
        }
    }

    /// Enters the restore into the audit log, and each revocation that it made again and the log does not hold.
    fn note(&mut self, backup: &Backup, known: &Restoring, incarnation: u32, revoked: &[DeviceId]) {
        for id in revoked {
            let Some(DeviceRecord { standing: Standing::Revoked { unix_seconds, reason }, .. }) =
                self.devices.get(id)
            else {
                continue;
            };
            let subject = id.to_string();
            let is_entered = self.audit.iter().any(|e| e.action == "revoke" && e.subject == subject);
            if !is_entered {
                let (unix_seconds, detail) = (*unix_seconds, reason.clone());
                self.enter(unix_seconds, "revoke", subject, detail);
            }
        }
        let mut detail = format!(
            "from a backup of {}; incarnation {} becomes {incarnation}; {} revoked again",
            backup.taken_unix_seconds,
            backup.incarnation,
            revoked.len()
        );
        for Window { from_unix_seconds, to_unix_seconds } in &known.uncertain {
            detail.push_str(&format!("; revocations unknown from {from_unix_seconds} to {to_unix_seconds}"));
        }
        self.enter(known.unix_seconds, "restore", "coordinator".into(), detail);
    }

    /// Enters what the restore itself does.
    fn enter(&mut self, unix_seconds: u64, action: &str, subject: String, detail: String) {
        let who = Actor::Coordinator.to_string();
        self.enter_deed(Deed { unix_seconds, who, action: action.into(), subject, detail });
    }

    fn enter_deed(&mut self, deed: Deed) {
        let entry = AuditRecord::following(self.audit_head, deed);
        self.audit_head = entry.head();
        self.audit.push(entry);
    }

    fn writes(&self, backup: &Backup, known: &Restoring, incarnation: u32) -> Vec<Write> {
        let meta = MetaRecord {
            incarnation,
            restored: Some(Restored {
                backup_unix_seconds: backup.taken_unix_seconds,
                unix_seconds: known.unix_seconds,
                former_incarnation: backup.incarnation,
            }),
            superseded: None,
            crl_number: backup.crl_number,
            audit: self.audit_head,
        };
        let mut writes = vec![meta.put()];
        writes.extend(self.devices.values().map(Record::put));
        for group in &backup.groups {
            let mut group = group.clone();
            // Its keys are gone, and with them what was under way; the first start issues the next one.
            group.rotation = None;
            group.deadlines.retain(|deadline| deadline.outcome != Outcome::Open);
            writes.push(group.put());
        }
        for Membership { group, device } in self.memberships.iter().copied() {
            let member = MemberRecord {
                group,
                device,
                place: Place::Wanted,
                admitted: KeyEpoch::default(),
                confirmed: KeyEpoch::default(),
                acknowledged: [0; 8],
                confirmed_unix_seconds: 0,
            };
            writes.push(member.put());
        }
        writes.extend(self.audit.iter().map(Record::put));
        writes.extend(backup.issued.iter().map(Record::put));
        let is_of_device = |known: &&CertificateRecord| self.devices.contains_key(&known.device);
        writes.extend(self.certificates.values().filter(is_of_device).map(Record::put));
        writes
    }
}
