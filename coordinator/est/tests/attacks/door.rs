//! A server on loopback with a registrar of a few lines behind it, and clients that say exactly what they are told to.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fleetkey_est::{
    About, Answer, Applicant, EstServer, Limits, Manufacturers, Refusal, Registrar, Way, router,
};
use fleetkey_identity::tls::enrolment_client_config;
use fleetkey_identity::{FleetCa, FleetRoots, Identity, IdentityKey, Role, SigningRequest, Validity};
use fleetkey_wire::{DeviceId, FleetId};
use rand_core::OsRng;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

pub(crate) const FLEET: FleetId = FleetId::from_bytes([1; 16]);
pub(crate) const DEVICE: DeviceId = DeviceId::from_bytes([0xd; 16]);
pub(crate) const CLAIM: &str = "hall-3:open sesame";
/// Whatever takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Lets in whoever has the claim, and renews what it made; counts both.
pub(crate) struct Desk {
    pub(crate) ca: FleetCa,
    enrolled: AtomicUsize,
    renewed: AtomicUsize,
}

impl Desk {
    fn issue(&self, request: &SigningRequest) -> Answer {
        let leaf = self.ca.issue(&Role::Device(DEVICE), &request.public_key, &[], days(-1, 1)).unwrap();
        Answer::Issued(self.ca.chain(leaf))
    }

    /// How many came in, and how many were renewed.
    pub(crate) fn registered(&self) -> (usize, usize) {
        (self.enrolled.load(Ordering::SeqCst), self.renewed.load(Ordering::SeqCst))
    }
}

impl Registrar for Desk {
    fn ca_certificates(&self) -> Vec<Vec<u8>> {
        vec![self.ca.certificate_der().to_vec()]
    }

    fn revocation_list(&self) -> Option<Bytes> {
        None
    }

    fn revocation_list_of(&self, _: &str) -> Option<Bytes> {
        None
    }

    fn about(&self) -> About {
        About {
            fleet: FLEET,
            broker: "mqtts://localhost".into(),
            coordinator_certificate: String::new(),
            fleet_roots: self.ca.certificate_pem(),
        }
    }

    async fn enrol(&self, applicant: Applicant) -> Result<Answer, Refusal> {
        let is_good = match &applicant.way {
            Way::Claim { user, password } => format!("{user}:{}", password.as_str()) == CLAIM,
            Way::Manufacturer(_) => false,
        };
        if !is_good {
            return Err(Refusal::Unauthorized { name: "unknown_claim", why: "no such claim".into() });
        }
        self.enrolled.fetch_add(1, Ordering::SeqCst);
        Ok(self.issue(&applicant.request))
    }

    async fn reenrol(&self, _: Identity, request: SigningRequest) -> Result<Answer, Refusal> {
        self.renewed.fetch_add(1, Ordering::SeqCst);
        Ok(self.issue(&request))
    }
}

/// From so many days from now to so many.
pub(crate) fn days(from: i64, to: i64) -> Validity {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let now = i64::try_from(now).unwrap();
    let day = 86_400;
    Validity { not_before_unix_seconds: now + from * day, not_after_unix_seconds: now + to * day }
}

/// A server, and what it registers.
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    pub(crate) desk: Arc<Desk>,
    roots: FleetRoots,
    stop: CancellationToken,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

type Own<'a> = Option<(&'a [Vec<u8>], &'a IdentityKey)>;

impl Door {
    pub(crate) async fn open(limits: Limits) -> Self {
        let ca = FleetCa::create(FLEET, &mut OsRng, Validity::without_end(0)).unwrap();
        let roots = FleetRoots::new(&[ca.certificate_der().to_vec()]).unwrap();
        let key = IdentityKey::generate(&mut OsRng);
        let names = ["localhost".to_owned()];
        let leaf = ca.issue(&Role::Registrar, &key.public_key(), &names, days(-1, 1)).unwrap();
        let makers = Manufacturers::new(FLEET, Vec::new());
        let anywhere = "127.0.0.1:0".parse().unwrap();
        let chain = ca.chain(leaf);
        let server =
            EstServer::bind(anywhere, &chain, &key, roots.clone(), makers.clone(), limits).await.unwrap();
        let address = server.address();
        let desk = Arc::new(Desk { ca, enrolled: AtomicUsize::new(0), renewed: AtomicUsize::new(0) });
        let stop = CancellationToken::new();
        tokio::spawn(server.run(router(desk.clone(), roots.clone(), makers), stop.clone()));
        Self { address, desk, roots, stop }
    }

    /// A TCP connection from an address of this host.
    pub(crate) async fn reach(&self, from: IpAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(from, 0)).unwrap();
        socket.connect(self.address).await.unwrap()
    }

    /// A TLS connection, showing a certificate if there is one.
    pub(crate) async fn tls(&self, from: IpAddr, own: Own<'_>) -> std::io::Result<TlsStream<TcpStream>> {
        let config = enrolment_client_config(own, &self.roots).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(config).connect(name, self.reach(from).await).await
    }

    /// The status of the answer; none when there is none.
    pub(crate) async fn ask(&self, from: IpAddr, own: Own<'_>, request: &[u8]) -> Option<u16> {
        let mut stream = self.tls(from, own).await.ok()?;
        // It may be refused before all of it was read.
        let _ = stream.write_all(request).await;
        let _ = stream.flush().await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an answer");
        let head = String::from_utf8_lossy(&answer).into_owned();
        head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
    }

    /// That it serves: a device comes in by a good claim.
    pub(crate) async fn still_serves(&self, from: IpAddr, csr: &[u8]) {
        let before = self.desk.registered().0;
        assert_eq!(self.ask(from, None, &enrol(CLAIM, csr)).await, Some(200));
        assert_eq!(self.desk.registered().0, before + 1);
    }
}

/// An address of this host.
pub(crate) fn local(last: u8) -> IpAddr {
    IpAddr::from([127, 0, 0, last])
}

/// A request, as bytes.
pub(crate) fn post(operation: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST /.well-known/est/{operation} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Length: {length}\r\n{headers}\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// A request for a first certificate.
pub(crate) fn enrol(claim: &str, body: &[u8]) -> Vec<u8> {
    let authorization = format!("Authorization: Basic {}\r\n", STANDARD.encode(claim));
    post("simpleenroll", &authorization, body)
}

/// Whether the other side closes the connection in time, whatever it says before.
pub(crate) async fn is_shown_out(mut stream: impl AsyncRead + Unpin) -> bool {
    let mut heard = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut heard)).await.is_ok()
}

/// One byte after the other; whether the other side has had enough before they are over.
pub(crate) async fn drip(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: Vec<u8>) -> bool {
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    let dripping = async {
        let mut answer = [0; 1_024];
        for byte in bytes {
            tokio::select! {
                _ = pace.tick() => {
                    if stream.write_all(&[byte]).await.is_err() || stream.flush().await.is_err() {
                        return true;
                    }
                }
                read = stream.read(&mut answer) => if matches!(read, Ok(0) | Err(_)) { return true },
            }
        }
        false
    };
    tokio::time::timeout(PATIENCE, dripping).await.unwrap_or(false)
}
