//! External pre-shared keys (RFC 9420 §8.4): what they are called, and how they stand in a file.
//!
//! A file is 64 hexadecimal digits, as `openssl rand -hex 32` writes them. Leaves to `fleetkey-mls` how they get into a
//! cell's keys, and to others where they are kept.

use rand_core::{CryptoRng, RngCore};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::cbor;
use crate::ids::{ID_BYTES, PskId};
use crate::keys::{Psk, SECRET_BYTES, expand};

/// A text that is no pre-shared key. It never says what was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPsk {
    /// Not as many digits as there must be.
    #[error(
        "a pre-shared key is 64 hexadecimal digits, as `openssl rand -hex 32` writes them; this has {characters} characters"
    )]
    Length {
        /// How many there are.
        characters: usize,
    },
    /// Something else than a digit.
    #[error("a pre-shared key is 64 hexadecimal digits: character {at} is none")]
    NotHex {
        /// Where, from 1.
        at: usize,
    },
    /// One byte over and over, which nobody has drawn at random.
    #[error(
        "this pre-shared key is one byte over and over: use 32 random bytes, as `openssl rand -hex 32` writes them"
    )]
    NotRandom,
}

/// A pre-shared key as the text of its file: how it travels in JSON, to a process on the same machine or over TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PskText(pub Psk);

impl Serialize for PskText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.to_text().trim_end())
    }
}

impl<'de> Deserialize<'de> for PskText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        Psk::from_text(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

impl Psk {
    /// A fresh one.
    pub fn random(rng: &mut (impl RngCore + CryptoRng + ?Sized)) -> Self {
        let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
        rng.fill_bytes(&mut *bytes);
        Self::from_bytes(*bytes)
    }

    /// Its name. Nobody finds the secret from it, because the secret is 32 random bytes.
    pub fn id(&self) -> PskId {
        let derived = expand(self.as_bytes(), &cbor::array(&[cbor::text("fleetkey psk id")]), ID_BYTES);
        let mut id = [0; ID_BYTES];
        id.copy_from_slice(&derived);
        PskId::from_bytes(id)
    }

    /// Reads what a file holds; white space around it does not count.
    ///
    /// # Errors
    /// [`BadPsk`].
    pub fn from_text(text: &str) -> Result<Self, BadPsk> {
        let text = text.trim();
        let characters = text.chars().count();
        if characters != 2 * SECRET_BYTES {
            return Err(BadPsk::Length { characters });
        }
        let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
        for (at, digit) in text.chars().enumerate() {
            let digit = digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            bytes[at / 2] = (bytes[at / 2] << 4) | digit.ok_or(BadPsk::NotHex { at: at + 1 })?;
        }
        if bytes.iter().all(|byte| *byte == bytes[0]) {
            return Err(BadPsk::NotRandom);
        }
        Ok(Self::from_bytes(*bytes))
    }

    /// What goes into a file.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(2 * SECRET_BYTES + 1));
        for nibble in self.as_bytes().iter().flat_map(|byte| [byte >> 4, byte & 0x0f]) {
            text.push(char::from_digit(nibble.into(), 16).expect("four bits are one digit"));
        }
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    use super::*;

    #[test]
    fn a_file_reads_back_as_written() {
        let psk = Psk::random(&mut ChaCha20Rng::seed_from_u64(1));
        assert_eq!(Psk::from_text(&psk.to_text()), Ok(psk.clone()));
        assert_eq!(Psk::from_text(&psk.to_text().to_uppercase()), Ok(psk.clone()));
        assert_eq!(psk.to_text().len(), 65);
        assert_eq!(format!("{psk:?}"), "Psk(redacted)");
    }

    #[test]
    fn what_is_no_key_is_refused_by_name_and_not_shown() {
        let good = "00112233445566778899aabbccddeeff".repeat(2);
        assert_eq!(Psk::from_text(&good[1..]), Err(BadPsk::Length { characters: 63 }));
        assert_eq!(Psk::from_text(""), Err(BadPsk::Length { characters: 0 }));
        assert_eq!(Psk::from_text(&good.replacen('7', "g", 1)), Err(BadPsk::NotHex { at: 15 }));
        assert_eq!(Psk::from_text(&good.replacen("77", "é7", 1)), Err(BadPsk::NotHex { at: 15 }));
        assert_eq!(Psk::from_text(&"00".repeat(32)), Err(BadPsk::NotRandom));
        let refused = Psk::from_text(&good[1..]).map_err(|bad| bad.to_string()).unwrap_err();
        assert!(!refused.contains("112233"), "{refused}");
    }

    #[test]
    fn its_name_follows_from_the_secret_and_is_none_of_it() {
        let mut rng = ChaCha20Rng::seed_from_u64(2);
        let (one, other) = (Psk::random(&mut rng), Psk::random(&mut rng));
        assert_eq!(Psk::from_text(&one.to_text()).map(|read| read.id()), Ok(one.id()));
        assert_ne!(one.id(), other.id());
        assert_ne!(one.id().as_bytes(), &one.as_bytes()[..ID_BYTES]);
    }
}
