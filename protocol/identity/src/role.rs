//! Who a certificate names: the URI that carries fleet, role and id, one spelling for each.

use std::fmt;

use fleetkey_wire::{DeviceId, FleetId, Generation};

use crate::error::BadCertificate;

/// What every name of this profile begins with.
pub const URI_PREFIX: &str = "urn:fleetkey:";

/// Longest operator name, in characters.
pub const MAX_OPERATOR_NAME: usize = 64;

/// What a party is in its fleet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Signs statements and commits; all coordinators of a fleet share one identity key.
    Coordinator {
        /// Grows with each new coordinator certificate.
        generation: Generation,
    },
    /// Runs the MQTT server.
    Broker,
    /// Lets devices in: runs the EST server.
    Registrar,
    /// A person or a tool that gives orders to the coordinator.
    Operator {
        /// 1 to [`MAX_OPERATOR_NAME`] characters out of `A-Z a-z 0-9 . _ -`.
        name: String,
    },
    /// One enrolled device.
    Device(DeviceId),
}

impl Role {
    /// The certificate's name for this role in `fleet`.
    pub fn uri(&self, fleet: FleetId) -> String {
        format!("{URI_PREFIX}{fleet}:{self}")
    }

    /// The subject's common name: for people and for brokers that take the user name from it. Nothing of ours reads it.
    pub(crate) fn common_name(&self) -> String {
        match self {
            Self::Device(device) => device.to_string(),
            Self::Coordinator { .. } | Self::Broker | Self::Registrar | Self::Operator { .. } => {
                self.to_string()
            }
        }
    }

    /// Whether `name` can be an operator's.
    pub fn is_operator_name(name: &str) -> bool {
        (1..=MAX_OPERATOR_NAME).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator { generation } => write!(f, "coordinator:{}", generation.0),
            Self::Broker => f.write_str("broker"),
            Self::Registrar => f.write_str("registrar"),
            Self::Operator { name } => write!(f, "operator:{name}"),
            Self::Device(device) => write!(f, "device:{device}"),
        }
    }
}

/// What a name of this profile stands for: a party, or a CA of the fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    Party(Role),
    Ca,
}

/// The name of a fleet's CA certificates.
pub(crate) fn ca_uri(fleet: FleetId) -> String {
    format!("{URI_PREFIX}{fleet}:ca")
}

/// Whether `uri` must be read as a name of this profile. Schemes and namespaces compare without case (RFC 8141 §3.1), so
/// another spelling is not passed over, but refused by [`parse_uri`].
pub(crate) fn is_fleet_uri(uri: &str) -> bool {
    uri.get(..URI_PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(URI_PREFIX))
}

/// Reads a name of this profile.
pub(crate) fn parse_uri(uri: &str) -> Result<(FleetId, Subject), BadCertificate> {
    let bad = |what| BadCertificate::BadFleetName { uri: uri.chars().take(128).collect(), what };
    let rest = uri.strip_prefix(URI_PREFIX).ok_or_else(|| bad("does not begin with urn:fleetkey:"))?;
    let (fleet, rest) = rest.split_once(':').ok_or_else(|| bad("no role"))?;
    let fleet = fleet.parse().map_err(|_| bad("fleet is not a UUID"))?;
    let subject = match rest.split_once(':') {
        None if rest == "ca" => Subject::Ca,
        None if rest == "broker" => Subject::Party(Role::Broker),
        None if rest == "registrar" => Subject::Party(Role::Registrar),
        Some(("device", id)) => {
            Subject::Party(Role::Device(id.parse().map_err(|_| bad("device is not a UUID"))?))
        }
        Some(("coordinator", text)) => {
            let generation: u32 = text.parse().map_err(|_| bad("generation is not a number"))?;
            if generation.to_string() != text {
                return Err(bad("generation has another spelling"));
            }
            Subject::Party(Role::Coordinator { generation: Generation(generation) })
        }
        Some(("operator", name)) if Role::is_operator_name(name) => {
            Subject::Party(Role::Operator { name: name.to_owned() })
        }
        Some(("operator", _)) => return Err(bad("operator name has other characters, or too many")),
        None | Some(_) => return Err(bad("unknown role")),
    };
    Ok((fleet, subject))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet() -> FleetId {
        "6f1c0f6e-5a53-4e4e-9a43-0f1b2c3d4e5f".parse().unwrap()
    }

    #[test]
    fn a_role_comes_back_from_its_uri() {
        for role in [
            Role::Coordinator { generation: Generation(0) },
            Role::Coordinator { generation: Generation(u32::MAX) },
            Role::Broker,
            Role::Registrar,
            Role::Operator { name: "ada.lovelace-2_x".into() },
            Role::Device(DeviceId::from_bytes([0xab; 16])),
        ] {
            assert_eq!(parse_uri(&role.uri(fleet())), Ok((fleet(), Subject::Party(role))));
        }
        assert_eq!(parse_uri(&ca_uri(fleet())), Ok((fleet(), Subject::Ca)));
    }

    #[test]
    fn a_look_alike_is_not_a_role() {
        let f = "6f1c0f6e-5a53-4e4e-9a43-0f1b2c3d4e5f";
        for uri in [
            "urn:fleetkey:".to_owned(),
            format!("urn:fleetkey:{f}"),
            format!("urn:fleetkey:{f}:"),
            format!("urn:fleetkey:{f}:Broker"),
            format!("urn:fleetkey:{f}:broker:"),
            format!("urn:fleetkey:{f}:broker "),
            format!("urn:fleetkey:{f}:ca:1"),
            format!("urn:fleetkey:{f}:coordinator"),
            format!("urn:fleetkey:{f}:coordinator:01"),
            format!("urn:fleetkey:{f}:coordinator:+1"),
            format!("urn:fleetkey:{f}:coordinator:-1"),
            format!("urn:fleetkey:{f}:coordinator:4294967296"),
            format!("urn:fleetkey:{f}:device:{}", f.to_uppercase()),
            format!("urn:fleetkey:{f}:device:{f}:x"),
            format!("urn:fleetkey:{}:broker", f.to_uppercase()),
            format!("URN:fleetkey:{f}:broker"),
            format!("urn:fleetkey:{f}:operator:"),
            format!("urn:fleetkey:{f}:operator:a b"),
            format!("urn:fleetkey:{f}:operator:a:b"),
            format!("urn:fleetkey:{f}:operator:{}", "x".repeat(65)),
            format!("urn:fleetkey:{f}:operator:ä"),
            format!("urn:fleetkey:{f}:root:1"),
        ] {
            assert!(is_fleet_uri(&uri), "{uri}");
            assert!(matches!(parse_uri(&uri), Err(BadCertificate::BadFleetName { .. })), "{uri}");
        }
        assert!(!is_fleet_uri("urn:fleetkeys:x"));
        assert!(!is_fleet_uri("urn:fleetke\u{e9}"));
    }
}
