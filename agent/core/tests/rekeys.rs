//! The rules of statements: which key epoch a device holds, seals with, and accepts.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

mod common;

use common::{Device, Fleet, Group};
use fleetkey_agent_core::{CannotOpen, CannotSeal, Event, Input};
use fleetkey_wire::{DownBody, GroupSecret, KeyEpoch, Reason, SignedStatement, UpBody};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

fn pair(seed: u8) -> (Fleet, Device, Device, Group) {
    let mut fleet = Fleet::new(seed);
    let (mut a, mut b) = (fleet.online_device(), fleet.online_device());
    let group = fleet.group_with(&mut [&mut a, &mut b]);
    fleet.hear(&mut a);
    fleet.hear(&mut b);
    (fleet, a, b, group)
}

#[test]
fn a_rekey_moves_sealing_and_accepting_at_once() {
    let (mut fleet, mut a, mut b, mut group) = pair(20);
    group.overlap_seconds = 0;
    let old = a.seal(&group, b"old");
    let frame = group.rekey_frame(&mut fleet);

    b.cell(group.id_of_cell(), &frame).unwrap();

    let of = b.of(&group);
    assert_eq!((of.send, of.oldest, of.held), (group.send, group.send, vec![group.send]));
    assert!(b.events.contains(&Event::KeyActivated { group: group.id, key_epoch: group.send }));
    assert!(matches!(b.open(&old), Err(CannotOpen::KeyEpochNotAccepted { .. })));
    let new = b.seal(&group, b"new");
    assert!(matches!(a.open(&new), Err(CannotOpen::KeyNotHeld { .. })), "a has yet to hear of it");
    a.cell(group.id_of_cell(), &frame).unwrap();
    assert_eq!(a.open(&new).unwrap(), b"new");
}

#[test]
fn the_former_key_is_accepted_for_the_overlap_and_no_longer() {
    let (mut fleet, mut a, mut b, mut group) = pair(21);
    let old = a.seal(&group, b"old");
    b.cell(group.id_of_cell(), &group.rekey_frame(&mut fleet)).unwrap();

    b.pass(29_999);
    assert_eq!(b.open(&old).unwrap(), b"old");
    b.pass(1);
    assert!(matches!(b.open(&old), Err(CannotOpen::KeyEpochNotAccepted { .. })));
    assert_eq!(b.of(&group).held, [group.send], "its secret is gone");
}

#[test]
fn a_reboot_ends_the_overlap() {
    let (mut fleet, mut a, mut b, mut group) = pair(22);
    let old = a.seal(&group, b"old");
    b.cell(group.id_of_cell(), &group.rekey_frame(&mut fleet)).unwrap();
    assert!(b.open(&old).is_ok());
    b.reboot();
    assert!(matches!(b.open(&old), Err(CannotOpen::KeyEpochNotAccepted { .. })));
    assert_eq!(b.of(&group).held, [group.send], "its secret is not even stored");
}

#[test]
fn a_rotation_has_three_phases() {
    let (mut fleet, mut a, mut b, mut group) = pair(23);
    let cell = group.id_of_cell();
    let first = group.send;
    let next = group.next_key(&mut fleet);

    let distribute = group.statement(&fleet, next, Reason::Distribute);
    let frame = group.frame(&fleet, None, Some(&distribute));
    for device in [&mut a, &mut b] {
        device.cell(cell, &frame).unwrap();
        assert_eq!((device.send(&group), device.of(&group).held), (first, vec![first, next]));
    }
    group.send = next;
    let activate = group.statement(&fleet, next, Reason::Activate);
    b.cell(cell, &group.frame(&fleet, None, Some(&activate))).unwrap();
    let (old, new) = (a.seal(&group, b"old"), b.seal(&group, b"new"));
    assert_eq!(b.open(&old).unwrap(), b"old");
    assert_eq!(a.open(&new).unwrap(), b"new", "it was handed out before it was used");
    b.pass(3_600_000);
    assert_eq!(b.open(&old).unwrap(), b"old", "accepted until it is retired");
    group.oldest = next;
    let retire = group.statement(&fleet, next, Reason::Retire);
    b.cell(cell, &group.frame(&fleet, None, Some(&retire))).unwrap();
    assert!(matches!(b.open(&old), Err(CannotOpen::KeyEpochNotAccepted { .. })));
}

