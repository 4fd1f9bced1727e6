//! What others may not do to a cell, and that trying costs nobody else anything.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::forge;
use common::rogue::{self, Key, Rogue};
use common::{Device, World, context, refused};
use fleetkey_mls::{
    AddDevice, Changes, CommitOutcome, Dropped, LocalError, ManagedCell, MemberCell, MlsError, Processed,
    Refused, make_key_package, welcome_key_package_ref,
};
use fleetkey_wire::{CellEpoch, CellId, DeviceId, Suite};
use openmls::prelude::tls_codec::{Deserialize as _, Serialize as _, VLBytes};
use openmls::prelude::*;
use rand_core::OsRng;

/// A world with some devices of ours and one made of plain openmls, which is a member like any other.
fn with_rogue(suite: Suite, count: usize) -> (World, Rogue) {
    let mut world = World::with(suite, count);
    let mut rogue = Rogue::device(suite);
    let committed = world.commit(Changes { add: vec![rogue.package()], ..Changes::default() });
    let keys = world.keys();
    for cell in world.cells.values_mut() {
        cell.process(&[], &committed.commit, &keys, &[]).unwrap();
    }
    rogue.join(&committed.welcomes[&rogue.device_id()]);
    assert_eq!(rogue.authenticator8(), world.manager.epoch_authenticator8());
    (world, rogue)
}

