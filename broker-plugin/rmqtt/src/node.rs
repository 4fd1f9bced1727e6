//! A running node: started, asked how it does, stopped.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use fleetkey_identity::Revocations;
use fleetkey_policy::{Effects, PolicyHandle, Watch};
use rmqtt::context::ServerContext;
use rmqtt::net::{Builder, Listener};
use rmqtt::server::MqttServer;
use rmqtt::types::{Id, QoS, Unsubscribe};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cluster;
use crate::config::{Limits, NodeConfig, NodeError};
use crate::fitter::Fitters;
use crate::front::Front;
use crate::guests::Guests;
use crate::hooks::Hooks;

/// How long connections get to be closed politely.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// Before anybody else who is asked the same.
const FIRST: rmqtt::hook::Priority = 1_000;
const LOOK: Duration = Duration::from_millis(20);

/// A running node. Dropping it stops it without waiting; a cluster's raft ends with the process only.
pub struct Node {
    guests: Arc<Guests>,
    context: ServerContext,
    local_addrs: Vec<SocketAddr>,
    inner: SocketAddr,
    connections: TaskTracker,
    rmqtt: JoinHandle<()>,
    /// Cancelled when rmqtt has stopped.
    rmqtt_stopped: CancellationToken,
    _watch: Watch,
}

/// Tells whether a node can serve.
#[derive(Clone)]
pub struct Checkup(ServerContext);

impl Checkup {
    /// What stands in the way of serving, if anything does: of a cluster, that its nodes do not agree on a leader.
    pub async fn ailment(&self) -> Option<String> {
        let shared = self.0.extends.shared().await;
        match shared.check_health().await {
            Ok(health) if health.running => None,
            Ok(health) => Some(health.descr.unwrap_or_else(|| "not running".to_owned())),
            Err(error) => Some(error.to_string()),
        }
    }
}

impl Node {
    /// Binds every listener, joins the cluster if there is one, then serves in the background of the current runtime.
    ///
    /// # Errors
    /// [`NodeError`]: what is wrong with the configuration, or cannot be reached.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn start(config: NodeConfig, policy: PolicyHandle) -> Result<Self, NodeError> {
        let about = policy.read().fleet();
        if about != config.fleet {
            return Err(NodeError::OtherFleet { broker: config.fleet, policy: about });
        }
        let listener = inner_listener(&config.limits)?;
        let inner = listener.local_addr().map_err(|error| inner_error(&error))?;
        let fronts: Vec<_> = config
            .listen
            .iter()
            .map(|address| Front::bind(*address, config.tls.clone(), inner))
            .collect::<Result<_, _>>()?;
        let guests = Arc::new(Guests::new(config.fleet, config.limits, policy.clone()));
        guests.obey_crl(&config.revocations);
        let context = context(config.cluster.as_ref()).await?;
        // Hooks before the first connection, the cluster's clients and this node's own alike.
        fit(&context, &guests).await;
        if let Some(cluster) = &config.cluster {
            cluster::join(&context, cluster).await?;
        }
        let server = MqttServer::new(context.clone()).listener_by_id(listener, 1).build();
        let rmqtt_stopped = CancellationToken::new();
        let stopped = rmqtt_stopped.clone().drop_guard();
        let rmqtt = tokio::spawn(async move {
            let _stopped = stopped;
            if let Err(error) = server.run().await {
                tracing::error!(%error, "rmqtt has stopped");
            }
        });
        let watch = policy.watch({
            let (guests, context, runtime) = (Arc::downgrade(&guests), context.clone(), Handle::current());
            move |effects| {
                if let Some(guests) = guests.upgrade() {
                    obey(&guests, &context, &runtime, effects);
                }
            }
        });
        let connections = TaskTracker::new();
        let mut local_addrs = Vec::with_capacity(fronts.len());
        for (front, address) in fronts.into_iter().zip(&config.listen) {
            let local =
                front.local_addr().map_err(|source| NodeError::Listen { address: *address, source })?;
            local_addrs.push(local);
            tracing::info!(address = %local, fleet = %config.fleet, "listening");
            connections.spawn(front.run(guests.clone(), connections.clone()));
        }
        Ok(Self { guests, context, local_addrs, inner, connections, rmqtt, rmqtt_stopped, _watch: watch })
    }

    /// The addresses that are listened on, in the order of the configuration.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.local_addrs
    }

    /// Where rmqtt itself listens: for relays, and for a test that nobody else gets anything there.
    pub fn inner_addr(&self) -> SocketAddr {
        self.inner
    }

    /// Lets nobody in with one of these certificates, and ends the sessions of those who are; answers how many ended. They take
    /// the place of those before. Whoever hands them over has checked who made the lists.
    pub fn obey_crl(&self, revocations: &Revocations) -> usize {
        self.guests.obey_crl(revocations)
    }

    /// The way to ask whether it can serve, for as long as the process lives.
    pub fn checkup(&self) -> Checkup {
        Checkup(self.context.clone())
    }

    /// Waits until rmqtt stops by itself, which it should not.
    pub async fn failed(&self) {
        self.rmqtt_stopped.cancelled().await;
    }

    /// Stops listening, ends every connection and waits until all are gone, at most a few seconds.
    pub async fn shutdown(self) {
        self.guests.stop.cancel();
        self.guests.close_all();
        self.connections.close();
        let all_gone = async {
            self.connections.wait().await;
            // The other nodes of a cluster are told of each session's end.
            while self.context.sessions.count() > 0 {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, all_gone).await.is_err() {
            tracing::warn!(connections = self.guests.open(), "some connections would not close");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.guests.stop.cancel();
        self.guests.close_all();
        self.rmqtt.abort();
    }
}

impl std::fmt::Debug for Checkup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Checkup").finish()
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("local_addrs", &self.local_addrs).finish_non_exhaustive()
    }
}

