//! Groups with X-Wing, on both cores together: they live as others do, and no message outgrows what may carry it.

use fleetkey_agent_core::Event as Told;
use fleetkey_coordinator_core::Policy;
use fleetkey_tests::World;
use fleetkey_wire::limits::{MAX_CELL_FRAME_BYTES, MAX_DOWN_FRAME_BYTES};
use fleetkey_wire::{CellFrame, CommitMessages, DeviceId, Suite, Topic};

const KIB: usize = 1024;
const X_WING: Suite = Suite::XWingChaCha20Poly1305;

/// Cells are renewed twice an hour, so that what renewing takes is seen.
fn policy() -> Policy {
    Policy { rotation_interval_seconds: 0, cell_max_age_seconds: 1_800, ..Policy::of(X_WING) }
}

/// The largest of what was published that `is_meant`, in bytes.
fn largest(world: &World, is_meant: impl Fn(&Topic, &[u8]) -> bool) -> usize {
    let meant = world.published.iter().filter(|(topic, payload)| is_meant(topic, payload));
    meant.map(|(_, payload)| payload.len()).max().expect("something of the kind was published")
}

fn is_cell(topic: &Topic) -> bool {
    matches!(topic, Topic::Cell { .. })
}

fn commit_of(payload: &[u8]) -> Option<CommitMessages> {
    CellFrame::decode(payload).expect("our own frame").commit
}

/// Joins, a rekey, a removal, renewals, catch-up by replay and by a fresh join, in full cells. Returns the world after it.
fn live(seed: u64, capacity: u16) -> World {
    let mut world = World::new(seed);
    let count = usize::from(capacity) * 2;
    let devices = world.enroll(count);
    let policy = Policy { cell_capacity: capacity, ..policy() };
    // Most come in at once, to cells of their own, and the rest to cells with others in them.
    let (first, late) = devices.split_at(count - 7);
    let group = world.group("meters", policy, first);
    world.add(group, late);
    world.run_for(60_000);
    world.assert_current(group);
    let cells = world.coordinator.group_status(group, world.now).expect("there").cells.len();
    assert!((2..=3).contains(&cells), "{cells} cells");
    // A whole hour: every cell gets a path, and updates of its members in it.
    world.run_for(3_600_000);
    world.assert_current(group);

    // One misses a removal from its own cell, and a rekey.
    let away = devices[0];
    let with = world.coordinator.member(group, away).expect("a member").place;
    let neighbour = devices
        .iter()
        .skip(1)
        .find(|other| world.coordinator.member(group, **other).is_some_and(|member| member.place == with));
    let neighbour = *neighbour.expect("a cell has more than one device");
    world.disconnect(away);
    world.revoke(&[neighbour]);
    world.coordinator.rekey(group, world.now, &mut world.rng).expect("it can be rekeyed");
    world.perform();
    world.run_for(20_000);
    let welcomes = |world: &mut World, id: DeviceId| {
        world.peer(id).events.iter().filter(|event| matches!(event, Told::Joined { .. })).count()
    };
    let before = welcomes(&mut world, away);
    world.connect(away);
    world.run_for(60_000);
    world.assert_current(group);
    assert_eq!(welcomes(&mut world, away), before, "the missed commit was replayed");

    // Several of one cell have lost all they had, and come in afresh together.
    let mut lost = vec![away];
    lost.extend(devices.iter().filter(|other| {
        **other != away && world.coordinator.member(group, **other).is_some_and(|member| member.place == with)
    }));
    lost.truncate(6);
    for id in &lost {
        world.wipe(*id);
    }
    world.run_for(120_000);
    world.assert_current(group);

    let now = world.now;
    assert!(world.coordinator.member(group, neighbour).is_none());
    assert_eq!(world.refused, vec![], "nothing is refused in calm weather");
    for (id, peer) in &world.peers {
        let refused = peer.agent.status(now).refused;
        assert!(refused.is_empty() || *id == neighbour, "{id}: {refused:?}");
    }
    world
}

#[test]
fn at_the_default_capacity_no_frame_exceeds_26_kib() {
    let world = live(1, X_WING.default_cell_capacity());
    let joining = largest(&world, |topic, payload| is_cell(topic) && commit_of(payload).is_some());
    let updating = largest(&world, |topic, payload| {
        is_cell(topic) && commit_of(payload).is_some_and(|commit| !commit.covered_updates.is_empty())
    });
    let rekeying = largest(&world, |topic, payload| is_cell(topic) && commit_of(payload).is_none());
    let down = largest(&world, |topic, _| matches!(topic, Topic::Down { .. }));
    println!("a commit {joining}, with updates {updating}, a statement {rekeying}, down {down} bytes");
    assert!(joining <= 26 * KIB, "a commit takes {joining} bytes");
    assert!(updating <= 26 * KIB, "a commit with updates takes {updating} bytes");
    assert!(rekeying <= 300, "statement and wrap take {rekeying} bytes");
    assert!(down <= 26 * KIB, "{down} bytes on a down topic");
}

#[test]
fn at_the_largest_capacity_every_frame_is_still_taken() {
    let world = live(2, X_WING.max_cell_capacity());
    let cell = largest(&world, |topic, _| is_cell(topic));
    let down = largest(&world, |topic, _| matches!(topic, Topic::Down { .. }));
    println!("on a cell topic {cell}, down {down} bytes");
    assert!(cell <= MAX_CELL_FRAME_BYTES, "{cell} bytes on a cell topic");
    assert!(down <= MAX_DOWN_FRAME_BYTES, "{down} bytes on a down topic");
}

#[test]
fn a_removal_from_a_full_cell_stays_below_16_kib() {
    let mut world = World::new(3);
    let devices = world.enroll(usize::from(X_WING.default_cell_capacity()));
    let group = world.group("meters", Policy { cell_max_age_seconds: 7 * 24 * 3_600, ..policy() }, &devices);
    world.published.clear();
    world.revoke(&devices[..1]);
    world.assert_current(group);
    let removal = largest(&world, |topic, _| is_cell(topic));
    assert!(removal <= 16 * KIB, "{removal} bytes");
}

#[test]
fn a_group_with_larger_cells_than_its_suite_allows_is_refused_with_the_limit() {
    let mut world = World::new(4);
    for suite in Suite::ALL {
        let max = suite.max_cell_capacity();
        let fits = Policy { cell_capacity: max, ..Policy::of(suite) };
        assert_eq!(fits.check(), Ok(()));
        let too_large = Policy { cell_capacity: max + 1, ..fits };
        let refused = world.coordinator.create_group("meters", too_large, world.now, &mut world.rng);
        let told = refused.expect_err("it is too large").to_string();
        assert!(told.contains(&format!("8 to {max}")) && told.contains(suite.name()), "{told}");
    }
}

#[test]
fn one_device_is_in_groups_of_every_suite_at_once() {
    let mut world = World::new(5);
    let devices = world.enroll(5);
    let groups = Suite::ALL.map(|suite| world.group(suite.name(), Policy::of(suite), &devices));
    for group in groups {
        world.assert_current(group);
    }
    world.revoke(&devices[..1]);
    world.run_for(5_000);
    for group in groups {
        world.assert_current(group);
        assert_eq!(world.coordinator.members(group).count(), devices.len() - 1);
    }
}
