//! A whole fleet: coordinator, broker, devices, and what an operator says to them.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::binaries::Binaries;
use crate::device::{Device, text};
use crate::dice::Dice;
use crate::process::{self, Process};
use crate::wait;

/// A command is answered, or has failed, within this.
pub const COMMAND_WITHIN: Duration = Duration::from_secs(30);
/// A process that was started is of use within this.
const UP_WITHIN: Duration = Duration::from_secs(30);

/// Nobody is to wait for an interval that is meant for fleets in the field. The hello interval is left as long as it is
/// there: recovery must not take that.
const COORDINATOR_SETTINGS: [(&str, &str); 7] = [
    ("FLEETKEY__TIMING__RESEND_MILLISECONDS", "500"),
    ("FLEETKEY__TIMING__RESEND_MAX_MILLISECONDS", "2000"),
    ("FLEETKEY__TIMING__IN_FLIGHT_MILLISECONDS", "2000"),
    ("FLEETKEY__TIMING__UPDATE_WINDOW_MILLISECONDS", "500"),
    ("FLEETKEY__TIMING__FRESH_JOIN_BACKOFF_SECONDS", "1"),
    ("FLEETKEY__BROKER__MAX_BACKOFF_SECONDS", "1"),
    ("RAYON_NUM_THREADS", "1"),
];

/// A fleet of real processes.
#[derive(Debug)]
pub struct Fleet {
    /// `fleetkey serve`.
    pub coordinator: Process,
    /// `fleetkey-broker`.
    pub broker: Process,
    /// The devices that were provisioned and not set aside.
    pub devices: Vec<Device>,
    /// What the coordinator is started with on top.
    pub coordinator_settings: Vec<(String, String)>,
    binaries: Binaries,
    broker_port: u16,
    // Last: it goes when the processes are gone.
    directory: TempDir,
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// It was followed; this is its JSON.
    Done(Value),
    /// It was not; this is the last line on standard error.
    Failed(String),
}

impl Fleet {
    /// A new fleet; nothing runs yet. `settings` are variables that `fleetkey init` and the coordinator are started
    /// with.
    ///
    /// # Errors
    /// When `fleetkey init` fails.
    pub fn init(settings: Vec<(String, String)>, dice: &mut Dice) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("fk-kills-").tempdir()?;
        let binaries = Binaries::find()?;
        let (api_port, broker_port) = (free_port(dice)?, free_port(dice)?);
        let home = directory.path().join("fleet");
        let mut init = binaries.command("fleetkey");
        init.arg("init").arg(&home).envs(settings.iter().map(|(name, value)| (name, value)));
        init.args(["--listen", &format!("127.0.0.1:{api_port}")]);
        init.args(["--broker", &format!("mqtts://127.0.0.1:{broker_port}")]);
        let made = process::run(init, COMMAND_WITHIN)?;
        ensure!(made.status.success(), "init: {}", String::from_utf8_lossy(&made.stderr));
        Ok(Self {
            coordinator: Process::new(directory.path().join("coordinator.log")),
            broker: Process::new(directory.path().join("broker.log")),
            devices: Vec::new(),
            coordinator_settings: settings,
            binaries,
            broker_port,
            directory,
        })
    }

    /// The directory that `fleetkey init` made.
    pub fn home(&self) -> PathBuf {
        self.directory.path().join("fleet")
    }

    /// The directory that everything is in.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Keeps the directory when the test is over, where FLEETKEY_KILLS_KEEP is set: for a look at what failed.
    pub fn keep(&mut self) {
        if std::env::var_os("FLEETKEY_KILLS_KEEP").is_some() {
            self.directory.disable_cleanup(true);
            eprintln!("kept: {}", self.directory.path().display());
        }
    }

    /// Where the broker listens.
    pub fn broker_port(&self) -> u16 {
        self.broker_port
    }

    /// The executables.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// How the coordinator is started.
    pub fn coordinator_command(&self) -> Command {
        let mut command = self.binaries.command("fleetkey");
        command.arg("serve").arg("--config").arg(self.home().join("fleetkey.toml"));
        command.envs(COORDINATOR_SETTINGS);
        command.envs(self.coordinator_settings.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts the coordinator, and does not wait for it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_coordinator(&mut self) -> Result<()> {
        self.coordinator.start(self.coordinator_command())
    }

    /// How the broker is started.
    pub fn broker_command(&self) -> Command {
        let mut command = self.binaries.command("fleetkey-broker");
        command.arg("--config").arg(self.home().join("broker").join("broker.toml"));
        command.env("FLEETKEY_BROKER__POLICY__MAX_BACKOFF_SECONDS", "1");
        command
    }

    /// Starts the broker, and does not wait for it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_broker(&mut self) -> Result<()> {
        self.broker.start(self.broker_command())
    }

    /// Starts both, and waits until they have found each other.
    ///
    /// # Errors
    /// When they do not.
    pub fn start(&mut self) -> Result<()> {
        self.start_broker()?;
        self.start_coordinator()?;
        self.is_up()
    }

    /// Waits until coordinator and broker are connected.
    ///
    /// # Errors
    /// When one of them has ended, or it takes too long.
    pub fn is_up(&mut self) -> Result<()> {
        let cli = self.cli();
        let (coordinator, broker) = (&mut self.coordinator, &mut self.broker);
        wait::until("coordinator and broker are up", UP_WITHIN, || {
            for process in [&mut *coordinator, &mut *broker] {
                ensure!(process.is_running(), "a process has ended: see {}", process.log().display());
            }
            Ok(match cli.say(&["status"])? {
                Said::Done(status) if status["broker_connected"] == true => None,
                Said::Done(_) => Some("the coordinator is not connected to the broker".to_owned()),
                Said::Failed(why) => Some(why),
            })
        })
    }

    /// The operator's command line.
    pub fn cli(&self) -> Cli {
        Cli { binaries: self.binaries.clone(), config: self.home().join("fleetkey.toml") }
    }

    /// Makes a device; its agent is not started.
    ///
    /// # Errors
    /// When the coordinator does not make it in time.
    pub fn provision(&self, name: &str) -> Result<Device> {
        provision(&self.cli(), self.directory.path(), name)
    }

    /// Where `name` is among the devices.
    ///
    /// # Errors
    /// When it is not there.
    pub fn find(&self, name: &str) -> Result<usize> {
        let at = self.devices.iter().position(|device| device.name == name);
        at.with_context(|| format!("there is no device {name}"))
    }

    /// A device by its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn device(&self, name: &str) -> Result<&Device> {
        Ok(&self.devices[self.find(name)?])
    }

    /// A device by its name, to be started or killed.
    ///
    /// # Errors
    /// When there is none.
    pub fn device_mut(&mut self, name: &str) -> Result<&mut Device> {
        let at = self.find(name)?;
        Ok(&mut self.devices[at])
    }
}

