//! The command itself: its bundle, its socket, its errors, and what survives kill -9.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::Line;
use common::broker::Broker;
use common::fleet::{Device, Fleet, validity};
use fleetkey_identity::{Role, chain_to_pem};
use tempfile::TempDir;

const AGENT: &str = env!("CARGO_BIN_EXE_fleetkey-agent");

/// A bundle, as `fleetkey device provision` writes it.
struct Bundle {
    directory: TempDir,
}

impl Bundle {
    fn write(fleet: &Fleet, device: &Device, broker: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let bundle = Self { directory };
        let key = &device.config.identity;
        let certificate =
            fleet.ca.issue(&Role::Device(device.id), &key.public_key(), &[], validity()).unwrap();
        bundle.put("device.crt", &chain_to_pem(&fleet.ca.chain(certificate)));
        bundle.put("device.key", &key.to_pkcs8_pem());
        bundle.put("fleet-roots.pem", &fleet.roots.to_pem());
        bundle.put("coordinator.crt", &chain_to_pem(&fleet.chain));
        bundle.put("master.key", &"0123456789abcdef".repeat(4));
        bundle.put(
            "agent.toml",
            &format!(
                "fleet = \"{}\"\ndevice = \"{}\"\nbroker = \"{broker}\"\n[mqtt]\nmax_backoff_seconds = 1\n",
                fleet.id, device.id
            ),
        );
        bundle
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(AGENT);
        command.arg("--config").arg(self.path("agent.toml")).args(arguments);
        command.env_remove("FLEETKEY_AGENT_MASTER_KEY");
        command
    }

    fn start(&self) -> Agent {
        let mut child = self
            .command(&[])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The log says when it is running; from then on it is read, so that the agent can write.
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut lines = String::new();
        while !lines.contains("running") {
            assert!(log.read_line(&mut lines).unwrap() > 0, "the agent has ended: {lines}");
        }
        let rest = std::thread::spawn(move || {
            let mut text = lines;
            _ = log.read_to_string(&mut text);
            text
        });
        Agent { child, log: Some(rest) }
    }

    /// Runs a command that answers from the running agent.
    fn ask(&self, arguments: &[&str], stdin: &[u8]) -> Output {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that fails before it reads has closed its end.
        _ = child.stdin.take().unwrap().write_all(stdin);
        child.wait_with_output().unwrap()
    }

    fn ask_meanwhile(&self, arguments: &[&str], stdin: &[u8]) -> Output {
        tokio::task::block_in_place(|| self.ask(arguments, stdin))
    }
}

/// A running agent; killed when the test is over.
struct Agent {
    child: Child,
    log: Option<std::thread::JoinHandle<String>>,
}

