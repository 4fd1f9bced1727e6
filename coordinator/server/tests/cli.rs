//! The `fleetkey` command as operators use it: real processes, real files, a real port.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

mod support;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use fleetkey_identity::{FleetCa, FleetRoots, IdentityKey, Role, chain_from_pem};
use fleetkey_vault::MasterKey;
use serde_json::Value;
use support::*;

#[test]
fn init_makes_a_fleet_that_is_its_owners_alone() {
    let home = Home::with_fleet();
    for file in files_below(&home.fleet()) {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    assert_eq!(mode(&home.fleet()), 0o700);
    assert_eq!(mode(&home.file("broker")), 0o700);

    let read = |name: &str| fs::read_to_string(home.file(name)).unwrap();
    let roots = FleetRoots::from_pem(&read("fleet-roots.pem")).unwrap();
    let (root, issuing) = (FleetCa::from_pem(&read("root-ca.pem")), FleetCa::from_pem(&read("ca.pem")));
    assert_eq!(roots.ders(), [root.unwrap().certificate_der().to_vec()]);
    let issuing = issuing.unwrap();
    assert!(!issuing.is_root());
    assert_eq!(issuing.fleet(), roots.fleet());
    for (name, is_role) in [
        ("coordinator", (|role| matches!(role, Role::Coordinator { .. })) as fn(&Role) -> bool),
        ("broker/broker", |role| *role == Role::Broker),
    ] {
        let chain = chain_from_pem(&read(&format!("{name}.crt"))).unwrap();
        let identity = roots.verify(&chain, None).unwrap();
        assert!(is_role(&identity.role), "{name}");
        let key = IdentityKey::from_pkcs8_pem(&read(&format!("{name}.key"))).unwrap();
        assert_eq!(key.public_key(), identity.public_key);
    }
    assert_eq!(read("broker.token"), read("broker/broker.token"));
    assert_ne!(read("broker.token"), read("api.token"));
    MasterKey::from_file(home.file("master.key")).unwrap();
    let broker: toml::Table = read("broker/broker.toml").parse().unwrap();
    assert_eq!(broker["fleet"].as_str(), Some(roots.fleet().to_string().as_str()));
}

#[test]
fn init_writes_over_nothing() {
    let home = Home::with_fleet();
    let before = fs::read(home.file("ca.pem")).unwrap();
    let refused = failure(&run(fleetkey().arg("init").arg(home.fleet())));
    assert!(refused.contains("exists already"), "{refused}");
    assert_eq!(fs::read(home.file("ca.pem")).unwrap(), before);
    let refused = failure(&run(fleetkey()
        .arg("init")
        .arg(home.directory.path().join("x"))
        .args(["--broker-name", "not a name"])));
    assert!(refused.contains("not a name"), "{refused}");
    assert_eq!(fs::read_dir(home.directory.path()).unwrap().count(), 1, "nothing is left behind");
}

#[test]
fn init_that_fails_leaves_no_key_of_a_root_behind() {
    let directory = tempfile::tempdir().unwrap();
    let fleet = directory.path().join("fleet");
    fs::create_dir(&fleet).unwrap();
    // The directory is empty, and then it is not.
    let init = |root: &Path| run(fleetkey().arg("init").arg(&fleet).arg("--root-key").arg(root));
    let refused = failure(&init(&fleet.join("root.pem")));
    assert!(refused.contains("exists already"), "{refused}");
    assert_eq!(fs::read_dir(&fleet).unwrap().count(), 0, "nothing is left behind");
    let root = directory.path().join("root.pem");
    ok(&init(&root));
    assert!(root.exists());
}

#[test]
fn init_takes_a_master_key_that_is_kept_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let fleet = directory.path().join("fleet");
    let key = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    let init = run(fleetkey().arg("init").arg(&fleet).env("FLEETKEY_MASTER_KEY", key).arg("--json"));
    let made: Value = serde_json::from_str(&ok(&init)).unwrap();
    assert_eq!(made["config"], fleet.join("fleetkey.toml").to_str().unwrap());
    assert!(!fleet.join("master.key").exists());
    let home = Home { directory };
    let refused = failure(&run(&mut home.serve_command()));
    assert!(refused.contains("master.key"), "{refused}");
    let other = "ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    let refused = failure(&run(home.serve_command().env("FLEETKEY_MASTER_KEY", other)));
    assert!(refused.contains("another master key"), "{refused}");
}

