//! Names of things: a type for each id and number that could be mixed up.
//!
//! Leaves to others where ids come from: UUIDs are drawn by whoever creates the thing.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Length of every id on the wire, in bytes (a UUID, RFC 9562).
pub const ID_BYTES: usize = 16;

/// A text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is not a UUID: {text:?}")]
pub struct BadId {
    /// Which kind of id was asked for.
    pub what: &'static str,
    /// What was given instead, cut to 64 characters.
    pub text: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// The id with these 16 bytes.
            pub const fn from_bytes(bytes: [u8; ID_BYTES]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// A fresh random id (UUID version 4).
            pub fn random(rng: &mut dyn rand_core::RngCore) -> Self {
                let mut bytes = [0; ID_BYTES];
                rng.fill_bytes(&mut bytes);
                bytes[6] = (bytes[6] & 0x0f) | 0x40;
                bytes[8] = (bytes[8] & 0x3f) | 0x80;
                Self::from_bytes(bytes)
            }

            /// The 16 bytes as they stand on the wire.
            pub const fn as_bytes(&self) -> &[u8; ID_BYTES] {
                self.0.as_bytes()
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                // Only the hyphenated form: one id has one spelling, in topics above all.
                let bad = || BadId { what: $what, text: text.chars().take(64).collect() };
                if text.len() != 36 || text.bytes().any(|b| b.is_ascii_uppercase()) {
                    return Err(bad());
                }
                Uuid::try_parse(text).map(Self).map_err(|_| bad())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0.as_hyphenated())
            }
        }
    };
}

id!(
    /// Everything one trust root and one logical coordinator manage.
    FleetId,
    "fleet"
);
id!(
    /// One enrolled identity.
    DeviceId,
    "device"
);
id!(
    /// A set of devices that share a group key.
    GroupId,
    "group"
);
id!(
    /// One MLS group; its bytes are the MLS group id, never reused.
    CellId,
    "cell"
);
id!(
    /// Names an external pre-shared key. It follows from the secret ([`crate::psk`]), so no two ever share one.
    PskId,
    "pre-shared key"
);

/// Names a group's key: an incarnation and a counter, compared in that order; only ever grows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyEpoch(pub u64);

impl KeyEpoch {
    /// The key epoch of `counter` in `incarnation`.
    pub const fn new(incarnation: u32, counter: u32) -> Self {
        Self(((incarnation as u64) << 32) | counter as u64)
    }

    /// Which life of the coordinator's database it belongs to.
    pub const fn incarnation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Its place within the incarnation.
    pub const fn counter(self) -> u32 {
        self.0 as u32
    }

    /// The first key epoch after this one that `incarnation` may issue, or `None` when the counter is used up
    /// or the incarnation lies behind.
    pub const fn next_in(self, incarnation: u32) -> Option<Self> {
        if incarnation > self.incarnation() {
            return Some(Self::new(incarnation, 1));
        }
        if incarnation < self.incarnation() || self.counter() == u32::MAX {
            return None;
        }
        Some(Self(self.0 + 1))
    }
}

impl fmt::Display for KeyEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.incarnation(), self.counter())
    }
}

impl fmt::Debug for KeyEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyEpoch({self})")
    }
}

impl FromStr for KeyEpoch {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        text.split_once('.')
            .and_then(|(i, c)| Some(Self::new(i.parse().ok()?, c.parse().ok()?)))
            .ok_or_else(|| BadId { what: "key epoch", text: text.chars().take(64).collect() })
    }
}

/// The MLS epoch of a cell.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CellEpoch(pub u64);

impl CellEpoch {
    /// The epoch that a commit at this one leads to. No cell lives to see the last one.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for CellEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for CellEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CellEpoch({})", self.0)
    }
}

/// Counts the coordinator's certificates: a device never goes back to a lower one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_spelling() {
        let id: DeviceId = "6f1c0f6e-5a53-4e4e-9a43-0f1b2c3d4e5f".parse().unwrap();
        assert_eq!(id.to_string().parse::<DeviceId>(), Ok(id));
        for other in [
            "6F1C0F6E-5A53-4E4E-9A43-0F1B2C3D4E5F",
            "6f1c0f6e5a534e4e9a430f1b2c3d4e5f",
            "{6f1c0f6e-5a53-4e4e-9a43-0f1b2c3d4e5f}",
            "urn:uuid:6f1c0f6e-5a53-4e4e-9a43-0f1b2c3d4e5f",
            "",
        ] {
            assert!(other.parse::<DeviceId>().is_err(), "{other}");
        }
    }

    #[test]
    fn a_later_incarnation_outranks_every_counter() {
        let old = KeyEpoch::new(7, u32::MAX);
        let new = KeyEpoch::new(8, 1);
        assert!(old < new);
        assert_eq!(old.next_in(8), Some(new));
    }

    #[test]
    fn a_key_epoch_never_wraps_around_nor_goes_back() {
        assert_eq!(KeyEpoch::new(7, u32::MAX).next_in(7), None);
        assert_eq!(KeyEpoch::new(7, 3).next_in(6), None);
        assert_eq!(KeyEpoch::new(7, 3).next_in(7), Some(KeyEpoch::new(7, 4)));
    }
}
