//! One node as a process: what takes effect on live sessions, what is counted, and how it starts and stops.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use fleetkey_identity::{Revoked, Role, Validity, crl_to_pem, read_certificate};
use fleetkey_intruder::client::Hello;
use fleetkey_intruder::{Cast, Client, Level};
use fleetkey_policy::PolicyUpdate;
use support::{Feed, Running, command, papers, snapshot, until};

const SETTLE: Duration = Duration::from_millis(50);

struct Scene {
    cast: Cast,
    feed: Feed,
    node: Running,
    /// What the node reads, for as long as it runs.
    _directory: tempfile::TempDir,
}

fn scene(more: &str) -> Scene {
    let cast = Cast::new().unwrap();
    let directory = papers(&cast);
    let feed = Feed::start(&snapshot(&cast, 1));
    let node = Running::start(directory.path(), &feed, more);
    until("the node is healthy", || node.is_healthy());
    Scene { cast, feed, node, _directory: directory }
}

impl Scene {
    fn device(&self, device: fleetkey_wire::DeviceId) -> Client {
        let papers = self.cast.papers(&Role::Device(device)).unwrap();
        Client::honest(&self.node.target(SETTLE), Level::V4, &papers, &device.to_string()).unwrap()
    }

    fn code(&self, device: fleetkey_wire::DeviceId) -> Option<u8> {
        let papers = self.cast.papers(&Role::Device(device)).unwrap();
        let target = self.node.target(SETTLE);
        Client::connect(&target, Level::V4, Some(&papers), &device.to_string(), Hello::default()).unwrap().1
    }

    fn counts(&self, line: &str) -> bool {
        let (_, text) = self.node.get("/metrics").unwrap();
        text.lines().any(|got| got == line)
    }
}

#[test]
fn a_revocation_and_a_departure_take_effect_on_live_sessions() {
    let mut scene = scene("");
    let (cast, feed) = (&scene.cast, &scene.feed);
    let coordinator_papers = cast.coordinator().unwrap();
    let target = scene.node.target(SETTLE);
    let mut coordinator = Client::honest(&target, Level::V4, &coordinator_papers, "coordinator-1").unwrap();
    let mut victim = scene.device(cast.victim);
    let mut other = scene.device(cast.intruder);
    let cell = cast.cell_topic(cast.cell);
    for client in [&mut victim, &mut other] {
        assert_eq!(client.subscribe(cell.as_bytes(), 1), Some(1));
    }
    coordinator.publish(0x32, cell.as_bytes(), &[], b"for both");
    for client in [&mut victim, &mut other] {
        client.expect("for both", |arrived| arrived.payload == b"for both").unwrap();
    }

    // The other one leaves the cell: it hears no more of it, and stays connected.
    let members = BTreeSet::from([cast.victim]);
    feed.say(&PolicyUpdate::CellMembers { sequence: 2, cell: cast.cell, members });
    until("it may not subscribe", || other.subscribe(cell.as_bytes(), 1) == Some(0x80));
    coordinator.publish(0x32, cell.as_bytes(), &[], b"for one");
    victim.expect("for one", |arrived| arrived.payload == b"for one").unwrap();
    other.flush();
    assert!(other.arrived().iter().all(|arrived| arrived.payload != b"for one"));
    assert!(!other.is_closed());

    // The victim is revoked: its session ends at once, and it does not come back.
    let begun = Instant::now();
    feed.say(&PolicyUpdate::Revoked { sequence: 3, device: cast.victim });
    until("its session has ended", || victim.is_closed());
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(scene.code(cast.victim), Some(5));
    until("that is counted", || scene.counts("fleetkey_broker_closed_total{reason=\"revoked\"} 1"));
    assert!(scene.counts("fleetkey_broker_refused_total{reason=\"revoked\"} 1"));
    assert!(scene.counts("fleetkey_broker_refused_total{reason=\"not_member\"} 1"));

    // It stops politely.
    let id = scene.node.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    until("the others are told", || other.is_closed() && coordinator.is_closed());
    scene.node.said("stopped");
    assert!(scene.node.child.wait().unwrap().success());
    let mut rest = String::new();
    scene.node.child.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "nothing is said on standard output");
}

