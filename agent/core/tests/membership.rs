//! Joining, following commits, leaving: what a device makes of a cell.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

mod common;

use common::{Fleet, answer};
use fleetkey_agent_core::{Event, Input, Output, RemovedBecause};
use fleetkey_mls::{Changes, MemberCell};
use fleetkey_wire::wrap::{self, WrapContext};
use fleetkey_wire::{
    CellFrame, Confirmation, DismissReason, DownBody, GroupId, Reason, SignedStatement, Suite, UpBody,
};

#[test]
fn a_device_joins_a_group_and_confirms_its_key() {
    for suite in Suite::ALL {
        let mut fleet = Fleet::new(1);
        let mut device = fleet.online_device();
        let mut group = fleet.group_of(suite);

        fleet.admit(&mut group, &mut device);

        let of = device.of(&group);
        assert_eq!((of.cell, of.cell_epoch, of.suite), (group.id_of_cell(), group.epoch(), suite));
        assert_eq!((of.send, of.oldest, of.held), (group.send, group.oldest, vec![group.key_epoch]));
        assert_eq!(device.status().key_packages, 0, "the key package is used up");
        let heard = fleet.hear(&mut device);
        let UpBody::Confirm { group: confirmed, key_epoch, proof, .. } = heard[0].body else {
            panic!("{heard:?}");
        };
        let confirmation = Confirmation {
            fleet: fleet.id,
            group: group.id,
            key_epoch: group.key_epoch,
            commitment: group.said(group.key_epoch, Reason::Join).commitment,
            device: device.id,
        };
        assert_eq!((confirmed, key_epoch), (group.id, group.key_epoch));
        assert!(confirmation.holds(&device.pairwise, &group.secrets[&group.key_epoch], &proof));
        assert!(heard[0].fresh);
        assert!(
            matches!(heard[1].body, UpBody::Hello(_)),
            "something may have come between the Welcome and the SUBACK of the cell's topic"
        );
    }
}

#[test]
fn members_open_what_members_seal() {
    let mut fleet = Fleet::new(2);
    let (mut a, mut b) = (fleet.online_device(), fleet.online_device());
    let group = fleet.group_with(&mut [&mut a, &mut b]);
    let sealed = a.seal(&group, b"valve 3 shut");
    assert_eq!(b.open(&sealed).unwrap(), b"valve 3 shut");
}

#[test]
fn a_device_follows_removals_updates_and_path_refreshes() {
    let mut fleet = Fleet::new(3);
    let (mut a, mut b, mut c) = (fleet.online_device(), fleet.online_device(), fleet.online_device());
    let mut group = fleet.group_with(&mut [&mut a, &mut b, &mut c]);
    let cell = group.id_of_cell();
    fleet.hear(&mut a);

    fleet.say(&mut a, &DownBody::RequestUpdate { cell }).unwrap();
    let heard = fleet.hear(&mut a);
    let UpBody::Update { cell_epoch, ref proposal, .. } = heard[0].body else { panic!("{heard:?}") };
    assert_eq!(cell_epoch, group.epoch());
    let updates = vec![(a.id, proposal.clone())];
    let committed = group.commit(&fleet, Changes { updates, ..Changes::default() });
    let frame = group.frame(&fleet, Some(&committed), None);
    for device in [&mut a, &mut b, &mut c] {
        device.cell(cell, &frame).unwrap();
    }
    let frame = group.evict(&mut fleet, &[&c]);
    for device in [&mut a, &mut b] {
        device.cell(cell, &frame).unwrap();
        assert_eq!((device.of(&group).cell_epoch, device.send(&group)), (group.epoch(), group.send));
    }
    let committed = group.commit(&fleet, Changes { force_path: true, ..Changes::default() });
    let frame = group.frame(&fleet, Some(&committed), None);
    a.cell(cell, &frame).unwrap();
    assert_eq!(a.of(&group).cell_epoch, group.epoch());
}

#[test]
fn an_update_survives_a_reboot_before_its_commit() {
    let mut fleet = Fleet::new(4);
    let mut device = fleet.online_device();
    let mut group = fleet.group_with(&mut [&mut device]);
    let cell = group.id_of_cell();
    fleet.hear(&mut device);
    fleet.say(&mut device, &DownBody::RequestUpdate { cell }).unwrap();
    let heard = fleet.hear(&mut device);
    let UpBody::Update { ref proposal, .. } = heard[0].body else { panic!("{heard:?}") };

    device.reboot();
    fleet.connect(&mut device);

    let updates = vec![(device.id, proposal.clone())];
    let committed = group.commit(&fleet, Changes { updates, ..Changes::default() });
    device.cell(cell, &group.frame(&fleet, Some(&committed), None)).unwrap();
    assert_eq!(device.of(&group).cell_epoch, group.epoch());
}

