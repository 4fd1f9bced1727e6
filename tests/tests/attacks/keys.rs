//! On keys: forged confirmations, and key packages that change on their way.

use fleetkey_agent_core::Input;
use fleetkey_coordinator_core::Place;
use fleetkey_mls::{LeafSigner, make_key_package};
use fleetkey_tests::Hand;
use fleetkey_wire::{CellFrame, GroupSecret, KeyEpoch, StatementAndWrap, Suite, Topic, UpBody, wrap};

use crate::insider::{Insider, add, give};
use crate::scene::{Scene, hello};

#[test]
fn forged_confirmation_by_a_member_with_a_colluding_broker() {
    let mut scene = Scene::at_rest(21);
    let (victim, group) = (scene.devices[0], scene.group);
    // The broker keeps everything from the victim while the group moves on, and lets a member speak in its place.
    scene.world.disconnect(victim);
    let mut insider = Insider::join(&mut scene.world, group);
    let key_epoch = insider.statement.statement().key_epoch;
    let confirmed = |scene: &Scene, device| -> KeyEpoch {
        scene.world.coordinator.member(group, device).expect("a member").confirmed
    };
    assert!(confirmed(&scene, victim) < key_epoch, "the victim has not got the key");

    // Its own frames on the victim's topic, with the best proof that it can make.
    let forged = insider.confirm(&scene.world, victim);
    let frame = insider.hand.frame(&forged);
    scene
        .refused("wrong_mac", |world| world.coordinator.handle_up(victim, &frame, world.now, &mut world.rng));
    // Its own word, where the coordinator listens to it: it counts for itself, or for nobody.
    scene.refused("wrong_proof", |world| insider.hand.say(world, &forged));
    // Even a frame that is authentic proves nothing without what only victim and coordinator share.
    let mut puppet = Hand::of(&mut scene.world, victim);
    puppet.connect(&mut scene.world);
    for body in [&forged, &insider.confirm(&scene.world, insider.hand.id)] {
        scene.refused("wrong_proof", |world| puppet.say(world, body));
    }
    assert!(confirmed(&scene, victim) < key_epoch, "and is not taken to have it");

    // The same confirmation, each in its own name.
    let own = insider.confirm(&scene.world, insider.hand.id);
    insider.hand.say(&mut scene.world, &own).expect("a member that holds the key confirms it");
    assert_eq!(confirmed(&scene, insider.hand.id), key_epoch);
    scene.world.connect(victim);
    scene.world.run_for(5_000);
    assert_eq!(confirmed(&scene, victim), key_epoch);
}

#[test]
fn key_package_swapped_in_flight() {
    let mut scene = Scene::at_rest(22);
    let group = scene.group;
    let suite = Suite::Aes128Gcm;
    let mut honest = Hand::enroll(&mut scene.world);
    let mut thief = Hand::enroll(&mut scene.world);
    let package_of = |hand: &Hand| {
        make_key_package(hand.id, suite, &LeafSigner::new(&hand.identity.seed())).expect("can be made").0
    };
    let (own, swapped) = (package_of(&honest), package_of(&thief));
    assert_eq!(own.len(), swapped.len());

    // In flight: the thief's package in the place of the honest one's, in the honest one's frame.
    honest.connect(&mut scene.world);
    scene.world.run_for(6_000);
    honest.say(&mut scene.world, &hello()).expect("a fresh hello is heard");
    let mut frame = honest.frame(&UpBody::KeyPackages { suite, packages: vec![own.clone()] });
    let at = frame.windows(own.len()).position(|bytes| bytes == own).expect("it is in the frame");
    frame[at..at + own.len()].copy_from_slice(&swapped);
    scene.refused("wrong_mac", |world| honest.send(world, &frame));
    // And with no frame of the honest one's at all.
    let theirs = thief.frame(&UpBody::KeyPackages { suite, packages: vec![swapped] });
    scene.refused("wrong_mac", |world| honest.send(world, &theirs));

    // At the source: the thief hands in the honest one's package, to be taken for it.
    let key_epoch = scene.world.coordinator.group_status(group, scene.world.now).expect("there").key_epoch;
    give(&mut thief, &mut scene.world, suite, vec![own.clone()]);
    assert_eq!(add(&mut thief, &mut scene.world, group), None, "it is not let in");
    assert_eq!(scene.counted("wrong_identity"), 1);
    assert_eq!(scene.world.coordinator.member(group, thief.id).expect("wanted").place, Place::Wanted);
    let later = scene.world.coordinator.group_status(group, scene.world.now).expect("there").key_epoch;
    assert_eq!(later, key_epoch, "and moves nobody");

    // What was taken away still lets its owner in, from its own hand.
    give(&mut honest, &mut scene.world, suite, vec![own]);
    assert!(add(&mut honest, &mut scene.world, group).is_some());
    scene.world.assert_current(group);
}

#[test]
fn another_secret_fed_to_neighbours_under_a_genuine_statement() {
    let mut scene = Scene::at_rest(23);
    let insider = Insider::join(&mut scene.world, scene.group);
    let victim = scene.devices[0];
    let now = scene.world.now;
    let shown = scene.world.peer(victim).agent.status(now).groups[0].clone();
    assert_eq!((shown.cell, shown.cell_epoch), (insider.context.cell, insider.context.cell_epoch));
    let topic = Topic::Cell { fleet: scene.world.fleet, cell: shown.cell };
    let frame_of = |secret: &GroupSecret| {
        let wrap = wrap::wrap(&insider.context, &insider.kek, &insider.statement, secret);
        let statement = insider.statement.as_bytes().to_vec();
        let rekey = Some(StatementAndWrap { statement, wrap });
        CellFrame { cell_epoch: shown.cell_epoch, commit: None, rekey }.encode()
    };
    // The coordinator's own statement, and a wrap under the cell's own key: of a secret that the member chose.
    let other = GroupSecret::from_bytes([7; 32]);
    scene.refused_by(victim, topic, &frame_of(&other), "wrong_commitment");

    // The true secret, wrapped by the same hand, is what the coordinator would send: it harms nobody.
    let harmless = frame_of(&insider.secret);
    let peer = scene.world.peers.get_mut(&victim).expect("enrolled");
    let effects = peer.agent.handle(Input::Message { topic, payload: &harmless }, now, &mut scene.world.rng);
    assert_eq!((effects.refused, effects.writes.is_empty()), (None, true));
}