#[test]
fn a_fleet_is_led_from_the_command_line() {
    let home = Home::with_fleet();
    let serving = home.serve();

    let out = home.directory.path().join("bundle");
    let made = serving.json(&["device", "provision", "pump-1", "--out", out.to_str().unwrap()]);
    assert_eq!(made["name"], "pump-1");
    assert!(!made.to_string().contains("PRIVATE"));
    let mut files: Vec<_> = files_below(&out);
    files.sort();
    let names: Vec<_> = files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(
        names,
        ["agent.toml", "coordinator.crt", "device.crt", "device.key", "fleet-roots.pem", "master.key"]
    );
    assert!(files.iter().all(|file| mode(file) == 0o600));
    let agent: toml::Table = fs::read_to_string(out.join("agent.toml")).unwrap().parse().unwrap();
    assert_eq!(agent["device"].as_str(), made["device"].as_str());
    assert_eq!(agent["broker"].as_str(), Some("mqtt://127.0.0.1:9"));
    MasterKey::from_file(out.join("master.key")).unwrap();

    let taken = serving.failure(&["device", "provision", "other", "--out", out.to_str().unwrap()]);
    assert!(taken.contains("exists already"), "{taken}");
    assert_eq!(serving.json(&["device", "list"])["devices"].as_array().unwrap().len(), 1);

    let group = serving.json(&[
        "group",
        "create",
        "pumps",
        "--cell-capacity",
        "16",
        "--suite",
        "chacha20poly1305",
        "--on-join",
        "next",
    ]);
    assert_eq!(group["policy"]["cell_capacity"], 16);
    assert_eq!(group["policy"]["suite"], "chacha20poly1305");
    assert_eq!(group["policy"]["on_join"], "next");
    let table = serving.ok(&["group", "list"]);
    assert!(table.contains("pumps") && table.contains(group["id"].as_str().unwrap()), "{table}");
    for shown in [
        &serving.json(&["group", "list"])["groups"][0],
        &serving.json(&["group", "show", group["id"].as_str().unwrap()]),
    ] {
        for key in ["id", "name", "policy", "key_epoch", "send", "oldest", "cells"] {
            assert_eq!(shown[key], group[key], "{key}");
        }
    }

    assert_eq!(serving.json(&["group", "add", "pumps", "pump-1"])["added"], 1);
    let late = serving.failure(&["group", "add", "pumps", "pump-1", "--wait", "--timeout", "0"]);
    assert!(late.contains("pump-1 (offline)"), "{late}");
    assert!(serving.ok(&["group", "members", "pumps"]).contains("to come in"));
    assert!(serving.ok(&["device", "show", "pump-1"]).contains("pumps"));

    let rekeyed = serving.json(&["group", "rekey", "pumps", "--wait"]);
    assert_ne!(rekeyed["group"]["key_epoch"], group["key_epoch"]);
    let revoked = serving.json(&["revoke", "pump-1", "--reason", "lost at sea", "--wait"]);
    assert_eq!(revoked["groups"][0]["name"], "pumps");
    assert!(serving.ok(&["device", "list"]).contains("revoked: lost at sea"));
    assert!(serving.ok(&["status"]).contains("0 enrolled"));
    assert_eq!(serving.json(&["status"])["coordinator"]["revoked"], 1);

    let unknown = serving.failure(&["group", "show", "valves"]);
    assert!(unknown.contains("valves"), "{unknown}");
    let bad = serving.failure(&["group", "create", "valves", "--cell-capacity", "4"]);
    assert!(bad.contains("8 to 256"), "{bad}");
    let log = serving.stop();
    assert!(log.contains("stopped"), "{log}");
    assert!(log.contains("no connection to the broker"), "it is tried on: {log}");
}

#[test]
fn what_was_answered_survives_a_crash() {
    let home = Home::with_fleet();
    let serving = home.serve();
    let group = serving.json(&["group", "create", "pumps"]);
    serving.kill();
    let serving = home.serve();
    assert_eq!(serving.json(&["group", "show", "pumps"])["id"], group["id"]);
    serving.stop();
}

#[test]
fn logs_are_json_where_that_is_asked_for() {
    let home = Home::with_fleet();
    let config = home.file("fleetkey.toml");
    let text = fs::read_to_string(&config).unwrap().replace("format = \"text\"", "format = \"json\"");
    fs::write(&config, text).unwrap();
    let log = home.serve().stop();
    assert!(log.lines().count() >= 2, "{log}");
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(line["fields"]["message"].is_string(), "{line}");
    }
}

#[test]
fn metrics_are_there_for_whoever_reaches_the_port() {
    let home = Home::with_fleet();
    let serving = home.serve();
    serving.ok(&["group", "create", "pumps"]);
    serving.failure(&["group", "create", "pumps"]);
    let url = format!("{}/metrics", serving.api);
    let metrics = ureq::get(url).call().unwrap().body_mut().read_to_string().unwrap();
    for expected in [
        "fleetkey_ready 1",
        "fleetkey_broker_connected 0",
        "fleetkey_inputs_total{kind=\"command\"}",
        "fleetkey_refused_total{what=\"command\",reason=\"name_taken\"} 1",
        "fleetkey_commit_seconds_bucket{le=\"0.005\"}",
        "# HELP fleetkey_inputs_total Inputs handled",
    ] {
        assert!(metrics.contains(expected), "{expected}: {metrics}");
    }
    serving.stop();
}

