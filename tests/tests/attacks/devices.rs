//! On devices: what a stolen key, a second copy and a used claim are worth.

use fleetkey_coordinator_core::enrolment::{Application, ClaimTerms, Enrolment, Proof, ShownClaim, Verdict};
use fleetkey_coordinator_core::{Event, Labels, Timing};
use fleetkey_identity::IdentityKey;
use fleetkey_tests::{Hand, World};
use fleetkey_wire::{DeviceId, GroupId, KeyEpoch, ShortDigest, Suite, Topic, UpBody};

use crate::scene::{Scene, hello};

fn claim(world: &mut World, uses: u32, seconds: u64) -> ShownClaim {
    let terms = ClaimTerms {
        note: "hall 3".to_owned(),
        uses,
        expires_unix_seconds: world.now.unix_seconds + seconds,
        labels: Labels::default(),
        needs_approval: false,
    };
    let shown = world.coordinator.create_claim(terms, world.now, &mut world.rng).expect("it can be made");
    world.perform();
    shown
}

fn application(claim: &ShownClaim, public_key: [u8; 32]) -> Application {
    Application {
        public_key,
        name: None,
        proof: Proof::Claim(claim.clone()),
        verdict: Verdict::Approve,
        labels: Labels::default(),
    }
}

fn whatever(group: GroupId) -> [UpBody; 4] {
    [
        hello(),
        UpBody::Leave { group },
        UpBody::Confirm { group, key_epoch: KeyEpoch(1), statement: ShortDigest([7; 8]), proof: [7; 32] },
        UpBody::KeyPackages { suite: Suite::Aes128Gcm, packages: vec![vec![1]] },
    ]
}

#[test]
fn stolen_device_key_after_revocation() {
    let mut scene = Scene::at_rest(31);
    let (stolen, honest, group) = (scene.devices[0], scene.devices[1], scene.group);
    let mut thief = Hand::of(&mut scene.world, stolen);
    let key = thief.identity.public_key();
    // Until it is revoked, whoever has the key is the device.
    thief.connect(&mut scene.world);
    thief.say(&mut scene.world, &hello()).expect("the key is the device");
    let claim = claim(&mut scene.world, 9, 3_600);
    scene.world.revoke(&[stolen]);
    scene.world.run_for(5_000);
    scene.world.assert_current(group);

    // On the connection that it had, and on a new one.
    for mut thief in [thief, Hand::of(&mut scene.world, stolen)] {
        for body in whatever(group) {
            scene.refused("revoked_device", |world| thief.say(world, &body));
        }
    }
    // Under another name, another identity, by another way in.
    let fresh = DeviceId::random(&mut scene.world.rng);
    scene.refused("key_in_use", |world| world.coordinator.enroll_device(fresh, "another", key, world.now));
    let other_key = IdentityKey::generate(&mut scene.world.rng).public_key();
    scene.refused("already_enrolled", |world| {
        world.coordinator.enroll_device(stolen, "again", other_key, world.now)
    });
    scene.refused("revoked_device", |world| {
        world.coordinator.enrol(&application(&claim, key), world.now, &mut world.rng)
    });
    scene.refused("revoked", |world| {
        world.coordinator.add_members(group, &[stolen], world.now, &mut world.rng)
    });
    // It recorded everything, and hears everything that was ever sent.
    let now = scene.world.now;
    for (topic, payload) in scene.world.published.clone() {
        let peer = scene.world.peers.get_mut(&stolen).expect("enrolled");
        let input = fleetkey_agent_core::Input::Message { topic, payload: &payload };
        peer.agent.handle(input, now, &mut scene.world.rng);
    }
    let others = scene.devices[1..].to_vec();
    scene.assert_opens(honest, &others, &[stolen]);

    // The same, by who is not revoked.
    let mut own = Hand::of(&mut scene.world, honest);
    own.connect(&mut scene.world);
    own.say(&mut scene.world, &hello()).expect("heard");
    let enrolled = scene.world.coordinator.enrol(&application(&claim, other_key), now, &mut scene.world.rng);
    assert!(matches!(enrolled, Ok(Enrolment::Enrolled { is_known: false, .. })));
}

