//! `/metrics` for Prometheus.

use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::routing::get;
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// A bound endpoint and the recorder of this process.
#[derive(Debug)]
pub struct MetricsEndpoint {
    socket: TcpListener,
    recorder: PrometheusHandle,
}

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The address cannot be listened on.
    #[error("listen on {address} for /metrics: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The process has a recorder already.
    #[error("install the recorder: {0}")]
    Recorder(#[from] BuildError),
}

impl MetricsEndpoint {
    /// Binds the address and installs the process's recorder. Call it before a broker is started: what is counted
    /// before is not recorded.
    ///
    /// # Errors
    /// When the address is taken, or there is a recorder already.
    pub async fn bind(address: SocketAddr) -> Result<Self, MetricsError> {
        let socket =
            TcpListener::bind(address).await.map_err(|source| MetricsError::Listen { address, source })?;
        let recorder = PrometheusBuilder::new().install_recorder()?;
        Ok(Self { socket, recorder })
    }

    /// The address that is listened on.
    ///
    /// # Errors
    /// When the system does not know it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until `stop`.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn serve(self, stop: CancellationToken) -> io::Result<()> {
        self.serve_with(Router::new(), stop).await
    }

    /// The same, with routes beside `/metrics`.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn serve_with(self, others: Router, stop: CancellationToken) -> io::Result<()> {
        let recorder = self.recorder;
        let routes = others.route("/metrics", get(move || async move { recorder.render() }));
        axum::serve(self.socket, routes).with_graceful_shutdown(stop.cancelled_owned()).await
    }
}