/// A coordinator made of plain openmls, with its key, and a device of ours in its cell.
fn under_rogue_coordinator() -> (Rogue, Device, MemberCell, [[u8; 32]; 1]) {
    let context = context();
    let mut coordinator = Rogue::coordinator(&context, Suite::Aes128Gcm);
    let device = Device::new();
    let (add, private) = device.package(Suite::Aes128Gcm);
    let (_, welcome) = coordinator.add(&[&add.key_package]);
    let keys = [coordinator.key.public()];
    let cell = MemberCell::join(&context, &private, &welcome, &keys, &[]).unwrap().0;
    (coordinator, device, cell, keys)
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

fn dropped(outcome: &CommitOutcome) -> Vec<(DeviceId, Refused)> {
    outcome.dropped.iter().map(|Dropped { device, why }| (*device, why.clone())).collect()
}

// ---- commits, at a member ----

#[test]
fn a_member_that_is_not_the_coordinator_moves_nobody() {
    for suite in Suite::ALL {
        let (mut world, mut rogue) = with_rogue(suite, 3);
        let leaf = rogue.group().own_leaf_index().u32();
        let commit = rogue.stage(Vec::new());
        let keys = world.keys();
        for cell in world.cells.values_mut() {
            let why = unchanged(cell, |cell| cell.process(&[], &commit, &keys, &[]));
            assert_eq!(why, Refused::NotTheCoordinator { what: "a commit", leaf });
        }
        // The refused commit has used up nothing: the coordinator goes on.
        let committed = world.commit(Changes { force_path: true, ..Changes::default() });
        for cell in world.cells.values_mut() {
            cell.process(&[], &committed.commit, &keys, &[]).unwrap();
        }
    }
}

#[test]
fn a_commit_counts_once() {
    let mut world = World::with(Suite::Aes128Gcm, 3);
    let id = world.ids()[0];
    let commit = world.commit(Changes { force_path: true, ..Changes::default() });
    let keys = world.keys();
    let cell = world.cells.get_mut(&id).unwrap();
    cell.process(&[], &commit.commit, &keys, &[]).unwrap();
    let why = unchanged(cell, |cell| cell.process(&[], &commit.commit, &keys, &[]));
    assert_eq!(why, Refused::WrongEpoch { got: commit.epoch_before, current: commit.epoch });
}

#[test]
fn a_commit_that_skips_an_epoch_is_refused_by_both_epochs() {
    let mut world = World::with(Suite::Aes128Gcm, 3);
    let id = world.ids()[0];
    world.commit(Changes { force_path: true, ..Changes::default() });
    let second = world.commit(Changes { force_path: true, ..Changes::default() });
    let keys = world.keys();
    let cell = world.cells.get_mut(&id).unwrap();
    let current = cell.epoch();
    let why = unchanged(cell, |cell| cell.process(&[], &second.commit, &keys, &[]));
    assert_eq!(why, Refused::WrongEpoch { got: current.next(), current });
}

#[test]
fn a_commit_for_another_cell_is_refused() {
    let mut here = World::with(Suite::Aes128Gcm, 2);
    let mut there = World::with(Suite::Aes128Gcm, 2);
    let commit = there.commit(Changes { force_path: true, ..Changes::default() });
    let keys = there.keys();
    for cell in here.cells.values_mut() {
        let why = unchanged(cell, |cell| cell.process(&[], &commit.commit, &keys, &[]));
        let (expected, got) = (here.context.cell, Some(there.context.cell));
        assert_eq!(why, Refused::WrongCell { expected, got });
    }
}

#[test]
fn a_commit_of_a_cell_with_the_same_id_and_other_keys_is_refused() {
    let mut here = World::with(Suite::Aes128Gcm, 2);
    let mut copy = World::new(Suite::Aes128Gcm);
    copy.context = here.context;
    copy.manager = ManagedCell::create(copy.context, copy.suite, &here.coordinator).unwrap();
    std::mem::swap(&mut copy.coordinator, &mut here.coordinator);
    copy.add(2);
    assert_eq!(copy.manager.epoch(), here.manager.epoch());
    let commit = copy.commit(Changes { force_path: true, ..Changes::default() });
    let keys = copy.keys();
    for cell in here.cells.values_mut() {
        let why = unchanged(cell, |cell| cell.process(&[], &commit.commit, &keys, &[]));
        assert!(matches!(why, Refused::Undecryptable { .. }), "{why:?}");
    }
}

#[test]
fn only_commits_are_taken_for_commits() {
    let (mut world, mut rogue) = with_rogue(Suite::Aes128Gcm, 2);
    let Rogue { provider, key, group, .. } = &mut rogue;
    let application = group.as_mut().unwrap().create_message(provider, key, b"hello").unwrap();
    let application = application.to_bytes().unwrap();
    let proposal = rogue.update(None);
    let package = rogue.package().key_package;
    let group_info = {
        let Rogue { provider, key, group, .. } = &rogue;
        group.as_ref().unwrap().export_group_info(provider.crypto(), key, true).unwrap().to_bytes().unwrap()
    };
    let keys = world.keys();
    let late = world.enrol();
    let (add, _) = world.package(late);
    let welcome =
        world.commit(Changes { add: vec![add], ..Changes::default() }).welcomes.remove(&late).unwrap();
    let cell = world.cells.values_mut().next().unwrap();
    for (bytes, got) in [
        (application, "an application message"),
        (proposal, "a proposal"),
        (package, "a key package"),
        (group_info, "a group info"),
        (welcome, "a Welcome"),
    ] {
        let why = unchanged(cell, |cell| cell.process(&[], &bytes, &keys, &[]));
        assert_eq!(why, Refused::WrongKind { expected: "a commit", got });
    }
    let why = unchanged(cell, |cell| cell.process(&[], b"", &keys, &[]));
    assert_eq!(why, Refused::Malformed { what: "a commit" });
    let (bytes, max) = (fleetkey_mls::MAX_COMMIT_BYTES + 1, fleetkey_mls::MAX_COMMIT_BYTES);
    let why = unchanged(cell, |cell| cell.process(&[], &vec![0; bytes], &keys, &[]));
    assert_eq!(why, Refused::TooLarge { what: "a commit", bytes, max });
}

#[test]
fn a_public_commit_and_an_external_join_are_refused() {
    let (mut world, mut rogue) = with_rogue(Suite::Aes128Gcm, 2);
    let keys = world.keys();
    // A commit in the clear, by a member.
    let Rogue { provider, group, .. } = &mut rogue;
    let config = MlsGroupJoinConfig::builder()
        .wire_format_policy(PURE_PLAINTEXT_WIRE_FORMAT_POLICY)
        .use_ratchet_tree_extension(true)
        .build();
    group.as_mut().unwrap().set_configuration(provider.storage(), &config).unwrap();
    let in_the_clear = rogue.stage(Vec::new());

    // A join by external commit, with a group info that the member handed out.
    let Rogue { provider, key, group, .. } = &rogue;
    let info = group.as_ref().unwrap().export_group_info(provider.crypto(), key, true).unwrap();
    let info: MlsMessageIn = { MlsMessageIn::tls_deserialize_exact(info.to_bytes().unwrap()).unwrap() };
    let MlsMessageBodyIn::GroupInfo(info) = info.extract() else { panic!("no group info") };
    let outsider = Rogue::device(Suite::Aes128Gcm);
    let (_, bundle) = MlsGroup::external_commit_builder()
        .with_config(rogue::join_config())
        .build_group(&outsider.provider, info, outsider.key.with(&outsider.id))
        .unwrap()
        .load_psks(outsider.provider.storage())
        .unwrap()
        .build(outsider.provider.rand(), outsider.provider.crypto(), &outsider.key, |_| true)
        .unwrap()
        .finalize(&outsider.provider)
        .unwrap();
    let external = bundle.into_commit().to_bytes().unwrap();

    for cell in world.cells.values_mut() {
        for commit in [&in_the_clear, &external] {
            let why = unchanged(cell, |cell| cell.process(&[], commit, &keys, &[]));
            assert_eq!(why, Refused::WrongKind { expected: "a commit", got: "a public message" });
        }
    }
}

#[test]
fn even_the_coordinator_may_only_add_remove_and_cover_updates() {
    let (mut coordinator, _, mut cell, keys) = under_rogue_coordinator();
    let extensions = Extensions::from_vec(vec![Extension::RequiredCapabilities(
        RequiredCapabilitiesExtension::new(&[], &[], &[CredentialType::Basic]),
    )])
    .unwrap();
    let commit = {
        let Rogue { provider, key, group, .. } = &mut coordinator;
        let group = group.as_mut().unwrap();
        let bundle = group
            .commit_builder()
            .propose_group_context_extensions(extensions)
            .unwrap()
            .load_psks(provider.storage())
            .unwrap()
            .build(provider.rand(), provider.crypto(), key, |_| true)
            .unwrap()
            .stage_commit(provider)
            .unwrap();
        let commit = bundle.into_commit().to_bytes().unwrap();
        group.clear_pending_commit(provider.storage()).unwrap();
        commit
    };
    let why = unchanged(&mut cell, |cell| cell.process(&[], &commit, &keys, &[]));
    assert_eq!(why, Refused::ForbiddenProposal { proposal: "group_context_extensions" });

    // The same coordinator within the rules is followed.
    let commit = coordinator.commit(Vec::new());
    cell.process(&[], &commit, &keys, &[]).unwrap();
    assert_eq!(cell.epoch_authenticator8(), coordinator.authenticator8());
}

#[test]
fn the_coordinator_may_not_slip_another_identity_into_its_own_leaf() {
    let (mut coordinator, _, mut cell, keys) = under_rogue_coordinator();
    let Rogue { provider, key, group, .. } = &mut coordinator;
    let new = Key::new();
    let bundle = NewSignerBundle { signer: &new, credential_with_key: new.with(&[9; 16]) };
    let commit = group
        .as_mut()
        .unwrap()
        .self_update_with_new_signer(provider, key, bundle, LeafNodeParameters::default())
        .unwrap()
        .into_commit()
        .to_bytes()
        .unwrap();
    let why = unchanged(&mut cell, |cell| cell.process(&[], &commit, &keys, &[]));
    assert_eq!(why, Refused::IdentityChanged { leaf: 0 });
}

// ---- updates ----

#[test]
fn an_update_under_a_foreign_key_is_refused_by_manager_and_member() {
    // At the manager it drops out.
    let (mut world, mut rogue) = with_rogue(Suite::Aes128Gcm, 2);
    let device = rogue.device_id();
    let update = rogue.update(Some(&Key::new()));
    let why = refused(world.manager.check_update(device, &update));
    assert_eq!(why, Refused::WrongSignatureKey { device });
    let gone = world.ids().into_iter().find(|id| *id != device).unwrap();
    let changes = Changes { updates: vec![(device, update)], remove: vec![gone], ..Changes::default() };
    let outcome = world.manager.commit(&world.coordinator, changes).unwrap();
    assert_eq!(dropped(&outcome), [(device, Refused::WrongSignatureKey { device })]);
    assert!(outcome.committed.unwrap().covered_updates.is_empty());

    // At a member it is refused though the coordinator covers it.
    for other_identity in [false, true] {
        let (mut coordinator, _, mut cell, keys) = under_rogue_coordinator();
        let mut rogue = Rogue::device(Suite::Aes128Gcm);
        let (commit, welcome) = coordinator.add(&[&rogue.package().key_package]);
        cell.process(&[], &commit, &keys, &[]).unwrap();
        rogue.join(&welcome);
        let leaf = rogue.group().own_leaf_index().u32();
        let update = if other_identity { rogue.update_as(&[9; 16]) } else { rogue.update(Some(&Key::new())) };
        coordinator.take_in(&update);
        let commit = coordinator.commit(Vec::new());
        let why = unchanged(&mut cell, |cell| cell.process(&[update], &commit, &keys, &[]));
        assert_eq!(why, Refused::IdentityChanged { leaf });
    }
}

#[test]
fn a_commit_comes_with_exactly_the_updates_it_covers() {
    let mut world = World::with(Suite::Aes128Gcm, 4);
    let ids = world.ids();
    let first = world.update_of(ids[0]);
    let second = world.update_of(ids[1]);
    let updates = vec![(ids[0], first.clone())];
    let committed = world.commit(Changes { updates, ..Changes::default() });
    let keys = world.keys();
    for id in &ids {
        let cell = world.cells.get_mut(id).unwrap();
        let why = unchanged(cell, |cell| cell.process(&[], &committed.commit, &keys, &[]));
        assert_eq!(why, Refused::MissingProposal, "even our own must have come along");
        let both = [first.clone(), second.clone()];
        let why = unchanged(cell, |cell| cell.process(&both, &committed.commit, &keys, &[]));
        assert_eq!(why, Refused::UncoveredUpdate { got: 2, covered: 1 });
        cell.process(&committed.covered_updates, &committed.commit, &keys, &[]).unwrap();
    }
    world.assert_agreed();
}

#[test]
fn an_update_counts_for_its_sender_and_its_epoch_only() {
    let mut world = World::with(Suite::Aes128Gcm, 3);
    let ids = world.ids();
    let update = world.update_of(ids[0]);
    let why = refused(world.manager.check_update(ids[1], &update));
    assert!(matches!(why, Refused::WrongSender { device, .. } if device == ids[1]), "{why:?}");
    let stranger = DeviceId::random(&mut OsRng);
    let why = refused(world.manager.check_update(stranger, &update));
    assert_eq!(why, Refused::NotAMember { device: stranger });

    let committed = world.commit(Changes { force_path: true, ..Changes::default() });
    let why = refused(world.manager.check_update(ids[0], &update));
    assert_eq!(why, Refused::WrongEpoch { got: committed.epoch_before, current: committed.epoch });
}

#[test]
fn checking_an_update_changes_nothing() {
    let mut world = World::with(Suite::Aes128Gcm, 3);
    let id = world.ids()[0];
    let update = world.update_of(id);
    let before = world.manager.snapshot();
    for _ in 0..3 {
        assert_eq!(world.manager.check_update(id, &update), Ok(()));
    }
    assert_eq!(world.manager.snapshot(), before);
    world.commit(Changes { updates: vec![(id, update)], ..Changes::default() });
}

#[test]
fn other_proposals_are_no_updates() {
    let (mut world, mut rogue) = with_rogue(Suite::Aes128Gcm, 2);
    let device = rogue.device_id();
    let Rogue { provider, key, group, .. } = &mut rogue;
    let group = group.as_mut().unwrap();
    let (removal, _) = group.propose_remove_member(provider, key, LeafNodeIndex::new(1)).unwrap();
    let removal = removal.to_bytes().unwrap();
    let why = refused(world.manager.check_update(device, &removal));
    assert_eq!(why, Refused::ForbiddenProposal { proposal: "remove" });

    let committed = world.commit(Changes { force_path: true, ..Changes::default() });
    let keys = world.keys();
    let cell = world.cells.values_mut().next().unwrap();
    let why = unchanged(cell, |cell| cell.process(&[removal], &committed.commit, &keys, &[]));
    assert_eq!(why, Refused::ForbiddenProposal { proposal: "remove" });
}

#[test]
fn bad_updates_drop_out_and_the_removal_goes_on() {
    let mut world = World::with(Suite::Aes128Gcm, 5);
    let ids = world.ids();
    let good = world.update_of(ids[0]);
    let repeated = (ids[0], good.clone());
    let leaving = (ids[1], world.update_of(ids[1]));
    let of_another = (ids[2], good.clone());
    let rubbish = (ids[3], vec![1, 2, 3]);

    // The one that names another sender goes first: the true sender's must still be covered.
    let updates = vec![of_another, (ids[0], good.clone()), repeated, leaving, rubbish];
    let changes = Changes { updates, remove: vec![ids[1]], ..Changes::default() };
    let outcome = world.manager.commit(&world.coordinator, changes).unwrap();

    let dropped = dropped(&outcome);
    assert_eq!(dropped.len(), 4);
    assert!(
        matches!(dropped[0], (_, Refused::WrongSender { device, .. }) if device == ids[2]),
        "{dropped:?}"
    );
    assert_eq!(dropped[1], (ids[0], Refused::Repeated { device: ids[0] }));
    assert_eq!(dropped[2], (ids[1], Refused::Leaving { device: ids[1] }));
    assert_eq!(dropped[3], (ids[3], Refused::Malformed { what: "an update proposal" }));
    let committed = outcome.committed.unwrap();
    assert_eq!(committed.covered_updates, [good]);
    world.deliver(&committed, &Default::default());
    assert_eq!(world.manager.len(), 4);
}

// ---- key packages ----

/// X25519 public keys whose product with anything is zero (RFC 7748 §6.1): the points of small order, in every
/// encoding.
fn keys_of_small_order() -> Vec<[u8; 32]> {
    [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ]
    .iter()
    .map(|hex| {
        let mut key = [0; 32];
        for (byte, pair) in key.iter_mut().zip(hex.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        }
        key
    })
    .collect()
}

/// What a suite's KEM can do nothing with. The X25519 half of an X-Wing key may be anything: ML-KEM carries it.
fn keys_that_nothing_is_sealed_to(suite: Suite) -> Vec<Vec<u8>> {
    match suite {
        Suite::Aes128Gcm | Suite::ChaCha20Poly1305 => {
            keys_of_small_order().iter().map(|key| key.to_vec()).collect()
        }
        Suite::XWingChaCha20Poly1305 => {
            let good = forge::public_key(suite, [7; 32]);
            let cut = good[..good.len() - 1].to_vec();
            // Coefficients beyond ML-KEM's modulus (FIPS 203 §7.2), a key that is cut, one of X25519, and none.
            vec![vec![0xff; good.len()], cut, good[good.len() - 32..].to_vec(), Vec::new()]
        }
    }
}

#[test]
fn a_key_that_nothing_can_be_sealed_to_drops_out_and_the_removal_goes_on() {
    for suite in Suite::ALL {
        for bad in keys_that_nothing_is_sealed_to(suite) {
            let mut world = World::with(suite, 4);
            let ids = world.ids();
            let good = world.enrol();
            let (good_add, _) = world.package(good);
            let bad_leaf = forge::packaged(suite, Some(&bad), None);
            let bad_init = forge::packaged(suite, None, Some(&bad));
            let (leaf_id, init_id) = (bad_leaf.device, bad_init.device);

            let add = vec![bad_leaf, good_add, bad_init];
            let changes = Changes { add, remove: vec![ids[0]], ..Changes::default() };
            let outcome = world.manager.commit(&world.coordinator, changes).unwrap();

            let expected = [
                (leaf_id, Refused::UnusableKey { key: "encryption" }),
                (init_id, Refused::UnusableKey { key: "init" }),
            ];
            assert_eq!(dropped(&outcome), expected, "{bad:02x?}");
            assert_eq!(outcome.committed.unwrap().welcomes.into_keys().collect::<Vec<_>>(), [good]);
            assert!(!world.manager.contains(ids[0]) && world.manager.contains(good));
        }
    }
}

#[test]
fn a_forged_key_package_with_good_keys_is_accepted() {
    // Guards the test above: what drops out there drops out for its key alone.
    for suite in Suite::ALL {
        let mut world = World::with(suite, 2);
        let fine = forge::packaged(suite, None, None);
        world.commit(Changes { add: vec![fine], ..Changes::default() });
    }
}

#[test]
fn bad_key_packages_drop_out_by_name() {
    let suite = Suite::Aes128Gcm;
    let mut world = World::with(suite, 3);
    let ids = world.ids();
    let device = Device::new();
    let (fine, _) = device.package(suite);
    let other = Device::new();
    let (others, _) = other.package(suite);
    let extension = |ty: u16| Extension::Unknown(ty, UnknownExtension(vec![1]));
    let rogue = Rogue::device(suite);
    let rogue_id = rogue.device_id();
    let can_extend =
        Capabilities::new(None, Some(&[rogue.suite]), Some(&[ExtensionType::Unknown(0xf000)]), None, None);

    let cases: Vec<(AddDevice, Refused)> = vec![
        (
            AddDevice { device: other.id, ..fine.clone() },
            Refused::WrongIdentity { expected: format!("device {}", other.id) },
        ),
        (
            AddDevice { signature_key: other.signer.public_key(), ..fine.clone() },
            Refused::WrongSignatureKey { device: device.id },
        ),
        (
            AddDevice { key_package: others.key_package, ..fine.clone() },
            Refused::WrongIdentity { expected: format!("device {}", device.id) },
        ),
        (
            device.package(Suite::ChaCha20Poly1305).0,
            Refused::WrongSuite { expected: suite, got: Some(Suite::ChaCha20Poly1305) },
        ),
        (
            AddDevice { key_package: vec![0; 20], ..fine.clone() },
            Refused::Malformed { what: "a key package" },
        ),
        (
            AddDevice {
                key_package: fine.key_package[..fine.key_package.len() - 1].to_vec(),
                ..fine.clone()
            },
            Refused::Malformed { what: "a key package" },
        ),
        (
            AddDevice { key_package: vec![0; 1025], ..fine.clone() },
            Refused::TooLarge { what: "a key package", bytes: 1025, max: 1024 },
        ),
        (
            rogue.package_of(rogue.builder().key_package_lifetime(Lifetime::new(3600))),
            Refused::BoundedLifetime,
        ),
        (
            rogue.package_of(
                rogue
                    .builder()
                    .leaf_node_capabilities(can_extend.clone())
                    .key_package_extensions(Extensions::from_vec(vec![extension(0xf000)]).unwrap()),
            ),
            Refused::Extensions { what: "a key package" },
        ),
        (
            rogue.package_of(
                rogue
                    .builder()
                    .leaf_node_capabilities(can_extend)
                    .leaf_node_extensions(Extensions::from_vec(vec![extension(0xf000)]).unwrap()),
            ),
            Refused::Extensions { what: "the leaf" },
        ),
        (
            rogue.package_of(rogue.builder().leaf_node_capabilities(Capabilities::new(
                None,
                Some(&[Ciphersuite::MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519]),
                None,
                None,
                None,
            ))),
            Refused::Capabilities,
        ),
        (
            rogue.package_of(rogue.builder().leaf_node_capabilities(Capabilities::new(
                None,
                Some(&[rogue.suite; 80]),
                None,
                None,
                None,
            ))),
            Refused::TooLarge { what: "the leaf", bytes: 0, max: fleetkey_mls::max_leaf_bytes(suite) },
        ),
        (
            {
                let id = ids[0];
                world.devices[&id].package(suite).0
            },
            Refused::AlreadyMember { device: ids[0] },
        ),
    ];

    for (add, expected) in cases {
        let id = add.device;
        let before = world.manager.snapshot();
        let changes = Changes { add: vec![add], ..Changes::default() };
        let outcome = world.manager.commit(&world.coordinator, changes).unwrap();
        assert!(outcome.committed.is_none(), "{expected:?}");
        let [(who, why)] = &dropped(&outcome)[..] else { panic!("{expected:?}") };
        assert_eq!(*who, id);
        match (&expected, why) {
            (Refused::TooLarge { bytes: 0, .. }, Refused::TooLarge { what, max, .. }) => {
                assert_eq!((*what, *max), ("the leaf", fleetkey_mls::max_leaf_bytes(suite)));
            }
            _ => assert_eq!(*why, expected),
        }
        assert_eq!(world.manager.snapshot(), before);
    }

    // Last resort needs a capability that nobody claims, so openmls refuses it first.
    let last_resort = rogue.package_of(
        rogue
            .builder()
            .leaf_node_capabilities(Capabilities::new(
                None,
                Some(&[rogue.suite]),
                Some(&[ExtensionType::LastResort]),
                None,
                None,
            ))
            .mark_as_last_resort(),
    );
    let changes = Changes { add: vec![last_resort], ..Changes::default() };
    let outcome = world.manager.commit(&world.coordinator, changes).unwrap();
    assert_eq!(dropped(&outcome), [(rogue_id, Refused::Extensions { what: "a key package" })]);
}

#[test]
fn keys_in_use_drop_out() {
    let suite = Suite::Aes128Gcm;
    let mut world = World::with(suite, 3);
    let member = world.ids()[0];

    // A device that enrolled with another member's key.
    let twin = Device { id: DeviceId::random(&mut OsRng), signer: common::signer() };
    let thief = DeviceId::random(&mut OsRng);
    let (stolen, _) = make_key_package(thief, suite, &world.devices[&member].signer).unwrap();
    let stolen = AddDevice {
        device: thief,
        signature_key: world.devices[&member].signer.public_key(),
        key_package: stolen,
    };
    // A device that enrolled with the coordinator's key.
    let usurper = DeviceId::random(&mut OsRng);
    let (package, _) = make_key_package(usurper, suite, &world.coordinator).unwrap();
    let usurping =
        AddDevice { device: usurper, signature_key: world.coordinator.public_key(), key_package: package };
    // The same key package twice.
    let (once, _) = twin.package(suite);
    let changes = Changes { add: vec![stolen, usurping, once.clone(), once], ..Changes::default() };
    let outcome = world.manager.commit(&world.coordinator, changes).unwrap();

    let expected = [
        (thief, Refused::KeyInUse { key: "signature" }),
        (usurper, Refused::KeyInUse { key: "signature" }),
        (twin.id, Refused::Repeated { device: twin.id }),
    ];
    assert_eq!(dropped(&outcome), expected);
    assert_eq!(outcome.committed.unwrap().welcomes.len(), 1);
}

#[test]
fn encryption_and_init_keys_may_not_be_shared() {
    let suite = Suite::Aes128Gcm;
    let mut world = World::with(suite, 1);
    let [a, b] = [[3; 32], [4; 32]].map(|scalar| forge::public_key(suite, scalar));
    let (a, b) = (a.as_slice(), b.as_slice());
    let batch = vec![
        forge::packaged(suite, Some(a), None),
        forge::packaged(suite, Some(a), None),
        forge::packaged(suite, None, Some(a)),
        forge::packaged(suite, None, Some(b)),
        forge::packaged(suite, None, Some(b)),
        forge::packaged(suite, Some(b), None),
    ];
    let ids: Vec<_> = batch.iter().map(|add| add.device).collect();
    let outcome =
        world.manager.commit(&world.coordinator, Changes { add: batch, ..Changes::default() }).unwrap();
    let expected = [
        (ids[1], Refused::KeyInUse { key: "encryption" }),
        (ids[2], Refused::KeyInUse { key: "init" }),
        (ids[4], Refused::KeyInUse { key: "init" }),
        (ids[5], Refused::KeyInUse { key: "encryption" }),
    ];
    assert_eq!(dropped(&outcome), expected);
    assert_eq!(outcome.committed.unwrap().welcomes.len(), 2);
}

#[test]
fn a_leaf_with_a_parents_key_drops_out() {
    // It would pass, and whoever joins next would refuse the tree.
    for suite in Suite::ALL {
        let (mut world, mut rogue) = with_rogue(suite, 4);
        let committed = world.commit(Changes { force_path: true, ..Changes::default() });
        rogue.follow(&committed.commit);
        let parents: Vec<Vec<u8>> = rogue
            .group()
            .treesync()
            .full_parents()
            .map(|(_, parent)| parent.tls_serialize_detached().unwrap())
            .map(|encoded| VLBytes::tls_deserialize(&mut encoded.as_slice()).unwrap().into())
            .collect();
        assert!(!parents.is_empty());
        for parent in parents {
            let add = forge::packaged(suite, Some(&parent), None);
            let device = add.device;
            let changes = Changes { add: vec![add], ..Changes::default() };
            let outcome = world.manager.commit(&world.coordinator, changes).unwrap();
            assert_eq!(dropped(&outcome), [(device, Refused::KeyInUse { key: "encryption" })]);
        }
    }
}

#[test]
fn a_fresh_join_with_a_bad_key_package_still_removes() {
    let mut world = World::with(Suite::Aes128Gcm, 3);
    let id = world.ids()[1];
    let (mut add, _) = world.package(id);
    add.key_package.pop();
    let changes = Changes { add: vec![add], remove: vec![id], ..Changes::default() };
    let outcome = world.manager.commit(&world.coordinator, changes).unwrap();
    assert_eq!(dropped(&outcome), [(id, Refused::Malformed { what: "a key package" })]);
    world.deliver(&outcome.committed.unwrap(), &Default::default());
    assert!(!world.manager.contains(id));
}

#[test]
fn removing_a_stranger_is_named_and_stops_nobody() {
    let mut world = World::with(Suite::Aes128Gcm, 3);
    let id = world.ids()[1];
    let stranger = DeviceId::random(&mut OsRng);
    let changes = Changes { remove: vec![stranger, id, id], ..Changes::default() };
    let outcome = world.manager.commit(&world.coordinator, changes).unwrap();
    assert_eq!(dropped(&outcome), [(stranger, Refused::NotAMember { device: stranger })]);
    world.deliver(&outcome.committed.unwrap(), &Default::default());
    assert_eq!(world.manager.len(), 2);
}

// ---- Welcomes ----

#[test]
fn a_failed_join_leaves_the_key_package_usable() {
    let mut world = World::with(Suite::Aes128Gcm, 2);
    let id = world.enrol();
    let (add, private) = world.package(id);
    let stored = private.to_bytes();
    let committed = world.commit(Changes { add: vec![add], ..Changes::default() });
    let welcome = &committed.welcomes[&id];
    let keys = world.keys();

    let mut damaged = welcome.clone();
    *damaged.last_mut().unwrap() ^= 1;
    refused(MemberCell::join(&world.context, &private, &damaged, &keys, &[]));
    let not_the_coordinator = [common::signer().public_key()];
    let why = refused(MemberCell::join(&world.context, &private, welcome, &not_the_coordinator, &[]));
    assert_eq!(why, Refused::NotTheCoordinator { what: "a Welcome", leaf: 0 });
    let mut elsewhere = world.context;
    elsewhere.cell = CellId::random(&mut OsRng);
    let why = refused(MemberCell::join(&elsewhere, &private, welcome, &keys, &[]));
    assert_eq!(why, Refused::WrongCell { expected: elsewhere.cell, got: Some(world.context.cell) });
    let mut other_fleet = world.context;
    other_fleet.fleet = context().fleet;
    let why = refused(MemberCell::join(&other_fleet, &private, welcome, &keys, &[]));
    assert_eq!(why, Refused::NotTheCoordinator { what: "a Welcome", leaf: 0 });

    assert_eq!(private.to_bytes(), stored);
    let private = fleetkey_mls::PrivateKeyPackage::from_bytes(&stored).unwrap();
    let cell = MemberCell::join(&world.context, &private, welcome, &keys, &[]).unwrap().0;
    assert_eq!(cell.kek(), world.manager.kek());
}

#[test]
fn a_member_can_not_welcome_anybody() {
    let (world, mut rogue) = with_rogue(Suite::Aes128Gcm, 2);
    let device = Device::new();
    let (add, private) = device.package(Suite::Aes128Gcm);
    let (_, welcome) = rogue.add(&[&add.key_package]);
    let leaf = rogue.group().own_leaf_index().u32();
    let why = refused(MemberCell::join(&world.context, &private, &welcome, &world.keys(), &[]));
    assert_eq!(why, Refused::NotTheCoordinator { what: "a Welcome", leaf });
}

#[test]
fn a_welcome_for_several_devices_is_refused() {
    let context = context();
    let mut coordinator = Rogue::coordinator(&context, Suite::Aes128Gcm);
    let (first, private) = Device::new().package(Suite::Aes128Gcm);
    let (second, _) = Device::new().package(Suite::Aes128Gcm);
    let (_, welcome) = coordinator.add(&[&first.key_package, &second.key_package]);
    let keys = [coordinator.key.public()];
    let why = refused(MemberCell::join(&context, &private, &welcome, &keys, &[]));
    assert_eq!(why, Refused::NotSplit { entries: 2 });
    assert_eq!(welcome_key_package_ref(&welcome), Err(Refused::NotSplit { entries: 2 }));
}

#[test]
fn a_cell_with_group_context_extensions_is_not_joined() {
    let context = context();
    let senders = vec![ExternalSender::new(
        Key::new().with(&[1; 16]).signature_key,
        BasicCredential::new(vec![1; 16]).into(),
    )];
    let config = MlsGroupCreateConfig::builder()
        .ciphersuite(rogue::suite(Suite::Aes128Gcm))
        .use_ratchet_tree_extension(true)
        .with_group_context_extensions(
            Extensions::from_vec(vec![Extension::ExternalSenders(senders)]).unwrap(),
        )
        .build();
    let mut coordinator = Rogue::creator(&context, Suite::Aes128Gcm, Key::new(), config);
    let (add, private) = Device::new().package(Suite::Aes128Gcm);
    let (_, welcome) = coordinator.add(&[&add.key_package]);
    let keys = [coordinator.key.public()];
    let why = refused(MemberCell::join(&context, &private, &welcome, &keys, &[]));
    assert_eq!(why, Refused::GroupContextExtensions);
}

#[test]
fn a_welcome_without_the_tree_is_refused() {
    let context = context();
    let config = MlsGroupCreateConfig::builder()
        .ciphersuite(rogue::suite(Suite::Aes128Gcm))
        .use_ratchet_tree_extension(false)
        .build();
    let mut coordinator = Rogue::creator(&context, Suite::Aes128Gcm, Key::new(), config);
    let (add, private) = Device::new().package(Suite::Aes128Gcm);
    let (_, welcome) = coordinator.add(&[&add.key_package]);
    let keys = [coordinator.key.public()];
    let why = refused(MemberCell::join(&context, &private, &welcome, &keys, &[]));
    assert_eq!(why, Refused::MissingTree);
}

// ---- the caller and the disk ----

#[test]
fn the_wrong_signer_is_our_own_fault() {
    let mut world = World::with(Suite::Aes128Gcm, 2);
    let id = world.ids()[0];
    let stranger = common::signer();
    let changes = Changes { remove: vec![id], ..Changes::default() };
    assert_eq!(world.manager.commit(&stranger, changes).unwrap_err(), LocalError::WrongSigner);
    let cell = world.cells.get_mut(&id).unwrap();
    assert_eq!(cell.propose_update(&stranger).unwrap_err(), LocalError::WrongSigner);
}

#[test]
fn damaged_and_foreign_snapshots_are_named() {
    let mut world = World::with(Suite::Aes128Gcm, 2);
    let manager = world.manager.snapshot();
    let id = world.ids()[0];
    let member = world.cells[&id].snapshot();
    world.update_of(id);

    let mut newer = manager.to_vec();
    newer[0] = 9;
    let why = LocalError::UnknownVersion { what: "a managed cell", got: 9, known: 1 };
    assert_eq!(ManagedCell::restore(&newer).unwrap_err(), why);
    for (bytes, position) in [(&manager, 1), (&manager, manager.len() / 2), (&member, member.len() - 1)] {
        let mut damaged = bytes.to_vec();
        damaged[position] ^= 0x10;
        assert!(matches!(ManagedCell::restore(&damaged), Err(LocalError::Damaged { .. })));
        assert!(matches!(MemberCell::restore(&damaged), Err(LocalError::Damaged { .. })));
    }
    assert!(matches!(ManagedCell::restore(&[]), Err(LocalError::Damaged { .. })));
    assert!(matches!(ManagedCell::restore(&[1]), Err(LocalError::Damaged { .. })));
    assert!(matches!(ManagedCell::restore(&member), Err(LocalError::Damaged { .. })));
    assert!(matches!(MemberCell::restore(&manager), Err(LocalError::Damaged { .. })));
}

#[test]
fn secrets_do_not_print() {
    let mut world = World::with(Suite::Aes128Gcm, 1);
    let id = world.ids()[0];
    let (_, private) = world.package(id);
    world.update_of(id);
    let printed = format!(
        "{:?} {:?} {:?} {:?} {:?}",
        world.manager,
        world.cells[&id],
        private,
        world.coordinator,
        world.manager.kek()
    );
    assert!(printed.len() < 600, "{printed}");
    assert!(printed.contains("LeafSigner(redacted)") && printed.contains("Kek(redacted)"));
}

#[test]
fn a_removed_device_is_told_and_its_cell_stays_where_it_was() {
    let mut world = World::with(Suite::Aes128Gcm, 3);
    let id = world.ids()[0];
    let committed = world.commit(Changes { remove: vec![id], ..Changes::default() });
    let keys = world.keys();
    let cell = world.cells.get_mut(&id).unwrap();
    let before = cell.snapshot();
    for _ in 0..2 {
        assert_eq!(cell.process(&[], &committed.commit, &keys, &[]), Ok(Processed::Removed));
    }
    assert_eq!(cell.snapshot(), before);
    assert_eq!(cell.epoch(), CellEpoch(committed.epoch.0 - 1));
}
