//! Bearer tokens (RFC 6750), compared in constant time. Leaves what they open to `caller`.

use std::fmt;

use rand_core::CryptoRngCore;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Random bytes in a token of our own making.
const TOKEN_BYTES: usize = 32;
/// Shorter ones can be guessed.
const MIN_TOKEN_CHARACTERS: usize = 32;
const MAX_TOKEN_CHARACTERS: usize = 512;

/// A shared secret that opens the API. Never printed.
#[derive(Clone)]
pub struct Token(Zeroizing<String>);

/// A text that is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a token has {MIN_TOKEN_CHARACTERS} to {MAX_TOKEN_CHARACTERS} printable characters and no spaces, not {0}"
)]
pub struct BadToken(usize);

impl Token {
    /// A fresh one.
    pub fn generate(rng: &mut dyn CryptoRngCore) -> Self {
        let mut bytes = Zeroizing::new([0; TOKEN_BYTES]);
        rng.fill_bytes(bytes.as_mut());
        Self(Zeroizing::new(hex::encode(*bytes)))
    }

    /// Reads one; white space around it is passed over.
    ///
    /// # Errors
    /// When it is too short, too long, or has other characters.
    pub fn parse(text: &str) -> Result<Self, BadToken> {
        let text = text.trim();
        let fits = (MIN_TOKEN_CHARACTERS..=MAX_TOKEN_CHARACTERS).contains(&text.len());
        if fits && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self(Zeroizing::new(text.to_owned())))
        } else {
            Err(BadToken(text.len()))
        }
    }

    /// The token itself, to be written or sent.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    pub(super) fn opens(&self, shown: &str) -> bool {
        self.0.as_bytes().ct_eq(shown.as_bytes()).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token((redacted))")
    }
}
