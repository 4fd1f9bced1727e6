//! To an older version, another suite, an earlier key, a former coordinator.

use fleetkey_coordinator_core::Place;
use fleetkey_identity::{IdentityKey, Role, Validity};
use fleetkey_mls::{LeafSigner, make_key_package};
use fleetkey_tests::Hand;
use fleetkey_wire::{DownBody, Generation, Suite, Topic, UpBody};

use crate::insider::{add, give};
use crate::scene::{Scene, hello};

#[test]
fn downgrade_of_the_version() {
    let mut scene = Scene::at_rest(41);
    let device = scene.devices[0];
    let fleet = scene.world.fleet;
    let mut hand = Hand::of(&mut scene.world, device);
    hand.connect(&mut scene.world);
    let good = hand.frame(&hello());
    let down = scene.world.down_frame(device, 1, &DownBody::RequestHello.encode());
    let cell =
        scene.world.peer(device).agent.topics().into_iter().find(|topic| matches!(topic, Topic::Cell { .. }));
    let cell = cell.expect("it is in one");
    let framed = scene.world.published.iter().rev().find(|(topic, _)| *topic == cell).expect("one").1.clone();
    for version in [0, 2, 0x80, 0xff] {
        let as_version = |frame: &[u8]| [&[version], &frame[1..]].concat();
        let up = as_version(&good);
        scene.refused("unknown_version", |world| hand.send(world, &up));
        scene.refused_by(device, Topic::Down { fleet, device }, &as_version(&down), "unknown_version");
        scene.refused_by(device, cell, &as_version(&framed), "unknown_version");
    }
    // Without the version, as a format before the first could have been.
    scene.refused("unknown_version", |world| hand.send(world, &good[1..]));
    hand.send(&mut scene.world, &good).expect("as it is, it is heard");
}

#[test]
fn downgrade_of_the_suite() {
    let mut scene = Scene::at_rest(42);
    let group = scene.group;
    let mut hand = Hand::enroll(&mut scene.world);
    let signer = LeafSigner::new(&hand.identity.seed());
    let package = |suite| make_key_package(hand.id, suite, &signer).expect("can be made").0;
    let (other, own) = (package(Suite::ChaCha20Poly1305), package(Suite::Aes128Gcm));
    // Another suite than was asked for, by name; by content; and one that is none.
    hand.connect(&mut scene.world);
    scene.world.run_for(6_000);
    hand.say(&mut scene.world, &hello()).expect("a fresh hello is heard");
    let offered = UpBody::KeyPackages { suite: Suite::ChaCha20Poly1305, packages: vec![other.clone()] };
    scene.refused("not_asked_for", |world| hand.say(world, &offered));
    for none in [0, 2, 4, 7] {
        let mut body = UpBody::KeyPackages { suite: Suite::Aes128Gcm, packages: vec![own.clone()] }.encode();
        assert_eq!(body[..3], [0x83, 1, 1], "kind, suite");
        body[2] = none;
        let frame = hand.frame_of(&body);
        scene.refused("unknown_kind", |world| hand.send(world, &frame));
    }
    give(&mut hand, &mut scene.world, Suite::Aes128Gcm, vec![other]);
    assert_eq!(add(&mut hand, &mut scene.world, group), None, "it is not let in");
    assert_eq!(scene.counted("wrong_suite"), 1);
    assert_eq!(scene.world.coordinator.member(group, hand.id).expect("wanted").place, Place::Wanted);
    scene.world.assert_current(group);

    let before = scene.world.published.len();
    give(&mut hand, &mut scene.world, Suite::Aes128Gcm, vec![own]);
    scene.world.run_for(60_000);
    let heard = hand.hear(&scene.world, before);
    assert!(heard.iter().any(|body| matches!(body, DownBody::Welcome(_))), "with the group's suite it is");
}

#[test]
fn downgrade_of_the_coordinators_certificate() {
    let mut scene = Scene::at_rest(43);
    let device = scene.devices[0];
    let fleet = scene.world.fleet;
    let down = Topic::Down { fleet, device };
    let validity = Validity::without_end(0);
    let stranger = IdentityKey::generate(&mut scene.world.rng).public_key();
    let own = scene.world.coordinator_public_key();
    let issue = |scene: &Scene, role: &Role, key: &[u8; 32]| {
        DownBody::Certificate { chain: vec![scene.world.ca.issue(role, key, &[], validity).expect("issued")] }
            .encode()
    };
    let coordinator = |generation| Role::Coordinator { generation: Generation(generation) };
    let cases = [
        (issue(&scene, &coordinator(0), &own), "lower_generation"),
        (issue(&scene, &coordinator(2), &stranger), "coordinator_key_changed"),
        (issue(&scene, &Role::Device(device), &own), "not_the_coordinators_certificate"),
        (issue(&scene, &Role::Broker, &own), "not_the_coordinators_certificate"),
    ];
    let mut skip = 0;
    for (body, name) in cases {
        skip += 1;
        let frame = scene.world.down_frame(device, skip, &body);
        scene.refused_by(device, down, &frame, name);
    }
    let next = issue(&scene, &coordinator(2), &own);
    let frame = scene.world.down_frame(device, skip + 1, &next);
    let now = scene.world.now;
    scene.world.feed(device, &fleetkey_agent_core::Input::Message { topic: down, payload: &frame });
    assert_eq!(scene.world.peer(device).agent.status(now).generation, Generation(2));
}
