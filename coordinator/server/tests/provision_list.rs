//! `fleetkey device provision --csv`: many bundles from a list.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

mod support;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use base64::Engine as _;
use fleetkey_identity::{FleetRoots, IdentityKey, Role, chain_from_pem};
use support::*;

const ID: &str = "0b9f3c7e-6a52-4d0e-9c39-2f6d0b1a7c11";

fn identity_of(bundle: &Path) -> (Role, IdentityKey) {
    let read = |name: &str| fs::read_to_string(bundle.join(name)).unwrap();
    let roots = FleetRoots::from_pem(&read("fleet-roots.pem")).unwrap();
    let identity = roots.verify(&chain_from_pem(&read("device.crt")).unwrap(), None).unwrap();
    let key = IdentityKey::from_pkcs8_pem(&read("device.key")).unwrap();
    assert_eq!(identity.public_key, key.public_key());
    (identity.role, key)
}

#[test]
fn a_list_becomes_bundles_and_given_again_goes_on_where_it_stopped() {
    let home = Home::with_fleet();
    let serving = home.serve();
    serving.ok(&["group", "create", "hamburg", "--select", "site=hamburg"]);
    let (list, out) = (home.directory.path().join("list.csv"), home.directory.path().join("bundles"));
    let arguments = ["device", "provision", "--csv", list.to_str().unwrap(), "--out", out.to_str().unwrap()];
    fs::write(&list, format!("name,id,labels\npump-1,,\"site=hamburg,type=pump\"\npump-2,{ID},\n")).unwrap();
    let told = serving.ok(&arguments);
    assert!(told.contains("made 2 bundles"), "{told}");
    let (role, first_key) = identity_of(&out.join("pump-1"));
    assert!(matches!(role, Role::Device(_)));
    assert_eq!(identity_of(&out.join("pump-2")).0, Role::Device(ID.parse().unwrap()));
    assert!(serving.ok(&["group", "members", "hamburg"]).contains("pump-1"));
    assert!(files_below(&out).iter().all(|file| mode(file) == 0o600));
    assert_eq!(fs::read_dir(&out).unwrap().count(), 2, "nothing but bundles is left");

    // The last answer was lost: the key is there, the device is enrolled, the bundle was never written.
    let key = format!("{ID}\n{}", fs::read_to_string(out.join("pump-2/device.key")).unwrap());
    fs::remove_dir_all(out.join("pump-2")).unwrap();
    fleetkey_coordinator::write_private(&out.join(".pump-2.begun"), key.as_bytes(), false).unwrap();
    fs::write(&list, format!("name,id,labels\npump-1,,\npump-2,{ID},\npump-3,,\n")).unwrap();
    let told = serving.json(&arguments);
    assert_eq!(told["passed_over"], serde_json::json!(["pump-1"]));
    assert_eq!(told["made"].as_array().unwrap().len(), 2);
    assert!(!told.to_string().contains("PRIVATE"));
    assert_eq!(identity_of(&out.join("pump-1")).1.public_key(), first_key.public_key());
    assert_eq!(identity_of(&out.join("pump-2")).0, Role::Device(ID.parse().unwrap()));
    let devices = serving.json(&["device", "list"]);
    assert_eq!(devices["devices"].as_array().unwrap().len(), 3);
}

#[test]
fn a_list_with_one_bad_row_makes_nothing() {
    let home = Home::with_fleet();
    let serving = home.serve();
    let taken = home.directory.path().join("taken");
    serving.ok(&["device", "provision", "pump-9", "--out", taken.to_str().unwrap()]);
    let (list, out) = (home.directory.path().join("list.csv"), home.directory.path().join("bundles"));
    let arguments = ["device", "provision", "--csv", list.to_str().unwrap(), "--out", out.to_str().unwrap()];
    for (text, what) in [
        ("name\npump-1\npump 2\n", "line 3: "),
        ("name\npump-1\npump-9\n", "line 3: a device is named \"pump-9\" already"),
        ("pump-1\npump-2\n", "line 1: "),
        ("name\n", "lists no device"),
    ] {
        fs::write(&list, text).unwrap();
        let refused = serving.failure(&arguments);
        assert!(refused.contains(what), "{refused}");
    }
    fs::create_dir_all(out.join("pump-1")).unwrap();
    fs::write(out.join("pump-1/notes"), "").unwrap();
    fs::write(&list, "name\npump-0\npump-1\n").unwrap();
    let refused = serving.failure(&arguments);
    assert!(refused.contains("line 3: ") && refused.contains("no whole bundle"), "{refused}");
    assert_eq!(serving.json(&["device", "list"])["devices"].as_array().unwrap().len(), 1);
}

#[test]
fn a_list_comes_from_standard_input() {
    let home = Home::with_fleet();
    let serving = home.serve();
    let out = home.directory.path().join("bundles");
    let mut command = serving.command(&["device", "provision", "--csv", "-", "--out", out.to_str().unwrap()]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"name\npump-1\n").unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
    identity_of(&out.join("pump-1"));
}

#[test]
fn a_device_that_was_away_gets_a_further_certificate_on_its_own_key_and_no_other() {
    let home = Home::with_fleet();
    let serving = home.serve();
    let bundle = home.directory.path().join("pump-1");
    serving.ok(&["device", "provision", "pump-1", "--out", bundle.to_str().unwrap()]);
    let (role, key) = identity_of(&bundle);
    let out = home.directory.path().join("new.crt");
    let request = |key: &IdentityKey| {
        let der = fleetkey_identity::signing_request(key, "whoever");
        let file = home.directory.path().join("request.pem");
        // Base64 in one line, as some tools write it.
        let body = base64::engine::general_purpose::STANDARD.encode(der);
        fs::write(
            &file,
            format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n"),
        )
        .unwrap();
        file
    };
    let certify = |file: &Path| {
        let (file, out) = (file.to_str().unwrap().to_owned(), out.to_str().unwrap().to_owned());
        serving.command(&["device", "certify", "pump-1", "--csr", &file, "--out", &out])
    };
    let other = IdentityKey::generate(&mut rand_core::OsRng);
    let refused = failure(&run(&mut certify(&request(&other))));
    assert!(refused.contains("another key"), "{refused}");
    assert!(!out.exists());
    ok(&run(&mut certify(&request(&key))));
    let roots = FleetRoots::from_pem(&fs::read_to_string(home.file("fleet-roots.pem")).unwrap()).unwrap();
    let chain = chain_from_pem(&fs::read_to_string(&out).unwrap()).unwrap();
    let identity = roots.verify(&chain, None).unwrap();
    assert_eq!((identity.role, identity.public_key), (role, key.public_key()));
    fs::remove_file(&out).unwrap();
    serving.ok(&["revoke", "pump-1", "--reason", "lost"]);
    let refused = failure(&run(&mut certify(&request(&key))));
    assert!(refused.contains("revoked"), "{refused}");
}
