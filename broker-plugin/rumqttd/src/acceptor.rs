//! From a TCP connection to a session: TLS, who it is, CONNECT, and whether it may.
//!
//! Everything up to the answer has a deadline and a size. Leaves to `connection` what comes after.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Buf;
use fleetkey_door::handshake::handshake;
use fleetkey_door::papers::Papers;
use fleetkey_door::socket::bind;
use fleetkey_policy::{Party, RELAY_CLIENT_ID_PREFIX};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

use crate::config::{BrokerError, Identify, Listener};
use crate::connection::{Connection, Terms};
use crate::hub::{Hub, RESERVED_CONNECTIONS};
use crate::link::{Link, Stream};
use crate::packet::{Connect, Malformed, Version, connack, frame, read_connect};
use crate::refusal::{Close, Refusal};

/// The largest CONNECT: it carries an id and nothing we use besides.
const MAX_CONNECT_BYTES: usize = 4 * 1024;
/// How long to wait when the system has no room for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a refusal may take to be sent.
const GOODBYE: Duration = Duration::from_secs(2);

/// A bound listener.
pub(crate) struct Acceptor {
    socket: TcpListener,
    tls: Option<TlsAcceptor>,
    identify: Identify,
}

impl Acceptor {
    pub(crate) fn bind(listener: &Listener) -> Result<Self, BrokerError> {
        let address = listener.address;
        listener.check()?;
        let socket = bind(address).map_err(|source| {
            if source.kind() == io::ErrorKind::AddrInUse {
                BrokerError::AddressInUse { address }
            } else {
                BrokerError::Listen { address, source }
            }
        })?;
        Ok(Self { socket, tls: listener.tls.clone().map(TlsAcceptor::from), identify: listener.identify })
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts until the broker stops.
    pub(crate) async fn run(self, hub: Arc<Hub>, connections: TaskTracker) {
        let acceptor = Arc::new(self);
        let stop = hub.stop.clone();
        while let Some(accepted) = stop.run_until_cancelled(acceptor.socket.accept()).await {
            match accepted {
                Ok((stream, peer)) => {
                    let serving = acceptor.clone().serve(hub.clone(), stream, peer);
                    connections.spawn(serving);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// The stages are boxed one by one: what a handshake needs is not kept for as long as the connection lives.
    async fn serve(self: Arc<Self>, hub: Arc<Hub>, stream: TcpStream, peer: SocketAddr) {
        let open = Open::new(&hub);
        if open.count > (hub.limits.max_connections + RESERVED_CONNECTIONS) as u64 {
            return hub.refused(&peer, &Refusal::TooManyConnections);
        }
        let _counted = match hub.addresses.count(peer.ip()) {
            Ok(counted) => counted,
            Err(refusal) => return hub.refused(&peer, &refusal.into()),
        };
        // Messages are small and must not wait for each other.
        let _ = stream.set_nodelay(true);
        match Box::pin(hub.stop.run_until_cancelled(self.establish(&hub, stream, peer))).await.flatten() {
            Some(Established::Plain(connection)) => Box::pin(connection.run()).await,
            Some(Established::Tls(connection)) => Box::pin(connection.run()).await,
            None => {}
        }
    }

    async fn establish(&self, hub: &Arc<Hub>, stream: TcpStream, peer: SocketAddr) -> Option<Established> {
        let Some(tls) = &self.tls else {
            return admit(hub, stream, peer, None)
                .await
                .map(|connection| Established::Plain(Box::new(connection)));
        };
        let deadline = Instant::now() + hub.limits.handshake_timeout;
        let stream = match tokio::time::timeout_at(deadline, handshake(&hub.handshakes, tls, stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "TLS handshake failed");
                hub.refused(&peer, &Refusal::TlsHandshake);
                return None;
            }
            Err(_) => {
                hub.refused(&peer, &Refusal::TlsTimeout);
                return None;
            }
        };
        let who = match self.identify {
            Identify::ClientId => None,
            Identify::ClientCertificate => {
                Some(Papers::read(stream.get_ref().1.peer_certificates(), hub.fleet).map_err(Refusal::from))
            }
        };
        admit(hub, stream, peer, who).await.map(|connection| Established::Tls(Box::new(connection)))
    }
}

/// A client that was let in.
enum Established {
    Plain(Box<Connection<TcpStream>>),
    Tls(Box<Connection<TlsStream<TcpStream>>>),
}

/// Counts a connection for as long as it lives.
struct Open<'a> {
    hub: &'a Hub,
    count: u64,
}

impl<'a> Open<'a> {
    fn new(hub: &'a Hub) -> Self {
        Self { hub, count: hub.counters.connection_opened() }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.hub.counters.connection_closed();
    }
}

/// Who it says it is, on a listener that believes it.
fn claimed(client_id: &str) -> Result<Papers, Refusal> {
    let party = if let Ok(device) = client_id.parse() {
        Party::Device(device)
    } else if client_id.starts_with("coordinator") {
        Party::Coordinator
    } else if client_id.starts_with(RELAY_CLIENT_ID_PREFIX) {
        Party::Broker
    } else {
        return Err(Refusal::UnknownClientId);
    };
    Ok(Papers { party, certificate: None, not_after_unix_seconds: None })
}

/// Reads the CONNECT and answers it; `None` when the client was not let in.
async fn admit<S: Stream>(
    hub: &Arc<Hub>,
    stream: S,
    peer: SocketAddr,
    who: Option<Result<Papers, Refusal>>,
) -> Option<Connection<S>> {
    let mut link = Link::new(stream);
    match tokio::time::timeout(hub.limits.connect_timeout, first_packet(&mut link)).await {
        Err(_) => {
            hub.refused(&peer, &Refusal::ConnectTimeout);
            return None;
        }
        // It was nobody: a port scan, a health check.
        Ok(Err(Gone)) => return None,
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(malformed))) => {
            hub.refused(&peer, &malformed.into());
            return None;
        }
    }
    let mut input = link.take_input();
    let outcome = match frame(&input, MAX_CONNECT_BYTES) {
        Ok(Some(frame)) => match read_connect(&frame) {
            Ok(connect) => Ok((frame.bytes, answer(hub, &mut link, &connect, who))),
            Err(malformed) => Err(malformed),
        },
        Ok(None) => return None,
        Err(malformed) => Err(malformed),
    };
    let refusal = match outcome {
        Ok((bytes, Ok((session, terms)))) => {
            input.advance(bytes);
            link.give_back_input(input);
            if hub.stop.is_cancelled() {
                session.close(Close::ShuttingDown);
            }
            tracing::debug!(%peer, client = %session.client_id, "session opened");
            return Some(Connection::new(hub.clone(), session, link, &terms));
        }
        Ok((_, Err(refusal))) => refusal,
        Err(malformed) => {
            // MQTT 3.1.1 §3.1.2.2: an unknown version is answered in the oldest way; nothing else can be.
            if matches!(malformed, Malformed::ProtocolLevel { .. }) {
                link.write(connack(Version::V4, 1, 0, None, false));
            }
            malformed.into()
        }
    };
    hub.refused(&peer, &refusal);
    link.finish(GOODBYE).await;
    None
}

/// The other side is gone.
struct Gone;

/// Reads until there is a whole packet.
async fn first_packet<S: Stream>(link: &mut Link<S>) -> Result<Result<(), Malformed>, Gone> {
    loop {
        match poll_fn(|cx| link.poll_read(cx)).await {
            Ok(0) | Err(_) => return Err(Gone),
            Ok(_) => {}
        }
        let input = link.take_input();
        let whole = frame(&input, MAX_CONNECT_BYTES).map(|frame| frame.is_some());
        link.give_back_input(input);
        match whole {
            Ok(false) => {}
            Ok(true) => return Ok(Ok(())),
            Err(malformed) => return Ok(Err(malformed)),
        }
    }
}

/// Decides on a CONNECT and writes the CONNACK.
fn answer<S: Stream>(
    hub: &Arc<Hub>,
    link: &mut Link<S>,
    connect: &Connect<'_>,
    who: Option<Result<Papers, Refusal>>,
) -> Result<(Arc<crate::session::Session>, Terms), Refusal> {
    let version = connect.version;
    match accept(hub, connect, who) {
        Ok((session, expires)) => {
            let limit = hub.limits.max_keep_alive;
            let asked = Duration::from_secs(connect.keep_alive_seconds.into());
            let too_long = asked.is_zero() || asked > limit;
            let keep_alive = if too_long { limit } else { asked };
            let server_keep_alive = too_long.then(|| u16::try_from(limit.as_secs()).unwrap_or(u16::MAX));
            link.write(connack(
                version,
                0,
                hub.limits.max_packet_bytes,
                server_keep_alive,
                connect.wants_session,
            ));
            let terms = Terms {
                version,
                keep_alive,
                expires,
                receive_maximum: connect.receive_maximum,
                max_packet_bytes: connect.max_packet_bytes.map_or(usize::MAX, |bytes| bytes as usize),
            };
            Ok((session, terms))
        }
        Err(refusal) => {
            link.write(connack(version, refusal.connack_code(version), 0, None, false));
            Err(refusal)
        }
    }
}

fn accept(
    hub: &Hub,
    connect: &Connect<'_>,
    who: Option<Result<Papers, Refusal>>,
) -> Result<(Arc<crate::session::Session>, Option<Instant>), Refusal> {
    let papers = who.unwrap_or_else(|| claimed(connect.client_id))?;
    if connect.has_will {
        return Err(Refusal::Will);
    }
    if connect.has_authentication_method {
        return Err(Refusal::AuthenticationMethod);
    }
    let expires = papers.expiry();
    let session = hub.attach(papers.party, connect.client_id, papers.certificate)?;
    Ok((session, expires))
}

#[cfg(test)]
mod tests {
    use fleetkey_policy::{CellAccess, PolicyHandle, PolicyState};
    use fleetkey_wire::FleetId;

