//! Brokers of a field, each in a process of its own, and the one who tells it of the policy.

use std::net::SocketAddr;

use anyhow::Context as _;
use fleetkey_coordinator::{Fleet as Identities, PolicyFeed, PolicyStream};
use fleetkey_identity::chain_to_pem;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::{FieldBroker, FieldOptions};
use crate::parts::{BrokerAnswer, BrokerBegin, BrokerOrder, BrokerSeen, Papers, Part};

/// Connections of a broker beside those of devices.
const SPARE_CONNECTIONS: usize = 100;

/// Where a broker is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Where one was that has ended; else at a free port.
    pub(super) address: Option<SocketAddr>,
    /// The broker that it is an edge of.
    pub(super) above: Option<SocketAddr>,
}

/// A broker's process, with whom the policy is told.
#[derive(Debug)]
pub(super) struct BrokerPart {
    looks: mpsc::Sender<oneshot::Sender<BrokerSeen>>,
    task: JoinHandle<()>,
}

impl BrokerPart {
    /// Starts one of `edges` edges, or the one above them; answers where it listens.
    pub(super) async fn start(
        identities: &Identities,
        options: &FieldOptions,
        edges: usize,
        place: Place,
        feed: &PolicyFeed,
    ) -> anyhow::Result<(Self, SocketAddr)> {
        let FieldBroker::Embedded { tls, router, .. } = options.broker else {
            anyhow::bail!("this broker is not ours to start");
        };
        let begin = BrokerBegin {
            fleet: identities.id(),
            roots: identities.roots().to_pem(),
            papers: tls.then(|| papers(identities)),
            router,
            max_connections: options.connections().div_ceil(edges.max(1)) + SPARE_CONNECTIONS,
            address: place.address,
            above: place.above,
            // The processors are shared: with many brokers one thread each is enough.
            threads: options.threads.div_ceil(edges.max(1)),
        };
        let mut part = Part::start("broker", &begin).await?;
        let BrokerAnswer::Listening(address) = part.hear().await.context("start the broker")? else {
            anyhow::bail!("the broker says something else");
        };
        let (looks, asked) = mpsc::channel(4);
        let task = tokio::spawn(tell(part, feed.subscribe(), asked));
        Ok((Self { looks, task }, address))
    }

    /// How it is doing.
    pub(super) async fn look(&self) -> anyhow::Result<BrokerSeen> {
        let (tell, told) = oneshot::channel();
        self.looks.send(tell).await.ok().context("the broker has ended")?;
        told.await.context("the broker has ended")
    }

    /// Ends it, with all its sessions.
    pub(super) async fn end(self) {
        self.task.abort();
        // Its process ends with the task.
        _ = self.task.await;
    }
}

/// What a broker shows.
pub(super) fn papers(identities: &Identities) -> Papers {
    let party = &identities.broker;
    Papers { chain: chain_to_pem(&party.chain), key: party.key.to_pkcs8_pem().as_str().to_owned() }
}

/// Tells the broker of the policy as it changes, until it has ended.
async fn tell(
    mut part: Part,
    mut policy: PolicyStream,
    mut asked: mpsc::Receiver<oneshot::Sender<BrokerSeen>>,
) {
    loop {
        tokio::select! {
            biased;
            update = policy.next() => {
                let Some(update) = update else { return };
                if let Err(error) = part.tell(&BrokerOrder::Policy(update)).await {
                    return tracing::error!(%error, "the broker follows no more");
                }
            }
            look = asked.recv() => {
                let Some(look) = look else { return };
                match part.ask(&BrokerOrder::Look).await {
                    Ok(BrokerAnswer::Seen(seen)) => _ = look.send(*seen),
                    Ok(BrokerAnswer::Listening(_)) => return tracing::error!("the broker says something else"),
                    Err(error) => return tracing::error!(%error, "the broker does not answer"),
                }
            }
        }
    }
}
