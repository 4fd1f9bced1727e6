//! The coordinator alone: the program itself, on small fleets.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;

fn coordinator(more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fleetkey-sim")).arg("coordinator").args(more).output().unwrap()
}

#[test]
fn a_coordinator_onboards_revokes_and_starts_again_on_what_it_stored() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("alone.json");
    let output =
        coordinator(&["--devices", "700,1300", "--revocations", "3", "--json", json.to_str().unwrap()]);
    let told = String::from_utf8_lossy(&output.stdout);
    let found: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    let sizes = found["sizes"].as_array().unwrap();
    assert_eq!(sizes.len(), 2, "{told}");
    for (size, devices) in sizes.iter().zip([700_u64, 1_300]) {
        assert_eq!(size["devices"], devices);
        let cells = size["cells"].as_u64().unwrap();
        assert!((devices / 64..devices / 16).contains(&cells), "{size}");
        for (what, has_commit) in [("rekey", false), ("revocation", true)] {
            let costs = &size[what];
            // One message for each cell, and nothing else.
            assert_eq!(costs["messages"].as_u64().unwrap(), cells, "{what}: {size}");
            assert!((200..=300).contains(&costs["outside_bytes"].as_u64().unwrap()), "{what}: {size}");
            let inside = costs["inside_bytes"].as_u64().unwrap();
            assert!(
                if has_commit { (3_000..=7_000).contains(&inside) } else { inside == 0 },
                "{what}: {size}"
            );
            assert!(costs["cpu"].as_f64().unwrap() > 0.0, "{what}: {size}");
        }
        assert!(size["resident_bytes_per_device"].as_f64().unwrap() > 500.0, "{size}");
        assert!(size["database_bytes"].as_u64().unwrap() > devices * 500, "{size}");
    }
    let checks = found["checks"].as_array().unwrap();
    let all_held = checks.iter().all(|check| check["held"] == true);
    assert_eq!(output.status.code(), Some(i32::from(!all_held)), "{told}");
    // Bytes do not depend on the machine, nor on how this was built.
    assert!(checks.iter().filter(|check| check["claim"].as_str().unwrap().contains(" B to")).count() == 4);
    assert!(
        checks
            .iter()
            .all(|check| !check["claim"].as_str().unwrap().contains(" B to") || check["held"] == true)
    );
    assert!(told.contains("counted up, not measured"), "{told}");
}