/// Makes a device in `parent`, its agent not started. Asked again when the coordinator dies over it: a device whose
/// bundle was lost keeps its name, so each attempt has its own.
///
/// # Errors
/// When it is not made in time.
pub fn provision(cli: &Cli, parent: &Path, name: &str) -> Result<Device> {
    let end = Instant::now() + UP_WITHIN;
    for attempt in 0.. {
        let name = if attempt == 0 { name.to_owned() } else { format!("{name}-{attempt}") };
        let directory = parent.join(&name);
        let out = directory.to_str().context("a path of text")?;
        match cli.say(&["device", "provision", &name, "--out", out])? {
            Said::Done(made) => {
                return Ok(Device::new(cli.binaries.clone(), name, text(&made["device"])?, directory));
            }
            Said::Failed(why) if Instant::now() >= end => bail!("provision {name}: {why}"),
            Said::Failed(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
    bail!("no attempts are left")
}

/// The operator's command line.
#[derive(Debug, Clone)]
pub struct Cli {
    binaries: Binaries,
    config: PathBuf,
}

impl Cli {
    /// Says something once.
    ///
    /// # Errors
    /// When the command does not end in time, or answers what is no JSON.
    pub fn say(&self, arguments: &[&str]) -> Result<Said> {
        self.say_within(arguments, COMMAND_WITHIN)
    }

    /// Says something once, and waits so long for the answer.
    ///
    /// # Errors
    /// When the command does not end in time, or answers what is no JSON.
    pub fn say_within(&self, arguments: &[&str], within: Duration) -> Result<Said> {
        let mut command = self.binaries.command("fleetkey");
        command.arg("--config").arg(&self.config).arg("--json").args(arguments);
        let output = process::run(command, within)?;
        if output.status.success() {
            let answer = serde_json::from_slice(&output.stdout)
                .with_context(|| format!("{arguments:?}: {}", String::from_utf8_lossy(&output.stdout)))?;
            return Ok(Said::Done(answer));
        }
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
        Ok(Said::Failed(stderr.lines().last().unwrap_or("(no word)").to_owned()))
    }

    /// Asks for something that is to be answered now.
    ///
    /// # Errors
    /// What the command says when it fails.
    pub fn ask(&self, arguments: &[&str]) -> Result<Value> {
        match self.say(arguments)? {
            Said::Done(answer) => Ok(answer),
            Said::Failed(why) => bail!("{arguments:?}: {why}"),
        }
    }

    /// Says something again and again until it is done, as an operator does whose coordinator dies under their
    /// hands. A refusal that holds one of `done_if` says that an earlier attempt was followed. How often it was said.
    ///
    /// # Errors
    /// What it says last when `within` is over.
    pub fn insist(&self, arguments: &[&str], done_if: &[&str], within: Duration) -> Result<usize> {
        let end = Instant::now() + within;
        for attempt in 1.. {
            match self.say(arguments)? {
                Said::Done(_) => return Ok(attempt),
                Said::Failed(why) if done_if.iter().any(|sign| why.contains(sign)) => return Ok(attempt),
                Said::Failed(why) if Instant::now() >= end => bail!("{arguments:?}: {why}"),
                Said::Failed(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
        bail!("no attempts are left")
    }
}

/// A port on which nobody listens. Not one that the system hands out by itself: while a server is down, a client that
/// keeps trying its port could be given that very port for its own end, and so find itself connected to itself.
///
/// # Errors
/// When none is found.
pub fn free_port(dice: &mut Dice) -> Result<u16> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first: u16 = range.split_whitespace().next().and_then(|port| port.parse().ok()).unwrap_or(32_768);
    let below = if first > 12_000 { first } else { 32_768 };
    // Tests of the same seed may run side by side.
    let own = usize::try_from(std::process::id())?;
    for _ in 0..1_000 {
        let port = 10_000 + (dice.below(1 << 20) + own * 7919) % usize::from(below - 10_000);
        let port = u16::try_from(port)?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port")
}
