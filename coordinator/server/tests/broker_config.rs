//! What `fleetkey broker-config` writes, run by the real broker, with the intruder at its door.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use fleetkey_identity::{Role, chain_to_pem};
use fleetkey_intruder::{Cast, Level, Target};

const PATIENCE: Duration = Duration::from_secs(30);

/// A coordinator's directory, as far as the command reads it.
fn directory(cast: &Cast) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    let settings = include_str!("../../../deploy/coordinator.toml");
    write("fleetkey.toml", settings);
    write("fleet-roots.pem", &cast.roots().unwrap().to_pem());
    write("coordinator.crt", &chain_to_pem(&cast.coordinator().unwrap().chain));
    fs::create_dir(directory.path().join("broker")).unwrap();
    let broker = cast.papers(&Role::Broker).unwrap();
    write("broker/fleet-roots.pem", &cast.roots().unwrap().to_pem());
    write("broker/broker.crt", &chain_to_pem(&broker.chain));
    write("broker/broker.key", &broker.key_pem);
    directory
}

fn broker_config(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fleetkey"))
        .args(["broker-config", "mosquitto", "--config"])
        .arg(directory.join("fleetkey.toml"))
        .arg("--out")
        .arg(directory.join("mosquitto"))
        .args(arguments)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn nothing_is_written_over_and_a_missing_crl_is_told() {
    let cast = Cast::new().unwrap();
    let directory = directory(&cast);
    let first = said(&broker_config(directory.path(), &[]));
    assert!(first.contains("revoked devices get in"), "{first}");
    let conf = || fs::read_to_string(directory.path().join("mosquitto/mosquitto.conf")).unwrap();
    assert!(conf().contains("\n#crlfile "));
    assert!(conf().contains("\nlistener 8883\n"), "the port of the broker's URL");

    let again = broker_config(directory.path(), &[]);
    assert!(!again.status.success());
    let complaint = String::from_utf8(again.stderr).unwrap();
    assert!(complaint.contains("exists already") && complaint.contains("--force"), "{complaint}");

    fs::write(directory.path().join("broker/fleet.crl"), cast.crl_pem(1, &[]).unwrap()).unwrap();
    let forced = said(&broker_config(directory.path(), &["--force", "--listen", "127.0.0.1:1883"]));
    assert!(!forced.contains("revoked"), "{forced}");
    assert!(conf().contains("\ncrlfile ") && conf().contains("\nlistener 1883 127.0.0.1\n"));
}

#[test]
fn the_rules_hold_for_coming_generations_of_the_coordinator() {
    let cast = Cast::new().unwrap();
    let directory = directory(&cast);
    said(&broker_config(directory.path(), &[]));
    let acl = fs::read_to_string(directory.path().join("mosquitto/acl")).unwrap();
    for generation in 1..=16 {
        assert!(acl.contains(&format!("\nuser coordinator:{generation}\n")), "{generation}");
    }
}

/// A mosquitto that runs.
struct Mosquitto(Child);

impl Mosquitto {
    /// Starts it, and waits until it listens.
    fn start(program: &Path, directory: &Path, address: SocketAddr) -> Self {
        let written = fs::read_to_string(directory.join("mosquitto/mosquitto.conf")).unwrap();
        // As root it would give up its rights, and with them this directory.
        let conf = directory.join("test.conf");
        fs::write(&conf, format!("{written}\nuser root\n")).unwrap();
        let log = fs::File::create(directory.join("mosquitto.log")).unwrap();
        let mut child = Command::new(program)
            .arg("-c")
            .arg(conf)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            let log = || fs::read_to_string(directory.join("mosquitto.log")).unwrap();
            assert!(child.try_wait().unwrap().is_none(), "mosquitto ended: {}", log());
            assert!(Instant::now() < deadline, "mosquitto does not listen: {}", log());
            std::thread::yield_now();
        }
        Self(child)
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn mosquitto() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    places.map(|place| place.join("mosquitto")).find(|program| program.is_file())
}

#[test]
fn the_intruder_gets_nothing_from_mosquitto_but_what_static_rules_cannot_keep() {
    let Some(program) = mosquitto() else {
        let note = b"NOT RUN: the intruder at mosquitto: there is no mosquitto on PATH\n";
        std::io::stderr().write_all(note).unwrap();
        return;
    };
    let cast = Cast::new().unwrap();
    let directory = directory(&cast);
    let crl = cast.crl_pem(1, &[&cast.revoked_papers]).unwrap();
    fs::write(directory.path().join("broker/fleet.crl"), crl).unwrap();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    said(&broker_config(directory.path(), &["--listen", &address.to_string()]));
    let _broker = Mosquitto::start(&program, directory.path(), address);
    for level in [Level::V4, Level::V5] {
        let target = Target { address, settle: Duration::from_millis(50), has_open_cells: true };
        let report = fleetkey_intruder::run(&target, level, &cast).unwrap();
        println!("{level:?}: {} attempts, got through: {:#?}", report.tried.len(), report.got_through);
        // It cannot refuse a will that may be published; to its own `up`, where only frames under its link key count.
        assert_eq!(report.names(), ["a will to its own up"], "{level:?}: {:#?}", report.got_through);
    }
}