#[test]
fn a_removed_device_keeps_nothing_of_the_group() {
    let mut fleet = Fleet::new(5);
    let (mut a, mut b) = (fleet.online_device(), fleet.online_device());
    let mut group = fleet.group_with(&mut [&mut a, &mut b]);
    let cell = group.id_of_cell();
    let frame = group.evict(&mut fleet, &[&b]);

    b.cell(cell, &frame).unwrap();

    assert!(!b.is_in(&group));
    assert!(b.events.contains(&Event::Removed { group: group.id, because: RemovedBecause::Commit }));
    assert!(b.requests.contains(&Output::Unsubscribe { topic: b.cell_topic(cell) }));
    let keys: Vec<String> = b.entries().into_keys().collect();
    assert_eq!(keys, ["certificate", "identity", "silence"]);
    b.reboot();
    assert!(!b.is_in(&group));
}

#[test]
fn a_dismissed_device_keeps_nothing_of_the_group() {
    let mut fleet = Fleet::new(6);
    let mut device = fleet.online_device();
    let group = fleet.group_with(&mut [&mut device]);
    // The coordinator may not know the cell's group any longer: the cell decides.
    let unknown = GroupId::from_bytes([0; 16]);
    let reason = DismissReason::NotAMember;
    let cell = group.id_of_cell();

    fleet.say(&mut device, &DownBody::Dismiss { group: unknown, cell, reason }).unwrap();

    assert!(!device.is_in(&group));
    let because = RemovedBecause::Dismissed(reason);
    assert!(device.events.contains(&Event::Removed { group: group.id, because }));
    let keys: Vec<String> = device.entries().into_keys().collect();
    assert_eq!(keys, ["certificate", "identity", "silence"]);
}

#[test]
fn a_dismissal_from_a_cell_left_behind_does_not_end_the_membership() {
    let mut fleet = Fleet::new(7);
    let mut device = fleet.online_device();
    let old = fleet.group_with(&mut [&mut device]);
    let mut new = fleet.group();
    new.id = old.id;
    new.cell = {
        let mut context = *new.cell.context();
        context.group = old.id;
        fleetkey_mls::ManagedCell::create(context, new.suite, &fleet.signer()).unwrap()
    };
    new.secrets = old.secrets.clone();
    fleet.admit(&mut new, &mut device);

    assert_eq!(device.of(&new).cell, new.id_of_cell());
    assert!(device.requests.contains(&Output::Unsubscribe { topic: device.cell_topic(old.id_of_cell()) }));
    let reason = DismissReason::NotAMember;
    let dismiss = DownBody::Dismiss { group: old.id, cell: old.id_of_cell(), reason };
    assert_eq!(fleet.say(&mut device, &dismiss).unwrap_err().to_string().split(' ').next(), Some("the"));
    assert!(device.is_in(&new));
    assert_eq!(device.of(&new).held, [new.key_epoch], "the keys of the group stay");
    device.reboot();
    assert_eq!(device.of(&new).cell, new.id_of_cell());
}

#[test]
fn a_member_joins_its_cell_afresh() {
    let mut fleet = Fleet::new(8);
    let (mut a, mut b) = (fleet.online_device(), fleet.online_device());
    let mut group = fleet.group_with(&mut [&mut a, &mut b]);
    let cell = group.id_of_cell();
    // Something is missed, for good.
    group.commit(&fleet, Changes { force_path: true, ..Changes::default() });
    let lost = group.rekey(&mut fleet, Reason::Manual);
    assert!(a.cell(cell, &group.frame(&fleet, None, Some(&lost))).is_err());

    fleet.admit(&mut group, &mut a);

    assert_eq!((a.of(&group).cell_epoch, a.send(&group)), (group.epoch(), group.send));
    let frame = group.rekey_frame(&mut fleet);
    a.cell(cell, &frame).unwrap();
    assert_eq!(a.send(&group), group.send);
}

#[test]
fn a_welcome_brings_every_live_secret() {
    let mut fleet = Fleet::new(9);
    let mut device = fleet.online_device();
    let mut group = fleet.group();
    let next = group.next_key(&mut fleet);

    fleet.admit(&mut group, &mut device);

    let of = device.of(&group);
    assert_eq!((of.send, of.oldest), (group.send, group.oldest));
    assert_eq!(of.held, [group.send, next]);
    let heard = fleet.hear(&mut device);
    assert!(matches!(heard[0].body, UpBody::Confirm { key_epoch, .. } if key_epoch == next), "{heard:?}");
    assert_eq!(heard.len(), 2, "one confirmation, of the newest, and a hello");
}

#[test]
fn a_device_says_that_it_wants_to_leave_until_it_is_let_go() {
    let mut fleet = Fleet::new(10);
    let mut device = fleet.online_device();
    let group = fleet.group_with(&mut [&mut device]);
    let is_leave = |body: &UpBody| matches!(body, UpBody::Leave { group: id } if *id == group.id);
    fleet.hear(&mut device);

    device.give(Input::Disconnected).unwrap();
    device.give(Input::Leave { group: group.id }).unwrap();
    assert!(device.up.is_empty(), "a leave counts only in answer to a fresh nonce");
    fleet.connect(&mut device);
    assert!(fleet.hear(&mut device).iter().any(|frame| is_leave(&frame.body) && frame.fresh));

    device.give(Input::Disconnected).unwrap();
    fleet.connect(&mut device);
    assert!(fleet.hear(&mut device).iter().any(|frame| is_leave(&frame.body) && frame.fresh));
    let stranger = GroupId::from_bytes([9; 16]);
    device.assert_refuses(Input::Leave { group: stranger }, "unknown_group");
}

