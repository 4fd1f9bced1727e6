//! `fleetkey-sim`: simulated fleets from the command line.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use fleetkey_chaos::command::Chaos;
use fleetkey_mqtt::BrokerUrl;
use fleetkey_peers::Peers;
use fleetkey_sim::demo::{self, Options};
use fleetkey_sim::fleet::{BrokerChoice, FanOut};
use fleetkey_sim::outside::Outside;
use tracing_subscriber::EnvFilter;

/// Simulated Fleetkey fleets, on real parts.
#[derive(Debug, Parser)]
#[command(name = "fleetkey-sim", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Chaos(Chaos),
    Demo(Demo),
    Peers(Peers),
}

/// Onboards a fleet, revokes devices, and checks that everyone else moved on.
///
/// Starts a broker with TLS, a coordinator on a fresh SQLite file, and real agents, each with its own TCP
/// connection and its own MLS state. Each claim in the table at the end is checked; a check that fails is
/// named, with the device and the reason, and makes the exit code 1.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    fleetkey-sim demo\n  \
    fleetkey-sim demo --devices 2000 --json report.json\n  \
    mosquitto -p 1883 & fleetkey-sim demo --broker mqtt://127.0.0.1:1883\n  \
    fleetkey-sim demo --broker mqtts://127.0.0.1:8883 --papers broker --policy 127.0.0.1:7600")]
struct Demo {
    /// Devices to begin with.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(20..=20_000))]
    devices: u32,
    /// An MQTT broker to use instead of the embedded one: mqtt://HOST:PORT, or mqtts://HOST:PORT with --papers and --policy.
    /// Several times for the nodes of one cluster: devices spread over them, and go on to the next when theirs is gone.
    #[arg(long, value_name = "URL")]
    broker: Vec<String>,
    /// Where to write what a broker with TLS needs, before it is waited for: fleet-roots.pem, broker.crt, broker.key,
    /// broker.token.
    #[arg(long, value_name = "DIRECTORY", requires = "policy")]
    papers: Option<PathBuf>,
    /// Where such a broker asks for the policy: http://ADDRESS:PORT/v1/policy.
    #[arg(long, value_name = "ADDRESS:PORT", requires = "papers")]
    policy: Option<SocketAddr>,
    /// A command for the shell as soon as the revocation has begun, such as one that kills a node of the broker.
    #[arg(long, value_name = "COMMAND")]
    with_revocation: Option<String>,
    /// What carries cell messages to members in the embedded broker.
    #[arg(long, value_enum, default_value_t)]
    fan_out: FanOut,
    /// Where to write the report as JSON, beside the table.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("FLEETKEY_LOG").unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let done = match Arguments::parse().command {
        Command::Chaos(chaos) => chaos.run(&mut std::io::stdout().lock()),
        Command::Demo(demo) => demo.run(),
        Command::Peers(peers) => peers.run(&mut std::io::stdout().lock()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fleetkey-sim: {error:#}");
            ExitCode::from(2)
        }
    }
}

impl Demo {
    fn run(self) -> anyhow::Result<bool> {
        let Self { devices, broker, papers, policy, with_revocation, fan_out, json } = self;
        let urls = broker
            .iter()
            .map(|url| url.parse::<BrokerUrl>())
            .collect::<Result<Vec<_>, _>>()
            .context("--broker")?;
        let broker = match (urls.as_slice(), papers.zip(policy)) {
            ([], None) => BrokerChoice::Embedded(fan_out),
            ([url], None) if !url.is_tls() => BrokerChoice::Plain(url.clone()),
            (_, None) => anyhow::bail!("brokers with TLS, and more than one, need --papers and --policy"),
            (_, Some(_)) if urls.is_empty() || urls.iter().any(|url| !url.is_tls()) => {
                anyhow::bail!("--papers and --policy are for brokers with TLS: --broker mqtts://HOST:PORT")
            }
            (_, Some((papers, policy))) => BrokerChoice::Outside(Outside { urls, papers, policy }),
        };
        let options = Options { devices: devices as usize, broker, with_revocation };
        options.check()?;
        // Before the work, so that a path that cannot be written is not found out after it.
        let json = json
            .map(|path| std::fs::File::create(&path).with_context(|| format!("create {}", path.display())))
            .transpose()?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
        let report = runtime.block_on(async {
            tokio::select! {
                report = demo::run(&options) => report,
                _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
            }
        })?;
        runtime.shutdown_background();
        if let Some(file) = json {
            serde_json::to_writer_pretty(file, &report).context("write the report")?;
        }
        write!(std::io::stdout().lock(), "{report}").context("print the report")?;
        Ok(report.passed())
    }
}
