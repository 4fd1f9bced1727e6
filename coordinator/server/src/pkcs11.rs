//! A CA's key in a PKCS #11 token: which token, which key, and the PIN that opens it.
//!
//! The CA's file then holds its certificates, and a line that names the key (RFC 7512): `pkcs11:object=LABEL;type=private`.
//! The PIN comes from the environment or a file that is its owner's alone, never from the settings. Without the feature
//! `pkcs11` nothing can be opened, and that is said.

#[cfg(feature = "pkcs11")]
mod token;

use std::path::PathBuf;
use std::sync::Arc;

use fleetkey_identity::CaKey;
use fleetkey_vault::files::{self, FileError};
use serde::Deserialize;
use zeroize::Zeroizing;

/// The variable that holds the PIN, where no file does.
pub const PIN_VARIABLE: &str = "FLEETKEY_PKCS11_PIN";

const URI: &str = "pkcs11:object=";
const URI_END: &str = ";type=private";

/// A token.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pkcs11Config {
    /// The module of its maker, a shared library.
    pub module: PathBuf,
    /// The token's label.
    pub token: String,
    /// The file of the PIN; not read when [`PIN_VARIABLE`] is set.
    pub pin_file: Option<PathBuf>,
}

/// Why a key in a token cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The settings name no token.
    #[error(
        "the key is in a PKCS #11 token, and the settings name none: module and token under [identity.pkcs11]"
    )]
    NotConfigured,
    /// This program was built without it.
    #[error("this fleetkey was built without PKCS #11: build it with --features pkcs11")]
    NotBuilt,
    /// A label that cannot stand in a CA's file.
    #[error("{label:?} is no label of a key: 1 to 64 of A-Z a-z 0-9 . _ -")]
    BadLabel {
        /// The label.
        label: String,
    },
    /// There is no PIN.
    #[error("no PIN: set {PIN_VARIABLE}, or name its file under [identity.pkcs11] as pin_file")]
    NoPin,
    /// The PIN's file.
    #[error(transparent)]
    Pin(#[from] FileError),
    /// The module says no.
    #[error("{doing}: {why}")]
    Module {
        /// What was being done.
        doing: &'static str,
        /// In its words.
        why: String,
    },
    /// There is no such token.
    #[error("no token is labelled {label:?}")]
    NoToken {
        /// The label.
        label: String,
    },
    /// There is not exactly one such key.
    #[error("{count} Ed25519 keys in the token are labelled {label:?}, and it has to be one")]
    NotOneKey {
        /// The label.
        label: String,
        /// How many there are.
        count: usize,
    },
    /// It is not the one that was there before.
    #[error("the key in the token that is labelled {label:?} is another than the CA's")]
    OtherKey {
        /// The label.
        label: String,
    },
    /// There is one already.
    #[error("a key in the token is labelled {label:?} already: choose another label")]
    Taken {
        /// The label.
        label: String,
    },
}

impl Pkcs11Config {
    #[cfg_attr(
        not(feature = "pkcs11"),
        expect(dead_code, reason = "nothing asks for it without the feature")
    )]
    fn pin(&self) -> Result<Zeroizing<String>, TokenError> {
        let text = match (std::env::var(PIN_VARIABLE), &self.pin_file) {
            (Ok(pin), _) => Zeroizing::new(pin),
            (Err(_), Some(file)) => files::read_secret(file)?,
            (Err(_), None) => return Err(TokenError::NoPin),
        };
        Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
    }
}

/// The label of the key that a CA's file names, if it names one in a token.
pub fn label_in(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once(URI)?;
    let end = rest.find(|c: char| !is_plain(c)).unwrap_or(rest.len());
    rest.get(..end).filter(|label| !label.is_empty())
}

/// What a CA's file says of a key in a token.
///
/// # Errors
/// [`TokenError::BadLabel`].
pub fn reference_to(label: &str) -> Result<String, TokenError> {
    if (1..=64).contains(&label.len()) && label.chars().all(is_plain) {
        Ok(format!("# {URI}{label}{URI_END}\n"))
    } else {
        Err(TokenError::BadLabel { label: label.chars().take(64).collect() })
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._-".contains(c)
}

/// Opens the key of this label.
///
/// # Errors
/// [`TokenError`].
pub fn open(config: &Pkcs11Config, label: &str) -> Result<Arc<dyn CaKey>, TokenError> {
    #[cfg(feature = "pkcs11")]
    return Ok(Arc::new(token::TokenKey::open(config, label)?));
    #[cfg(not(feature = "pkcs11"))]
    {
        let _ = (config, label);
        Err(TokenError::NotBuilt)
    }
}

/// Makes a key of this label, which never leaves the token.
///
/// # Errors
/// [`TokenError`]; [`TokenError::Taken`] where there is one.
pub fn generate(config: &Pkcs11Config, label: &str) -> Result<Arc<dyn CaKey>, TokenError> {
    reference_to(label)?;
    #[cfg(feature = "pkcs11")]
    return Ok(Arc::new(token::TokenKey::generate(config, label)?));
    #[cfg(not(feature = "pkcs11"))]
    {
        let _ = config;
        Err(TokenError::NotBuilt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_comes_back_from_the_file_that_names_it() {
        let text = format!("{}-----BEGIN CERTIFICATE-----\n", reference_to("fleet-ca.1").unwrap());
        assert_eq!(label_in(&text), Some("fleet-ca.1"));
        assert_eq!(label_in("-----BEGIN PRIVATE KEY-----\n"), None);
        for bad in ["", "a b", "a;b", "ä", &"x".repeat(65)] {
            assert!(matches!(reference_to(bad), Err(TokenError::BadLabel { .. })), "{bad}");
        }
    }
}
