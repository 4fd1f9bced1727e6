//! Sealed payloads: an application's messages under a group key.
//!
//! COSE_Encrypt0 (RFC 9052 §5.2), untagged. Everything a reader needs is in the protected header: `kid` is group
//! and key epoch, the Partial IV is the sender's message counter, and two private labels carry the sender and
//! its salt. Each sender's key is derived from the group secret, its id and 16 random bytes drawn at each start,
//! so a counter that begins at zero again, on a restart, a restored image or a clone, meets another key.
//!
//! Any member can seal in the name of any other. Where that matters the sender signs: the plaintext is then a
//! COSE_Sign1 over the message, bound to this very header. Leaves replay of whole messages to the application:
//! [`Opened`] says sender, salt and counter.

use std::collections::BTreeMap;

use ciborium::Value;
use coset::iana::{Algorithm, CoapContentFormat};
use coset::{
    CborSerializable, CoseEncrypt0, CoseEncrypt0Builder, CoseSign1, CoseSign1Builder, Header, HeaderBuilder,
    Label, RegisteredLabel,
};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use rand_core::{CryptoRng, RngCore};

use crate::aead;
use crate::cbor;
use crate::cose;
use crate::error::{BadFrame, Named};
use crate::ids::{DeviceId, GroupId, KeyEpoch};
use crate::keys::{AeadKey, GroupSecret, expand};
use crate::statement::is_algorithm;
use crate::suite::Suite;
use crate::wrap::algorithm;

/// The largest sealed message, in bytes.
pub const MAX_SEALED_BYTES: usize = 256 * 1024;
/// Length of a sender's salt, in bytes.
pub const SALT_BYTES: usize = 16;

/// Private-use header label (RFC 9052 §1.5) of the sender's id.
const LABEL_SENDER: i64 = -70_001;
/// Private-use header label of the sender's salt.
const LABEL_SALT: i64 = -70_002;

/// A sealed message that was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSealed {
    /// The bytes are none.
    #[error("sealed message: {0}")]
    Frame(#[from] BadFrame),
    /// It does not open: altered, or sealed under another secret or context.
    #[error("sealed message of {sender} does not open under key epoch {key_epoch} of group {group}")]
    DoesNotOpen {
        /// The group it names.
        group: GroupId,
        /// The key epoch it names.
        key_epoch: KeyEpoch,
        /// The sender it names.
        sender: DeviceId,
    },
    /// It is signed, and the signer's key is not known here.
    #[error("sealed message is signed by {sender}, whose key is not known here")]
    UnknownSender {
        /// The sender it names.
        sender: DeviceId,
    },
    /// It is signed, but not by the sender it names.
    #[error("sealed message has a wrong signature of {sender}")]
    Signature {
        /// The sender it names.
        sender: DeviceId,
    },
}

impl Named for BadSealed {
    fn name(&self) -> &'static str {
        match self {
            Self::Frame(bad) => bad.name(),
            Self::DoesNotOpen { .. } => "sealed_does_not_open",
            Self::UnknownSender { .. } => "unknown_sender",
            Self::Signature { .. } => "wrong_signature",
        }
    }
}

/// The sealer has used up its counter, or the message is over [`MAX_SEALED_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CannotSeal {
    /// 2^32 messages were sealed: make a new sealer.
    #[error("this sealer has sealed 2^32 messages: a new one is due")]
    CounterExhausted,
    /// Too large.
    #[error("message has {bytes} bytes, at most {max} can be sealed")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The largest allowed.
        max: usize,
    },
}

/// Which sender key a message is under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SealedHeader {
    /// The group.
    pub group: GroupId,
    /// The key epoch.
    pub key_epoch: KeyEpoch,
    /// Who says to have sealed it; proven only when signed.
    pub sender: DeviceId,
    /// The sender's salt since its last start.
    pub salt: [u8; SALT_BYTES],
    /// How many messages the sender had sealed under this salt before.
    pub counter: u32,
    /// Whether the sender signed it.
    pub signed: bool,
}

