//! What happens to a device that loses its state again and again, as a clone beside its original does; to a cell that
//! everybody has left; and to more stragglers than are reminded in one step.

use fleetkey_coordinator_core::{CommandError, Event, Policy, Standing, Timing};
use fleetkey_tests::World;
use fleetkey_wire::{DeviceId, GroupId};

/// Loses everything, and has all the time that it needs to be let in again.
fn lose_everything(world: &mut World, device: DeviceId) {
    world.wipe(device);
    world.run_for(3_600_000);
}

fn fleet(seed: u64) -> (World, Vec<DeviceId>, GroupId) {
    let mut world = World::with_timing(seed, Timing { fresh_joins_per_day: 3, ..Timing::default() });
    let devices = world.enroll(6);
    let group = world.group("meters", Policy::default(), &devices);
    (world, devices, group)
}

fn standing(world: &World, device: DeviceId) -> Standing {
    world.coordinator.device(device).expect("enrolled").standing.clone()
}

#[test]
fn one_that_loses_its_state_too_often_in_a_day_is_quarantined_and_nobody_else_waits_for_it() {
    let (mut world, devices, group) = fleet(1);
    let cloned = devices[2];
    for _ in 0..3 {
        lose_everything(&mut world, cloned);
        world.assert_current(group);
        assert_eq!(standing(&world, cloned), Standing::Enrolled);
    }
    lose_everything(&mut world, cloned);
    assert!(matches!(standing(&world, cloned), Standing::Quarantined { .. }));
    let told = world.events.iter().filter(|event| **event == Event::Quarantined { device: cloned }).count();
    assert_eq!(told, 1);

    // It survives a restart, and a rekey reaches all the others.
    world.restart_coordinator();
    assert!(matches!(standing(&world, cloned), Standing::Quarantined { .. }));
    let now = world.now;
    world.coordinator.rekey(group, now, &mut world.rng).expect("there");
    world.perform();
    world.run_for(60_000);
    let status = world.coordinator.group_status(group, world.now).expect("there");
    assert_eq!((status.behind.quarantined, status.behind.total()), (1, 1), "{:?}", status.behind);
}

#[test]
fn one_that_an_operator_lets_out_of_quarantine_comes_back_by_itself() {
    let (mut world, devices, group) = fleet(2);
    let cloned = devices[2];
    for _ in 0..4 {
        lose_everything(&mut world, cloned);
    }
    let now = world.now;
    assert_eq!(world.coordinator.release(devices[0], now), Err(CommandError::NotQuarantined(devices[0])));
    let nobody = DeviceId::from_bytes([9; 16]);
    assert_eq!(world.coordinator.release(nobody, now), Err(CommandError::UnknownDevice(nobody)));
    world.coordinator.release(cloned, now).expect("it is quarantined");
    world.perform();
    world.run_for(3_600_000);
    assert_eq!(standing(&world, cloned), Standing::Enrolled);
    world.assert_current(group);
}

#[test]
fn one_that_restarts_as_it_is_released_needs_nothing_else() {
    let (mut world, devices, group) = fleet(5);
    let cloned = devices[2];
    for _ in 0..4 {
        lose_everything(&mut world, cloned);
    }
    // Its new process says hello just before the word of the operator, and will not say it again for half an hour.
    world.restart(cloned);
    world.settle();
    let now = world.now;
    world.coordinator.release(cloned, now).expect("it is quarantined");
    world.perform();
    world.run_for(60_000);
    world.assert_current(group);
}

#[test]
fn a_cell_that_everybody_has_left_is_given_up_with_all_that_was_kept_for_it() {
    let mut world = World::new(3);
    let devices = world.enroll(16);
    let group = world.group("meters", Policy { cell_capacity: 8, ..Policy::default() }, &devices);
    let cells = |world: &World| world.coordinator.group_status(group, world.now).expect("there").cells;
    assert_eq!(cells(&world).len(), 2);
    let leaving = world.coordinator.member(group, devices[0]).expect("in").place;
    let gone: Vec<DeviceId> = devices
        .iter()
        .copied()
        .filter(|device| world.coordinator.member(group, *device).expect("in").place == leaving)
        .collect();
    assert_eq!(gone.len(), 8);
    world.revoke(&gone);
    assert_eq!(cells(&world).len(), 1);
    assert_eq!(world.access.len(), 1, "the broker knows of one cell");
    world.assert_current(group);
    // Nothing of it is left behind that a start would stumble over.
    world.restart_coordinator();
    world.run_for(60_000);
    world.assert_current(group);
    assert_eq!(cells(&world).len(), 1);
}

#[test]
fn more_stragglers_than_one_step_reminds_are_all_reminded() {
    const FLEET: usize = 300;
    let mut world = World::new(4);
    let devices = world.enroll(FLEET);
    let group = world.group("meters", Policy::default(), &devices);
    // Everybody is online, and the rekey reaches nobody.
    let now = world.now;
    world.coordinator.rekey(group, now, &mut world.rng).expect("there");
    world.perform();
    world.wire.clear();
    let status = world.coordinator.group_status(group, world.now).expect("there");
    assert_eq!(status.stragglers, FLEET);
    world.run_for(30_000);
    world.assert_current(group);
    let reminded = world.events.iter().filter(|event| matches!(event, Event::Resent { .. })).count();
    assert!(reminded >= FLEET, "{reminded} of {FLEET}");
}
