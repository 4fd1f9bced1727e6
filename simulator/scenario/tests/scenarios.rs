//! The shipped scenarios, in virtual time with few devices: real cores, all checks.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

use fleetkey_report::RunReport;
use fleetkey_scenario::command::run_in_virtual_time;
use fleetkey_scenario::{SHIPPED, Scenario, Unwatched, shipped};

fn small(name: &str, devices: usize) -> Scenario {
    let mut scenario = Scenario::from_toml(shipped(name).unwrap()).unwrap();
    scenario.scale_to(devices);
    scenario
}

fn run(scenario: &Scenario, seed: u64) -> RunReport {
    run_in_virtual_time(scenario, seed, None, &mut Unwatched).unwrap()
}

fn passes(scenario: &Scenario) -> RunReport {
    let report = run(scenario, 1);
    let failed: Vec<_> = report.checks.iter().filter(|check| !check.held).collect();
    assert!(failed.is_empty() && !report.checks.is_empty(), "{failed:#?}");
    report
}

#[test]
fn every_shipped_scenario_is_one_and_bears_its_name() {
    for (name, text) in SHIPPED {
        let scenario = Scenario::from_toml(text).unwrap_or_else(|bad| panic!("{name}: {bad}"));
        assert_eq!(scenario.name, *name);
    }
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../scenarios")).unwrap();
    assert_eq!(files.count(), SHIPPED.len(), "a file in simulator/scenarios is not shipped");
}

#[test]
fn first_day_brings_everybody_in() {
    let report = passes(&small("first-day", 80));
    assert_eq!(report.phases[0].figures["members"].value, 80.0);
    // Each once for coming in, and again for keys of those that came after it.
    assert!(report.phases[0].latency.as_ref().unwrap().count() >= 80);
    assert_eq!(report.phases[2].figures["members"].value, 79.0);
}

#[test]
fn stolen_truck_moves_everybody_else_to_a_new_key() {
    let report = passes(&small("stolen-truck", 100));
    let stolen = &report.phases[2];
    assert_eq!(stolen.figures["members"].value, 97.0);
    assert_eq!(stolen.latency.as_ref().unwrap().count(), 97);
    assert_eq!(stolen.figures["exposure_count"].value, 1.0);
}

#[test]
fn power_cut_ends_with_everybody_current() {
    let report = passes(&small("power-cut", 60));
    // Each once: what it missed it was due to hold when it was back.
    assert_eq!(report.phases[1].latency.as_ref().unwrap().count(), 60);
    assert_eq!(report.phases[1].figures["key_age_count"].value, 1.0);
    assert!(report.notes.iter().any(|note| note.contains("reconnect_ratio_at_most")), "{:?}", report.notes);
    assert_eq!(report.phases[3].latency.as_ref().unwrap().count(), 60);
}

#[test]
fn bad_cellular_gets_keys_through() {
    passes(&small("bad-cellular", 60));
}

#[test]
fn steady_year_renews_keys_week_by_week() {
    let mut scenario = small("steady-year", 20);
    // A replacement now and then, also in a small fleet.
    for phase in &mut scenario.phases {
        if let fleetkey_scenario::Act::Churn { joins, leaves, revocations, lasts } = &mut phase.act {
            let day = 86_400.0;
            (*joins, *leaves, *revocations) = (0.2 / day, 0.1 / day, 0.1 / day);
            *lasts = std::time::Duration::from_secs(60 * 86_400);
        }
    }
    let report = passes(&scenario);
    let year = &report.phases[1].figures;
    assert!(year["key_age_count"].value >= 8.0, "{year:#?}");
    assert!(year["exposure_count"].value >= 1.0, "{year:#?}");
    assert!(year["bytes_per_device_and_day"].value > 0.0, "{year:#?}");
}

#[test]
fn post_quantum_brings_everybody_in_with_x_wing_and_the_revoked_out() {
    let report = passes(&small("post-quantum", 60));
    assert!(report.shape.suite.contains("xwing"), "{:?}", report.shape);
    assert_eq!(report.phases[0].figures["members"].value, 60.0);
    assert_eq!(report.phases[1].figures["members"].value, 59.0);
    assert_eq!(report.phases[1].latency.as_ref().unwrap().count(), 59);
}

#[test]
fn a_target_that_is_missed_fails() {
    let mut scenario = small("stolen-truck", 70);
    for phase in &mut scenario.phases {
        phase.targets.exposure_at_most =
            phase.targets.exposure_at_most.map(|_| std::time::Duration::from_millis(1));
    }
    let report = run(&scenario, 1);
    assert!(!report.passed());
    let failed: Vec<_> = report.checks.iter().filter(|check| !check.held).map(|check| &check.claim).collect();
    assert_eq!(failed.len(), 2, "{failed:#?}");
}

/// Without what the machine has spent on it.
fn without_the_machine(mut report: RunReport) -> RunReport {
    (report.began_unix_seconds, report.seconds) = (0, 0.0);
    for phase in &mut report.phases {
        phase.figures.retain(|name, _| !name.ends_with("_cpu") && name != "memory");
    }
    report.checks.iter_mut().filter(|check| check.claim.contains("CPU")).for_each(|check| check.seen.clear());
    report
}

#[test]
fn one_seed_is_one_run_and_another_seed_is_another() {
    let scenario = small("bad-cellular", 15);
    let [first, second, other] = [7, 7, 8].map(|seed| without_the_machine(run(&scenario, seed)));
    assert_eq!(first, second);
    assert_ne!(first.phases, other.phases);
}
