//! Hellos, answers, silence, and the coordinator's certificate.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

mod common;

use common::{Device, Fleet, Group, HELLO_INTERVAL_SECONDS, MAX_SILENCE_SECONDS, answer, coordinator_chain};
use fleetkey_agent_core::{CannotSeal, Event, Input, Output};
use fleetkey_identity::{FleetCa, IdentityKey, KeyId, Role};
use fleetkey_wire::link::{CoordinatorLink, StartSecret};
use fleetkey_wire::{CellEpoch, CellFrame, DownBody, Generation, Reason, UpBody};
use rand_core::OsRng;

/// How many hellos the device has said; they are answered.
fn hellos(fleet: &Fleet, device: &mut Device) -> usize {
    let heard = fleet.answer(device);
    heard.iter().filter(|frame| matches!(frame.body, UpBody::Hello(_))).count()
}

fn member(seed: u8) -> (Fleet, Device, Group) {
    let mut fleet = Fleet::new(seed);
    let mut device = fleet.online_device();
    let group = fleet.group_with(&mut [&mut device]);
    fleet.answer(&mut device);
    assert_eq!(hellos(&fleet, &mut device), 0);
    (fleet, device, group)
}

#[test]
fn a_hello_is_said_when_nothing_more_can_be_missed() {
    let (fleet, mut device, group) = member(60);
    device.give(Input::Disconnected).unwrap();
    let effects = device.decide(Input::Connected);
    let topics: Vec<_> = effects
        .outputs
        .iter()
        .map(|output| {
            let Output::Subscribe { topic } = output else { panic!("{output:?}") };
            *topic
        })
        .collect();
    assert_eq!(topics, [device.cell_topic(group.id_of_cell()), device.down_topic()]);
    // In whatever order the answers come, the hello follows the last.
    device.give(Input::Subscribed { topic: topics[1] }).unwrap();
    assert!(device.up.is_empty());
    device.give(Input::Subscribed { topic: topics[0] }).unwrap();
    let heard = fleet.hear(&mut device);
    let UpBody::Hello(hello) = &heard[0].body else { panic!("{heard:?}") };
    let cell = &hello.cells[0];
    assert_eq!((cell.cell, cell.cell_epoch), (group.id_of_cell(), group.epoch()));
    assert_eq!(cell.authenticator.0, group.cell.epoch_authenticator8());
    assert_eq!((cell.key_epoch, cell.send, cell.oldest), (group.key_epoch, group.send, group.oldest));
    assert_eq!(hello.generation, Generation(1));
}

#[test]
fn a_refused_or_late_subscription_does_not_hold_the_hello_up() {
    let (fleet, mut device, group) = member(61);
    let (cell, down) = (device.cell_topic(group.id_of_cell()), device.down_topic());
    device.give(Input::Disconnected).unwrap();
    device.decide(Input::Connected);
    device.give(Input::SubscribeRefused { topic: cell }).unwrap();
    device.give(Input::Subscribed { topic: down }).unwrap();
    assert_eq!(hellos(&fleet, &mut device), 1);
    device.give(Input::Subscribed { topic: cell }).unwrap();
    assert_eq!(hellos(&fleet, &mut device), 1, "granted after all: something may have been missed");

    device.give(Input::Disconnected).unwrap();
    device.decide(Input::Connected);
    device.give(Input::Subscribed { topic: down }).unwrap();
    device.pass(999);
    assert_eq!(hellos(&fleet, &mut device), 0);
    device.pass(1);
    assert_eq!(hellos(&fleet, &mut device), 1);
}

