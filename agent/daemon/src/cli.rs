//! The command line: what can be said, and what a running agent is asked for.

mod enroll;
mod psk;

use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use fleetkey_agent::settings::{LogFormat, Overrides, Settings, read_chain};
use fleetkey_agent::socket::{MAX_LINE_BYTES, Request, Response, Socket};
use fleetkey_wire::payload::MAX_SEALED_BYTES;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use zeroize::Zeroizing;

/// So long without an answer, on a connection that stands, is no coincidence.
const UNANSWERED_SECONDS: u64 = 120;

const AFTER_HELP: &str = "\
Everything a device needs is in the directory that `fleetkey device provision NAME` writes:

  fleetkey-agent --config pump-1/agent.toml &                 run the agent
  fleetkey-agent --config pump-1/agent.toml keys              the groups it is in, and their key epochs
  echo 'valve 3 shut' |
    fleetkey-agent --config pump-1/agent.toml seal --group pumps > message
  fleetkey-agent --config pump-2/agent.toml open < message    another device of the group reads it

A device that makes its own key instead, and asks for a certificate:

  fleetkey-agent enroll --est https://fleet.example:7601 --roots fleet-roots.pem --claim-file claim --out pump-3

The agent keeps trying to reach its broker. What it has stored survives a crash at any point. Settings come from the
file, then from variables such as FLEETKEY_AGENT__BROKER, then from flags.";

/// Keeps a device's group keys current, and seals and opens messages with them.
#[derive(Debug, Parser)]
#[command(name = "fleetkey-agent", version, after_help = AFTER_HELP, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    /// The device's settings, as `fleetkey device provision` has written them.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "agent.toml",
        env = "FLEETKEY_AGENT_CONFIG",
        global = true
    )]
    config: PathBuf,
    /// Where the agent listens for applications, instead of `socket` in the settings.
    #[arg(long, value_name = "FILE", global = true)]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent. This is what happens when no command is given.
    Run(Run),
    Enroll(enroll::Enroll),
    Keys(Keys),
    Seal(Seal),
    Open(Open),
    /// Where the running agent stands: connection, silence, groups, refused messages.
    Status(Json),
    /// Pre-shared keys that groups ask for: give one to the device, list them, take one away.
    #[command(subcommand)]
    Psk(psk::PskCommand),
    /// Tell the coordinator that the device wants to be out of a group.
    Leave {
        /// The group's UUID or name.
        #[arg(long)]
        group: String,
    },
}

/// Run the agent.
#[derive(Debug, Args)]
struct Run {
    /// Where the broker is, instead of `broker` in the settings.
    #[arg(long, value_name = "URL")]
    broker: Option<String>,
    /// How logs look.
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
}

