//! Secrets that are shown once and kept as digests: 32 random bytes, so that there is nothing to guess, and so nothing
//! to stretch.

use std::fmt;
use std::str::FromStr;

use rand_core::CryptoRngCore;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

const SECRET_BYTES: usize = 32;

/// What its holder keeps: 32 random bytes, written as hex. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ShownSecret(Zeroizing<[u8; SECRET_BYTES]>);

/// A text that is no secret of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a secret of ours: 64 hexadecimal digits")]
pub struct BadSecret;

impl ShownSecret {
    pub(crate) fn random(rng: &mut dyn CryptoRngCore) -> Self {
        let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
        rng.fill_bytes(bytes.as_mut());
        Self(bytes)
    }

    /// As hex, to be handed out once.
    pub fn reveal(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(vec![0; 2 * SECRET_BYTES]);
        hex::encode_to_slice(&self.0[..], &mut text).expect("there is room for two digits a byte");
        Zeroizing::new(String::from_utf8(std::mem::take(&mut *text)).expect("hex digits are text"))
    }

    /// What is kept of it.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.0[..]).into()
    }
}

impl FromStr for ShownSecret {
    type Err = BadSecret;

    fn from_str(text: &str) -> Result<Self, BadSecret> {
        let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
        hex::decode_to_slice(text, bytes.as_mut()).map_err(|_| BadSecret)?;
        Ok(Self(bytes))
    }
}

impl fmt::Debug for ShownSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShownSecret((redacted))")
    }
}

#[cfg(test)]
mod tests {
    use rand_core::OsRng;

    use super::*;

    #[test]
    fn a_secret_reads_as_it_was_revealed_and_is_never_printed() {
        let secret = ShownSecret::random(&mut OsRng);
        assert_eq!(secret.reveal().parse(), Ok(secret.clone()));
        assert!(!format!("{secret:?}").contains(secret.reveal().as_str()));
        for bad in ["", "00", &"0".repeat(63), &"g".repeat(64), &"0".repeat(66)] {
            assert_eq!(bad.parse::<ShownSecret>(), Err(BadSecret), "{bad}");
        }
    }
}
