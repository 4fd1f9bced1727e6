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

const fn world(name: &'static str, profile: &'static str, seed: u64, devices: usize) -> Named {
    Named { name, profile, seed, devices }
}

/// All of them.
pub const NAMED: &[Named] = &[
    world("a_joiner_gets_no_older_secret", "hell", 3, 200),
    world("a_leave_that_is_said_again_counts_once", "hell", 101, 200),
    world("a_member_cannot_wrap_a_secret_of_its_own", "hell", 14, 200),
    world("a_frame_is_applied_whole_or_not_at_all", "hell", 12, 200),
    world("an_abandoned_key_epoch_is_never_issued_again", "hell", 2, 200),
    world("a_device_that_goes_back_is_seen", "hell", 9, 200),
    world("onboarding_under_every_fault", "hell", 4, 200),
    world("chance_without_malice", "storm", 12, 200),
    world("a_bad_week_on_cellular_links", "rough", 7, 200),
    world("nothing_goes_wrong", "calm", 9, 200),
    world("a_power_cut_of_a_thousand", "power-cut", 1, 1_000),
];

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