#[derive(Debug, Args)]
struct Json {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The groups the device is in and the key epochs it holds; with --label, a key of the application's own.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  fleetkey-agent keys
  fleetkey-agent keys --group pumps --label telemetry --length 16     32 hexadecimal digits

A derived key changes with the group's key: ask again when it does.")]
struct Keys {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Only this group (UUID or name).
    #[arg(long)]
    group: Option<String>,
    /// Derive a key for this purpose, and print it in hexadecimal.
    #[arg(long, requires = "group")]
    label: Option<String>,
    /// What the derived key is bound to.
    #[arg(long, requires = "label", default_value = "")]
    context: String,
    /// The derived key's length in bytes, 1 to 64.
    #[arg(long, requires = "label", default_value_t = 32)]
    length: u8,
}

/// Seal standard input for a group, to standard output.
#[derive(Debug, Args)]
struct Seal {
    /// The group's UUID or name.
    #[arg(long)]
    group: String,
    /// What the message is bound to: it opens only with the same.
    #[arg(long, default_value = "")]
    context: String,
    /// Sign it, so that readers who have this device's certificate can tell who sealed it.
    #[arg(long)]
    sign: bool,
}

/// Open a sealed message from standard input, to standard output.
#[derive(Debug, Args)]
struct Open {
    /// What the message is bound to.
    #[arg(long, default_value = "")]
    context: String,
    /// The certificate of the sender of a signed message (PEM).
    #[arg(long, value_name = "FILE")]
    sender: Option<PathBuf>,
    /// Say on standard error who sealed it, under which key epoch.
    #[arg(long)]
    verbose: bool,
}

/// Does what was said.
pub(crate) fn run(arguments: Arguments, out: &mut impl Write) -> anyhow::Result<()> {
    let Arguments { config, socket, command, run } = arguments;
    let load = |run: Run| Settings::load(&config, run.overrides(socket.as_deref()));
    let without_flags = || load(Run { broker: None, log_format: None });
    match command {
        None => serve(load(run)?),
        Some(Command::Run(run)) => serve(load(run)?),
        Some(Command::Enroll(enroll)) => enroll.run(out),
        Some(Command::Keys(keys)) => keys.run(&without_flags()?.socket, out),
        Some(Command::Seal(seal)) => seal.run(&without_flags()?.socket, out),
        Some(Command::Open(open)) => open.run(&without_flags()?.socket, out),
        Some(Command::Status(Json { json })) => {
            let status = ask(&without_flags()?.socket, &Request::Status)?;
            if json { print_json(out, &status) } else { print_status(out, &status) }
        }
        Some(Command::Psk(command)) => command.run(&without_flags()?, out),
        Some(Command::Leave { group }) => ask(&without_flags()?.socket, &Request::Leave { group }).map(drop),
    }
}

impl Run {
    fn overrides(self, socket: Option<&Path>) -> Overrides {
        let log_format = self.log_format.map(|format| match format {
            LogFormat::Text => "text".to_owned(),
            LogFormat::Json => "json".to_owned(),
        });
        // A path on the command line is relative to where the command is given.
        let socket = socket.map(|path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
        [
            ("broker", self.broker),
            ("log.format", log_format),
            ("socket", socket.map(|path| path.to_string_lossy().into_owned())),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .collect()
    }
}

fn serve(settings: Settings) -> anyhow::Result<()> {
    log_to_stderr(&settings)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        // The socket first: it tells a second agent that it is one, in words.
        let socket = Socket::bind(&settings.socket).await?;
        let (setup, renewal) = settings.prepare()?;
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        let agent = fleetkey_agent::spawn(setup)
            .with_context(|| format!("start from {}", settings.state.display()))?;
        tracing::info!(fleet = %settings.fleet, device = %settings.device, broker = settings.broker, "running");
        if let Some(renewal) = renewal {
            tokio::spawn(renewal.run());
        }
        tokio::select! {
            () = socket.serve(agent.clone()) => bail!("the socket cannot be served"),
            () = agent.stopped() => bail!("the agent has stopped: its log says why"),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        agent.stop().await;
        tracing::info!("stopped");
        Ok(())
    })
}

fn log_to_stderr(settings: &Settings) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&settings.log.filter)
        .with_context(|| format!("log.filter {:?}", settings.log.filter))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        // It would be said on standard error, which panics where that is what cannot be written.
        .log_internal_errors(false);
    match settings.log.format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

impl Keys {
    fn run(self, socket: &Path, out: &mut impl Write) -> anyhow::Result<()> {
        let Self { json, group, label, context, length } = self;
        if let (Some(group), Some(label)) = (&group, label) {
            let context = hex::encode(context);
            let derived = ask(socket, &Request::Key { group: group.clone(), label, context, length })?;
            if json {
                return print_json(out, &derived);
            }
            return Ok(writeln!(out, "{}", text(&derived["key"]))?);
        }
        let status = ask(socket, &Request::Status)?;
        let groups: Vec<&Value> = list(&status["groups"])
            .filter(|of| {
                group
                    .as_ref()
                    .is_none_or(|group| of["group"] == group.as_str() || of["name"] == group.as_str())
            })
            .collect();
        if let (Some(group), true) = (&group, groups.is_empty()) {
            bail!("the device is not in group {group:?}");
        }
        if json {
            return print_json(out, &groups.into_iter().cloned().collect());
        }
        print_groups(out, &groups)
    }
}

impl Seal {
    fn run(self, socket: &Path, out: &mut impl Write) -> anyhow::Result<()> {
        let Self { group, context, sign } = self;
        let plaintext = hex::encode(&*read_stdin()?);
        let request = Request::Seal { group, plaintext, context: hex::encode(context), sign };
        write_bytes(out, &ask(socket, &request)?["sealed"])
    }
}

impl Open {
    fn run(self, socket: &Path, out: &mut impl Write) -> anyhow::Result<()> {
        let Self { context, sender, verbose } = self;
        let certificates = match sender {
            Some(path) => read_chain(&path)?.iter().map(hex::encode).collect(),
            None => Vec::new(),
        };
        let sealed = hex::encode(&*read_stdin()?);
        let opened = ask(socket, &Request::Open { sealed, context: hex::encode(context), certificates })?;
        if verbose {
            let (sender, signed) = (text(&opened["sender"]), opened["signed"] == true);
            let proof =
                if signed { "signed" } else { "not signed: any device of the group may have sealed it" };
            let key_epoch = text(&opened["key_epoch"]);
            writeln!(std::io::stderr(), "sealed by {sender} ({proof}) under key epoch {key_epoch}")?;
        }
        write_bytes(out, &opened["plaintext"])
    }
}

/// Asks the agent that listens on `socket`.
fn ask(socket: &Path, request: &Request) -> anyhow::Result<Value> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("no agent answers on {}: is it running?", socket.display()))?;
    let mut line = Zeroizing::new(serde_json::to_vec(request).context("write the request")?);
    line.push(b'\n');
    stream.write_all(&line).context("ask the agent")?;
    let mut answer = Zeroizing::new(String::new());
    BufReader::new(stream)
        .take(MAX_LINE_BYTES as u64 + 1)
        .read_line(&mut answer)
        .context("hear the agent's answer")?;
    match serde_json::from_str(&answer).context("read the agent's answer")? {
        Response::Ok(value) => Ok(value),
        Response::Error(failure) => Err(failure.into()),
    }
}

