//! What the vault promises about values at rest.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

use fleetkey_vault::{MasterKey, MasterKeyError, SEALED_OVERHEAD, Vault, VaultError};
use proptest::prelude::*;
use rand_core::OsRng;

fn master() -> MasterKey {
    MasterKey::generate(&mut OsRng)
}

fn corrupt(purpose: &str, location: &str) -> VaultError {
    VaultError::Corrupt { purpose: purpose.to_owned(), location: location.to_owned() }
}

#[test]
fn a_value_opens_where_it_was_sealed() {
    let vault = Vault::new(&master(), "coordinator");
    for value in [&b""[..], b"x", &[7; 5_000]] {
        let sealed = vault.seal(&mut OsRng, b"cells/1", value);
        assert_eq!(sealed.len(), value.len() + SEALED_OVERHEAD);
        assert_eq!(vault.open(b"cells/1", &sealed).unwrap().as_slice(), value);
    }
}

#[test]
fn the_same_value_is_never_sealed_alike() {
    let vault = Vault::new(&master(), "coordinator");
    assert_ne!(vault.seal(&mut OsRng, b"l", b"value"), vault.seal(&mut OsRng, b"l", b"value"));
}

#[test]
fn a_value_moved_elsewhere_does_not_open() {
    let vault = Vault::new(&master(), "coordinator");
    let sealed = vault.seal(&mut OsRng, b"cells/1", b"secret");
    for elsewhere in [&b"cells/2"[..], b"cells/", b"cells/10", b""] {
        let place = elsewhere.escape_ascii().to_string();
        assert_eq!(vault.open(elsewhere, &sealed), Err(corrupt("coordinator", &place)));
    }
}

#[test]
fn another_purpose_does_not_open_it() {
    let master = master();
    let sealed = Vault::new(&master, "coordinator").seal(&mut OsRng, b"l", b"secret");
    assert_eq!(Vault::new(&master, "agent").open(b"l", &sealed), Err(corrupt("agent", "l")));
}

#[test]
fn no_bit_of_a_sealed_value_can_be_changed() {
    let vault = Vault::new(&master(), "coordinator");
    let sealed = vault.seal(&mut OsRng, b"l", b"secret");
    for at in 0..sealed.len() {
        for bit in 0..8 {
            let mut changed = sealed.clone();
            changed[at] ^= 1 << bit;
            assert!(vault.open(b"l", &changed).is_err(), "byte {at}, bit {bit}");
        }
        assert!(vault.open(b"l", &sealed[..at]).is_err(), "cut at {at}");
    }
}

#[test]
fn a_later_version_is_refused_by_its_number() {
    let vault = Vault::new(&master(), "coordinator");
    let mut sealed = vault.seal(&mut OsRng, b"l", b"secret");
    sealed[0] = 2;
    assert_eq!(
        vault.open(b"l", &sealed),
        Err(VaultError::UnknownVersion { purpose: "coordinator".into(), version: 2 })
    );
}

#[test]
fn the_sentinel_tells_a_wrong_master_key_from_a_corrupt_value() {
    let (right, wrong) = (master(), master());
    let vault = Vault::new(&right, "coordinator");
    let sentinel = vault.sentinel(&mut OsRng);

    assert_eq!(vault.check_sentinel(&sentinel), Ok(()));
    assert_eq!(
        Vault::new(&wrong, "coordinator").check_sentinel(&sentinel),
        Err(VaultError::WrongMasterKey { purpose: "coordinator".into() })
    );
    assert_eq!(
        vault.check_sentinel(&sentinel[..10]),
        Err(VaultError::TooShort { purpose: "coordinator".into(), bytes: 10 })
    );
}

#[test]
fn a_value_cannot_pose_as_the_sentinel_nor_the_sentinel_as_a_value() {
    let vault = Vault::new(&master(), "coordinator");
    let value = vault.seal(&mut OsRng, b"sentinel", b"fleetkey");
    let sentinel = vault.sentinel(&mut OsRng);
    assert!(vault.check_sentinel(&value).is_err());
    assert!(vault.open(b"sentinel", &sentinel).is_err());
}

/// What is on disk must open for ever.
#[test]
fn a_value_sealed_by_the_first_version_still_opens() {
    let mut bytes = [0; 32];
    (0..32).for_each(|i: u8| bytes[usize::from(i)] = i);
    let vault = Vault::new(&MasterKey::from_bytes(&bytes), "vector");
    let sealed = hex::decode(VECTOR).unwrap();
    assert_eq!(vault.open(b"table/key", &sealed).unwrap().as_slice(), b"attack at dawn");
}

const VECTOR: &str = "016465666768696a6b6c6d6e6f707172737475767778797a7b5e61ffdc3338c24097127954c601bc1c58232f9cf5af30b28b6287818f96";

