//! What is wrong with a packet, one variant for each fault of the sender.

/// A packet that breaks the rules of MQTT, or a limit of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// MQTT 3.1.1 §2.2.3.
    #[error("remaining length takes more than four bytes")]
    RemainingLength,
    /// More than [`crate::Limits::max_packet_bytes`].
    #[error("packet of {bytes} bytes, at most {limit} are allowed")]
    TooLarge { bytes: usize, limit: usize },
    /// A length points past the end.
    #[error("packet ends too early")]
    Truncated,
    /// Something follows the last field.
    #[error("packet has {bytes} bytes too many")]
    TrailingBytes { bytes: usize },
    /// Reserved bits are set.
    #[error("reserved bits are set")]
    ReservedBits,
    /// MQTT 3.1.1 §1.5.3.
    #[error("string is not UTF-8 or has a null character")]
    BadString,
    /// MQTT 3.1.1 §2.3.1.
    #[error("packet id is zero")]
    PacketIdZero,
    /// QoS 3.
    #[error("QoS 3")]
    Qos3,
    /// A packet that a client never sends, or not at this point.
    #[error("packet type {kind} is not expected from a client here")]
    UnexpectedPacket { kind: u8 },
    /// MQTT 3.1.1 §3.1.2.1.
    #[error("protocol name is not MQTT")]
    ProtocolName,
    /// Neither 4 (MQTT 3.1.1) nor 5.
    #[error("protocol level {level} is not supported")]
    ProtocolLevel { level: u8 },
    /// A SUBSCRIBE or UNSUBSCRIBE without filters.
    #[error("no filters")]
    NoFilters,
    /// More filters in one packet than [`super::read::MAX_FILTERS`].
    #[error("more than {limit} filters")]
    TooManyFilters { limit: usize },
    /// MQTT 5 §2.2.2.2: unknown, not allowed in this packet, or given twice.
    #[error("property {id} is unknown, out of place or repeated")]
    BadProperty { id: u8 },
    /// A property whose value is not allowed.
    #[error("property {id} has a value that is not allowed")]
    BadPropertyValue { id: u8 },
}

impl Malformed {
    /// The reason's name in counters; stable.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "packet_too_large",
            Self::UnexpectedPacket { .. } => "unexpected_packet",
            Self::ProtocolName | Self::ProtocolLevel { .. } => "protocol_version",
            Self::BadString => "bad_string",
            Self::RemainingLength
            | Self::Truncated
            | Self::TrailingBytes { .. }
            | Self::ReservedBits
            | Self::PacketIdZero
            | Self::Qos3
            | Self::NoFilters
            | Self::TooManyFilters { .. }
            | Self::BadProperty { .. }
            | Self::BadPropertyValue { .. } => "malformed_packet",
        }
    }

    /// The MQTT 5 reason code (§2.4).
    pub(crate) const fn reason_code(&self) -> u8 {
        match self {
            Self::TooLarge { .. } => 0x95,
            Self::UnexpectedPacket { .. }
            | Self::NoFilters
            | Self::BadProperty { .. }
            | Self::BadPropertyValue { .. } => 0x82,
            Self::TooManyFilters { .. } => 0x97,
            Self::ProtocolName | Self::ProtocolLevel { .. } => 0x84,
            Self::RemainingLength
            | Self::Truncated
            | Self::TrailingBytes { .. }
            | Self::ReservedBits
            | Self::BadString
            | Self::PacketIdZero
            | Self::Qos3 => 0x81,
        }
    }
}
