//! Examines what is stored against the rules that must always hold, and names what is wrong.
//!
//! Reads any [`Store`], changes nothing, and needs no secret but what is in the store. Between two transactions of a
//! sound coordinator it finds nothing broken, whatever crashed. Leaves mending to the operator: see
//! [`Kind::remedy`].

mod cells;
mod finding;
mod keys;
mod tables;

use std::collections::BTreeMap;

use fleetkey_wire::FleetId;

use self::tables::Tables;
use crate::audit::Verifier;
use crate::records::Standing;
use crate::store::{Store, StoreError};

pub use self::finding::{Finding, Kind, Severity};

/// Clocks that differ by less are not worth a word.
const CLOCK_SLACK_SECONDS: u64 = 120;

/// Whose store it is.
#[derive(Debug, Clone, Copy)]
pub struct About {
    /// The fleet.
    pub fleet: FleetId,
    /// The Ed25519 key that all coordinators of the fleet sign with.
    pub coordinator: [u8; 32],
}

/// Everything that is wrong with a store, or worth knowing of it, gravest first.
///
/// # Errors
/// When the store itself fails; a row that cannot be read is a finding.
pub fn examine(store: &mut dyn Store, about: &About, unix_seconds: u64) -> Result<Vec<Finding>, StoreError> {
    let mut found = Examination::default();
    let tables = Tables::read(store, &mut found)?;
    whole(&tables, unix_seconds, &mut found);
    belonging(&tables, &mut found);
    names(&tables, &mut found);
    psks(&tables, &mut found);
    keys::examine(&tables, about, &mut found);
    cells::examine(&tables, about, &mut found);
    key_packages(&tables, &mut found);
    audit(&tables, &mut found);
    stamps(&tables, unix_seconds, &mut found);
    found.0.sort_by(|a, b| (a.severity(), a).cmp(&(b.severity(), b)));
    Ok(found.0)
}

/// What was found so far.
#[derive(Debug, Default)]
struct Examination(Vec<Finding>);

impl Examination {
    fn note(&mut self, kind: Kind, subject: String, detail: String) {
        self.0.push(Finding { kind, subject, detail });
    }
}

/// What holds for the whole, and devices that an operator has to look at.
fn whole(tables: &Tables, now: u64, found: &mut Examination) {
    let subject = || "coordinator".to_owned();
    let Some(meta) = tables.meta.first() else {
        return found.note(Kind::MetaMissing, subject(), "the database says nothing of itself".into());
    };
    if let Some(by) = meta.superseded {
        let why = format!(
            "{} device {} showed key epoch {} of group {}, which was never issued here",
            ago(by.unix_seconds, now),
            by.device,
            by.key_epoch,
            by.group
        );
        found.note(Kind::Superseded, subject(), why);
    }
    if let Some(restored) = meta.restored {
        let why = format!(
            "at {} from a backup of {}; incarnation {} became {}",
            restored.unix_seconds,
            restored.backup_unix_seconds,
            restored.former_incarnation,
            meta.incarnation
        );
        found.note(Kind::Restored, subject(), why);
    }
    for device in tables.devices.values() {
        if let Standing::Quarantined { unix_seconds } = device.standing {
            let subject = format!("device {} ({})", device.name, device.id);
            found.note(Kind::Quarantined, subject, ago(unix_seconds, now));
        }
    }
}

/// Every row belongs to something that is there.
fn belonging(tables: &Tables, found: &mut Examination) {
    let Tables { devices, groups, keys, members, cells, commits, welcomes, key_packages, issued, .. } =
        tables;
    let mut lost = |what: &str, of: &dyn std::fmt::Display| {
        found.note(Kind::OrphanedRow, format!("{what} of {of}"), "which is not there".into());
    };
    for group in keys.keys().filter(|group| !groups.contains_key(group)) {
        lost("keys", &format!("group {group}"));
    }
    for (group, key_epoch) in issued.keys().filter(|(group, _)| !groups.contains_key(group)) {
        lost(&format!("issued key epoch {key_epoch}"), &format!("group {group}"));
    }
    for cell in cells.values().filter(|cell| !groups.contains_key(&cell.group)) {
        lost(&format!("cell {}", cell.id), &format!("group {}", cell.group));
    }
    for (group, device) in members.keys() {
        if !groups.contains_key(group) {
            lost(&format!("member {device}"), &format!("group {group}"));
        }
        if !devices.contains_key(device) {
            lost(&format!("a membership in {group}"), &format!("device {device}"));
        }
    }
    for cell in commits.keys().filter(|cell| !cells.contains_key(cell)) {
        lost("commits", &format!("cell {cell}"));
    }
    for welcome in welcomes.iter().filter(|welcome| !cells.contains_key(&welcome.cell)) {
        lost(&format!("the Welcome of {}", welcome.device), &format!("cell {}", welcome.cell));
    }
    for stock in key_packages.iter().filter(|stock| !devices.contains_key(&stock.device)) {
        lost("a key package", &format!("device {}", stock.device));
    }
}

