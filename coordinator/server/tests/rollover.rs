//! One CA takes another's place, and one root another's, in front of a running service; OpenSSL judges what is published.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot set itself up has failed")]

mod support;

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use fleetkey_coordinator::Cas;
use fleetkey_coordinator::config::Config;
use fleetkey_identity::tls::enrolment_client_config;
use fleetkey_identity::{
    Crl, FleetCa, FleetRoots, IdentityKey, KeyId, Role, Validity, chain_from_pem, read_certificate,
};
use serde_json::Value;
use support::*;

const PASSPHRASE: &str = "correct horse battery staple";

/// A fleet, its service, and bundles.
struct World {
    home: Home,
    serving: Option<Serving>,
}

impl World {
    fn new() -> Self {
        let home = Home::with_fleet();
        let serving = Some(home.serve());
        Self { home, serving }
    }

    fn serving(&self) -> &Serving {
        self.serving.as_ref().unwrap()
    }

    fn restart(&mut self) {
        self.serving.take().unwrap().stop();
        self.serving = Some(self.home.serve());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.directory.path().join(name)
    }

    /// A device's certificate chain, and the file that it is in.
    fn provision(&self, name: &str) -> (Vec<Vec<u8>>, PathBuf) {
        let out = self.path(name);
        self.serving().ok(&["device", "provision", name, "--out", out.to_str().unwrap()]);
        let file = out.join("device.crt");
        (chain(&file), file)
    }

    fn show(&self) -> Value {
        self.serving().json(&["ca", "show"])
    }

    /// The CA that the running service issues from.
    fn issuing(&self) -> String {
        self.show()["hanging"]["issuing"]["id"].as_str().unwrap().to_owned()
    }

    fn roll(&self, arguments: &[&str]) -> String {
        let made = self.serving().json(&[&["ca", "roll"], arguments].concat());
        let after = made["ca"].as_str().unwrap().to_owned();
        until("the service takes the new CA", || self.issuing() == after);
        after
    }

    fn renew_coordinator(&self) {
        self.serving().ok(&["ca", "renew", "coordinator"]);
        until("the service shows its new certificate", || {
            self.show()["hanging"]["issuing"]["coordinator"] == Value::Bool(true)
        });
    }

    fn lists(&self) -> Vec<Crl> {
        Crl::read_all(&fs::read(self.home.file("fleet.crl")).unwrap()).unwrap()
    }

    fn pinned(&self) -> Vec<Vec<u8>> {
        roots_in(&self.home.file("fleet-roots.pem")).ders()
    }

    /// `openssl verify` of the leaf in `certificate` against the roots and the published lists; `None` without OpenSSL.
    fn openssl(&self, certificate: &Path) -> Option<bool> {
        let mut verify = Command::new("openssl");
        verify.args(["verify", "-crl_check", "-CAfile"]).arg(self.home.file("fleet-roots.pem"));
        verify.arg("-CRLfile").arg(self.home.file("fleet.crl")).arg("-untrusted").arg(certificate);
        match verify.arg(certificate).output() {
            Ok(verdict) => Some(verdict.status.success()),
            Err(_) => {
                eprintln!("NOT RUN: openssl is not installed");
                None
            }
        }
    }
}

fn chain(path: &Path) -> Vec<Vec<u8>> {
    chain_from_pem(&fs::read_to_string(path).unwrap()).unwrap()
}

fn id(der: &[u8]) -> String {
    KeyId::of_certificate(der).to_string()
}

fn roots_in(path: &Path) -> FleetRoots {
    FleetRoots::from_pem(&fs::read_to_string(path).unwrap()).unwrap()
}

fn serial(chain: &[Vec<u8>]) -> Vec<u8> {
    read_certificate(&chain[0]).unwrap().serial
}

