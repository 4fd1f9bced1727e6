//! Deadlines of revocations, on both cores together: kept when everybody who remains has the key, missed when not.

use fleetkey_coordinator_core::{CommandError, Event, Outcome, Policy};
use fleetkey_tests::World;
use fleetkey_wire::{DeviceId, GroupId};

fn revoke(world: &mut World, device: DeviceId, seconds: u64) -> Result<(), CommandError> {
    let now = world.now;
    world.coordinator.revoke_within(&[device], "stolen", Some(seconds), now, &mut world.rng)?;
    world.perform();
    world.settle();
    Ok(())
}

fn outcomes(world: &World, group: GroupId) -> Vec<Outcome> {
    let status = world.coordinator.group_status(group, world.now).expect("there");
    status.deadlines.into_iter().map(|deadline| deadline.outcome).collect()
}

/// How many were missing, by what was told, in order.
fn told(world: &World) -> Vec<usize> {
    let missing = |event: &Event| {
        let Event::Deadline { missing, .. } = event else { return None };
        Some(*missing)
    };
    world.events.iter().filter_map(missing).collect()
}

fn fleet(seed: u64) -> (World, Vec<DeviceId>, GroupId) {
    let mut world = World::new(seed);
    let devices = world.enroll(10);
    let group = world.group("meters", Policy { cell_capacity: 8, ..Policy::default() }, &devices);
    (world, devices, group)
}

#[test]
fn it_is_kept_when_the_last_one_that_remains_has_confirmed() {
    let (mut world, devices, group) = fleet(1);
    let away = devices[7];
    world.disconnect(away);
    revoke(&mut world, devices[0], 30).expect("it can be revoked");
    assert_eq!(outcomes(&world, group), [Outcome::Open]);

    world.run_for(10_000);
    assert_eq!(outcomes(&world, group), [Outcome::Open]);
    world.connect(away);
    world.run_for(1_000);
    assert!(matches!(outcomes(&world, group)[..], [Outcome::Kept { .. }]), "{:?}", outcomes(&world, group));
    assert_eq!(told(&world), [0]);
}

#[test]
fn it_is_missed_when_one_that_remains_is_away_also_across_a_restart() {
    let (mut world, devices, group) = fleet(2);
    world.disconnect(devices[7]);
    world.disconnect(devices[8]);
    revoke(&mut world, devices[0], 30).expect("it can be revoked");
    world.restart_coordinator();
    world.run_for(29_000);
    assert_eq!(outcomes(&world, group), [Outcome::Open]);
    world.run_for(2_000);
    assert_eq!(outcomes(&world, group), [Outcome::Missed { missing: 2 }]);

    // What was missed stays missed.
    world.connect(devices[7]);
    world.connect(devices[8]);
    world.run_for(60_000);
    world.assert_current(group);
    assert_eq!(outcomes(&world, group), [Outcome::Missed { missing: 2 }]);
    assert_eq!(told(&world), [2]);
}

#[test]
fn who_comes_in_afterwards_owes_nothing_to_it() {
    let (mut world, devices, group) = fleet(3);
    let away = devices[7];
    world.disconnect(away);
    revoke(&mut world, devices[0], 60).expect("it can be revoked");
    // Two newcomers, one of whom is never heard; the rekey that admits the other overtakes the revocation's.
    let newcomers = world.enroll(2);
    world.disconnect(newcomers[1]);
    world.add(group, &newcomers);
    world.run_for(5_000);
    world.connect(away);
    world.run_for(120_000);
    assert!(matches!(outcomes(&world, group)[..], [Outcome::Kept { .. }]), "{:?}", outcomes(&world, group));
}

/// One that owes the key of a revocation is evicted, and wanted again before anybody has heard of that.
fn evicted_and_back(seed: u64) -> (World, DeviceId, GroupId) {
    let (mut world, devices, group) = fleet(seed);
    let away = devices[7];
    world.disconnect(away);
    revoke(&mut world, devices[0], 60).expect("it can be revoked");
    let now = world.now;
    world.coordinator.evict(group, &[away], now, &mut world.rng).expect("it is in");
    world.perform();
    world.add(group, &[away]);
    world.restart_coordinator();
    world.settle();
    (world, away, group)
}

#[test]
fn who_was_evicted_and_is_back_owes_what_they_owed() {
    let (mut world, _, group) = evicted_and_back(6);
    assert_eq!(outcomes(&world, group), [Outcome::Open]);
    world.run_for(31_000);
    assert_eq!(outcomes(&world, group), [Outcome::Missed { missing: 1 }]);

    let (mut world, away, group) = evicted_and_back(7);
    world.connect(away);
    world.run_for(20_000);
    assert!(matches!(outcomes(&world, group)[..], [Outcome::Kept { .. }]), "{:?}", outcomes(&world, group));
}

#[test]
fn who_was_evicted_and_stays_out_owes_nothing() {
    let (mut world, devices, group) = fleet(8);
    let away = devices[7];
    world.disconnect(away);
    revoke(&mut world, devices[0], 60).expect("it can be revoked");
    assert_eq!(outcomes(&world, group), [Outcome::Open]);
    let now = world.now;
    world.coordinator.evict(group, &[away], now, &mut world.rng).expect("it is in");
    world.perform();
    world.run_for(5_000);
    assert!(matches!(outcomes(&world, group)[..], [Outcome::Kept { .. }]), "{:?}", outcomes(&world, group));
}

#[test]
fn a_deadline_that_nobody_can_keep_is_refused_and_revokes_nobody() {
    let (mut world, devices, group) = fleet(4);
    let before = world.coordinator_rows();
    for seconds in [0, 2_592_001, u64::MAX] {
        let refused = revoke(&mut world, devices[0], seconds).expect_err("refused");
        assert_eq!(refused, CommandError::BadDeadline { seconds });
    }
    assert_eq!(world.coordinator_rows(), before);
    assert!(outcomes(&world, group).is_empty());
}

#[test]
fn a_group_keeps_the_last_eight_and_judges_what_it_forgets() {
    let (mut world, devices, group) = fleet(5);
    world.disconnect(devices[9]);
    for device in &devices[..9] {
        revoke(&mut world, *device, 3_600).expect("it can be revoked");
    }
    assert_eq!(outcomes(&world, group), [Outcome::Open; 8]);
    assert_eq!(told(&world), [1], "the first had to make room");
}
