//! The paths, the encodings, and who may ask which.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fleetkey_identity::{
    BadSigningRequest, FleetRoots, Identity, Role, SigningRequest, pkcs7, read_signing_request,
};
use rustls::pki_types::UnixTime;

use crate::credentials::basic;
use crate::manufacturers::Manufacturers;
use crate::refusals::Refusals;
use crate::registrar::{Answer, Applicant, Refusal, Registrar, Way};
use crate::server::Peer;

/// The largest request body, in bytes.
pub const MAX_BODY_BYTES: usize = 16 * 1024;

/// Refusals after which an address is left to wait.
const MAX_REFUSALS: u32 = 20;
/// For how long.
const REFUSALS_WITHIN: Duration = Duration::from_secs(60);

/// An ordinary client asks once without credentials, to hear which are wanted: that is no guess.
const NOTHING_SHOWN: &str = "nothing_shown";

const TRANSFER_ENCODING: HeaderName = HeaderName::from_static("content-transfer-encoding");
const CERTS_ONLY: &str = "application/pkcs7-mime; smime-type=certs-only";

/// CsrAttrs (RFC 7030 §4.5.2): a SEQUENCE with the one algorithm that is taken, Ed25519 (1.3.101.112).
const CSR_ATTRIBUTES: [u8; 7] = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70];

/// What the routes share.
pub(crate) struct Desk<R> {
    registrar: Arc<R>,
    roots: FleetRoots,
    manufacturers: Manufacturers,
    refusals: Refusals,
}

type Shared<R> = State<Arc<Desk<R>>>;

/// The routes, in front of `registrar`. Each connection's requests carry its [`Peer`] as an extension.
pub fn router<R: Registrar>(registrar: Arc<R>, roots: FleetRoots, manufacturers: Manufacturers) -> Router {
    let refusals = Refusals::new(MAX_REFUSALS, REFUSALS_WITHIN);
    let desk = Arc::new(Desk { registrar, roots, manufacturers, refusals });
    Router::new()
        .route("/.well-known/est/cacerts", get(ca_certificates))
        .route("/.well-known/est/csrattrs", get(csr_attributes))
        .route("/.well-known/est/crl", get(revocation_list))
        .route("/.well-known/est/crl/{ca}", get(revocation_list_of))
        .route("/.well-known/est/fleet", get(about))
        .route("/.well-known/est/simpleenroll", post(enrol))
        .route("/.well-known/est/simplereenroll", post(reenrol))
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(desk)
}

async fn ca_certificates<R: Registrar>(State(desk): Shared<R>) -> Response {
    encoded(CERTS_ONLY, &pkcs7::encode_certificates(&desk.registrar.ca_certificates()))
}

async fn csr_attributes() -> Response {
    encoded("application/csrattrs", &CSR_ATTRIBUTES)
}

async fn revocation_list<R: Registrar>(State(desk): Shared<R>) -> Response {
    list_or_none(desk.registrar.revocation_list())
}

async fn revocation_list_of<R: Registrar>(State(desk): Shared<R>, Path(ca): Path<String>) -> Response {
    list_or_none(desk.registrar.revocation_list_of(&ca))
}

fn list_or_none(list: Option<Bytes>) -> Response {
    match list {
        Some(list) => ([(CONTENT_TYPE, "application/pkix-crl")], list).into_response(),
        None => (StatusCode::NOT_FOUND, "there is no revocation list yet\n").into_response(),
    }
}

async fn about<R: Registrar>(State(desk): Shared<R>) -> Response {
    axum::Json(desk.registrar.about()).into_response()
}

async fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "no such EST operation\n").into_response()
}

async fn enrol<R: Registrar>(
    State(desk): Shared<R>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    desk.answer(&peer, async {
        let way = desk.way(&peer, &headers)?;
        let request = read_request(&body)?;
        desk.registrar.enrol(Applicant { request, way }).await
    })
    .await
}

