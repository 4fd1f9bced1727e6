//! `fleetkey-broker-rmqtt`: a node as a process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use clap::Parser;
use fleetkey_broker_rmqtt::Node;
use fleetkey_broker_rmqtt::settings::{Settings, Setup};
use fleetkey_door::metrics_endpoint::MetricsEndpoint;
use fleetkey_door::process::{raise_file_limit, start_log};
use fleetkey_door::settings::Overrides;
use fleetkey_policy::{CellAccess, PolicyHandle, PolicyState};
use fleetkey_policy_follow::follow;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

const LONG_ABOUT: &str = "\
Fleetkey's gate in front of rmqtt: MQTT 3.1.1 and 5 over TLS for one fleet, on one node or on several that are one broker.

Every client shows a certificate of the fleet. A device may publish to its own `up` topic, and subscribe to its own
`down` topic and to the cells it is a member of; who is in which cell, and who is revoked, each node learns from the
coordinator by itself. Before it has heard from it, only the coordinator itself is let in.";

const AFTER_HELP: &str = "\
A configuration file:

    [tls]                                       # PEM files, relative to this file
    roots = \"fleet-roots.pem\"
    certificate = \"broker.crt\"
    key = \"broker.key\"
    # crl = \"fleet.crl\"                        # certificates that no longer count; read again when it changes

    [listen]
    tls = [\"0.0.0.0:8883\"]
    metrics = \"127.0.0.1:9464\"                  # optional: /metrics for Prometheus, and /health

    [policy]
    url = \"http://127.0.0.1:7600/v1/policy\"     # the coordinator
    token = \"broker.token\"                      # the token it made for brokers at `fleetkey init`

One of several nodes, in a build with --features cluster; the list is the same on each:

    [cluster]
    node = 1
    nodes = [
        { node = 1, raft = \"127.0.0.1:7701\", messages = \"127.0.0.1:7711\" },
        { node = 2, raft = \"127.0.0.1:7702\", messages = \"127.0.0.1:7712\" },
        { node = 3, raft = \"127.0.0.1:7703\", messages = \"127.0.0.1:7713\" },
    ]

Nodes neither know each other nor encrypt what they say: these addresses are for them alone (docs/BROKERS.md).

Every setting is also an environment variable: FLEETKEY_BROKER_RMQTT__LISTEN__TLS=0.0.0.0:8883,[::]:8883. Later layers
win: defaults, file, environment, flags. Keys that are not known are refused.

Exit status: 0 after SIGTERM or SIGINT, 1 when it cannot start or go on, 2 for a wrong flag.";

#[derive(Debug, Parser)]
#[command(version, about = "Fleetkey's gate in front of rmqtt", long_about = LONG_ABOUT, after_long_help = AFTER_HELP)]
struct Arguments {
    /// The configuration file; without it, the environment and the flags say everything
    #[arg(short, long, value_name = "FILE", env = "FLEETKEY_BROKER_RMQTT_CONFIG")]
    config: Option<PathBuf>,
    /// Read the configuration and every file it names, say what is wrong, and exit
    #[arg(long)]
    check: bool,
    /// Listen here for MQTT over TLS, instead of the configured addresses; may be given more than once
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Vec<SocketAddr>,
    /// Serve /metrics and /health here
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
    /// Which node of the cluster this is
    #[arg(long, value_name = "NUMBER")]
    node: Option<u64>,
    /// What is logged, such as `debug` or `info,fleetkey_broker_rmqtt=debug`
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
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
        if let Some(node) = self.node {
            overrides.push(("cluster.node", node.into()));
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
    if setup.node.cluster.is_some() && !cfg!(feature = "cluster") {
        anyhow::bail!(fleetkey_broker_rmqtt::NodeError::NoClusters);
    }
    start_log(&settings.log).context("log.filter")?;
    if arguments.check {
        eprintln!("the configuration is good: fleet {}", setup.node.fleet);
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
    // Before the node starts to count, but quiet until it is known to start.
    let endpoint = match metrics {
        Some(address) => Some(MetricsEndpoint::bind(address).await?),
        None => None,
    };
    let policy = PolicyHandle::new(PolicyState::new(setup.node.fleet, setup.access));
    // A connection comes in once, and goes on to rmqtt with both of its ends in this process.
    raise_file_limit(setup.node.limits.max_connections, 3);
    let starting = Node::start(setup.node, policy.clone());
    let node = tokio::select! {
        node = starting => node?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let follower =
        setup.policy.map(|source| follow(source, policy.clone())).transpose().context("follow the policy")?;
    if let Some(endpoint) = endpoint {
        tracing::info!(address = %endpoint.local_addr()?, "serving /metrics and /health");
        tokio::spawn(endpoint.serve_with(health(&node, policy), stop.clone()));
    }
    tokio::spawn(stop.clone().run_until_cancelled_owned(setup.certificate.follow()));
    let failed = {
        let crl_followed = async {
            match setup.crl {
                Some((file, first)) => file.follow(first, |crl| node.obey_crl(crl)).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(crl_followed);
        tokio::select! {
            _ = terminate.recv() => false,
            _ = interrupt.recv() => false,
            () = crl_followed => true,
            () = node.failed() => true,
        }
    };
    tracing::info!("stopping");
    tokio::task::block_in_place(|| drop(follower));
    node.shutdown().await;
    tracing::info!("stopped");
    anyhow::ensure!(!failed, "rmqtt has stopped");
    Ok(())
}

/// `/health`: 200 when clients can be served, or 503 and why not.
fn health(node: &Node, policy: PolicyHandle) -> Router {
    let checkup = node.checkup();
    let answer = move || {
        let (checkup, policy) = (checkup.clone(), policy.clone());
        async move {
            let is_known = {
                let policy = policy.read();
                policy.access() == CellAccess::AnyDevice || policy.sequence().is_some()
            };
            if !is_known {
                return (StatusCode::SERVICE_UNAVAILABLE, "no policy has been received\n".to_owned());
            }
            match checkup.ailment().await {
                None => (StatusCode::OK, "ok\n".to_owned()),
                Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            }
        }
    };
    Router::new().route("/health", get(answer))
}
