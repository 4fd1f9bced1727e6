//! The master key: 32 bytes from a file or the environment.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use hkdf::Hkdf;
use rand_core::CryptoRngCore;
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Length of the master key.
pub const MASTER_KEY_BYTES: usize = 32;

/// The longest file that can hold one: hexadecimal digits and a line end, with room for a careless editor.
const MAX_FILE_BYTES: u64 = 80;

/// Why there is no master key. The fault lies with the installation.
#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    /// The file cannot be read.
    #[error("read master key file {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's word on it.
        source: io::Error,
    },
    /// Others than its owner may read or write the file.
    #[error(
        "master key file {} is open to others than its owner (mode {mode:03o}): chmod 600 it, and consider the key known",
        path.display()
    )]
    OpenToOthers {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a regular file.
    #[error("master key file {} is not a regular file", path.display())]
    NotAFile {
        /// What was named.
        path: PathBuf,
    },
    /// Neither 32 random bytes nor 64 hexadecimal digits.
    #[error("{origin} holds neither 32 random bytes nor 64 hexadecimal digits")]
    NotAKey {
        /// The file or variable.
        origin: String,
    },
    /// All bytes alike: a placeholder, not a key.
    #[error("the master key in {origin} is a placeholder, all of its bytes are alike")]
    Placeholder {
        /// The file or variable.
        origin: String,
    },
    /// The environment variable is not set.
    #[error("environment variable {variable} is not set")]
    NotSet {
        /// Its name.
        variable: String,
    },
}

/// The key that every stored secret depends on. Zeroized when dropped, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct MasterKey([u8; MASTER_KEY_BYTES]);

impl MasterKey {
    /// A fresh key.
    pub fn generate(rng: &mut dyn CryptoRngCore) -> Self {
        let mut key = Self([0; MASTER_KEY_BYTES]);
        rng.fill_bytes(&mut key.0);
        key
    }

    /// The key with these bytes, for keys that come from elsewhere (a TPM, a KMS).
    pub fn from_bytes(bytes: &[u8; MASTER_KEY_BYTES]) -> Self {
        Self(*bytes)
    }

    /// The key as [`Self::from_file`] and [`Self::from_env`] read it: 64 hexadecimal digits and a line end.
    pub fn to_hex(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(2 * MASTER_KEY_BYTES + 1));
        for byte in self.0 {
            text.push(hex_digit(byte >> 4));
            text.push(hex_digit(byte & 0xf));
        }
        text.push('\n');
        text
    }

    /// Reads a file of 32 raw bytes or 64 hexadecimal digits (white space around them is allowed).
    ///
    /// On Unix the file must be its owner's alone; the check is made on the opened file, not on its name.
    ///
    /// # Errors
    /// [`MasterKeyError`], naming the file.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, MasterKeyError> {
        let path = path.as_ref();
        let unreadable = |source| MasterKeyError::Unreadable { path: path.to_owned(), source };
        // Looked at before it is opened too: opening a pipe would wait for its other end.
        let is_file = std::fs::metadata(path).map_err(unreadable)?.is_file();
        let not_a_file = || MasterKeyError::NotAFile { path: path.to_owned() };
        if !is_file {
            return Err(not_a_file());
        }
        let mut file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(not_a_file());
        }
        check_permissions(path, &metadata)?;
        // Room for all that is read: no copy is left behind by growing.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE_BYTES as usize + 2));
        (&mut file).take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        Self::parse(&bytes, || format!("master key file {}", path.display()))
    }

    /// Reads an environment variable, which holds the same as a file.
    ///
    /// # Errors
    /// [`MasterKeyError`], naming the variable.
    pub fn from_env(variable: &str) -> Result<Self, MasterKeyError> {
        let value = std::env::var_os(variable)
            .ok_or_else(|| MasterKeyError::NotSet { variable: variable.to_owned() })?;
        let value = Zeroizing::new(value.into_encoded_bytes());
        Self::parse(&value, || format!("environment variable {variable}"))
    }

    /// A key for one purpose. Keys for different purposes tell nothing about each other.
    pub(crate) fn derive(&self, purpose: &str) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(Some(b"fleetkey vault 1"), &self.0)
            .expand(purpose.as_bytes(), key.as_mut())
            .expect("32 bytes is less than 255 hashes");
        key
    }

    fn parse(bytes: &[u8], origin: impl Fn() -> String) -> Result<Self, MasterKeyError> {
        let mut key = Self([0; MASTER_KEY_BYTES]);
        // 32 printable characters are a passphrase or half a key in hexadecimal, not 32 random bytes.
        if bytes.len() == MASTER_KEY_BYTES && !bytes.iter().all(|b| b.is_ascii_graphic() || *b == b' ') {
            key.0.copy_from_slice(bytes);
        } else {
            hex::decode_to_slice(bytes.trim_ascii(), &mut key.0)
                .map_err(|_| MasterKeyError::NotAKey { origin: origin() })?;
        }
        if key.0.iter().all(|byte| *byte == key.0[0]) {
            return Err(MasterKeyError::Placeholder { origin: origin() });
        }
        Ok(key)
    }
}

fn hex_digit(nibble: u8) -> char {
    char::from(if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 })
}

#[cfg(unix)]
fn check_permissions(path: &Path, metadata: &std::fs::Metadata) -> Result<(), MasterKeyError> {
    use std::os::unix::fs::PermissionsExt;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 { Ok(()) } else { Err(MasterKeyError::OpenToOthers { path: path.to_owned(), mode }) }
}

#[cfg(not(unix))]
fn check_permissions(_: &Path, _: &std::fs::Metadata) -> Result<(), MasterKeyError> {
    Ok(())
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey((redacted))")
    }
}
