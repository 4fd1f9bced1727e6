//! Why something was refused or a connection closed, and how that is said in each version of MQTT.

use fleetkey_door::addresses::TooManyFromAddress;
use fleetkey_door::papers::BadPapers;
use fleetkey_policy::Denied;

use crate::packet::{Malformed, Version};

/// Why a connection, or one thing asked for on it, was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The policy says no.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The packet breaks the rules.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// No room.
    #[error("too many connections")]
    TooManyConnections,
    /// No room for one more from there.
    #[error("too many connections from this address")]
    TooManyFromAddress,
    /// The TLS handshake failed.
    #[error("TLS handshake failed")]
    TlsHandshake,
    /// The TLS handshake took too long.
    #[error("TLS handshake took too long")]
    TlsTimeout,
    /// No CONNECT came in time.
    #[error("no CONNECT in time")]
    ConnectTimeout,
    /// The certificate is none of the fleet's profile.
    #[error("certificate names no party of a fleet")]
    BadCertificate,
    /// The certificate is on the CRL.
    #[error("certificate is revoked")]
    RevokedCertificate,
    /// The certificate was good when the client connected.
    #[error("certificate has expired")]
    ExpiredCertificate,
    /// On a listener without certificates: a client id that names nobody.
    #[error("client id names neither a device nor a coordinator")]
    UnknownClientId,
    /// Nothing is published on behalf of who is gone.
    #[error("wills are not supported")]
    Will,
    /// The certificate authenticates, nothing else.
    #[error("authentication methods are not supported")]
    AuthenticationMethod,
    /// Topics are not aliased.
    #[error("topic aliases are not supported")]
    TopicAlias,
    /// Subscriptions have no identifiers.
    #[error("subscription identifiers are not supported")]
    SubscriptionIdentifier,
    /// More subscriptions than a device may have.
    #[error("too many subscriptions")]
    TooManySubscriptions,
    /// There would be nobody to speak to.
    #[error("the way to the broker above is lost")]
    NoUpstream,
    /// More than a device may say, for too long.
    #[error("too many packets or bytes, for too long")]
    RateExceeded,
}

impl From<BadPapers> for Refusal {
    fn from(bad: BadPapers) -> Self {
        match bad {
            BadPapers::BadCertificate => Self::BadCertificate,
            BadPapers::OtherFleet { fleet } => Self::Denied(Denied::OtherFleet { fleet }),
        }
    }
}

impl From<TooManyFromAddress> for Refusal {
    fn from(TooManyFromAddress: TooManyFromAddress) -> Self {
        Self::TooManyFromAddress
    }
}

impl Refusal {
    /// The reason's name in counters and logs; stable.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Denied(denied) => denied.name(),
            Self::Malformed(malformed) => malformed.name(),
            Self::TooManyConnections => "too_many_connections",
            Self::TooManyFromAddress => "too_many_from_address",
            Self::TlsHandshake => "tls_handshake",
            Self::TlsTimeout => "tls_timeout",
            Self::ConnectTimeout => "connect_timeout",
            Self::BadCertificate => "bad_certificate",
            Self::RevokedCertificate => "revoked_certificate",
            Self::ExpiredCertificate => "expired_certificate",
            Self::UnknownClientId => "unknown_client_id",
            Self::Will => "will",
            Self::AuthenticationMethod => "authentication_method",
            Self::TopicAlias => "topic_alias",
            Self::SubscriptionIdentifier => "subscription_identifier",
            Self::TooManySubscriptions => "too_many_subscriptions",
            Self::NoUpstream => "no_upstream",
            Self::RateExceeded => "rate_exceeded",
        }
    }

    /// The code of a CONNACK that refuses (MQTT 3.1.1 §3.2.2.3, MQTT 5 §3.2.2.2).
    pub(crate) const fn connack_code(&self, version: Version) -> u8 {
        match version {
            Version::V5 => self.reason_code(),
            Version::V4 => match self.reason_code() {
                0x84 => 1,
                0x85 => 2,
                0x88 | 0x89 => 3,
                _ => 5,
            },
        }
    }

    /// The code of one filter in a SUBACK (MQTT 3.1.1 §3.9.3, MQTT 5 §3.9.3).
    pub(crate) const fn suback_code(&self, version: Version) -> u8 {
        match (version, self.reason_code()) {
            (Version::V4, _) => 0x80,
            (Version::V5, 0x90) => 0x8f,
            (Version::V5, code) => code,
        }
    }

    /// The MQTT 5 reason code (§2.4) for this refusal.
    pub(crate) const fn reason_code(&self) -> u8 {
        match self {
            Self::Denied(denied) => denied_code(denied),
            Self::Malformed(malformed) => malformed.reason_code(),
            Self::TooManyConnections | Self::TooManyFromAddress => 0x89,
            Self::TlsHandshake
            | Self::TlsTimeout
            | Self::ConnectTimeout
            | Self::BadCertificate
            | Self::RevokedCertificate
            | Self::ExpiredCertificate
            | Self::Will => 0x87,
            Self::UnknownClientId => 0x85,
            Self::AuthenticationMethod => 0x8c,
            Self::TopicAlias => 0x94,
            Self::SubscriptionIdentifier => 0xa1,
            Self::TooManySubscriptions => 0x97,
            // The client should try again, or elsewhere.
            Self::NoUpstream => 0x88,
            Self::RateExceeded => 0x96,
        }
    }
}

