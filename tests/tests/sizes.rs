//! What things cost on the wire, on both cores together.

use fleetkey_coordinator_core::{Event, Policy};
use fleetkey_tests::World;
use fleetkey_wire::{CellFrame, Reason, Topic};

const KIB: usize = 1024;

fn policy() -> Policy {
    Policy { rotation_interval_seconds: 0, ..Policy::default() }
}

#[test]
fn a_revocation_is_one_small_message_for_each_cell_and_one_signature() {
    let mut world = World::new(1);
    let devices = world.enroll(150);
    let group = world.group("meters", policy(), &devices);
    let cells = world.coordinator.group_status(group, world.now).expect("there").cells.len();
    assert_eq!(cells, 3);
    let signatures = world.coordinator.status(world.now).signatures;
    world.published.clear();
    world.revoke(&devices[..1]);

    let frames: Vec<_> =
        world.published.iter().filter(|(topic, _)| matches!(topic, Topic::Cell { .. })).collect();
    assert_eq!(frames.len(), cells, "one frame for each cell");
    assert!(world.published.len() <= cells + 2, "{} publishes", world.published.len());
    for (topic, payload) in frames {
        let frame = CellFrame::decode(payload).expect("our own frame");
        let limit = if frame.commit.is_some() { 7 * KIB } else { 300 };
        assert!(payload.len() <= limit, "{} bytes on {topic}", payload.len());
    }
    assert_eq!(world.coordinator.status(world.now).signatures, signatures + 1);
    world.assert_current(group);
}

#[test]
fn no_cell_frame_exceeds_16_kib_and_no_welcome_32_kib_at_the_default_capacity() {
    let mut world = World::new(2);
    let devices = world.enroll(64);
    let (first, late) = devices.split_at(30);
    let group = world.group("meters", policy(), first);
    // More at once than one frame may carry: the batch is split.
    world.add(group, late);
    world.revoke(&devices[..8]);
    world.run_for(10_000);
    world.assert_current(group);
    for (topic, payload) in &world.published {
        let limit = match topic {
            Topic::Cell { .. } => 16 * KIB,
            Topic::Down { .. } | Topic::Up { .. } => 32 * KIB,
        };
        assert!(payload.len() <= limit, "{} bytes on {topic}", payload.len());
    }
}

#[test]
fn onboarding_takes_far_fewer_rekeys_than_devices() {
    let mut world = World::new(3);
    let devices = world.enroll(100);
    world.group("meters", policy(), &devices);
    let is_join = |event: &&Event| matches!(event, Event::Rekeyed { reason: Reason::Join, .. });
    let rekeys = world.events.iter().filter(is_join).count();
    assert!((1..=3).contains(&rekeys), "{rekeys} rekeys for 100 devices");
}
