//! Why somebody was not let in, or a connection ended: one name for each reason, in counters and logs.

use fleetkey_door::addresses::TooManyFromAddress;
use fleetkey_door::papers::BadPapers;
use fleetkey_policy::Denied;

/// Why a connection, or one thing asked for on it, was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The policy says no.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// No room.
    #[error("too many connections")]
    TooManyConnections,
    /// No room for one more from there.
    #[error(transparent)]
    TooManyFromAddress(#[from] TooManyFromAddress),
    /// The TLS handshake failed.
    #[error("TLS handshake failed")]
    TlsHandshake,
    /// The TLS handshake took too long.
    #[error("TLS handshake took too long")]
    TlsTimeout,
    /// No CONNECT came in time.
    #[error("no CONNECT in time")]
    ConnectTimeout,
    /// No papers of the fleet.
    #[error(transparent)]
    BadPapers(#[from] BadPapers),
    /// The certificate is on the CRL.
    #[error("certificate is revoked")]
    RevokedCertificate,
    /// Somebody on this machine who did not come through the front.
    #[error("did not come through the front")]
    NotRelayed,
    /// Nothing is published on behalf of who is gone.
    #[error("wills are not supported")]
    Will,
    /// The certificate authenticates, nothing else.
    #[error("authentication methods are not supported")]
    AuthenticationMethod,
    /// A share of a subscription: every client is sent everything that it may have.
    #[error("shared subscriptions are not supported")]
    SharedSubscription,
    /// Longer than packets may be.
    #[error("packet is longer than {limit} bytes")]
    PacketTooLarge {
        /// The limit.
        limit: usize,
    },
    /// No packet of MQTT.
    #[error("not a packet of MQTT")]
    Malformed,
    /// rmqtt does not take the connection.
    #[error("rmqtt does not take the connection")]
    Inner,
}

impl Refusal {
    /// The reason's name in counters and logs; stable.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Denied(denied) => denied.name(),
            Self::TooManyConnections => "too_many_connections",
            Self::TooManyFromAddress(TooManyFromAddress) => "too_many_from_address",
            Self::TlsHandshake => "tls_handshake",
            Self::TlsTimeout => "tls_timeout",
            Self::ConnectTimeout => "connect_timeout",
            Self::BadPapers(BadPapers::BadCertificate) => "bad_certificate",
            Self::BadPapers(BadPapers::OtherFleet { .. }) => "other_fleet",
            Self::RevokedCertificate => "revoked_certificate",
            Self::NotRelayed => "not_relayed",
            Self::Will => "will",
            Self::AuthenticationMethod => "authentication_method",
            Self::SharedSubscription => "shared_subscription",
            Self::PacketTooLarge { .. } => "packet_too_large",
            Self::Malformed => "malformed",
            Self::Inner => "inner",
        }
    }
}

/// Why a connection that was let in has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Close {
    /// The client is gone, with or without goodbye.
    Left,
    /// rmqtt ended it: a takeover, a keep-alive that ran out, a refusal.
    Inner,
    /// The device was revoked.
    Revoked,
    /// The certificate was put on the CRL.
    RevokedCertificate,
    /// The certificate was good when the client connected.
    ExpiredCertificate,
    /// The client does not take what is sent to it.
    SlowConsumer,
    /// More than a device may say, for too long.
    RateExceeded,
    /// The node is stopping.
    ShuttingDown,
    /// The client said something that ends the connection.
    Refused(Refusal),
}

impl Close {
    /// The reason's name in counters and logs; stable.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Inner => "ended_by_rmqtt",
            Self::Revoked => "revoked",
            Self::RevokedCertificate => "revoked_certificate",
            Self::ExpiredCertificate => "expired_certificate",
            Self::SlowConsumer => "slow_consumer",
            Self::RateExceeded => "rate_exceeded",
            Self::ShuttingDown => "shutting_down",
            Self::Refused(refusal) => refusal.name(),
        }
    }
}

impl From<Refusal> for Close {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}
