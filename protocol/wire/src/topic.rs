//! The three MQTT topics, and nothing else.
//!
//! | topic | who publishes | who subscribes |
//! | --- | --- | --- |
//! | `fk/{fleet}/cell/{cell}` | coordinator | members of the cell |
//! | `fk/{fleet}/dev/{device}/down` | coordinator | that device |
//! | `fk/{fleet}/dev/{device}/up` | that device | coordinator |
//!
//! Leaves to others who may use which: that is the broker policy's to decide.

use std::fmt;

use crate::ids::{CellId, DeviceId, FleetId};

/// No topic of ours is longer, in bytes.
pub const MAX_TOPIC_BYTES: usize = 96;

/// A topic name (MQTT 3.1.1 §4.7) of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// Cell frames, to every member of a cell.
    Cell {
        /// The fleet.
        fleet: FleetId,
        /// The cell.
        cell: CellId,
    },
    /// The coordinator's word to one device.
    Down {
        /// The fleet.
        fleet: FleetId,
        /// The device.
        device: DeviceId,
    },
    /// One device's word to the coordinator.
    Up {
        /// The fleet.
        fleet: FleetId,
        /// The device.
        device: DeviceId,
    },
}

/// A topic filter (MQTT 3.1.1 §4.7) that someone has a use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Filter {
    /// One topic, exactly.
    Exact(Topic),
    /// `fk/{fleet}/dev/+/up`: what every device of the fleet says to the coordinator.
    AllUp {
        /// The fleet.
        fleet: FleetId,
    },
}

/// Why a topic or filter is none of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadTopic {
    /// Longer than [`MAX_TOPIC_BYTES`].
    #[error("topic is {bytes} bytes long, at most {MAX_TOPIC_BYTES} are allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Something else than printable ASCII.
    #[error("topic has a character outside printable ASCII")]
    NotAscii,
    /// `+`, `#` or `$` where a name is due.
    #[error("topic has a wildcard or a leading $")]
    Wildcard,
    /// None of the three forms.
    #[error("topic is none of fk/FLEET/cell/CELL, fk/FLEET/dev/DEVICE/down, fk/FLEET/dev/DEVICE/up")]
    UnknownForm,
}

impl Topic {
    /// Reads a topic name.
    pub fn parse(raw: &str) -> Result<Self, BadTopic> {
        check_characters(raw)?;
        if raw.contains(['+', '#', '$']) {
            return Err(BadTopic::Wildcard);
        }
        let mut levels = raw.split('/');
        let topic = match (levels.next(), levels.next(), levels.next(), levels.next(), levels.next()) {
            (Some("fk"), Some(fleet), Some("cell"), Some(cell), None) => {
                Self::Cell { fleet: id(fleet)?, cell: id(cell)? }
            }
            (Some("fk"), Some(fleet), Some("dev"), Some(device), Some("down")) => {
                Self::Down { fleet: id(fleet)?, device: id(device)? }
            }
            (Some("fk"), Some(fleet), Some("dev"), Some(device), Some("up")) => {
                Self::Up { fleet: id(fleet)?, device: id(device)? }
            }
            _ => return Err(BadTopic::UnknownForm),
        };
        if levels.next().is_some() {
            return Err(BadTopic::UnknownForm);
        }
        Ok(topic)
    }

    /// The fleet the topic belongs to.
    pub const fn fleet(&self) -> FleetId {
        match self {
            Self::Cell { fleet, .. } | Self::Down { fleet, .. } | Self::Up { fleet, .. } => *fleet,
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cell { fleet, cell } => write!(f, "fk/{fleet}/cell/{cell}"),
            Self::Down { fleet, device } => write!(f, "fk/{fleet}/dev/{device}/down"),
            Self::Up { fleet, device } => write!(f, "fk/{fleet}/dev/{device}/up"),
        }
    }
}

impl Filter {
    /// Reads a topic filter.
    pub fn parse(raw: &str) -> Result<Self, BadTopic> {
        check_characters(raw)?;
        if let Some(rest) = raw.strip_prefix("fk/")
            && let Some(fleet) = rest.strip_suffix("/dev/+/up")
        {
            return Ok(Self::AllUp { fleet: id(fleet)? });
        }
        Topic::parse(raw).map(Self::Exact)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(topic) => topic.fmt(f),
            Self::AllUp { fleet } => write!(f, "fk/{fleet}/dev/+/up"),
        }
    }
}

fn check_characters(raw: &str) -> Result<(), BadTopic> {
    if raw.len() > MAX_TOPIC_BYTES {
        return Err(BadTopic::TooLong { bytes: raw.len() });
    }
    if !raw.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(BadTopic::NotAscii);
    }
    Ok(())
}

fn id<T: std::str::FromStr>(text: &str) -> Result<T, BadTopic> {
    text.parse().map_err(|_| BadTopic::UnknownForm)
}

#[cfg(test)]
mod tests {
    use super::*;

    const F: &str = "11111111-1111-4111-8111-111111111111";
    const X: &str = "22222222-2222-4222-8222-222222222222";

    #[test]
    fn topics_read_back_as_written() {
        for raw in [format!("fk/{F}/cell/{X}"), format!("fk/{F}/dev/{X}/down"), format!("fk/{F}/dev/{X}/up")]
        {
            assert_eq!(Topic::parse(&raw).unwrap().to_string(), raw);
            assert_eq!(Filter::parse(&raw).unwrap().to_string(), raw);
        }
        let all = format!("fk/{F}/dev/+/up");
        assert_eq!(Filter::parse(&all).unwrap().to_string(), all);
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        let cases = [
            (format!("é/{X}"), BadTopic::NotAscii),
            (format!("fk/{F}/cell/{X} "), BadTopic::NotAscii),
            ("fk/\0".into(), BadTopic::NotAscii),
            ("x".repeat(97), BadTopic::TooLong { bytes: 97 }),
            (format!("fk/{F}/cell/+"), BadTopic::Wildcard),
            ("#".into(), BadTopic::Wildcard),
            (format!("$share/g/fk/{F}/cell"), BadTopic::Wildcard),
            ("$SYS/broker".into(), BadTopic::Wildcard),
            (format!("fk/{F}/dev/{X}/up/x"), BadTopic::UnknownForm),
            (format!("fk/{F}/dev/{X}"), BadTopic::UnknownForm),
            (format!("fk/{F}/cell/{X}/"), BadTopic::UnknownForm),
            (format!("/fk/{F}/cell/{X}"), BadTopic::UnknownForm),
            (format!("fk/{F}/cell/{}", "A".repeat(36)), BadTopic::UnknownForm),
            (String::new(), BadTopic::UnknownForm),
        ];
        for (raw, why) in cases {
            assert_eq!(Topic::parse(&raw), Err(why), "{raw:?}");
        }
    }

    #[test]
    fn the_only_wildcard_is_the_coordinators() {
        for raw in [
            format!("fk/{F}/dev/+/down"),
            format!("fk/{F}/#"),
            "fk/+/dev/+/up".into(),
            format!("$share/a/fk/{F}/dev/+/up"),
        ] {
            assert!(Filter::parse(&raw).is_err(), "{raw}");
        }
    }
}
