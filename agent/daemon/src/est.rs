//! The device's side of EST (RFC 7030): one question at a time, over TLS to a registrar of the fleet.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fleetkey_identity::pkcs7;
use fleetkey_wire::FleetId;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

/// Longest answer that is read.
const MAX_ANSWER_BYTES: usize = 256 * 1024;
/// How long a question may take, all in all.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// When to ask again, where the server does not say.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// The longest that a server may make a device wait between two questions.
const MAX_WAIT: Duration = Duration::from_secs(3_600);

/// Where the EST server is: `https://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EstUrl {
    host: String,
    port: u16,
}

/// Why there is no answer, or not the one that was hoped for.
#[derive(Debug, thiserror::Error)]
pub enum EstError {
    /// Not an address.
    #[error("{0:?} is no address of an EST server: https://HOST:PORT")]
    BadUrl(String),
    /// It cannot be reached, or is not who it should be.
    #[error("{host}:{port}: {why}")]
    Unreachable {
        /// Its host.
        host: String,
        /// Its port.
        port: u16,
        /// What went wrong.
        why: String,
    },
    /// It says no.
    #[error("the registrar says: {why} ({status})")]
    Refused {
        /// The status.
        status: u16,
        /// In its words.
        why: String,
    },
    /// It says something that cannot be understood.
    #[error("the registrar's answer makes no sense: {0}")]
    Senseless(String),
}

/// What came back on a request for a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A chain (DER), leaf first. Nobody has checked it yet.
    Issued(Vec<Vec<u8>>),
    /// An operator has not decided yet, or the registrar is busy: ask again after so long.
    AskAgain(Duration),
}

/// What a device has to know besides its certificate.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct About {
    /// The fleet.
    pub fleet: FleetId,
    /// Where its broker is.
    pub broker: String,
    /// The coordinator's certificate chain, PEM, leaf first.
    pub coordinator_certificate: String,
    /// The fleet's roots, PEM.
    pub fleet_roots: String,
}

impl std::str::FromStr for EstUrl {
    type Err = EstError;

    fn from_str(text: &str) -> Result<Self, EstError> {
        let bad = || EstError::BadUrl(text.chars().take(256).collect());
        let rest = text.strip_prefix("https://").ok_or_else(bad)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let rest = rest.strip_suffix("/.well-known/est").unwrap_or(rest);
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| bad())?),
            Some(_) | None => (rest, 443),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        ServerName::try_from(host.to_owned()).map_err(|_| bad())?;
        Ok(Self { host: host.to_owned(), port })
    }
}

impl std::fmt::Display for EstUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "https://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "https://{}:{}", self.host, self.port)
        }
    }
}

/// A way to an EST server.
pub struct Est {
    url: EstUrl,
    tls: Arc<rustls::ClientConfig>,
}

impl Est {
    /// To `url`, with what `fleetkey_identity::tls::enrolment_client_config` has made.
    pub fn new(url: EstUrl, tls: Arc<rustls::ClientConfig>) -> Self {
        Self { url, tls }
    }

    /// What a device has to know besides its certificate.
    ///
    /// # Errors
    /// [`EstError`].
    pub async fn about(&self) -> Result<About, EstError> {
        let (status, _, body) = self.ask("fleet", None, Bytes::new()).await?;
        if status != StatusCode::OK {
            return Err(refused(status, &body));
        }
        serde_json::from_slice(&body).map_err(|error| EstError::Senseless(error.to_string()))
    }

    /// The CAs' certificates (DER). Nobody has checked them yet.
    ///
    /// # Errors
    /// [`EstError`].
    pub async fn ca_certificates(&self) -> Result<Vec<Vec<u8>>, EstError> {
        let (status, _, body) = self.ask("cacerts", None, Bytes::new()).await?;
        if status != StatusCode::OK {
            return Err(refused(status, &body));
        }
        certs_only(&body)
    }

    /// Asks for a first certificate with a claim, or with the certificate that TLS shows.
    ///
    /// # Errors
    /// [`EstError`].
    pub async fn enrol(&self, request: &[u8], claim: Option<&str>) -> Result<Answer, EstError> {
        self.certificate("simpleenroll", request, claim).await
    }

    /// Asks for a later certificate; TLS shows the one before.
    ///
    /// # Errors
    /// [`EstError`].
    pub async fn reenrol(&self, request: &[u8]) -> Result<Answer, EstError> {
        self.certificate("simplereenroll", request, None).await
    }

