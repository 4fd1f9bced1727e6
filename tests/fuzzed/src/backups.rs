//! Backup files: any bytes in place of one, and any contents sealed under the right master key.

use fleetkey_coordinator::{BACKUP_FILE_VERSION, inspect_backup, open_backup, seal_backup};
use fleetkey_coordinator_core::backup::Backup;
use fleetkey_coordinator_core::{Coordinator, MemoryStore, Store as _};
use fleetkey_vault::{MasterKey, Vault};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use sha2::{Digest as _, Sha256};

use crate::parties::FLEET;
use crate::statements::overlay;
use crate::steps::choose;

const TAKEN: u64 = 1_800_000_000;

fn master() -> MasterKey {
    let mut bytes = [6; 32];
    bytes[0] = 0;
    MasterKey::from_bytes(&bytes)
}

/// A file that opens was sealed under the master key; its contents are written back as they can be read again.
pub fn run(data: &[u8]) {
    let Some((choice, rest)) = choose(data, 3) else { return };
    match choice {
        0 => {
            let _ = inspect_backup(rest);
            assert!(open_backup(&master(), FLEET, rest).is_err(), "nobody sealed this");
        }
        // A genuine header, checksum and all, around a seal that was changed.
        1 => {
            let genuine = file(b"");
            let mut changed = genuine.clone();
            let end = changed.len() - 32;
            overlay(&mut changed[..end], rest);
            let checksum = Sha256::digest(&changed[..end]);
            changed[end..].copy_from_slice(&checksum);
            assert!(changed == genuine || open_backup(&master(), FLEET, &changed).is_err());
        }
        _ => {
            if let Ok(backup) = open_backup(&master(), FLEET, &file(rest)) {
                assert_eq!(Backup::decode(&backup.encode()).as_ref(), Ok(&backup));
            }
        }
    }
}

/// A file with any contents, sealed as the service seals them.
fn file(contents: &[u8]) -> Vec<u8> {
    let mut file = b"fleetkey backup\n".to_vec();
    file.push(BACKUP_FILE_VERSION);
    file.extend_from_slice(FLEET.as_bytes());
    file.extend_from_slice(&TAKEN.to_be_bytes());
    let vault = Vault::new(&master(), "coordinator backup");
    let sealed = vault.seal(&mut ChaCha20Rng::from_seed([7; 32]), &file, contents);
    file.extend_from_slice(&sealed);
    let checksum = Sha256::digest(&file);
    file.extend_from_slice(&checksum);
    file
}

/// The contents of an empty fleet and of a small one, a file of another fleet, and changes.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut store = MemoryStore::default();
    store.commit(&Coordinator::initial_rows(TAKEN)).expect("memory does not fail");
    let empty = Backup::of_store(&mut store, TAKEN).expect("it is whole");
    let mut world = fleetkey_tests::World::new(1);
    let devices = world.enroll(2);
    world.group("meters", fleetkey_coordinator_core::Policy::default(), &devices);
    let small = Backup::of_store(&mut world.store, TAKEN).expect("it is whole");
    let sealed =
        seal_backup(&master(), fleetkey_wire::FleetId::from_bytes([9; 16]), &empty).expect("it is short");
    vec![
        [&[0], &sealed[..]].concat(),
        vec![1, 20, 1],
        vec![1, 255, 1],
        [&[2], &empty.encode()[..]].concat(),
        [&[2], &small.encode()[..]].concat(),
    ]
}
