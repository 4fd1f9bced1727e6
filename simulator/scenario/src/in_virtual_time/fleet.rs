//! Who everybody is: a fleet, its CA and its coordinator, from a seed.

use fleetkey_coordinator_core::{OnJoin, Policy, Setup, Timing};
use fleetkey_identity::{FleetCa, FleetRoots, IdentityKey, Role, Validity};
use fleetkey_wire::{FleetId, Generation, KeyId};

use super::device::{Bundle, START_UNIX_SECONDS};
use crate::dice::Dice;
use crate::scenario::{Group, Scenario};

/// What devices are given, and what the coordinator begins with.
pub(super) fn found(scenario: &Scenario, seed: u64) -> anyhow::Result<(Bundle, Setup)> {
    let mut dice = Dice::of(seed, "fleet", 0);
    let fleet = FleetId::random(dice.rng());
    let validity = Validity::without_end(START_UNIX_SECONDS as i64 - 60);
    let ca = FleetCa::create(fleet, dice.rng(), validity)?;
    let identity = IdentityKey::generate(dice.rng());
    let generation = Generation(1);
    let leaf = ca.issue(&Role::Coordinator { generation }, &identity.public_key(), &[], validity)?;
    let roots = FleetRoots::new(&[ca.certificate_der().to_vec()])?;
    let timing = Timing {
        hello_interval_seconds: seconds(scenario.fleet.hello_interval.as_secs()),
        max_silence_seconds: seconds(scenario.fleet.max_silence.as_secs()),
        ..Timing::default()
    };
    let key_id = KeyId::of_certificate(&leaf);
    let setup = Setup { fleet, identity, chain: vec![leaf.clone()], generation, key_id, timing };
    Ok((Bundle { fleet, roots, coordinator_chain: vec![leaf] }, setup))
}

/// How a group is run.
pub fn policy(group: &Group) -> Policy {
    Policy {
        cell_capacity: group.cell_capacity,
        suite: group.suite,
        rekey_window_milliseconds: u32::try_from(group.join_window.as_millis()).unwrap_or(u32::MAX),
        overlap_seconds: seconds(group.overlap.as_secs()),
        rotation_interval_seconds: group.rotation.map_or(0, |time| time.as_secs()),
        rotation_deadline_seconds: group.rotation_deadline.as_secs(),
        cell_max_age_seconds: group.cell_max_age.as_secs(),
        on_join: if group.rekeys_on_join { OnJoin::Rekey } else { OnJoin::Next },
        ..Policy::default()
    }
}

fn seconds(seconds: u64) -> u32 {
    u32::try_from(seconds).unwrap_or(u32::MAX)
}
