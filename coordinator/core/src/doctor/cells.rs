//! The cells: whether each MLS group holds whom the records say, and what devices may still need of its past.

use std::collections::{BTreeMap, BTreeSet};

use fleetkey_mls::ManagedCell;
use fleetkey_wire::{CellFrame, CellId, DeviceId};

use super::finding::Kind;
use super::tables::Tables;
use super::{About, Examination};
use crate::records::{CellRecord, CommitRecord, Outgoing, Place, Standing};

pub(super) fn examine(tables: &Tables, about: &About, found: &mut Examination) {
    let mut loaded = BTreeMap::new();
    for (id, record) in &tables.cells {
        match ManagedCell::restore(&record.snapshot) {
            Ok(cell) => {
                one(tables, about, record, &cell, found);
                loaded.insert(*id, cell);
            }
            Err(error) => found.note(Kind::BrokenCell, format!("cell {id}"), error.to_string()),
        }
    }
    members(tables, &loaded, found);
    welcomes(tables, &loaded, found);
    outbox(tables, &loaded, found);
}

fn one(tables: &Tables, about: &About, record: &CellRecord, cell: &ManagedCell, found: &mut Examination) {
    let id = record.id;
    let subject = || format!("cell {id}");
    let context = cell.context();
    if (context.fleet, context.group, context.cell) != (about.fleet, record.group, id) {
        let why = format!("its MLS group is cell {} of group {}", context.cell, context.group);
        found.note(Kind::BrokenCell, subject(), why);
    }
    if let Err(error) = cell.inspect() {
        found.note(Kind::BrokenCell, subject(), error.to_string());
    }
    if let Some(group) = tables.groups.get(&record.group)
        && cell.len() > usize::from(group.policy.cell_capacity)
    {
        let why = format!("{} devices, of {} allowed", cell.len(), group.policy.cell_capacity);
        found.note(Kind::OverCapacity, subject(), why);
    }
    for device in cell.members() {
        leaf(tables, record, cell, device, found);
    }
    let none = Vec::new();
    commits(record, cell, tables.commits.get(&id).unwrap_or(&none), found);
}

fn leaf(tables: &Tables, record: &CellRecord, cell: &ManagedCell, id: DeviceId, found: &mut Examination) {
    let subject = || format!("device {id} in cell {}", record.id);
    let Some(device) = tables.devices.get(&id) else {
        return found.note(Kind::LeafWithoutMember, subject(), "no such device is enrolled".into());
    };
    match &device.standing {
        Standing::Enrolled | Standing::Quarantined { .. } => {}
        Standing::Revoked { .. } => found.note(Kind::RevokedPresent, subject(), "it has a leaf".into()),
    }
    if cell.signature_key_of(id) != Some(device.public_key) {
        found.note(Kind::WrongLeafKey, subject(), "its leaf has another key than it enrolled with".into());
    }
    let place = tables.members.get(&(record.group, id)).map(|member| member.place);
    if place != Some(Place::In { cell: record.id }) {
        let why = match place {
            None => "it is no member of the group".to_owned(),
            Some(Place::Wanted) => "it is only wanted".to_owned(),
            Some(Place::In { cell }) => format!("it is a member through cell {cell}"),
        };
        found.note(Kind::LeafWithoutMember, subject(), why);
    }
}

/// The commits that are kept end at the cell's epoch, and have no gap.
fn commits(record: &CellRecord, cell: &ManagedCell, kept: &[CommitRecord], found: &mut Examination) {
    let subject = || format!("cell {}", record.id);
    let end = cell.epoch().0;
    let count = u64::try_from(kept.len()).unwrap_or(u64::MAX);
    let epochs: Vec<u64> = kept.iter().map(|commit| commit.epoch.0).collect();
    let expected: Vec<u64> = (end.saturating_sub(count)..end).collect();
    if epochs != expected || (kept.is_empty() && end > 0) {
        let why = format!("at epoch {end}, with the commits of {epochs:?}");
        found.note(Kind::CommitGap, subject(), why);
    }
    for commit in kept {
        let is_its = CellFrame::decode(&commit.frame)
            .is_ok_and(|frame| frame.cell_epoch == commit.epoch && frame.commit.is_some());
        if !is_its {
            let why = format!("what is kept for epoch {} is not its commit", commit.epoch);
            found.note(Kind::CommitGap, subject(), why);
        }
    }
}

fn members(tables: &Tables, cells: &BTreeMap<CellId, ManagedCell>, found: &mut Examination) {
    for ((group, device), member) in &tables.members {
        let subject = || format!("device {device} in group {group}");
        let standing = tables.devices.get(device).map(|device| &device.standing);
        if matches!(standing, Some(Standing::Revoked { .. })) {
            found.note(Kind::RevokedPresent, subject(), "it is a member, or wanted".into());
        }
        let last_issued = tables.groups.get(group).map(|group| group.last_issued);
        let newest = last_issued.unwrap_or_default();
        if member.confirmed > newest || member.admitted > newest {
            let why = format!("confirmed {}, admitted {}", member.confirmed, member.admitted);
            found.note(Kind::ConfirmedUnissued, subject(), why);
        }
        match member.place {
            Place::Wanted => {}
            Place::In { cell } if tables.cells.contains_key(&cell) => {
                if cells.get(&cell).is_some_and(|cell| !cell.contains(*device)) {
                    let why = format!("it has no leaf in cell {cell}");
                    found.note(Kind::MemberWithoutLeaf, subject(), why);
                }
            }
            Place::In { cell } => {
                found.note(Kind::MemberWithoutLeaf, subject(), format!("there is no cell {cell}"));
            }
        }
    }
}

fn welcomes(tables: &Tables, cells: &BTreeMap<CellId, ManagedCell>, found: &mut Examination) {
    for welcome in &tables.welcomes {
        let Some(cell) = cells.get(&welcome.cell) else { continue };
        let subject = format!("device {} in cell {}", welcome.device, welcome.cell);
        if !cell.contains(welcome.device) {
            found.note(Kind::StrayWelcome, subject, "it has no leaf there".into());
        } else if welcome.epoch > cell.epoch() {
            let why = format!("it leads to epoch {}, the cell is at {}", welcome.epoch, cell.epoch());
            found.note(Kind::StrayWelcome, subject, why);
        }
    }
}

fn outbox(tables: &Tables, cells: &BTreeMap<CellId, ManagedCell>, found: &mut Examination) {
    let mut unknown = BTreeSet::new();
    for row in &tables.outbox {
        match &row.outgoing {
            Outgoing::Cell { cell, frame } => {
                let subject = format!("row {} of the outbox, for cell {cell}", row.number);
                match CellFrame::decode(frame) {
                    Err(error) => found.note(Kind::BadOutbox, subject, error.to_string()),
                    // The cell may be gone already: whoever was in it has left.
                    Ok(frame) => {
                        if let Some(at) = cells.get(cell).map(ManagedCell::epoch)
                            && frame.cell_epoch > at
                        {
                            let why = format!("it is for epoch {}, the cell is at {at}", frame.cell_epoch);
                            found.note(Kind::BadOutbox, subject, why);
                        }
                    }
                }
            }
            Outgoing::Device { device } => {
                if !tables.devices.contains_key(device) && unknown.insert(*device) {
                    let subject = format!("row {} of the outbox", row.number);
                    let why = format!("it is for device {device}, which is not enrolled");
                    found.note(Kind::BadOutbox, subject, why);
                }
            }
        }
    }
}
