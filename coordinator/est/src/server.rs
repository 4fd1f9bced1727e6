//! From a TCP connection to requests: TLS, HTTP/1.1, and a limit on everything.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use axum::{Extension, Router};
use fleetkey_identity::tls::enrolment_server_config;
use fleetkey_identity::{FleetRoots, IdentityKey};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clients::Clients;
use crate::manufacturers::Manufacturers;

/// How long to wait when the system has no room for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// What it has shown (DER, leaf first), which TLS has verified; nothing, if it has shown nothing.
    pub(crate) certificates: Arc<Vec<Vec<u8>>>,
}

/// How much is borne.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at the same time; more wait in the system's queue. One address may hold a quarter of them.
    pub max_connections: usize,
    /// How long TLS may take.
    pub handshake_timeout: Duration,
    /// How long the head of a request may take.
    pub head_timeout: Duration,
    /// How long a connection may last, whatever it does.
    pub connection_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 1_024,
            handshake_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(10),
            connection_timeout: Duration::from_secs(60),
        }
    }
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address is taken, or not this host's.
    #[error("listen for enrolment on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's word on it.
        source: io::Error,
    },
    /// Certificate and key do not fit together.
    #[error("TLS for enrolment: {0}")]
    Tls(#[from] rustls::Error),
}

/// A bound EST server. Its certificate can be replaced while it runs.
pub struct EstServer {
    socket: TcpListener,
    address: SocketAddr,
    tls: Arc<RwLock<Arc<ServerConfig>>>,
    clients: Arc<Clients>,
    limits: Limits,
}

impl EstServer {
    /// Binds to an address. `chain` (DER, leaf first) and `key` are the server's own.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn bind(
        address: SocketAddr,
        chain: &[Vec<u8>],
        key: &IdentityKey,
        roots: FleetRoots,
        manufacturers: Manufacturers,
        limits: Limits,
    ) -> Result<Self, ServerError> {
        let clients = Arc::new(Clients { roots, manufacturers });
        let tls = enrolment_server_config(chain, key, clients.clone())?;
        let listen = |source| ServerError::Listen { address, source };
        let socket = TcpListener::bind(address).await.map_err(listen)?;
        let address = socket.local_addr().map_err(listen)?;
        Ok(Self { socket, address, tls: Arc::new(RwLock::new(tls)), clients, limits })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces the server's certificate: connections from now on see the new one.
    pub fn renewer(
        &self,
    ) -> impl Fn(&[Vec<u8>], &IdentityKey) -> Result<(), ServerError> + Send + Sync + 'static {
        let (tls, clients) = (self.tls.clone(), self.clients.clone());
        move |chain, key| {
            let config = enrolment_server_config(chain, key, clients.clone())?;
            *tls.write().unwrap_or_else(PoisonError::into_inner) = config;
            Ok(())
        }
    }

    /// Serves until it is told to stop; connections that are open then may finish what they began.
    pub async fn run(self, router: Router, stop: CancellationToken) {
        let room = Arc::new(Semaphore::new(self.limits.max_connections));
        let connections = TaskTracker::new();
        let held = Arc::new(Held::default());
        loop {
            // A place first: what waits for one waits in the system's queue, and costs us nothing.
            let Some(Ok(place)) = stop.run_until_cancelled(room.clone().acquire_owned()).await else { break };
            let Some(accepted) = stop.run_until_cancelled(self.socket.accept()).await else { break };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept enrolment connections");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let tls = self.tls.read().unwrap_or_else(PoisonError::into_inner).clone();
            let Some(own) = Held::take(&held, address.ip(), self.limits.max_connections / 4) else {
                metrics::counter!("fleetkey_est_refused_total", "reason" => "too_many_of_one").increment(1);
                continue;
            };
            let (router, limits, stop) = (router.clone(), self.limits, stop.clone());
            connections.spawn(async move {
                let _place = (place, own);
                let serving = serve(stream, address, tls, router, limits, &stop);
                if tokio::time::timeout(limits.connection_timeout, serving).await.is_err() {
                    metrics::counter!("fleetkey_est_refused_total", "reason" => "connection_timeout")
                        .increment(1);
                }
            });
        }
        connections.close();
        connections.wait().await;
    }
}

/// Connections that each address holds.
#[derive(Debug, Default)]
struct Held(Mutex<BTreeMap<IpAddr, usize>>);

/// One of them, for as long as it lives.
struct OneOf {
    held: Arc<Held>,
    address: IpAddr,
}

impl Held {
    fn take(held: &Arc<Self>, address: IpAddr, most: usize) -> Option<OneOf> {
        let mut all = held.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(address).or_default();
        if *count >= most.max(1) {
            return None;
        }
        *count += 1;
        Some(OneOf { held: held.clone(), address })
    }
}

impl Drop for OneOf {
    fn drop(&mut self) {
        let mut all = self.held.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.address);
            }
        }
    }
}

async fn serve(
    stream: TcpStream,
    address: SocketAddr,
    tls: Arc<ServerConfig>,
    router: Router,
    limits: Limits,
    stop: &CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let handshake = tokio::time::timeout(limits.handshake_timeout, TlsAcceptor::from(tls).accept(stream));
    let stream = match handshake.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(peer = %address, %error, "TLS handshake failed");
            metrics::counter!("fleetkey_est_refused_total", "reason" => "tls_handshake").increment(1);
            return;
        }
        Err(_) => {
            metrics::counter!("fleetkey_est_refused_total", "reason" => "tls_timeout").increment(1);
            return;
        }
    };
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let certificates = Arc::new(shown.iter().map(|der| der.to_vec()).collect());
    let service = TowerToHyperService::new(router.layer(Extension(Peer { address, certificates })));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_buf_size(32 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(peer = %address, %error, "enrolment connection ended");
    }
}
