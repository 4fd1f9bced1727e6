//! A party's Ed25519 key pair.

use std::fmt;

use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, KeypairBytes, spki::der::pem::LineEnding};
use ed25519_dalek::{SECRET_KEY_LENGTH, SigningKey};
use pkcs8::der::pem::PemLabel as _;
use pkcs8::pkcs5::{pbes2::Parameters, scrypt};
use pkcs8::{EncryptedPrivateKeyInfo, SecretDocument};
use rand_core::CryptoRngCore;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::error::BadPem;

/// What a passphrase goes through (log2 N, r, p): OWASP's choice for 16 MiB, as OpenSSL refuses to use more than 32.
const SCRYPT: (u8, u32, u32) = (14, 8, 5);

/// An Ed25519 key pair; the secret half is zeroized when dropped and never printed.
#[derive(Clone)]
pub struct IdentityKey(SigningKey);

impl IdentityKey {
    /// A fresh key pair.
    pub fn generate(rng: &mut dyn CryptoRngCore) -> Self {
        let mut seed = Zeroizing::new([0; SECRET_KEY_LENGTH]);
        rng.fill_bytes(seed.as_mut());
        Self::from_seed(&seed)
    }

    /// The key pair of this 32-byte seed (RFC 8032 §5.1.5).
    pub fn from_seed(seed: &[u8; SECRET_KEY_LENGTH]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The seed, for stores of the caller's own.
    pub fn seed(&self) -> Zeroizing<[u8; SECRET_KEY_LENGTH]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    pub fn public_key(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }

    /// What signs.
    pub fn signing_key(&self) -> &SigningKey {
        &self.0
    }

    /// Reads `-----BEGIN PRIVATE KEY-----`: PKCS #8 (RFC 8410 §7), with or without the public key beside it.
    /// Text around the section is skipped, so that a file may hold the certificate too.
    ///
    /// # Errors
    /// [`BadPem`] when there is not exactly one private key, or it is not Ed25519.
    pub fn from_pkcs8_pem(text: &str) -> Result<Self, BadPem> {
        let der = crate::pem::private_key(text)?;
        SigningKey::from_pkcs8_der(&der).map(Self).map_err(|_| BadPem::NotEd25519Key)
    }

    /// The key as PKCS #8 version 1, the form that every TLS library reads.
    pub fn to_pkcs8_pem(&self) -> Zeroizing<String> {
        self.keypair_bytes().to_pkcs8_pem(LineEnding::LF).expect("32 bytes always encode")
    }

    /// The key as PKCS #8, encrypted under a passphrase (PBES2 with scrypt and AES-256-CBC, RFC 8018), as OpenSSL
    /// reads it too: `-----BEGIN ENCRYPTED PRIVATE KEY-----`.
    pub fn to_encrypted_pkcs8_pem(&self, passphrase: &str, rng: &mut dyn CryptoRngCore) -> String {
        let (mut salt, mut iv) = ([0; 16], [0; 16]);
        rng.fill_bytes(&mut salt);
        rng.fill_bytes(&mut iv);
        let (log_n, r, p) = SCRYPT;
        let derivation = scrypt::Params::new(log_n, r, p, 32).expect("parameters that scrypt allows");
        let encryption = Parameters::scrypt_aes256cbc(derivation, &salt, &iv).expect("a salt of 16 bytes");
        let der = self.keypair_bytes().to_pkcs8_der().expect("32 bytes always encode");
        let encrypted = encryption.encrypt(passphrase, der.as_bytes()).expect("32 bytes always encrypt");
        let info =
            EncryptedPrivateKeyInfo { encryption_algorithm: encryption.into(), encrypted_data: &encrypted };
        let document = SecretDocument::try_from(info).expect("a bounded key always encodes");
        let text = document.to_pem(EncryptedPrivateKeyInfo::PEM_LABEL, LineEnding::LF);
        // What is encrypted needs no wiping.
        text.expect("a bounded key always encodes").to_string()
    }

    /// Reads what [`Self::to_encrypted_pkcs8_pem`] wrote, or OpenSSL. Text around the section is skipped.
    ///
    /// # Errors
    /// [`BadPem`]; [`BadPem::WrongPassphrase`] when the passphrase does not open it.
    pub fn from_encrypted_pkcs8_pem(text: &str, passphrase: &str) -> Result<Self, BadPem> {
        let section = crate::pem::encrypted_private_key(text)?;
        let encrypted =
            EncryptedPrivateKeyInfo::try_from(section.as_slice()).map_err(|_| BadPem::NotEd25519Key)?;
        let der = encrypted.decrypt(passphrase).map_err(|_| BadPem::WrongPassphrase)?;
        SigningKey::from_pkcs8_der(der.as_bytes()).map(Self).map_err(|_| BadPem::NotEd25519Key)
    }

    /// The key as rustls takes it.
    pub(crate) fn to_private_key_der(&self) -> PrivateKeyDer<'static> {
        let der = self.keypair_bytes().to_pkcs8_der().expect("32 bytes always encode");
        PrivatePkcs8KeyDer::from(der.as_bytes().to_vec()).into()
    }

    fn keypair_bytes(&self) -> KeypairBytes {
        KeypairBytes { secret_key: self.0.to_bytes(), public_key: None }
    }
}

impl fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IdentityKey").field(&"(redacted)").finish()
    }
}