/// Seals one sender's messages under one key epoch.
#[derive(Debug)]
pub struct Sealer {
    suite: Suite,
    group: GroupId,
    key_epoch: KeyEpoch,
    sender: DeviceId,
    salt: [u8; SALT_BYTES],
    key: RedactedKey,
    next: Option<u32>,
}

struct RedactedKey(AeadKey);

impl std::fmt::Debug for RedactedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(redacted)")
    }
}

impl Sealer {
    /// A sealer with a salt of its own. Never store one: make a new one at each start.
    pub fn new(
        suite: Suite,
        group: GroupId,
        key_epoch: KeyEpoch,
        secret: &GroupSecret,
        sender: DeviceId,
        rng: &mut (impl RngCore + CryptoRng + ?Sized),
    ) -> Self {
        let mut salt = [0; SALT_BYTES];
        rng.fill_bytes(&mut salt);
        let key = RedactedKey(sender_key(suite, secret, sender, &salt));
        Self { suite, group, key_epoch, sender, salt, key, next: Some(0) }
    }

    /// The key epoch it seals under.
    pub const fn key_epoch(&self) -> KeyEpoch {
        self.key_epoch
    }

    /// Seals `plaintext`, bound to the application's `context`, which does not travel. With a `signer`, the
    /// sender's identity key, readers can tell who sealed it.
    pub fn seal(
        &mut self,
        plaintext: &[u8],
        context: &[u8],
        signer: Option<&SigningKey>,
    ) -> Result<Vec<u8>, CannotSeal> {
        const OVERHEAD_BYTES: usize = 256;
        let max = MAX_SEALED_BYTES - OVERHEAD_BYTES;
        if plaintext.len() > max {
            return Err(CannotSeal::TooLarge { bytes: plaintext.len(), max });
        }
        let counter = self.next.ok_or(CannotSeal::CounterExhausted)?;
        self.next = counter.checked_add(1);
        let header = SealedHeader {
            group: self.group,
            key_epoch: self.key_epoch,
            sender: self.sender,
            salt: self.salt,
            counter,
            signed: signer.is_some(),
        };
        let signed = signer.map(|signer| sign(&header, plaintext, context, signer));
        let message = CoseEncrypt0Builder::new()
            .protected(protected(self.suite, &header))
            .create_ciphertext(
                signed.as_deref().unwrap_or(plaintext),
                &external_aad(context),
                |plaintext, aad| aead::seal(self.suite, &self.key.0, &nonce(counter), plaintext, aad),
            )
            .build();
        Ok(message.to_vec().expect("a COSE_Encrypt0 of our own encodes"))
    }
}

/// A message that opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Who sealed it, under which key.
    pub header: SealedHeader,
    /// What was sealed.
    pub plaintext: Vec<u8>,
}

/// Which group and key epoch a sealed message asks for, unproven.
pub fn peek(sealed: &[u8]) -> Result<SealedHeader, BadSealed> {
    let (_, header, _) = read(sealed)?;
    Ok(header)
}

/// Opens a sealed message with the group secret of the key epoch that [`peek`] names. A signed message needs
/// its sender's Ed25519 public key from `key_of`.
pub fn open(
    suite: Suite,
    secret: &GroupSecret,
    sealed: &[u8],
    context: &[u8],
    key_of: impl FnOnce(DeviceId) -> Option<VerifyingKey>,
) -> Result<Opened, BadSealed> {
    let (message, header, sealed_with) = read(sealed)?;
    if sealed_with != algorithm(suite) {
        return Err(BadFrame::CoseHeader { what: "sealed message" }.into());
    }
    let does_not_open =
        BadSealed::DoesNotOpen { group: header.group, key_epoch: header.key_epoch, sender: header.sender };
    let key = sender_key(suite, secret, header.sender, &header.salt);
    let plaintext = message
        .decrypt_ciphertext(
            &external_aad(context),
            || does_not_open.clone(),
            |ciphertext, aad| {
                aead::open(suite, &key, &nonce(header.counter), ciphertext, aad).ok_or(does_not_open.clone())
            },
        )
        .map_err(|_| does_not_open.clone())?;
    let plaintext =
        if header.signed { check_signature(&header, &plaintext, context, key_of)? } else { plaintext };
    Ok(Opened { header, plaintext })
}

