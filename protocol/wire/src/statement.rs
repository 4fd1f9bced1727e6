//! The statement: the coordinator's signed word on a group's keys, the same bytes for every cell.
//!
//! COSE_Sign1 (RFC 9052 §4.2), untagged, EdDSA, with the fleet as external AAD, so that a statement of one
//! fleet means nothing in another. Leaves the certificate behind the key id to the identity crate.

use std::fmt;

use coset::iana::{Algorithm, EnumI64};
use coset::{
    CborSerializable, CoseSign1, CoseSign1Builder, Header, HeaderBuilder, RegisteredLabelWithPrivate,
};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};

use crate::cbor::{self, Items};
use crate::cose;
use crate::error::{BadFrame, BadStatement};
use crate::ids::{FleetId, GroupId, KeyEpoch};
use crate::keys::Commitment;
use crate::limits::MAX_STATEMENT_BYTES;

/// The version of the payload that this build writes and reads.
pub const STATEMENT_VERSION: u64 = 1;

/// Names a coordinator's certificate: the first 8 bytes of the SHA-256 of its DER encoding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 8]);

impl KeyId {
    /// The key id of a certificate.
    pub fn of_certificate(der: &[u8]) -> Self {
        let digest = Sha256::digest(der);
        let mut id = [0; 8];
        id.copy_from_slice(&digest[..8]);
        Self(id)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// Why the coordinator moved a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The group's first key.
    Create,
    /// Devices joined.
    Join,
    /// Devices were evicted.
    Evict,
    /// Devices were revoked.
    Revoke,
    /// An operator asked for it.
    Manual,
    /// A scheduled rotation: the next key is handed out, and not used yet.
    Distribute,
    /// A scheduled rotation: the next key is used from now on.
    Activate,
    /// A scheduled rotation: the former key is accepted no more.
    Retire,
}

impl Reason {
    const ALL: [Self; 8] = [
        Self::Create,
        Self::Join,
        Self::Evict,
        Self::Revoke,
        Self::Manual,
        Self::Distribute,
        Self::Activate,
        Self::Retire,
    ];

    /// Its number in the payload.
    pub const fn code(self) -> u8 {
        match self {
            Self::Create => 0,
            Self::Join => 1,
            Self::Evict => 2,
            Self::Revoke => 3,
            Self::Manual => 4,
            Self::Distribute => 5,
            Self::Activate => 6,
            Self::Retire => 7,
        }
    }

    /// Its name in reports and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Join => "join",
            Self::Evict => "evict",
            Self::Revoke => "revoke",
            Self::Manual => "manual",
            Self::Distribute => "distribute",
            Self::Activate => "activate",
            Self::Retire => "retire",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the coordinator says of one group's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement {
    /// The group.
    pub group: GroupId,
    /// The key epoch whose secret travels with this statement.
    pub key_epoch: KeyEpoch,
    /// What that secret must be.
    pub commitment: Commitment,
    /// Why it was made.
    pub reason: Reason,
    /// The key epoch to seal with.
    pub send: KeyEpoch,
    /// The oldest key epoch to accept.
    pub oldest: KeyEpoch,
    /// How long, in seconds, the key epoch that was `send` just before is still accepted.
    pub overlap_seconds: u32,
    /// When it was signed, in seconds since 1970.
    pub issued_unix_seconds: u64,
}

/// The SHA-256 of a statement's payload: its name everywhere else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StatementDigest(pub [u8; 32]);

impl StatementDigest {
    /// Its first 8 bytes, as a hello and a confirmation name it.
    pub fn short(&self) -> ShortDigest {
        let mut short = [0; 8];
        short.copy_from_slice(&self.0[..8]);
        ShortDigest(short)
    }
}

impl fmt::Debug for StatementDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StatementDigest({:?})", self.short())
    }
}

/// The first 8 bytes of a [`StatementDigest`]. It names a statement between two parties that are
/// authenticated to each other; it proves nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ShortDigest(pub [u8; 8]);

impl fmt::Debug for ShortDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A statement with the signature that makes it one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedStatement {
    statement: Statement,
    digest: StatementDigest,
    signer: KeyId,
    bytes: Vec<u8>,
}

