//! The bound, through the program itself: small fleets, on every way that devices have to a coordinator.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

use std::fs;
use std::process::Command;

use serde_json::Value;

fn bound(more: &[&str]) -> Value {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("bound.json");
    let output = Command::new(env!("CARGO_BIN_EXE_fleetkey-sim"))
        .args(["bound", "--devices", "50", "--rounds", "2", "--cell-capacity", "16", "--json"])
        .arg(&json)
        .args(more)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap()
}

fn assert_measured(found: &Value) {
    assert_eq!(found["devices"], 50);
    for round in found["rekeys"].as_array().unwrap() {
        let times = &round["milliseconds"];
        assert!(times["max"].as_f64().unwrap() >= times["min"].as_f64().unwrap(), "{round}");
        assert!(times["min"].as_f64().unwrap() > 0.0, "{round}");
        assert!(round["broker_cpu_milliseconds"].as_f64().unwrap() > 0.0, "{round}");
    }
    assert_eq!(found["bare_milliseconds"].as_array().unwrap().len(), 2);
    let onboarding = &found["onboarding"];
    for part in ["coordinator", "broker", "devices_usage"] {
        assert!(onboarding[part]["cpu_microseconds"].as_u64().unwrap() > 0, "{onboarding}");
    }
}

#[test]
fn devices_on_connections_of_their_own_at_one_broker() {
    let found = bound(&[]);
    assert_measured(&found);
    assert_eq!((&found["connections"], &found["edges"]), (&50.into(), &0.into()));
}

#[test]
fn devices_on_gateways() {
    for more in [&["--edges", "0"][..], &["--edges", "2", "--tls"]] {
        let found = bound(&[&["--devices-per-connection", "8"], more].concat());
        assert_measured(&found);
        assert_eq!(found["connections"], 7);
    }
}

#[test]
fn devices_spread_over_edges_of_the_broker() {
    for more in [&["--edges", "3"][..], &["--edges", "2", "--tls"], &["--edges", "1", "--fan-out", "router"]]
    {
        let found = bound(more);
        assert_measured(&found);
        let edges: u64 = more[1].parse().unwrap();
        assert_eq!((&found["connections"], &found["edges"]), (&50.into(), &edges.into()));
    }
}