/// rmqtt's own listener, where only relays are let in.
fn inner_listener(limits: &Limits) -> Result<Listener, NodeError> {
    Builder::new()
        .name("relays")
        .laddr(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
        .nodelay(true)
        .backlog(4_096)
        .allow_anonymous(false)
        .max_handshaking_limit(limits.max_connections)
        .max_connections(limits.max_connections.saturating_mul(2))
        .max_packet_size(u32::try_from(limits.max_packet_bytes).unwrap_or(u32::MAX))
        // Longer than the front allows: a cluster that chooses a new leader takes its time.
        .handshake_timeout(limits.connect_timeout * 3)
        .send_timeout(limits.write_timeout)
        .max_inflight(NonZeroU16::new(limits.max_in_flight).unwrap_or(NonZeroU16::MIN))
        .max_qos_allowed(QoS::AtLeastOnce)
        .max_topic_levels(5)
        .max_subscriptions(limits.max_subscriptions)
        .max_topic_aliases(0)
        .session_expiry_interval(Duration::ZERO)
        .bind()
        .and_then(Listener::tcp)
        .map_err(|error| inner_error(&error))
}

fn inner_error(error: &rmqtt::Error) -> NodeError {
    NodeError::Inner { why: format!("{error:#}") }
}

async fn context(cluster: Option<&crate::ClusterConfig>) -> Result<ServerContext, NodeError> {
    // Load is no reason to refuse anybody: the front has its own limits.
    let builder = ServerContext::new().busy_check_enable(false);
    let builder = match cluster {
        Some(cluster) => cluster::prepare(builder.node_id(cluster.node), cluster)?,
        None => builder.node_id(1),
    };
    Ok(builder.build().await)
}

async fn fit(context: &ServerContext, guests: &Arc<Guests>) {
    *context.extends.fitter_mgr_mut().await = Box::new(Fitters::new(&guests.limits));
    let register = context.extends.hook_mgr().register();
    for asked in Hooks::TYPES {
        register.add_priority(asked, FIRST, Box::new(Hooks(guests.clone()))).await;
    }
    register.start().await;
}

/// Does to live sessions what follows from a change of policy: connections end here and now, what rmqtt holds right after.
fn obey(guests: &Arc<Guests>, context: &ServerContext, runtime: &Handle, effects: &Effects) {
    let (ended, dropped) = guests.obey(effects);
    for client_id in ended {
        let context = context.clone();
        runtime.spawn(async move {
            let id = Id::from(context.node.id(), client_id.into());
            let mut entry = context.extends.shared().await.entry(id);
            if let Err(error) = entry.kick(true, true, true).await {
                // Its connection has ended all the same, and its session ends with that.
                tracing::debug!(%error, "rmqtt does not end a session");
            }
        });
    }
    for gone in dropped {
        let context = context.clone();
        runtime.spawn(async move {
            let id = Id::from(context.node.id(), gone.client_id.into());
            let shared = context.extends.shared().await;
            let filter = gone.filter.into();
            let Ok(unsubscribe) = Unsubscribe::from(&filter, false, false) else { return };
            if let Err(error) = shared.entry(id).unsubscribe(&unsubscribe).await {
                // Nothing is delivered through what is left of it: that is asked each time.
                tracing::debug!(%error, %filter, "rmqtt does not end a subscription");
            }
        });
    }
}
