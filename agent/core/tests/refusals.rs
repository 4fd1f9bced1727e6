//! Rule 7: bad input of any kind is refused by name and counted, and changes nothing. And rule 5: what moves a cell or a
//! group comes from the coordinator, for this cell, now.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

mod common;

use common::{Device, Fleet, Group};
use fleetkey_agent_core::Input;
use fleetkey_identity::IdentityKey;
use fleetkey_mls::{Changes, LeafSigner, ManagedCell};
use fleetkey_wire::limits::{MAX_CELL_FRAME_BYTES, MAX_DOWN_FRAME_BYTES};
use fleetkey_wire::{
    CellEpoch, CellFrame, CellId, DeviceId, DownBody, FleetId, GroupSecret, KeyEpoch, Reason, Topic,
};

/// A fleet with a device `a` in a group of two, and what is refused of it.
struct Scene {
    fleet: Fleet,
    a: Device,
    b: Device,
    group: Group,
}

fn scene(seed: u8) -> Scene {
    let mut fleet = Fleet::new(seed);
    let (mut a, mut b) = (fleet.online_device(), fleet.online_device());
    let group = fleet.group_with(&mut [&mut a, &mut b]);
    fleet.hear(&mut a);
    Scene { fleet, a, b, group }
}

impl Scene {
    fn cell(&self) -> CellId {
        self.group.id_of_cell()
    }

    fn refuses_on_cell(&mut self, frame: &[u8], name: &str) {
        let topic = self.a.cell_topic(self.cell());
        self.a.assert_refuses(Input::Message { topic, payload: frame }, name);
    }

    fn refuses_on_down(&mut self, frame: &[u8], name: &str) {
        let topic = self.a.down_topic();
        self.a.assert_refuses(Input::Message { topic, payload: frame }, name);
    }

    /// Whatever the name: it is refused and changes nothing.
    fn refuses_somehow(&mut self, topic: Topic, frame: &[u8], what: &str) {
        let before = self.a.state();
        let effects = self.a.decide(Input::Message { topic, payload: frame });
        assert!(effects.refused.is_some(), "{what}");
        assert!(effects.writes.is_empty(), "{what}");
        assert_eq!(self.a.state(), before, "{what}");
    }

    /// The same frame with its rekey changed.
    fn with_rekey(&self, frame: &[u8], change: impl FnOnce(&mut fleetkey_wire::StatementAndWrap)) -> Vec<u8> {
        let mut frame = CellFrame::decode(frame).unwrap();
        change(frame.rekey.as_mut().unwrap());
        frame.encode()
    }
}

#[test]
fn bytes_that_are_no_cell_frame_are_refused() {
    let mut scene = scene(40);
    let frame = scene.group.evict(&mut scene.fleet, &[&scene.b]);
    scene.refuses_on_cell(&[], "empty");
    scene.refuses_on_cell(&vec![1; MAX_CELL_FRAME_BYTES + 1], "too_large");
    scene.refuses_on_cell(&[&[2], &frame[1..]].concat(), "unknown_version");
    scene.refuses_on_cell(&[frame.as_slice(), &[0]].concat(), "trailing_bytes");
    scene.refuses_on_cell(&[1, 0x80], "wrong_shape");
    scene.refuses_on_cell(&[1, 0xff], "not_cbor");
    let topic = scene.a.cell_topic(scene.cell());
    for length in (0..frame.len()).step_by(7) {
        scene.refuses_somehow(topic, &frame[..length], &format!("cut to {length}"));
    }
    scene.a.cell(scene.cell(), &frame).unwrap();
}

#[test]
fn every_flipped_bit_of_a_cell_frame_is_noticed() {
    let mut scene = scene(41);
    let frames =
        [scene.group.evict(&mut scene.fleet, &[&scene.b]), scene.group.rekey_frame(&mut scene.fleet)];
    let topic = scene.a.cell_topic(scene.cell());
    for (frame, step) in frames.iter().zip([29, 3]) {
        for at in (0..frame.len() * 8).step_by(step) {
            let mut flipped = frame.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            scene.refuses_somehow(topic, &flipped, &format!("bit {at}"));
        }
        scene.a.cell(scene.cell(), frame).unwrap();
    }
}

