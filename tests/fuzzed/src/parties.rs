//! Always the same parties, with keys that anybody may know: what a corpus holds stays true.

use fleetkey_identity::IdentityKey;
use fleetkey_wire::wrap::WrapContext;
use fleetkey_wire::{
    CellEpoch, CellId, Commitment, DeviceId, FleetId, GroupId, GroupSecret, Kek, KeyEpoch, KeyId, Pairwise,
    Reason, SignedStatement, Statement, StatementAndWrap, Suite, wrap,
};

pub(crate) const FLEET: FleetId = FleetId::from_bytes([0xf1; 16]);
pub(crate) const DEVICE: DeviceId = DeviceId::from_bytes([0xd1; 16]);
pub(crate) const OTHER: DeviceId = DeviceId::from_bytes([0xd2; 16]);
pub(crate) const GROUP: GroupId = GroupId::from_bytes([0x61; 16]);
pub(crate) const CELL: CellId = CellId::from_bytes([0xc1; 16]);
pub(crate) const OTHER_CELL: CellId = CellId::from_bytes([0xc2; 16]);
pub(crate) const CELL_EPOCH: CellEpoch = CellEpoch(42);
pub(crate) const KEY_EPOCH: KeyEpoch = KeyEpoch::new(29_383_920, 7);
pub(crate) const SIGNER: KeyId = KeyId([0x51; 8]);
/// The suite whose AEAD is at hand here.
pub(crate) const SUITE: Suite = Suite::ChaCha20Poly1305;

pub(crate) fn coordinator() -> IdentityKey {
    IdentityKey::from_seed(&[1; 32])
}

pub(crate) fn device() -> IdentityKey {
    IdentityKey::from_seed(&[2; 32])
}

pub(crate) fn pairwise() -> Pairwise {
    Pairwise::agree(FLEET, DEVICE, device().signing_key(), &coordinator().public_key())
        .expect("both keys are good")
}

pub(crate) const fn secret() -> GroupSecret {
    GroupSecret::from_bytes([0x5e; 32])
}

pub(crate) const fn kek() -> Kek {
    Kek::from_bytes([0x8e; 32])
}

pub(crate) fn statement() -> Statement {
    Statement {
        group: GROUP,
        key_epoch: KEY_EPOCH,
        commitment: commitment(),
        reason: Reason::Revoke,
        send: KEY_EPOCH,
        oldest: KEY_EPOCH,
        overlap_seconds: 30,
        issued_unix_seconds: 1_800_000_000,
    }
}

fn commitment() -> Commitment {
    secret().commitment(GROUP, KEY_EPOCH)
}

pub(crate) fn signed() -> SignedStatement {
    statement().sign(FLEET, SIGNER, coordinator().signing_key())
}

pub(crate) const fn wrap_context() -> WrapContext {
    WrapContext { fleet: FLEET, cell: CELL, cell_epoch: CELL_EPOCH, suite: SUITE }
}

pub(crate) fn wrapped() -> Vec<u8> {
    wrap::wrap(&wrap_context(), &kek(), &signed(), &secret())
}

pub(crate) fn rekey() -> StatementAndWrap {
    StatementAndWrap { statement: signed().as_bytes().to_vec(), wrap: wrapped() }
}