impl Statement {
    /// The COSE payload.
    fn payload(&self) -> Vec<u8> {
        cbor::array(&[
            cbor::uint(STATEMENT_VERSION),
            cbor::bytes(self.group.as_bytes()),
            cbor::uint(self.key_epoch.0),
            cbor::bytes(&self.commitment.0),
            cbor::uint(self.reason.code()),
            cbor::uint(self.send.0),
            cbor::uint(self.oldest.0),
            cbor::uint(self.overlap_seconds),
            cbor::uint(self.issued_unix_seconds),
        ])
    }

    fn from_payload(payload: &[u8]) -> Result<Self, BadStatement> {
        let mut items = Items::decode("statement payload", payload)?;
        let got = items.uint("statement version")?;
        if got != STATEMENT_VERSION {
            return Err(BadFrame::UnknownVersion { what: "statement", got, known: STATEMENT_VERSION }.into());
        }
        let group = GroupId::from_bytes(items.fixed("statement group")?);
        let key_epoch = KeyEpoch(items.uint("statement key epoch")?);
        let commitment = Commitment(items.fixed("statement commitment")?);
        let reason = items.uint("statement reason")?;
        let reason = Reason::ALL
            .into_iter()
            .find(|known| u64::from(known.code()) == reason)
            .ok_or(BadFrame::UnknownKind { what: "statement reason", kind: reason })?;
        let send = KeyEpoch(items.uint("statement send")?);
        let oldest = KeyEpoch(items.uint("statement oldest")?);
        let overlap_seconds = items.uint32("statement overlap")?;
        let issued_unix_seconds = items.uint("statement issue time")?;
        items.end()?;
        if oldest > send || send > key_epoch {
            return Err(BadStatement::Contradiction { group, key_epoch, send, oldest });
        }
        Ok(Self { group, key_epoch, commitment, reason, send, oldest, overlap_seconds, issued_unix_seconds })
    }

    /// Signs it with the coordinator's identity key: the one signature of a rekey, whatever the number of cells.
    pub fn sign(self, fleet: FleetId, signer: KeyId, key: &SigningKey) -> SignedStatement {
        let payload = self.payload();
        let digest = digest_of(&payload);
        let message = CoseSign1Builder::new()
            .protected(protected(signer))
            .payload(payload)
            .create_signature(&external_aad(fleet), |to_sign| key.sign(to_sign).to_bytes().to_vec())
            .build();
        let bytes = message.to_vec().expect("a COSE_Sign1 of our own encodes");
        SignedStatement { statement: self, digest, signer, bytes }
    }
}

impl SignedStatement {
    /// Reads and verifies a statement of `fleet`, where `key_of` gives the Ed25519 public key behind a
    /// coordinator's key id that the caller trusts.
    pub fn verify(
        bytes: &[u8],
        fleet: FleetId,
        key_of: impl FnOnce(KeyId) -> Option<VerifyingKey>,
    ) -> Result<Self, BadStatement> {
        let (message, signer, payload) = read(bytes)?;
        let key = key_of(signer).ok_or(BadStatement::UnknownSigner { got: signer })?;
        message
            .verify_signature(&external_aad(fleet), |signature, signed| {
                let signature = Signature::from_slice(signature).map_err(|_| ())?;
                key.verify_strict(signed, &signature).map_err(|_| ())
            })
            .map_err(|()| BadStatement::Signature { fleet })?;
        let statement = Statement::from_payload(payload)?;
        Ok(Self { statement, digest: digest_of(payload), signer, bytes: bytes.to_vec() })
    }

    /// Reads a statement that was verified before it was stored.
    pub fn from_trusted(bytes: &[u8]) -> Result<Self, BadStatement> {
        let (_, signer, payload) = read(bytes)?;
        let statement = Statement::from_payload(payload)?;
        Ok(Self { statement, digest: digest_of(payload), signer, bytes: bytes.to_vec() })
    }

    /// What it says.
    pub const fn statement(&self) -> &Statement {
        &self.statement
    }

    /// Its name.
    pub const fn digest(&self) -> &StatementDigest {
        &self.digest
    }

    /// The key id of the coordinator's certificate.
    pub const fn signer(&self) -> KeyId {
        self.signer
    }

