//! What a CA signs with: a key in memory, or one that never leaves its token.

use std::fmt;

use ed25519_dalek::Signer as _;
use rcgen::{PKCS_ED25519, PublicKeyData, SignatureAlgorithm, SigningKey};

use crate::key::IdentityKey;

/// An Ed25519 key that a CA signs with, wherever it lives.
pub trait CaKey: fmt::Debug + Send + Sync {
    /// The public half.
    fn public_key(&self) -> [u8; 32];

    /// Signs (RFC 8032).
    ///
    /// # Errors
    /// When what holds the key does not answer, or refuses.
    fn sign(&self, message: &[u8]) -> Result<[u8; 64], SigningFailed>;
}

/// A key that could not be used. Nothing was signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the CA's key cannot sign: {why}")]
pub struct SigningFailed {
    /// What its holder said.
    pub why: String,
}

impl CaKey for IdentityKey {
    fn public_key(&self) -> [u8; 32] {
        Self::public_key(self)
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], SigningFailed> {
        Ok(self.signing_key().sign(message).to_bytes())
    }
}

/// Signs for rcgen, which builds what is signed.
pub(crate) struct RcgenKey<K> {
    key: K,
    public_key: [u8; 32],
}

impl<K: AsRef<dyn CaKey>> RcgenKey<K> {
    pub(crate) fn new(key: K) -> Self {
        let public_key = key.as_ref().public_key();
        Self { key, public_key }
    }
}

impl<K> PublicKeyData for RcgenKey<K> {
    fn der_bytes(&self) -> &[u8] {
        &self.public_key
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

impl<K: AsRef<dyn CaKey>> SigningKey for RcgenKey<K> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature = self.key.as_ref().sign(message);
        signature.map(|bytes| bytes.to_vec()).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}
