//! `fleetkey-sim`: simulated fleets from the command line.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use fleetkey_chaos::command::Chaos;
use fleetkey_mqtt::BrokerUrl;
use fleetkey_peers::Peers;
use fleetkey_report::{Compare, Outputs, Rendered, Report};
use fleetkey_scenario::command::run_in_virtual_time;
use fleetkey_scenario::twin::Twin;
use fleetkey_sim::demo::{self, Options};
use fleetkey_sim::field::FieldBroker;
use fleetkey_sim::fleet::{BrokerChoice, FanOut};
use fleetkey_sim::following::Following;
use fleetkey_sim::outside::Outside;
use fleetkey_sim::{alone, bound, parts, plain_sockets, real_time};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

/// Millions of small pieces that come and go on several threads: the system's own allocator takes a tenth of the time for them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Simulated Fleetkey fleets, on real parts.
#[derive(Debug, Parser)]
#[command(name = "fleetkey-sim", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Bound(BoundArguments),
    Chaos(Chaos),
    Compare(Compare),
    Coordinator(CoordinatorArguments),
    Demo(Demo),
    Peers(Peers),
    Report(Report),
    Run(RunArguments),
    Twin(Twin),
    /// A part of a fleet in several processes; started by the other commands.
    #[command(hide = true)]
    Part {
        /// Which.
        #[arg(value_enum)]
        part: PartName,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PartName {
    Broker,
    Coordinator,
    Devices,
    Sockets,
}

/// How far a rekey is from what it could cost at best.
///
/// Onboards a fleet through a real broker, each device with its own connection, and revokes one device several times. Where
/// there are more connections than one process may hold, the broker has edges that share them. Then the same connections carry
/// messages and replies of the same sizes that nobody looks at; plain sockets do the same; and what a device must compute is
/// measured alone. The bound is the second plus the last; the ratio is the first over it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    fleetkey-sim bound --devices 10000\n  \
    fleetkey-sim bound --devices 100000\n  \
    fleetkey-sim bound --devices 100000 --devices-per-connection 100\n  \
    mosquitto -p 1883 & fleetkey-sim bound --devices 10000 --broker mqtt://127.0.0.1:1883 --json bound.json")]
struct BoundArguments {
    /// Devices.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    devices: u32,
    /// Edges of the embedded broker, each a process; without it as many as the limit on open files asks for.
    #[arg(long, value_name = "K", conflicts_with = "broker", value_parser = clap::value_parser!(u32).range(0..=200))]
    edges: Option<u32>,
    /// Devices on one connection, as a gateway has them; 1: each has its own.
    #[arg(long, value_name = "M", default_value_t = 1, conflicts_with = "broker", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    devices_per_connection: u32,
    /// An MQTT broker to use instead of the embedded one: mqtt://HOST:PORT.
    #[arg(long, value_name = "URL", conflicts_with_all = ["tls", "fan_out"])]
    broker: Option<BrokerUrl>,
    /// Speak TLS with the embedded broker, with a certificate for each device.
    #[arg(long)]
    tls: bool,
    /// What carries cell messages to members in the embedded broker.
    #[arg(long, value_enum, default_value_t)]
    fan_out: FanOut,
    /// Revocations, and rounds of everything else.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Devices in a cell.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(8..=256))]
    cell_capacity: u16,
    /// Where to write the figures as JSON, beside the table.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What a fleet costs the coordinator by itself: onboarding, a revocation by its steps, a start, memory.
///
/// The real core and writer on a real SQLite file, with real cells; devices are there as the key packages that real agents made.
/// Each rekey is checked on one cell of agents that live. A target that is missed is named, and makes the exit code 1.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    fleetkey-sim coordinator                         1,000, 10,000 and 100,000 devices\n  \
    fleetkey-sim coordinator --devices 1000000 --json million.json")]
struct CoordinatorArguments {
    /// Sizes of the fleet.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1000,10000,100000",
        value_parser = clap::value_parser!(u32).range(100..=10_000_000))]
    devices: Vec<u32>,
    /// Revocations to take the median of.
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=10))]
    revocations: u8,
    /// Where to write the figures as JSON, beside the table.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs a fleet through a scenario, and holds it against the scenario's targets.
