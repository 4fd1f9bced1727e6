//! Claims: pre-shared secrets that let devices in, kept as digests alone.

use std::str::FromStr;

use fleetkey_wire::Now;
use rand_core::CryptoRngCore;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::refused::EnrolRefused;
use super::{MAX_CLAIMS, Proof};
use crate::coordinator::Coordinator;
use crate::error::CommandError;
use crate::labels::Labels;
use crate::records::{ClaimId, ClaimRecord, Origin};
use crate::secret::ShownSecret;

/// Longest note, in bytes.
const MAX_NOTE_BYTES: usize = 256;

/// What a claim's holder keeps.
pub type ClaimSecret = ShownSecret;

/// A claim as it is shown: `id:secret`, both in hex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownClaim {
    /// Which.
    pub id: ClaimId,
    /// What opens it.
    pub secret: ClaimSecret,
}

/// A text that is no claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a claim: 16 hex digits, a colon, 64 hex digits")]
pub struct BadShownClaim;

impl ShownClaim {
    /// Reads the two parts.
    ///
    /// # Errors
    /// [`BadShownClaim`].
    pub fn of_parts(id: &str, secret: &str) -> Result<Self, BadShownClaim> {
        let id = id.parse().map_err(|_| BadShownClaim)?;
        let secret = secret.parse().map_err(|_| BadShownClaim)?;
        Ok(Self { id, secret })
    }

    /// As it is handed out: with this, whoever holds it is let in.
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}:{}", self.id, *self.secret.reveal()))
    }
}

impl FromStr for ShownClaim {
    type Err = BadShownClaim;

    fn from_str(text: &str) -> Result<Self, BadShownClaim> {
        let (id, secret) = text.trim().split_once(':').ok_or(BadShownClaim)?;
        Self::of_parts(id, secret)
    }
}

/// What a new claim is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimTerms {
    /// For people: what it is for.
    pub note: String,
    /// How many devices it lets in.
    pub uses: u32,
    /// Its last second.
    pub expires_unix_seconds: u64,
    /// What those devices are labelled with.
    pub labels: Labels,
    /// Whether each of them waits for an operator's word.
    pub needs_approval: bool,
}

impl Coordinator {
    /// Makes a claim. Its secret is in the answer, and nowhere else ever after.
    ///
    /// # Errors
    /// [`CommandError::BadClaim`], [`CommandError::TooManyClaims`].
    pub fn create_claim(
        &mut self,
        terms: ClaimTerms,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<ShownClaim, CommandError> {
        self.check_issuing()?;
        let ClaimTerms { note, uses, expires_unix_seconds, labels, needs_approval } = terms;
        let bad = |why| Err(CommandError::BadClaim(why));
        if uses == 0 {
            return bad("it would let nobody in: at least one use");
        }
        if expires_unix_seconds <= now.unix_seconds {
            return bad("it would have expired already");
        }
        if note.len() > MAX_NOTE_BYTES || note.chars().any(char::is_control) {
            return bad("its note has at most 256 bytes, and no control characters");
        }
        self.check_labels(&labels)?;
        self.sweep_claims(now);
        if self.desk.claims.len() >= MAX_CLAIMS {
            return Err(CommandError::TooManyClaims);
        }
        let secret = ClaimSecret::random(rng);
        let record = ClaimRecord {
            id: ClaimId::random(rng),
            note,
            secret_digest: secret.digest(),
            created_unix_seconds: now.unix_seconds,
            expires_unix_seconds,
            uses,
            used: 0,
            labels,
            needs_approval,
        };
        let id = record.id;
        self.context.put(&record);
        self.context.audit(now, "create_claim", id, format!("{uses} uses"));
        self.desk.claims.insert(id, record);
        Ok(ShownClaim { id, secret })
    }

    /// Ends a claim. Devices that it let in stay.
    ///
    /// # Errors
    /// [`CommandError::UnknownClaim`].
    pub fn end_claim(&mut self, id: ClaimId, now: Now) -> Result<(), CommandError> {
        self.check_labels(&self.desk.claims.get(&id).ok_or(CommandError::UnknownClaim(id))?.labels)?;
        let claim = self.desk.claims.remove(&id).ok_or(CommandError::UnknownClaim(id))?;
        self.context.delete(&claim);
        self.context.audit(now, "end_claim", id, format!("{} of {} used", claim.used, claim.uses));
        Ok(())
    }

    /// Every claim that has not ended.
    pub fn claims(&self) -> impl Iterator<Item = &ClaimRecord> {
        self.desk.claims.values()
    }

    /// Whoever showed this: a claim's secret is checked here, its terms are not.
    pub(super) fn origin_of(&self, proof: &Proof) -> Result<Origin, EnrolRefused> {
        match proof {
            Proof::Manufacturer { manufacturer, .. } => {
                Ok(Origin::Manufacturer { manufacturer: manufacturer.clone() })
            }
            Proof::Claim(shown) => {
                let shown_digest = shown.secret.digest();
                let claim = self.desk.claims.get(&shown.id);
                // As much work for a claim that is not there.
                let kept = claim.map_or([0; 32], |claim| claim.secret_digest);
                let opens: bool = kept.ct_eq(&shown_digest).into();
                if opens && claim.is_some() {
                    Ok(Origin::Claim(shown.id))
                } else {
                    Err(EnrolRefused::UnknownClaim)
                }
            }
        }
    }

    /// Whether the claim lets one more in; and whether an operator has to say so, too.
    pub(super) fn open_claim(&self, proof: &Proof, now: Now) -> Result<bool, EnrolRefused> {
        let Proof::Claim(shown) = proof else { return Ok(false) };
        let claim = self.desk.claims.get(&shown.id).ok_or(EnrolRefused::UnknownClaim)?;
        if claim.expires_unix_seconds < now.unix_seconds {
            return Err(EnrolRefused::ClaimExpired { claim: claim.id });
        }
        if claim.used >= claim.uses {
            return Err(EnrolRefused::ClaimUsedUp { claim: claim.id });
        }
        Ok(claim.needs_approval)
    }

    pub(super) fn claim_labels(&self, origin: &Origin) -> Labels {
        match origin {
            Origin::Claim(id) => {
                self.desk.claims.get(id).map(|claim| claim.labels.clone()).unwrap_or_default()
            }
            Origin::Operator | Origin::Manufacturer { .. } => Labels::default(),
        }
    }

    pub(super) fn use_claim(&mut self, origin: &Origin) {
        let Origin::Claim(id) = origin else { return };
        if let Some(claim) = self.desk.claims.get_mut(id) {
            claim.used += 1;
            self.context.put(claim);
        }
    }

    pub(super) fn give_claim_back(&mut self, origin: &Origin) {
        let Origin::Claim(id) = origin else { return };
        if let Some(claim) = self.desk.claims.get_mut(id) {
            claim.used = claim.used.saturating_sub(1);
            self.context.put(claim);
        }
    }

    /// Claims that expired a month ago are of no use to anybody, not even to a device that asks again.
    fn sweep_claims(&mut self, now: Now) {
        const MONTH_SECONDS: u64 = 30 * 86_400;
        let is_over =
            |claim: &ClaimRecord| claim.expires_unix_seconds.saturating_add(MONTH_SECONDS) < now.unix_seconds;
        let over: Vec<ClaimId> =
            self.desk.claims.values().filter(|claim| is_over(claim)).map(|claim| claim.id).collect();
        for id in over {
            if let Some(claim) = self.desk.claims.remove(&id) {
                self.context.delete(&claim);
            }
        }
    }
}
