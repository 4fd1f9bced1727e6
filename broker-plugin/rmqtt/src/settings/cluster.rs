//! `[cluster]`: the nodes that are one broker.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde::Deserialize;

use super::SettingsError;
use crate::config::{ClusterConfig, Peer};

/// The nodes that are one broker.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSettings {
    /// Which of them this one is.
    pub node: u64,
    /// All of them, this one too; the same on each.
    pub nodes: Vec<PeerSettings>,
    /// Whether nodes may be on other hosts: what they say to each other is neither signed nor encrypted.
    #[serde(default)]
    pub allow_remote: bool,
}

/// A node of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerSettings {
    /// Its number, from 1.
    pub node: u64,
    /// Where it agrees with the others on who is connected where.
    pub raft: SocketAddr,
    /// Where the others hand it messages for its clients.
    pub messages: SocketAddr,
}

impl ClusterSettings {
    pub(super) fn read(&self) -> Result<ClusterConfig, SettingsError> {
        let (mut nodes, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        for PeerSettings { node, raft, messages } in self.nodes.iter().copied() {
            if node == 0 {
                return Err(SettingsError::BadNode { node });
            }
            if !nodes.insert(node) {
                return Err(SettingsError::NodeTwice { node });
            }
            for address in [raft, messages] {
                if !address.ip().is_loopback() && !self.allow_remote {
                    return Err(SettingsError::RemoteNode { address });
                }
                if !addresses.insert(address) {
                    return Err(SettingsError::AddressTwice { address });
                }
            }
        }
        if self.node == 0 {
            return Err(SettingsError::BadNode { node: 0 });
        }
        if !nodes.contains(&self.node) {
            return Err(SettingsError::NotInCluster { node: self.node });
        }
        let peers =
            self.nodes.iter().map(|peer| Peer { node: peer.node, raft: peer.raft, messages: peer.messages });
        Ok(ClusterConfig { node: self.node, peers: peers.collect() })
    }
}
