//! A hundred rounds of SIGKILL, or fewer: FLEETKEY_KILLS_ROUNDS, FLEETKEY_KILLS_AGENTS, FLEETKEY_KILLS_SEED.

use anyhow::{Context, Result};
use fleetkey_kills::rounds::{Plan, Rounds};
use fleetkey_kills::setting;

#[test]
fn every_rule_holds_through_kills() -> Result<()> {
    let plan = Plan {
        rounds: usize::try_from(setting("FLEETKEY_KILLS_ROUNDS", 2))?,
        agents: usize::try_from(setting("FLEETKEY_KILLS_AGENTS", 10))?,
        seed: setting("FLEETKEY_KILLS_SEED", 1),
    };
    eprintln!(
        "FLEETKEY_KILLS_SEED={} FLEETKEY_KILLS_ROUNDS={} FLEETKEY_KILLS_AGENTS={}",
        plan.seed, plan.rounds, plan.agents
    );
    let mut rounds = Rounds::begin(plan)?;
    let outcome = all(&mut rounds, plan.rounds).with_context(|| format!("seed {}", plan.seed));
    if outcome.is_err() {
        rounds.fleet.keep();
    }
    outcome
}

fn all(rounds: &mut Rounds, count: usize) -> Result<()> {
    for number in 0..count {
        rounds.round(number)?;
    }
    rounds.finish().context("the end")
}
