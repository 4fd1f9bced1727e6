//! A group that asks for an external pre-shared key: who lacks it gets no secret of the group, whatever else it has, and
//! holds nobody up.

use fleetkey_agent_core::{Event as Told, Input};
use fleetkey_coordinator_core::backup::Backup;
use fleetkey_coordinator_core::doctor::{About, Kind, examine};
use fleetkey_coordinator_core::restore::Restoring;
use fleetkey_coordinator_core::{
    CommandError, GroupStatus, MemoryStore, Place, Policy, Standing, Store as _, Timing, UpRefused,
};
use fleetkey_tests::{Hand, Weather, World};
use fleetkey_wire::{DeviceId, GroupId, Psk, PskId, UpBody};

const NAME: &str = "valves";
const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

fn policy() -> Policy {
    Policy { cell_capacity: 8, overlap_seconds: 0, rotation_interval_seconds: 0, ..Policy::default() }
}

fn psk(world: &mut World) -> Psk {
    Psk::random(&mut world.rng)
}

fn give(world: &mut World, devices: &[DeviceId], psk: &Psk) {
    for device in devices {
        world.feed(*device, &Input::AddPsk { group: NAME, psk });
    }
    world.settle();
}

fn create(world: &mut World, psk: &Psk) -> GroupId {
    let (psk, now) = (psk.clone(), world.now);
    let group = world.coordinator.create_guarded_group(NAME, policy(), psk, now, &mut world.rng);
    world.perform();
    group.expect("a group can be created")
}

fn set(world: &mut World, group: GroupId, psk: &Psk) -> Result<bool, CommandError> {
    let set = world.coordinator.set_psk(group, psk.clone(), world.now);
    world.perform();
    world.settle();
    set
}

/// A fleet whose devices hold the key, all of them in the group.
fn guarded(seed: u64, count: usize) -> (World, Vec<DeviceId>, GroupId, Psk) {
    let mut world = World::new(seed);
    let psk = psk(&mut world);
    let devices = world.enroll(count);
    give(&mut world, &devices, &psk);
    let group = create(&mut world, &psk);
    world.add(group, &devices);
    (world, devices, group, psk)
}

fn status(world: &World, group: GroupId) -> GroupStatus {
    world.coordinator.group_status(group, world.now).expect("the group is there")
}

fn lacking(world: &World, group: GroupId) -> usize {
    status(world, group).psk.expect("it asks for one").lacking
}

fn held(world: &mut World, device: DeviceId) -> Vec<PskId> {
    let now = world.now;
    world.peer(device).agent.status(now).psks.iter().map(|held| held.psk).collect()
}

fn refused(world: &mut World, device: DeviceId, name: &str) -> u64 {
    let now = world.now;
    world.peer(device).agent.status(now).refused.get(name).copied().unwrap_or(0)
}

fn is_in(world: &mut World, device: DeviceId, group: GroupId) -> bool {
    let now = world.now;
    world.peer(device).agent.status(now).groups.iter().any(|of| of.group == group)
}

fn standing(world: &World, device: DeviceId) -> Standing {
    world.coordinator.device(device).expect("enrolled").standing.clone()
}

/// Whether a device holds the group's newest key.
fn is_current(world: &mut World, device: DeviceId, group: GroupId) -> bool {
    let (now, newest) = (world.now, status(world, group).key_epoch);
    let of = world.peer(device).agent.status(now);
    of.groups.iter().any(|of| of.group == group && of.held.iter().any(|held| held.to_string() == newest))
}

fn rekey(world: &mut World, group: GroupId) {
    world.coordinator.rekey(group, world.now, &mut world.rng).expect("it can be rekeyed");
    world.perform();
    world.run_for(5_000);
}

/// Gives a device everything that was ever published, on every topic, as a hostile broker would; and then none of it has
/// brought it into the group.
fn assert_gets_nothing(world: &mut World, device: DeviceId, group: GroupId) {
    for (topic, payload) in world.published.clone() {
        world.feed(device, &Input::Message { topic, payload: &payload });
    }
    world.wire.clear();
    let now = world.now;
    assert!(!is_in(world, device, group), "{device} is in the group");
    assert_eq!(world.peer(device).agent.commitments(group), []);
    assert!(world.peer(device).agent.seal(group, b"x", b"", false, now, &mut rand()).is_err());
}

