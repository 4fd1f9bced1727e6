//! The rules that must always hold, on both cores together.

use fleetkey_agent_core::CannotOpen;
use fleetkey_coordinator_core::{Event, Place, Policy};
use fleetkey_tests::{Hand, Weather, World};
use fleetkey_wire::{DeviceId, Generation, GroupId, Hello, Reason, UpBody};

fn seal(world: &mut World, by: DeviceId, group: GroupId, text: &[u8]) -> Vec<u8> {
    let now = world.now;
    let peer = world.peers.get_mut(&by).expect("enrolled");
    peer.agent.seal(group, text, b"", false, now, &mut world.rng).expect("a member can seal")
}

fn open(world: &mut World, by: DeviceId, sealed: &[u8]) -> Result<Vec<u8>, CannotOpen> {
    let now = world.now;
    world.peer(by).agent.open(sealed, b"", now).map(|opened| opened.plaintext)
}

fn statements(world: &World, group: GroupId) -> Vec<Reason> {
    let of = |event: &Event| {
        let Event::Rekeyed { group: of, reason, .. } = event else { return None };
        (*of == group).then_some(*reason)
    };
    world.events.iter().filter_map(of).collect()
}

#[test]
fn a_fleet_is_onboarded_and_everyone_opens_what_one_seals() {
    let mut world = World::new(1);
    let devices = world.enroll(40);
    let policy = Policy { cell_capacity: 8, ..Policy::default() };
    let group = world.group("meters", policy, &devices);
    world.assert_current(group);

    let status = world.coordinator.group_status(group, world.now).expect("there");
    assert_eq!((status.members, status.confirmed, status.cells.len()), (40, 40, 5));
    let sealed = seal(&mut world, devices[0], group, b"hello");
    for device in &devices {
        assert_eq!(open(&mut world, *device, &sealed).as_deref(), Ok(&b"hello"[..]), "{device}");
    }
    assert_eq!(world.refused, vec![], "nothing is refused in calm weather");
    for (id, peer) in &world.peers {
        assert!(peer.agent.status(world.now).refused.is_empty(), "{id}: {:?}", peer.agent.status(world.now));
    }
}

#[test]
fn rule_1_a_revoked_device_gets_no_later_secret_whatever_it_recorded() {
    let mut world = World::new(2);
    let devices = world.enroll(20);
    let policy = Policy { cell_capacity: 8, overlap_seconds: 0, ..Policy::default() };
    let group = world.group("meters", policy, &devices);
    let revoked = devices[3];
    world.revoke(&[revoked]);

    world.assert_current(group);
    let sealed = seal(&mut world, devices[0], group, b"after");
    // It hears everything that was ever published, on every topic, as a hostile broker would let it.
    let now = world.now;
    for (topic, payload) in world.published.clone() {
        let input = fleetkey_agent_core::Input::Message { topic, payload: &payload };
        let peer = world.peers.get_mut(&revoked).expect("enrolled");
        peer.agent.handle(input, now, &mut world.rng);
    }
    assert!(open(&mut world, revoked, &sealed).is_err());
    for device in devices.iter().filter(|device| **device != revoked) {
        assert_eq!(open(&mut world, *device, &sealed).as_deref(), Ok(&b"after"[..]), "{device}");
    }
}

#[test]
fn rule_1_a_member_that_lost_its_place_is_removed_with_a_new_key_all_the_same() {
    let mut world = World::new(12);
    let devices = world.enroll(10);
    let policy = Policy { cell_capacity: 8, overlap_seconds: 0, ..Policy::default() };
    let group = world.group("meters", policy, &devices);
    let lost = devices[4];
    world.disconnect(lost);
    // Its key says that it lost everything, and then gives it no way back in: its old leaf goes, and it waits.
    let mut hand = Hand::of(&mut world, lost);
    hand.connect(&mut world);
    let shown = Hello { generation: Generation(1), cells: Vec::new() };
    hand.say(&mut world, &UpBody::Hello(shown)).expect("a fresh hello is heard");
    let packages = vec![vec![0xa5; 300]; 2];
    hand.say(&mut world, &UpBody::KeyPackages { suite: policy.suite, packages })
        .expect("they were asked for");
    world.run_for(5_000);
    let place = world.coordinator.member(group, lost).expect("it is wanted").place;
    assert_eq!(place, Place::Wanted, "it is out of its cell");

    world.revoke(&[lost]);
    assert_eq!(statements(&world, group).last(), Some(&Reason::Revoke));
    world.run_for(5_000);
    let sealed = seal(&mut world, devices[0], group, b"after");
    assert!(open(&mut world, lost, &sealed).is_err(), "it still held the key that was in use");
}

