//! The external pre-shared key: who does not hold it gets nothing, and nobody else is held up.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeMap;

use common::rogue::Rogue;
use common::{Device, World, context, refused};
use fleetkey_mls::{Changes, MemberCell, MlsError, Processed, Refused};
use fleetkey_wire::{Psk, Suite};
use openmls::prelude::Proposal;
use rand_core::OsRng;

const SUITE: Suite = Suite::Aes128Gcm;

fn psk() -> Psk {
    Psk::random(&mut OsRng)
}

/// A cell whose group asks for a pre-shared key, with devices that hold it.
fn guarded(suite: Suite, count: usize) -> (World, Psk) {
    let (mut world, psk) = (World::new(suite), psk());
    world.psk = Some(psk.clone());
    world.add(count);
    (world, psk)
}

/// A coordinator made of plain openmls, and a device that holds a pre-shared key in its cell.
fn under_rogue_coordinator() -> (Rogue, Psk, MemberCell, [[u8; 32]; 1]) {
    let (context, psk) = (context(), psk());
    let mut coordinator = Rogue::coordinator(&context, SUITE);
    let (add, private) = Device::new().package(SUITE);
    let proposal = coordinator.psk(psk.id().as_bytes(), psk.as_bytes());
    let (_, welcome) = coordinator.add_with(&[&add.key_package], vec![proposal]);
    let keys = [coordinator.key.public()];
    let (cell, used) =
        MemberCell::join(&context, &private, &welcome, &keys, std::slice::from_ref(&psk)).unwrap();
    assert_eq!(used, Some(psk.id()));
    (coordinator, psk, cell, keys)
}

#[track_caller]
fn unchanged<T: std::fmt::Debug>(
    cell: &mut MemberCell,
    act: impl FnOnce(&mut MemberCell) -> Result<T, MlsError>,
) -> Refused {
    let before = cell.snapshot();
    let why = refused(act(cell));
    assert_eq!(cell.snapshot(), before);
    why
}

#[test]
fn a_cell_lives_its_whole_life_with_a_pre_shared_key() {
    for suite in Suite::ALL {
        let (mut world, _) = guarded(suite, 5);
        let ids = world.ids();
        world.remove(&ids[..1]);
        world.restart();
        world.add_these(&ids[1..2], ids[1..2].to_vec());
        let update = world.update_of(ids[2]);
        let updates = vec![(ids[2], update)];
        let committed = world.commit(Changes { updates, ..Changes::default() });
        world.deliver(&committed, &BTreeMap::new());
        world.add(3);
        assert_eq!(world.ids().len(), 7);
    }
}

#[test]
fn who_does_not_hold_it_neither_joins_nor_follows() {
    let (mut world, psk) = guarded(SUITE, 3);
    let (watcher, keys, missing) = (world.ids()[0], world.keys(), Refused::PskMissing { psk: psk.id() });
    let id = world.enrol();
    let (add, private) = world.package(id);
    let committed = world.commit(Changes { add: vec![add], ..Changes::default() });
    let welcome = &committed.welcomes[&id];

    let another = [self::psk()];
    for held in [&[][..], &another] {
        let why = refused(MemberCell::join(&world.context, &private, welcome, &keys, held));
        assert_eq!(why, missing);
        let cell = world.cells.get_mut(&watcher).unwrap();
        let why = unchanged(cell, |cell| cell.process(&[], &committed.commit, &keys, held));
        assert_eq!(why, missing);
    }

    // With it, among others, both go on.
    let held = [another[0].clone(), psk.clone()];
    let (joined, used) = MemberCell::join(&world.context, &private, welcome, &keys, &held).unwrap();
    let cell = world.cells.get_mut(&watcher).unwrap();
    let processed = cell.process(&[], &committed.commit, &keys, &held).unwrap();
    assert_eq!(used, Some(psk.id()));
    assert_eq!(processed, Processed::Advanced { epoch: committed.epoch, psk: Some(psk.id()) });
    assert_eq!(joined.kek(), world.manager.kek());
    assert_eq!(cell.kek(), world.manager.kek());
}

#[test]
fn who_holds_it_is_let_in_nowhere_without_it() {
    let mut world = World::with(SUITE, 3);
    let (watcher, keys, held) = (world.ids()[0], world.keys(), [psk()]);
    let id = world.enrol();
    let (add, private) = world.package(id);
    let committed = world.commit(Changes { add: vec![add], ..Changes::default() });

    let why = refused(MemberCell::join(&world.context, &private, &committed.welcomes[&id], &keys, &held));
    assert_eq!(why, Refused::PskNotUsed { what: "a Welcome" });
    let cell = world.cells.get_mut(&watcher).unwrap();
    let why = unchanged(cell, |cell| cell.process(&[], &committed.commit, &keys, &held));
    assert_eq!(why, Refused::PskNotUsed { what: "a commit" });
    cell.process(&[], &committed.commit, &keys, &[]).unwrap();

    // What adds nobody needs none.
    let removed = world.commit(Changes { remove: vec![id], ..Changes::default() });
    let cell = world.cells.get_mut(&watcher).unwrap();
    let processed = cell.process(&[], &removed.commit, &keys, &held).unwrap();
    assert_eq!(processed, Processed::Advanced { epoch: removed.epoch, psk: None });
}