#[test]
fn a_new_ca_issues_at_once_and_the_one_before_counts_until_it_is_retired() {
    let mut world = World::new();
    let root_key = world.home.file("root-ca.pem");
    let first = world.issuing();
    let (old_chain, old_file) = world.provision("pump-1");
    assert_eq!(id(&old_chain[1]), first);

    let refused = world.serving().failure(&["ca", "roll"]);
    assert!(refused.contains("--root-key"), "{refused}");
    let ca_file = world.home.file("ca.pem");
    let refused = world.serving().failure(&["ca", "roll", "--root-key", ca_file.to_str().unwrap()]);
    assert!(refused.contains("is no root"), "{refused}");
    let second = world.roll(&["--root-key", root_key.to_str().unwrap()]);
    assert_ne!(first, second);

    // Both count, and both have a list.
    let (new_chain, new_file) = world.provision("pump-2");
    assert_eq!(id(&new_chain[1]), second);
    let roots = roots_in(&world.home.file("fleet-roots.pem"));
    for chain in [&old_chain, &new_chain] {
        roots.verify(chain, None).unwrap();
    }
    until("both lists are published", || world.lists().len() == 2);
    for file in [&old_file, &new_file] {
        assert!(world.openssl(file).unwrap_or(true));
    }
    world.serving().ok(&["revoke", "pump-2", "--reason", "lost"]);
    until("the list names it", || world.lists().iter().any(|list| list.is_revoked(&serial(&new_chain))));
    assert!(!world.openssl(&new_file).unwrap_or(false));
    assert!(world.openssl(&old_file).unwrap_or(true));

    // Somebody hangs on the old one.
    let former = &world.show()["hanging"]["former"][0];
    assert_eq!((&former["id"], &former["devices"]), (&first.as_str().into(), &1.into()));
    assert_eq!(former["coordinator"], true);
    let refused = world.serving().failure(&["ca", "retire", &first]);
    assert!(refused.contains("1 device") && refused.contains("coordinator"), "{refused}");
    let refused = world.serving().failure(&["ca", "retire", &second]);
    assert!(refused.contains("is the one that issues"), "{refused}");
    let own = world.home.file("coordinator.crt");
    let before = read_certificate(&chain(&own)[0]).unwrap();
    world.renew_coordinator();
    let after = read_certificate(&chain(&own)[0]).unwrap();
    assert_eq!(before.public_key, after.public_key);
    assert_eq!(after.role, Role::Coordinator { generation: fleetkey_wire::Generation(2) });
    let refused = world.serving().failure(&["ca", "retire", &first]);
    assert!(refused.contains("1 device") && !refused.contains("coordinator has"), "{refused}");

    world.serving().ok(&["ca", "retire", &first, "--force"]);
    until("its last list is published", || world.lists().iter().any(Crl::is_last));
    let last = world.lists().into_iter().find(Crl::is_last).unwrap();
    assert!(last.is_revoked(&serial(&old_chain)));
    assert!(!world.openssl(&old_file).unwrap_or(false));
    let kept = world.home.file("former-cas").join(format!("{first}.pem"));
    assert!(!kept.exists(), "its key is deleted");
    world.restart();
    assert_eq!(world.show()["retired"], serde_json::json!([first]));
    assert!(world.serving().ok(&["ca", "show"]).contains("is retired"));
    assert!(world.serving().ok(&["ca", "crl"]).contains("the last of a CA that is retired"));
    assert!(
        world.serving().ok(&["ca", "retire", &first]).contains("is retired"),
        "said again it is so still"
    );
    let (chain, file) = world.provision("pump-3");
    assert_eq!(id(&chain[1]), second);
    assert!(world.openssl(&file).unwrap_or(true));

    // A bundle has no end, and so the list stays; where the last certificate has ended it is left out.
    let retired = world.home.file("former-cas").join(format!("{first}.retired"));
    let text = fs::read_to_string(&retired).unwrap();
    assert!(text.contains(" 253402300799\n"), "{text}");
    assert!(world.lists().iter().any(Crl::is_last));
    fs::write(&retired, text.replace(" 253402300799\n", " 1700000000\n")).unwrap();
    until("its last list is left out", || !world.lists().iter().any(Crl::is_last));
}