fn read(sealed: &[u8]) -> Result<(CoseEncrypt0, SealedHeader, Algorithm), BadFrame> {
    const WHAT: &str = "sealed message";
    let bad_header = BadFrame::CoseHeader { what: WHAT };
    if sealed.len() > MAX_SEALED_BYTES {
        return Err(BadFrame::TooLarge { what: WHAT, bytes: sealed.len(), max: MAX_SEALED_BYTES });
    }
    let (protected_header, mut items) = cose::open(WHAT, sealed)?;
    let got = &protected_header.header;
    let suite = Suite::ALL
        .into_iter()
        .find(|suite| is_algorithm(got, algorithm(*suite)))
        .ok_or(bad_header.clone())?;
    let header = header_of(got).ok_or(bad_header.clone())?;
    // Only the header that we would have written ourselves: no field more, none in another form.
    if protected(suite, &header) != *got {
        return Err(bad_header);
    }
    let ciphertext = items.bytes("sealed ciphertext", MAX_SEALED_BYTES)?.to_vec();
    items.end()?;
    let message = CoseEncrypt0 {
        protected: protected_header,
        unprotected: Header::default(),
        ciphertext: Some(ciphertext),
    };
    Ok((message, header, algorithm(suite)))
}

fn header_of(got: &Header) -> Option<SealedHeader> {
    let (group, key_epoch) = got.key_id.split_at_checked(16)?;
    let private: BTreeMap<_, _> = got
        .rest
        .iter()
        .filter_map(|(label, value)| Some((if let Label::Int(n) = label { *n } else { return None }, value)))
        .collect();
    let mut counter = [0; 4];
    let start = counter.len().checked_sub(got.partial_iv.len())?;
    counter[start..].copy_from_slice(&got.partial_iv);
    Some(SealedHeader {
        group: GroupId::from_bytes(group.try_into().ok()?),
        key_epoch: KeyEpoch(u64::from_be_bytes(key_epoch.try_into().ok()?)),
        sender: DeviceId::from_bytes(private.get(&LABEL_SENDER)?.as_bytes()?.as_slice().try_into().ok()?),
        salt: private.get(&LABEL_SALT)?.as_bytes()?.as_slice().try_into().ok()?,
        counter: u32::from_be_bytes(counter),
        signed: got.content_type == Some(signed_content_type()),
    })
}

fn protected(suite: Suite, header: &SealedHeader) -> Header {
    let mut kid = header.group.as_bytes().to_vec();
    kid.extend_from_slice(&header.key_epoch.0.to_be_bytes());
    let counter = header.counter.to_be_bytes();
    let zeroes = counter.iter().take(3).take_while(|byte| **byte == 0).count();
    let mut built = HeaderBuilder::new()
        .algorithm(algorithm(suite))
        .key_id(kid)
        .partial_iv(counter[zeroes..].to_vec())
        .value(LABEL_SENDER, Value::Bytes(header.sender.as_bytes().to_vec()))
        .value(LABEL_SALT, Value::Bytes(header.salt.to_vec()))
        .build();
    built.content_type = header.signed.then(signed_content_type);
    built
}

fn signed_content_type() -> RegisteredLabel<CoapContentFormat> {
    RegisteredLabel::Assigned(CoapContentFormat::CoseSign1)
}

fn external_aad(context: &[u8]) -> Vec<u8> {
    cbor::array(&[cbor::text("fleetkey sealed"), cbor::bytes(context)])
}

fn sender_key(suite: Suite, secret: &GroupSecret, sender: DeviceId, salt: &[u8; SALT_BYTES]) -> AeadKey {
    let length = suite.aead_key_bytes();
    // Not an `app_key`: no label that an application may ask for leads here.
    let info = cbor::array(&[
        cbor::text("fleetkey sealed"),
        cbor::bytes(sender.as_bytes()),
        cbor::bytes(salt),
        cbor::uint(length as u64),
    ]);
    expand(secret.as_bytes(), &info, length)
}