#[test]
fn a_cell_frame_counts_only_on_its_own_topic() {
    let mut scene = scene(42);
    let other = scene.fleet.group_with(&mut [&mut scene.a]);
    let frame = scene.group.rekey_frame(&mut scene.fleet);

    let topic = Topic::Cell { fleet: FleetId::from_bytes([9; 16]), cell: scene.cell() };
    scene.a.assert_refuses(Input::Message { topic, payload: &frame }, "other_fleet");
    let topic = scene.a.cell_topic(CellId::from_bytes([9; 16]));
    scene.a.assert_refuses(Input::Message { topic, payload: &frame }, "unknown_cell");
    let topic = scene.a.cell_topic(other.id_of_cell());
    let same_epoch = {
        let mut moved = CellFrame::decode(&frame).unwrap();
        moved.cell_epoch = other.epoch();
        moved.encode()
    };
    scene.a.assert_refuses(Input::Message { topic, payload: &same_epoch }, "other_group");
    let mut other = other;
    let committed = other.commit(&scene.fleet, Changes { force_path: true, ..Changes::default() });
    let mut moved = CellFrame::decode(&other.frame(&scene.fleet, Some(&committed), None)).unwrap();
    moved.cell_epoch = scene.group.epoch();
    scene.refuses_on_cell(&moved.encode(), "wrong_cell");
    let up = Topic::Up { fleet: scene.fleet.id, device: scene.a.id };
    scene.a.assert_refuses(Input::Message { topic: up, payload: &frame }, "unexpected_topic");
    let topic = Topic::Down { fleet: scene.fleet.id, device: DeviceId::from_bytes([9; 16]) };
    scene.a.assert_refuses(Input::Message { topic, payload: &frame }, "unexpected_topic");
}

#[test]
fn a_cell_frame_counts_only_at_its_own_epoch() {
    let mut scene = scene(43);
    let committed = scene.group.commit(&scene.fleet, Changes { force_path: true, ..Changes::default() });
    let first = scene.group.frame(&scene.fleet, Some(&committed), None);
    let second = scene.group.rekey_frame(&mut scene.fleet);
    scene.refuses_on_cell(&second, "ahead_cell_epoch");
    scene.a.cell(scene.cell(), &first).unwrap();
    scene.refuses_on_cell(&first, "stale_cell_epoch");
    scene.a.cell(scene.cell(), &second).unwrap();
    // A replay that lies about its epoch.
    for frame in [&first, &second] {
        let mut lying = CellFrame::decode(frame).unwrap();
        lying.cell_epoch = CellEpoch(lying.cell_epoch.0 + 1);
        let topic = scene.a.cell_topic(scene.cell());
        scene.refuses_somehow(topic, &lying.encode(), "a replay under another epoch");
    }
}

#[test]
fn a_frame_is_applied_whole_or_not_at_all() {
    let mut scene = scene(44);
    let committed = scene.group.commit(&scene.fleet, Changes { force_path: true, ..Changes::default() });
    let signed = scene.group.rekey(&mut scene.fleet, Reason::Manual);
    let whole = scene.group.frame(&scene.fleet, Some(&committed), Some(&signed));

    let bad_statement = scene.with_rekey(&whole, |rekey| rekey.statement[150] ^= 1);
    scene.refuses_on_cell(&bad_statement, "wrong_signature");
    let bad_wrap = scene.with_rekey(&whole, |rekey| rekey.wrap[20] ^= 1);
    scene.refuses_on_cell(&bad_wrap, "wrap_does_not_open");
    let mut bad_commit = CellFrame::decode(&whole).unwrap();
    let commit = &mut bad_commit.commit.as_mut().unwrap().commit;
    let last = commit.len() - 1;
    commit[last] ^= 1;
    scene.refuses_on_cell(&bad_commit.encode(), "undecryptable");
    // The wrap is for the epoch after the commit: without the commit it does not open.
    let mut without = CellFrame::decode(&whole).unwrap();
    without.commit = None;
    scene.refuses_on_cell(&without.encode(), "wrap_does_not_open");

    scene.a.cell(scene.cell(), &whole).unwrap();
    assert_eq!(scene.a.send(&scene.group), scene.group.send);
}

#[test]
fn only_the_coordinators_statement_moves_a_group() {
    let mut scene = scene(45);
    let next = scene.group.next_key(&mut scene.fleet);
    scene.group.send = next;
    scene.group.oldest = next;
    let said = scene.group.said(next, Reason::Revoke);
    let (fleet, group) = (&scene.fleet, &scene.group);
    let id = fleet.key_id();
    let somebody = IdentityKey::from_seed(&[7; 32]);
    let frames = [
        (said.sign(fleet.id, id, somebody.signing_key()), "wrong_signature"),
        (said.sign(fleet.id, id, scene.b.config.identity.signing_key()), "wrong_signature"),
        (said.sign(FleetId::from_bytes([9; 16]), id, fleet.key.signing_key()), "wrong_signature"),
        (
            {
                let mut other = said;
                other.group = fleetkey_wire::GroupId::from_bytes([9; 16]);
                other.sign(fleet.id, id, fleet.key.signing_key())
            },
            "other_group",
        ),
        (
            {
                let mut contradiction = said;
                contradiction.send = KeyEpoch(next.0 + 1);
                contradiction.sign(fleet.id, id, fleet.key.signing_key())
            },
            "contradiction",
        ),
    ]
    .map(|(signed, name)| (group.frame(fleet, None, Some(&signed)), name));
    for (frame, name) in frames {
        scene.refuses_on_cell(&frame, name);
    }
}

