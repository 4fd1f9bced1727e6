//! Sealed payloads: any bytes in place of one, and any plaintext under a member's key where a signed message belongs.

use ciborium::Value;
use ed25519_dalek::VerifyingKey;
use fleetkey_tests::forge::array;
use fleetkey_wire::payload::{self, BadSealed, Opened, Sealer};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

use crate::cose::{bytes, encrypt0, expand, text};
use crate::parties::{DEVICE, GROUP, KEY_EPOCH, SUITE, device, secret};
use crate::statements::overlay;
use crate::steps::choose;

const PLAINTEXT: &[u8] = b"open valve 3";
const CONTEXT: &[u8] = b"valves";

/// Nothing opens that its sender has not sealed, or that another has signed.
pub fn run(data: &[u8]) {
    let Some((choice, rest)) = choose(data, 4) else { return };
    match choice {
        0 => {
            if let (Ok(header), Ok(opened)) = (payload::peek(rest), open(rest)) {
                assert_eq!(opened.header, header);
            }
        }
        1 | 2 => {
            let genuine = sealed(choice == 1);
            let mut changed = genuine.clone();
            overlay(&mut changed, rest);
            let opened = open(&changed);
            match opened {
                Ok(opened) => assert_eq!(opened.plaintext, PLAINTEXT, "another message comes out"),
                Err(_) => assert!(changed != genuine, "the genuine one does not open"),
            }
        }
        // A member makes the message that says to be signed: the signature inside is what decides.
        _ => assert!(open(&said_to_be_signed(rest)).is_err(), "nobody signed it"),
    }
}

fn open(sealed: &[u8]) -> Result<Opened, BadSealed> {
    let key = VerifyingKey::from_bytes(&device().public_key()).expect("a good key");
    payload::open(SUITE, &secret(), sealed, CONTEXT, |sender| (sender == DEVICE).then_some(key))
}

fn sealed(is_signed: bool) -> Vec<u8> {
    let mut rng = ChaCha20Rng::from_seed([3; 32]);
    let mut sealer = Sealer::new(SUITE, GROUP, KEY_EPOCH, &secret(), DEVICE, &mut rng);
    let identity = device();
    let signer = is_signed.then(|| identity.signing_key());
    sealer.seal(PLAINTEXT, CONTEXT, signer).expect("a short message")
}

/// As `docs/PROTOCOL.md`, section 11, has it.
fn said_to_be_signed(plaintext: &[u8]) -> Vec<u8> {
    let salt = [7; 16];
    let mut kid = GROUP.as_bytes().to_vec();
    kid.extend(KEY_EPOCH.0.to_be_bytes());
    let header = Value::Map(vec![
        (1.into(), 24.into()),
        (3.into(), 18.into()),
        (4.into(), bytes(&kid)),
        (6.into(), bytes(&[0])),
        ((-70_001).into(), bytes(DEVICE.as_bytes())),
        ((-70_002).into(), bytes(&salt)),
    ]);
    let mut protected = Vec::new();
    ciborium::into_writer(&header, &mut protected).expect("writing to memory does not fail");
    let info = array(vec![text("fleetkey sealed"), bytes(DEVICE.as_bytes()), bytes(&salt), 32.into()]);
    let key = expand(secret().as_bytes(), &info);
    let external = array(vec![text("fleetkey sealed"), bytes(CONTEXT)]);
    encrypt0(&protected, &external, plaintext, &key)
}

/// Both kinds, changes of them, and what a signed message looks like inside.
pub fn seeds() -> Vec<Vec<u8>> {
    let inside =
        array(vec![bytes(&[0xa1, 0x01, 0x27]), Value::Map(Vec::new()), bytes(PLAINTEXT), bytes(&[0x55; 64])]);
    vec![
        [&[0], &sealed(false)[..]].concat(),
        [&[0], &sealed(true)[..]].concat(),
        vec![1, 0],
        vec![1, 20, 1],
        vec![2, 240, 0x80],
        [&[3], &inside[..]].concat(),
    ]
}
