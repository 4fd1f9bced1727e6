//! The two AEADs of the suites (RFC 5116, RFC 8439), called in one way. Nonces are the callers' to choose.

use aes_gcm::Aes128Gcm;
use aes_gcm::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::ChaCha20Poly1305;

use crate::suite::Suite;

pub(crate) const NONCE_BYTES: usize = 12;

pub(crate) fn seal(suite: Suite, key: &[u8], nonce: &[u8; NONCE_BYTES], msg: &[u8], aad: &[u8]) -> Vec<u8> {
    let payload = Payload { msg, aad };
    match suite {
        Suite::Aes128Gcm => {
            Aes128Gcm::new_from_slice(key).ok().and_then(|aead| aead.encrypt(nonce.into(), payload).ok())
        }
        Suite::ChaCha20Poly1305 | Suite::XWingChaCha20Poly1305 => ChaCha20Poly1305::new_from_slice(key)
            .ok()
            .and_then(|aead| aead.encrypt(nonce.into(), payload).ok()),
    }
    .expect("keys have the suite's length and messages are bounded")
}

pub(crate) fn open(
    suite: Suite,
    key: &[u8],
    nonce: &[u8; NONCE_BYTES],
    msg: &[u8],
    aad: &[u8],
) -> Option<Vec<u8>> {
    let payload = Payload { msg, aad };
    match suite {
        Suite::Aes128Gcm => Aes128Gcm::new_from_slice(key).ok()?.decrypt(nonce.into(), payload).ok(),
        Suite::ChaCha20Poly1305 | Suite::XWingChaCha20Poly1305 => {
            ChaCha20Poly1305::new_from_slice(key).ok()?.decrypt(nonce.into(), payload).ok()
        }
    }
}
