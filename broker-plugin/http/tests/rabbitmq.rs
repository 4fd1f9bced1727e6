//! A real RabbitMQ with the sample configuration, the gate to ask, and the intruder at the door.
//!
//! Ignored for its weight; `just rabbitmq` runs it. Everything is on loopback, in a directory of its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fleetkey_gate::{Gate, Kicker, Management, ManagementKind, serve};
use fleetkey_identity::{Role, chain_to_pem};
use fleetkey_intruder::client::Hello;
use fleetkey_intruder::{Cast, Client, Level, Target};
use fleetkey_policy::{CellAccess, PolicyHandle, PolicyState, PolicyUpdate};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

const BINARIES: &str = "/usr/lib/rabbitmq/bin";
/// It takes its time to start.
const PATIENCE: Duration = Duration::from_secs(180);

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A node, and the daemon that Erlang's nodes find each other by: both end with it.
struct RabbitMq {
    directory: PathBuf,
    environment: Vec<(String, String)>,
    epmd: Child,
    node: Child,
}

impl RabbitMq {
    fn start(directory: &Path, config: &str) -> Self {
        let file = |name: &str| directory.join(name).display().to_string();
        fs::write(file("rabbitmq.conf"), config).unwrap();
        let advanced = include_str!("../../../deploy/rabbitmq-advanced.config");
        fs::write(file("advanced.config"), advanced).unwrap();
        fs::write(
            file("enabled_plugins"),
            "[rabbitmq_mqtt,rabbitmq_auth_backend_http,rabbitmq_auth_mechanism_ssl,rabbitmq_management].",
        )
        .unwrap();
        let epmd_port = free().port();
        let environment: Vec<(String, String)> = [
            ("HOME", directory.display().to_string()),
            ("ERL_EPMD_PORT", epmd_port.to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
            ("RABBITMQ_NODENAME", format!("fleetkey-{epmd_port}@localhost")),
            ("RABBITMQ_DIST_PORT", free().port().to_string()),
            ("RABBITMQ_MNESIA_BASE", file("mnesia")),
            ("RABBITMQ_LOG_BASE", file("log")),
            ("RABBITMQ_PID_FILE", file("pid")),
            ("RABBITMQ_CONFIG_FILE", file("rabbitmq.conf")),
            ("RABBITMQ_ADVANCED_CONFIG_FILE", file("advanced.config")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", file("enabled_plugins")),
            ("RABBITMQ_CONF_ENV_FILE", file("none")),
            // A node of a test needs no more.
            (
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "+S 2:2 -kernel inet_dist_use_interface {127,0,0,1}".to_owned(),
            ),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        let epmd = Command::new("epmd")
            .args(["-port", &epmd_port.to_string(), "-address", "127.0.0.1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = fs::File::create(file("output")).unwrap();
        let node = Command::new(Path::new(BINARIES).join("rabbitmq-server"))
            .envs(environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .process_group(0)
            .spawn()
            .unwrap();
        Self { directory: directory.to_owned(), environment, epmd, node }
    }

    fn control(&self, arguments: &[&str]) -> Output {
        Command::new(Path::new(BINARIES).join("rabbitmqctl"))
            .envs(self.environment.iter().cloned())
            .args(arguments)
            .output()
            .unwrap()
    }

    /// What it says of itself.
    fn log(&self) -> String {
        let files = fs::read_dir(self.directory.join("log")).unwrap();
        files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap_or_default()).collect()
    }

    fn wait_for(&mut self, address: SocketAddr) {
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            let output = || fs::read_to_string(self.directory.join("output")).unwrap();
            if let Some(status) = self.node.try_wait().unwrap() {
                panic!("RabbitMQ ended ({status}): {}", output());
            }
            assert!(Instant::now() < deadline, "RabbitMQ does not listen: {}", output());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        // Its whole group: the script is not the node.
        let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", self.node.id())]).status();
        let _ = self.node.wait();
        let _ = self.epmd.kill();
        let _ = self.epmd.wait();
    }
}

/// The sample, with this machine's addresses and files.
fn config(directory: &Path, mqtt: SocketAddr, gate: SocketAddr, management: SocketAddr) -> String {
    let sample = include_str!("../../../deploy/rabbitmq.conf");
    let mut config = sample.to_owned();
    for (from, to) in [
        ("mqtt.listeners.ssl.default = 8883", format!("mqtt.listeners.ssl.default = {mqtt}")),
        ("/etc/fleetkey/broker/", format!("{}/", directory.display())),
        ("127.0.0.1:7610", gate.to_string()),
        ("management.tcp.port = 15672", format!("management.tcp.port = {}", management.port())),
    ] {
        assert!(config.contains(from), "the sample has changed: {from}");
        config = config.replace(from, &to);
    }
    config
}

#[test]
#[ignore = "starts a RabbitMQ: `just rabbitmq`"]
fn the_intruder_gets_nothing_from_rabbitmq_and_a_revoked_session_ends() {
    if !Path::new(BINARIES).join("rabbitmq-server").is_file() {
        let note = b"NOT RUN: the intruder at RabbitMQ: it is not installed\n";
        std::io::stderr().write_all(note).unwrap();
        return;
    }
    let cast = Cast::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let broker = cast.papers(&Role::Broker).unwrap();
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    write("fleet-roots.pem", &cast.roots().unwrap().to_pem());
    write("broker.crt", &chain_to_pem(&broker.chain));
    write("broker.key", &broker.key_pem);

    let policy = PolicyHandle::new(PolicyState::new(cast.fleet, CellAccess::Members));
    let gate = Arc::new(Gate::new(policy.clone(), None, Duration::from_secs(60)));
    let runtime = Runtime::new().unwrap();
    let socket = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let gate_address = socket.local_addr().unwrap();
    runtime.spawn(serve(socket, gate.clone(), CancellationToken::new()));

    let (mqtt, management) = (free(), free());
    let config = config(directory.path(), mqtt, gate_address, management);
    let mut rabbitmq = RabbitMq::start(directory.path(), &config);
    rabbitmq.wait_for(management);
    rabbitmq.wait_for(mqtt);
    for arguments in [
        ["add_user", "fleetkey", "a long secret"].as_slice(),
        &["set_user_tags", "fleetkey", "administrator"],
        &["set_permissions", "fleetkey", "^mqtt-subscription-.*$", "^$", "^$"],
        &["delete_user", "guest"],
    ] {
        let done = rabbitmq.control(arguments);
        assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
    let kind = ManagementKind::RabbitMq { vhost: "/".to_owned() };
    let management = Management::new(kind, &format!("http://{management}"), "fleetkey", "a long secret");
    let _kicker = Kicker::start(management, &policy).unwrap();
    let cells = BTreeMap::from([
        (cast.cell, BTreeSet::from([cast.intruder, cast.victim])),
        (cast.other_cell, BTreeSet::from([cast.victim])),
    ]);
    let revoked = BTreeSet::from([cast.revoked]);
    policy.apply(PolicyUpdate::Snapshot { sequence: 1, revoked, cells }).unwrap();

    let target = Target { address: mqtt, settle: Duration::from_millis(200), has_open_cells: false };
    let report = fleetkey_intruder::run(&target, Level::V4, &cast).unwrap_or_else(|error| {
        panic!("{error:#}\n{}\nthe gate has refused: {:?}", rabbitmq.log(), gate.refusals())
    });
    println!("{} attempts, got through: {:#?}", report.tried.len(), report.got_through);
    // Neither is told to the gate. Both go to its own `up`, where only frames under its link key count.
    assert_eq!(report.names(), ["a will to its own up", "publish at QoS 2"]);

    // A session that asks for nothing.
    let papers = cast.papers(&Role::Device(cast.victim)).unwrap();
    let mut victim = Client::honest(&target, Level::V4, &papers, &cast.victim.to_string()).unwrap();
    assert!(victim.subscribe(cast.down(cast.victim).as_bytes(), 1).is_some_and(|code| code < 2));
    let begun = Instant::now();
    policy.apply(PolicyUpdate::Revoked { sequence: 2, device: cast.victim }).unwrap();
    while !victim.is_closed() {
        assert!(begun.elapsed() < Duration::from_secs(20), "the session lives on");
    }
    println!("from the revocation to the end of the session: {:?}", begun.elapsed());
    let id = cast.victim.to_string();
    let (_, code) = Client::connect(&target, Level::V4, Some(&papers), &id, Hello::default()).unwrap();
    assert_ne!(code, Some(0), "it is back");
}
