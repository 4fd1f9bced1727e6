//! Who the certificate of a connection says it is, and how long that holds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleetkey_identity::{Identity, IssuerAndSerial, Role};
use fleetkey_policy::Party;
use fleetkey_wire::FleetId;
use rustls::pki_types::CertificateDer;
use tokio::time::Instant;

/// Who is at the other end, and how long that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Papers {
    /// Who it is.
    pub party: Party,
    /// The certificate, to be looked for on the CRL; `None` for who was believed without one.
    pub certificate: Option<IssuerAndSerial>,
    /// When the certificate ends.
    pub not_after_unix_seconds: Option<i64>,
}

/// Why papers open no door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPapers {
    /// The certificate is none of the fleet's profile.
    #[error("certificate names no party of a fleet")]
    BadCertificate,
    /// It is another fleet's.
    #[error("certificate is one of fleet {fleet}")]
    OtherFleet {
        /// The fleet that it names.
        fleet: FleetId,
    },
}

impl Papers {
    /// Who the certificate says it is; the handshake has checked that it may say so.
    ///
    /// # Errors
    /// [`BadPapers`].
    pub fn read(certificates: Option<&[CertificateDer<'_>]>, own: FleetId) -> Result<Self, BadPapers> {
        let Identity { fleet, role, issuer, serial, not_after_unix_seconds, .. } =
            fleetkey_identity::tls::peer_identity(certificates).map_err(|_| BadPapers::BadCertificate)?;
        if fleet != own {
            return Err(BadPapers::OtherFleet { fleet });
        }
        let party = match role {
            Role::Coordinator { .. } => Party::Coordinator,
            Role::Broker => Party::Broker,
            // Neither has any business here.
            Role::Registrar | Role::Operator { .. } => Party::Operator,
            Role::Device(device) => Party::Device(device),
        };
        let not_after_unix_seconds = Some(not_after_unix_seconds);
        Ok(Self { party, certificate: Some(IssuerAndSerial { issuer, serial }), not_after_unix_seconds })
    }

    /// When a session that begins now has to end, for its certificate does.
    pub fn expiry(&self) -> Option<Instant> {
        let not_after = Duration::from_secs(self.not_after_unix_seconds?.max(0).unsigned_abs());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Instant::now().checked_add(not_after.saturating_sub(now))
    }
}