#[test]
fn a_crl_takes_effect_when_its_file_changes() {
    let cast = Cast::new().unwrap();
    let directory = papers(&cast);
    let list = |number, serials: &[Vec<u8>]| {
        let revoked: Vec<Revoked> =
            serials.iter().map(|serial| Revoked { serial: serial.clone(), unix_seconds: 1 }).collect();
        // One without an end would be a retired CA's last: nothing of that CA counts any more.
        let validity = Validity { not_before_unix_seconds: 0, not_after_unix_seconds: 4_102_444_800 };
        crl_to_pem(&cast.ca.revocation_list(number, validity, &revoked).unwrap())
    };
    let publish = |text: &str| {
        fs::write(directory.path().join("fleet.crl.new"), text).unwrap();
        fs::rename(directory.path().join("fleet.crl.new"), directory.path().join("fleet.crl")).unwrap();
    };
    publish(&list(5, &[]));
    let feed = Feed::start(&snapshot(&cast, 1));
    let node = Running::start(directory.path(), &feed, "[tls]\ncrl = 'fleet.crl'\n");
    until("the node is healthy", || node.is_healthy());
    let papers = cast.papers(&Role::Device(cast.victim)).unwrap();
    let serial = read_certificate(&papers.chain[0]).unwrap().serial;
    let (target, id) = (node.target(SETTLE), cast.victim.to_string());
    let mut victim = Client::honest(&target, Level::V5, &papers, &id).unwrap();
    publish(&list(6, &[serial]));
    until("its session has ended", || victim.is_closed());
    let (_, code) = Client::connect(&target, Level::V5, Some(&papers), &id, Hello::default()).unwrap();
    assert_eq!(code, None, "closed after the handshake");
}

#[test]
fn who_says_nothing_or_too_much_is_shown_out() {
    let scene = scene(
        "[limits]\nhandshake_timeout_seconds = 1\nconnect_timeout_seconds = 1\n\
         device_packets_per_second = 5\ndevice_burst_packets = 20\ndevice_rate_patience_seconds = 1\n",
    );
    // Not even a handshake.
    let mut silent = TcpStream::connect(scene.node.address).unwrap();
    silent.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(silent.read(&mut [0; 1]).unwrap(), 0);
    until("that is counted", || scene.counts("fleetkey_broker_refused_total{reason=\"tls_timeout\"} 1"));

    // More than a device may say.
    let mut loud = scene.device(scene.cast.intruder);
    let up = scene.cast.up(scene.cast.intruder);
    until("it is cut off", || {
        loud.publish(0x30, up.as_bytes(), &[], b"!");
        loud.is_closed()
    });
    until("that is counted", || scene.counts("fleetkey_broker_closed_total{reason=\"rate_exceeded\"} 1"));
}

#[test]
fn the_check_finds_nothing_wrong_with_the_configuration_in_the_help() {
    let help = command().arg("--help").output().unwrap();
    assert!(help.status.success());
    let help = String::from_utf8(help.stdout).unwrap();
    let from = help.find("    [tls]").expect("a sample configuration");
    let to = help.find("One of several nodes").expect("what comes after it");
    let cast = Cast::new().unwrap();
    let directory = papers(&cast);
    let file = directory.path().join("rmqtt.toml");
    fs::write(&file, &help[from..to]).unwrap();
    let checked = command().arg("--config").arg(&file).arg("--check").output().unwrap();
    let said = String::from_utf8(checked.stderr).unwrap();
    assert!(checked.status.success(), "{said}");
    assert!(said.contains(&cast.fleet.to_string()), "{said}");

    let (from, to) = (help.find("    [cluster]").unwrap(), help.find("Nodes neither know").unwrap());
    let whole = fs::read_to_string(&file).unwrap() + &help[from..to];
    fs::write(&file, whole).unwrap();
    let checked = command().arg("--config").arg(&file).arg("--check").output().unwrap();
    let said = String::from_utf8(checked.stderr).unwrap();
    assert_eq!(checked.status.success(), cfg!(feature = "cluster"), "{said}");

    fs::remove_file(directory.path().join("broker.key")).unwrap();
    let checked = command().arg("--config").arg(&file).arg("--check").output().unwrap();
    assert_eq!(checked.status.code(), Some(1));
    assert!(String::from_utf8(checked.stderr).unwrap().contains("read "));
}