#[test]
fn a_root_that_has_gone_is_not_shown_by_a_service_that_goes_on() {
    let home = Home::with_fleet();
    let mut serving = home.serve_with(&[("FLEETKEY__ENROLMENT__LISTEN", "127.0.0.1:0")]);
    let announced = serving.api.clone();
    let (api, est) = announced.split_once(", enrolment at https://").unwrap();
    serving.api = api.to_owned();
    let est = est.split('/').next().unwrap().to_owned();
    // What it shows behind its certificate to somebody who pins these roots.
    let shown = |roots: &FleetRoots| {
        let config = enrolment_client_config(None, roots).unwrap();
        let mut tls = rustls::ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
        let mut socket = TcpStream::connect(&est).unwrap();
        while tls.is_handshaking() {
            tls.complete_io(&mut socket).ok()?;
        }
        Some(id(&tls.peer_certificates()?[1]))
    };
    let mut world = World { home, serving: Some(serving) };
    let (old, new) = (world.home.file("root-ca.pem"), world.path("root-2.pem"));
    let old_alone = roots_in(&world.home.file("fleet-roots.pem"));
    let first = world.issuing();
    let arguments = ["--root", "--root-key", old.to_str().unwrap(), "--new-root-key", new.to_str().unwrap()];
    let second = world.roll(&arguments);
    until("the new CA is shown as the old root has it", || {
        shown(&old_alone).is_some_and(|ca| ca != first && ca != second)
    });
    let new_alone = FleetRoots::new(&chain(&new)).unwrap();
    world.renew_coordinator();
    world.serving().ok(&["ca", "retire", &first, "--force"]);
    world.serving().ok(&["ca", "retire", &id(&old_alone.ders()[0]), "--force"]);
    until("it is shown as the new root has it", || shown(&new_alone) == Some(second.clone()));
    world.serving.take().unwrap().stop();
}

#[test]
fn a_revocation_makes_the_lists_once() {
    let home = Home::with_fleet();
    let serving = Some(home.serve_with(&[("FLEETKEY__LOG__FILTER", "fleetkey_coordinator=debug")]));
    let mut world = World { home, serving };
    let names = ["pump-1", "pump-2", "pump-3", "pump-4", "pump-5", "pump-6"];
    let chains = names.map(|name| world.provision(name).0);
    for (name, chain) in names.iter().zip(chains) {
        world.serving().ok(&["revoke", name, "--reason", "lost"]);
        assert!(world.lists().iter().any(|list| list.is_revoked(&serial(&chain))), "it is there at once");
    }
    let log = world.serving.take().unwrap().stop();
    let made = log.matches("revocation lists published").count();
    // One more, or two, at the start.
    assert!((names.len() + 1..=names.len() + 2).contains(&made), "{made}");
}

#[test]
fn a_new_root_counts_where_the_old_one_is_pinned_and_then_alone() {
    let mut world = World::new();
    let (first_root, second_root) = (world.home.file("root-ca.pem"), world.path("root-2.pem"));
    let old_root = world.pinned().remove(0);
    let first = world.issuing();
    world.provision("pump-1");
    let arguments = ["--root", "--root-key", first_root.to_str().unwrap(), "--new-root-key"];
    let second = world.roll(&[&arguments[..], &[second_root.to_str().unwrap()]].concat());
    assert_eq!(world.pinned().len(), 2);
    let again = world.serving().failure(&["ca", "roll", "--root-key", second_root.to_str().unwrap()]);
    assert!(again.contains("being replaced already"), "{again}");

    // Who pins the old root alone takes what the new CA issues, and learns the new root.
    let (chain_2, file_2) = world.provision("pump-2");
    let old_alone = FleetRoots::new(std::slice::from_ref(&old_root)).unwrap();
    old_alone.verify(&chain_2, None).unwrap();
    assert!(world.openssl(&file_2).unwrap_or(true));
    let config = Config::load(&world.home.file("fleetkey.toml"), vec![]).unwrap();
    let told = Cas::read(&config.identity).unwrap().unwrap().certificates(&old_alone);
    assert_eq!(old_alone.learn(&told), 0, "the new root is not among what only the old one tells");
    let told = Cas::read(&config.identity).unwrap().unwrap().certificates(&roots_in(&config.identity.roots));
    assert_eq!(old_alone.learn(&told), 1);

    // The old root goes last.
    let refused = world.serving().failure(&["ca", "retire", &id(&old_root)]);
    assert!(refused.contains(&first) && refused.contains("retire it first"), "{refused}");
    world.renew_coordinator();
    world.serving().ok(&["ca", "retire", &first, "--force"]);
    let refused = world.serving().failure(&["ca", "retire", &id(&old_root)]);
    assert!(refused.contains("1 device"), "{refused}");
    world.serving().ok(&["ca", "retire", &id(&old_root), "--force"]);
    let new_root = FleetCa::from_pem(&fs::read_to_string(&second_root).unwrap()).unwrap();
    assert_eq!(world.pinned(), [new_root.certificate_der().to_vec()]);
    let new_alone = roots_in(&world.home.file("fleet-roots.pem"));
    new_alone.verify(&chain(&world.home.file("coordinator.crt")), None).unwrap();
    let (chain_3, file_3) = world.provision("pump-3");
    assert_eq!(id(&chain_3[1]), second);
    new_alone.verify(&chain_3, None).unwrap();
    assert!(world.openssl(&file_3).unwrap_or(true));
    world.restart();
    assert_eq!(world.issuing(), second);
}