impl Agent {
    fn terminate(&mut self) -> (std::process::ExitStatus, String) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        let status = self.child.wait().unwrap();
        (status, self.log.take().unwrap().join().unwrap())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn one_line(output: &Output) -> String {
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(!output.status.success(), "it was to fail: {error}");
    assert_eq!(error.lines().count(), 1, "one line: {error}");
    error
}

/// A broker that nobody runs.
const NOWHERE: &str = "mqtt://127.0.0.1:9";

#[test]
fn what_is_wrong_is_said_in_one_line() {
    let mut fleet = Fleet::new(20);
    let (device, other) = (fleet.device(), fleet.device());
    let fails = |change: &dyn Fn(&Bundle), what: &str| {
        let bundle = Bundle::write(&fleet, &device, NOWHERE);
        change(&bundle);
        let line = one_line(&bundle.command(&[]).output().unwrap());
        assert!(line.contains(what), "{what}: {line}");
    };
    let replace = |from: &'static str, to: &'static str| {
        move |bundle: &Bundle| {
            let text = fs::read_to_string(bundle.path("agent.toml")).unwrap();
            bundle.put("agent.toml", &text.replace(from, to));
        }
    };
    for name in ["agent.toml", "device.crt", "device.key", "fleet-roots.pem", "coordinator.crt", "master.key"]
    {
        fails(&|bundle| fs::remove_file(bundle.path(name)).unwrap(), name);
    }
    for name in ["device.crt", "device.key", "fleet-roots.pem", "coordinator.crt", "master.key"] {
        fails(&|bundle| bundle.put(name, "nonsense"), name);
    }
    for name in ["device.key", "master.key"] {
        let open = fs::Permissions::from_mode(0o644);
        fails(&|bundle| fs::set_permissions(bundle.path(name), open.clone()).unwrap(), "chmod 600");
    }
    fails(&replace("broker =", "brokre ="), "brokre");
    fails(&replace("mqtt://", "tcp://"), "unknown scheme");
    fails(&replace("max_backoff_seconds", "max_back_off"), "max_back_off");
    fails(&|bundle| bundle.put("device.key", &other.config.identity.to_pkcs8_pem()), "does not belong");
    fails(
        &|bundle| bundle.put("coordinator.crt", &fs::read_to_string(bundle.path("device.crt")).unwrap()),
        "not of the coordinator",
    );
    let theirs = Bundle::write(&fleet, &other, NOWHERE);
    fails(
        &|bundle| {
            for name in ["device.crt", "device.key"] {
                fs::copy(theirs.path(name), bundle.path(name)).unwrap();
            }
        },
        "not of device",
    );
    let stranger = Fleet::new(21);
    fails(&|bundle| bundle.put("fleet-roots.pem", &stranger.roots.to_pem()), "device.crt");
    fails(&|bundle| bundle.put("state.db", "this is no database, however long it may be"), "state.db");
}

#[test]
fn a_wrong_flag_is_refused() {
    for arguments in [&["--cofnig", "x"][..], &["seal"], &["keys", "--label", "x"], &["sael"]] {
        let output = Command::new(AGENT).args(arguments).output().unwrap();
        assert!(!output.status.success());
        assert!(!output.stderr.is_empty());
    }
    let help = Command::new(AGENT).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for word in ["seal", "open", "keys", "status", "device provision", "--config"] {
        assert!(help.contains(word), "{word}: {help}");
    }
}

#[test]
fn without_an_agent_the_commands_say_so() {
    let mut fleet = Fleet::new(22);
    let device = fleet.device();
    let bundle = Bundle::write(&fleet, &device, NOWHERE);
    for arguments in [&["status"][..], &["keys"], &["seal", "--group", "pumps"], &["open"]] {
        let line = one_line(&bundle.ask(arguments, b""));
        assert!(line.contains("is it running"), "{line}");
    }
}

#[test]
fn an_unreachable_broker_is_tried_until_it_is_reached() {
    let mut fleet = Fleet::new(23);
    let device = fleet.device();
    let bundle = Bundle::write(&fleet, &device, NOWHERE);
    let mut agent = bundle.start();

    let status = bundle.ask(&["status", "--json"], b"");
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!((&status["connected"], &status["device"]), (&false.into(), &device.id.to_string().into()));
    let mode = fs::metadata(bundle.path("agent.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let line = one_line(&bundle.command(&[]).output().unwrap());
    assert!(line.contains("another agent is running"), "{line}");
    let elsewhere = bundle.path("elsewhere.sock");
    let second = bundle.command(&["--socket", elsewhere.to_str().unwrap()]).output().unwrap();
    assert!(one_line(&second).contains("locked"), "the state is one agent's");
    let line = one_line(&bundle.ask(&["seal", "--group", "pumps"], b"x"));
    assert!(line.contains("pumps"), "{line}");
    let line = one_line(&bundle.ask(&["open"], b"no message"));
    assert!(line.contains("sealed message"), "{line}");

    let (status, log) = agent.terminate();
    assert!(status.success(), "{log}");
    assert!(!bundle.path("agent.sock").exists());
    assert_eq!(log.matches("disconnected").count(), 1, "told once: {log}");
}

#[test]
fn the_socket_refuses_what_is_no_request() {
    let mut fleet = Fleet::new(24);
    let device = fleet.device();
    let bundle = Bundle::write(&fleet, &device, NOWHERE);
    let _agent = bundle.start();
    let call = |line: &[u8]| {
        let mut stream = std::os::unix::net::UnixStream::connect(bundle.path("agent.sock")).unwrap();
        _ = stream.write_all(line);
        let mut answer = String::new();
        _ = BufReader::new(stream).read_line(&mut answer);
        answer
    };
    for line in [
        "nonsense\n",
        "{}\n",
        "{\"op\":\"explode\"}\n",
        "{\"op\":\"seal\",\"group\":\"g\",\"plaintext\":\"zz\"}\n",
        "{\"op\":\"key\",\"group\":\"g\",\"label\":\"l\",\"length\":65}\n",
        "{\"op\":\"open\",\"sealed\":\"\",\"unknown\":1}\n",
    ] {
        let answer = call(line.as_bytes());
        assert!(answer.contains("bad_request"), "{line} {answer}");
    }
    assert_eq!(call(&vec![b'x'; 2 * 1024 * 1024]), "", "a line that is too long ends the call");
    assert!(call(b"{\"op\":\"status\"}\n").contains("\"ok\""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_survive_kill_9() {
    let mut fleet = Fleet::new(25);
    let broker = Broker::start().await;
    let mut device = fleet.device();
    let mut group = fleet.group();
    let bundle = Bundle::write(&fleet, &device, &broker.url());
    let mut agent = tokio::task::block_in_place(|| bundle.start());
    let mut line = Line::accept(&broker, &fleet, &mut device).await;
    line.admit(&mut fleet, &mut device, &mut group).await;

    let sealed = bundle.ask_meanwhile(&["seal", "--group", "pumps", "--context", "c"], b"valve 3 shut\n");
    assert!(sealed.status.success(), "{sealed:?}");
    agent.child.kill().unwrap();
    agent.child.wait().unwrap();
    assert!(bundle.path("agent.sock").exists(), "kill -9 leaves it behind");
    drop(line);

    let _agent = tokio::task::block_in_place(|| bundle.start());
    let opened = bundle.ask_meanwhile(&["open", "--context", "c", "--verbose"], &sealed.stdout);
    assert_eq!(opened.stdout, b"valve 3 shut\n", "{opened:?}");
    assert!(String::from_utf8(opened.stderr).unwrap().contains(&device.id.to_string()));
    let refused = bundle.ask_meanwhile(&["open", "--context", "d"], &sealed.stdout);
    assert!(one_line(&refused).contains("does not open"));
    let keys = bundle.ask_meanwhile(&["keys", "--json"], b"");
    let keys: serde_json::Value = serde_json::from_slice(&keys.stdout).unwrap();
    assert_eq!(keys[0]["send"], group.send.to_string());
    let key = bundle.ask_meanwhile(&["keys", "--group", "pumps", "--label", "l", "--length", "16"], b"");
    let expected =
        group.secrets[&group.send].app_key("l", b"", fleetkey_wire::keys::AppKeyLength::new(16).unwrap());
    assert_eq!(String::from_utf8(key.stdout).unwrap().trim(), hex::encode(&*expected));
    // And it goes on from there.
    let mut line = Line::accept(&broker, &fleet, &mut device).await;
    let frame = group.rekey_frame(&mut fleet);
    line.session.publish(&device.cell_topic(group.id_of_cell()).to_string(), &frame).await;
    line.until_confirmed(&fleet, &mut device, &group).await;
    let status = bundle.ask_meanwhile(&["status"], b"");
    assert!(String::from_utf8(status.stdout).unwrap().contains(&group.send.to_string()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signed_message_opens_with_its_senders_certificate() {
    let mut fleet = Fleet::new(26);
    let mut group = fleet.group();
    let mut parties = Vec::new();
    for _ in 0..2 {
        let broker = Broker::start().await;
        let mut device = fleet.device();
        let bundle = Bundle::write(&fleet, &device, &broker.url());
        let agent = tokio::task::block_in_place(|| bundle.start());
        let mut line = Line::accept(&broker, &fleet, &mut device).await;
        line.admit(&mut fleet, &mut device, &mut group).await;
        parties.push((bundle, agent, line));
    }
    let (a, b) = (&parties[0].0, &parties[1].0);
    let sealed = a.ask_meanwhile(&["seal", "--group", &group.id.to_string(), "--sign"], b"by a");
    assert!(one_line(&b.ask_meanwhile(&["open"], &sealed.stdout)).contains("signed by"));
    let certificate = a.path("device.crt");
    let sender = ["open", "--sender", certificate.to_str().unwrap()];
    assert_eq!(b.ask_meanwhile(&sender, &sealed.stdout).stdout, b"by a");
    assert!(is_wrong_key(b, &sealed.stdout));
}

/// A certificate of somebody outside the fleet is of no use.
fn is_wrong_key(bundle: &Bundle, sealed: &[u8]) -> bool {
    let mut stranger = Fleet::new(27);
    let device = stranger.device();
    let theirs = Bundle::write(&stranger, &device, NOWHERE);
    let path: &Path = &theirs.path("device.crt");
    let refused = bundle.ask_meanwhile(&["open", "--sender", path.to_str().unwrap()], sealed);
    one_line(&refused).contains("sender's certificate")
}
