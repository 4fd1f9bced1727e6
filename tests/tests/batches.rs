//! Joins that share a key: many transactions, and what may come between two of them.

use fleetkey_coordinator_core::{Event, Place, Policy};
use fleetkey_tests::World;
use fleetkey_wire::{DeviceId, GroupId, Millis, Now, Reason};

/// More than one transaction takes in, and fewer than one key may be issued for.
const DEVICES: usize = 300;

fn rekeys(world: &World, group: GroupId) -> Vec<Reason> {
    let of = |event: &Event| {
        let Event::Rekeyed { group: of, reason, .. } = event else { return None };
        (*of == group).then_some(*reason)
    };
    world.events.iter().filter_map(of).collect()
}

fn placed(world: &World, group: GroupId) -> Vec<DeviceId> {
    let members = world.coordinator.members(group);
    members.filter(|member| member.place != Place::Wanted).map(|member| member.device).collect()
}

fn unplaced(world: &World, group: GroupId) -> Vec<DeviceId> {
    let members = world.coordinator.members(group);
    members.filter(|member| member.place == Place::Wanted).map(|member| member.device).collect()
}

/// One transaction of what is due next; nothing is delivered.
fn one_transaction(world: &mut World) {
    let due = world.coordinator.poll_timeout().expect("something is due");
    let mono = Millis(due.0.max(world.now.mono.0));
    let passed_seconds = (mono.0 - world.now.mono.0).div_ceil(1_000);
    world.now = Now { mono, unix_seconds: world.now.unix_seconds + passed_seconds };
    world.coordinator.handle_timeout(world.now, &mut world.rng);
    world.perform();
}

/// A group of which the first transaction of a batch has been made, and nothing more.
fn in_the_middle_of_a_batch(seed: u64) -> (World, GroupId) {
    let mut world = World::new(seed);
    let devices = world.enroll(DEVICES);
    let now = world.now;
    let group = world.coordinator.create_group("meters", Policy::default(), now, &mut world.rng);
    let group = group.expect("a group can be created");
    world.coordinator.add_members(group, &devices, now, &mut world.rng).expect("devices can be added");
    world.perform();
    world.settle();
    while placed(&world, group).is_empty() {
        one_transaction(&mut world);
    }
    assert!(!unplaced(&world, group).is_empty(), "one transaction took in all of them");
    (world, group)
}

#[test]
fn a_batch_is_taken_in_by_several_transactions_and_has_one_key() {
    let (mut world, group) = in_the_middle_of_a_batch(1);
    let first = placed(&world, group).len();
    one_transaction(&mut world);
    assert!(placed(&world, group).len() > first, "the next place waits for nobody's confirmation");
    world.run_for(30_000);
    world.assert_current(group);
    assert_eq!(placed(&world, group).len(), DEVICES);
    assert_eq!(rekeys(&world, group), [Reason::Join]);
    let whole = |event: &&Event| matches!(event, Event::AllConfirmed { .. });
    assert_eq!(world.events.iter().filter(whole).count(), 1, "all have confirmed when nobody is missing");
}

#[test]
fn a_revocation_comes_between_two_transactions_of_a_batch() {
    let (mut world, group) = in_the_middle_of_a_batch(2);
    let (inside, outside) = (placed(&world, group)[0], *unplaced(&world, group).last().expect("some wait"));
    world.coordinator.revoke(&[inside, outside], "stolen", world.now, &mut world.rng).expect("revoked");
    world.perform();
    assert_eq!(rekeys(&world, group), [Reason::Join, Reason::Revoke], "it did not wait for the batch");

    world.run_for(30_000);
    world.assert_current(group);
    let members = placed(&world, group);
    assert_eq!(members.len(), DEVICES - 2, "the batch went on");
    assert!(!members.contains(&inside) && !members.contains(&outside));
    assert_eq!(rekeys(&world, group), [Reason::Join, Reason::Revoke], "and its key was the newest one");
}

#[test]
fn one_that_is_taken_out_of_a_batch_and_wanted_again_waits_for_a_key_of_its_own() {
    let (mut world, group) = in_the_middle_of_a_batch(3);
    let late = *unplaced(&world, group).last().expect("some wait");
    world.coordinator.evict(group, &[late], world.now, &mut world.rng).expect("evicted");
    world.coordinator.add_members(group, &[late], world.now, &mut world.rng).expect("wanted again");
    world.perform();
    while unplaced(&world, group).len() > 1 {
        one_transaction(&mut world);
    }
    assert_eq!(unplaced(&world, group), [late]);
    assert_eq!(rekeys(&world, group), [Reason::Join]);

    world.run_for(30_000);
    world.assert_current(group);
    assert_eq!(rekeys(&world, group), [Reason::Join, Reason::Join]);
}

#[test]
fn a_batch_that_a_crash_cuts_short_goes_on_with_another_key() {
    let (mut world, group) = in_the_middle_of_a_batch(4);
    world.restart_coordinator();
    world.run_for(60_000);
    world.assert_current(group);
    assert_eq!(placed(&world, group).len(), DEVICES);
    assert_eq!(rekeys(&world, group), [Reason::Join, Reason::Join]);
}