/// Rule 1 of the design, from the side of those who stay: what a revoked device may hold is used no more.
#[test]
fn a_key_epoch_that_was_handed_out_and_then_abandoned_is_never_used() {
    let (mut fleet, mut a, mut b, mut group) = pair(24);
    let cell = group.id_of_cell();
    let next = group.next_key(&mut fleet);
    let distribute = group.statement(&fleet, next, Reason::Distribute);
    let distribute = group.frame(&fleet, None, Some(&distribute));
    a.cell(cell, &distribute).unwrap();
    b.cell(cell, &distribute).unwrap();
    // b is revoked; before that, the activation was on its way.
    group.send = next;
    let activate = group.statement(&fleet, next, Reason::Activate);
    let sealed_by_b = {
        b.cell(cell, &group.frame(&fleet, None, Some(&activate))).unwrap();
        b.seal(&group, b"by b")
    };
    group.overlap_seconds = 0;
    a.cell(cell, &group.evict(&mut fleet, &[&b])).unwrap();

    assert!(matches!(a.open(&sealed_by_b), Err(CannotOpen::KeyEpochNotAccepted { .. })));
    assert_eq!((a.send(&group), a.of(&group).held), (group.send, vec![group.send]));
    // The late activation changes nothing.
    let late = group.frame(&fleet, None, Some(&activate));
    let topic = a.cell_topic(cell);
    a.assert_refuses(Input::Message { topic, payload: &late }, "stale_key_epoch");
    assert!(matches!(a.open(&sealed_by_b), Err(CannotOpen::KeyEpochNotAccepted { .. })));
}

/// The overlap belongs to the key epoch that was in use, never to one that was only handed out.
#[test]
fn an_abandoned_key_epoch_gets_no_overlap() {
    let (mut fleet, mut a, mut b, mut group) = pair(25);
    let cell = group.id_of_cell();
    let first = group.send;
    let next = group.next_key(&mut fleet);
    let distribute = group.statement(&fleet, next, Reason::Distribute);
    a.cell(cell, &group.frame(&fleet, None, Some(&distribute))).unwrap();

    a.cell(cell, &group.evict(&mut fleet, &[&b])).unwrap();

    assert_eq!(a.of(&group).held, [first, group.send]);
    let _ = b.seal(&group, b"still possible");
}

#[test]
fn a_duplicate_changes_nothing_and_is_confirmed_once_a_second() {
    let (mut fleet, mut a, _, mut group) = pair(26);
    let cell = group.id_of_cell();
    let frame = group.rekey_frame(&mut fleet);
    a.cell(cell, &frame).unwrap();
    assert_eq!(confirmed(&fleet, &mut a), [group.send]);
    let before = a.state();

    for _ in 0..50 {
        let effects = a.cell(cell, &frame).unwrap();
        assert!(effects.writes.is_empty());
    }

    assert_eq!(a.state(), before);
    assert_eq!(confirmed(&fleet, &mut a), [group.send], "the first at once");
    a.pass(999);
    assert!(confirmed(&fleet, &mut a).is_empty());
    a.pass(1);
    assert_eq!(confirmed(&fleet, &mut a), [group.send], "the others together, a second later");
    a.pass(60_000);
    assert!(confirmed(&fleet, &mut a).is_empty());
}

