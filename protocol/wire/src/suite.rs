//! Cipher suites: which MLS suite a group uses, the AEAD that goes with it in COSE, and how large its cells may be.
//!
//! The suite is a property of the group. All suites here use HKDF-SHA-256 and Ed25519.

use serde::{Deserialize, Serialize};

use crate::limits::MAX_CELL_CAPACITY;

/// A cipher suite of MLS that Fleetkey supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub enum Suite {
    /// `MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519` (0x0001).
    #[default]
    #[serde(rename = "aes128gcm")]
    Aes128Gcm,
    /// `MLS_128_DHKEMX25519_CHACHA20POLY1305_SHA256_Ed25519` (0x0003).
    #[serde(rename = "chacha20poly1305")]
    ChaCha20Poly1305,
    /// `MLS_256_XWING_CHACHA20POLY1305_SHA256_Ed25519` (0x004D, a number of openmls's own): the KEM is X-Wing, which is
    /// ML-KEM-768 and X25519 together. Its public keys take 1,216 bytes and its ciphertexts 1,120, so its cells are small.
    #[serde(rename = "xwing-chacha20poly1305")]
    XWingChaCha20Poly1305,
}

impl Suite {
    /// Every suite, in the order of preference.
    pub const ALL: [Self; 3] = [Self::Aes128Gcm, Self::ChaCha20Poly1305, Self::XWingChaCha20Poly1305];

    /// Its number in the registry of MLS cipher suites (RFC 9420 §17.1), or in openmls.
    pub const fn code(self) -> u16 {
        match self {
            Self::Aes128Gcm => 1,
            Self::ChaCha20Poly1305 => 3,
            Self::XWingChaCha20Poly1305 => 0x4d,
        }
    }

    /// The suite with this number.
    pub const fn from_code(code: u16) -> Option<Self> {
        match code {
            1 => Some(Self::Aes128Gcm),
            3 => Some(Self::ChaCha20Poly1305),
            0x4d => Some(Self::XWingChaCha20Poly1305),
            _ => None,
        }
    }

    /// Length of an AEAD key, in bytes.
    pub const fn aead_key_bytes(self) -> usize {
        match self {
            Self::Aes128Gcm => 16,
            Self::ChaCha20Poly1305 | Self::XWingChaCha20Poly1305 => 32,
        }
    }

    /// Length of a public key of its KEM, in bytes.
    pub const fn kem_public_key_bytes(self) -> usize {
        match self {
            Self::Aes128Gcm | Self::ChaCha20Poly1305 => 32,
            Self::XWingChaCha20Poly1305 => 1_216,
        }
    }

    /// Devices in a cell, where nothing else is said.
    pub const fn default_cell_capacity(self) -> u16 {
        match self {
            Self::Aes128Gcm | Self::ChaCha20Poly1305 => 64,
            Self::XWingChaCha20Poly1305 => 8,
        }
    }

    /// The largest capacity of a cell at which its largest frames still fit.
    pub const fn max_cell_capacity(self) -> u16 {
        match self {
            Self::Aes128Gcm | Self::ChaCha20Poly1305 => MAX_CELL_CAPACITY,
            Self::XWingChaCha20Poly1305 => 24,
        }
    }

    /// Its name in commands and configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes128Gcm => "aes128gcm",
            Self::ChaCha20Poly1305 => "chacha20poly1305",
            Self::XWingChaCha20Poly1305 => "xwing-chacha20poly1305",
        }
    }
}

impl std::fmt::Display for Suite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Suite {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|s| s.name() == text).ok_or_else(|| {
            format!("unknown suite {text:?}: use one of {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}
