//! The doctor finds nothing in a sound store, whatever has happened to the fleet, and each damage by its name.

use fleetkey_coordinator_core::doctor::{About, Finding, Kind, Severity, examine};
use fleetkey_coordinator_core::records::{
    AuditRecord, CellRecord, CommitRecord, Deed, GroupRecord, IssuedRecord, KeyPackageRecord, KeyRecord,
    MetaRecord, OutboxRecord, Outgoing, Record, WelcomeRecord,
};
use fleetkey_coordinator_core::{
    DeviceRecord, MemberRecord, MemoryStore, Place, Policy, Restored, Standing, Store as _, Superseded,
    Table, Write,
};
use fleetkey_tests::{Weather, World};
use fleetkey_wire::{CellEpoch, DeviceId, GroupId, KeyEpoch};

fn look(world: &mut World) -> Vec<Finding> {
    let about = About { fleet: world.fleet, coordinator: world.coordinator_public_key() };
    examine(&mut world.store, &about, world.now.unix_seconds).expect("memory does not fail")
}

fn records<R: Record>(store: &mut MemoryStore) -> Vec<R> {
    let rows = store.rows(R::TABLE).expect("memory does not fail");
    rows.iter().map(|row| R::read(row).expect("it was written by this build")).collect()
}

fn first<R: Record>(world: &mut World) -> R {
    records(&mut world.store).swap_remove(0)
}

fn put(world: &mut World, record: &impl Record) {
    world.store.commit(&[record.put()]).expect("memory does not fail");
}

fn delete(world: &mut World, record: &impl Record) {
    world.store.commit(&[record.delete()]).expect("memory does not fail");
}

/// A fleet with all that a store can hold: two groups, a rotation under way, a Welcome on its way, stock.
fn fleet() -> (World, Vec<DeviceId>, GroupId) {
    let mut world = World::new(200);
    let devices = world.enroll(14);
    let policy = Policy { cell_capacity: 8, ..Policy::default() };
    let group = world.group("meters", policy, &devices[..12]);
    world.group("pumps", Policy::default(), &devices[..3]);
    world.coordinator.rotate(group, world.now, &mut world.rng).expect("none is under way");
    world.perform();
    world.wire.clear();
    (world, devices, group)
}

#[test]
fn a_sound_store_has_nothing_wrong_whatever_happens_to_the_fleet() {
    let (mut world, devices, group) = fleet();
    assert_eq!(look(&mut world), vec![]);
    world.weather = Weather { lost_percent: 20, doubled_percent: 10, overtaken_by: 3 };
    let late = world.enroll(6);
    world.add(group, &late);
    assert_eq!(look(&mut world), vec![]);
    world.revoke(&devices[4..6]);
    assert_eq!(look(&mut world), vec![]);
    world.wipe(devices[0]);
    world.run_for(20_000);
    assert_eq!(look(&mut world), vec![]);
    world.coordinator.evict(group, &devices[6..8], world.now, &mut world.rng).expect("they are members");
    world.perform();
    world.restart_coordinator();
    assert_eq!(look(&mut world), vec![]);
    for _ in 0..8 {
        world.run_for(24 * 3_600_000);
        assert_eq!(look(&mut world), vec![], "in rotation and renewal");
    }
}

#[test]
fn each_damage_is_found_by_its_name() {
    for kind in Kind::ALL {
        let (mut world, devices, group) = fleet();
        plant(kind, &mut world, &devices, group);
        let found = look(&mut world);
        assert!(found.iter().any(|found| found.kind == kind), "{kind:?} was planted, and found: {found:#?}");
        let severities: Vec<Severity> = found.iter().map(Finding::severity).collect();
        assert!(severities.is_sorted(), "{severities:?}");
        for found in found {
            assert!(!found.subject.is_empty() && !found.detail.is_empty(), "{found:?}");
            assert!(!found.kind.meaning().is_empty() && !found.kind.remedy().is_empty());
        }
    }
}