fn rand() -> rand_chacha::ChaCha20Rng {
    rand_chacha::rand_core::SeedableRng::seed_from_u64(0)
}

#[test]
fn devices_that_hold_the_key_notice_nothing_of_it() {
    let (mut world, devices, group, psk) = guarded(300, 20);
    world.assert_current(group);
    world.revoke(&devices[..1]);
    let late = world.enroll(3);
    give(&mut world, &late, &psk);
    world.add(group, &late);
    world.run_for(8 * DAY);
    world.assert_current(group);
    assert_eq!(lacking(&world, group), 0);
    let is_revoked = |refused: &UpRefused| matches!(refused, UpRefused::Revoked { .. });
    assert!(world.refused.iter().all(is_revoked), "nothing else is refused in calm weather");
    for (id, peer) in &world.peers {
        let refused = &peer.agent.status(world.now).refused;
        assert!(!refused.keys().any(|name| name.contains("psk")), "{id}: {refused:?}");
    }
}

#[test]
fn who_lacks_the_key_or_holds_another_stays_out_by_name_and_holds_nobody_up() {
    let (mut world, devices, group, psk) = guarded(301, 10);
    let (without, mistaken) = (world.enroll(1)[0], world.enroll(1)[0]);
    let another = self::psk(&mut world);
    give(&mut world, &[mistaken], &another);
    let commits = world.published.len();
    world.add(group, &[without, mistaken]);
    assert!(commits < world.published.len(), "they are asked where they stand");

    world.run_for(3 * DAY);
    rekey(&mut world, group);
    for device in [without, mistaken] {
        assert_gets_nothing(&mut world, device, group);
        assert_eq!(world.coordinator.member(group, device).expect("it is wanted").place, Place::Wanted);
        assert_eq!(standing(&world, device), Standing::Enrolled, "it is no clone");
    }
    let shown = status(&world, group);
    assert_eq!((shown.behind.lacks_psk, shown.behind.total(), lacking(&world, group)), (2, 2, 2));
    assert_eq!((shown.members, shown.confirmed), (10, 10));
    assert!(devices.iter().all(|device| is_current(&mut world, *device, group)));

    give(&mut world, &[without, mistaken], &psk);
    world.run_for(60_000);
    world.assert_current(group);
    assert_eq!((status(&world, group).members, lacking(&world, group)), (12, 0));
}

#[test]
fn a_right_certificate_and_a_lie_about_the_key_yield_no_secret() {
    let (mut world, devices, group, psk) = guarded(302, 10);
    let thief = world.enroll(1)[0];
    // It says that it holds the key, as its link lets it; and answers whatever it is asked for.
    let mut hand = Hand::of(&mut world, thief);
    hand.connect(&mut world);
    hand.say(&mut world, &UpBody::Psks { held: vec![psk.id()] }).expect("it can say anything");
    world.restart(thief);
    world.settle();
    world.add(group, &[thief]);

    assert!(matches!(world.coordinator.member(group, thief).expect("it is wanted").place, Place::In { .. }));
    assert!(refused(&mut world, thief, "psk_missing") > 0, "its Welcome was of no use");
    let told = Told::PskLacking { group, psk: psk.id() };
    assert_eq!(world.peer(thief).events.iter().filter(|event| **event == told).count(), 1);
    for _ in 0..3 {
        rekey(&mut world, group);
        world.run_for(DAY);
    }
    assert_gets_nothing(&mut world, thief, group);
    assert_eq!(standing(&world, thief), Standing::Enrolled, "it has told the truth since, and waits");
    assert_eq!(status(&world, group).behind.lacks_psk, 1);
    assert!(devices.iter().all(|device| is_current(&mut world, *device, group)));
}