#[test]
fn one_database_has_one_coordinator() {
    let home = Home::with_fleet();
    let serving = home.serve();
    let second = failure(&run(&mut home.serve_command()));
    assert!(second.contains("in use"), "{second}");
    serving.ok(&["group", "create", "pumps"]);
    serving.stop();
}

#[test]
fn a_busy_port_is_named() {
    let home = Home::with_fleet();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut serve = fleetkey();
    serve.arg("serve").arg("--config").arg(home.file("fleetkey.toml")).args(["--listen", &address]);
    let refused = failure(&run(&mut serve));
    assert!(refused.contains(&address) && refused.contains("in use"), "{refused}");
}

#[test]
fn a_configuration_that_cannot_be_used_is_named_in_one_line() {
    let home = Home::with_fleet();
    let config = home.file("fleetkey.toml");
    let good = fs::read_to_string(&config).unwrap();
    let cases = [
        (good.replace("database =", "databse ="), "databse"),
        (good.replace("127.0.0.1:7600", "7600"), "api.listen"),
        (good.replace("127.0.0.1:7600", "0.0.0.0:7600"), "allow_remote"),
        (good.replace("mqtt://127.0.0.1:9", "http://127.0.0.1:9"), "unknown scheme"),
        (good.replace("filter = \"info\"", "filter = \"a=b=c\""), "log.filter"),
        (good.replace("coordinator.crt", "absent.crt"), "absent.crt"),
        (good.replace("coordinator.crt", "broker/broker.crt"), "not of a coordinator"),
        (good.replace("coordinator.key", "broker/broker.key"), "is not the key of"),
        (good.replace("api.token", "absent.token"), "absent.token"),
        (good.replace("\"master.key\"", "\"absent.key\""), "absent.key"),
        (good.replace("fleetkey.db", "absent.db"), "absent.db"),
        (good.replace("fleetkey.db", "ca.pem"), "not a coordinator's database"),
        ("[".to_owned(), "fleetkey.toml"),
    ];
    for (text, what) in cases {
        fs::write(&config, &text).unwrap();
        let mut serve = fleetkey();
        serve.arg("serve").arg("--config").arg(&config);
        serve.env("FLEETKEY__API__ALLOW_REMOTE", "false");
        if !what.starts_with("api.") && what != "allow_remote" {
            serve.args(["--listen", "127.0.0.1:0"]);
        }
        let refused = failure(&run(&mut serve));
        assert!(refused.contains(what), "{what}: {refused}");
    }
    fs::write(&config, &good).unwrap();
    let refused = failure(&run(home.serve_command().env("FLEETKEY__API__LISTN", "x")));
    assert!(refused.contains("listn"), "{refused}");
    fs::set_permissions(home.file("coordinator.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let refused = failure(&run(&mut home.serve_command()));
    assert!(refused.contains("coordinator.key is open to others"), "{refused}");
}

#[test]
fn a_wrong_master_key_is_named() {
    let home = Home::with_fleet();
    fs::write(home.file("master.key"), "0f".repeat(31) + "00").unwrap();
    let refused = failure(&run(&mut home.serve_command()));
    assert!(refused.contains("another master key"), "{refused}");
}

#[test]
fn a_wrong_flag_is_named() {
    let wrong = run(fleetkey().args(["group", "create", "x", "--cel-capacity", "8"]));
    assert_eq!(wrong.status.code(), Some(2));
    assert!(stderr(&wrong).contains("--cel-capacity"));
    let nothing = run(fleetkey().arg("revoke"));
    assert_eq!(nothing.status.code(), Some(2));
    let help = ok(&run(fleetkey().arg("--help")));
    assert!(help.contains("fleetkey init fleet"), "{help}");
}

#[test]
fn a_coordinator_that_is_not_there_is_named() {
    let home = Home::with_fleet();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    drop(taken);
    let api = format!("http://{address}");
    let config = home.file("fleetkey.toml");
    let status = |arguments: &[&str]| failure(&run(fleetkey().args(arguments)));
    let refused = status(&["--config", config.to_str().unwrap(), "--api", &api, "status"]);
    assert!(refused.contains(&api) && refused.contains("fleetkey serve"), "{refused}");
    let nowhere = failure(&run(fleetkey().arg("status").current_dir(home.directory.path())));
    assert!(nowhere.contains("--config"), "{nowhere}");
    let serve = failure(&run(fleetkey().arg("serve")));
    assert!(serve.contains("--config"), "{serve}");
}

#[test]
fn a_token_opens_its_own_coordinator_alone() {
    let home = Home::with_fleet();
    let serving = home.serve();
    let token = home.file("broker.token");
    let refused = serving.failure(&["--token-file", token.to_str().unwrap(), "status"]);
    assert!(refused.contains("token"), "{refused}");
    let token = fs::read_to_string(home.file("api.token")).unwrap();
    let status = run(fleetkey().args(["--api", &serving.api, "status"]).env("FLEETKEY_TOKEN", token.trim()));
    ok(&status);
    serving.stop();
}
