//! Welcomes, one per device: openmls makes one for a whole batch and has no way to split it.
//!
//! An MLSMessage (RFC 9420 §6) with a Welcome (§12.4.3.1), byte by byte:
//!
//! ```text
//! uint16 version = 1; uint16 wire_format = 3;
//! uint16 cipher_suite;
//! EncryptedGroupSecrets secrets<V>;    each: opaque key_package_ref<V>; opaque kem_output<V>; opaque ciphertext<V>;
//! opaque encrypted_group_info<V>;
//! ```
//!
//! The group info is encrypted under a key that follows from every device's secrets, and is the HPKE context
//! of each, so an entry with the group info is a whole Welcome.

use std::collections::BTreeMap;

use tls_codec::{Deserialize as _, Serialize as _, VLByteSlice, VLBytes};

use crate::error::Refused;
use crate::key_package::KeyPackageRef;
use crate::message::MAX_WELCOME_BYTES;

const WHAT: &str = "a Welcome";
const MALFORMED: Refused = Refused::Malformed { what: WHAT };
/// Version 1, wire format 3.
const HEADER: [u8; 4] = [0, 1, 0, 3];

/// The key package that a Welcome for one device was made for.
pub fn welcome_key_package_ref(welcome: &[u8]) -> Result<KeyPackageRef, Refused> {
    if welcome.len() > MAX_WELCOME_BYTES {
        return Err(Refused::TooLarge { what: WHAT, bytes: welcome.len(), max: MAX_WELCOME_BYTES });
    }
    let entries = Welcome::read(welcome)?.entries;
    match entries.first_key_value() {
        Some((reference, _)) if entries.len() == 1 => Ok(*reference),
        Some(_) | None => Err(Refused::NotSplit { entries: entries.len() }),
    }
}

/// The Welcome of a batch as one for each key package.
pub(crate) fn split(welcome: &[u8]) -> Result<BTreeMap<KeyPackageRef, Vec<u8>>, Refused> {
    let Welcome { suite, entries, group_info } = Welcome::read(welcome)?;
    entries
        .into_iter()
        .map(|(reference, entry)| {
            let mut one = Vec::with_capacity(entry.len() + group_info.len() + 16);
            one.extend(HEADER);
            one.extend(suite);
            write(&mut one, &entry)?;
            write(&mut one, &group_info)?;
            Ok((reference, one))
        })
        .collect()
}

struct Welcome {
    suite: [u8; 2],
    /// Each entry as its bytes, by the reference it begins with.
    entries: BTreeMap<KeyPackageRef, Vec<u8>>,
    group_info: Vec<u8>,
}

impl Welcome {
    fn read(bytes: &[u8]) -> Result<Self, Refused> {
        let rest = bytes.strip_prefix(&HEADER).ok_or(MALFORMED)?;
        let (suite, rest) = rest.split_first_chunk().ok_or(MALFORMED)?;
        let (secrets, rest) = read(rest)?;
        let (group_info, rest) = read(rest)?;
        if !rest.is_empty() {
            return Err(MALFORMED);
        }
        let mut entries = BTreeMap::new();
        let mut secrets = secrets.as_slice();
        while !secrets.is_empty() {
            let (reference, rest) = read(secrets)?;
            let (_kem_output, rest) = read(rest)?;
            let (_ciphertext, rest) = read(rest)?;
            let entry = secrets[..secrets.len() - rest.len()].to_vec();
            let reference = <[u8; 32]>::try_from(reference).map_err(|_| MALFORMED)?;
            if entries.insert(KeyPackageRef(reference), entry).is_some() {
                return Err(MALFORMED);
            }
            secrets = rest;
        }
        Ok(Self { suite: *suite, entries, group_info })
    }
}

/// A variable-size vector (RFC 9420 §2.1.2), and what follows it.
fn read(mut bytes: &[u8]) -> Result<(Vec<u8>, &[u8]), Refused> {
    let vector = VLBytes::tls_deserialize(&mut bytes).map_err(|_| MALFORMED)?;
    Ok((vector.into(), bytes))
}

fn write(bytes: &mut Vec<u8>, vector: &[u8]) -> Result<(), Refused> {
    VLByteSlice(vector).tls_serialize(bytes).map(drop).map_err(|_| MALFORMED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(entries: &[u8]) -> Vec<u8> {
        let mut secrets = Vec::new();
        for &which in entries {
            write(&mut secrets, &[which; 32]).unwrap();
            write(&mut secrets, &[0xaa; 32]).unwrap();
            write(&mut secrets, &[which; 100]).unwrap();
        }
        let mut welcome = [HEADER.as_slice(), &[0, 1]].concat();
        write(&mut welcome, &secrets).unwrap();
        write(&mut welcome, &[7; 300]).unwrap();
        welcome
    }

    #[test]
    fn each_device_gets_its_own_entry_and_the_group_info() {
        let split = split(&batch(&[1, 2, 3])).unwrap();
        assert_eq!(split.len(), 3);
        for (which, one) in split {
            assert_eq!(welcome_key_package_ref(&one), Ok(which));
            assert_eq!(one, batch(&[which.as_bytes()[0]]));
        }
    }

    #[test]
    fn a_welcome_for_several_or_none_is_refused() {
        assert_eq!(welcome_key_package_ref(&batch(&[1, 2])), Err(Refused::NotSplit { entries: 2 }));
        assert_eq!(welcome_key_package_ref(&batch(&[])), Err(Refused::NotSplit { entries: 0 }));
    }

    #[test]
    fn every_cut_and_every_tail_is_refused() {
        let whole = batch(&[1]);
        for length in 0..whole.len() {
            assert_eq!(welcome_key_package_ref(&whole[..length]), Err(MALFORMED), "cut to {length}");
        }
        let tailed = [whole.as_slice(), &[0]].concat();
        assert_eq!(welcome_key_package_ref(&tailed), Err(MALFORMED));
    }
}
