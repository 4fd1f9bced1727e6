//! Why an applicant was not let in, by name.

use fleetkey_wire::DeviceId;
use fleetkey_wire::error::Named;
use fleetkey_wire::keys::BadPeerKey;

use crate::records::ClaimId;

/// An application that was refused. Nothing has changed but a counter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnrolRefused {
    /// A claim that is not there, or not with this secret. Which of the two is not told.
    #[error("no such claim, or not with this secret")]
    UnknownClaim,
    /// The claim's time is over.
    #[error("claim {claim} has expired: ask for a new one")]
    ClaimExpired {
        /// The claim.
        claim: ClaimId,
    },
    /// The claim has let in as many devices as it may.
    #[error("claim {claim} has been used up: ask for a new one")]
    ClaimUsedUp {
        /// The claim.
        claim: ClaimId,
    },
    /// The identity has ended.
    #[error("device {device} is revoked, for ever: it needs a new key and a new identity")]
    Revoked {
        /// The device.
        device: DeviceId,
    },
    /// The identity belongs to another key.
    #[error("device {device} is enrolled with another key")]
    OtherKey {
        /// The device.
        device: DeviceId,
    },
    /// The key belongs to a device that came in another way.
    #[error("this key is enrolled already, in another way: make a new one")]
    KeyInUse,
    /// The key is none to agree a secret with.
    #[error("this key cannot be used: {why}")]
    BadKey {
        /// What is wrong with it.
        why: BadPeerKey,
    },
    /// A rule says no.
    #[error("a rule of this fleet does not let it in")]
    DeniedByRule,
    /// An operator said no.
    #[error("an operator did not let {device} in")]
    DeniedByOperator {
        /// The id that it would have had.
        device: DeviceId,
    },
    /// This coordinator is a copy, or was rolled back: what it counted would count twice.
    #[error("this coordinator lets nobody in until it is restored: ask again later")]
    Superseded,
    /// As many wait for an operator's word as may.
    #[error("too many wait for an operator's word: ask again later")]
    TooManyWait,
}

impl Named for EnrolRefused {
    fn name(&self) -> &'static str {
        match self {
            Self::UnknownClaim => "unknown_claim",
            Self::ClaimExpired { .. } => "claim_expired",
            Self::ClaimUsedUp { .. } => "claim_used_up",
            Self::Revoked { .. } => "revoked_device",
            Self::OtherKey { .. } => "other_key",
            Self::KeyInUse => "key_in_use",
            Self::BadKey { .. } => "bad_key",
            Self::DeniedByRule => "denied_by_rule",
            Self::DeniedByOperator { .. } => "denied_by_operator",
            Self::Superseded => "superseded",
            Self::TooManyWait => "too_many_wait",
        }
    }
}
