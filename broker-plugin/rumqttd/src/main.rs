//! `fleetkey-broker`: the broker as a process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use fleetkey_broker::policy::{PolicyHandle, PolicyState};
use fleetkey_broker::service::{Follower, GateService, MetricsEndpoint, Overrides, Settings, Setup, follow};
use fleetkey_broker::{Broker, Stats};
use fleetkey_door::process::{raise_file_limit, start_log};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

const LONG_ABOUT: &str = "\
Fleetkey's MQTT broker: MQTT 3.1.1 and 5 over TLS for one fleet.

Every client shows a certificate of the fleet. A device may publish to its own `up` topic, and subscribe to its own
`down` topic and to the cells it is a member of; who is in which cell, and who is revoked, the broker learns from the
coordinator. Before it has heard from it, only the coordinator itself is let in.";

const AFTER_HELP: &str = "\
A configuration file:

    [tls]                                       # PEM files, relative to this file
    roots = \"fleet-roots.pem\"
    certificate = \"broker.crt\"
    key = \"broker.key\"                         # read again, all three, when they change
    # crl = \"fleet.crl\"                        # certificates that no longer count; read again when it changes

    [listen]
    tls = [\"0.0.0.0:8883\"]
    metrics = \"127.0.0.1:9883\"                  # optional: /metrics for Prometheus

    [policy]
    url = \"http://127.0.0.1:7600/v1/policy\"     # the coordinator
    token = \"broker.token\"                      # the token it made for brokers at `fleetkey init`

Without a coordinator to ask: `cells = \"any_device\"` under [policy] admits any device of the fleet to any cell, which
costs privacy of traffic volume, not keys.

An edge of another broker, for fleets that outgrow one: the coordinator is connected there, devices here:

    [upstream]
    url = \"mqtts://central.example:8883\"       # with the certificate under [tls]

Another broker can ask this one who may do what: EMQX, RabbitMQ. Then [listen] may be left out:

    fleet = \"6f1c0f6e-5a53-4e4e-9a43-0f1b2c3d4e5f\"

    [gate]
    listen = \"127.0.0.1:7610\"                  # /emqx/… and /rabbitmq/…: see docs/BROKERS.md

Every setting is also an environment variable: FLEETKEY_BROKER__LISTEN__TLS=0.0.0.0:8883,[::]:8883. Later layers win:
defaults, file, environment, flags. Keys that are not known are refused.

Exit status: 0 after SIGTERM or SIGINT, 1 when it cannot start or go on, 2 for a wrong flag.";

#[derive(Debug, Parser)]
#[command(version, about = "Fleetkey's MQTT broker", long_about = LONG_ABOUT, after_long_help = AFTER_HELP)]
struct Arguments {
    /// The configuration file; without it, the environment and the flags say everything
    #[arg(short, long, value_name = "FILE", env = "FLEETKEY_BROKER_CONFIG")]
    config: Option<PathBuf>,
    /// Read the configuration and every file it names, say what is wrong, and exit
    #[arg(long)]
    check: bool,
    /// Listen here for MQTT over TLS, instead of the configured addresses; may be given more than once
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Vec<SocketAddr>,
    /// Serve /metrics here
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
    /// What carries cell messages to the members
    #[arg(long)]
    fan_out: Option<FanOutArgument>,
    /// What is logged, such as `debug` or `info,fleetkey_broker=debug`
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum FanOutArgument {
    /// A map from cell to sessions
    ExactMap,
    /// The router of rumqttd
    Router,
}

impl Arguments {
    fn overrides(&self) -> Overrides {
        let mut overrides = Overrides::new();
        if !self.listen.is_empty() {
            let addresses: Vec<String> = self.listen.iter().map(ToString::to_string).collect();
            overrides.push(("listen.tls", addresses.into()));
        }
        if let Some(address) = self.metrics {
            overrides.push(("listen.metrics", address.to_string().into()));
        }
        if let Some(fan_out) = self.fan_out {
            let name = match fan_out {
                FanOutArgument::ExactMap => "exact_map",
                FanOutArgument::Router => "router",
            };
            overrides.push(("fan_out", name.into()));
        }
        if let Some(filter) = &self.log {
            overrides.push(("log.filter", filter.as_str().into()));
        }
        overrides
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let settings = Settings::load(arguments.config.as_deref(), arguments.overrides())?;
    let setup = settings.set_up()?;
    start_log(&settings.log).context("log.filter")?;
    if arguments.check {
        eprintln!("the configuration is good: fleet {}", setup.fleet);
        return Ok(());
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(serve(setup, settings.listen.metrics))
}

async fn serve(setup: Setup, metrics: Option<SocketAddr>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let stop = CancellationToken::new();
    let _stop_others = stop.clone().drop_guard();
    let stop_following = stop.clone();
    // Before the broker starts to count, but quiet until it is known to start.
    let endpoint = match metrics {
        Some(address) => Some(MetricsEndpoint::bind(address).await?),
        None => None,
    };
    let policy = PolicyHandle::new(PolicyState::new(setup.fleet, setup.access));
    let gate = match setup.gate {
        Some(gate) => Some(GateService::bind(gate, &policy).await?),
        None => None,
    };
    let broker = match setup.broker {
        Some(config) => {
            let max_connections = config.limits.max_connections;
            let broker = Broker::start(config, policy.clone())?;
            raise_file_limit(max_connections, 1);
            Some(broker)
        }
        None => None,
    };
    if let Some(endpoint) = endpoint {
        tracing::info!(address = %endpoint.local_addr()?, "serving /metrics");
        tokio::spawn(endpoint.serve(stop.clone()));
    }
    let follower =
        setup.policy.map(|source| follow(source, policy.clone())).transpose().context("follow the policy")?;
    let gate = gate.map(|gate| {
        let heard = follower.as_ref().map(Follower::last_heard);
        gate.start(policy, heard, stop)
    });
    let broker_failed = async {
        match &broker {
            Some(broker) => broker.failed().await,
            None => std::future::pending().await,
        }
    };
    let crl_followed = async {
        match (&broker, setup.crl) {
            (Some(broker), Some((file, first))) => file.follow(first, |crl| broker.obey_crl(crl)).await,
            (Some(_) | None, _) => std::future::pending().await,
        }
    };
    if let (Some(_), Some(certificate)) = (&broker, setup.certificate) {
        tokio::spawn(stop_following.run_until_cancelled_owned(certificate.follow()));
    }
    let failed = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        () = broker_failed => true,
        () = crl_followed => true,
    };
    tracing::info!("stopping");
    let Stats { sessions_total, publishes, deliveries, .. } =
        broker.as_ref().map(Broker::stats).unwrap_or_default();
    tokio::task::block_in_place(|| drop((follower, gate)));
    if let Some(broker) = broker {
        broker.shutdown().await;
    }
    tracing::info!(sessions_total, publishes, deliveries, "stopped");
    anyhow::ensure!(!failed, "the fan-out has stopped");
    Ok(())
}
