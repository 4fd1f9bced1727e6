//! What a cell is for: devices come, go, come again and renew their keys, and those inside agree.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeMap;

use common::{World, refused};
use fleetkey_mls::{Changes, MemberCell, Processed, Refused, welcome_key_package_ref};
use fleetkey_wire::Suite;

fn in_every_suite(test: impl Fn(Suite)) {
    Suite::ALL.into_iter().for_each(test);
}

#[test]
fn members_share_the_managers_keys() {
    in_every_suite(|suite| {
        let mut world = World::new(suite);
        for batch in [1, 3, 5] {
            let before = world.manager.kek();
            world.add(batch);
            assert_ne!(world.manager.kek(), before);
        }
        assert_eq!(world.manager.len(), 9);
    });
}

#[test]
fn removed_devices_do_not_reach_the_new_epoch() {
    in_every_suite(|suite| {
        let mut world = World::with(suite, 6);
        let gone = [world.ids()[1], world.ids()[4]];
        let mut recorded: Vec<_> = gone.iter().map(|id| world.cells[id].clone()).collect();

        let committed = world.remove(&gone);

        assert_eq!(world.manager.len(), 4);
        let next = world.commit(Changes { force_path: true, ..Changes::default() });
        for cell in &mut recorded {
            let keys = world.coordinator.public_key();
            assert_eq!(cell.process(&[], &committed.commit, &[keys], &[]), Ok(Processed::Removed));
            assert_ne!(cell.kek(), world.manager.kek());
            let why = refused(cell.process(&[], &next.commit, &[keys], &[]));
            assert_eq!(why, Refused::WrongEpoch { got: next.epoch_before, current: committed.epoch_before });
        }
    });
}

#[test]
fn a_device_joins_afresh_in_one_commit_under_the_same_key() {
    in_every_suite(|suite| {
        let mut world = World::with(suite, 4);
        let id = world.ids()[2];
        let old = world.cells[&id].clone();

        let committed = world.add_these(&[id], vec![id]);

        assert_eq!(world.manager.len(), 4);
        assert_eq!(committed.epoch, committed.epoch_before.next());
        assert_ne!(old.kek(), world.cells[&id].kek());
    });
}

#[test]
fn joins_removals_and_updates_go_together() {
    in_every_suite(|suite| {
        let mut world = World::with(suite, 8);
        let ids = world.ids();
        let updates = vec![(ids[1], world.update_of(ids[1])), (ids[2], world.update_of(ids[2]))];
        let late = world.enrol();
        let (add, private) = world.package(late);
        let (again, private_again) = world.package(ids[0]);

        let remove = vec![ids[0], ids[5]];
        let committed =
            world.commit(Changes { add: vec![add, again], remove, updates, ..Changes::default() });

        assert_eq!(committed.covered_updates.len(), 2);
        assert_eq!(committed.welcomes.len(), 2);
        world.deliver(&committed, &BTreeMap::from([(late, private), (ids[0], private_again)]));
        world.add(2);
        world.remove(&ids[1..3]);
    });
}

#[test]
fn an_update_renews_the_devices_keys() {
    let mut world = World::with(Suite::Aes128Gcm, 3);
    let id = world.ids()[0];
    let stolen = world.cells[&id].clone();
    let update = world.update_of(id);
    assert_eq!(world.manager.check_update(id, &update), Ok(()));

    let committed = world.commit(Changes { updates: vec![(id, update)], ..Changes::default() });
    world.deliver(&committed, &BTreeMap::new());

    // Who copied the device's state before cannot follow, for want of the new leaf's private key.
    let mut stolen = stolen;
    let keys = world.keys();
    refused(stolen.process(&committed.covered_updates, &committed.commit, &keys, &[]));
    assert_ne!(stolen.kek(), world.manager.kek());
}

#[test]
fn a_joiner_knows_no_earlier_epoch() {
    let mut world = World::with(Suite::Aes128Gcm, 3);
    let earlier = world.commit(Changes { force_path: true, ..Changes::default() });
    world.deliver(&earlier, &BTreeMap::new());
    let before = world.manager.kek();
    let late = world.add(1)[0];
    let keys = world.keys();
    let cell = world.cells.get_mut(&late).unwrap();
    assert_ne!(cell.kek(), before);
    let why = refused(cell.process(&[], &earlier.commit, &keys, &[]));
    assert_eq!(why, Refused::WrongEpoch { got: earlier.epoch_before, current: cell.epoch() });
}