#[test]
fn a_wrap_is_good_for_one_cell_epoch_and_one_statement() {
    let mut scene = scene(46);
    // A neighbour knows the KEK, and could wrap a secret of its own under a genuine statement.
    let signed = scene.group.rekey(&mut scene.fleet, Reason::Manual);
    let own = GroupSecret::random(&mut scene.fleet.rng);
    let rekey = Some(scene.group.wrapped_as(&scene.fleet, &signed, &own));
    let frame = CellFrame { cell_epoch: scene.group.epoch(), commit: None, rekey };
    scene.refuses_on_cell(&frame.encode(), "wrong_commitment");
    // A wrap under another statement of the same secret.
    let other = scene.group.statement(&scene.fleet, scene.group.send, Reason::Retire);
    let wrap = scene.group.wrapped(&scene.fleet, &other).wrap;
    let good = scene.group.frame(&scene.fleet, None, Some(&signed));
    let swapped = scene.with_rekey(&good, |rekey| rekey.wrap = wrap);
    scene.refuses_on_cell(&swapped, "wrap_does_not_open");
    // A wrap of another epoch.
    let committed = scene.group.commit(&scene.fleet, Changes { force_path: true, ..Changes::default() });
    scene.a.cell(scene.cell(), &scene.group.frame(&scene.fleet, Some(&committed), None)).unwrap();
    let mut late = CellFrame::decode(&good).unwrap();
    late.cell_epoch = scene.group.epoch();
    scene.refuses_on_cell(&late.encode(), "wrap_does_not_open");
}

#[test]
fn a_statement_on_a_retired_key_epoch_is_refused() {
    let mut scene = scene(47);
    let old = scene.group.statement(&scene.fleet, scene.group.send, Reason::Create);
    scene.a.cell(scene.cell(), &scene.group.rekey_frame(&mut scene.fleet)).unwrap();
    scene.a.pass(60_000);
    scene.fleet.hear(&mut scene.a);
    let replayed = scene.group.frame(&scene.fleet, None, Some(&old));
    scene.refuses_on_cell(&replayed, "stale_key_epoch");
}

#[test]
fn nobody_but_the_coordinator_moves_a_cell() {
    let mut scene = scene(48);
    let cell = scene.cell();
    // Somebody makes a cell of the same id, and invites the device to it.
    let stranger = LeafSigner::new(&[7; 32]);
    let context = *scene.group.cell.context();
    let mut twin = ManagedCell::create(context, scene.group.suite, &stranger).unwrap();
    let key_package = scene.fleet.key_packages(&mut scene.a, scene.group.suite, 1).remove(0);
    let signature_key = scene.a.config.identity.public_key();
    let add = fleetkey_mls::AddDevice { device: scene.a.id, signature_key, key_package };
    let outcome = twin.commit(&stranger, Changes { add: vec![add], ..Changes::default() }).unwrap();
    let committed = outcome.committed.unwrap();
    let welcome = DownBody::Welcome(fleetkey_wire::Welcome {
        group: scene.group.id,
        group_name: "pumps".to_owned(),
        cell,
        suite: scene.group.suite,
        cell_epoch: committed.epoch,
        welcome: committed.welcomes[&scene.a.id].clone(),
        statements: vec![],
    });
    let frame = scene.fleet.down(&mut scene.a, &welcome);
    scene.refuses_on_down(&frame, "not_the_coordinator");
    // And commits in it.
    while twin.epoch() < scene.group.epoch() {
        twin.commit(&stranger, Changes { force_path: true, ..Changes::default() }).unwrap();
    }
    let outcome = twin.commit(&stranger, Changes { force_path: true, ..Changes::default() }).unwrap();
    let commit = outcome.committed.unwrap().commit;
    let commit = Some(fleetkey_wire::CommitMessages { covered_updates: vec![], commit });
    let frame = CellFrame { cell_epoch: scene.group.epoch(), commit, rekey: None }.encode();
    let topic = scene.a.cell_topic(cell);
    scene.refuses_somehow(topic, &frame, "a commit of somebody else's cell");
}

