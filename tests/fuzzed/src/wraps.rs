//! Wraps: any bytes in place of one, and any plaintext under the key of a cell.

use fleetkey_tests::forge::array;
use fleetkey_wire::wrap;

use crate::cose::{bytes, encrypt0, expand, protected_of, text};
use crate::parties::{CELL, CELL_EPOCH, FLEET, GROUP, kek, secret, signed, wrap_context, wrapped};
use crate::statements::overlay;
use crate::steps::choose;

/// A wrap opens to the secret that the statement commits to, or not at all.
pub fn run(data: &[u8]) {
    let Some((choice, rest)) = choose(data, 3) else { return };
    let (bytes, must_open) = match choice {
        0 => (rest.to_vec(), rest == wrapped()),
        1 => {
            let mut changed = wrapped();
            overlay(&mut changed, rest);
            let is_same = changed == wrapped();
            (changed, is_same)
        }
        _ => (seal(rest), rest == secret().as_bytes()),
    };
    match wrap::open(&wrap_context(), &kek(), &signed(), &bytes) {
        Ok(opened) => assert!(opened == secret() && (must_open || choice != 2), "another secret comes out"),
        Err(_) => assert!(!must_open, "the true wrap does not open"),
    }
}

fn seal(plaintext: &[u8]) -> Vec<u8> {
    let statement = signed();
    let digest = statement.digest().0;
    let key = expand(kek().as_bytes(), &array(vec![text("fleetkey wrap"), bytes(&digest)]));
    let external = array(vec![
        text("fleetkey wrap"),
        bytes(FLEET.as_bytes()),
        bytes(GROUP.as_bytes()),
        bytes(CELL.as_bytes()),
        CELL_EPOCH.0.into(),
        bytes(&digest),
    ]);
    encrypt0(&protected_of(&wrapped()), &external, plaintext, &key)
}

/// The genuine one, changes of it, and plaintexts.
pub fn seeds() -> Vec<Vec<u8>> {
    vec![
        [&[0], &wrapped()[..]].concat(),
        vec![1, 0, 1],
        vec![1, 128, 0, 7],
        [&[2], &secret().as_bytes()[..]].concat(),
        vec![2; 32],
        vec![2; 34],
    ]
}
