//! Sealing and opening of stored values: XChaCha20-Poly1305 under a key of the vault's own.
//!
//! ```text
//! version (1) || nonce (24, random) || ciphertext || tag (16)
//! ```

use std::fmt;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

use crate::master::MasterKey;

/// The layout that this build writes.
const VERSION: u8 = 1;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;

/// How much longer a sealed value is than what it holds.
pub const SEALED_OVERHEAD: usize = 1 + NONCE_BYTES + TAG_BYTES;

const SENTINEL_LOCATION: &[u8] = b"sentinel";
const SENTINEL: &[u8] = b"fleetkey";

/// Tells values apart from the sentinel, whatever location a caller names.
const KIND_VALUE: u8 = 0;
const KIND_SENTINEL: u8 = 1;

/// Why a value does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    /// Shorter than an empty sealed value.
    #[error("{purpose}: the sealed value is cut off: {bytes} bytes")]
    TooShort {
        /// The vault's purpose.
        purpose: String,
        /// Its length.
        bytes: usize,
    },
    /// Written by another build.
    #[error("{purpose}: sealed in version {version}, this build reads version {VERSION}")]
    UnknownVersion {
        /// The vault's purpose.
        purpose: String,
        /// The version it names.
        version: u8,
    },
    /// Changed, moved here from elsewhere, or sealed under another master key: once the sentinel has shown that the
    /// master key is right, it is one of the first two.
    #[error("{purpose}: the sealed value at {location} was changed, or belongs elsewhere")]
    Corrupt {
        /// The vault's purpose.
        purpose: String,
        /// Where it was to be opened.
        location: String,
    },
    /// The sentinel was sealed under another master key.
    #[error("{purpose}: wrong master key: this store was made with another one")]
    WrongMasterKey {
        /// The vault's purpose.
        purpose: String,
    },
}

/// Seals values for one purpose.
pub struct Vault {
    purpose: String,
    cipher: XChaCha20Poly1305,
}

impl Vault {
    /// The vault for `purpose`: vaults for different purposes cannot open each other's values.
    pub fn new(master: &MasterKey, purpose: &str) -> Self {
        let key = master.derive(purpose);
        Self { purpose: purpose.to_owned(), cipher: XChaCha20Poly1305::new((&*key).into()) }
    }

    /// Seals `plaintext` for `location` (such as table and key), where alone it can be opened again.
    pub fn seal(&self, rng: &mut dyn CryptoRngCore, location: &[u8], plaintext: &[u8]) -> Vec<u8> {
        self.seal_as(rng, KIND_VALUE, location, plaintext)
    }

    /// Opens what was sealed for `location`.
    ///
    /// # Errors
    /// [`VaultError`], naming the vault and the location.
    pub fn open(&self, location: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        self.open_as(KIND_VALUE, location, sealed)
    }

    /// A value to store beside the others when the store is made, for [`Self::check_sentinel`].
    pub fn sentinel(&self, rng: &mut dyn CryptoRngCore) -> Vec<u8> {
        self.seal_as(rng, KIND_SENTINEL, SENTINEL_LOCATION, SENTINEL)
    }

    /// Whether this vault has the master key that `sentinel` was made with: asked once, when the store is opened, it
    /// tells a wrong master key from a corrupt value.
    ///
    /// # Errors
    /// [`VaultError::WrongMasterKey`]; [`VaultError::TooShort`] and [`VaultError::UnknownVersion`] when it is no
    /// sentinel of this build.
    pub fn check_sentinel(&self, sentinel: &[u8]) -> Result<(), VaultError> {
        match self.open_as(KIND_SENTINEL, SENTINEL_LOCATION, sentinel) {
            Ok(_) => Ok(()),
            Err(VaultError::Corrupt { purpose, .. }) => Err(VaultError::WrongMasterKey { purpose }),
            Err(
                error @ (VaultError::TooShort { .. }
                | VaultError::UnknownVersion { .. }
                | VaultError::WrongMasterKey { .. }),
            ) => Err(error),
        }
    }

    fn seal_as(&self, rng: &mut dyn CryptoRngCore, kind: u8, location: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_BYTES];
        rng.fill_bytes(&mut nonce);
        let aad = associated_data(kind, location);
        let ciphertext = self
            .cipher
            .encrypt(XNonce::from_slice(&nonce), Payload { msg: plaintext, aad: &aad })
            .expect("a value in memory is shorter than 256 GiB");
        let mut sealed = Vec::with_capacity(1 + NONCE_BYTES + ciphertext.len());
        sealed.push(VERSION);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&ciphertext);
        sealed
    }

    fn open_as(&self, kind: u8, location: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let purpose = || self.purpose.clone();
        let Some((&version, rest)) = sealed.split_first() else {
            return Err(VaultError::TooShort { purpose: purpose(), bytes: 0 });
        };
        if version != VERSION {
            return Err(VaultError::UnknownVersion { purpose: purpose(), version });
        }
        if sealed.len() < SEALED_OVERHEAD {
            return Err(VaultError::TooShort { purpose: purpose(), bytes: sealed.len() });
        }
        let (nonce, ciphertext) = rest.split_at(NONCE_BYTES);
        let aad = associated_data(kind, location);
        self.cipher
            .decrypt(XNonce::from_slice(nonce), Payload { msg: ciphertext, aad: &aad })
            .map(Zeroizing::new)
            .map_err(|_| VaultError::Corrupt {
                purpose: purpose(),
                location: location.escape_ascii().to_string(),
            })
    }
}

/// One byte says what was sealed, the rest where: no two pairs give the same bytes.
fn associated_data(kind: u8, location: &[u8]) -> Vec<u8> {
    let mut aad = Vec::with_capacity(2 + location.len());
    aad.extend_from_slice(&[VERSION, kind]);
    aad.extend_from_slice(location);
    aad
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").field("purpose", &self.purpose).finish_non_exhaustive()
    }
}