#[test]
fn a_fleet_whose_root_issues_goes_on_and_rolls_without_another_key() {
    let home = Home::with_fleet();
    // As fleets were made before: one CA, which is the root.
    fs::rename(home.file("root-ca.pem"), home.file("ca.pem")).unwrap();
    let serving = Some(home.serve());
    let mut world = World { home, serving };
    let (chain_1, file_1) = world.provision("pump-1");
    assert_eq!(chain_1.len(), 1);
    let root = world.issuing();
    until("the list is there", || world.home.file("fleet.crl").exists());
    let published = fs::read_to_string(world.home.file("fleet.crl")).unwrap();
    assert!(published.starts_with("-----BEGIN X509 CRL-----") && !published.contains("CERTIFICATE"));
    assert!(world.openssl(&file_1).unwrap_or(true));

    let second = world.roll(&[]);
    let (chain_2, file_2) = world.provision("pump-2");
    assert_eq!(id(&chain_2[1]), second);
    until("both lists are published", || world.lists().len() == 2);
    assert!(world.openssl(&file_1).unwrap_or(true) && world.openssl(&file_2).unwrap_or(true));
    world.serving().ok(&["ca", "retire", &root, "--force"]);
    let put_away = world.home.file("former-cas").join(format!("{root}.root-key"));
    assert!(FleetCa::from_pem(&fs::read_to_string(put_away).unwrap()).unwrap().is_root());
    until("its last list is published", || world.lists().iter().any(Crl::is_last));
    assert!(!world.openssl(&file_1).unwrap_or(false));
    assert!(world.openssl(&file_2).unwrap_or(true));
    world.restart();
    assert_eq!(world.issuing(), second);
}

#[test]
fn a_service_that_was_off_past_the_end_of_its_certificate_renews_it_and_starts() {
    let home = Home::with_fleet();
    let read = |name: &str| fs::read_to_string(home.file(name)).unwrap();
    let ca = FleetCa::from_pem(&read("ca.pem")).unwrap();
    let key = IdentityKey::from_pkcs8_pem(&read("coordinator.key")).unwrap();
    let now = i64::try_from(fleetkey_coordinator::unix_seconds()).unwrap();
    let gone = Validity { not_before_unix_seconds: now - 90_000, not_after_unix_seconds: now - 3_600 };
    let role = Role::Coordinator { generation: fleetkey_wire::Generation(5) };
    let leaf = ca.issue(&role, &key.public_key(), &[], gone).unwrap();
    let expired = fleetkey_identity::chain_to_pem(&ca.chain(leaf));
    fs::write(home.file("coordinator.crt"), &expired).unwrap();
    let serving = home.serve();
    let renewed = read_certificate(&chain(&home.file("coordinator.crt"))[0]).unwrap();
    assert_eq!(renewed.role, Role::Coordinator { generation: fleetkey_wire::Generation(6) });
    assert!(renewed.not_after_unix_seconds > now);
    serving.stop();

    // Where the CA is elsewhere, nobody can, and it is said.
    fs::write(home.file("coordinator.crt"), &expired).unwrap();
    let settings = read("fleetkey.toml").replace("ca = \"ca.pem\"", "");
    fs::write(home.file("fleetkey.toml"), settings).unwrap();
    let refused = failure(&run(&mut home.serve_command()));
    assert!(refused.contains("coordinator.crt") && refused.contains("was valid until"), "{refused}");
}