    /// The COSE_Sign1 as it travels.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn read(bytes: &[u8]) -> Result<(CoseSign1, KeyId, &[u8]), BadFrame> {
    const WHAT: &str = "statement";
    if bytes.len() > MAX_STATEMENT_BYTES {
        return Err(BadFrame::TooLarge { what: WHAT, bytes: bytes.len(), max: MAX_STATEMENT_BYTES });
    }
    let (header, mut items) = cose::open(WHAT, bytes)?;
    let signer: [u8; 8] =
        header.header.key_id.as_slice().try_into().map_err(|_| BadFrame::CoseHeader { what: WHAT })?;
    let signer = KeyId(signer);
    if header.header != protected(signer) {
        return Err(BadFrame::CoseHeader { what: WHAT });
    }
    let payload = items.bytes("statement payload", MAX_STATEMENT_BYTES)?;
    let signature = items.fixed::<{ Signature::BYTE_SIZE }>("statement signature")?.to_vec();
    items.end()?;
    let message = CoseSign1 {
        protected: header,
        unprotected: Header::default(),
        payload: Some(payload.to_vec()),
        signature,
    };
    Ok((message, signer, payload))
}

fn protected(signer: KeyId) -> Header {
    HeaderBuilder::new().algorithm(Algorithm::EdDSA).key_id(signer.0.to_vec()).build()
}

fn external_aad(fleet: FleetId) -> Vec<u8> {
    cbor::array(&[cbor::text("fleetkey statement"), cbor::bytes(fleet.as_bytes())])
}

fn digest_of(payload: &[u8]) -> StatementDigest {
    StatementDigest(Sha256::digest(payload).into())
}

/// Whether a header names `algorithm`.
pub(crate) fn is_algorithm(header: &Header, algorithm: Algorithm) -> bool {
    matches!(&header.alg, Some(RegisteredLabelWithPrivate::Assigned(got)) if got.to_i64() == algorithm.to_i64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet() -> FleetId {
        FleetId::from_bytes([1; 16])
    }

    fn statement() -> Statement {
        Statement {
            group: GroupId::from_bytes([2; 16]),
            key_epoch: KeyEpoch::new(29_000_000, 7),
            commitment: Commitment([3; 32]),
            reason: Reason::Revoke,
            send: KeyEpoch::new(29_000_000, 7),
            oldest: KeyEpoch::new(29_000_000, 7),
            overlap_seconds: 30,
            issued_unix_seconds: 1_800_000_000,
        }
    }

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[4; 32])
    }

    const KID: KeyId = KeyId([5; 8]);

    fn trusted(id: KeyId) -> Option<VerifyingKey> {
        (id == KID).then(|| key().verifying_key())
    }

    #[test]
    fn a_statement_verifies_as_it_was_signed() {
        let signed = statement().sign(fleet(), KID, &key());
        let read = SignedStatement::verify(signed.as_bytes(), fleet(), trusted).unwrap();
        assert_eq!(read, signed);
        assert_eq!(read.statement(), &statement());
    }

    #[test]
    fn a_statement_of_another_fleet_is_refused() {
        let signed = statement().sign(FleetId::from_bytes([9; 16]), KID, &key());
        assert_eq!(
            SignedStatement::verify(signed.as_bytes(), fleet(), trusted),
            Err(BadStatement::Signature { fleet: fleet() })
        );
    }

    #[test]
    fn a_statement_under_a_key_id_that_is_not_trusted_is_refused() {
        let signed = statement().sign(fleet(), KeyId([6; 8]), &key());
        assert_eq!(
            SignedStatement::verify(signed.as_bytes(), fleet(), trusted),
            Err(BadStatement::UnknownSigner { got: KeyId([6; 8]) })
        );
    }

    #[test]
    fn a_statement_by_another_key_under_a_trusted_key_id_is_refused() {
        let signed = statement().sign(fleet(), KID, &SigningKey::from_bytes(&[8; 32]));
        assert_eq!(
            SignedStatement::verify(signed.as_bytes(), fleet(), trusted),
            Err(BadStatement::Signature { fleet: fleet() })
        );
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let signed = statement().sign(fleet(), KID, &key());
        for at in 0..signed.as_bytes().len() * 8 {
            let mut bytes = signed.as_bytes().to_vec();
            bytes[at / 8] ^= 1 << (at % 8);
            assert!(SignedStatement::verify(&bytes, fleet(), trusted).is_err(), "bit {at}");
        }
    }

    #[test]
    fn a_statement_that_contradicts_itself_is_refused_although_signed() {
        let mut contradiction = statement();
        contradiction.oldest = KeyEpoch(contradiction.send.0 + 1);
        let signed = contradiction.sign(fleet(), KID, &key());
        assert!(matches!(
            SignedStatement::verify(signed.as_bytes(), fleet(), trusted),
            Err(BadStatement::Contradiction { .. })
        ));
    }
}
