//! Bad input on `up` costs its sender only: it is refused by name, counted, and nothing stored changes.

use std::collections::BTreeMap;

use fleetkey_coordinator_core::{Policy, Row, UpRefused};
use fleetkey_tests::{Hand, World};
use fleetkey_wire::error::Named;
use fleetkey_wire::{
    CellEpoch, CellId, DeviceId, GroupId, KeyEpoch, Reason, ShortDigest, Statement, Suite, Topic, UpBody,
};

/// A fleet of agents in one group, at rest.
fn at_rest(seed: u64) -> (World, Vec<DeviceId>, GroupId) {
    let mut world = World::new(seed);
    let devices = world.enroll(6);
    let policy = Policy { cell_capacity: 8, rotation_interval_seconds: 0, ..Policy::default() };
    let group = world.group("meters", policy, &devices);
    world.assert_current(group);
    (world, devices, group)
}

fn refusals(world: &World) -> BTreeMap<&'static str, u64> {
    world.coordinator.status(world.now).refusals
}

/// Does something that must be refused under `name`, and checks that it was, that it was counted once, and that it
/// changed no row.
fn refused<T: std::fmt::Debug>(
    world: &mut World,
    name: &'static str,
    act: impl FnOnce(&mut World) -> Result<T, UpRefused>,
) {
    let rows: Vec<Row> = world.coordinator_rows();
    let before = refusals(world).get(name).copied().unwrap_or(0);
    let said = act(world).expect_err(name);
    assert_eq!(said.name(), name, "{said}");
    assert_eq!(refusals(world).get(name), Some(&(before + 1)), "{name} is counted");
    assert!(world.coordinator_rows() == rows, "{name} changed what is stored");
}

fn raw(world: &mut World, device: DeviceId, payload: &[u8]) -> Result<(), UpRefused> {
    let said = world.coordinator.handle_up(device, payload, world.now, &mut world.rng);
    world.perform();
    said
}

fn confirm(group: GroupId) -> UpBody {
    UpBody::Confirm { group, key_epoch: KeyEpoch::new(1, 1), statement: ShortDigest([7; 8]), proof: [7; 32] }
}

#[test]
fn bytes_that_are_no_frame_are_refused_by_name() {
    let (mut world, devices, _) = at_rest(1);
    let mut hand = Hand::of(&mut world, devices[0]);
    hand.connect(&mut world);
    let good = hand.frame(&UpBody::Leave { group: GroupId::from_bytes([0; 16]) });

    refused(&mut world, "empty", |world| raw(world, devices[0], b""));
    refused(&mut world, "too_large", |world| raw(world, devices[0], &vec![1; 40 * 1024]));
    refused(&mut world, "unknown_version", |world| raw(world, devices[0], &[9, 0x80]));
    refused(&mut world, "not_cbor", |world| raw(world, devices[0], &good[..good.len() / 2]));
    refused(&mut world, "wrong_shape", |world| raw(world, devices[0], &[&[1u8][..], &[0x81; 400]].concat()));
    refused(&mut world, "trailing_bytes", |world| raw(world, devices[0], &[&good[..], &[0]].concat()));
    refused(&mut world, "wrong_shape", |world| raw(world, devices[0], &[1, 0x80]));
    refused(&mut world, "unknown_device", |world| raw(world, DeviceId::from_bytes([9; 16]), &good));
}

#[test]
fn every_truncation_and_every_flipped_bit_is_refused() {
    let (mut world, devices, _) = at_rest(2);
    let mut hand = Hand::of(&mut world, devices[0]);
    hand.connect(&mut world);
    let good = hand.frame(&UpBody::Leave { group: GroupId::from_bytes([0; 16]) });
    let rows = world.coordinator_rows();
    for end in 0..good.len() {
        raw(&mut world, devices[0], &good[..end]).expect_err("a truncated frame");
    }
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        raw(&mut world, devices[0], &bad).expect_err("a flipped bit");
    }
    assert!(world.coordinator_rows() == rows);
}

#[test]
fn frames_of_others_are_refused() {
    let (mut world, devices, group) = at_rest(3);
    // A frame of one device on the topic of another.
    let mut hand = Hand::of(&mut world, devices[0]);
    hand.connect(&mut world);
    let foreign = hand.frame(&confirm(group));
    refused(&mut world, "wrong_mac", |world| raw(world, devices[1], &foreign));
    // A frame of a device of another fleet, under the same id.
    let (mut other, others, _) = at_rest(4);
    let mut stranger = Hand::of(&mut other, others[0]);
    stranger.id = devices[0];
    let strange = stranger.frame(&confirm(group));
    refused(&mut world, "wrong_mac", |world| raw(world, devices[0], &strange));
}