#[test]
fn one_update_is_outstanding_until_its_epoch_ends() {
    let mut world = World::with(Suite::Aes128Gcm, 3);
    let id = world.ids()[0];
    let plain = world.cells[&id].snapshot().len();

    let first = world.update_of(id);
    assert_eq!(world.update_of(id), first);
    assert!(world.cells[&id].has_outstanding_update());
    world.restart();
    assert_eq!(world.update_of(id), first);

    // The coordinator commits without covering it: the proposal and its private key are gone.
    let committed = world.commit(Changes { force_path: true, ..Changes::default() });
    world.deliver(&committed, &BTreeMap::new());
    assert!(!world.cells[&id].has_outstanding_update());
    let after = world.cells[&id].snapshot().len();
    assert!(after < plain + 1200, "{plain} bytes grew to {after}");
    let second = world.update_of(id);
    assert_ne!(second, first);
    let committed = world.commit(Changes { updates: vec![(id, second)], ..Changes::default() });
    world.deliver(&committed, &BTreeMap::new());
}

#[test]
fn everybody_may_restart_at_any_step() {
    in_every_suite(|suite| {
        let mut world = World::new(suite);
        world.restart();
        let first = world.add(4);
        world.restart();
        world.remove(&first[..1]);
        world.restart();
        let update = world.update_of(first[1]);
        world.restart();
        let committed = world.commit(Changes { updates: vec![(first[1], update)], ..Changes::default() });
        world.restart_manager();
        world.deliver(&committed, &BTreeMap::new());
        world.restart();
        world.add_these(&first[2..3], first[2..3].to_vec());
        world.restart();
        world.add(2);
        world.restart();
        world.assert_agreed();
    });
}

#[test]
fn a_commit_that_was_not_stored_is_as_if_never_made() {
    let mut world = World::with(Suite::Aes128Gcm, 4);
    let id = world.ids()[0];
    let stored = world.manager.snapshot();
    let lost = world.commit(Changes { remove: vec![id], ..Changes::default() });

    world.manager = fleetkey_mls::ManagedCell::restore(&stored).unwrap();
    world.assert_agreed();
    let next = world.commit(Changes { remove: vec![id], ..Changes::default() });
    world.deliver(&next, &BTreeMap::new());
    assert_ne!(lost.commit, next.commit);
}

#[test]
fn every_device_gets_a_welcome_of_its_own() {
    let mut world = World::with(Suite::Aes128Gcm, 2);
    let ids: Vec<_> = (0..3).map(|_| world.enrol()).collect();
    let (add, privates): (Vec<_>, Vec<_>) = ids.iter().map(|id| world.package(*id)).unzip();

    let committed = world.commit(Changes { add, ..Changes::default() });

    for (id, private) in ids.iter().zip(&privates) {
        let welcome = &committed.welcomes[id];
        assert_eq!(welcome_key_package_ref(welcome), Ok(private.reference()));
        MemberCell::join(&world.context, private, welcome, &world.keys(), &[]).unwrap();
        for other in privates.iter().filter(|other| other.reference() != private.reference()) {
            let why = refused(MemberCell::join(&world.context, other, welcome, &world.keys(), &[]));
            assert_eq!(why, Refused::OtherKeyPackage);
        }
    }
}

#[test]
fn adding_needs_no_path_and_removing_does() {
    let mut world = World::with(Suite::Aes128Gcm, 32);
    let late = world.enrol();
    let (add, _) = world.package(late);
    let added = world.commit(Changes { add: vec![add], ..Changes::default() });
    assert!(added.commit.len() < 600, "{} bytes", added.commit.len());

    let mut world = World::with(Suite::Aes128Gcm, 32);
    let id = world.ids()[7];
    let removed = world.commit(Changes { remove: vec![id], ..Changes::default() });
    assert!(removed.commit.len() > 2000, "{} bytes", removed.commit.len());
}

#[test]
fn nothing_to_do_is_no_commit() {
    let mut world = World::with(Suite::Aes128Gcm, 2);
    let before = world.manager.snapshot();
    let outcome = world.manager.commit(&world.coordinator, Changes::default()).unwrap();
    assert!(outcome.committed.is_none());
    assert_eq!(world.manager.snapshot(), before);
}

#[test]
fn the_last_device_may_leave_and_another_come() {
    let mut world = World::with(Suite::Aes128Gcm, 1);
    let id = world.ids()[0];
    world.remove(&[id]);
    assert!(world.manager.is_empty());
    world.add(2);
}

impl World {
    fn restart_manager(&mut self) {
        self.manager = fleetkey_mls::ManagedCell::restore(&self.manager.snapshot()).unwrap();
    }
}
