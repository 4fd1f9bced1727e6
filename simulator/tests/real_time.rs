//! Scenarios in real time: the program itself, with its broker and its devices in processes of their own.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

use std::fs;
use std::process::{Command, Output};

use fleetkey_report::{Connections, Mode, RunReport};
use tempfile::TempDir;

/// Everything that there is in real time, on a small fleet.
const SCENARIO: &str = r#"
name = "everything"
about = "Each kind of phase, one after the other."

[fleet]
devices = 60

[[group]]
name = "meters"
cell_capacity = 16

[network]
min_delay = "5ms"
max_delay = "9ms"

[[phase]]
do = "onboard"
rate = "200/s"
current_within = "30s"

[[phase]]
name = "revoke"
do = "revoke"
count = 4
which = "spread"
current_within = "20s"
exposure_at_most = "20s"

[[phase]]
name = "rekey"
do = "rekey"
current_within = "20s"

[[phase]]
name = "rotate"
do = "rotate"
current_within = "20s"

[[phase]]
name = "cut"
do = "power-cut"
share = "50%"
for = "500ms"
meanwhile = "rekey"
current_within = "30s"
reconnect_ratio_at_most = 1000

[[phase]]
name = "broker"
do = "restart-broker"
away = "500ms"
current_within = "60s"

[[phase]]
name = "after"
do = "rekey"
current_within = "20s"
"#;

fn run(directory: &TempDir, scenario: &str, more: &[&str]) -> Output {
    let file = directory.path().join("scenario.toml");
    fs::write(&file, scenario).unwrap();
    Command::new(env!("CARGO_BIN_EXE_fleetkey-sim")).arg("run").arg(&file).args(more).output().unwrap()
}

#[test]
fn a_fleet_goes_through_every_kind_of_phase_in_real_time() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (json, html, shape) = (file("run.json"), file("run.html"), file("shape.json"));
    let output = run(&directory, SCENARIO, &["--json", &json, "--html", &html, "--shape", &shape]);
    let (told, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}\n{said}");
    assert!(said.contains("ok revoke") && said.contains("checks held"), "{said}");
    assert!(told.contains("[network] was not applied"), "{told}");
    a_twin_is_held_against_it(&directory, &shape, &json);

    let report: RunReport = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    assert_went_well(&report);
    assert!(fs::read_to_string(html).unwrap().contains("every device current within"));
}

#[test]
fn the_same_fleet_goes_through_it_behind_edges_of_the_broker() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("run.json").to_str().unwrap().to_owned();
    let output = run(&directory, SCENARIO, &["--edges", "2", "--tls", "--json", &json]);
    let (told, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}\n{said}");
    assert_went_well(&serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap());
}

#[test]
fn the_shipped_post_quantum_scenario_holds_in_real_time() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("run.json").to_str().unwrap().to_owned();
    let arguments = ["run", "post-quantum", "--devices", "60", "--json", &json];
    let output = Command::new(env!("CARGO_BIN_EXE_fleetkey-sim")).args(arguments).output().unwrap();
    let (told, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}\n{said}");
    let report: RunReport = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    assert!(report.passed() && !report.checks.is_empty());
    assert_eq!((report.mode, report.shape.suite.as_str()), (Mode::Real, "xwing-chacha20poly1305"));
    let lost = report.phases.iter().find(|phase| phase.name == "first-loss").unwrap();
    assert_eq!(lost.latency.as_ref().unwrap().count(), 59);
}

