//! From a TCP connection to a relay: TLS, and who it is.
//!
//! Everything up to there has a deadline and a limit. Leaves to `relay` the bytes, and to `hooks` the CONNECT.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use fleetkey_door::handshake::handshake;
use fleetkey_door::papers::Papers;
use fleetkey_door::socket::bind;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

use crate::config::NodeError;
use crate::guests::{Guests, RESERVED_CONNECTIONS};
use crate::refusal::Refusal;
use crate::relay::Relay;

/// How long to wait when the system has no room for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Relays come from so many loopback addresses in turn: each has some 28,000 ports, and no more.
const SOURCES: u8 = 8;

/// A bound listener.
pub(crate) struct Front {
    socket: TcpListener,
    tls: TlsAcceptor,
    /// rmqtt's own listener.
    inner: SocketAddr,
    next_source: AtomicU8,
}

impl Front {
    pub(crate) fn bind(
        address: SocketAddr,
        tls: Arc<rustls::ServerConfig>,
        inner: SocketAddr,
    ) -> Result<Self, NodeError> {
        let socket = bind(address).map_err(|source| NodeError::Listen { address, source })?;
        Ok(Self { socket, tls: TlsAcceptor::from(tls), inner, next_source: AtomicU8::new(0) })
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts until the node stops.
    pub(crate) async fn run(self, guests: Arc<Guests>, connections: TaskTracker) {
        let front = Arc::new(self);
        let stop = guests.stop.clone();
        while let Some(accepted) = stop.run_until_cancelled(front.socket.accept()).await {
            match accepted {
                Ok((stream, peer)) => {
                    connections.spawn(front.clone().serve(guests.clone(), stream, peer));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve(self: Arc<Self>, guests: Arc<Guests>, stream: TcpStream, peer: SocketAddr) {
        let _open = Open::new(&guests);
        if guests.open() > guests.limits.max_connections as u64 + RESERVED_CONNECTIONS {
            return guests.refused(&peer, &Refusal::TooManyConnections);
        }
        let _counted = match guests.addresses.count(peer.ip()) {
            Ok(counted) => counted,
            Err(refusal) => return guests.refused(&peer, &refusal.into()),
        };
        // Messages are small and must not wait for each other.
        let _ = stream.set_nodelay(true);
        let outcome = guests.stop.run_until_cancelled(self.establish(&guests, stream)).await;
        match outcome {
            Some(Ok((stream, papers))) => {
                if let Err(refusal) = Box::pin(self.relay(&guests, stream, papers, peer)).await {
                    guests.refused(&peer, &refusal);
                }
            }
            Some(Err(refusal)) => guests.refused(&peer, &refusal),
            None => {}
        }
    }

    async fn establish(
        &self,
        guests: &Guests,
        stream: TcpStream,
    ) -> Result<(TlsStream<TcpStream>, Papers), Refusal> {
        let handshake = Box::pin(handshake(&guests.handshakes, &self.tls, stream));
        let stream = match tokio::time::timeout(guests.limits.handshake_timeout, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%error, "TLS handshake failed");
                return Err(Refusal::TlsHandshake);
            }
            Err(_) => return Err(Refusal::TlsTimeout),
        };
        let papers = Papers::read(stream.get_ref().1.peer_certificates(), guests.fleet)?;
        Ok((stream, papers))
    }

    /// Hands the client on to rmqtt, which learns from the address whom it is talking to.
    async fn relay(
        &self,
        guests: &Guests,
        stream: TlsStream<TcpStream>,
        papers: Papers,
        peer: SocketAddr,
    ) -> Result<(), Refusal> {
        let inner = |error: io::Error| {
            tracing::warn!(%error, "cannot reach rmqtt's own listener");
            Refusal::Inner
        };
        let socket = self.source().map_err(inner)?;
        let address = socket.local_addr().map_err(inner)?;
        // Before the connection, so that it is known when rmqtt asks; forgotten before its port is free again.
        let relayed = guests.announce(address, papers)?;
        let connected = socket.connect(self.inner).await.map_err(inner)?;
        connected.set_nodelay(true).map_err(inner)?;
        let close = Relay::new(guests, &relayed.guest, stream).run(connected, relayed).await;
        tracing::debug!(%peer, reason = close.name(), "connection ended");
        Ok(())
    }

    /// A socket with an address of its own.
    fn source(&self) -> io::Result<TcpSocket> {
        let mut last = None;
        for _ in 0..SOURCES {
            let turn = self.next_source.fetch_add(1, Ordering::Relaxed) % SOURCES;
            let socket = TcpSocket::new_v4()?;
            match socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, turn + 1), 0))) {
                Ok(()) => return Ok(socket),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
    }
}

/// Counts a connection for as long as it lives.
struct Open<'a>(&'a Guests);

impl<'a> Open<'a> {
    fn new(guests: &'a Guests) -> Self {
        guests.connection_opened();
        Self(guests)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.connection_closed();
    }
}
