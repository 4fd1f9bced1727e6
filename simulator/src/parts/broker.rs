//! The part that is the embedded broker.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use anyhow::Context as _;
use fleetkey_broker::{Broker, BrokerConfig, FanOutKind, Listener, Upstream};
use fleetkey_identity::{FleetRoots, IdentityKey, chain_from_pem, tls};
use fleetkey_policy::{CellAccess, PolicyHandle, PolicyState};

use super::orders::{BrokerAnswer, BrokerBegin, BrokerOrder, BrokerSeen, hear, say};
use super::usage::Usage;

/// Is the broker until standard input ends.
///
/// # Errors
/// When it does not start, or is told nonsense.
pub fn run() -> anyhow::Result<()> {
    let (mut orders, mut answers) = (io::stdin().lock(), io::stdout().lock());
    let Some(begin) = hear::<BrokerBegin>(&mut orders)? else { return Ok(()) };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(begin.threads.max(1))
        .enable_all()
        .build()?;
    let policy = PolicyHandle::new(PolicyState::new(begin.fleet, CellAccess::Members));
    let broker = {
        let _inside = runtime.enter();
        start(&begin, &policy)?
    };
    let address = *broker.local_addrs().first().context("it listens nowhere")?;
    say(&mut answers, &BrokerAnswer::Listening(address))?;
    while let Some(order) = hear::<BrokerOrder>(&mut orders)? {
        match order {
            BrokerOrder::Policy(update) => {
                // What it asks of live sessions, the broker sees to by itself.
                _ = policy.apply(update).context("the policy is out of step")?;
            }
            BrokerOrder::Look => {
                let stats = broker.stats();
                let named = |counts: BTreeMap<&'static str, u64>| {
                    counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
                };
                let seen = BrokerSeen {
                    sessions: stats.sessions,
                    deliveries: stats.deliveries,
                    closed: named(stats.closed),
                    refused: named(stats.refused),
                    usage: Usage::of_this_process(),
                };
                say(&mut answers, &BrokerAnswer::Seen(Box::new(seen)))?;
            }
        }
    }
    runtime.shutdown_background();
    Ok(())
}

fn start(begin: &BrokerBegin, policy: &PolicyHandle) -> anyhow::Result<Broker> {
    let address = begin.address.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)));
    let (listener, client) = match &begin.papers {
        None => (Listener::insecure_loopback(address), None),
        Some(papers) => {
            let roots = FleetRoots::from_pem(&begin.roots).context("the roots")?;
            let chain = chain_from_pem(&papers.chain).context("the chain")?;
            let key = IdentityKey::from_pkcs8_pem(&papers.key).context("the key")?;
            let server = tls::server_config(&chain, &key, &roots)?;
            (Listener::tls(address, server), Some(tls::client_config(&chain, &key, &roots)?))
        }
    };
    let mut config = BrokerConfig::new(begin.fleet).listen(listener);
    if let Some(above) = begin.above {
        let (scheme, host) = match client {
            None => ("mqtt", above.ip().to_string()),
            Some(_) => ("mqtts", "localhost".to_owned()),
        };
        let url = format!("{scheme}://{host}:{}", above.port()).parse().context("the broker above")?;
        let mut upstream = Upstream::new(url, format!("relay-{}", std::process::id()));
        upstream.tls = client;
        config.upstream = Some(upstream);
    }
    config.fan_out = if begin.router { FanOutKind::Router } else { FanOutKind::ExactMap };
    config.limits.max_connections = begin.max_connections;
    Broker::start(config, policy.clone()).context("start the broker")
}