    use super::*;
    use crate::{FanOutKind, Limits, fan_out};

    const FLEET: FleetId = FleetId::from_bytes([1; 16]);

    #[tokio::test]
    async fn what_a_connection_keeps_is_small() {
        let limits = Limits::default();
        let policy = PolicyHandle::new(PolicyState::new(FLEET, CellAccess::AnyDevice));
        let fan_out = fan_out::start(FanOutKind::ExactMap, FLEET, &limits).unwrap();
        let hub = Arc::new(Hub::new(FLEET, limits, policy, fan_out, false));
        let listener = Listener::insecure_loopback("127.0.0.1:0".parse().unwrap());
        let acceptor = Arc::new(Acceptor::bind(&listener).unwrap());
        let address = acceptor.local_addr().unwrap();
        let session = hub.attach(Party::Coordinator, "coordinator", None).unwrap();
        let terms = Terms {
            version: Version::V4,
            keep_alive: Duration::from_secs(1),
            expires: None,
            receive_maximum: 1,
            max_packet_bytes: 1,
        };
        let link = Link::new(TcpStream::connect(address).await.unwrap());
        let connection = Connection::new(hub.clone(), session, link, &terms);
        let task = acceptor.serve(hub, TcpStream::connect(address).await.unwrap(), address);
        let [task, run] = [std::mem::size_of_val(&task), std::mem::size_of_val(&connection.run())];
        assert!(task <= 1024 && run <= 2048, "the task takes {task} bytes, what it runs {run}");
    }
}
