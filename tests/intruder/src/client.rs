//! MQTT by hand over TLS: says what it is told to, byte by byte, and keeps what it hears.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use crate::cast::Papers;

/// A broker that runs answers within this.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// One look for what has come.
const GLANCE: Duration = Duration::from_millis(1);

/// A broker.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Where it listens for MQTT over TLS.
    pub address: SocketAddr,
    /// How long a message may be on its way through it.
    pub settle: Duration,
    /// Who is in which cell, the broker cannot know: then it is no theft to hear one.
    pub has_open_cells: bool,
}

/// The version of MQTT to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// MQTT 3.1.1.
    V4,
    /// MQTT 5.
    V5,
}

/// What to say in CONNECT beyond the client id.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hello<'a> {
    /// A user name.
    pub user: Option<&'a str>,
    /// A password.
    pub password: Option<&'a str>,
    /// A will's topic and payload.
    pub will: Option<(&'a str, &'a str)>,
}

/// A message that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrived {
    /// Where it was published.
    pub topic: String,
    /// What it says.
    pub payload: Vec<u8>,
    /// Was it kept by the broker?
    pub retained: bool,
}

/// A connection.
pub struct Client {
    stream: StreamOwned<ClientConnection, TcpStream>,
    level: Level,
    input: Vec<u8>,
    arrived: Vec<Arrived>,
    other: Vec<(u8, Vec<u8>)>,
    is_closed: bool,
    packet_id: u16,
}

