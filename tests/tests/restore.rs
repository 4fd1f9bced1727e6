//! A coordinator from a backup: nothing is issued twice, everybody comes back, and nobody who was revoked.

use fleetkey_coordinator_core::backup::{BACKUP_VERSION, Backup, BadBackup};
use fleetkey_coordinator_core::doctor::{About, Kind, Severity, examine};
use fleetkey_coordinator_core::records::{
    AuditRecord, CellRecord, GroupRecord, IssuedRecord, KeyRecord, MetaRecord, Record,
};
use fleetkey_coordinator_core::restore::{
    RestoredRows, Restoring, Revocation, Window, backup_in_place, restored_in_place,
};
use fleetkey_coordinator_core::{
    MemoryStore, Place, Policy, Row, Standing, Store as _, Superseded, Table, Write,
};
use fleetkey_tests::World;
use fleetkey_wire::{DeviceId, GroupId, KeyEpoch};

const SMALL: Policy = Policy { cell_capacity: 8, ..DEFAULT };
const DEFAULT: Policy = Policy {
    cell_capacity: 64,
    suite: fleetkey_wire::Suite::ChaCha20Poly1305,
    rekey_window_milliseconds: 1_000,
    overlap_seconds: 30,
    rotation_interval_seconds: 0,
    rotation_deadline_seconds: 3_600,
    rotation_threshold_percent: 99,
    cell_max_age_seconds: 7 * 24 * 3_600,
    on_join: fleetkey_coordinator_core::OnJoin::Rekey,
};

fn records<R: Record>(store: &mut MemoryStore) -> Vec<R> {
    let rows = store.rows(R::TABLE).expect("memory does not fail");
    rows.iter().map(|row| R::read(row).expect("it was written by this build")).collect()
}

fn backup(world: &mut World) -> Backup {
    Backup::of_store(&mut world.store, world.now.unix_seconds).expect("a sound store")
}

/// Replaces the coordinator by one from these rows. Nobody is told: the devices' connections stay.
fn replace(world: &mut World, restored: &RestoredRows) {
    world.store = MemoryStore::default();
    world.store.commit(&restored.writes).expect("memory does not fail");
    world.wire.clear();
    world.restart_coordinator();
}

/// The broker is back, or the devices' timers run out: they say hello.
fn reconnect(world: &mut World) {
    for device in world.peers.keys().copied().collect::<Vec<_>>() {
        world.disconnect(device);
        world.connect(device);
    }
    world.run_for(60_000);
}

fn now(world: &World) -> Restoring {
    Restoring { unix_seconds: world.now.unix_seconds, ..Restoring::default() }
}

fn incarnation(world: &mut World) -> u32 {
    records::<MetaRecord>(&mut world.store)[0].incarnation
}

#[track_caller]
fn assert_sound(world: &mut World) {
    let about = About { fleet: world.fleet, coordinator: world.coordinator_public_key() };
    let found = examine(&mut world.store, &about, world.now.unix_seconds).expect("memory does not fail");
    let broken: Vec<_> = found.iter().filter(|found| found.severity() == Severity::Broken).collect();
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(found.iter().any(|found| found.kind == Kind::Restored), "{found:?}");
}

fn issued(world: &mut World, group: GroupId) -> Vec<(KeyEpoch, [u8; 32])> {
    let issued = records::<IssuedRecord>(&mut world.store);
    issued.into_iter().filter(|i| i.group == group).map(|i| (i.key_epoch, i.commitment)).collect()
}

