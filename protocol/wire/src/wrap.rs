//! The wrap: a group secret encrypted for one cell.
//!
//! COSE_Encrypt0 (RFC 9052 §5.2), untagged, under a key that depends on the cell epoch and on the statement's
//! digest and so encrypts one thing only; its nonce is all zero and not sent. A wrap is a pure function of cell
//! epoch, statement and secret: made again, it is the same bytes.

use coset::iana::Algorithm;
use coset::{CborSerializable, CoseEncrypt0, CoseEncrypt0Builder, Header, HeaderBuilder};
use zeroize::Zeroizing;

use crate::aead;
use crate::cbor;
use crate::cose;
use crate::error::{BadFrame, BadWrap};
use crate::ids::{CellEpoch, CellId, FleetId};
use crate::keys::{GroupSecret, Kek};
use crate::limits::MAX_WRAP_BYTES;
use crate::statement::{SignedStatement, StatementDigest};
use crate::suite::Suite;

/// The cell epoch that a wrap is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrapContext {
    /// The fleet.
    pub fleet: FleetId,
    /// The cell.
    pub cell: CellId,
    /// The cell epoch whose KEK wraps: after the commit that travels in the same frame, if one does.
    pub cell_epoch: CellEpoch,
    /// The group's suite.
    pub suite: Suite,
}

/// Wraps `secret` for one cell, under the statement that commits to it.
pub fn wrap(context: &WrapContext, kek: &Kek, statement: &SignedStatement, secret: &GroupSecret) -> Vec<u8> {
    let key = kek.wrap_key(context.suite, statement.digest());
    CoseEncrypt0Builder::new()
        .protected(protected(context.suite))
        .create_ciphertext(secret.as_bytes(), &external_aad(context, statement), |plaintext, aad| {
            aead::seal(context.suite, &key, &[0; aead::NONCE_BYTES], plaintext, aad)
        })
        .build()
        .to_vec()
        .expect("a COSE_Encrypt0 of our own encodes")
}

/// Opens a wrap, and checks the secret against the statement's commitment: the AEAD alone would not stop a
/// member of the cell from feeding its neighbours another secret.
pub fn open(
    context: &WrapContext,
    kek: &Kek,
    statement: &SignedStatement,
    wrap: &[u8],
) -> Result<GroupSecret, BadWrap> {
    const WHAT: &str = "wrap";
    if wrap.len() > MAX_WRAP_BYTES {
        return Err(BadFrame::TooLarge { what: WHAT, bytes: wrap.len(), max: MAX_WRAP_BYTES }.into());
    }
    let (header, mut items) = cose::open(WHAT, wrap)?;
    if header.header != protected(context.suite) {
        return Err(BadFrame::CoseHeader { what: WHAT }.into());
    }
    let ciphertext = items.bytes("wrap ciphertext", MAX_WRAP_BYTES)?.to_vec();
    items.end()?;
    let message =
        CoseEncrypt0 { protected: header, unprotected: Header::default(), ciphertext: Some(ciphertext) };
    let does_not_open = BadWrap::DoesNotOpen { cell: context.cell, cell_epoch: context.cell_epoch };
    let key = kek.wrap_key(context.suite, statement.digest());
    let plaintext = message
        .decrypt_ciphertext(
            &external_aad(context, statement),
            || BadFrame::Shape { field: "wrap ciphertext" },
            |ciphertext, aad| {
                aead::open(context.suite, &key, &[0; aead::NONCE_BYTES], ciphertext, aad)
                    .ok_or(BadFrame::Shape { field: "wrap ciphertext" })
            },
        )
        .map(Zeroizing::new)
        .map_err(|_| does_not_open.clone())?;
    let secret: [u8; 32] = plaintext.as_slice().try_into().map_err(|_| does_not_open)?;
    let secret = GroupSecret::from_bytes(secret);
    let said = statement.statement();
    if secret.commitment(said.group, said.key_epoch) != said.commitment {
        return Err(BadWrap::Commitment { cell: context.cell, key_epoch: said.key_epoch });
    }
    Ok(secret)
}

fn protected(suite: Suite) -> Header {
    HeaderBuilder::new().algorithm(algorithm(suite)).build()
}

/// The COSE algorithm (RFC 9053 §4) of a suite's AEAD.
pub(crate) const fn algorithm(suite: Suite) -> Algorithm {
    match suite {
        Suite::Aes128Gcm => Algorithm::A128GCM,
        Suite::ChaCha20Poly1305 | Suite::XWingChaCha20Poly1305 => Algorithm::ChaCha20Poly1305,
    }
}

fn external_aad(context: &WrapContext, statement: &SignedStatement) -> Vec<u8> {
    let StatementDigest(digest) = statement.digest();
    cbor::array(&[
        cbor::text("fleetkey wrap"),
        cbor::bytes(context.fleet.as_bytes()),
        cbor::bytes(statement.statement().group.as_bytes()),
        cbor::bytes(context.cell.as_bytes()),
        cbor::uint(context.cell_epoch.0),
        cbor::bytes(digest),
    ])
}
