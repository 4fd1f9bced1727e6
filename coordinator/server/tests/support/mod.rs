//! A fleet's files in a directory of their own, and the `fleetkey` command on them.

#![allow(dead_code, unreachable_pub, reason = "every test file uses a part of it")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

pub fn fleetkey() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fleetkey"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FLEETKEY") {
            command.env_remove(name);
        }
    }
    command
}

pub fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
pub fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    stdout(output)
}

/// The one line that a failed command leaves on standard error, logs apart.
#[track_caller]
pub fn failure(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{}{}", stdout(output), stderr(output));
    let text = stderr(output);
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with("fleetkey: ")).collect();
    assert_eq!(lines.len(), 1, "{text}");
    assert_eq!(text.lines().last(), Some(lines[0]), "{text}");
    lines[0].to_owned()
}

/// Waits for at most a minute.
#[track_caller]
pub fn until(what: &str, reached: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !reached() {
        assert!(Instant::now() < deadline, "not reached: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub struct Home {
    pub directory: TempDir,
}

impl Home {
    /// A directory with a new fleet in `fleet`.
    pub fn with_fleet() -> Self {
        let home = Self { directory: tempfile::tempdir().unwrap() };
        ok(&run(fleetkey().arg("init").arg(home.fleet()).args(["--broker", "mqtt://127.0.0.1:9"])));
        home
    }

    pub fn fleet(&self) -> PathBuf {
        self.directory.path().join("fleet")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.fleet().join(name)
    }

    /// `fleetkey serve` on a free port.
    pub fn serve_command(&self) -> Command {
        let mut command = fleetkey();
        command.arg("serve").arg("--config").arg(self.file("fleetkey.toml"));
        command.args(["--listen", "127.0.0.1:0"]);
        command
    }

    pub fn serve(&self) -> Serving {
        self.serve_with(&[])
    }

    /// `fleetkey serve` on a free port, with these variables.
    pub fn serve_with(&self, variables: &[(&str, &str)]) -> Serving {
        let mut child = self
            .serve_command()
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Some((_, api)) = line.trim().split_once(" at ") else {
            let mut why = String::new();
            child.stderr.take().unwrap().read_to_string(&mut why).unwrap();
            panic!("{line:?} {why}");
        };
        Serving { api: api.to_owned(), config: self.file("fleetkey.toml"), child }
    }
}

pub struct Serving {
    pub api: String,
    pub config: PathBuf,
    pub child: Child,
}

impl Serving {
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = fleetkey();
        command.arg("--config").arg(&self.config).args(["--api", &self.api]).args(arguments);
        command
    }

    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        ok(&run(&mut self.command(arguments)))
    }

    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.ok(&[arguments, &["--json"]].concat());
        serde_json::from_str(&text).unwrap()
    }

    #[track_caller]
    pub fn failure(&self, arguments: &[&str]) -> String {
        failure(&run(&mut self.command(arguments)))
    }

    /// SIGTERM, and what was logged.
    pub fn stop(mut self) -> String {
        let killed = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(killed.success());
        let status = self.child.wait().unwrap();
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        assert!(status.success(), "{log}");
        log
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

pub fn files_below(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}