#[test]
fn who_lies_about_the_key_without_end_is_put_aside_like_any_clone() {
    let mut world = World::with_timing(303, Timing { fresh_join_backoff_seconds: 60, ..Timing::default() });
    let (psk, devices) = (psk(&mut world), world.enroll(4));
    give(&mut world, &devices, &psk);
    let group = create(&mut world, &psk);
    world.add(group, &devices);
    let thief = world.enroll(1)[0];
    world.add(group, &[thief]);
    let mut hand = Hand::of(&mut world, thief);
    let mut lies = 0;
    while standing(&world, thief) == Standing::Enrolled {
        lies += 1;
        assert!(lies < 200, "it is never put aside");
        hand.connect(&mut world);
        hand.say(&mut world, &UpBody::Psks { held: vec![psk.id()] }).expect("it can say anything");
        world.restart(thief);
        world.run_for(1_200_000);
    }
    assert_gets_nothing(&mut world, thief, group);
    assert!(devices.iter().all(|device| is_current(&mut world, *device, group)));
}

#[test]
fn a_device_that_holds_a_key_for_a_group_is_let_in_by_nobody_without_it() {
    let mut world = World::new(304);
    let devices = world.enroll(6);
    let psk = psk(&mut world);
    give(&mut world, &devices[..1], &psk);
    // Somebody who passes for the coordinator, and has no pre-shared key, calls its group the same.
    let group = world.group(NAME, policy(), &devices);
    world.run_for(60_000);
    assert!(refused(&mut world, devices[0], "psk_not_used") > 0);
    assert_gets_nothing(&mut world, devices[0], group);
    for device in &devices[1..] {
        assert!(is_current(&mut world, *device, group), "{device}");
    }
    // Another group does not concern it.
    let other = world.group("pumps", policy(), &devices);
    assert!(is_current(&mut world, devices[0], other));
}

#[test]
fn a_member_that_is_given_a_key_follows_no_join_without_it() {
    let mut world = World::new(305);
    let devices = world.enroll(6);
    let group = world.group(NAME, policy(), &devices[..5]);
    let psk = psk(&mut world);
    give(&mut world, &devices[..1], &psk);
    world.add(group, &devices[5..]);
    assert!(refused(&mut world, devices[0], "psk_not_used") > 0);
    assert!(!is_current(&mut world, devices[0], group));
    for device in &devices[1..] {
        assert!(is_current(&mut world, *device, group), "{device}");
    }
}

#[test]
fn catch_up_and_fresh_joins_go_on_with_the_key_across_restarts() {
    let (mut world, devices, group, psk) = guarded(306, 6);
    let (away, lost) = (devices[0], devices[1]);
    world.restart_coordinator();
    world.disconnect(away);
    for round in 0..20 {
        let more = world.enroll(1);
        give(&mut world, &more, &psk);
        world.add(group, &more);
        if round < 19 {
            world.coordinator.evict(group, &more, world.now, &mut world.rng).expect("it can be evicted");
            world.perform();
            world.settle();
        }
    }
    // More commits were made than are kept: it comes in afresh. The other has lost everything, the key too.
    world.connect(away);
    world.wipe(lost);
    world.restart_coordinator();
    world.run_for(HOUR);
    assert!(is_current(&mut world, away, group));
    assert!(!is_in(&mut world, lost, group));
    assert_eq!((lacking(&world, group), status(&world, group).behind.lacks_psk), (1, 1));
    world.run_for(3 * DAY);
    assert_eq!(standing(&world, lost), Standing::Enrolled, "it is no clone");

    give(&mut world, &[lost], &psk);
    world.run_for(HOUR);
    world.assert_current(group);
    assert_eq!(lacking(&world, group), 0);
    // A few missed commits, with joins among them, are replayed.
    world.disconnect(away);
    let more = world.enroll(2);
    give(&mut world, &more, &psk);
    world.add(group, &more);
    world.connect(away);
    world.run_for(60_000);
    world.assert_current(group);
}