fn nonce(counter: u32) -> [u8; aead::NONCE_BYTES] {
    let mut nonce = [0; aead::NONCE_BYTES];
    nonce[aead::NONCE_BYTES - 4..].copy_from_slice(&counter.to_be_bytes());
    nonce
}

/// What a sender's signature is bound to beside the message: the header it travels under.
fn signature_aad(header: &SealedHeader, context: &[u8]) -> Vec<u8> {
    cbor::array(&[
        cbor::text("fleetkey signed"),
        cbor::bytes(header.group.as_bytes()),
        cbor::uint(header.key_epoch.0),
        cbor::bytes(header.sender.as_bytes()),
        cbor::bytes(&header.salt),
        cbor::uint(header.counter),
        cbor::bytes(context),
    ])
}

fn sign(header: &SealedHeader, plaintext: &[u8], context: &[u8], signer: &SigningKey) -> Vec<u8> {
    CoseSign1Builder::new()
        .protected(signature_header())
        .payload(plaintext.to_vec())
        .create_signature(&signature_aad(header, context), |signed| signer.sign(signed).to_bytes().to_vec())
        .build()
        .to_vec()
        .expect("a COSE_Sign1 of our own encodes")
}

fn check_signature(
    header: &SealedHeader,
    plaintext: &[u8],
    context: &[u8],
    key_of: impl FnOnce(DeviceId) -> Option<VerifyingKey>,
) -> Result<Vec<u8>, BadSealed> {
    let wrong = BadSealed::Signature { sender: header.sender };
    let message = read_signed(plaintext)?;
    let key = key_of(header.sender).ok_or(BadSealed::UnknownSender { sender: header.sender })?;
    message
        .verify_signature(&signature_aad(header, context), |signature, signed| {
            let signature = Signature::from_slice(signature).map_err(|_| ())?;
            key.verify_strict(signed, &signature).map_err(|_| ())
        })
        .map_err(|()| wrong.clone())?;
    message.payload.ok_or(wrong)
}

fn read_signed(plaintext: &[u8]) -> Result<CoseSign1, BadFrame> {
    const WHAT: &str = "signed message";
    let (header, mut items) = cose::open(WHAT, plaintext)?;
    if header.header != signature_header() {
        return Err(BadFrame::CoseHeader { what: WHAT });
    }
    let payload = items.bytes("signed payload", MAX_SEALED_BYTES)?.to_vec();
    let signature = items.fixed::<{ Signature::BYTE_SIZE }>("message signature")?.to_vec();
    items.end()?;
    Ok(CoseSign1 { protected: header, unprotected: Header::default(), payload: Some(payload), signature })
}

fn signature_header() -> Header {
    HeaderBuilder::new().algorithm(Algorithm::EdDSA).build()
}

#[cfg(test)]
mod tests {
    use rand_core::OsRng;

    use super::*;

    #[test]
    fn a_sealer_stops_when_its_counter_is_used_up() {
        let (group, key_epoch) = (GroupId::from_bytes([2; 16]), KeyEpoch(7));
        let secret = GroupSecret::from_bytes([5; 32]);
        let sender = DeviceId::from_bytes([4; 16]);
        let mut sealer = Sealer::new(Suite::Aes128Gcm, group, key_epoch, &secret, sender, &mut OsRng);
        sealer.next = Some(u32::MAX);

        let last = sealer.seal(b"last", b"", None).unwrap();
        assert_eq!(sealer.seal(b"one more", b"", None), Err(CannotSeal::CounterExhausted));

        let opened = open(Suite::Aes128Gcm, &secret, &last, b"", |_| None).unwrap();
        assert_eq!((opened.header.counter, opened.plaintext.as_slice()), (u32::MAX, b"last".as_slice()));
    }
}
