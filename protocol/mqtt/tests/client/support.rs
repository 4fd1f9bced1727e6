//! A real mosquitto for a test, on a free loopback port, ended with it.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fleetkey_mqtt::{Backoff, Client, Event, Events, Options, connect};
use tempfile::TempDir;

/// Longest wait for anything in these tests: far more than needed, so that only a fault reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Mosquitto {
    program: PathBuf,
    directory: TempDir,
    port: u16,
    config: String,
    child: Option<Child>,
}

/// The broker, or `None` when it is not installed: then the test has not run, and says so.
pub(crate) fn mosquitto(test: &str) -> Option<Mosquitto> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let program = places.map(|place| place.join("mosquitto")).find(|program| program.is_file());
    if program.is_none() {
        not_run(test, "there is no mosquitto on PATH");
    }
    Some(Mosquitto {
        program: program?,
        directory: tempfile::tempdir().unwrap(),
        port: free_port(),
        config: "allow_anonymous true\n".to_owned(),
        child: None,
    })
}

/// Says past the capture of test output that a test has not run.
pub(crate) fn not_run(test: &str, why: &str) {
    std::io::stderr().write_all(format!("NOT RUN: {test}: {why}\n").as_bytes()).unwrap();
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Mosquitto {
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn url(&self, scheme: &str) -> String {
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// Adds lines to the listener's configuration.
    pub(crate) fn configure(&mut self, lines: &str) {
        self.config.push_str(lines);
        self.config.push('\n');
    }

    pub(crate) fn start(&mut self) {
        let file = self.directory.path().join("mosquitto.conf");
        // As root it would give up its rights, and with them this directory.
        let config = format!(
            "user root\npersistence false\nmax_queued_messages 0\nper_listener_settings false\nlistener {} 127.0.0.1\n{}",
            self.port, self.config
        );
        fs::write(&file, config).unwrap();
        let child = Command::new(&self.program)
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        assert!(self.child.replace(child).is_none(), "it runs already");
    }

    /// Ends it without a word to anybody.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn options(&self, client_id: &str, filters: &[&str]) -> Options {
        options(&self.url("mqtt"), client_id, filters)
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Settings for impatient tests.
pub(crate) fn options(url: &str, client_id: &str, filters: &[&str]) -> Options {
    let mut options = Options::new(url.parse().unwrap(), client_id);
    options.backoff = Backoff { min: Duration::from_millis(20), max: Duration::from_millis(200) };
    options.filters = filters.iter().map(|&filter| filter.to_owned()).collect();
    options
}

/// A client whose filters are all in force.
pub(crate) async fn ready(options: Options) -> (Client, Events) {
    let mut filters = options.filters.len();
    let (client, mut events) = connect(options).unwrap();
    until(&mut events, "connected", |event| *event == Event::Connected).await;
    while filters > 0 {
        until(&mut events, "subscribed", |event| matches!(event, Event::Subscribed { .. })).await;
        filters -= 1;
    }
    (client, events)
}

/// The next event there is.
pub(crate) async fn next(events: &mut Events) -> Event {
    tokio::time::timeout(PATIENCE, events.next()).await.expect("no event came").expect("events have ended")
}

/// The first event that fits; those before it are passed over.
pub(crate) async fn until(events: &mut Events, what: &str, fits: impl Fn(&Event) -> bool) -> Event {
    let mut passed = Vec::new();
    loop {
        match tokio::time::timeout(PATIENCE, events.next()).await {
            Ok(Some(event)) if fits(&event) => return event,
            Ok(Some(event)) => passed.push(event),
            Ok(None) => panic!("events ended before {what}; passed over: {passed:?}"),
            Err(_) => panic!("{what} did not come; passed over: {passed:?}"),
        }
    }
}

/// The next message; anything else but news of subscriptions fails.
pub(crate) async fn message(events: &mut Events) -> (String, Vec<u8>) {
    match until(events, "a message", |event| matches!(event, Event::Message { .. })).await {
        Event::Message { topic, payload } => (topic, payload.to_vec()),
        other => panic!("{other:?}"),
    }
}
