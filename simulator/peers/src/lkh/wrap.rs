//! One key under another: AES-128-GCM, 32 bytes.
//!
//! In one rekey a key wraps at most one other, and the rekey's number makes the nonce: it never repeats under a key.

use aes_gcm::aead::{AeadInPlace, KeyInit as _};
use aes_gcm::{Aes128Gcm, Nonce, Tag};

/// A 128-bit key.
pub(super) type Key = [u8; 16];

/// Bytes of a wrapped key.
pub(super) const WRAPPED_BYTES: usize = 32;

pub(super) fn wrap(under: &Key, key: &Key, sequence: u64, node: &[u8]) -> [u8; WRAPPED_BYTES] {
    let mut wrapped = [0; WRAPPED_BYTES];
    let (body, tag) = wrapped.split_at_mut(16);
    body.copy_from_slice(key);
    let sealed = Aes128Gcm::new(under.into()).encrypt_in_place_detached(&nonce(sequence), node, body);
    tag.copy_from_slice(&sealed.expect("16 bytes are not too many"));
    wrapped
}

pub(super) fn unwrap(under: &Key, wrapped: &[u8; WRAPPED_BYTES], sequence: u64, node: &[u8]) -> Option<Key> {
    let (body, tag) = wrapped.split_at(16);
    let mut key: Key = body.try_into().ok()?;
    Aes128Gcm::new(under.into())
        .decrypt_in_place_detached(&nonce(sequence), node, &mut key, Tag::from_slice(tag))
        .ok()?;
    Some(key)
}

fn nonce(sequence: u64) -> Nonce<aes_gcm::aead::consts::U12> {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&sequence.to_be_bytes());
    nonce.into()
}