async fn reenrol<R: Registrar>(
    State(desk): Shared<R>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Response {
    desk.answer(&peer, async {
        let device = desk.device(&peer)?;
        let request = read_request(&body)?;
        desk.registrar.reenrol(device, request).await
    })
    .await
}

impl<R> Desk<R> {
    /// Gives the answer, unless the address has been turned away too often.
    async fn answer(&self, peer: &Peer, asked: impl Future<Output = Result<Answer, Refusal>>) -> Response {
        let address = peer.address.ip();
        // Whoever has shown a certificate that is good is not guessing.
        let must_wait = if peer.certificates.is_empty() {
            self.refusals.must_wait(address, Instant::now())
        } else {
            None
        };
        let answer = match must_wait {
            Some(retry_after) => Err(Refusal::Unavailable {
                name: "too_many_refusals",
                why: "this address was turned away too often".to_owned(),
                retry_after,
            }),
            None => {
                let answer = asked.await;
                if matches!(&answer, Err(Refusal::Unauthorized { name, .. }) if *name != NOTHING_SHOWN) {
                    self.refusals.count(address, Instant::now());
                }
                answer
            }
        };
        match answer {
            Ok(Answer::Issued(chain)) => {
                metrics::counter!("fleetkey_est_issued_total").increment(1);
                encoded(CERTS_ONLY, &pkcs7::encode_certificates(&chain))
            }
            Ok(Answer::Waits(retry_after)) => {
                metrics::counter!("fleetkey_est_waits_total").increment(1);
                let wait = [(RETRY_AFTER, seconds(retry_after))];
                (StatusCode::ACCEPTED, wait, "an operator has not decided yet\n").into_response()
            }
            Err(refusal) => {
                metrics::counter!("fleetkey_est_refused_total", "reason" => refusal.name()).increment(1);
                tracing::debug!(peer = %peer.address, reason = refusal.name(), "refused");
                refused(refusal)
            }
        }
    }

    /// What speaks for whoever asks: a claim goes before a certificate.
    fn way(&self, peer: &Peer, headers: &HeaderMap) -> Result<Way, Refusal> {
        if let Some((user, password)) = basic(headers) {
            return Ok(Way::Claim { user, password });
        }
        if peer.certificates.is_empty() {
            let why = "show a claim as user and password, or a manufacturer's certificate".to_owned();
            return Err(Refusal::Unauthorized { name: NOTHING_SHOWN, why });
        }
        if let Some(mapped) = self.manufacturers.map(&peer.certificates, now()) {
            return Ok(Way::Manufacturer(mapped));
        }
        let why =
            "this certificate is of no manufacturer that is known here, or lacks the name that its devices \
                   are known by; to renew a certificate of the fleet, ask /simplereenroll"
                .to_owned();
        Err(Refusal::Forbidden { name: "no_manufacturers_certificate", why })
    }

    /// The device whose certificate was shown.
    fn device(&self, peer: &Peer) -> Result<Identity, Refusal> {
        if peer.certificates.is_empty() {
            let why = "show the certificate that is to be renewed".to_owned();
            return Err(Refusal::Unauthorized { name: NOTHING_SHOWN, why });
        }
        let seconds = i64::try_from(now().as_secs()).unwrap_or(i64::MAX);
        let identity = self
            .roots
            .verify(&peer.certificates, Some(seconds))
            .map_err(|why| Refusal::Forbidden { name: "not_of_the_fleet", why: why.to_string() })?;
        match identity.role {
            Role::Device(_) => Ok(identity),
            Role::Coordinator { .. } | Role::Broker | Role::Registrar | Role::Operator { .. } => {
                let why = format!("{} is no device", identity.role);
                Err(Refusal::Forbidden { name: "not_a_device", why })
            }
        }
    }
}

/// The signing request in a body: base64, as RFC 7030 has it, or PEM, or DER, as tools write it.
///
/// # Errors
/// [`Refusal::BadRequest`], by the name of what is wrong with it.
pub fn read_request(body: &[u8]) -> Result<SigningRequest, Refusal> {
    let bad = |name, why: String| Refusal::BadRequest { name, why };
    let der = if body.first() == Some(&0x30) {
        body.to_vec()
    } else {
        let lines =
            std::str::from_utf8(body).map_err(|_| bad("not_base64", "neither text nor DER".into()))?;
        let packed: String = lines.lines().map(str::trim).filter(|line| !line.starts_with("-----")).collect();
        let decoded = STANDARD.decode(packed.replace(char::is_whitespace, ""));
        decoded.map_err(|error| bad("not_base64", format!("the signing request is not base64: {error}")))?
    };
    read_signing_request(&der).map_err(|why| {
        let name = match why {
            BadSigningRequest::TooLarge { .. } => "csr_too_large",
            BadSigningRequest::Malformed { .. } => "csr_malformed",
            BadSigningRequest::Key => "csr_key",
            BadSigningRequest::BadSignature => "csr_signature",
            BadSigningRequest::ChallengePassword => "csr_challenge_password",
        };
        bad(name, why.to_string())
    })
}

/// Base64 in lines, which is how RFC 7030 carries DER.
fn encoded(content_type: &'static str, der: &[u8]) -> Response {
    let packed = STANDARD.encode(der);
    let mut text = String::with_capacity(packed.len() + packed.len() / 64 + 1);
    for line in packed.as_bytes().chunks(64) {
        text.extend(line.iter().copied().map(char::from));
        text.push('\n');
    }
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(content_type)),
        (TRANSFER_ENCODING, HeaderValue::from_static("base64")),
    ];
    (headers, text).into_response()
}

fn refused(refusal: Refusal) -> Response {
    match refusal {
        Refusal::Unauthorized { why, .. } => {
            let ask = [(WWW_AUTHENTICATE, "Basic realm=\"fleetkey\"")];
            (StatusCode::UNAUTHORIZED, ask, format!("{why}\n")).into_response()
        }
        Refusal::Forbidden { why, .. } => (StatusCode::FORBIDDEN, format!("{why}\n")).into_response(),
        Refusal::BadRequest { why, .. } => (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
        Refusal::Unavailable { why, retry_after, .. } => {
            let wait = [(RETRY_AFTER, seconds(retry_after))];
            (StatusCode::SERVICE_UNAVAILABLE, wait, format!("{why}\n")).into_response()
        }
    }
}

fn seconds(wait: Duration) -> HeaderValue {
    HeaderValue::from(wait.as_secs().max(1))
}

fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixTime::since_unix_epoch(since)
}