#[test]
fn an_update_that_the_commit_does_not_cover_is_refused_with_it() {
    let mut scene = scene(49);
    let cell = scene.cell();
    scene.fleet.say(&mut scene.b, &DownBody::RequestUpdate { cell }).unwrap();
    let proposal = scene.fleet.hear(&mut scene.b).into_iter().find_map(|frame| {
        let fleetkey_wire::UpBody::Update { proposal, .. } = frame.body else { return None };
        Some(proposal)
    });
    let committed = scene.group.commit(&scene.fleet, Changes { force_path: true, ..Changes::default() });
    let good = scene.group.frame(&scene.fleet, Some(&committed), None);
    let mut frame = CellFrame::decode(&good).unwrap();
    frame.commit.as_mut().unwrap().covered_updates.push(proposal.unwrap());
    scene.refuses_on_cell(&frame.encode(), "uncovered_update");
    scene.a.cell(cell, &good).unwrap();
}

#[test]
fn bytes_that_are_no_down_frame_are_refused() {
    let mut scene = scene(50);
    let (welcome, _) = scene.fleet.invite(&mut scene.group, &mut scene.a);
    let frame = scene.fleet.down(&mut scene.a, &DownBody::Welcome(welcome));
    scene.refuses_on_down(&[], "empty");
    scene.refuses_on_down(&vec![1; MAX_DOWN_FRAME_BYTES + 1], "too_large");
    scene.refuses_on_down(&[&[2], &frame[1..]].concat(), "unknown_version");
    scene.refuses_on_down(&[frame.as_slice(), &[0]].concat(), "trailing_bytes");
    let topic = scene.a.down_topic();
    for length in (0..frame.len()).step_by(17) {
        scene.refuses_somehow(topic, &frame[..length], &format!("cut to {length}"));
    }
    for at in (0..frame.len() * 8).step_by(61) {
        let mut flipped = frame.clone();
        flipped[at / 8] ^= 1 << (at % 8);
        scene.refuses_somehow(topic, &flipped, &format!("bit {at}"));
    }
    scene.a.down(&frame).unwrap();
}

#[test]
fn a_down_frame_counts_once_for_one_device() {
    let mut scene = scene(51);
    let cell = scene.cell();
    let frame = scene.fleet.down(&mut scene.a, &DownBody::RequestUpdate { cell });
    let for_b = scene.fleet.down(&mut scene.b, &DownBody::RequestUpdate { cell });
    scene.refuses_on_down(&for_b, "wrong_mac");
    scene.a.down(&frame).unwrap();
    scene.refuses_on_down(&frame, "replayed");
    let up = scene.a.up.pop().unwrap();
    scene.refuses_on_down(&up, "wrong_mac");
}

#[test]
fn what_an_earlier_connection_brought_does_not_count_in_the_next() {
    let mut scene = scene(52);
    let (welcome, _) = scene.fleet.invite(&mut scene.group, &mut scene.a);
    let withheld = scene.fleet.down(&mut scene.a, &DownBody::Welcome(welcome));
    scene.a.give(Input::Disconnected).unwrap();
    scene.fleet.connect(&mut scene.a);
    scene.a.pass(20_000);
    scene.fleet.hear(&mut scene.a);
    let topic = scene.a.down_topic();
    scene.refuses_somehow(topic, &withheld, "a frame of an earlier connection");
    assert_eq!(scene.a.count("stale_nonce"), 1);
}

#[test]
fn requests_about_what_is_not_there_are_refused() {
    let mut scene = scene(53);
    let cell = CellId::from_bytes([9; 16]);
    let group = fleetkey_wire::GroupId::from_bytes([9; 16]);
    let reason = fleetkey_wire::DismissReason::Evicted;
    let bodies = [
        (DownBody::RequestUpdate { cell }, "unknown_cell"),
        (DownBody::Dismiss { group: scene.group.id, cell, reason }, "unknown_cell"),
        (DownBody::CellFrame { cell, frame: vec![1, 0x80] }, "unknown_cell"),
        (DownBody::CellFrame { cell: scene.cell(), frame: vec![3] }, "unknown_version"),
        (DownBody::RequestEvidence { group }, "unknown_group"),
        (common::answer(999), "unasked_answer"),
    ];
    for (body, name) in bodies {
        let frame = scene.fleet.down(&mut scene.a, &body);
        scene.refuses_on_down(&frame, name);
    }
}

#[test]
fn a_device_is_in_a_bounded_number_of_cells() {
    let mut fleet = Fleet::new(54);
    let mut device = fleet.online_device();
    for _ in 0..fleetkey_wire::limits::MAX_CELLS_PER_DEVICE {
        fleet.group_with(&mut [&mut device]);
        fleet.hear(&mut device);
    }
    let mut group = fleet.group();
    let (welcome, _) = fleet.invite(&mut group, &mut device);
    let frame = fleet.down(&mut device, &DownBody::Welcome(welcome));
    let topic = device.down_topic();
    device.assert_refuses(Input::Message { topic, payload: &frame }, "too_many_cells");
}
