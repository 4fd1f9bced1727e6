//! Nodes as processes, the coordinator's policy stream to feed them, and what they need to know each other by.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, unreachable_pub, reason = "every test file uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use fleetkey_identity::{Role, chain_to_pem};
use fleetkey_intruder::{Cast, Target};
use fleetkey_policy::PolicyUpdate;
use tempfile::TempDir;

/// Nothing here takes this long; what does has failed.
pub const PATIENCE: Duration = Duration::from_secs(90);

pub fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Everybody is where the intruder's script wants them.
pub fn snapshot(cast: &Cast, sequence: u64) -> PolicyUpdate {
    let cells = BTreeMap::from([
        (cast.cell, BTreeSet::from([cast.intruder, cast.victim])),
        (cast.other_cell, BTreeSet::from([cast.victim])),
    ]);
    PolicyUpdate::Snapshot { sequence, revoked: BTreeSet::from([cast.revoked]), cells }
}

/// Waits until `done` says so.
pub fn until(what: &str, mut done: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
    begun.elapsed()
}

/// A coordinator, as far as brokers know one: its policy stream.
pub struct Feed {
    address: SocketAddr,
    shared: Arc<Mutex<Said>>,
}

#[derive(Default)]
struct Said {
    lines: Vec<String>,
    followers: Vec<TcpStream>,
}

impl Feed {
    pub fn start(first: &PolicyUpdate) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Mutex::new(Said::default()));
        let feed = Self { address, shared: shared.clone() };
        feed.say(first);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    request.push(byte[0]);
                }
                let request = String::from_utf8(request).unwrap().to_lowercase();
                assert!(request.starts_with("get /v1/policy http/1.1\r\n"), "{request}");
                assert!(request.contains("authorization: bearer the token\r\n"), "{request}");
                stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").unwrap();
                let mut said = shared.lock().unwrap();
                for line in &said.lines {
                    stream.write_all(line.as_bytes()).unwrap();
                }
                said.followers.push(stream);
            }
        });
        feed
    }

    /// Says it to everybody who follows, and to whoever comes later.
    pub fn say(&self, update: &PolicyUpdate) {
        let line = serde_json::to_string(update).unwrap() + "\n";
        let mut said = self.shared.lock().unwrap();
        // Who was killed hears nothing any more.
        said.followers.retain_mut(|stream| stream.write_all(line.as_bytes()).is_ok());
        said.lines.push(line);
    }
}

/// A node that runs, and what it logs.
pub struct Running {
    pub child: Child,
    lines: mpsc::Receiver<serde_json::Value>,
    pub address: SocketAddr,
    pub metrics: SocketAddr,
}

impl Running {
    /// A node with these papers, that follows this feed. `more` is the rest of its settings.
    pub fn start(directory: &Path, feed: &Feed, more: &str) -> Self {
        let (address, metrics) = (free(), free());
        let config = format!(
            "[listen]\ntls = ['{address}']\nmetrics = '{metrics}'\n[log]\nformat = 'json'\n\
             [policy]\nurl = 'http://{}/v1/policy'\ntoken = 'broker.token'\n{more}",
            feed.address
        );
        let file = directory.join(format!("{}.toml", address.port()));
        fs::write(&file, config).unwrap();
        let mut child = command().arg("--config").arg(&file).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in stderr.lines() {
                let line = line.unwrap();
                let parsed = serde_json::from_str(&line).unwrap_or(serde_json::Value::String(line));
                if sender.send(parsed).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, address, metrics }
    }

    /// The fields of the next line with this message.
    pub fn said(&self, message: &str) -> serde_json::Value {
        let deadline = Instant::now() + PATIENCE;
        let mut before = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if line["fields"]["message"] == message {
                return line["fields"].clone();
            }
            before.push(line.to_string());
        }
        panic!("never said {message:?}, but:\n{}", before.join("\n"));
    }

    pub fn target(&self, settle: Duration) -> Target {
        Target { address: self.address, settle, has_open_cells: false }
    }

    /// What it answers to `GET path`: the status, and the text.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.metrics).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some((text.split(' ').nth(1)?.parse().ok()?, text))
    }

    pub fn is_healthy(&self) -> bool {
        self.get("/health").is_some_and(|(status, _)| status == 200)
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fleetkey-broker-rmqtt"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A directory with a broker's papers.
pub fn papers(cast: &Cast) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let broker = cast.papers(&Role::Broker).unwrap();
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    write("fleet-roots.pem", &cast.roots().unwrap().to_pem());
    write("broker.crt", &chain_to_pem(&broker.chain));
    write("broker.key", &broker.key_pem);
    write("broker.token", "the token\n");
    directory
}
