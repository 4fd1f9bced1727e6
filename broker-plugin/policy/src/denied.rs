//! Why something was not allowed: one variant for each reason, each with a stable name for counters.

use fleetkey_wire::topic::BadTopic;
use fleetkey_wire::{CellId, DeviceId, FleetId};

/// Why a party may not do what it asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The policy has not been heard from yet, so nothing is known about devices.
    #[error("no policy has been received from the coordinator yet")]
    PolicyUnknown,
    /// The device's identity has ended.
    #[error("device {device} is revoked")]
    Revoked {
        /// The device.
        device: DeviceId,
    },
    /// Operators have no business on the fleet's topics.
    #[error("a party in this role has no topics to use")]
    RoleWithoutTopics,
    /// A device's client id must be its UUID.
    #[error("the client id of device {device} must be its id")]
    ClientIdNotDevice {
        /// The device.
        device: DeviceId,
    },
    /// A broker that connects to another is a relay, and says so.
    #[error("the client id of a broker must begin with \"relay\"")]
    ClientIdNotRelay,
    /// Empty, too long, not printable ASCII, or another party's.
    #[error("client id is not 1 to 64 printable ASCII characters, or names another party")]
    BadClientId,
    /// None of the fleet's topics.
    #[error(transparent)]
    BadTopic(#[from] BadTopic),
    /// A topic of another fleet.
    #[error("topic belongs to fleet {fleet}")]
    OtherFleet {
        /// The fleet named in the topic.
        fleet: FleetId,
    },
    /// A topic of another device.
    #[error("topic belongs to device {device}")]
    OtherDevice {
        /// The device named in the topic.
        device: DeviceId,
    },
    /// The device is not a member of the cell.
    #[error("not a member of cell {cell}")]
    NotMember {
        /// The cell named in the topic.
        cell: CellId,
    },
    /// Only a coordinator publishes there.
    #[error("only a coordinator publishes to this topic")]
    CoordinatorPublishes,
    /// Only devices publish there.
    #[error("only a device publishes to this topic")]
    DevicePublishes,
    /// Only a coordinator subscribes to it.
    #[error("only a coordinator subscribes to this filter")]
    CoordinatorSubscribes,
    /// Only a device subscribes to it.
    #[error("only a device subscribes to this filter")]
    DeviceSubscribes,
    /// More bytes than the topic carries.
    #[error("payload is {bytes} bytes long, at most {limit} are allowed")]
    PayloadTooLarge {
        /// Its length.
        bytes: usize,
        /// The most that this topic carries.
        limit: usize,
    },
    /// Nothing of the fleet's is sent exactly once: confirmation is end to end.
    #[error("QoS 2 is not supported")]
    Qos2,
    /// Nothing is retained on the broker.
    #[error("retained messages are not supported")]
    Retain,
}

impl Denied {
    /// The reason's name in counters and logs; stable.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::PolicyUnknown => "policy_unknown",
            Self::Revoked { .. } => "revoked",
            Self::RoleWithoutTopics => "role_without_topics",
            Self::ClientIdNotDevice { .. } => "client_id_not_device",
            Self::ClientIdNotRelay => "client_id_not_relay",
            Self::BadClientId => "bad_client_id",
            Self::BadTopic(_) => "bad_topic",
            Self::OtherFleet { .. } => "other_fleet",
            Self::OtherDevice { .. } => "other_device",
            Self::NotMember { .. } => "not_member",
            Self::CoordinatorPublishes => "coordinator_publishes",
            Self::DevicePublishes => "device_publishes",
            Self::CoordinatorSubscribes => "coordinator_subscribes",
            Self::DeviceSubscribes => "device_subscribes",
            Self::PayloadTooLarge { .. } => "payload_too_large",
            Self::Qos2 => "qos2",
            Self::Retain => "retain",
        }
    }
}
