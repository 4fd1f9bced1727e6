//! Worlds that are run each time: each is known to show a certain fault, should it come back.
//!
//! A plan is drawn from its seed by `plan.rs`, so changing that, or a profile, draws others: then the table is made anew
//! with `mutants/run.sh`, which says which seed finds which planted bug.

use crate::profile::Profile;
use crate::run::Options;

/// A world with a name.
#[derive(Debug, Clone, Copy)]
pub struct Named {
    /// What it is known for.
    pub name: &'static str,
    profile: &'static str,
    seed: u64,
    devices: usize,
}

const fn hell(name: &'static str, seed: u64) -> Named {
    Named { name, profile: "hell", seed, devices: 200 }
}

/// All of them.
pub const NAMED: &[Named] =
    &[hell("onboarding_under_every_fault", 4), hell("restored_from_an_old_backup", 8)];

impl Named {
    /// What to run.
    ///
    /// # Panics
    /// Never: its profile is one of those that there are, which a test checks.
    pub fn options(&self) -> Options {
        let profile = Profile::named(self.profile).expect("a named world has a profile that there is");
        Options { seed: self.seed, profile, devices: self.devices, only: None, calm_network: false }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_named_world_can_be_run_and_has_a_name_of_its_own() {
        let names: BTreeSet<_> = NAMED.iter().map(|named| named.name).collect();
        assert_eq!(names.len(), NAMED.len());
        for named in NAMED {
            assert_eq!(named.options().profile.name, named.profile);
        }
    }
}
