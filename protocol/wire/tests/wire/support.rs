//! The fixed inputs of the tests, and randomness that is as scripted as they are.

use ciborium::Value;
use ed25519_dalek::SigningKey;
use fleetkey_wire::keys::LinkKey;
use fleetkey_wire::wrap::{WrapContext, wrap};
use fleetkey_wire::{
    CellEpoch, CellId, Commitment, DeviceId, FleetId, GroupId, GroupSecret, Kek, KeyEpoch, KeyId, Pairwise,
    Reason, ShortDigest, SignedStatement, Statement, StatementAndWrap, Suite,
};
use hmac::{Hmac, Mac};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use sha2::Sha256;

pub(crate) const FLEET: FleetId = FleetId::from_bytes([0x11; 16]);
pub(crate) const GROUP: GroupId = GroupId::from_bytes([0x22; 16]);
pub(crate) const CELL: CellId = CellId::from_bytes([0x33; 16]);
pub(crate) const DEVICE: DeviceId = DeviceId::from_bytes([0x44; 16]);
pub(crate) const KEY_EPOCH: KeyEpoch = KeyEpoch::new(29_000_000, 7);
pub(crate) const CELL_EPOCH: CellEpoch = CellEpoch(41);
pub(crate) const SIGNER: KeyId = KeyId([0x55; 8]);
pub(crate) const DIGEST: ShortDigest = ShortDigest([0x66; 8]);

/// Always the same bytes, in the same order.
pub(crate) fn rng() -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(7)
}

pub(crate) fn coordinator_key() -> SigningKey {
    SigningKey::from_bytes(&[0x0c; 32])
}

pub(crate) fn device_key() -> SigningKey {
    SigningKey::from_bytes(&[0x0d; 32])
}

pub(crate) fn secret() -> GroupSecret {
    GroupSecret::from_bytes([0x5e; 32])
}

pub(crate) fn kek() -> Kek {
    Kek::from_bytes([0x7e; 32])
}

pub(crate) fn pairwise() -> Pairwise {
    Pairwise::agree(FLEET, DEVICE, &device_key(), coordinator_key().verifying_key().as_bytes()).unwrap()
}

pub(crate) fn link_key() -> LinkKey {
    pairwise().link_key()
}

pub(crate) fn statement() -> Statement {
    Statement {
        group: GROUP,
        key_epoch: KEY_EPOCH,
        commitment: secret().commitment(GROUP, KEY_EPOCH),
        reason: Reason::Revoke,
        send: KEY_EPOCH,
        oldest: KEY_EPOCH,
        overlap_seconds: 30,
        issued_unix_seconds: 1_800_000_000,
    }
}

pub(crate) fn commitment() -> Commitment {
    statement().commitment
}

pub(crate) fn signed_statement() -> SignedStatement {
    statement().sign(FLEET, SIGNER, &coordinator_key())
}

pub(crate) fn wrap_context(suite: Suite) -> WrapContext {
    WrapContext { fleet: FLEET, cell: CELL, cell_epoch: CELL_EPOCH, suite }
}

pub(crate) fn a_wrap(suite: Suite) -> Vec<u8> {
    wrap(&wrap_context(suite), &kek(), &signed_statement(), &secret())
}

pub(crate) fn rekey() -> StatementAndWrap {
    StatementAndWrap { statement: signed_statement().as_bytes().to_vec(), wrap: a_wrap(Suite::Aes128Gcm) }
}

/// A link frame put together by hand, as `docs/PROTOCOL.md` says.
pub(crate) fn link_frame(
    key: &LinkKey,
    direction: &str,
    device_nonce: &[u8],
    coordinator_nonce: &[u8],
    counter: u64,
    body: &[u8],
) -> Vec<u8> {
    let bytes = |bytes: &[u8]| Value::Bytes(bytes.to_vec());
    let fields = vec![bytes(device_nonce), bytes(coordinator_nonce), counter.into(), bytes(body)];
    let mut message = vec![Value::Text(direction.to_owned())];
    message.extend(fields.clone());
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(key.as_bytes()).unwrap();
    mac.update(&cbor(message));
    let mut items = fields;
    items.push(bytes(&mac.finalize().into_bytes()[..16]));
    let mut frame = vec![1];
    frame.extend(cbor(items));
    frame
}

/// The encoding of an array.
pub(crate) fn cbor(items: Vec<Value>) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(&Value::Array(items), &mut bytes).unwrap();
    bytes
}