#[test]
fn keys_that_are_encrypted_stay_so() {
    let directory = tempfile::tempdir().unwrap();
    let home = Home { directory };
    let mut init = fleetkey();
    init.arg("init").arg(home.fleet()).env("FLEETKEY_ROOT_PASSPHRASE", PASSPHRASE);
    ok(&run(&mut init));
    let root_key = home.file("root-ca.pem");
    let is_encrypted = |path: &Path| {
        let text = fs::read_to_string(path).unwrap();
        text.contains("BEGIN ENCRYPTED PRIVATE KEY") && !text.contains("BEGIN PRIVATE KEY")
    };
    assert!(is_encrypted(&root_key));
    let command = |arguments: &[&str]| {
        let mut command = fleetkey();
        command.arg("--config").arg(home.file("fleetkey.toml")).args(arguments);
        command.env("FLEETKEY_CA_PASSPHRASE", PASSPHRASE);
        command
    };
    ok(&run(&mut command(&["ca", "protect"])));
    let roll = ["ca", "roll", "--root-key", root_key.to_str().unwrap()];
    let before = fs::read(home.file("ca.pem")).unwrap();
    failure(&run(&mut command(&roll)));
    assert_eq!(fs::read(home.file("ca.pem")).unwrap(), before);
    ok(&run(command(&roll).env("FLEETKEY_ROOT_PASSPHRASE", PASSPHRASE)));
    assert!(is_encrypted(&home.file("ca.pem")));
    assert_ne!(fs::read(home.file("ca.pem")).unwrap(), before);
    let former: Vec<PathBuf> = files_below(&home.file("former-cas"));
    assert_eq!(former.len(), 1);
    assert!(is_encrypted(&former[0]));
    assert!(ok(&run(&mut command(&["ca", "show"]))).contains("issued before"));

    let mut elsewhere = fleetkey();
    let (fleet, stick) = (home.directory.path().join("other"), home.directory.path().join("stick.pem"));
    ok(&run(elsewhere.arg("init").arg(&fleet).arg("--root-key").arg(&stick)));
    assert!(stick.exists() && !fleet.join("root-ca.pem").exists());
    assert_eq!(mode(&stick), 0o600);
}

#[test]
fn protect_encrypts_the_keys_of_former_cas_too() {
    let home = Home::with_fleet();
    let command = |arguments: &[&str]| {
        let mut command = fleetkey();
        command.arg("--config").arg(home.file("fleetkey.toml")).args(arguments);
        command.env("FLEETKEY_CA_PASSPHRASE", PASSPHRASE);
        command
    };
    let root_key = home.file("root-ca.pem");
    ok(&run(&mut command(&["ca", "roll", "--root-key", root_key.to_str().unwrap()])));
    let keys = || {
        let mut keys = files_below(&home.file("former-cas"));
        keys.push(home.file("ca.pem"));
        keys.into_iter().map(|path| fs::read_to_string(path).unwrap()).collect::<Vec<_>>()
    };
    ok(&run(&mut command(&["ca", "protect"])));
    assert_eq!(keys().len(), 2);
    for key in keys() {
        assert!(key.contains("BEGIN ENCRYPTED PRIVATE KEY") && !key.contains("BEGIN PRIVATE KEY"));
    }
    // Also with another passphrase, and the service still reads all of them.
    let other = home.file("passphrase");
    fs::write(&other, "another passphrase for the CA\n").unwrap();
    ok(&run(&mut command(&["ca", "protect", "--passphrase-file", other.to_str().unwrap()])));
    failure(&run(&mut command(&["ca", "show"])));
    let mut show = command(&["ca", "show"]);
    show.env("FLEETKEY_CA_PASSPHRASE", "another passphrase for the CA");
    assert!(ok(&run(&mut show)).contains("issued before"));
}
