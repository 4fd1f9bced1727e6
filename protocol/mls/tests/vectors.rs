//! Stored formats stay readable: what an earlier build stored is restored, and goes on.
//!
//! `cargo test -p fleetkey-mls --test vectors -- --ignored` writes a new set. A format that changes gets a new
//! version and a new folder; the old one stays.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::path::PathBuf;

use common::Device;
use fleetkey_mls::{CellContext, Changes, LeafSigner, ManagedCell, MemberCell, PrivateKeyPackage, Processed};
use fleetkey_wire::{CellId, DeviceId, FleetId, GroupId, Suite};

const COORDINATOR: [u8; 32] = [0xc0; 32];
const DEVICE: [u8; 32] = [0xde; 32];

fn context() -> CellContext {
    CellContext {
        fleet: FleetId::from_bytes([0x11; 16]),
        group: GroupId::from_bytes([0x22; 16]),
        cell: CellId::from_bytes([0x33; 16]),
    }
}

fn folder(suite: Suite) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/1").join(suite.name())
}

fn read(suite: Suite, name: &str) -> Vec<u8> {
    hex::decode(fs::read_to_string(folder(suite).join(name)).unwrap().trim()).unwrap()
}

fn write(suite: Suite, name: &str, bytes: &[u8]) {
    fs::create_dir_all(folder(suite)).unwrap();
    fs::write(folder(suite).join(name), hex::encode(bytes) + "\n").unwrap();
}

fn device() -> Device {
    Device { id: DeviceId::from_bytes([0x44; 16]), signer: LeafSigner::new(&DEVICE) }
}

#[test]
fn what_version_1_stored_is_restored_and_goes_on() {
    for suite in Suite::ALL {
        let coordinator = LeafSigner::new(&COORDINATOR);
        let keys = [coordinator.public_key()];
        let mut manager = ManagedCell::restore(&read(suite, "manager")).unwrap();
        let private = PrivateKeyPackage::from_bytes(&read(suite, "key-package")).unwrap();
        let mut member = MemberCell::restore(&read(suite, "member")).unwrap();
        let joined = MemberCell::join(&context(), &private, &read(suite, "welcome"), &keys, &[]).unwrap().0;

        assert_eq!(*manager.context(), context());
        assert_eq!(manager.suite(), suite);
        assert_eq!(manager.kek().as_bytes().as_slice(), read(suite, "kek"));
        assert_eq!(joined.kek(), manager.kek());
        assert_eq!(joined.epoch_authenticator8(), manager.epoch_authenticator8());

        // The stored member has an update outstanding, which the stored commit covers.
        assert_eq!(member.device(), device().id);
        let update = read(suite, "update");
        assert_eq!(member.propose_update(&device().signer).unwrap(), update);
        member.process(&[update], &read(suite, "commit"), &keys, &[]).unwrap();
        assert_eq!(member.kek().as_bytes().as_slice(), read(suite, "kek-after-commit"));

        // And the stored manager still manages.
        let changes = Changes { remove: vec![device().id], ..Changes::default() };
        let committed = manager.commit(&coordinator, changes).unwrap().committed.unwrap();
        let mut member = joined;
        assert_eq!(member.process(&[], &committed.commit, &keys, &[]), Ok(Processed::Removed));
    }
}

#[test]
#[ignore = "writes the vectors that the other test reads"]
fn write_the_vectors_of_this_version() {
    for suite in Suite::ALL {
        let coordinator = LeafSigner::new(&COORDINATOR);
        let keys = [coordinator.public_key()];
        let mut manager = ManagedCell::create(context(), suite, &coordinator).unwrap();
        let (add, private) = device().package(suite);
        let (other, _) = Device::new().package(suite);
        let changes = Changes { add: vec![add, other], ..Changes::default() };
        let committed = manager.commit(&coordinator, changes).unwrap().committed.unwrap();
        let welcome = &committed.welcomes[&device().id];
        let mut member = MemberCell::join(&context(), &private, welcome, &keys, &[]).unwrap().0;
        let update = member.propose_update(&device().signer).unwrap();
        write(suite, "manager", &manager.snapshot());
        write(suite, "kek", manager.kek().as_bytes());
        write(suite, "member", &member.snapshot());
        write(suite, "key-package", &private.to_bytes());
        write(suite, "welcome", welcome);
        let changes = Changes { updates: vec![(device().id, update.clone())], ..Changes::default() };
        let committed = manager.commit(&coordinator, changes).unwrap().committed.unwrap();
        write(suite, "update", &update);
        write(suite, "commit", &committed.commit);
        write(suite, "kek-after-commit", manager.kek().as_bytes());
    }
}