#[test]
fn a_confirmation_waits_for_the_coordinators_nonce() {
    let (mut fleet, mut a, _, mut group) = pair(27);
    a.give(Input::Disconnected).unwrap();
    a.connect();
    let hello = fleet.hear(&mut a).remove(0);
    a.cell(group.id_of_cell(), &group.rekey_frame(&mut fleet)).unwrap();
    assert!(a.up.is_empty());
    fleet.say(&mut a, &common::answer(hello.counter)).unwrap();
    let heard = fleet.hear(&mut a);
    assert!(matches!(heard[0].body, UpBody::Confirm { key_epoch, .. } if key_epoch == group.send));
    assert!(heard[0].fresh);
}

#[test]
fn two_secrets_for_one_key_epoch_are_an_alarm() {
    let (mut fleet, mut a, _, mut group) = pair(28);
    let cell = group.id_of_cell();
    a.cell(cell, &group.rekey_frame(&mut fleet)).unwrap();
    fleet.hear(&mut a);
    let sealed = a.seal(&group, b"first");
    // The twin of the coordinator issues the same key epoch with another secret.
    let twin = GroupSecret::random(&mut fleet.rng);
    let mut said = group.said(group.send, Reason::Manual);
    said.commitment = twin.commitment(group.id, group.send);
    let conflicting = said.sign(fleet.id, fleet.key_id(), fleet.key.signing_key());
    let rekey = Some(group.wrapped_as(&fleet, &conflicting, &twin));
    let frame = fleetkey_wire::CellFrame { cell_epoch: group.epoch(), commit: None, rekey }.encode();

    let refused = a.cell(cell, &frame).unwrap_err();

    assert_eq!(fleetkey_wire::Named::name(&refused), "conflicting_commitment");
    assert_eq!(a.status().alarms, [group.id]);
    assert!(a.events.contains(&Event::Alarm { group: group.id, key_epoch: group.send }));
    assert!(a.open(&sealed).is_ok(), "what was held stays");
    let shown = |fleet: &Fleet, a: &mut Device| {
        let heard = fleet.hear(a);
        heard.into_iter().any(|f| f.body == UpBody::Evidence { statement: conflicting.as_bytes().to_vec() })
    };
    assert!(shown(&fleet, &mut a));
    a.cell(cell, &frame).unwrap_err();
    assert_eq!(a.events.iter().filter(|event| matches!(event, Event::Alarm { .. })).count(), 1);
    assert!(!shown(&fleet, &mut a), "once a connection");
    a.reboot();
    fleet.connect(&mut a);
    assert!(shown(&fleet, &mut a), "it is stored, and shown again");
}

#[test]
fn a_device_shows_its_newest_statement_when_asked() {
    let (mut fleet, mut a, _, mut group) = pair(29);
    let signed = group.rekey(&mut fleet, Reason::Manual);
    a.cell(group.id_of_cell(), &group.frame(&fleet, None, Some(&signed))).unwrap();
    fleet.hear(&mut a);
    fleet.say(&mut a, &DownBody::RequestEvidence { group: group.id }).unwrap();
    let heard = fleet.hear(&mut a);
    assert_eq!(heard[0].body, UpBody::Evidence { statement: signed.as_bytes().to_vec() });
}

#[test]
fn a_device_that_missed_the_key_in_use_does_not_seal_with_another() {
    let (mut fleet, mut a, _, mut group) = pair(30);
    let missed = group.next_key(&mut fleet);
    group.send = missed;
    let next = group.next_key(&mut fleet);
    let distribute = group.statement(&fleet, next, Reason::Distribute);
    a.cell(group.id_of_cell(), &group.frame(&fleet, None, Some(&distribute))).unwrap();
    let sealed = a.agent.seal(group.id, b"x", b"", false, a.now, &mut a.rng);
    assert_eq!(sealed, Err(CannotSeal::KeyNotHeld { group: group.id, send: missed }));
}

