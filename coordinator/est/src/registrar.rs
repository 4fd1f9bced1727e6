//! What the server asks of whoever decides, and what it is told.

use std::future::Future;
use std::time::Duration;

use axum::body::Bytes;
use fleetkey_identity::{Identity, SigningRequest};
use fleetkey_wire::FleetId;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::manufacturers::Mapped;

/// What speaks for whoever asks for its first certificate.
#[derive(Debug)]
pub enum Way {
    /// The user and the password of HTTP's basic authentication (RFC 7617): a claim's id and its secret.
    Claim {
        /// The id.
        user: String,
        /// The secret.
        password: Zeroizing<String>,
    },
    /// A certificate of a manufacturer's, which TLS has verified.
    Manufacturer(Mapped),
}

/// Somebody who asks for its first certificate.
#[derive(Debug)]
pub struct Applicant {
    /// The key, and what it calls itself.
    pub request: SigningRequest,
    /// What speaks for it.
    pub way: Way,
}

/// What a registrar says to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A certificate chain (DER), leaf first.
    Issued(Vec<Vec<u8>>),
    /// An operator has not decided yet: ask again after so long.
    Waits(Duration),
}

/// Why a registrar says no. The name is stable, for counters; the words are for whoever asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// What was shown opens nothing: 401.
    Unauthorized {
        /// The reason's name.
        name: &'static str,
        /// The reason.
        why: String,
    },
    /// It is known who asks, and the answer is no: 403.
    Forbidden {
        /// The reason's name.
        name: &'static str,
        /// The reason.
        why: String,
    },
    /// The request makes no sense: 400.
    BadRequest {
        /// The reason's name.
        name: &'static str,
        /// The reason.
        why: String,
    },
    /// Not now: 503, and when to ask again.
    Unavailable {
        /// The reason's name.
        name: &'static str,
        /// The reason.
        why: String,
        /// When to ask again.
        retry_after: Duration,
    },
}

impl Refusal {
    /// The reason's name.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Unauthorized { name, .. }
            | Self::Forbidden { name, .. }
            | Self::BadRequest { name, .. }
            | Self::Unavailable { name, .. } => name,
        }
    }
}

/// What a device has to know besides its certificate. None of it is secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct About {
    /// The fleet.
    pub fleet: FleetId,
    /// Where its broker is.
    pub broker: String,
    /// The coordinator's certificate chain, PEM, leaf first.
    pub coordinator_certificate: String,
    /// The fleet's roots, PEM.
    pub fleet_roots: String,
}

/// Decides who is let in, stores it, and then issues.
pub trait Registrar: Send + Sync + 'static {
    /// The CA certificates (DER) that devices are to know: pinned roots, and intermediates.
    fn ca_certificates(&self) -> Vec<Vec<u8>>;

    /// The newest revocation list (DER).
    fn revocation_list(&self) -> Option<Bytes>;

    /// The newest revocation list (DER) of the CA with this id.
    fn revocation_list_of(&self, ca: &str) -> Option<Bytes>;

    /// What a device has to know besides its certificate, as JSON: see [`About`].
    fn about(&self) -> About;

    /// A first certificate.
    fn enrol(&self, applicant: Applicant) -> impl Future<Output = Result<Answer, Refusal>> + Send;

    /// A later certificate for a device that has shown the one it has, over a connection that it made with its key.
    fn reenrol(
        &self,
        device: Identity,
        request: SigningRequest,
    ) -> impl Future<Output = Result<Answer, Refusal>> + Send;
}