#[test]
fn every_member_comes_back_to_keys_beyond_all_that_were_ever_issued() {
    let mut world = World::new(100);
    let devices = world.enroll(20);
    let group = world.group("meters", SMALL, &devices);
    let backup = backup(&mut world);
    for _ in 0..3 {
        world.coordinator.rekey(group, world.now, &mut world.rng).expect("it can be rekeyed");
        world.perform();
        world.run_for(1_000);
    }
    let before = issued(&mut world, group);
    let newest = before.last().expect("some were issued").0;

    // Within one minute: the calendar alone would not do.
    let restored = backup.restored_rows(&now(&world));
    assert_eq!((restored.wanted, restored.moved), (20, 0));
    replace(&mut world, &restored);
    reconnect(&mut world);

    world.assert_current(group);
    assert_sound(&mut world);
    let status = world.coordinator.group_status(group, world.now).expect("there");
    assert_eq!((status.members, status.confirmed), (20, 20));
    let after: Vec<_> = issued(&mut world, group)
        .into_iter()
        .filter(|(epoch, _)| !backup.issued.iter().any(|i| i.key_epoch == *epoch))
        .collect();
    assert!(after.iter().all(|(key_epoch, _)| *key_epoch > newest), "{after:?} after {newest}");
    assert_eq!(incarnation(&mut world), restored.incarnation);
    assert!(world.peers.values().all(|peer| peer.agent.status(world.now).alarms.is_empty()));
}

#[test]
fn a_backup_holds_no_secret_and_no_cell() {
    let mut world = World::new(101);
    let devices = world.enroll(5);
    world.group("meters", SMALL, &devices);
    let encoded = backup(&mut world).encode();
    let holds = |needle: &[u8]| encoded.windows(needle.len()).any(|window| window == needle);
    for key in records::<KeyRecord>(&mut world.store) {
        assert!(!holds(&key.secret));
        assert!(!holds(&key.statement));
    }
    for cell in records::<CellRecord>(&mut world.store) {
        assert!(!holds(&cell.snapshot[60..92]));
        assert!(!holds(cell.id.as_bytes()));
    }
    assert!(holds(devices[0].as_bytes()), "or this test would prove nothing");
}

#[test]
fn a_backup_reads_back_and_another_version_is_refused_by_name() {
    let mut world = World::new(102);
    let devices = world.enroll(5);
    world.group("meters", SMALL, &devices);
    let backup = backup(&mut world);
    let mut encoded = backup.encode();
    assert_eq!(Backup::decode(&encoded), Ok(backup));
    assert!(matches!(Backup::decode(&encoded[..encoded.len() - 1]), Err(BadBackup::Unreadable(_))));
    assert!(matches!(Backup::decode(&[]), Err(BadBackup::Unreadable(_))));
    encoded[0] = BACKUP_VERSION + 1;
    assert_eq!(Backup::decode(&encoded), Err(BadBackup::OtherVersion { got: BACKUP_VERSION + 1 }));
}

#[test]
fn a_device_revoked_after_the_backup_stays_out_when_the_audit_log_tells() {
    let mut world = World::new(103);
    let devices = world.enroll(10);
    let group = world.group("meters", SMALL, &devices);
    let backup = backup(&mut world);
    world.run_for(5_000);
    world.revoke(&devices[2..3]);
    let audit: Vec<AuditRecord> = records(&mut world.store);

    let restored = backup.restored_rows(&Restoring { audit, ..now(&world) });
    assert_eq!(restored.revoked, devices[2..3]);
    replace(&mut world, &restored);
    reconnect(&mut world);

    world.assert_current(group);
    assert_sound(&mut world);
    assert!(world.coordinator.members(group).all(|member| member.device != devices[2]));
    let revoked = world.coordinator.device(devices[2]).expect("it is remembered");
    assert!(matches!(&revoked.standing, Standing::Revoked { reason, .. } if reason == "test"));
    assert!(
        world
            .coordinator
            .access()
            .iter()
            .any(|access| { *access == fleetkey_coordinator_core::Access::Revoked { device: devices[2] } })
    );
}

#[test]
fn a_device_enrolled_and_revoked_after_the_backup_cannot_be_enrolled_again() {
    let mut world = World::new(104);
    let backup = backup(&mut world);
    world.run_for(2_000);
    let devices = world.enroll(2);
    world.revoke(&devices[..1]);
    let audit: Vec<AuditRecord> = records(&mut world.store);
    let key = world.coordinator.device(devices[0]).expect("enrolled").public_key;

    let restored = backup.restored_rows(&Restoring { audit, ..now(&world) });
    assert_eq!(restored.revoked, devices[..1]);
    assert_eq!(restored.unknown, vec![(devices[1], "device-1".to_owned())]);
    replace(&mut world, &restored);
    assert_sound(&mut world);
    let again = world.coordinator.enroll_device(devices[0], "again", key, world.now);
    assert!(again.is_err(), "{again:?}");
    reconnect(&mut world);
    let strangers: Vec<DeviceId> =
        world.coordinator.strangers().into_iter().map(|stranger| stranger.device).collect();
    assert_eq!(strangers, devices[1..], "the one that is not revoked can be adopted");
}