/// The gravest finding is on top, and what follows from it below.
#[test]
fn a_forged_secret_is_no_more_than_what_it_is() {
    let (mut world, ..) = fleet();
    let mut key: KeyRecord = first(&mut world);
    key.secret[0] ^= 1;
    put(&mut world, &key);
    let found = look(&mut world);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].kind, Kind::WrongCommitment);
    assert!(found[0].to_string().contains(&key.key_epoch.to_string()), "{}", found[0]);
}

fn group_of(world: &mut World, id: GroupId) -> GroupRecord {
    records::<GroupRecord>(&mut world.store).into_iter().find(|group| group.id == id).expect("there")
}

fn member_of(world: &mut World, group: GroupId) -> MemberRecord {
    let members = records::<MemberRecord>(&mut world.store);
    members.into_iter().find(|member| member.group == group).expect("it has members")
}

fn key_of(world: &mut World, group: GroupId) -> KeyRecord {
    let keys = records::<KeyRecord>(&mut world.store);
    keys.into_iter().find(|key| key.group == group).expect("it has a key")
}

fn revoke(world: &mut World, id: DeviceId) {
    let devices = records::<DeviceRecord>(&mut world.store);
    let mut device = devices.into_iter().find(|device| device.id == id).expect("enrolled");
    device.standing = Standing::Revoked { unix_seconds: 1, reason: "planted".into() };
    put(world, &device);
}

fn plant(kind: Kind, world: &mut World, devices: &[DeviceId], group: GroupId) {
    match kind {
        Kind::UnreadableRow => {
            let row = Write { table: Table::Device, key: vec![1], value: Some(vec![9, 9].into()) };
            world.store.commit(&[row]).expect("memory does not fail");
        }
        Kind::MetaMissing => delete(world, &MetaRecord::new(0)),
        Kind::OrphanedRow => {
            let commit: CommitRecord = first(world);
            put(world, &CommitRecord { cell: fleetkey_wire::CellId::from_bytes([7; 16]), ..commit });
        }
        Kind::NameTwice => {
            let mut twins = records::<DeviceRecord>(&mut world.store);
            twins[0].name = twins[1].name.clone();
            put(world, &twins[0]);
        }
        Kind::GroupWithoutKey => {
            for key in records::<KeyRecord>(&mut world.store) {
                delete(world, &key);
            }
        }
        Kind::BadStatement => {
            let mut key = key_of(world, group);
            let last = key.statement.len() - 1;
            key.statement[last] ^= 1;
            put(world, &key);
        }
        Kind::WrongCommitment => {
            let mut key = key_of(world, group);
            key.secret[31] ^= 1;
            put(world, &key);
        }
        Kind::KeysDisagree => {
            let record = group_of(world, group);
            put(world, &GroupRecord { send: record.last_issued, ..record });
        }
        Kind::ForeignIncarnation => put(world, &MetaRecord::new(1)),
        Kind::NotIssued | Kind::TwoCommitments => {
            let key = key_of(world, group);
            let issued = records::<IssuedRecord>(&mut world.store);
            let of_key = |issued: &IssuedRecord| (issued.group, issued.key_epoch) == (group, key.key_epoch);
            let mut issued = issued.into_iter().find(of_key).expect("it was issued");
            if kind == Kind::NotIssued {
                return delete(world, &issued);
            }
            issued.commitment[0] ^= 1;
            put(world, &issued);
        }
        Kind::BrokenCell => {
            let mut cell: CellRecord = first(world);
            let middle = cell.snapshot.len() / 2;
            cell.snapshot[middle] ^= 1;
            put(world, &cell);
        }
        Kind::MemberWithoutLeaf => {
            let in_group = records::<MemberRecord>(&mut world.store).into_iter().map(|m| m.device);
            let in_group: Vec<_> = in_group.collect();
            let cell: CellRecord = records::<CellRecord>(&mut world.store)
                .into_iter()
                .find(|c| c.group == group)
                .expect("there");
            let device = *devices.iter().find(|device| !in_group.contains(device)).expect("two are in none");
            let member = member_of(world, group);
            put(world, &MemberRecord { device, place: Place::In { cell: cell.id }, ..member });
        }
        Kind::LeafWithoutMember => {
            let member = member_of(world, group);
            delete(world, &member);
        }
        Kind::WrongLeafKey => {
            let member = member_of(world, group);
            let devices = records::<DeviceRecord>(&mut world.store);
            let mut device = devices.into_iter().find(|d| d.id == member.device).expect("enrolled");
            device.public_key[5] ^= 1;
            put(world, &device);
        }
        Kind::RevokedPresent => {
            let member = member_of(world, group);
            revoke(world, member.device);
        }
        Kind::OverCapacity => {
            let mut record = group_of(world, group);
            record.policy.cell_capacity = 3;
            put(world, &record);
        }
        Kind::CommitGap => {
            let commits = records::<CommitRecord>(&mut world.store);
            let last = commits.into_iter().max_by_key(|commit| (commit.cell, commit.epoch)).expect("there");
            delete(world, &last);
        }
        Kind::StrayWelcome => {
            let cell: CellRecord = first(world);
            let (device, epoch) = (devices[13], CellEpoch(1));
            put(world, &WelcomeRecord { cell: cell.id, device, epoch, welcome: vec![1] });
        }
        Kind::ConfirmedUnissued => {
            let member = member_of(world, group);
            put(world, &MemberRecord { confirmed: KeyEpoch(u64::MAX), ..member });
        }
        Kind::BadOutbox => {
            let cell: CellRecord = first(world);
            let outgoing = Outgoing::Cell { cell: cell.id, frame: vec![0; 40] };
            put(world, &OutboxRecord { number: 77, outgoing });
        }
        Kind::Superseded => {
            let meta: MetaRecord = first(world);
            let key_epoch = KeyEpoch::new(meta.incarnation, 99);
            let superseded = Some(Superseded { unix_seconds: 1, device: devices[0], group, key_epoch });
            put(world, &MetaRecord { superseded, ..meta });
        }
        Kind::Quarantined => {
            let device: DeviceRecord = first(world);
            put(world, &DeviceRecord { standing: Standing::Quarantined { unix_seconds: 1 }, ..device });
        }
        Kind::FutureStamp => {
            let unix_seconds = world.now.unix_seconds + 3_600;
            let (who, action, subject, detail) = Default::default();
            let head = first::<MetaRecord>(world).audit;
            put(world, &AuditRecord::following(head, Deed { unix_seconds, who, action, subject, detail }));
        }
        Kind::AuditBroken => {
            let entry: AuditRecord = first(world);
            put(world, &AuditRecord { who: "somebody else".into(), ..entry });
        }
        Kind::PskNotInstalled => {
            let record = group_of(world, group);
            put(world, &GroupRecord { psk: Some(fleetkey_wire::PskId::from_bytes([7; 16])), ..record });
        }
        Kind::Restored => {
            let meta: MetaRecord = first(world);
            let restored = Restored { backup_unix_seconds: 1, unix_seconds: 2, former_incarnation: 3 };
            put(world, &MetaRecord { restored: Some(restored), ..meta });
        }
    }
}