///
/// In real time: a real broker, the real coordinator on a real database, and each device on its own connection, in processes of
/// their own. With --virtual: the real cores, on a clock and a network that are simulated. A target that is missed is named
/// in the table at the end, and makes the exit code 1.
#[derive(Debug, Args)]
struct RunArguments {
    #[command(flatten)]
    run: fleetkey_scenario::command::Run,
    /// An MQTT broker to use instead of the embedded one: mqtt://HOST:PORT.
    #[arg(long, value_name = "URL", conflicts_with_all = ["tls", "fan_out", "is_virtual"])]
    broker: Option<BrokerUrl>,
    /// Edges of the embedded broker, each a process; without it as many as the limit on open files asks for.
    #[arg(long, value_name = "K", conflicts_with_all = ["broker", "is_virtual"], value_parser = clap::value_parser!(u32).range(0..=200))]
    edges: Option<u32>,
    /// Speak TLS with the embedded broker, with a certificate for each device.
    #[arg(long, conflicts_with = "is_virtual")]
    tls: bool,
    /// What carries cell messages to members in the embedded broker.
    #[arg(long, value_enum, default_value_t)]
    fan_out: FanOut,
    #[command(flatten)]
    rendered: Rendered,
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
        Command::Bound(bound) => bound.run(),
        Command::Chaos(chaos) => chaos.run(&mut std::io::stdout().lock()),
        Command::Compare(compare) => compare.run(&mut std::io::stdout().lock()),
        Command::Coordinator(coordinator) => coordinator.run(),
        Command::Demo(demo) => demo.run(),
        Command::Peers(peers) => peers.run(&mut std::io::stdout().lock()),
        Command::Report(report) => report.run(&mut std::io::stdout().lock()),
        Command::Run(run) => run.run(),
        Command::Twin(twin) => twin.run(&mut std::io::stdout().lock()),
        Command::Part { part: PartName::Broker } => parts::broker::run().map(|()| true),
        Command::Part { part: PartName::Coordinator } => parts::coordinator::run().map(|()| true),
        Command::Part { part: PartName::Devices } => parts::devices::run().map(|()| true),
        Command::Part { part: PartName::Sockets } => plain_sockets::run().map(|()| true),
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

impl BoundArguments {
    fn run(self) -> anyhow::Result<bool> {
        let Self {
            devices,
            edges,
            devices_per_connection,
            broker,
            tls,
            fan_out,
            rounds,
            cell_capacity,
            json,
        } = self;
        let broker = chosen(broker, tls, fan_out, edges);
        let options = bound::Options {
            devices: devices as usize,
            devices_per_connection: devices_per_connection as usize,
            broker,
            rounds: rounds as usize,
            cell_capacity,
        };
        let found = to_its_end(bound::run(&options), json)?;
        write!(std::io::stdout().lock(), "{found}").context("print the figures")?;
        Ok(true)
    }
}

impl CoordinatorArguments {
    fn run(self) -> anyhow::Result<bool> {
        let Self { devices, revocations, json } = self;
        // Before the work, so that a path that cannot be written is not found out after it.
        let json = json
            .map(|path| std::fs::File::create(&path).with_context(|| format!("create {}", path.display())))
            .transpose()?;
        let options = alone::Options {
            devices: devices.into_iter().map(|devices| devices as usize).collect(),
            revocations: revocations.into(),
        };
        let found = alone::run(&options)?;
        if let Some(file) = json {
            serde_json::to_writer_pretty(file, &found).context("write the figures")?;
        }
        write!(std::io::stdout().lock(), "{found}").context("print the figures")?;
        Ok(found.checks.iter().all(|check| check.held))
    }
}

impl RunArguments {
    fn run(self) -> anyhow::Result<bool> {
        let Self { run, broker, edges, tls, fan_out, rendered } = self;
        let scenario = run.load()?;
        let files = Outputs { json: run.json, rendered }.create()?;
        let mut following = Following::live();
        following.begins(&scenario.name, scenario.phases.len());
        let report = if run.is_virtual {
            run_in_virtual_time(&scenario, run.seed, run.shape, &mut following)?
        } else {
            let broker = chosen(broker, tls, fan_out, edges);
            to_its_end(real_time::run(&scenario, broker, run.seed, run.shape, following.clone()), None)?
        };
        following.ended(&report);
        files.write(&report)?;
        write!(std::io::stdout().lock(), "{report}").context("print the report")?;
        Ok(report.passed())
    }
}

fn chosen(broker: Option<BrokerUrl>, tls: bool, fan_out: FanOut, edges: Option<u32>) -> FieldBroker {
    match broker {
        Some(url) => FieldBroker::Plain(url),
        None => {
            let edges = edges.map(|edges| edges as usize);
            FieldBroker::Embedded { tls, router: fan_out == FanOut::Router, edges }
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
        let report = to_its_end(demo::run(&options), json)?;
        write!(std::io::stdout().lock(), "{report}").context("print the report")?;
        Ok(report.passed())
    }
}

/// Runs it to its end, or to Ctrl-C, and writes what it found as JSON.
fn to_its_end<T: Serialize>(
    work: impl Future<Output = anyhow::Result<T>>,
    json: Option<PathBuf>,
) -> anyhow::Result<T> {
    // Before the work, so that a path that cannot be written is not found out after it.
    let json = json
        .map(|path| std::fs::File::create(&path).with_context(|| format!("create {}", path.display())))
        .transpose()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    let found = runtime.block_on(async {
        tokio::select! {
            found = work => found,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        }
    })?;
    runtime.shutdown_background();
    if let Some(file) = json {
        serde_json::to_writer_pretty(file, &found).context("write the report")?;
    }
    Ok(found)
}