#[test]
fn moves_after_the_backup_are_made_again_in_their_order() {
    let mut world = World::new(105);
    let devices = world.enroll(6);
    let group = world.group("meters", SMALL, &devices[..4]);
    let backup = backup(&mut world);
    world.run_for(2_000);
    world.coordinator.evict(group, &devices[..2], world.now, &mut world.rng).expect("they are members");
    world.perform();
    world.run_for(2_000);
    world.add(group, &[devices[1], devices[5]]);
    let mut expected: Vec<DeviceId> = world.coordinator.members(group).map(|member| member.device).collect();
    expected.sort_unstable();

    let audit: Vec<AuditRecord> = records(&mut world.store);
    let restored = backup.restored_rows(&Restoring { audit, ..now(&world) });
    replace(&mut world, &restored);
    let mut wanted: Vec<DeviceId> = world.coordinator.members(group).map(|member| member.device).collect();
    wanted.sort_unstable();
    assert_eq!(wanted, expected);
    assert!(world.coordinator.members(group).all(|member| member.place == Place::Wanted));
    reconnect(&mut world);
    world.assert_current(group);
    assert_sound(&mut world);
}

#[test]
fn the_incarnation_lies_beyond_the_stored_one_the_calendar_and_the_floor() {
    let mut world = World::new(106);
    let backup = backup(&mut world);
    let next = |unix_seconds, incarnation_floor| {
        let known = Restoring { unix_seconds, incarnation_floor, ..Restoring::default() };
        backup.restored_rows(&known).incarnation
    };
    let stored = backup.incarnation;
    assert_eq!(next(0, 0), stored + 1, "a clock that is set back");
    assert_eq!(next(u64::from(stored + 9) * 60 + 59, 0), stored + 9);
    assert_eq!(next(0, stored + 77), stored + 77);

    let (device, group) = (DeviceId::from_bytes([1; 16]), GroupId::from_bytes([2; 16]));
    let shown = KeyEpoch::new(stored + 40, 3);
    let superseded = Some(Superseded { unix_seconds: 1, device, group, key_epoch: shown });
    let rolled_back = Backup { superseded, ..backup.clone() };
    let known = Restoring::default();
    assert_eq!(rolled_back.restored_rows(&known).incarnation, stored + 41, "what a device has shown");
}

#[test]
fn what_the_backup_holds_already_is_not_done_again() {
    let mut world = World::new(111);
    let devices = world.enroll(3);
    let group = world.group("meters", SMALL, &devices);
    world.coordinator.evict(group, &devices[..1], world.now, &mut world.rng).expect("they are members");
    world.perform();
    world.run_for(2_000);
    world.add(group, &devices[..1]);
    world.coordinator.rotate(group, world.now, &mut world.rng).expect("none is under way");
    world.perform();
    let backup = backup(&mut world);
    // A log that begins with the eviction and ends before the device was put in again.
    let audit: Vec<AuditRecord> =
        backup.audit.iter().filter(|entry| entry.action == "evict").cloned().collect();
    assert_eq!(audit.len(), 1);
    let restored = backup.restored_rows(&Restoring { audit, ..now(&world) });
    assert_eq!((restored.moved, restored.wanted), (0, 3));
    let mut store = MemoryStore::default();
    store.commit(&restored.writes).expect("memory does not fail");
    let groups: Vec<GroupRecord> = records(&mut store);
    assert_eq!(groups[0].rotation, None, "the key that was handed out is gone");
}