#[test]
fn a_signed_message_needs_its_senders_certificate() {
    let (fleet, mut a, mut b, group) = pair(31);
    let sealed = a.agent.seal(group.id, b"signed", b"test", true, a.now, &mut a.rng).unwrap();
    assert!(a.open(&sealed).is_ok(), "its own key it knows");
    assert!(matches!(
        b.open(&sealed),
        Err(CannotOpen::Sealed(fleetkey_wire::payload::BadSealed::UnknownSender { .. }))
    ));
    let issue = |role: &fleetkey_identity::Role| {
        let key = a.config.identity.public_key();
        fleet.ca.chain(fleet.ca.issue(role, &key, &[], common::validity()).unwrap())
    };
    let operator = fleetkey_identity::Role::Operator { name: "ada".to_owned() };
    assert!(b.agent.know_sender(&issue(&operator)).is_err());
    assert_eq!(b.agent.know_sender(&issue(&fleetkey_identity::Role::Device(a.id))), Ok(a.id));
    assert_eq!(b.open(&sealed).unwrap(), b"signed");
}

/// The key epochs that the device has confirmed since it was last heard.
fn confirmed(fleet: &Fleet, device: &mut Device) -> Vec<KeyEpoch> {
    let heard = fleet.hear(device).into_iter();
    heard
        .filter_map(|frame| match frame.body {
            UpBody::Confirm { key_epoch, .. } => Some(key_epoch),
            UpBody::Hello(_)
            | UpBody::KeyPackages { .. }
            | UpBody::Update { .. }
            | UpBody::Leave { .. }
            | UpBody::Evidence { .. }
            | UpBody::Psks { .. } => None,
        })
        .collect()
}

/// Every statement of a history with two rotations, a revocation and a manual rekey, as frames of one cell epoch.
fn history(fleet: &mut Fleet, group: &mut Group) -> Vec<SignedStatement> {
    let mut all = Vec::new();
    for revoked in [false, true] {
        let next = group.next_key(fleet);
        all.push(group.statement(fleet, next, Reason::Distribute));
        if revoked {
            all.push(group.rekey(fleet, Reason::Revoke));
            continue;
        }
        group.send = next;
        all.push(group.statement(fleet, next, Reason::Activate));
        group.oldest = next;
        all.push(group.statement(fleet, next, Reason::Retire));
    }
    all.push(group.rekey(fleet, Reason::Manual));
    let next = group.next_key(fleet);
    all.push(group.statement(fleet, next, Reason::Distribute));
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Rule 5: nobody moves a group back, whatever is replayed, duplicated and reordered; and rule 3 on the side of the
    /// device: once everything has come, in whatever order, it stands where the coordinator does.
    #[test]
    fn the_order_of_statements_does_not_matter(order in proptest::collection::vec(0usize..7, 0..20)) {
        let (mut fleet, mut a, _, mut group) = pair(32);
        let cell = group.id_of_cell();
        let frames: Vec<_> = history(&mut fleet, &mut group)
            .iter()
            .map(|signed| group.frame(&fleet, None, Some(signed)))
            .collect();
        prop_assert_eq!(frames.len(), 7);
        let mut highest = (a.send(&group), a.of(&group).oldest);
        for at in order.into_iter().chain(0..7) {
            // Late ones are refused by name; what is refused, and what is not, never moves anything back.
            if let Err(refused) = a.cell(cell, &frames[at]) {
                prop_assert_eq!(fleetkey_wire::Named::name(&refused), "stale_key_epoch");
            }
            let of = a.of(&group);
            prop_assert!(of.send >= highest.0 && of.oldest >= highest.1);
            prop_assert!(of.held.iter().all(|held| *held >= of.oldest || *held == highest.0 || of.held.len() <= 3));
            highest = (of.send, of.oldest);
        }
        let of = a.of(&group);
        prop_assert_eq!((of.send, of.oldest), (group.send, group.oldest));
        prop_assert!(of.held.contains(&group.send) && of.held.contains(&group.key_epoch));
        a.reboot();
        let of = a.of(&group);
        prop_assert_eq!(of.held, vec![group.send, group.key_epoch]);
        Ok::<(), TestCaseError>(())?;
    }
}