#[test]
fn rule_2_a_joining_device_opens_nothing_from_before() {
    let mut world = World::new(3);
    let devices = world.enroll(10);
    let group = world.group("meters", Policy { cell_capacity: 8, ..Policy::default() }, &devices);
    let before = seal(&mut world, devices[0], group, b"before");
    let late = world.enroll(3);
    world.add(group, &late);
    world.assert_current(group);

    for device in &late {
        assert!(open(&mut world, *device, &before).is_err(), "{device}");
    }
    let after = seal(&mut world, devices[0], group, b"after");
    for device in late.iter().chain(&devices) {
        assert_eq!(open(&mut world, *device, &after).as_deref(), Ok(&b"after"[..]), "{device}");
    }
}

#[test]
fn a_rotation_goes_through_its_three_statements() {
    let mut world = World::new(4);
    let devices = world.enroll(20);
    let policy = Policy { cell_capacity: 8, overlap_seconds: 5, ..Policy::default() };
    let group = world.group("meters", policy, &devices);
    let before = seal(&mut world, devices[0], group, b"before");
    world.events.clear();
    world.coordinator.rotate(group, world.now, &mut world.rng).expect("a rotation can begin");
    world.perform();
    world.settle();
    assert!(open(&mut world, devices[1], &before).is_ok(), "the former key is accepted during the overlap");
    world.run_for(10_000);

    assert_eq!(statements(&world, group), vec![Reason::Distribute, Reason::Activate, Reason::Retire]);
    world.assert_current(group);
    let after = seal(&mut world, devices[0], group, b"after");
    assert!(open(&mut world, devices[1], &after).is_ok());
    world.run_for(10_000);
    assert!(open(&mut world, devices[1], &before).is_err(), "the former key is retired");
}

#[test]
fn devices_that_were_away_catch_up() {
    let mut world = World::new(5);
    let devices = world.enroll(20);
    let group = world.group("meters", Policy { cell_capacity: 8, ..Policy::default() }, &devices);
    let (away, rest) = devices.split_at(5);
    for device in away {
        world.disconnect(*device);
    }
    world.revoke(&rest[..1]);
    world.coordinator.rekey(group, world.now, &mut world.rng).expect("a rekey can be asked for");
    world.perform();
    world.run_for(1_000);
    for device in away {
        world.connect(*device);
    }
    world.run_for(5_000);
    world.assert_current(group);
    let status = world.coordinator.group_status(group, world.now).expect("there");
    assert_eq!((status.members, status.stragglers), (19, 0));
}

#[test]
fn a_device_that_lost_its_state_comes_in_afresh_without_a_rekey() {
    let mut world = World::new(6);
    let devices = world.enroll(12);
    let group = world.group("meters", Policy { cell_capacity: 8, ..Policy::default() }, &devices);
    world.events.clear();
    world.wipe(devices[0]);
    world.run_for(20_000);
    world.assert_current(group);
    assert_eq!(statements(&world, group), vec![], "a fresh join changes no key");
}

#[test]
fn the_coordinator_goes_on_where_it_was_killed() {
    let mut world = World::new(7);
    let devices = world.enroll(20);
    let group = world.group("meters", Policy { cell_capacity: 8, ..Policy::default() }, &devices);
    // Killed after the transaction, before anything was sent.
    world.coordinator.revoke(&devices[..1], "test", world.now, &mut world.rng).expect("can be revoked");
    let effects = world.coordinator.take_effects().expect("decided");
    fleetkey_coordinator_core::Store::commit(&mut world.store, &effects.writes)
        .expect("memory does not fail");
    world.restart_coordinator();
    world.run_for(20_000);
    world.assert_current(group);
    let status = world.coordinator.group_status(group, world.now).expect("there");
    assert_eq!((status.members, status.stragglers), (19, 0));

    // Killed before the transaction: nothing happened, and it can be said again.
    world.coordinator.revoke(&devices[1..2], "test", world.now, &mut world.rng).expect("can be revoked");
    world.restart_coordinator();
    world.run_for(20_000);
    let status = world.coordinator.group_status(group, world.now).expect("there");
    assert_eq!((status.members, status.stragglers), (19, 0));
    world.revoke(&devices[1..2]);
    world.run_for(20_000);
    world.assert_current(group);
}

