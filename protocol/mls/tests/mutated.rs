//! Damaged bytes of every kind: refused, never a panic, and nothing changes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::sync::LazyLock;

use common::World;
use fleetkey_mls::{
    AddDevice, CellContext, Changes, LeafSigner, ManagedCell, MemberCell, MlsError, PrivateKeyPackage,
    welcome_key_package_ref,
};
use fleetkey_wire::{DeviceId, Suite};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

/// One honest message of each kind, and who it is for.
struct Honest {
    context: CellContext,
    keys: [[u8; 32]; 1],
    coordinator: LeafSigner,
    manager: ManagedCell,
    member: MemberCell,
    updater: DeviceId,
    update: Vec<u8>,
    /// A commit that covers `update`, as the member is to follow it.
    commit: Vec<u8>,
    joiner: PrivateKeyPackage,
    package: AddDevice,
    welcome: Vec<u8>,
}

static HONEST: LazyLock<Honest> = LazyLock::new(|| {
    let mut world = World::with(Suite::Aes128Gcm, 5);
    let ids = world.ids();
    let update = world.update_of(ids[1]);
    let manager = world.manager.clone();
    let id = world.enrol();
    let (package, joiner) = world.package(id);
    let committed = world.commit(Changes {
        add: vec![package.clone()],
        remove: vec![ids[3]],
        updates: vec![(ids[1], update.clone())],
        ..Changes::default()
    });
    Honest {
        context: world.context,
        keys: world.keys(),
        manager,
        member: world.cells[&ids[0]].clone(),
        updater: ids[1],
        update,
        commit: committed.commit,
        joiner,
        package,
        welcome: committed.welcomes[&id].clone(),
        coordinator: world.coordinator,
    }
});

/// Refused, for the sender's fault, and the cell as it was.
fn assert_commit_refused(updates: &[Vec<u8>], commit: &[u8]) {
    let mut cell = HONEST.member.clone();
    let result = cell.process(updates, commit, &HONEST.keys, &[]);
    assert!(matches!(result, Err(MlsError::Refused(_))), "{result:?}");
    assert_eq!(cell.snapshot(), HONEST.member.snapshot());
}

fn assert_welcome_refused(welcome: &[u8]) {
    let result = MemberCell::join(&HONEST.context, &HONEST.joiner, welcome, &HONEST.keys, &[]);
    assert!(matches!(result, Err(MlsError::Refused(_))), "{result:?}");
}

/// Dropped, and the batch has nothing else in it.
fn assert_package_dropped(key_package: &[u8]) {
    let mut manager = HONEST.manager.clone();
    let add = vec![AddDevice { key_package: key_package.to_vec(), ..HONEST.package.clone() }];
    let outcome = manager.commit(&HONEST.coordinator, Changes { add, ..Changes::default() }).unwrap();
    assert!(outcome.committed.is_none());
    assert_eq!(outcome.dropped.len(), 1);
    assert_eq!(manager.snapshot(), HONEST.manager.snapshot());
}

fn assert_update_dropped(update: &[u8]) {
    let mut manager = HONEST.manager.clone();
    let result = manager.check_update(HONEST.updater, update);
    assert!(matches!(result, Err(MlsError::Refused(_))), "{result:?}");
    let updates = vec![(HONEST.updater, update.to_vec())];
    let outcome = manager.commit(&HONEST.coordinator, Changes { updates, ..Changes::default() }).unwrap();
    assert!(outcome.committed.is_none());
    assert_eq!(manager.snapshot(), HONEST.manager.snapshot());
}

/// Every cut of `bytes`, and every byte of it with some of its bits turned.
fn damaged(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let cuts = (0..bytes.len()).map(|length| bytes[..length].to_vec());
    let turned = (0..bytes.len()).flat_map(|at| {
        [0x01, 0x80, 0xc0, 0xff].map(|bits| {
            let mut bytes = bytes.to_vec();
            bytes[at] ^= bits;
            bytes
        })
    });
    let longer = [[bytes, &[0]].concat(), [bytes, bytes].concat()];
    cuts.chain(turned).chain(longer)
}