fn read_stdin() -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    let limit = MAX_SEALED_BYTES as u64 + 1;
    std::io::stdin().lock().take(limit).read_to_end(&mut bytes).context("read standard input")?;
    if bytes.len() > MAX_SEALED_BYTES {
        bail!("standard input has more than {MAX_SEALED_BYTES} bytes, no message is that long");
    }
    Ok(bytes)
}

fn write_bytes(out: &mut impl Write, value: &Value) -> anyhow::Result<()> {
    let bytes = Zeroizing::new(hex::decode(text(value)).context("read the agent's answer")?);
    out.write_all(&bytes)?;
    Ok(out.flush()?)
}

fn print_json(out: &mut impl Write, value: &Value) -> anyhow::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    Ok(writeln!(out)?)
}

fn print_groups(out: &mut impl Write, groups: &[&Value]) -> anyhow::Result<()> {
    if groups.is_empty() {
        return Ok(writeln!(out, "in no group yet")?);
    }
    for of in groups {
        writeln!(out, "{}  {}", text(&of["group"]), text(&of["name"]))?;
        let held: Vec<&str> = list(&of["held"]).map(text).collect();
        writeln!(
            out,
            "  seals with {}, accepts from {}, holds {}",
            text(&of["send"]),
            text(&of["oldest"]),
            held.join(" ")
        )?;
        writeln!(out, "  cell {} at epoch {}, {}", text(&of["cell"]), of["cell_epoch"], text(&of["suite"]))?;
    }
    Ok(())
}

fn print_status(out: &mut impl Write, status: &Value) -> anyhow::Result<()> {
    let connection = match (status["connected"] == true, status["answered"] == true) {
        (false, _) => "not connected",
        (true, false) => "connected, no answer from the coordinator yet",
        (true, true) => "connected, the coordinator answers",
    };
    let silence = if status["silent"] == true { ": too long, nothing is sealed" } else { "" };
    writeln!(out, "device    {}", text(&status["device"]))?;
    writeln!(out, "fleet     {}", text(&status["fleet"]))?;
    writeln!(out, "broker    {connection}")?;
    writeln!(
        out,
        "silence   {} s of at most {} s{silence}",
        status["silent_seconds"], status["max_silence_seconds"]
    )?;
    if is_unknown_perhaps(status) {
        writeln!(
            out,
            "          the broker is there and the coordinator does not answer this device. If it was restored from"
        )?;
        writeln!(
            out,
            "          a backup older than the device, its operator brings it back with this device's certificate:"
        )?;
        writeln!(out, "          fleetkey device adopt CERTIFICATE")?;
    }
    for alarm in list(&status["alarms"]) {
        writeln!(out, "ALARM     two secrets for one key epoch of group {}", text(alarm))?;
    }
    for (group, psk) in status["lacking_psks"].as_object().into_iter().flatten() {
        writeln!(out, "LACKS     pre-shared key {}, which group {group} asks for:", text(psk))?;
        writeln!(out, "          fleetkey-agent psk add --group {group} FILE")?;
    }
    for psk in list(&status["psks"]) {
        writeln!(out, "psk       {} for group {}", text(&psk["id"]), text(&psk["group"]))?;
    }
    for (name, count) in status["refused"].as_object().into_iter().flatten() {
        writeln!(out, "refused   {count} x {name}")?;
    }
    print_groups(out, &list(&status["groups"]).collect::<Vec<_>>())
}

/// A coordinator that does not know the device says nothing to it. One that is away for a while does neither.
fn is_unknown_perhaps(status: &Value) -> bool {
    let silent_seconds = status["silent_seconds"].as_u64().unwrap_or(0);
    let is_unanswered = status["answered"] != true && silent_seconds >= UNANSWERED_SECONDS;
    status["connected"] == true && (is_unanswered || status["silent"] == true)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(connected: bool, answered: bool, silent_seconds: u64, silent: bool) -> String {
        let status = serde_json::json!({
            "connected": connected, "answered": answered, "silent_seconds": silent_seconds, "silent": silent,
            "max_silence_seconds": 86_400,
        });
        let mut out = Vec::new();
        print_status(&mut out, &status).expect("memory takes it");
        String::from_utf8(out).expect("it is text")
    }

    #[test]
    fn a_device_that_is_left_unanswered_names_the_way_back() {
        for (status, is_named) in [
            ((true, false, UNANSWERED_SECONDS, false), true),
            ((true, true, 90_000, true), true),
            ((true, false, UNANSWERED_SECONDS - 1, false), false),
            ((true, true, 3_600, false), false),
            ((false, false, 90_000, true), false),
        ] {
            let (connected, answered, silent_seconds, silent) = status;
            let text = shown(connected, answered, silent_seconds, silent);
            assert_eq!(text.contains("fleetkey device adopt"), is_named, "{status:?}: {text}");
        }
    }
}
