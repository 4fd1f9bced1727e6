//! The broker as a process: what it says when it cannot start, whom it follows, how it stops.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use fleetkey_broker::Broker;
use fleetkey_broker::policy::PolicyUpdate;
use fleetkey_broker::service::Settings;
use fleetkey_identity::{Revoked, Role, Validity, chain_to_pem, crl_to_pem, read_certificate};
use fleetkey_wire::DeviceId;
use support::*;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PATIENCE: Duration = Duration::from_secs(20);

fn broker() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fleetkey-broker"));
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Files as they lie in front of a broker.
struct Files {
    directory: TempDir,
    pki: Pki,
}

impl Files {
    fn new() -> Self {
        let files = Self { directory: tempfile::tempdir().unwrap(), pki: Pki::new(FLEET) };
        files.identity(&files.pki, &Role::Broker);
        files.write("fleet-roots.pem", &files.pki.roots.to_pem());
        files.write("broker.token", "the token\n");
        files
    }

    fn identity(&self, pki: &Pki, role: &Role) {
        let (chain, key) = pki.issue(role);
        self.write("broker.crt", &chain_to_pem(&chain));
        self.write("broker.key", &key.to_pkcs8_pem());
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.directory.path().join(name), text).unwrap();
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn run(&self, config: &str, arguments: &[&str]) -> Output {
        self.write("broker.toml", config);
        let path = self.path().join("broker.toml");
        broker().arg("--config").arg(path).args(arguments).output().unwrap()
    }
}

/// Standard error of a refusal: one line that names the thing.
fn refusal(output: &Output, status: i32) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(status), "{text}");
    if status == 1 {
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.starts_with("error: "), "{text}");
    }
    text
}

const GOOD: &str = "[listen]\ntls = ['127.0.0.1:0']\n[policy]\ncells = 'any_device'\n";

#[test]
fn what_is_wrong_is_said_in_one_line() {
    let files = Files::new();
    assert!(refusal(&files.run(GOOD, &["--colour"]), 2).contains("--colour"));
    assert!(refusal(&files.run(GOOD, &["--listen", "here"]), 2).contains("here"));
    assert!(refusal(&files.run("[listen]\ntsl = []", &[]), 1).contains("tsl"));
    assert!(refusal(&files.run("not toml", &[]), 1).contains("broker.toml"));
    assert!(refusal(&files.run("", &[]), 1).contains("listen.tls"));
    assert!(refusal(&files.run("[listen]\ntls = ['127.0.0.1:0']", &[]), 1).contains("policy.url"));
    assert!(
        refusal(&broker().arg("--config").arg("/nowhere/x.toml").output().unwrap(), 1)
            .contains("/nowhere/x.toml")
    );
    let open = "[listen]\ninsecure_loopback = ['0.0.0.0:0']\n[policy]\ncells = 'any_device'";
    assert!(refusal(&files.run(open, &["--check"]), 1).contains("0.0.0.0:0"));

    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = busy.local_addr().unwrap().to_string();
    assert!(refusal(&files.run(GOOD, &["--listen", &address]), 1).contains(&format!("{address} is in use")));
    let metrics = refusal(&files.run(GOOD, &["--metrics", &address, "--log", "error"]), 1);
    assert!(metrics.contains("/metrics") && metrics.contains(&address), "{metrics}");

    for (file, text, complaint) in [
        ("broker.key", "hello", "broker.key: "),
        ("broker.crt", "hello", "broker.crt: "),
        ("fleet-roots.pem", "", "fleet-roots.pem: "),
    ] {
        let files = Files::new();
        files.write(file, text);
        assert!(refusal(&files.run(GOOD, &[]), 1).contains(complaint));
        std::fs::remove_file(files.path().join(file)).unwrap();
        assert!(refusal(&files.run(GOOD, &[]), 1).contains("read "));
    }
    // Somebody else's identity.
    let files = Files::new();
    files.identity(&files.pki, &Role::Device(A));
    assert!(refusal(&files.run(GOOD, &[]), 1).contains("not a broker's certificate"));
    files.identity(&Pki::new(FLEET), &Role::Broker);
    assert!(refusal(&files.run(GOOD, &[]), 1).contains("broker.crt: "));
    files.identity(&files.pki, &Role::Broker);
    let (_, other_key) = files.pki.issue(&Role::Broker);
    files.write("broker.key", &other_key.to_pkcs8_pem());
    assert!(refusal(&files.run(GOOD, &[]), 1).contains("do not belong together"));
    let other_fleet = format!("fleet = '{OTHER_FLEET}'\n{GOOD}");
    assert!(refusal(&Files::new().run(&other_fleet, &[]), 1).contains("the roots are those of fleet"));
}