fn names(tables: &Tables, found: &mut Examination) {
    let mut seen = BTreeMap::new();
    for device in tables.devices.values() {
        if let Some(other) = seen.insert(&device.name, device.id) {
            let why = format!("device {other} bears it too");
            found.note(Kind::NameTwice, format!("device {} ({})", device.name, device.id), why);
        }
    }
    let mut seen = BTreeMap::new();
    for group in tables.groups.values() {
        if let Some(other) = seen.insert(&group.name, group.id) {
            let why = format!("group {other} bears it too");
            found.note(Kind::NameTwice, format!("group {} ({})", group.name, group.id), why);
        }
    }
}

/// The pre-shared keys that groups ask for are there, and are those.
fn psks(tables: &Tables, found: &mut Examination) {
    for (id, psk) in &tables.psks {
        let subject = format!("the pre-shared key of group {id}");
        match tables.groups.get(id) {
            None => found.note(Kind::OrphanedRow, subject, "the group is not there".into()),
            Some(group) if group.psk != Some(psk.psk().id()) => {
                let why = format!("it is {}, and not the one that the group asks for", psk.psk().id());
                found.note(Kind::UnreadableRow, subject, why);
            }
            Some(_) => {}
        }
    }
    for group in tables.groups.values().filter(|group| !tables.psks.contains_key(&group.id)) {
        if let Some(psk) = group.psk {
            let subject = format!("group {} ({})", group.name, group.id);
            found.note(
                Kind::PskNotInstalled,
                subject,
                format!("it asks for {psk}, whose secret is not here"),
            );
        }
    }
}

fn key_packages(tables: &Tables, found: &mut Examination) {
    for stock in &tables.key_packages {
        let standing = tables.devices.get(&stock.device).map(|device| &device.standing);
        if matches!(standing, Some(Standing::Revoked { .. })) {
            let why = format!("key package {} is in stock", stock.number);
            found.note(Kind::RevokedPresent, format!("device {}", stock.device), why);
        }
    }
}

/// The audit log holds together, and comes as far as the database says.
fn audit(tables: &Tables, found: &mut Examination) {
    let mut verifier = Verifier::from_the_start();
    tables.audit.iter().for_each(|entry| verifier.take(entry));
    if let Err(fault) = verifier.finish(tables.meta.first().map(|meta| meta.audit)) {
        found.note(Kind::AuditBroken, "the audit log".to_owned(), fault.to_string());
    }
}

/// Nothing has happened yet that is still to come.
fn stamps(tables: &Tables, unix_seconds: u64, found: &mut Examination) {
    let latest = unix_seconds.saturating_add(CLOCK_SLACK_SECONDS);
    let groups = tables.groups.values().flat_map(|group| {
        let subject = move |what| format!("the {what} of group {} ({})", group.name, group.id);
        [
            (subject("creation"), group.created_unix_seconds),
            (subject("last rekey"), group.last_rekey_unix_seconds),
        ]
    });
    let cells = tables
        .cells
        .values()
        .map(|cell| (format!("the last path of cell {}", cell.id), cell.last_path_unix_seconds));
    let devices = tables.devices.values().map(|device| {
        (format!("the enrolment of device {} ({})", device.name, device.id), device.enrolled_unix_seconds)
    });
    // One finding stands for all of the log.
    let audit = tables.audit.last().map(|entry| ("the audit log".to_owned(), entry.unix_seconds));
    for (subject, at) in groups.chain(cells).chain(devices).chain(audit).filter(|(_, at)| *at > latest) {
        found.note(Kind::FutureStamp, subject, format!("{} s from now", at - unix_seconds));
    }
}

/// How long ago something was, in the unit that people would name. A core knows no calendar.
fn ago(unix_seconds: u64, now: u64) -> String {
    let seconds = now.saturating_sub(unix_seconds);
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7_200 => format!("{} min ago", seconds / 60),
        7_200..172_800 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}
