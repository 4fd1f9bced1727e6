//! The nodes that are one broker: rmqtt's raft, which agrees on who is connected where, and the listener that takes messages
//! from the other nodes.
//!
//! Neither says who it is nor encrypts anything: the addresses must be reachable for the nodes and for nobody else.

use rmqtt::context::{ServerContext, ServerContextBuilder};

use crate::config::{ClusterConfig, NodeError};

#[cfg(feature = "cluster")]
const PLUGIN: &str = "rmqtt-cluster-raft";

/// Tells rmqtt of the other nodes, before it is built.
#[cfg(feature = "cluster")]
pub(crate) fn prepare(
    builder: ServerContextBuilder,
    cluster: &ClusterConfig,
) -> Result<ServerContextBuilder, NodeError> {
    let addresses = |address: fn(&crate::Peer) -> std::net::SocketAddr| {
        let all: Vec<_> =
            cluster.peers.iter().map(|peer| format!("\"{}@{}\"", peer.node, address(peer))).collect();
        format!("[{}]", all.join(", "))
    };
    // A node that begins a cluster alone, and the others who join it; or two clusters would begin at once. Times are shorter
    // than rmqtt's own: a node that was killed must not hold up the clients that come from it for long.
    let settings = format!(
        "node_grpc_addrs = {}\nraft_peer_addrs = {}\nleader_id = {}\nnode_grpc_client_timeout = \"2s\"\n\
         try_lock_timeout = \"3s\"\nworker_threads = 2\n\
         [raft]\ngrpc_reuseaddr = true\ngrpc_reuseport = false\ngrpc_timeout = \"2s\"\n",
        addresses(|peer| peer.messages),
        addresses(|peer| peer.raft),
        cluster.first(),
    );
    Ok(builder.plugins_config_map_add(PLUGIN, settings))
}

/// Joins the other nodes, or waits for them.
#[cfg(feature = "cluster")]
pub(crate) async fn join(context: &ServerContext, cluster: &ClusterConfig) -> Result<(), NodeError> {
    let failed = |why: String| NodeError::Cluster { node: cluster.node, why };
    let own = cluster.own().ok_or_else(|| failed("it is none of its nodes".to_owned()))?;
    // rmqtt only logs what becomes of its listener: whether it can be bound is found out here.
    for address in [own.messages, own.raft] {
        drop(fleetkey_door::socket::bind(address).map_err(|source| NodeError::Listen { address, source })?);
    }
    context.node.start_grpc_server(context.clone(), own.messages, true, false);
    rmqtt_cluster_raft::register_named(context, PLUGIN, true, false)
        .await
        .map_err(|error| failed(format!("{error:#}")))
}

/// Tells rmqtt of the other nodes, before it is built.
#[cfg(not(feature = "cluster"))]
pub(crate) fn prepare(_: ServerContextBuilder, _: &ClusterConfig) -> Result<ServerContextBuilder, NodeError> {
    Err(NodeError::NoClusters)
}

/// Joins the other nodes, or waits for them.
#[cfg(not(feature = "cluster"))]
#[expect(clippy::unused_async, reason = "it is where there are clusters")]
pub(crate) async fn join(_: &ServerContext, _: &ClusterConfig) -> Result<(), NodeError> {
    Err(NodeError::NoClusters)
}