#[test]
fn nothing_secret_is_printed() {
    let master = MasterKey::from_bytes(&[0xa7; 32]);
    let printed = format!("{master:?} {:?}", Vault::new(&master, "coordinator"));
    assert_eq!(printed, "MasterKey((redacted)) Vault { purpose: \"coordinator\", .. }");
}

#[cfg(unix)]
mod file {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    fn file(directory: &tempfile::TempDir, content: &[u8], mode: u32) -> PathBuf {
        let path = directory.path().join("master.key");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn opens(key: &MasterKey, other: &MasterKey) -> bool {
        let sealed = Vault::new(key, "t").seal(&mut OsRng, b"l", b"v");
        Vault::new(other, "t").open(b"l", &sealed).is_ok()
    }

    #[test]
    fn a_key_file_is_read_as_hex_and_raw() {
        let directory = tempfile::tempdir().unwrap();
        let key = master();
        let digits = key.to_hex();
        let raw = hex::decode(digits.trim()).unwrap();
        let spaced = format!("  {}\r\n\n", digits.trim().to_uppercase());
        for content in [digits.as_bytes(), digits.trim().as_bytes(), spaced.as_bytes(), &raw] {
            let read = MasterKey::from_file(file(&directory, content, 0o600)).unwrap();
            assert!(opens(&key, &read));
        }
        let read_only = MasterKey::from_file(file(&directory, &raw, 0o400)).unwrap();
        assert!(opens(&key, &read_only));
    }

    #[test]
    fn a_key_file_open_to_others_is_refused_by_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        for mode in [0o640, 0o604, 0o620, 0o602, 0o610, 0o777] {
            let path = file(&directory, master().to_hex().as_bytes(), mode);
            let refused = MasterKey::from_file(&path).unwrap_err();
            assert!(matches!(&refused, MasterKeyError::OpenToOthers { mode: got, .. } if *got == mode));
            assert!(refused.to_string().contains(&format!("mode {mode:o}")), "{refused}");
            assert!(refused.to_string().contains(&path.display().to_string()), "{refused}");
        }
    }

    #[test]
    fn a_file_that_holds_no_key_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let refused = |content: &[u8]| MasterKey::from_file(file(&directory, content, 0o600)).unwrap_err();
        for content in [
            &b""[..],
            b"hunter2",
            &[b'a'; 63],
            &[b'g'; 64],
            &[b'a'; 66],
            &[1; 31],
            b"correct horse battery staple....",
            &[b'a'; 10_000],
        ] {
            assert!(matches!(refused(content), MasterKeyError::NotAKey { .. }), "{}", content.len());
        }
        for placeholder in [&[0; 32][..], &[b'0'; 64], &[0xff; 32]] {
            assert!(matches!(refused(placeholder), MasterKeyError::Placeholder { .. }));
        }
    }

    #[test]
    fn a_missing_file_and_a_directory_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("nowhere");
        let refused = MasterKey::from_file(&missing).unwrap_err();
        assert!(refused.to_string().contains("nowhere"), "{refused}");
        assert!(matches!(refused, MasterKeyError::Unreadable { .. }));
        assert!(matches!(MasterKey::from_file(directory.path()), Err(MasterKeyError::NotAFile { .. })));
    }
}

#[test]
fn a_variable_that_is_not_set_or_holds_no_key_is_named() {
    let refused = MasterKey::from_env("FLEETKEY_TEST_NO_SUCH_VARIABLE").unwrap_err();
    assert_eq!(refused.to_string(), "environment variable FLEETKEY_TEST_NO_SUCH_VARIABLE is not set");
    let refused = MasterKey::from_env("CARGO_PKG_NAME").unwrap_err();
    assert!(matches!(refused, MasterKeyError::NotAKey { .. }));
    assert!(refused.to_string().starts_with("environment variable CARGO_PKG_NAME"), "{refused}");
    assert!(!refused.to_string().contains("fleetkey-vault"), "a value is not repeated: {refused}");
}

proptest! {
    #[test]
    fn whatever_is_sealed_opens_to_the_same(
        location in proptest::collection::vec(any::<u8>(), 0..40),
        value in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let vault = Vault::new(&MasterKey::from_bytes(&[3; 32]), "t");
        let sealed = vault.seal(&mut OsRng, &location, &value);
        prop_assert_eq!(vault.open(&location, &sealed).unwrap().to_vec(), value);
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let vault = Vault::new(&MasterKey::from_bytes(&[3; 32]), "t");
        prop_assert!(vault.open(b"l", &bytes).is_err());
        prop_assert!(vault.check_sentinel(&bytes).is_err());
    }
}