#[test]
fn a_hello_is_repeated_less_and_less_often_until_it_is_answered() {
    let fleet = &mut Fleet::new(62);
    let mut device = fleet.device();
    device.connect();
    let mut waits = Vec::new();
    let mut last = device.now.mono;
    for _ in 0..9 {
        assert_eq!(fleet.hear(&mut device).len(), 1);
        while device.up.is_empty() {
            let at = device.agent.poll_timeout().unwrap();
            device.set_clock(at);
            device.give(Input::Timeout).unwrap();
        }
        waits.push(device.now.mono.since(last));
        last = device.now.mono;
    }
    for (wait, around) in waits.iter().zip([2, 4, 8, 16, 32, 60, 60, 60, 60]) {
        let around = around * 1000;
        assert!((around * 4 / 5..=around * 6 / 5).contains(wait), "{waits:?}");
    }
    assert!(waits.iter().any(|wait| wait % 1000 != 0), "spread: {waits:?}");

    fleet.answer(&mut device);
    let interval_ms = u64::from(HELLO_INTERVAL_SECONDS) * 1000;
    device.pass(interval_ms * 4 / 5 - 1);
    assert_eq!(hellos(fleet, &mut device), 0);
    device.pass(interval_ms * 2 / 5 + 1);
    assert!(hellos(fleet, &mut device) >= 1);
}

#[test]
fn pokes_and_frames_of_other_connections_lead_to_one_hello_in_ten_seconds() {
    let (fleet, mut device, _) = member(63);
    // A coordinator just started, which has not heard of the device.
    let mut ignorant = CoordinatorLink::default();
    let poke = ignorant.seal(&fleet.start, device.id, &device.link_key, &DownBody::HelloAgain);
    device.give(Input::Disconnected).unwrap();
    fleet.connect(&mut device);
    fleet.hear(&mut device);
    for _ in 0..100 {
        device.down(&poke).unwrap();
    }
    assert_eq!(hellos(&fleet, &mut device), 1);
    device.pass(9_999);
    assert_eq!(hellos(&fleet, &mut device), 0);
    device.pass(1);
    assert_eq!(hellos(&fleet, &mut device), 1, "put off, not forgotten");

    let old = fleet.down(&mut device, &DownBody::RequestHello);
    device.give(Input::Disconnected).unwrap();
    fleet.connect(&mut device);
    fleet.hear(&mut device);
    device.pass(10_000);
    for _ in 0..100 {
        device.down(&old).unwrap_err();
    }
    assert_eq!(hellos(&fleet, &mut device), 1);
}

#[test]
fn a_restarted_coordinator_is_met_with_a_fresh_link() {
    let (mut fleet, mut device, mut group) = member(64);
    fleet.start = StartSecret::random(&mut fleet.rng);
    device.link = CoordinatorLink::default();
    // The device says something under the old nonce; the coordinator can only ask for a hello.
    let cell = group.id_of_cell();
    let frame = group.rekey_frame(&mut fleet);
    device.cell(cell, &frame).unwrap();
    let confirmation = device.up.remove(0);
    let refused = device.link.open(&fleet.start, device.id, &device.link_key, &confirmation);
    assert!(refused.is_err());
    let again = fleet.down(&mut device, &DownBody::HelloAgain);
    let refused = device.down(&again).unwrap_err();
    assert_eq!(fleetkey_wire::Named::name(&refused), "peer_restarted");
    let heard = fleet.answer(&mut device);
    assert!(matches!(heard[0].body, UpBody::Hello(_)) && !heard[0].fresh);
    device.cell(cell, &frame).unwrap();
    let heard = fleet.hear(&mut device);
    assert!(matches!(heard[0].body, UpBody::Confirm { .. }) && heard[0].fresh);
}

#[test]
fn hello_again_before_the_first_answer_begins_anew() {
    let mut fleet = Fleet::new(65);
    let mut device = fleet.device();
    device.connect();
    let first = device.up[0].clone();
    fleet.hear(&mut device);
    fleet.say(&mut device, &DownBody::HelloAgain).unwrap();
    assert_eq!(device.up.len(), 1);
    assert_ne!(device.up[0], first);
    fleet.answer(&mut device);
    assert!(device.status().is_answered);
}