#[test]
fn every_device_restarting_at_once_changes_nothing() {
    let mut world = World::new(8);
    let devices = world.enroll(20);
    let group = world.group("meters", Policy { cell_capacity: 8, ..Policy::default() }, &devices);
    world.events.clear();
    for device in &devices {
        world.restart(*device);
    }
    world.run_for(20_000);
    world.assert_current(group);
    assert_eq!(statements(&world, group), vec![]);
    world.revoke(&devices[..2]);
    world.run_for(5_000);
    world.assert_current(group);
}

#[test]
fn cells_heal_through_their_members_updates() {
    let mut world = World::new(9);
    let devices = world.enroll(8);
    let policy = Policy {
        cell_capacity: 8,
        cell_max_age_seconds: 60,
        rotation_interval_seconds: 0,
        ..Policy::default()
    };
    let group = world.group("meters", policy, &devices);
    let epoch = world.coordinator.group_status(group, world.now).expect("there").cells[0].epoch;
    world.run_for(75_000);
    let cell = world.coordinator.group_status(group, world.now).expect("there").cells[0].clone();
    assert!(cell.epoch > epoch, "{cell:?}");
    world.revoke(&devices[..1]);
    world.run_for(5_000);
    world.assert_current(group);
    assert_eq!(world.refused, vec![]);
}

#[test]
fn rule_3_every_reachable_member_ends_with_the_current_key_once_faults_stop() {
    for seed in 100..106 {
        let mut world = World::new(seed);
        let devices = world.enroll(16);
        let policy = Policy { cell_capacity: 8, rotation_interval_seconds: 120, ..Policy::default() };
        let group = world.group("meters", policy, &devices);
        world.weather = Weather { lost_percent: 30, doubled_percent: 20, overtaken_by: 5 };
        // Churn in bad weather, with crashes on both sides.
        for round in 0..6 {
            let late = world.enroll(1);
            world.add(group, &late);
            match round % 3 {
                0 => world.revoke(&devices[round..=round]),
                1 => world.restart_coordinator(),
                _ => {
                    world.disconnect(devices[10 + round]);
                    world.restart(devices[9]);
                }
            }
            world.run_for(20_000);
        }
        // The weather clears, and everybody is reachable.
        world.weather = Weather::default();
        for device in world.peers.keys().copied().collect::<Vec<_>>() {
            if !world.peer(device).is_connected {
                world.connect(device);
            }
        }
        world.run_for(1_800_000);
        world.assert_current(group);
        let status = world.coordinator.group_status(group, world.now).expect("there");
        assert_eq!((status.members, status.wanted, status.stragglers), (20, 0, 0), "seed {seed}");
    }
}

#[test]
fn a_lost_welcome_is_sent_again() {
    let mut world = World::new(20);
    let devices = world.enroll(8);
    let policy = Policy { cell_capacity: 8, rotation_interval_seconds: 0, ..Policy::default() };
    let group = world.group("meters", policy, &devices);
    let late = world.enroll(1)[0];
    world.coordinator.add_members(group, &[late], world.now, &mut world.rng).expect("can be added");
    world.perform();
    world.settle();
    world.weather = Weather { lost_percent: 100, ..Weather::default() };
    world.run_for(2_000);
    world.weather = Weather::default();
    world.run_for(60_000);
    world.assert_current(group);
    assert_eq!(world.coordinator.group_status(group, world.now).expect("there").members, 9);
}

#[test]
fn a_device_set_back_to_before_an_update_of_its_own_comes_in_afresh() {
    let mut world = World::new(13);
    let devices = world.enroll(8);
    let policy = Policy {
        cell_capacity: 8,
        rotation_interval_seconds: 0,
        cell_max_age_seconds: 600,
        ..Policy::default()
    };
    let group = world.group("meters", policy, &devices);
    let old = world.stored(devices[2]);
    // Its cell is renewed, with an update of this device among those that the commit covers.
    world.run_for(700_000);
    world.coordinator.rekey(group, world.now, &mut world.rng).expect("it can be rekeyed");
    world.perform();
    world.run_for(5_000);
    world.assert_current(group);

    let peer = world.peer(devices[2]);
    peer.store = fleetkey_agent_core::MemoryStore::default();
    let mut writes = fleetkey_agent_core::Writes::default();
    for (key, value) in &old {
        writes.put(key.clone(), value.clone());
    }
    fleetkey_agent_core::Store::commit(&mut peer.store, &writes).expect("memory does not fail");
    world.restart(devices[2]);
    // Not long enough for the commits that it cannot follow to be forgotten.
    world.run_for(3_600_000);
    world.assert_current(group);
}