#[test]
fn a_superseded_coordinator_issues_again_once_it_is_restored_in_place() {
    let mut world = World::new(107);
    let devices = world.enroll(6);
    let group = world.group("meters", SMALL, &devices);
    // The disk goes back to what it was here, and the coordinator has issued since.
    let old = world.store.clone();
    world.run_for(30_000);
    world.coordinator.rekey(group, world.now, &mut world.rng).expect("it can be rekeyed");
    world.perform();
    world.run_for(2_000);
    let newest = issued(&mut world, group).last().expect("issued").0;
    world.store = old;
    world.restart_coordinator();
    world.coordinator.rekey(group, world.now, &mut world.rng).expect("it does not know yet");
    world.perform();
    reconnect(&mut world);
    assert!(world.coordinator.status(world.now).superseded);
    assert!(world.coordinator.rekey(group, world.now, &mut world.rng).is_err());
    let found = {
        let about = About { fleet: world.fleet, coordinator: world.coordinator_public_key() };
        examine(&mut world.store, &about, world.now.unix_seconds).expect("memory does not fail")
    };
    assert!(found.iter().any(|found| found.kind == Kind::Superseded), "{found:?}");

    let known = now(&world);
    let restored = restored_in_place(&mut world.store, &known).expect("a sound store");
    assert!(restored.incarnation > newest.incarnation());
    replace(&mut world, &restored);
    reconnect(&mut world);
    assert!(!world.coordinator.status(world.now).superseded);
    world.assert_current(group);
    assert_sound(&mut world);
    let status = world.coordinator.status(world.now);
    let by = status.restored.expect("it says so");
    assert_eq!(by.unix_seconds, restored_at(&mut world));
}

fn restored_at(world: &mut World) -> u64 {
    records::<MetaRecord>(&mut world.store)[0].restored.expect("it was restored").unix_seconds
}

#[test]
fn a_database_was_alive_until_the_last_thing_that_it_tells_of() {
    let mut world = World::new(108);
    let devices = world.enroll(3);
    world.group("meters", SMALL, &devices);
    let before = world.now.unix_seconds;
    world.run_for(600_000);
    let backup = backup_in_place(&mut world.store).expect("a sound store");
    assert!(backup.taken_unix_seconds <= before && backup.taken_unix_seconds + 60 > before);
}

#[test]
fn the_restore_is_in_the_audit_log_with_what_is_uncertain() {
    let mut world = World::new(109);
    let devices = world.enroll(2);
    let backup = backup(&mut world);
    let uncertain = vec![Window { from_unix_seconds: 11, to_unix_seconds: 22 }];
    let reason = "the CRL says so".to_owned();
    let revocations = vec![Revocation { device: devices[0], unix_seconds: 15, reason: reason.clone() }];
    let restored = backup.restored_rows(&Restoring { uncertain, revocations, ..now(&world) });
    replace(&mut world, &restored);

    let audit: Vec<AuditRecord> = records(&mut world.store);
    let entry = audit.iter().find(|entry| entry.action == "restore").expect("it is entered");
    assert!(entry.detail.contains("revocations unknown from 11 to 22"), "{}", entry.detail);
    let entry = audit.iter().find(|entry| entry.action == "revoke").expect("it is entered");
    assert_eq!((entry.subject.clone(), entry.detail.clone()), (devices[0].to_string(), reason));
    assert_eq!(audit.len(), backup.audit.len() + 2, "nothing is written over");
}

#[test]
fn one_backup_restored_twice_within_a_minute_issues_nothing_twice() {
    let mut world = World::new(110);
    let devices = world.enroll(4);
    let group = world.group("meters", SMALL, &devices);
    let backup = backup(&mut world);
    let restored = backup.restored_rows(&now(&world));
    replace(&mut world, &restored);
    reconnect(&mut world);
    let newest = issued(&mut world, group).last().expect("issued").0;

    // What the service does with `--replace`: the database that goes shows where to begin.
    let floor = incarnation(&mut world) + 1;
    let known = Restoring { incarnation_floor: floor, ..now(&world) };
    replace(&mut world, &backup.restored_rows(&known));
    assert!(issued(&mut world, group).last().expect("issued").0 > newest);
    reconnect(&mut world);
    world.assert_current(group);
    assert_sound(&mut world);
    assert!(!world.coordinator.status(world.now).superseded);
}