#[test]
fn cloned_device() {
    let timing = Timing { fresh_joins_per_day: 3, fresh_join_backoff_seconds: 1, ..Timing::default() };
    let mut scene = Scene::with_timing(32, timing);
    let (cloned, group) = (scene.devices[0], scene.group);
    let nobody = GroupId::from_bytes([9; 16]);
    // Two that speak as one: with its first proven word the later one ends what the earlier one says.
    let mut original = Hand::of(&mut scene.world, cloned);
    original.connect(&mut scene.world);
    scene.refused("not_a_member", |world| original.say(world, &UpBody::Leave { group: nobody }));
    let mut clone = Hand::of(&mut scene.world, cloned);
    clone.connect(&mut scene.world);
    clone.say(&mut scene.world, &hello()).expect("it has the key");
    scene.refused("stale_nonce", |world| original.say(world, &UpBody::Leave { group }));

    // A copy has the key and not the state: each time it comes it has to be let in afresh. Once is a device that lost
    // its memory, and it is helped.
    scene.world.wipe(cloned);
    scene.world.run_for(30_000);
    scene.world.assert_current(group);
    let is_out = |world: &World| {
        world.events.iter().any(|event| matches!(event, Event::Quarantined { device } if *device == cloned))
    };
    let mut times = 1;
    while !is_out(&scene.world) {
        scene.world.wipe(cloned);
        scene.world.run_for(60_000);
        times += 1;
        assert!(times <= 10, "it comes and comes");
    }
    assert!(times > 2, "a device may lose its memory more than once: {times}");
    let mut clone = Hand::of(&mut scene.world, cloned);
    for body in whatever(group) {
        scene.refused("quarantined_device", |world| clone.say(world, &body));
    }
    // The others went on, and an operator who has looked at it lets it in again.
    let others = scene.devices[1..].to_vec();
    scene.assert_opens(others[0], &others, &[]);
    scene.world.coordinator.release(cloned, scene.world.now).expect("it is quarantined");
    scene.world.perform();
    scene.world.run_for(180_000);
    scene.world.assert_current(group);
}

#[test]
fn replayed_claim_token() {
    let mut scene = Scene::at_rest(33);
    let once = claim(&mut scene.world, 1, 3_600);
    let short = claim(&mut scene.world, 5, 60);
    let keys: Vec<_> = (0..3).map(|_| IdentityKey::generate(&mut scene.world.rng).public_key()).collect();
    let enrol = |world: &mut World, application: &Application| {
        world.coordinator.enrol(application, world.now, &mut world.rng)
    };
    // Rightly: once, and again by the same key, whose answer was lost.
    let first = enrol(&mut scene.world, &application(&once, keys[0])).expect("a good claim lets in");
    scene.world.perform();
    let Enrolment::Enrolled { device, is_known: false } = first else { panic!("{first:?}") };
    let again = enrol(&mut scene.world, &application(&once, keys[0])).expect("it is known");
    assert_eq!(again, Enrolment::Enrolled { device, is_known: true });
    scene.world.perform();

    scene.refused("claim_used_up", |world| enrol(world, &application(&once, keys[1])));
    // The id of one and the secret of another; after a restart; after its time.
    let mixed = ShownClaim { id: short.id, secret: once.secret.clone() };
    scene.refused("unknown_claim", |world| enrol(world, &application(&mixed, keys[1])));
    scene.world.restart_coordinator();
    scene.refused("claim_used_up", |world| enrol(world, &application(&once, keys[1])));
    scene.world.run_for(61_000);
    scene.refused("claim_expired", |world| enrol(world, &application(&short, keys[1])));
    // And by whom it let in, once that device is out.
    scene.world.revoke(&[device]);
    scene.refused("revoked_device", |world| enrol(world, &application(&once, keys[0])));
    let good = claim(&mut scene.world, 1, 3_600);
    enrol(&mut scene.world, &application(&good, keys[2])).expect("another claim lets in");
}

#[test]
fn frames_of_a_device_carried_elsewhere_by_the_broker() {
    let mut scene = Scene::at_rest(34);
    let (victim, other, group) = (scene.devices[0], scene.devices[1], scene.group);
    let mut hand = Hand::of(&mut scene.world, victim);
    hand.connect(&mut scene.world);
    let leave = hand.frame(&UpBody::Leave { group });
    // To another device's topic, sent back down, and onto the cell.
    scene.refused("wrong_mac", |world| world.coordinator.handle_up(other, &leave, world.now, &mut world.rng));
    let fleet = scene.world.fleet;
    scene.refused_by(other, Topic::Down { fleet, device: other }, &leave, "wrong_mac");
    scene.refused_by(other, Topic::Up { fleet, device: victim }, &leave, "unexpected_topic");
    // On its own topic, once, it is what the device said; a second time it is nothing.
    hand.send(&mut scene.world, &leave).expect("a member may leave");
    assert!(scene.world.coordinator.member(group, victim).is_none());
    scene.refused("replayed", |world| hand.send(world, &leave));
}