fn assert_went_well(report: &RunReport) {
    assert!(report.passed() && !report.checks.is_empty());
    assert_eq!((report.mode, report.connections), (Mode::Real, Connections::OnePerDevice));
    let phase = |name: &str| report.phases.iter().find(|phase| phase.name == name).unwrap();
    let heard = |name: &str| phase(name).latency.as_ref().map_or(0, fleetkey_report::Histogram::count);
    // Whoever is left confirms each key, and whoever was cut off is answered.
    // Those who are in already confirm again when the next are let in.
    assert!(heard("onboard") >= 60, "{}", heard("onboard"));
    for name in ["revoke", "rekey", "after", "broker"] {
        assert_eq!(heard(name), 56, "{name}");
    }
    // Half of them confirm while the others are away, and those when they are back.
    assert_eq!(heard("cut"), 56);
    let cut = |name: &str| phase("cut").figures[name].value;
    assert!(cut("reconnect") > 0.0 && cut("current_again") > 0.0, "{:#?}", phase("cut").figures);
    assert!((cut("reconnect_ratio") - cut("current_again") / cut("reconnect")).abs() < 1e-9);
    assert!(report.checks.iter().any(|check| check.claim.starts_with("cut: all current again")));
    for (name, phase) in report.phases.iter().map(|phase| (&phase.name, phase)) {
        let figure = |figure: &str| phase.figures[figure].value;
        assert_eq!(figure("stragglers"), 0.0, "{name}");
        assert!(figure("device_cpu") > 0.0 && figure("broker_cpu") > 0.0, "{name}");
    }
    // Each member has received the statement, and nothing much else.
    let bytes = phase("rekey").bytes_per_device.as_ref().unwrap();
    assert_eq!(bytes.count(), 56);
    assert!((100..8_000).contains(&bytes.quantile(0.5)), "{bytes:?}");
}

/// The shape was written before the revocation, and the run has shown what came of it.
fn a_twin_is_held_against_it(directory: &TempDir, shape: &str, against: &str) {
    let json = directory.path().join("twin.json");
    let output = Command::new(env!("CARGO_BIN_EXE_fleetkey-sim"))
        .args(["twin", "--from", shape, "--revoke", "4", "--min-delay", "1ms", "--max-delay", "1ms"])
        .args(["--one-machine", "--against", against, "--json", json.to_str().unwrap()])
        .output()
        .unwrap();
    let (told, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}\n{said}");
    assert!(told.contains("Held against phase revoke"), "{told}");
    let both: serde_json::Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    assert_eq!((both["revoked"].as_u64(), both["remaining"].as_u64()), (Some(4), Some(56)));
    let line = |what: &str| {
        let lines = both["held"]["lines"].as_array().unwrap();
        let line = lines.iter().find(|line| line["what"] == what).unwrap();
        (line["predicted"].as_f64().unwrap(), line["happened"].as_f64().unwrap())
    };
    assert_eq!(line("stragglers"), (0.0, 0.0));
    let (predicted, happened) = line("to any, at most");
    assert!(predicted > 0.0 && (0.5..2.0).contains(&(happened / predicted)), "{told}");
    let (predicted, happened) = line("the last in reach");
    assert!(predicted > 0.0 && happened > 0.0, "{told}");
}

#[test]
fn a_power_cut_that_takes_too_many_times_a_mere_reconnect_fails() {
    let directory = tempfile::tempdir().unwrap();
    let scenario = SCENARIO.split("[[phase]]").next().unwrap().replace("devices = 60", "devices = 20")
        + "[[phase]]\ndo = \"onboard\"\n[[phase]]\ndo = \"power-cut\"\nshare = \"100%\"\nfor = \"100ms\"\n"
        + "reconnect_ratio_at_most = 0.001\n";
    let output = run(&directory, &scenario, &[]);
    let (told, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{told}\n{said}");
    assert!(told.contains("all current again in at most 0.001 times a mere reconnect"), "{told}");
    assert!(told.contains("reconnect ratio"), "{told}");
}

#[test]
fn what_is_simulated_only_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let network = format!("{SCENARIO}\n[[phase]]\nname = \"worse\"\ndo = \"network\"\nloss = \"5%\"\n");
    let output = run(&directory, &network, &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("phase worse changes the network"), "{said}");
    let output = run(&directory, SCENARIO, &["--broker", "mqtt://127.0.0.1:1"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("phase broker restarts the broker"), "{said}");
}