#[test]
fn the_coordinator_gets_a_fresh_hello_when_it_asks() {
    let (fleet, mut device, _) = member(66);
    fleet.say(&mut device, &DownBody::RequestHello).unwrap();
    let heard = fleet.hear(&mut device);
    assert!(matches!(heard[0].body, UpBody::Hello(_)) && heard[0].fresh);
    for _ in 0..20 {
        fleet.say(&mut device, &DownBody::RequestHello).unwrap();
    }
    assert_eq!(hellos(&fleet, &mut device), 0);
    device.pass(1_000);
    assert_eq!(hellos(&fleet, &mut device), 1);
}

#[test]
fn lost_messages_lead_to_a_hello() {
    let (fleet, mut device, _) = member(67);
    device.give(Input::MessagesDropped).unwrap();
    assert_eq!(hellos(&fleet, &mut device), 1);
}

#[test]
fn frames_that_are_ahead_lead_to_ever_fewer_hellos() {
    let (mut fleet, mut device, mut group) = member(68);
    let cell = group.id_of_cell();
    let ahead = CellFrame {
        cell_epoch: CellEpoch(group.epoch().0 + 1),
        commit: None,
        rekey: Some(group.wrapped(&fleet, &group.statement(&fleet, group.send, Reason::Manual))),
    }
    .encode();
    let mut said_at = Vec::new();
    for tenth in 0..1_200u64 {
        device.cell(cell, &ahead).unwrap_err();
        let count = fleet.answer(&mut device).len();
        assert!(count <= 1);
        if count == 1 {
            said_at.push(tenth / 10);
        }
        device.pass(100);
    }
    assert_eq!(said_at[..6], [0, 2, 6, 14, 30, 62], "{said_at:?}");
    // A frame that fits makes it worth asking again; not more often than every two seconds.
    let frame = group.rekey_frame(&mut fleet);
    device.cell(cell, &frame).unwrap();
    fleet.answer(&mut device);
    for _ in 0..20 {
        device.cell(cell, &frame).unwrap();
        device.cell(cell, &ahead).unwrap_err();
        device.pass(100);
    }
    assert!(hellos(&fleet, &mut device) <= 2);
}

#[test]
fn a_silent_coordinator_stops_sealing_and_an_answer_starts_it_again() {
    let (mut fleet, mut device, group) = member(69);
    let max_ms = u64::from(MAX_SILENCE_SECONDS) * 1000;
    device.pass(max_ms);
    device.seal(&group, b"just in time");
    assert!(!device.events.iter().any(|event| matches!(event, Event::Silent { .. })));
    device.pass(1);
    let sealed = device.agent.seal(group.id, b"too late", b"", false, device.now, &mut device.rng);
    assert!(matches!(sealed, Err(CannotSeal::Silent { seconds: 86_400, max: MAX_SILENCE_SECONDS })));
    assert!(device.events.iter().any(|event| matches!(event, Event::Silent { .. })));
    assert!(device.status().is_silent);

    fleet.answer(&mut device);
    device.give(Input::Timeout).unwrap();
    let hello = device.decide_hello(&mut fleet);
    fleet.say(&mut device, &answer(hello)).unwrap();
    assert!(device.events.contains(&Event::Heard));
    device.seal(&group, b"again");
}

#[test]
fn a_reboot_does_not_end_a_silence() {
    let (_, mut device, group) = member(70);
    let half_ms = u64::from(MAX_SILENCE_SECONDS) * 500;
    device.pass(half_ms);
    device.reboot();
    assert_eq!(device.status().silent_seconds, half_ms / 1000);
    device.pass(half_ms + 1);
    assert!(device.agent.seal(group.id, b"", b"", false, device.now, &mut device.rng).is_err());
    device.reboot();
    assert!(
        device.status().is_silent || device.status().silent_seconds + 600 >= u64::from(MAX_SILENCE_SECONDS)
    );
}

