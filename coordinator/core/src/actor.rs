//! Who acts: whoever the audit log names.

use std::fmt;

use fleetkey_wire::DeviceId;

use crate::records::{OperatorName, Origin};

/// On whose account something is decided.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Actor {
    /// The coordinator by itself.
    #[default]
    Coordinator,
    /// Whoever holds the token that the fleet was made with.
    Root,
    /// An operator, within their scope.
    Operator(OperatorName),
    /// A device.
    Device(DeviceId),
    /// Somebody who wants to become one.
    Applicant(Origin),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator => f.write_str("coordinator"),
            Self::Root => f.write_str("root"),
            Self::Operator(name) => write!(f, "{name}"),
            Self::Device(id) => write!(f, "device:{id}"),
            Self::Applicant(Origin::Operator) => f.write_str("applicant"),
            Self::Applicant(Origin::Claim(id)) => write!(f, "claim:{id}"),
            Self::Applicant(Origin::Manufacturer { manufacturer }) => {
                write!(f, "manufacturer:{manufacturer}")
            }
        }
    }
}