    async fn certificate(
        &self,
        operation: &str,
        request: &[u8],
        claim: Option<&str>,
    ) -> Result<Answer, EstError> {
        let (status, retry_after, body) =
            self.ask(operation, claim, Bytes::from(STANDARD.encode(request))).await?;
        match status {
            StatusCode::OK => certs_only(&body).map(Answer::Issued),
            StatusCode::ACCEPTED | StatusCode::SERVICE_UNAVAILABLE => {
                Ok(Answer::AskAgain(retry_after.unwrap_or(ASK_AGAIN).clamp(Duration::from_secs(1), MAX_WAIT)))
            }
            status => Err(refused(status, &body)),
        }
    }

    async fn ask(
        &self,
        operation: &str,
        claim: Option<&str>,
        body: Bytes,
    ) -> Result<(StatusCode, Option<Duration>, Bytes), EstError> {
        match tokio::time::timeout(ANSWER_WITHIN, self.exchange(operation, claim, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(self.unreachable(format!("no answer within {} s", ANSWER_WITHIN.as_secs()))),
        }
    }

    async fn exchange(
        &self,
        operation: &str,
        claim: Option<&str>,
        body: Bytes,
    ) -> Result<(StatusCode, Option<Duration>, Bytes), EstError> {
        let broken = |error: &dyn std::fmt::Display| self.unreachable(error.to_string());
        let stream = TcpStream::connect((self.url.host.as_str(), self.url.port))
            .await
            .map_err(|error| broken(&error))?;
        let name = ServerName::try_from(self.url.host.clone()).map_err(|error| broken(&error))?;
        let stream = TlsConnector::from(self.tls.clone())
            .connect(name, stream)
            .await
            .map_err(|error| broken(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(&error))?;
        let driving = tokio::spawn(connection);
        let request = self.request(operation, claim, body)?;
        let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let (status, retry_after) = (answer.status(), retry_after(&answer));
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| EstError::Senseless(error.to_string()))?.to_bytes();
        driving.abort();
        Ok((status, retry_after, body))
    }

    fn request(
        &self,
        operation: &str,
        claim: Option<&str>,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, EstError> {
        let is_question = body.is_empty();
        let mut request = Request::builder()
            .method(if is_question { "GET" } else { "POST" })
            .uri(format!("/.well-known/est/{operation}"))
            .header(HOST, format!("{}:{}", self.url.host, self.url.port));
        if !is_question {
            request = request
                .header(CONTENT_TYPE, "application/pkcs10")
                .header("content-transfer-encoding", "base64");
        }
        if let Some(claim) = claim {
            let credentials = Zeroizing::new(format!("Basic {}", STANDARD.encode(claim)));
            let mut value = hyper::header::HeaderValue::from_str(&credentials)
                .map_err(|error| EstError::Senseless(error.to_string()))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        request.body(Full::new(body)).map_err(|error| EstError::Senseless(error.to_string()))
    }

    fn unreachable(&self, why: String) -> EstError {
        EstError::Unreachable { host: self.url.host.clone(), port: self.url.port, why }
    }
}

fn certs_only(body: &[u8]) -> Result<Vec<Vec<u8>>, EstError> {
    let text: Vec<u8> = body.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let der = STANDARD.decode(text).map_err(|error| EstError::Senseless(error.to_string()))?;
    pkcs7::decode_certificates(&der).map_err(|error| EstError::Senseless(error.to_string()))
}

fn retry_after<B>(answer: &Response<B>) -> Option<Duration> {
    let seconds = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

fn refused(status: StatusCode, body: &[u8]) -> EstError {
    let why: String =
        String::from_utf8_lossy(body).trim().chars().filter(|c| !c.is_control()).take(512).collect();
    EstError::Refused { status: status.as_u16(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_in_every_spelling() {
        for (text, shown) in [
            ("https://est.example:7601", "https://est.example:7601"),
            ("https://est.example/", "https://est.example:443"),
            ("https://127.0.0.1:7601/.well-known/est", "https://127.0.0.1:7601"),
            ("https://[::1]:7601", "https://[::1]:7601"),
        ] {
            assert_eq!(text.parse::<EstUrl>().unwrap().to_string(), shown);
        }
        for bad in ["", "http://est.example", "https://", "https://a:b", "https://a b", "est.example:7601"] {
            assert!(matches!(bad.parse::<EstUrl>(), Err(EstError::BadUrl(_))), "{bad}");
        }
    }
}