#[test]
fn an_answer_counts_from_when_its_hello_was_said() {
    let mut fleet = Fleet::new(71);
    let mut device = fleet.device();
    device.connect();
    let withheld = fleet.hear(&mut device)[0].counter;
    device.pass(3_000_000);
    fleet.hear(&mut device);
    // The broker brings, after 50 minutes, the answer to the first hello: too old to be outstanding.
    assert!(fleet.say(&mut device, &answer(withheld)).is_err());
    device.pass(90_000);
    let newest = fleet.hear(&mut device).last().map(|frame| frame.counter).unwrap();
    device.pass(30_000);
    fleet.say(&mut device, &answer(newest)).unwrap();
    let silent_seconds = device.status().silent_seconds;
    assert!((30..=90).contains(&silent_seconds), "{silent_seconds}");
}

#[test]
fn silence_is_stored_now_and_then_and_not_with_every_answer() {
    let (fleet, mut device, _) = member(72);
    let silence = |device: &mut Device| device.entries()["silence"].clone();
    let first = silence(&mut device);
    for _ in 0..10 {
        device.pass(60_000);
        fleet.say(&mut device, &DownBody::RequestHello).unwrap();
        fleet.answer(&mut device);
        assert_eq!(silence(&mut device), first);
    }
    device.pass(600_000);
    assert_ne!(silence(&mut device), first);
    fleet.say(&mut device, &DownBody::RequestHello).unwrap();
    fleet.answer(&mut device);
    assert_eq!(silence(&mut device), first);
}

#[test]
fn a_coordinator_certificate_only_ever_gets_newer() {
    let (mut fleet, mut device, mut group) = member(73);
    let say = |fleet: &Fleet, device: &mut Device, chain: Vec<Vec<u8>>| {
        let before = device.state();
        let outcome = fleet.say(device, &DownBody::Certificate { chain });
        outcome.map(drop).map_err(|refused| {
            assert_eq!(device.state(), before);
            fleetkey_wire::Named::name(&refused)
        })
    };
    let first = fleet.chain.clone();
    let newer = coordinator_chain(&fleet.ca, &fleet.key, 3);
    let other_key = coordinator_chain(&fleet.ca, &IdentityKey::generate(&mut OsRng), 4);
    let stranger = FleetCa::create(fleet.id, &mut OsRng, common::validity()).unwrap();
    let foreign = coordinator_chain(&stranger, &fleet.key, 9);
    let role = Role::Operator { name: "eve".to_owned() };
    let operator = fleet.ca.issue(&role, &fleet.key.public_key(), &[], common::validity()).unwrap();

    assert_eq!(say(&fleet, &mut device, first.clone()), Ok(()), "the one it has");
    assert_eq!(say(&fleet, &mut device, other_key), Err("coordinator_key_changed"));
    assert_eq!(say(&fleet, &mut device, foreign), Err("bad_certificate"));
    assert_eq!(say(&fleet, &mut device, vec![operator]), Err("not_the_coordinators_certificate"));
    assert_eq!(say(&fleet, &mut device, newer.clone()), Ok(()));
    assert!(device.events.contains(&Event::CertificateUpdated { generation: Generation(3) }));
    assert_eq!(say(&fleet, &mut device, first), Err("lower_generation"));

    device.reboot();
    assert_eq!(device.status().generation, Generation(3), "stored, and newer than the provisioned one");
    fleet.connect(&mut device);
    let cell = group.id_of_cell();
    // The key is one for ever: what was signed under the certificate before is still the coordinator's word.
    let signed_under_first = group.rekey_frame(&mut fleet);
    device.cell(cell, &signed_under_first).unwrap();
    fleet.chain = newer;
    let signed = group.said(group.send, Reason::Manual).sign(
        fleet.id,
        KeyId::of_certificate(&fleet.chain[0]),
        fleet.key.signing_key(),
    );
    device.cell(cell, &group.frame(&fleet, None, Some(&signed))).unwrap();
}

impl Device {
    /// Makes the device say hello, and returns the hello's counter.
    fn decide_hello(&mut self, fleet: &mut Fleet) -> u64 {
        self.give(Input::MessagesDropped).unwrap();
        self.pass(1_000);
        fleet.hear(self).last().map(|frame| frame.counter).unwrap()
    }
}
