//! Why a broker was told no: one variant for each reason, each with a stable name for counters.

use fleetkey_policy::Denied;

/// Why something is denied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The policy says no.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The coordinator has not been heard for too long: a revocation may have been missed.
    #[error("the policy is too old: the coordinator has not been heard for {silence_seconds} s")]
    PolicyStale {
        /// For how long.
        silence_seconds: u64,
    },
    /// The common name is no party's.
    #[error("the common name is that of no party of a fleet")]
    UnknownName,
    /// Clients are known by their certificates: whoever says a name and a password has chosen the name.
    #[error("passwords are not accepted: clients are known by their certificates")]
    Password,
    /// Something of the broker's that is none of the fleet's business.
    #[error("no party of a fleet has any use for it")]
    UnknownResource,
    /// The question cannot be read.
    #[error("the request cannot be read: {what}")]
    BadRequest {
        /// What is wrong.
        what: String,
    },
    /// There is nothing to ask there.
    #[error("there is no such path")]
    UnknownPath,
}

impl Refused {
    /// The reason's name in counters and logs; stable.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Denied(denied) => denied.name(),
            Self::PolicyStale { .. } => "policy_stale",
            Self::UnknownName => "unknown_name",
            Self::Password => "password",
            Self::UnknownResource => "unknown_resource",
            Self::BadRequest { .. } => "bad_request",
            Self::UnknownPath => "unknown_path",
        }
    }
}
