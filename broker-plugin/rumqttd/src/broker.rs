//! A running broker: started, asked how it does, stopped.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fleetkey_identity::Revocations;
use fleetkey_policy::{PolicyHandle, Watch};
use tokio_util::task::TaskTracker;

use crate::acceptor::Acceptor;
use crate::config::{BrokerConfig, BrokerError};
use crate::fan_out;
use crate::hub::Hub;
use crate::stats::Stats;
use crate::uplink::Way;

/// How long connections get to be closed politely.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// A running broker. Dropping it stops it without waiting.
pub struct Broker {
    hub: Arc<Hub>,
    local_addrs: Vec<SocketAddr>,
    connections: TaskTracker,
    _watch: Watch,
}

impl Broker {
    /// Binds every listener, then serves in the background of the current tokio runtime.
    ///
    /// # Errors
    /// What is wrong with the configuration, or the address that cannot be listened on.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(config: BrokerConfig, policy: PolicyHandle) -> Result<Self, BrokerError> {
        if config.listeners.is_empty() {
            return Err(BrokerError::NoListeners);
        }
        let about = policy.read().fleet();
        if about != config.fleet {
            return Err(BrokerError::OtherFleet { broker: config.fleet, policy: about });
        }
        if let Some(upstream) = &config.upstream {
            upstream.check()?;
        }
        let acceptors = config.listeners.iter().map(Acceptor::bind).collect::<Result<Vec<_>, _>>()?;
        let fan_out = fan_out::start(config.fan_out, config.fleet, &config.limits)?;
        let hub = Arc::new(Hub::new(
            config.fleet,
            config.limits,
            policy.clone(),
            fan_out,
            config.upstream.is_some(),
        ));
        hub.obey_crl(&config.revocations);
        let watch = policy.watch({
            let hub = Arc::downgrade(&hub);
            move |effects| {
                if let Some(hub) = hub.upgrade() {
                    hub.obey(effects);
                }
            }
        });
        let connections = TaskTracker::new();
        if let Some(upstream) = config.upstream {
            connections.spawn(Way::new(hub.clone(), upstream).run());
        }
        let mut local_addrs = Vec::with_capacity(acceptors.len());
        for (acceptor, listener) in acceptors.into_iter().zip(&config.listeners) {
            let address = listener.address;
            let local = acceptor.local_addr().map_err(|source| BrokerError::Listen { address, source })?;
            local_addrs.push(local);
            tracing::info!(address = %local, tls = listener.tls.is_some(), fleet = %config.fleet, "listening");
            connections.spawn(acceptor.run(hub.clone(), connections.clone()));
        }
        Ok(Self { hub, local_addrs, connections, _watch: watch })
    }

    /// The addresses that are listened on, in the order of the listeners.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.local_addrs
    }

    /// What has been counted so far.
    pub fn stats(&self) -> Stats {
        self.hub.counters.snapshot()
    }

    /// Lets nobody in with one of these certificates, and ends the sessions of those who are; answers how many. They take the
    /// place of those before. Whoever hands them over has checked who made the lists.
    pub fn obey_crl(&self, revocations: &Revocations) -> usize {
        self.hub.obey_crl(revocations)
    }

    /// Waits until the broker stops by itself, which it does when its fan-out has failed.
    pub async fn failed(&self) {
        self.hub.stop.cancelled().await;
        if !self.hub.failed.load(Ordering::Relaxed) {
            std::future::pending().await
        }
    }

    /// Stops listening, says goodbye to every client and waits until all are gone, at most a few seconds.
    pub async fn shutdown(self) {
        self.hub.stop.cancel();
        self.hub.close_all();
        self.connections.close();
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, self.connections.wait()).await.is_err() {
            tracing::warn!(connections = self.stats().connections, "some connections would not close");
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.hub.stop.cancel();
        self.hub.close_all();
    }
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").field("local_addrs", &self.local_addrs).finish_non_exhaustive()
    }
}