impl Client {
    /// Connects and says CONNECT; with the code of the CONNACK, or `None` when there was none.
    ///
    /// # Errors
    /// When there is no broker, or the papers cannot be used.
    pub fn connect(
        target: &Target,
        level: Level,
        papers: Option<&Papers>,
        client_id: &str,
        hello: Hello<'_>,
    ) -> Result<(Self, Option<u8>)> {
        let tcp = TcpStream::connect(target.address).context("connect to the broker")?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(GLANCE))?;
        tcp.set_write_timeout(Some(ANSWER_WITHIN))?;
        let name = ServerName::try_from("localhost")?;
        let connection = ClientConnection::new(tls(papers)?, name)?;
        let mut client = Self {
            stream: StreamOwned::new(connection, tcp),
            level,
            input: Vec::new(),
            arrived: Vec::new(),
            other: Vec::new(),
            is_closed: false,
            packet_id: 0,
        };
        client.send(&connect_packet(level, client_id, hello)?);
        let code = client.wait_for(0x20).and_then(|body| body.get(1).copied());
        Ok((client, code))
    }

    /// Connects as somebody who must be let in.
    ///
    /// # Errors
    /// When the broker does not.
    pub fn honest(target: &Target, level: Level, papers: &Papers, client_id: &str) -> Result<Self> {
        // A broker may need a moment between two sessions of the same client.
        let deadline = Instant::now() + ANSWER_WITHIN;
        loop {
            let (client, code) = Self::connect(target, level, Some(papers), client_id, Hello::default())?;
            match code {
                Some(0) => return Ok(client),
                _ if Instant::now() > deadline => bail!("{client_id} was not let in: {code:?}"),
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Subscribes; with the code for the filter, or `None` when the connection ended instead.
    pub fn subscribe(&mut self, filter: &[u8], qos: u8) -> Option<u8> {
        self.packet_id += 1;
        let mut body = self.packet_id.to_be_bytes().to_vec();
        if self.level == Level::V5 {
            body.push(0);
        }
        push_bytes(&mut body, filter);
        body.push(qos);
        self.send(&packet(0x82, &body));
        self.wait_for(0x90).and_then(|body| body.last().copied())
    }

    /// Publishes. `first` is the packet's first byte: type, QoS and flags.
    pub fn publish(&mut self, first: u8, topic: &[u8], properties: &[u8], payload: &[u8]) {
        let mut body = Vec::new();
        push_bytes(&mut body, topic);
        if first & 0x06 != 0 {
            self.packet_id += 1;
            body.extend(self.packet_id.to_be_bytes());
        }
        if self.level == Level::V5 {
            body.push(u8::try_from(properties.len()).unwrap_or(0));
            body.extend(properties);
        }
        body.extend(payload);
        self.send(&packet(first, &body));
        if first & 0x06 == 0x04 {
            // QoS 2 goes on with PUBREL.
            let id = self.packet_id.to_be_bytes();
            if self.wait_for(0x50).is_some() {
                self.send(&[0x62, 2, id[0], id[1]]);
            }
        }
    }

    /// Everything sent so far has been read by the broker, or the connection has ended.
    pub fn flush(&mut self) {
        self.send(&[0xc0, 0]);
        let _ = self.wait_for(0xd0);
    }

    /// Waits until a message fits.
    ///
    /// # Errors
    /// When none comes.
    pub fn expect(&mut self, what: &str, fits: impl Fn(&Arrived) -> bool) -> Result<()> {
        let deadline = Instant::now() + ANSWER_WITHIN;
        while !self.arrived.iter().any(&fits) {
            self.look();
            if self.is_closed || Instant::now() > deadline {
                bail!("{what} did not come (closed: {})", self.is_closed);
            }
        }
        Ok(())
    }

    /// What has come so far, after a look.
    pub fn arrived(&mut self) -> &[Arrived] {
        self.look();
        &self.arrived
    }

    /// Has the broker ended the connection?
    pub fn is_closed(&mut self) -> bool {
        self.look();
        self.is_closed
    }

    /// Ends the connection without a word.
    pub fn vanish(self) {
        let _ = self.stream.sock.shutdown(std::net::Shutdown::Both);
    }

    fn send(&mut self, bytes: &[u8]) {
        if self.stream.write_all(bytes).and_then(|()| self.stream.flush()).is_err() {
            // What the broker said before it closed can still be read.
            self.look();
            self.is_closed = true;
        }
    }

    /// The next packet of this type.
    fn wait_for(&mut self, kind: u8) -> Option<Vec<u8>> {
        let deadline = Instant::now() + ANSWER_WITHIN;
        loop {
            if let Some(at) = self.other.iter().position(|(first, _)| first & 0xf0 == kind) {
                return Some(self.other.remove(at).1);
            }
            if self.is_closed || Instant::now() > deadline {
                return None;
            }
            self.look();
        }
    }

    /// Reads what is there.
    fn look(&mut self) {
        let mut bytes = [0; 16 * 1024];
        while !self.is_closed {
            match self.stream.read(&mut bytes) {
                Ok(0) => self.is_closed = true,
                Ok(read) => self.input.extend(&bytes[..read]),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.is_closed = true,
            }
        }
        while let Some((first, body)) = self.next_packet() {
            if first & 0xf0 == 0x30 {
                self.take_publish(first, &body);
            } else {
                self.other.push((first, body));
            }
        }
    }

    fn next_packet(&mut self) -> Option<(u8, Vec<u8>)> {
        let first = *self.input.first()?;
        let (mut length, mut shift, mut at) = (0usize, 0, 1);
        loop {
            let byte = *self.input.get(at)?;
            at += 1;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 || shift > 21 {
                break;
            }
        }
        let body = self.input.get(at..at + length)?.to_vec();
        self.input.drain(..at + length);
        Some((first, body))
    }

    fn take_publish(&mut self, first: u8, body: &[u8]) {
        let read = |at: usize| body.get(at..at + 2).map(|two| usize::from(two[0]) << 8 | usize::from(two[1]));
        let Some(topic_bytes) = read(0) else { return };
        let mut at = 2 + topic_bytes;
        let topic = String::from_utf8_lossy(body.get(2..at).unwrap_or_default()).into_owned();
        if first & 0x06 != 0 {
            let id = body.get(at..at + 2).unwrap_or_default().to_vec();
            at += 2;
            if first & 0x06 == 0x02 {
                self.send(&[&[0x40, 2][..], &id].concat());
            }
        }
        if self.level == Level::V5 {
            at += 1 + usize::from(body.get(at).copied().unwrap_or(0));
        }
        let payload = body.get(at..).unwrap_or_default().to_vec();
        self.arrived.push(Arrived { topic, payload, retained: first & 1 == 1 });
    }
}

fn connect_packet(level: Level, client_id: &str, hello: Hello<'_>) -> Result<Vec<u8>> {
    // Clean session.
    let mut flags = 0x02;
    let mut rest = Vec::new();
    push_bytes(&mut rest, client_id.as_bytes());
    if let Some((topic, payload)) = hello.will {
        flags |= 0x04;
        if level == Level::V5 {
            rest.push(0);
        }
        push_bytes(&mut rest, topic.as_bytes());
        push_bytes(&mut rest, payload.as_bytes());
    }
    if let Some(user) = hello.user {
        flags |= 0x80;
        push_bytes(&mut rest, user.as_bytes());
    }
    if let Some(password) = hello.password {
        flags |= 0x40;
        push_bytes(&mut rest, password.as_bytes());
    }
    let version = match level {
        Level::V4 => 4,
        Level::V5 => 5,
    };
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', version, flags, 0, 60];
    if level == Level::V5 {
        body.push(0);
    }
    body.extend(rest);
    Ok(packet(0x10, &body))
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut length = body.len();
    loop {
        let low = (length & 0x7f) as u8;
        length >>= 7;
        packet.push(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            break;
        }
    }
    packet.extend(body);
    packet
}

fn push_bytes(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend((bytes.len() as u16).to_be_bytes());
    body.extend(bytes);
}

/// Trusts any server: an intruder does not mind.
fn tls(papers: Option<&Papers>) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)));
    Ok(Arc::new(match papers {
        None => config.with_no_client_auth(),
        Some(papers) => {
            let chain = papers.chain.iter().cloned().map(CertificateDer::from).collect();
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(papers.key_pem.as_bytes())?)?
        }
    }))
}

#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