#[test]
fn key_packages_are_bounded_and_the_oldest_go_first() {
    let mut fleet = Fleet::new(11);
    let mut device = fleet.online_device();
    let mut group = fleet.group();
    assert_eq!(fleet.key_packages(&mut device, Suite::Aes128Gcm, u8::MAX).len(), 8);
    assert_eq!(device.status().key_packages, 8);

    let (welcome, _) = fleet.invite(&mut group, &mut device);
    for _ in 0..2 {
        fleet.key_packages(&mut device, Suite::Aes128Gcm, 8);
    }

    assert_eq!(device.status().key_packages, 16);
    assert_eq!(device.entries().keys().filter(|key| key.starts_with("keypackage/")).count(), 16);
    let frame = fleet.down(&mut device, &DownBody::Welcome(welcome));
    let topic = device.down_topic();
    device.assert_refuses(Input::Message { topic, payload: &frame }, "unknown_key_package");
    device.reboot();
    assert_eq!(device.status().key_packages, 16);
}

#[test]
fn as_many_key_packages_as_may_be_asked_for_fit_in_a_frame_with_every_suite() {
    let mut fleet = Fleet::new(13);
    let mut device = fleet.online_device();
    for suite in Suite::ALL {
        assert_eq!(fleet.key_packages(&mut device, suite, u8::MAX).len(), 8, "{suite}");
    }
}

#[test]
fn a_refused_welcome_leaves_its_key_package_usable() {
    let mut fleet = Fleet::new(12);
    let mut device = fleet.online_device();
    let mut group = fleet.group();
    let (welcome, _) = fleet.invite(&mut group, &mut device);
    let topic = device.down_topic();
    let mut spoilt = Vec::new();
    let mut spoil = |name: &'static str, change: &dyn Fn(&mut fleetkey_wire::Welcome)| {
        let mut bad = welcome.clone();
        change(&mut bad);
        spoilt.push((name, bad));
    };
    spoil("welcome_epoch", &|bad| bad.cell_epoch = bad.cell_epoch.next());
    spoil("wrong_suite", &|bad| bad.suite = Suite::ChaCha20Poly1305);
    spoil("wrong_cell", &|bad| bad.cell = fleetkey_wire::CellId::from_bytes([5; 16]));
    spoil("other_group", &|bad| bad.group = GroupId::from_bytes([6; 16]));
    spoil("wrap_does_not_open", &|bad| {
        let at = bad.statements[0].wrap.len() - 1;
        bad.statements[0].wrap[at] ^= 1;
    });
    spoil("malformed", &|bad| bad.welcome.truncate(100));
    for (name, bad) in spoilt {
        let frame = fleet.down(&mut device, &DownBody::Welcome(bad));
        device.assert_refuses(Input::Message { topic, payload: &frame }, name);
    }

    fleet.say(&mut device, &DownBody::Welcome(welcome)).unwrap();
    assert_eq!(device.send(&group), group.send);
}

#[test]
fn an_evicted_device_cannot_open_next_key_epoch_with_all_it_has() {
    let mut fleet = Fleet::new(13);
    let (mut a, mut b) = (fleet.online_device(), fleet.online_device());
    let mut group = fleet.group_with(&mut [&mut a, &mut b]);
    let cell = group.id_of_cell();
    let stored = b.entries();
    let before = MemberCell::restore(&stored[&format!("cell/{cell}")]).unwrap();

    let frame = group.evict(&mut fleet, &[&b]);
    a.cell(cell, &frame).unwrap();
    let secret_message = a.seal(&group, b"without b");

    assert!(a.open(&secret_message).is_ok());
    b.cell(cell, &frame).unwrap();
    assert!(b.open(&secret_message).is_err());
    // It may keep what an honest device deletes, and try every key it has.
    let rekey = CellFrame::decode(&frame).unwrap().rekey.unwrap();
    let signed = SignedStatement::from_trusted(&rekey.statement).unwrap();
    for cell_epoch in [before.epoch(), before.epoch().next()] {
        let context = WrapContext { fleet: fleet.id, cell, cell_epoch, suite: group.suite };
        assert!(wrap::open(&context, &before.kek(), &signed, &rekey.wrap).is_err());
    }
    b.reboot();
    fleet.connect(&mut b);
    assert!(b.cell(cell, &frame).is_err());
    assert!(b.open(&secret_message).is_err());
}

#[test]
fn answers_tell_a_device_how_often_to_say_hello() {
    let mut fleet = Fleet::new(14);
    let mut device = fleet.device();
    device.connect();
    let hello = fleet.hear(&mut device).remove(0);
    assert!(!hello.fresh, "the coordinator's nonce is not known yet");
    fleet.say(&mut device, &answer(hello.counter)).unwrap();
    let due = device.agent.poll_timeout().unwrap().since(device.now.mono);
    let interval_ms = u64::from(common::HELLO_INTERVAL_SECONDS) * 1000;
    assert!(due <= interval_ms / 5 * 6, "{due}");
}
