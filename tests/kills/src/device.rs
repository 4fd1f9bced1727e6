//! One device: the directory that `fleetkey device provision` wrote, its agent, and what applications ask of it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fleetkey_wire::KeyEpoch;
use serde_json::{Value, json};

use crate::binaries::Binaries;
use crate::process::Process;
use crate::wait;

/// An agent that runs answers within this.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// An agent that was started answers within this.
const UP_WITHIN: Duration = Duration::from_secs(20);
/// Where no broker is: the discard port, of TLS.
const NOWHERE: &str = "mqtts://127.0.0.1:9";

/// A device and its agent.
#[derive(Debug)]
pub struct Device {
    /// Its label.
    pub name: String,
    /// Its id.
    pub id: String,
    /// The agent.
    pub process: Process,
    /// Variables that its commands are started with.
    pub settings: Vec<(String, String)>,
    directory: PathBuf,
    binaries: Binaries,
}

/// One group as a device has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its cell.
    pub cell: String,
    /// The cell's epoch.
    pub cell_epoch: u64,
    /// The key epoch it seals with.
    pub send: KeyEpoch,
    /// The oldest it accepts.
    pub oldest: KeyEpoch,
    /// Those whose secrets it has.
    pub held: Vec<KeyEpoch>,
}

impl Device {
    /// The device whose bundle is in `directory`. Its agent does not run yet.
    pub fn new(binaries: Binaries, name: String, id: String, directory: PathBuf) -> Self {
        let process = Process::new(directory.join("agent.log"));
        Self { name, id, process, settings: Vec::new(), directory, binaries }
    }

    /// Its bundle, and everything it has stored.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A command of `fleetkey-agent`, with this device's settings.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.binaries.command("fleetkey-agent");
        command.arg("--config").arg(self.directory.join("agent.toml")).args(arguments);
        command.env("FLEETKEY_AGENT__MQTT__MAX_BACKOFF_SECONDS", "1");
        command.env("FLEETKEY_AGENT__MQTT__KEEP_ALIVE_SECONDS", "5");
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts the agent.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self) -> Result<()> {
        self.process.start(self.command(&[]))
    }

    /// Starts the agent where no broker answers: it has what it stored, and hears nothing.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_cut_off(&mut self) -> Result<()> {
        self.process.start(self.command(&["--broker", NOWHERE]))?;
        self.answers()
    }

    /// Waits until the agent answers on its socket.
    ///
    /// # Errors
    /// When it has ended, or does not answer in time.
    pub fn answers(&mut self) -> Result<()> {
        wait::until(&format!("{} answers", self.name), UP_WITHIN, || {
            if !self.process.is_running() {
                bail!("the agent of {} has ended: see {}", self.name, self.process.log().display());
            }
            Ok(self.status().err().map(|error| format!("{error:#}")))
        })
    }

    /// What `fleetkey-agent status --json` shows.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn status(&self) -> Result<Value> {
        self.ask(&json!({ "op": "status" }))?.map_err(|name| anyhow::anyhow!("status refused: {name}"))
    }

    /// A group as the device has it; `None` when it is not in it.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn held(&self, group: &str) -> Result<Option<Held>> {
        held_in(&self.status()?, group)
    }

    /// A key of the application's own, and the key epoch it is from.
    ///
    /// # Errors
    /// When the agent does not answer. `None` where it refuses.
    pub fn app_key(&self, group: &str) -> Result<Option<(KeyEpoch, String)>> {
        let request = json!({ "op": "key", "group": group, "label": "kills", "length": 32 });
        let Ok(answer) = self.ask(&request)? else { return Ok(None) };
        Ok(Some((epoch(&answer["key_epoch"])?, text(&answer["key"])?)))
    }

    /// Seals a message, in hexadecimal.
    ///
    /// # Errors
    /// When the agent does not answer, or refuses.
    pub fn seal(&self, group: &str, plaintext: &str) -> Result<String> {
        let request = json!({ "op": "seal", "group": group, "plaintext": hex::encode(plaintext) });
        match self.ask(&request)? {
            Ok(answer) => text(&answer["sealed"]),
            Err(name) => bail!("{} does not seal: {name}", self.name),
        }
    }

    /// Opens a message: its plaintext and key epoch, or the name of the refusal.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn open(&self, sealed: &str) -> Result<Result<(String, KeyEpoch), String>> {
        let answer = match self.ask(&json!({ "op": "open", "sealed": sealed }))? {
            Ok(answer) => answer,
            Err(name) => return Ok(Err(name)),
        };
        let plaintext = hex::decode(text(&answer["plaintext"])?)?;
        Ok(Ok((String::from_utf8(plaintext)?, epoch(&answer["key_epoch"])?)))
    }

    /// One question over the agent's socket: its answer, or the name of its refusal.
    fn ask(&self, request: &Value) -> Result<Result<Value, String>> {
        let mut stream = UnixStream::connect(self.directory.join("agent.sock"))
            .with_context(|| format!("no agent of {}", self.name))?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        stream.set_write_timeout(Some(ANSWER_WITHIN))?;
        stream.write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        let mut answer: Value =
            serde_json::from_str(&line).with_context(|| format!("{} answers {line:?}", self.name))?;
        match answer.get_mut("ok") {
            Some(value) => Ok(Ok(value.take())),
            None => Ok(Err(text(&answer["error"]["name"])?)),
        }
    }
}

/// A group in what `status` showed.
///
/// # Errors
/// When it is not shown as it should be.
pub fn held_in(status: &Value, group: &str) -> Result<Option<Held>> {
    let groups = status["groups"].as_array().context("groups")?;
    let Some(of) = groups.iter().find(|of| of["name"] == group) else { return Ok(None) };
    let held = of["held"].as_array().context("held")?.iter().map(epoch).collect::<Result<_>>()?;
    Ok(Some(Held {
        cell: text(&of["cell"])?,
        cell_epoch: of["cell_epoch"].as_u64().context("cell_epoch")?,
        send: epoch(&of["send"])?,
        oldest: epoch(&of["oldest"])?,
        held,
    }))
}

/// A key epoch as it is shown.
///
/// # Errors
/// When it is none.
pub fn epoch(value: &Value) -> Result<KeyEpoch> {
    let text = text(value)?;
    text.parse().map_err(|_| anyhow::anyhow!("{text:?} is no key epoch"))
}

/// Text as it is shown.
///
/// # Errors
/// When there is none.
pub fn text(value: &Value) -> Result<String> {
    value.as_str().map(str::to_owned).with_context(|| format!("text was expected, not {value}"))
}