fn cells(world: &World) -> Vec<(DeviceId, Vec<fleetkey_wire::CellId>)> {
    let of =
        |peer: &fleetkey_tests::Peer| peer.agent.status(world.now).groups.iter().map(|of| of.cell).collect();
    world.peers.iter().map(|(id, peer)| (*id, of(peer))).collect()
}

#[test]
fn an_original_that_lives_on_beside_a_restored_one_stops_and_takes_no_device_back() {
    let mut world = World::new(120);
    let devices = world.enroll(6);
    let group = world.group("meters", SMALL, &devices);
    let original = world.store.clone();
    let restored = backup(&mut world).restored_rows(&now(&world));
    replace(&mut world, &restored);
    reconnect(&mut world);
    world.run_for(60_000);
    world.assert_current(group);
    let settled = cells(&world);

    world.store = original;
    world.restart_coordinator();
    reconnect(&mut world);
    world.run_for(60_000);
    assert!(world.coordinator.status(world.now).superseded, "devices of a later incarnation were heard");
    assert_eq!(cells(&world), settled, "none was put out of its cell, or let into another");

    // What would need a new key is refused, and said again when there is a coordinator for it.
    let issued_before = issued(&mut world, group);
    world.refused.clear();
    world.feed(devices[0], &fleetkey_agent_core::Input::Leave { group });
    world.run_for(10_000);
    let names: Vec<&str> = world.refused.iter().map(fleetkey_wire::Named::name).collect();
    assert_eq!(names, ["superseded"]);
    assert_eq!(issued(&mut world, group), issued_before, "a superseded coordinator issues nothing");
}

#[test]
fn a_statement_on_a_group_that_a_restore_has_lost_stops_nobody() {
    let mut world = World::new(121);
    let devices = world.enroll(3);
    let backup = backup(&mut world);
    world.group("lost", SMALL, &devices);
    let statement = records::<KeyRecord>(&mut world.store).pop().expect("it has a key").statement.clone();
    let restored = backup.restored_rows(&now(&world));
    replace(&mut world, &restored);
    let mut hand = fleetkey_tests::Hand::of(&mut world, devices[0]);
    hand.connect(&mut world);
    let hello = fleetkey_wire::Hello { generation: fleetkey_wire::Generation(1), cells: Vec::new() };
    hand.say(&mut world, &fleetkey_wire::UpBody::Hello(hello)).expect("it is heard");
    hand.say(&mut world, &fleetkey_wire::UpBody::Evidence { statement })
        .expect("it is genuine, and of before");
    assert!(!world.coordinator.status(world.now).superseded);
}

#[test]
fn a_database_from_before_issued_keys_were_written_down_is_not_taken_for_a_copy() {
    let mut world = World::new(122);
    let devices = world.enroll(6);
    let policy = Policy { rotation_threshold_percent: 50, overlap_seconds: 1, ..SMALL };
    let group = world.group("meters", policy, &devices);
    world.coordinator.rotate(group, world.now, &mut world.rng).expect("none is under way");
    world.perform();
    // Everybody has the next key and nobody has said so: the coordinator is updated just then.
    let up: Vec<_> = std::mem::take(&mut world.wire).into_iter().collect();
    for (topic, payload) in up {
        world.deliver(topic, &payload);
    }
    world.wire.clear();
    for device in &devices[3..] {
        world.disconnect(*device);
    }
    let rows = world.store.rows(Table::Issued).expect("memory does not fail");
    let forget = |row: &Row| Write { table: Table::Issued, key: row.key.clone(), value: None };
    world.store.commit(&rows.iter().map(forget).collect::<Vec<_>>()).expect("memory does not fail");
    world.restart_coordinator();
    world.run_for(30_000);
    for device in &devices[3..] {
        world.connect(*device);
    }
    world.run_for(60_000);
    assert!(!world.coordinator.status(world.now).superseded);
    world.assert_current(group);
}