const fn denied_code(denied: &Denied) -> u8 {
    match denied {
        // The client should try again.
        Denied::PolicyUnknown => 0x88,
        Denied::ClientIdNotDevice { .. } | Denied::ClientIdNotRelay | Denied::BadClientId => 0x85,
        Denied::BadTopic(_) => 0x90,
        Denied::PayloadTooLarge { .. } => 0x97,
        Denied::Qos2 => 0x9b,
        Denied::Retain => 0x9a,
        Denied::Revoked { .. }
        | Denied::RoleWithoutTopics
        | Denied::OtherFleet { .. }
        | Denied::OtherDevice { .. }
        | Denied::NotMember { .. }
        | Denied::CoordinatorPublishes
        | Denied::DevicePublishes
        | Denied::CoordinatorSubscribes
        | Denied::DeviceSubscribes => 0x87,
    }
}

/// Why a connection that was let in has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Close {
    /// The client said goodbye.
    Left,
    /// The client is gone without a word.
    Vanished,
    /// The same client connected anew.
    TakenOver,
    /// The device was revoked.
    Revoked,
    /// The client does not take what is sent to it.
    SlowConsumer,
    /// Nothing heard for one and a half times the keep-alive.
    KeepAlive,
    /// The broker is stopping.
    ShuttingDown,
    /// The fan-out lost messages for it, or lost it.
    FanOutLost,
    /// What was meant for the client may have been lost on the way from the broker above.
    UpstreamLost,
    /// The client asked for something that ends the connection.
    Refused(Refusal),
}

impl Close {
    /// The reason's name in counters and logs; stable.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Vanished => "vanished",
            Self::TakenOver => "taken_over",
            Self::Revoked => "revoked",
            Self::SlowConsumer => "slow_consumer",
            Self::KeepAlive => "keep_alive",
            Self::ShuttingDown => "shutting_down",
            Self::FanOutLost => "fan_out_lost",
            Self::UpstreamLost => "upstream_lost",
            Self::Refused(refusal) => refusal.name(),
        }
    }

    /// What a DISCONNECT to an MQTT 5 client says; `None` when there is nobody to say it to.
    pub(crate) const fn reason_code(&self) -> Option<u8> {
        match self {
            Self::Left | Self::Vanished | Self::SlowConsumer => None,
            Self::TakenOver => Some(0x8e),
            Self::Revoked => Some(0x87),
            Self::KeepAlive => Some(0x8d),
            Self::ShuttingDown => Some(0x8b),
            Self::FanOutLost => Some(0x97),
            // Use another server, where there is one (MQTT 5 §4.13).
            Self::UpstreamLost => Some(0x9c),
            Self::Refused(refusal) => Some(refusal.reason_code()),
        }
    }
}

impl<T: Into<Refusal>> From<T> for Close {
    fn from(why: T) -> Self {
        Self::Refused(why.into())
    }
}