#[test]
fn only_the_secret_counts_and_not_its_name() {
    let (context, psk) = (context(), psk());
    let mut coordinator = Rogue::coordinator(&context, SUITE);
    let keys = [coordinator.key.public()];
    let (add, private) = Device::new().package(SUITE);
    let forged = coordinator.psk(psk.id().as_bytes(), &[7; 32]);
    let (_, welcome) = coordinator.add_with(&[&add.key_package], vec![forged]);
    let held = [psk];
    let why = refused(MemberCell::join(&context, &private, &welcome, &keys, &held));
    assert_eq!(why, Refused::PskWrong { psk: held[0].id() });

    let (mut coordinator, psk, mut cell, keys) = under_rogue_coordinator();
    let (add, _) = Device::new().package(SUITE);
    let forged = coordinator.psk(psk.id().as_bytes(), &[7; 32]);
    let (commit, _) = coordinator.add_with(&[&add.key_package], vec![forged]);
    let held = [psk];
    let why = unchanged(&mut cell, |cell| cell.process(&[], &commit, &keys, &held));
    assert_eq!(why, Refused::WrongConfirmationTag);
}

#[test]
fn other_uses_of_pre_shared_keys_have_no_place_in_a_cell() {
    let second = psk();
    let package = || Device::new().package(SUITE).0.key_package;
    type Proposals = fn(&Rogue, &Psk, &Psk) -> Vec<Proposal>;
    let cases: [(Proposals, bool, Refused); 3] = [
        (|rogue, psk, _| vec![of(rogue, psk)], false, Refused::ForbiddenProposal { proposal: "psk" }),
        (|rogue, psk, other| vec![of(rogue, psk), of(rogue, other)], true, Refused::PreSharedKey),
        (|rogue, _, _| vec![rogue.psk(b"not sixteen", &[7; 32])], true, Refused::PreSharedKey),
    ];
    for (proposals, adds, expected) in cases {
        let (mut coordinator, psk, mut cell, keys) = under_rogue_coordinator();
        let (proposals, added) = (proposals(&coordinator, &psk, &second), package());
        let commit =
            if adds { coordinator.add_with(&[&added], proposals).0 } else { coordinator.commit(proposals) };
        let held = [psk, second.clone()];
        let why = unchanged(&mut cell, |cell| cell.process(&[], &commit, &keys, &held));
        assert_eq!(why, expected);
    }
}

fn of(rogue: &Rogue, psk: &Psk) -> Proposal {
    rogue.psk(psk.id().as_bytes(), psk.as_bytes())
}

#[test]
fn a_welcome_with_two_pre_shared_keys_is_refused() {
    let (context, held) = (context(), [psk(), psk()]);
    let mut coordinator = Rogue::coordinator(&context, SUITE);
    let keys = [coordinator.key.public()];
    let (add, private) = Device::new().package(SUITE);
    let both = vec![of(&coordinator, &held[0]), of(&coordinator, &held[1])];
    let (_, welcome) = coordinator.add_with(&[&add.key_package], both);
    let why = refused(MemberCell::join(&context, &private, &welcome, &keys, &held));
    assert_eq!(why, Refused::PreSharedKey);
}

#[test]
fn a_cell_goes_over_to_the_next_one_with_those_who_hold_it() {
    let (mut world, former) = guarded(SUITE, 3);
    let (keeper, stuck, keys, next) = (world.ids()[0], world.ids()[1], world.keys(), psk());
    world.psk = Some(next.clone());
    let id = world.enrol();
    let (add, private) = world.package(id);
    let committed = world.commit(Changes { add: vec![add], ..Changes::default() });
    let welcome = &committed.welcomes[&id];

    let both = [former.clone(), next.clone()];
    let cell = world.cells.get_mut(&keeper).unwrap();
    cell.process(&[], &committed.commit, &keys, &both).unwrap();
    assert_eq!(cell.kek(), world.manager.kek());
    let (joined, _) =
        MemberCell::join(&world.context, &private, welcome, &keys, std::slice::from_ref(&next)).unwrap();
    assert_eq!(joined.kek(), world.manager.kek());
    let cell = world.cells.get_mut(&stuck).unwrap();
    let why =
        unchanged(cell, |cell| cell.process(&[], &committed.commit, &keys, std::slice::from_ref(&former)));
    assert_eq!(why, Refused::PskMissing { psk: next.id() });
}

#[test]
fn no_snapshot_holds_it() {
    let (world, psk) = guarded(SUITE, 2);
    let contains = |bytes: &[u8]| bytes.windows(32).any(|window| window == psk.as_bytes());
    assert!(!contains(&world.manager.snapshot()));
    assert!(world.cells.values().all(|cell| !contains(&cell.snapshot())));
}

#[test]
fn it_costs_less_than_a_hundred_bytes_in_a_commit_and_in_a_welcome() {
    const MEMBERS: usize = 64;
    let sizes = |psk: Option<Psk>| {
        let mut world = World::new(SUITE);
        world.psk = psk;
        let first: Vec<_> = (0..MEMBERS).map(|_| world.enrol()).collect();
        let add = first.iter().map(|id| world.package(*id).0).collect();
        world.commit(Changes { add, ..Changes::default() });
        let id = world.enrol();
        let add = vec![world.package(id).0];
        let committed = world.commit(Changes { add, ..Changes::default() });
        (committed.commit.len(), committed.welcomes[&id].len())
    };
    let (without, with) = (sizes(None), sizes(Some(psk())));
    println!("commit {} + {}, Welcome {} + {}", without.0, with.0 - without.0, without.1, with.1 - without.1);
    assert!(with.0 - without.0 < 100 && with.1 - without.1 < 100, "{without:?} grew to {with:?}");
}
