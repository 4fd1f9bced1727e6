//! A few small worlds of every kind, in every test run. Many large ones are `just chaos` and `just hunt`.

use fleetkey_chaos::{Options, Outcome, Profile, minimise, plan_of, run};

fn options(profile: &str, seed: u64, devices: usize) -> Options {
    let profile = Profile::named(profile).expect("there is a profile of that name");
    Options { seed, profile, devices, only: None, calm_network: false }
}

fn holds(profile: &str, seeds: std::ops::Range<u64>, devices: usize) -> Vec<Outcome> {
    let run_one = |seed| {
        let options = options(profile, seed, devices);
        let outcome = run(&options);
        assert!(outcome.violation.is_none(), "{}\n{:?}", options.command_line(), outcome.violation);
        outcome
    };
    seeds.map(run_one).collect()
}

#[test]
fn in_a_calm_world_nothing_is_lost_and_nobody_is_quarantined() {
    for outcome in holds("calm", 1..4, 30) {
        let figures = outcome.figures;
        assert!(figures.confirmations > 0 && figures.rekeys > 0);
        assert_eq!((figures.quarantined, figures.superseded, figures.shed), (0, 0, 0));
        assert_eq!(figures.coordinator_starts, 1);
    }
}

#[test]
fn every_rule_holds_in_a_rough_world() {
    holds("rough", 1..4, 30);
}

#[test]
fn every_rule_holds_in_a_storm() {
    let outcomes = holds("storm", 1..6, 24);
    assert!(outcomes.iter().any(|outcome| outcome.figures.restores > 0), "some were restored");
}

#[test]
fn every_rule_holds_in_hell() {
    let outcomes = holds("hell", 1..10, 24);
    assert!(outcomes.iter().any(|outcome| outcome.figures.superseded > 0), "some had copies");
    assert!(outcomes.iter().any(|outcome| outcome.figures.lies > 0), "some had hostile devices");
}

/// The first seeds begin with a fleet at rest, the last with none.
#[test]
fn every_rule_holds_where_a_group_asks_for_a_pre_shared_key() {
    let outcomes = holds("guarded", 1..5, 30);
    let joins: u64 = outcomes.iter().filter_map(|outcome| outcome.figures.catch_ups.get("fresh_join")).sum();
    assert!(joins > 0, "somebody came back by an Add");
}

#[test]
fn after_a_power_cut_everybody_comes_back() {
    for outcome in holds("power-cut", 1..2, 100) {
        let figures = outcome.figures;
        assert!(figures.all_current_at > figures.power_back_at, "{figures:?}");
    }
}

#[test]
fn one_seed_is_one_schedule() {
    let schedules = |seed| run(&options("hell", seed, 16)).figures.schedule;
    assert_eq!(schedules(4), schedules(4));
    assert_eq!(schedules(5), schedules(5));
    assert_ne!(schedules(4), schedules(5));
}

#[test]
fn a_plan_is_a_plan_in_part() {
    let whole = options("hell", 7, 16);
    let acts = plan_of(&whole);
    let part = Options { only: Some(vec![0, 3]), ..whole };
    assert_eq!(plan_of(&part), [acts[0].clone(), acts[3].clone()]);
    assert_eq!(run(&part).figures.acts, 2);
    assert!(part.command_line().ends_with("--devices 16 --only 0,3"), "{}", part.command_line());
}

#[test]
fn what_did_not_fail_is_not_made_smaller() {
    let calm = options("calm", 1, 8);
    let outcome = run(&calm);
    let (same, _) = minimise(&calm, &outcome, |_| panic!("nothing fails"));
    assert_eq!(same, calm);
}
