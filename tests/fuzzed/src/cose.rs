//! COSE (RFC 9052) put together by hand, so that any bytes can be in it and it is genuine all the same.

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use ciborium::Value;
use ed25519_dalek::Signer as _;
use fleetkey_identity::IdentityKey;
use fleetkey_tests::forge::array;
use hkdf::Hkdf;
use sha2::Sha256;

pub(crate) fn bytes(bytes: &[u8]) -> Value {
    Value::Bytes(bytes.to_vec())
}

pub(crate) fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

/// The protected header of a genuine message, which is its first item.
pub(crate) fn protected_of(message: &[u8]) -> Vec<u8> {
    let value: Value = ciborium::from_reader(message).expect("a message of our own");
    let items = value.into_array().expect("it is an array");
    items.into_iter().next().and_then(|first| first.into_bytes().ok()).expect("it begins with its header")
}

/// A COSE_Sign1 over any payload.
pub(crate) fn sign1(protected: &[u8], external: &[u8], payload: &[u8], key: &IdentityKey) -> Vec<u8> {
    let to_sign = array(vec![text("Signature1"), bytes(protected), bytes(external), bytes(payload)]);
    let signature = key.signing_key().sign(&to_sign).to_bytes();
    array(vec![bytes(protected), Value::Map(Vec::new()), bytes(payload), bytes(&signature)])
}

/// A COSE_Encrypt0 with ChaCha20-Poly1305 over any plaintext, with an all-zero nonce.
pub(crate) fn encrypt0(protected: &[u8], external: &[u8], plaintext: &[u8], key: &[u8; 32]) -> Vec<u8> {
    let aad = array(vec![text("Encrypt0"), bytes(protected), bytes(external)]);
    let ciphertext = chacha20poly1305::ChaCha20Poly1305::new(key.into())
        .encrypt(&[0; 12].into(), Payload { msg: plaintext, aad: &aad })
        .expect("a short plaintext can be sealed");
    array(vec![bytes(protected), Value::Map(Vec::new()), bytes(&ciphertext)])
}

/// 32 bytes of HKDF-Expand.
pub(crate) fn expand(secret: &[u8; 32], info: &[u8]) -> [u8; 32] {
    let mut key = [0; 32];
    let hkdf = Hkdf::<Sha256>::from_prk(secret).expect("32 bytes are a key");
    hkdf.expand(info, &mut key).expect("32 bytes can be had");
    key
}
