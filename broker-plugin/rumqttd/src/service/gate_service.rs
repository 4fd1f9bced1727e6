//! The gate as a part of this process: bound early, so that what is wrong is said at the start, and served to the end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use fleetkey_gate::{Gate, Kicker};
use fleetkey_policy::PolicyHandle;
use fleetkey_policy_follow::LastHeard;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::settings::GateSetup;

/// A bound gate, whose kickers watch the policy already.
#[derive(Debug)]
pub struct GateService {
    socket: TcpListener,
    setup: GateSetup,
    kickers: Vec<Kicker>,
}

/// A gate that answers. Dropping it ends the kickers; the answers end with the token.
#[derive(Debug)]
pub struct RunningGate {
    _kickers: Vec<Kicker>,
}

/// Why there is no gate.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The address cannot be listened on.
    #[error("listen on {address} for the gate: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The system gives no thread.
    #[error("start a thread for a broker's management: {0}")]
    Thread(io::Error),
}

impl GateService {
    /// Binds the address. Call it before the policy is followed: what changes before is not acted on.
    ///
    /// # Errors
    /// When the address is taken, or there are no threads left.
    pub async fn bind(mut setup: GateSetup, policy: &PolicyHandle) -> Result<Self, GateError> {
        let address = setup.listen;
        let socket =
            TcpListener::bind(address).await.map_err(|source| GateError::Listen { address, source })?;
        let kickers = std::mem::take(&mut setup.management)
            .into_iter()
            .map(|management| Kicker::start(management, policy))
            .collect::<io::Result<_>>()
            .map_err(GateError::Thread)?;
        Ok(Self { socket, setup, kickers })
    }

    /// Answers in the background until `stop`.
    pub fn start(
        self,
        policy: PolicyHandle,
        heard: Option<LastHeard>,
        stop: CancellationToken,
    ) -> RunningGate {
        if let Ok(address) = self.socket.local_addr() {
            tracing::info!(%address, "the gate answers");
        }
        let gate = Arc::new(Gate::new(policy, heard, self.setup.max_silence));
        let socket = self.socket;
        tokio::spawn(async move {
            if let Err(error) = fleetkey_gate::serve(socket, gate, stop).await {
                tracing::error!(%error, "the gate has stopped");
            }
        });
        RunningGate { _kickers: self.kickers }
    }
}