#[test]
fn whatever_is_left_of_a_revoked_device_is_found() {
    let (mut world, devices, _) = fleet();
    let id = devices[13];
    let stock = records::<KeyPackageRecord>(&mut world.store);
    let stock = stock.iter().filter(|stock| stock.device == id).count();
    assert!(stock > 0, "it is in no group, and has key packages for the first one");
    assert_eq!(look(&mut world), vec![]);
    revoke(&mut world, id);
    let found = look(&mut world);
    assert_eq!(found.len(), stock, "{found:#?}");
    assert!(found.iter().all(|found| found.kind == Kind::RevokedPresent), "{found:#?}");
}

#[test]
fn a_tree_that_is_not_the_rosters_is_found() {
    let (mut world, _, group) = fleet();
    let cells: Vec<CellRecord> =
        records::<CellRecord>(&mut world.store).into_iter().filter(|cell| cell.group == group).collect();
    // One cell's state under another's name.
    let swapped = CellRecord { id: cells[0].id, snapshot: cells[1].snapshot.clone(), ..cells[0].clone() };
    put(&mut world, &swapped);
    let found = look(&mut world);
    assert!(found.iter().any(|found| found.kind == Kind::BrokenCell), "{found:#?}");
    assert!(found.iter().any(|found| found.kind == Kind::MemberWithoutLeaf), "{found:#?}");
}