#[test]
fn what_was_said_once_counts_once() {
    let (mut world, devices, _) = at_rest(5);
    let mut hand = Hand::of(&mut world, devices[0]);
    hand.connect(&mut world);
    let leave = hand.frame(&UpBody::Leave { group: GroupId::from_bytes([9; 16]) });
    refused(&mut world, "not_a_member", |world| hand.send(world, &leave));
    // Again, on the same connection.
    refused(&mut world, "replayed", |world| hand.send(world, &leave));
    // Again, after the device has connected anew.
    hand.connect(&mut world);
    hand.say(
        &mut world,
        &UpBody::Hello(fleetkey_wire::Hello { generation: fleetkey_wire::Generation(1), cells: vec![] }),
    )
    .expect("a fresh hello");
    refused(&mut world, "stale_nonce", |world| hand.send(world, &leave));
    // Again, after the coordinator was started anew.
    world.restart_coordinator();
    refused(&mut world, "stale_nonce", |world| hand.send(world, &leave));
}

#[test]
fn only_a_hello_counts_before_the_first_answer() {
    let (mut world, devices, group) = at_rest(6);
    for body in [
        UpBody::Leave { group },
        confirm(group),
        UpBody::KeyPackages { suite: Suite::Aes128Gcm, packages: vec![vec![1]] },
    ] {
        let mut hand = Hand::of(&mut world, devices[0]);
        refused(&mut world, "not_fresh", |world| hand.say(world, &body));
    }
}

#[test]
fn rule_6_only_a_device_that_holds_the_secret_is_confirmed() {
    let (mut world, devices, group) = at_rest(7);
    let mut hand = Hand::enroll(&mut world);
    hand.connect(&mut world);
    refused(&mut world, "not_a_member", |world| hand.say(world, &confirm(group)));

    // A member that has not got the key of the next epoch: cut off while the group moves.
    let cut_off = devices[0];
    world.disconnect(cut_off);
    world.coordinator.rekey(group, world.now, &mut world.rng).expect("can be asked for");
    world.perform();
    world.settle();
    let status = world.coordinator.group_status(group, world.now).expect("there");
    let key_epoch: KeyEpoch = status.send.parse().expect("a key epoch");
    let digest = {
        let now = world.now;
        world.peer(devices[1]).agent.status(now).groups[0].statement
    };
    let mut liar = Hand::of(&mut world, cut_off);
    liar.connect(&mut world);
    for (proof, claimed) in [([0; 32], key_epoch), ([0xff; 32], key_epoch)] {
        let lie = UpBody::Confirm { group, key_epoch: claimed, statement: digest, proof };
        refused(&mut world, "wrong_proof", |world| liar.say(world, &lie));
    }
    let not_live = UpBody::Confirm { group, key_epoch: KeyEpoch(1), statement: digest, proof: [0; 32] };
    refused(&mut world, "key_epoch_not_live", |world| liar.say(world, &not_live));
    let member = world.coordinator.members(group).find(|member| member.device == cut_off).cloned();
    assert!(member.expect("still a member").confirmed < key_epoch);

    // Neither does a hello confirm, whatever it shows.
    world.connect(cut_off);
    world.run_for(5_000);
    world.assert_current(group);
}

#[test]
fn a_device_out_of_the_fleet_is_not_heard() {
    let (mut world, devices, group) = at_rest(8);
    world.revoke(&devices[..1]);
    let mut hand = Hand::of(&mut world, devices[0]);
    let hello =
        UpBody::Hello(fleetkey_wire::Hello { generation: fleetkey_wire::Generation(1), cells: vec![] });
    refused(&mut world, "revoked_device", |world| hand.say(world, &hello));
    assert!(!world.coordinator.members(group).any(|member| member.device == devices[0]));
}

#[test]
fn key_packages_and_updates_nobody_asked_for_are_refused() {
    let (mut world, devices, _) = at_rest(9);
    let mut hand = Hand::of(&mut world, devices[0]);
    hand.connect(&mut world);
    let packages = UpBody::KeyPackages { suite: Suite::ChaCha20Poly1305, packages: vec![vec![1, 2, 3]] };
    refused(&mut world, "not_asked_for", |world| hand.say(world, &packages));
    let cell = CellId::from_bytes([9; 16]);
    let update = UpBody::Update { cell, cell_epoch: CellEpoch(1), proposal: vec![1] };
    refused(&mut world, "not_in_cell", |world| hand.say(world, &update));
}