#[test]
fn a_group_goes_over_to_its_next_key_with_those_who_hold_it() {
    let (mut world, devices, group, former) = guarded(307, 7);
    let next = psk(&mut world);
    let stuck = devices[6];
    give(&mut world, &devices[..6], &next);
    assert_eq!(held(&mut world, devices[0]), [former.id(), next.id()]);
    assert_eq!(set(&mut world, group, &next), Ok(true));
    assert_eq!(lacking(&world, group), 1);
    world.assert_current(group);

    // Nobody comes in with the former one; and the one who lacks the next is stuck once somebody comes in with that.
    let (new, outdated) = (world.enroll(1)[0], world.enroll(1)[0]);
    give(&mut world, &[new], &next);
    give(&mut world, &[outdated], &former);
    world.add(group, &[new, outdated]);
    world.run_for(2 * DAY);
    rekey(&mut world, group);
    assert_gets_nothing(&mut world, outdated, group);
    assert!(!is_current(&mut world, stuck, group));
    assert!(refused(&mut world, stuck, "psk_missing") > 0);
    for device in devices[..6].iter().chain([&new]) {
        assert!(is_current(&mut world, *device, group), "{device}");
        assert_eq!(held(&mut world, *device), [next.id()], "the former one is gone");
    }
    assert_eq!(status(&world, group).behind.lacks_psk, 2);
    for device in [stuck, outdated] {
        assert_eq!(standing(&world, device), Standing::Enrolled, "it is no clone");
    }

    give(&mut world, &[stuck, outdated], &next);
    world.run_for(HOUR);
    world.assert_current(group);
    assert_eq!(lacking(&world, group), 0);
}

#[test]
fn lost_doubled_and_overtaken_messages_keep_nobody_out_for_good() {
    let mut world = World::new(308);
    let psk = psk(&mut world);
    let devices = world.enroll(12);
    world.weather = Weather { lost_percent: 20, doubled_percent: 10, overtaken_by: 3 };
    give(&mut world, &devices, &psk);
    let group = create(&mut world, &psk);
    world.add(group, &devices);
    for device in &devices[..4] {
        world.restart(*device);
    }
    world.run_for(2 * HOUR);
    world.restart_coordinator();
    world.run_for(2 * HOUR);
    world.weather = Weather::default();
    world.run_for(DAY);
    world.assert_current(group);
    assert_eq!(status(&world, group).members, 12);
}

#[test]
fn after_a_restore_nobody_comes_in_until_the_key_is_installed_again() {
    let (mut world, devices, group, psk) = guarded(309, 9);
    let backup = Backup::of_store(&mut world.store, world.now.unix_seconds).expect("a sound store");
    let encoded = backup.encode();
    assert!(!encoded.windows(32).any(|bytes| bytes == psk.as_bytes()), "a backup holds no secret");
    let known = Restoring { unix_seconds: world.now.unix_seconds, ..Restoring::default() };
    let restored = backup.restored_rows(&known);
    world.store = MemoryStore::default();
    world.store.commit(&restored.writes).expect("memory does not fail");
    world.wire.clear();
    world.restart_coordinator();
    world.run_for(HOUR);

    let shown = status(&world, group);
    assert_eq!((shown.members, shown.wanted), (0, 9));
    assert!(!shown.psk.expect("it asks for one").installed);
    let about = About { fleet: world.fleet, coordinator: world.coordinator_public_key() };
    let found = examine(&mut world.store, &about, world.now.unix_seconds).expect("memory does not fail");
    assert!(found.iter().any(|found| found.kind == Kind::PskNotInstalled), "{found:?}");

    assert_eq!(set(&mut world, group, &psk), Ok(false), "it is the same one");
    world.run_for(HOUR);
    world.assert_current(group);
    assert!(devices.iter().all(|device| is_current(&mut world, *device, group)));
    assert!(status(&world, group).psk.expect("it asks for one").installed);
    world.restart_coordinator();
    assert!(status(&world, group).psk.expect("it asks for one").installed);
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let (mut world, devices, group, former) = guarded(310, 2);
    let plain = world.group("pumps", policy(), &devices);
    let next = psk(&mut world);
    assert_eq!(set(&mut world, plain, &next), Err(CommandError::NoPskGroup(plain)));
    let used =
        world.coordinator.create_guarded_group("levers", policy(), former.clone(), world.now, &mut world.rng);
    assert_eq!(used, Err(CommandError::PskInUse { psk: former.id(), group }));
    assert_eq!(set(&mut world, group, &former), Ok(false), "it is that one already");
    assert_eq!(set(&mut world, group, &next), Ok(true));
    let nowhere = GroupId::from_bytes([9; 16]);
    assert_eq!(set(&mut world, nowhere, &former), Err(CommandError::UnknownGroup(nowhere)));
}
