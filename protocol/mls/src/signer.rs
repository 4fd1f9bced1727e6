//! The key that signs a leaf's messages: the identity key of a device or of the coordinator.

use std::fmt;

use ed25519_dalek::{Signer as _, SigningKey};
use openmls_traits::signatures::{Signer, SignerError};
use openmls_traits::types::SignatureScheme;

/// An Ed25519 identity key, for signing in MLS. Zeroized when dropped.
pub struct LeafSigner(SigningKey);

impl LeafSigner {
    /// The key with this seed (RFC 8032 §5.1.5).
    pub fn new(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// Its public half: the signature key of the leaf.
    pub fn public_key(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }
}

impl fmt::Debug for LeafSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeafSigner(redacted)")
    }
}

/// What openmls signs with; borrowed, so that the key is never copied.
pub(crate) struct MlsSigner<'a>(pub(crate) &'a LeafSigner);

impl Signer for MlsSigner<'_> {
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, SignerError> {
        Ok(self.0.0.sign(payload).to_bytes().to_vec())
    }

    fn signature_scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}