#[test]
fn rule_7_a_bad_key_package_keeps_nobody_else_out() {
    let (mut world, _, group) = at_rest(10);
    let mut bad = Hand::enroll(&mut world);
    bad.connect(&mut world);
    let asked_for = |hand: &mut Hand, world: &mut World| {
        let hello =
            UpBody::Hello(fleetkey_wire::Hello { generation: fleetkey_wire::Generation(1), cells: vec![] });
        hand.say(world, &hello).expect("a fresh hello")
    };
    world.run_for(6_000);
    asked_for(&mut bad, &mut world);
    let rubbish = UpBody::KeyPackages { suite: Suite::Aes128Gcm, packages: vec![b"rubbish".to_vec()] };
    bad.say(&mut world, &rubbish).expect("it is only looked at when it is used");
    let good = world.enroll(2);
    world.coordinator.add_members(group, &[bad.id], world.now, &mut world.rng).expect("can be added");
    world.perform();
    world.add(group, &good);

    world.assert_current(group);
    let status = world.coordinator.group_status(group, world.now).expect("there");
    assert_eq!((status.members, status.wanted), (8, 1), "the good ones are in, the bad one waits");
    let key_epoch = status.key_epoch;
    world.run_for(60_000);
    let later = world.coordinator.group_status(group, world.now).expect("there").key_epoch;
    assert_eq!(later, key_epoch, "and rekeys nobody while it waits");
}

#[test]
fn evidence_counts_only_when_the_coordinator_signed_it() {
    let (mut world, devices, group) = at_rest(11);
    let mut hand = Hand::of(&mut world, devices[0]);
    hand.connect(&mut world);
    let key = ed25519_dalek_key();
    let forged = Statement {
        group,
        key_epoch: KeyEpoch(u64::MAX),
        commitment: fleetkey_wire::Commitment([1; 32]),
        reason: Reason::Manual,
        send: KeyEpoch(u64::MAX),
        oldest: KeyEpoch(u64::MAX),
        overlap_seconds: 0,
        issued_unix_seconds: 0,
    }
    .sign(world.fleet, fleetkey_wire::KeyId([1; 8]), key.signing_key());
    let evidence = UpBody::Evidence { statement: forged.as_bytes().to_vec() };
    refused(&mut world, "wrong_signature", |world| hand.say(world, &evidence));
    assert!(!world.coordinator.status(world.now).superseded);
}

fn ed25519_dalek_key() -> fleetkey_identity::IdentityKey {
    fleetkey_identity::IdentityKey::from_seed(&[3; 32])
}

#[test]
fn rule_5_replayed_and_swapped_frames_move_nobody() {
    let (mut world, devices, group) = at_rest(12);
    world.coordinator.rekey(group, world.now, &mut world.rng).expect("can be asked for");
    world.perform();
    world.settle();
    world.revoke(&devices[..1]);
    world.run_for(5_000);
    world.assert_current(group);
    let stored: Vec<_> = devices[1..].iter().map(|device| (*device, world.stored(*device))).collect();

    // A hostile broker brings everything again, each frame to every topic of every device.
    let everything = world.published.clone();
    for (device, _) in &stored {
        let down = Topic::Down { fleet: world.fleet, device: *device };
        for (topic, payload) in &everything {
            for topic in [*topic, down] {
                let input = fleetkey_agent_core::Input::Message { topic, payload };
                let now = world.now;
                let peer = world.peers.get_mut(device).expect("enrolled");
                let effects = peer.agent.handle(input, now, &mut world.rng);
                assert!(effects.writes.is_empty(), "{device} stored something on a replay of {topic}");
            }
        }
    }
    for (device, before) in stored {
        assert!(world.stored(device) == before, "{device}");
    }
    world.assert_current(group);
}

#[test]
fn a_device_that_says_hello_without_end_is_left_unheard_for_a_while() {
    let (mut world, devices, group) = at_rest(13);
    let mut hand = Hand::of(&mut world, devices[0]);
    hand.connect(&mut world);
    let hello =
        UpBody::Hello(fleetkey_wire::Hello { generation: fleetkey_wire::Generation(1), cells: vec![] });
    while hand.say(&mut world, &hello).is_ok() {}
    refused(&mut world, "too_many_hellos", |world| hand.say(world, &hello));
    world.run_for(10_000);
    hand.connect(&mut world);
    assert!(world.coordinator.group_status(group, world.now).is_some());
}