#[test]
fn the_honest_messages_are_accepted() {
    // What the tests below damage is worth something undamaged.
    let mut cell = HONEST.member.clone();
    cell.process(std::slice::from_ref(&HONEST.update), &HONEST.commit, &HONEST.keys, &[]).unwrap();
    let joined =
        MemberCell::join(&HONEST.context, &HONEST.joiner, &HONEST.welcome, &HONEST.keys, &[]).unwrap().0;
    assert_eq!(joined.kek(), cell.kek());
    HONEST.manager.check_update(HONEST.updater, &HONEST.update).unwrap();
}

#[test]
fn no_damaged_commit_is_followed() {
    for commit in damaged(&HONEST.commit) {
        assert_commit_refused(std::slice::from_ref(&HONEST.update), &commit);
    }
}

#[test]
fn no_damaged_update_is_taken_in() {
    for update in damaged(&HONEST.update) {
        assert_update_dropped(&update);
        assert_commit_refused(&[update], &HONEST.commit);
    }
}

#[test]
fn no_damaged_welcome_is_joined() {
    for welcome in damaged(&HONEST.welcome) {
        assert_welcome_refused(&welcome);
    }
}

#[test]
fn no_damaged_key_package_is_added() {
    for package in damaged(&HONEST.package.key_package) {
        assert_package_dropped(&package);
    }
}

#[test]
fn no_damaged_snapshot_is_restored() {
    for bytes in damaged(&HONEST.member.snapshot()).step_by(7) {
        assert!(MemberCell::restore(&bytes).is_err());
    }
    for bytes in damaged(&HONEST.manager.snapshot()).step_by(7) {
        assert!(ManagedCell::restore(&bytes).is_err());
    }
    for bytes in damaged(&HONEST.joiner.to_bytes()) {
        assert!(PrivateKeyPackage::from_bytes(&bytes).is_err());
    }
}

/// Some of `bytes` overwritten, and a piece cut out of them.
fn mangled(bytes: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
    let len = bytes.len();
    let writes = prop::collection::vec((0..len, any::<u8>()), 1..8);
    (writes, 0..len, 0..32_usize)
        .prop_map(move |(writes, from, length)| {
            let mut bytes = bytes.to_vec();
            for (at, byte) in writes {
                bytes[at] = byte;
            }
            bytes.drain(from..(from + length).min(len));
            bytes
        })
        .prop_filter("must be damaged", move |mangled| mangled != bytes)
}

fn config() -> ProptestConfig {
    let kept = FileFailurePersistence::WithSource("regressions");
    ProptestConfig { cases: 400, failure_persistence: Some(Box::new(kept)), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn mangled_commits_are_refused(commit in mangled(&HONEST.commit)) {
        assert_commit_refused(std::slice::from_ref(&HONEST.update), &commit);
    }

    #[test]
    fn mangled_updates_are_refused(update in mangled(&HONEST.update)) {
        assert_update_dropped(&update);
    }

    #[test]
    fn mangled_welcomes_are_refused(welcome in mangled(&HONEST.welcome)) {
        assert_welcome_refused(&welcome);
    }

    #[test]
    fn mangled_key_packages_are_refused(package in mangled(&HONEST.package.key_package)) {
        assert_package_dropped(&package);
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        assert_commit_refused(&[], &bytes);
        assert_commit_refused(std::slice::from_ref(&bytes), &HONEST.commit);
        assert_welcome_refused(&bytes);
        assert_package_dropped(&bytes);
        assert_update_dropped(&bytes);
        prop_assert!(welcome_key_package_ref(&bytes).is_err());
        prop_assert!(MemberCell::restore(&bytes).is_err());
        prop_assert!(ManagedCell::restore(&bytes).is_err());
    }
}
