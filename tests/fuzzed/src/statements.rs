//! Statements: any bytes in place of one, and any payload under the coordinator's signature.

use ed25519_dalek::VerifyingKey;
use fleetkey_tests::forge::array;
use fleetkey_wire::{BadStatement, FleetId, KeyId, Reason, SignedStatement, Statement};

use crate::cose::{bytes, protected_of, sign1, text};
use crate::parties::{FLEET, SIGNER, coordinator, signed, statement};
use crate::steps::choose;

/// A statement that verifies is one that the coordinator signed, and says the same when it is signed again.
pub fn run(data: &[u8]) {
    let Some((choice, rest)) = choose(data, 3) else { return };
    match choice {
        0 => {
            if let Ok(read) = verify(FLEET, rest) {
                assert_eq!(read.as_bytes(), rest, "it is what was verified");
            }
        }
        // The genuine one, with these bytes over it.
        1 => {
            let genuine = signed();
            let mut changed = genuine.as_bytes().to_vec();
            overlay(&mut changed, rest);
            let read = verify(FLEET, &changed);
            assert!(read.is_err() || read.is_ok_and(|read| read.statement() == genuine.statement()));
        }
        _ => {
            let protected = protected_of(signed().as_bytes());
            let external = array(vec![text("fleetkey statement"), bytes(FLEET.as_bytes())]);
            let forged = sign1(&protected, &external, rest, &coordinator());
            let Ok(read) = verify(FLEET, &forged) else { return };
            let said = *read.statement();
            let again = said.sign(FLEET, SIGNER, coordinator().signing_key());
            assert_eq!(again.statement(), read.statement());
            assert!(verify(FleetId::from_bytes([0; 16]), &forged).is_err(), "it counts in another fleet");
        }
    }
}

fn verify(fleet: FleetId, bytes: &[u8]) -> Result<SignedStatement, BadStatement> {
    let key = VerifyingKey::from_bytes(&coordinator().public_key()).expect("a good key");
    SignedStatement::verify(bytes, fleet, |signer: KeyId| (signer == SIGNER).then_some(key))
}

/// Puts `over` onto `genuine`, from the place that its first byte says.
pub(crate) fn overlay(genuine: &mut [u8], over: &[u8]) {
    let Some((at, over)) = over.split_first() else { return };
    let at = usize::from(*at) * genuine.len() / 256;
    genuine[at..].iter_mut().zip(over).for_each(|(byte, over)| *byte ^= over);
}

/// Statements of each reason, their payloads, and a change.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut all = vec![vec![1, 3, 1], vec![1, 200, 0, 0, 0xff]];
    for reason in [Reason::Revoke, Reason::Distribute, Reason::Join] {
        let said = Statement { reason, ..statement() };
        let signed = said.sign(FLEET, SIGNER, coordinator().signing_key());
        all.push([&[0], signed.as_bytes()].concat());
        let value: ciborium::Value = ciborium::from_reader(signed.as_bytes()).expect("our own");
        let payload = value.into_array().ok().and_then(|items| items.into_iter().nth(2)?.into_bytes().ok());
        all.push([&[2], &payload.expect("the payload is third")[..]].concat());
    }
    all
}
