//! What the settings say of those who ask to be let in: by which way they came, and as what.

use std::collections::BTreeMap;

use fleetkey_coordinator_core::Labels;
use fleetkey_coordinator_core::enrolment::Verdict;
use fleetkey_est::Way;

/// Verdict and labels, by the way in.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    /// For claims; a claim may ask for an operator besides.
    pub(crate) claims: Verdict,
    /// For each manufacturer that is trusted.
    pub(crate) manufacturers: BTreeMap<String, (Verdict, Labels)>,
}

impl Rules {
    /// What they say of this way. A manufacturer that no rule knows has no devices here.
    pub(crate) fn of(&self, way: &Way) -> (Verdict, Labels) {
        match way {
            Way::Claim { .. } => (self.claims, Labels::default()),
            Way::Manufacturer(mapped) => {
                let rule = self.manufacturers.get(&mapped.manufacturer);
                rule.cloned().unwrap_or((Verdict::Deny, Labels::default()))
            }
        }
    }
}