#[test]
fn the_check_finds_nothing_wrong_with_the_configuration_in_the_help() {
    let help = broker().arg("--help").output().unwrap();
    assert!(help.status.success());
    let help = String::from_utf8(help.stdout).unwrap();
    let from = help.find("    [tls]").expect("a sample configuration");
    let to = help.find("Without a coordinator").expect("what comes after it");
    let files = Files::new();
    let checked = files.run(&help[from..to], &["--check"]);
    let said = String::from_utf8(checked.stderr).unwrap();
    assert!(checked.status.success(), "{said}");
    assert!(said.contains(&FLEET.to_string()), "{said}");
}

/// A broker that runs, and what it logs.
struct Running {
    child: Child,
    lines: mpsc::Receiver<serde_json::Value>,
}

impl Running {
    fn start(files: &Files, config: &str) -> Self {
        files.write("broker.toml", config);
        let mut child = broker().arg("--config").arg(files.path().join("broker.toml")).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.lines() {
                let line = line.unwrap();
                let parsed = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
                if sender.send(parsed).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// The fields of the next line with this message.
    fn said(&self, message: &str) -> serde_json::Value {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("never said {message:?}"));
            if line["fields"]["message"] == message {
                return line["fields"].clone();
            }
        }
    }

    fn address(&self, message: &str) -> SocketAddr {
        self.said(message)["address"].as_str().unwrap().parse().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A coordinator's policy stream, written by hand.
struct Stream(TcpStream);

impl Stream {
    async fn accept(listener: &TcpListener) -> Self {
        let (mut stream, _) =
            tokio::time::timeout(PATIENCE, listener.accept()).await.expect("nobody asks").unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        let request = String::from_utf8(request).unwrap();
        assert!(request.starts_with("GET /v1/policy HTTP/1.1\r\n"), "{request}");
        assert!(request.to_lowercase().contains("\r\nauthorization: bearer the token\r\n"), "{request}");
        Self(stream)
    }

    async fn begin(&mut self) {
        self.0.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
    }

    async fn chunk(&mut self, text: &str) {
        self.0.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await.unwrap();
    }

    async fn update(&mut self, update: &PolicyUpdate) {
        // A line need not arrive at once.
        let line = format!("{}\n", serde_json::to_string(update).unwrap());
        let (first, second) = line.split_at(line.len() / 2);
        self.chunk(first).await;
        self.chunk(second).await;
    }
}

fn snapshot(sequence: u64) -> PolicyUpdate {
    let cells = BTreeMap::from([(CELL, BTreeSet::from([A, B]))]);
    PolicyUpdate::Snapshot { sequence, revoked: BTreeSet::new(), cells }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_follows_its_coordinator_through_breaks_and_stops_politely() {
    let coordinator = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let files = Files::new();
    let config = format!(
        "[listen]\ntls = ['127.0.0.1:0']\nmetrics = '127.0.0.1:0'\n[log]\nformat = 'json'\n\
         [policy]\nurl = 'http://{}/v1/policy'\ntoken = 'broker.token'\n",
        coordinator.local_addr().unwrap()
    );
    let mut broker = Running::start(&files, &config);
    let address = broker.address("listening");
    let metrics = broker.address("serving /metrics");
    let device = |device| {
        let config = files.pki.client(&Role::Device(device));
        async move { Client::tls(address, Version::V5, config).await.unwrap() }
    };

    // The token is wrong, says the coordinator: it is asked again.
    let mut stream = Stream::accept(&coordinator).await;
    stream
        .0
        .write_all(b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        .await
        .unwrap();
    let broken = broker.said("policy stream broken");
    assert!(broken["error"].as_str().unwrap().contains("401"), "{broken}");
    drop(stream);

    // Nothing is known yet.
    let mut stream = Stream::accept(&coordinator).await;
    assert_eq!(device(A).await.connect(&A.to_string()).await, 0x88);
    stream.begin().await;
    stream.chunk("\n").await;
    stream.update(&snapshot(5)).await;
    assert_eq!(broker.said("policy known")["sequence"], 5);
    let (mut a, mut b) = (device(A).await, device(B).await);
    assert_eq!(a.connect(&A.to_string()).await, 0);
    assert_eq!(b.connect(&B.to_string()).await, 0);
    assert_eq!(b.subscribe(&[(&cell(CELL), 0)]).await, [0]);

    // A revocation takes effect on a live session.
    stream.update(&PolicyUpdate::Revoked { sequence: 6, device: A }).await;
    a.expect_close(0x87).await;

    // A break: what was known stands.
    drop(stream);
    broker.said("policy stream broken");
    let mut stream = Stream::accept(&coordinator).await;
    assert_eq!(device(A).await.connect(&A.to_string()).await, 0x87);
    b.expect_nothing().await;

    // A gap in the stream is a break too.
    stream.begin().await;
    stream.update(&snapshot(8)).await;
    broker.said("policy known");
    stream.update(&PolicyUpdate::CellGone { sequence: 10, cell: CELL }).await;
    let broken = broker.said("policy stream broken");
    assert!(broken["error"].as_str().unwrap().contains("update 10 came where 9 was due"), "{broken}");
    let mut stream = Stream::accept(&coordinator).await;
    stream.begin().await;
    stream.update(&PolicyUpdate::CellGone { sequence: 9, cell: CELL }).await;
    let broken = broker.said("policy stream broken");
    assert!(broken["error"].as_str().unwrap().contains("before any snapshot"), "{broken}");

    // A snapshot that left the cell out ends the subscription.
    let mut stream = Stream::accept(&coordinator).await;
    stream.begin().await;
    let empty = PolicyUpdate::Snapshot { sequence: 11, revoked: BTreeSet::new(), cells: BTreeMap::new() };
    stream.update(&empty).await;
    broker.said("policy known");
    assert_eq!(b.subscribe(&[(&cell(CELL), 0)]).await, [0x87]);

    let scraped = scrape(metrics).await;
    for line in [
        "fleetkey_broker_refused_total{reason=\"policy_unknown\"} 1",
        "fleetkey_broker_refused_total{reason=\"revoked\"} 1",
        "fleetkey_broker_refused_total{reason=\"not_member\"} 1",
        "fleetkey_broker_closed_total{reason=\"revoked\"} 1",
        "fleetkey_broker_sessions 1",
        "fleetkey_broker_sessions_total 2",
        "fleetkey_broker_policy_connected 1",
        "fleetkey_broker_policy_sequence 11",
        "fleetkey_broker_policy_breaks_total 4",
    ] {
        assert!(scraped.lines().any(|got| got == line), "{line:?} in {scraped}");
    }

    let id = broker.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    b.expect_close(0x8b).await;
    broker.said("stopped");
    assert!(broker.child.wait().unwrap().success());
    let mut rest = String::new();
    broker.child.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "nothing is said on standard output");
}

async fn scrape(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crl_takes_effect_when_its_file_changes_and_only_a_newer_one_of_the_fleets_ca() {
    let files = Files::new();
    let (chain, key) = files.pki.issue(&Role::Device(A));
    let serial = read_certificate(&chain[0]).unwrap().serial;
    let list = |pki: &Pki, number, serials: &[&Vec<u8>]| {
        let revoked: Vec<Revoked> =
            serials.iter().map(|serial| Revoked { serial: (*serial).clone(), unix_seconds: 1 }).collect();
        crl_to_pem(&pki.ca.revocation_list(number, Validity::days_from(0, 90_000), &revoked).unwrap())
    };
    let config = "[listen]\ntls = ['127.0.0.1:0']\nmetrics = '127.0.0.1:0'\n[log]\nformat = 'json'\n\
        [policy]\ncells = 'any_device'\n[tls]\ncrl = 'fleet.crl'\n";
    assert!(refusal(&files.run(config, &[]), 1).contains("fleet.crl"));
    files.write("fleet.crl", &list(&Pki::new(FLEET), 9, &[]));
    assert!(refusal(&files.run(config, &[]), 1).contains("not signed by a CA of the fleet"));

    files.write("fleet.crl", &list(&files.pki, 5, &[]));
    let broker = Running::start(&files, config);
    let address = broker.address("listening");
    let metrics = broker.address("serving /metrics");
    assert_eq!(broker.said("CRL in force")["number"], 5);
    // Whole or not at all: half a file is no list.
    let publish = |text: &str| {
        files.write("fleet.crl.new", text);
        std::fs::rename(files.path().join("fleet.crl.new"), files.path().join("fleet.crl")).unwrap();
    };
    let tls = fleetkey_identity::tls::client_config(&chain, &key, &files.pki.roots).unwrap();
    let mut a = Client::tls(address, Version::V5, tls.clone()).await.unwrap();
    assert_eq!(a.connect(&A.to_string()).await, 0);

    for (text, complaint) in [
        ("hello".to_owned(), "not a CRL"),
        (list(&Pki::new(FLEET), 6, &[&serial]), "not signed by a CA of the fleet"),
        (list(&files.pki, 4, &[&serial]), "CRL 4, and CRL 5 is in force"),
    ] {
        publish(&text);
        let unused = broker.said("the CRL has changed, and is not used");
        assert!(unused["error"].as_str().unwrap().contains(complaint), "{unused}");
        a.expect_nothing().await;
    }
    publish(&list(&files.pki, 6, &[&serial]));
    a.expect_close(0x87).await;
    let in_force = broker.said("CRL in force");
    assert_eq!((&in_force["number"], &in_force["ended"]), (&6.into(), &1.into()));
    let mut again = Client::tls(address, Version::V5, tls).await.unwrap();
    assert_eq!(again.connect(&A.to_string()).await, 0x87);
    let scraped = scrape(metrics).await;
    for line in [
        "fleetkey_broker_crl_number 6",
        "fleetkey_broker_crl_certificates 1",
        "fleetkey_broker_crl_failures_total 3",
        "fleetkey_broker_refused_total{reason=\"revoked_certificate\"} 2",
    ] {
        assert!(scraped.lines().any(|got| got == line), "{line:?} in {scraped}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_answers_with_and_without_mqtt_beside_it() {
    let coordinator = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let files = Files::new();
    let open = "fleet = '01010101-0101-0101-0101-010101010101'\n[gate]\nlisten = '0.0.0.0:0'\n\
        [policy]\ncells = 'any_device'\n";
    assert!(refusal(&files.run(open, &["--check"]), 1).contains("gate.allow_remote"));
    let unnamed = "[gate]\nlisten = '127.0.0.1:0'\n[policy]\ncells = 'any_device'\n";
    assert!(refusal(&files.run(unnamed, &["--check"]), 1).contains("which fleet"));
    let config = format!(
        "fleet = '{FLEET}'\n[gate]\nlisten = '127.0.0.1:0'\n[log]\nformat = 'json'\n\
         [policy]\nurl = 'http://{}/v1/policy'\ntoken = 'broker.token'\n",
        coordinator.local_addr().unwrap()
    );
    let broker = Running::start(&files, &config);
    let gate = broker.address("the gate answers");
    let ask = |name: String| async move {
        let body = format!("username={name}");
        let mut stream = TcpStream::connect(gate).await.unwrap();
        let request = format!(
            "POST /rabbitmq/user HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\
             Content-Type: application/x-www-form-urlencoded\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.rsplit("\r\n").next().unwrap().to_owned()
    };
    let mut stream = Stream::accept(&coordinator).await;
    assert_eq!(ask(A.to_string()).await, "deny", "nothing is known yet");
    stream.begin().await;
    stream.update(&snapshot(5)).await;
    broker.said("policy known");
    assert_eq!(ask(A.to_string()).await, "allow");
    stream.update(&PolicyUpdate::Revoked { sequence: 6, device: A }).await;
    let deadline = std::time::Instant::now() + PATIENCE;
    while ask(A.to_string()).await == "allow" {
        assert!(std::time::Instant::now() < deadline, "still let in");
    }
    assert_eq!(ask(B.to_string()).await, "allow");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_changes_is_shown_from_then_on_and_breaks_no_session() {
    let files = Files::new();
    let config = "[listen]\ntls = ['127.0.0.1:0']\n[log]\nformat = 'json'\n[policy]\ncells = 'any_device'\n";
    let broker = Running::start(&files, config);
    let address = broker.address("listening");
    let (chain, key) = files.pki.issue(&Role::Device(A));
    let tls = fleetkey_identity::tls::client_config(&chain, &key, &files.pki.roots).unwrap();
    let mut a = Client::tls(address, Version::V5, tls).await.unwrap();
    assert_eq!(a.connect(&A.to_string()).await, 0);

    // Another root, and a certificate below it: taken together, or not at all.
    let other = Pki::new(FLEET);
    let (new_chain, new_key) = other.issue(&Role::Broker);
    files.write("broker.crt", &chain_to_pem(&new_chain));
    let unused = broker.said("the broker's certificate has changed, and is not used");
    assert!(unused["error"].as_str().unwrap().contains("broker.crt"), "{unused}");
    a.expect_nothing().await;
    files.write("broker.key", &new_key.to_pkcs8_pem());
    let both = [files.pki.roots.to_pem(), other.roots.to_pem()].concat();
    files.write("fleet-roots.pem", &both);
    broker.said("certificate in use");
    a.expect_nothing().await;

    let (chain, key) = other.issue(&Role::Device(B));
    let sees_new = fleetkey_identity::tls::client_config(&chain, &key, &other.roots).unwrap();
    let mut b = Client::tls(address, Version::V5, sees_new).await.unwrap();
    assert_eq!(b.connect(&B.to_string()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_changes_just_after_it_was_read_is_taken() {
    let files = Files::new();
    let config = "[listen]\ntls = ['127.0.0.1:0']\n[policy]\ncells = 'any_device'\n";
    let setup = Settings::parse(&files.path().join("broker.toml"), config).unwrap().set_up().unwrap();
    let other = Pki::new(FLEET);
    files.identity(&other, &Role::Broker);
    files.write("fleet-roots.pem", &[files.pki.roots.to_pem(), other.roots.to_pem()].concat());
    let broker = Broker::start(setup.broker.unwrap(), policy()).unwrap();
    tokio::spawn(setup.certificate.unwrap().follow());
    let (chain, key) = other.issue(&Role::Device(B));
    let sees_new = fleetkey_identity::tls::client_config(&chain, &key, &other.roots).unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    while Client::tls(broker.local_addrs()[0], Version::V5, sees_new.clone()).await.is_err() {
        assert!(std::time::Instant::now() < deadline, "the old one is shown still");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_of_several_cas_are_obeyed_and_the_last_of_one_closes_it() {
    let files = Files::new();
    let always = Validity::without_end(0);
    let [former, current] =
        [1, 2].map(|_| files.pki.ca.create_intermediate(&mut rand_core::OsRng, always).unwrap());
    let device = |ca: &fleetkey_identity::FleetCa, id| {
        let key = fleetkey_identity::IdentityKey::generate(&mut rand_core::OsRng);
        let leaf = ca.issue(&Role::Device(id), &key.public_key(), &[], always).unwrap();
        let serial = read_certificate(&leaf).unwrap().serial;
        let tls = fleetkey_identity::tls::client_config(&ca.chain(leaf), &key, &files.pki.roots).unwrap();
        (serial, tls)
    };
    let ((_, a_tls), (b_serial, b_tls)) = (device(&former, A), device(&current, B));
    let list = |ca: &fleetkey_identity::FleetCa, number, validity, serials: &[&Vec<u8>]| {
        let revoked: Vec<Revoked> =
            serials.iter().map(|serial| Revoked { serial: (*serial).clone(), unix_seconds: 1 }).collect();
        let der = ca.revocation_list(number, validity, &revoked).unwrap();
        ca.certificate_pem() + &crl_to_pem(&der)
    };
    let open = Validity::days_from(0, 90_000);
    let both = |number, last, first: &[&Vec<u8>], second: &[&Vec<u8>]| {
        list(&former, number, last, first) + &list(&current, number, open, second)
    };
    let config = "[listen]\ntls = ['127.0.0.1:0']\n[log]\nformat = 'json'\n\
        [policy]\ncells = 'any_device'\n[tls]\ncrl = 'fleet.crl'\n";
    files.write("fleet.crl", &both(1, open, &[], &[]));
    let broker = Running::start(&files, config);
    let address = broker.address("listening");
    broker.said("CRL in force");
    let connect = async |tls: &std::sync::Arc<rustls::ClientConfig>, id: DeviceId| {
        let mut client = Client::tls(address, Version::V5, tls.clone()).await.unwrap();
        let code = client.connect(&id.to_string()).await;
        (client, code)
    };
    let ((mut a, for_a), (mut b, for_b)) = (connect(&a_tls, A).await, connect(&b_tls, B).await);
    assert_eq!((for_a, for_b), (0, 0));
    let publish = |text: &str| {
        files.write("fleet.crl.new", text);
        std::fs::rename(files.path().join("fleet.crl.new"), files.path().join("fleet.crl")).unwrap();
    };
    publish(&both(2, open, &[], &[&b_serial]));
    b.expect_close(0x87).await;
    a.expect_nothing().await;
    // The last list of a CA ends every session of that CA, and nobody of it gets in, named or not.
    publish(&both(3, always, &[], &[&b_serial]));
    a.expect_close(0x87).await;
    let (_, unnamed) = device(&former, A);
    let refused = match Client::tls(address, Version::V5, unnamed).await {
        // The client is done before the broker has looked at its certificate.
        Ok(mut client) => client.receive().await.is_none(),
        Err(_) => true,
    };
    assert!(refused);
    let (_, of_current) = device(&current, A);
    assert_eq!(connect(&of_current, A).await.1, 0);
}
