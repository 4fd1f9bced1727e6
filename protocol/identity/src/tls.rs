//! TLS 1.3 between parties of one fleet: both sides show a certificate of the profile, both are checked against the
//! pinned roots, and nothing else is trusted.
//!
//! Sessions are never resumed. A resumed session would skip the other side's certificate and key; a full handshake costs
//! two Ed25519 verifications, and thousands of clients leave no tickets behind in memory.

use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    ServerConfig, SignatureScheme,
};

use crate::certificate::Identity;
use crate::error::BadCertificate;
use crate::key::IdentityKey;
use crate::role::Role;
use crate::roots::FleetRoots;

/// For a party that accepts connections: clients must show a certificate of the fleet.
///
/// `chain` is the party's own, leaf first. Who the client is: [`peer_identity`].
///
/// # Errors
/// When chain and key do not fit together.
pub fn server_config(
    chain: &[Vec<u8>],
    key: &IdentityKey,
    roots: &FleetRoots,
) -> Result<Arc<ServerConfig>, Error> {
    renewable_server_config(&OwnCertificate::new(chain, key)?, roots)
}

/// As [`server_config`], for a party whose certificate is renewed while it runs.
///
/// # Errors
/// When TLS cannot be set up.
pub fn renewable_server_config(own: &OwnCertificate, roots: &FleetRoots) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(FleetVerifier {
            roots: roots.clone(),
            server_is: ServerIs::Broker,
        }))
        .with_cert_resolver(Arc::new(own.clone()));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// For a party that opens connections: the server must be a broker or a coordinator of the fleet, and be certified for
/// the host name that was asked for.
///
/// `chain` is the party's own, leaf first.
///
/// # Errors
/// When chain and key do not fit together.
pub fn client_config(
    chain: &[Vec<u8>],
    key: &IdentityKey,
    roots: &FleetRoots,
) -> Result<Arc<ClientConfig>, Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(FleetVerifier {
            roots: roots.clone(),
            server_is: ServerIs::Broker,
        }))
        .with_client_auth_cert(certificates(chain), key.to_private_key_der())?;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// A party's own certificate and key, which may be replaced while connections are made with them. Clones are the same.
#[derive(Debug, Clone)]
pub struct OwnCertificate(Arc<RwLock<Arc<CertifiedKey>>>);

impl OwnCertificate {
    /// This chain (DER, leaf first) with its key.
    ///
    /// # Errors
    /// When they do not fit together.
    pub fn new(chain: &[Vec<u8>], key: &IdentityKey) -> Result<Self, Error> {
        Ok(Self(Arc::new(RwLock::new(certified(chain, key)?))))
    }

    /// Another chain: connections from now on show it.
    ///
    /// # Errors
    /// When chain and key do not fit together; then the one before stays.
    pub fn replace(&self, chain: &[Vec<u8>], key: &IdentityKey) -> Result<(), Error> {
        let newer = certified(chain, key)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = newer;
        Ok(())
    }
}

impl ResolvesClientCert for OwnCertificate {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn certified(chain: &[Vec<u8>], key: &IdentityKey) -> Result<Arc<CertifiedKey>, Error> {
    let key = provider().key_provider.load_private_key(key.to_private_key_der())?;
    let certified = CertifiedKey::new(certificates(chain), key);
    certified.keys_match()?;
    Ok(Arc::new(certified))
}

/// As [`client_config`], for a party whose certificate is renewed while it runs.
///
/// # Errors
/// When TLS cannot be set up.
pub fn renewable_client_config(own: &OwnCertificate, roots: &FleetRoots) -> Result<Arc<ClientConfig>, Error> {
    let verifier = FleetVerifier { roots: roots.clone(), server_is: ServerIs::Broker };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(own.clone()));
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// For a device that asks for a certificate: the server must be a registrar or a coordinator of the fleet. `own` is
/// the certificate chain that the device shows, leaf first, with its key: the one that is to be renewed, or none yet.
///
/// # Errors
/// When chain and key do not fit together.
pub fn enrolment_client_config(
    own: Option<(&[Vec<u8>], &IdentityKey)>,
    roots: &FleetRoots,
) -> Result<Arc<ClientConfig>, Error> {
    let verifier = FleetVerifier { roots: roots.clone(), server_is: ServerIs::Registrar };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match own {
        Some((chain, key)) => builder.with_client_auth_cert(certificates(chain), key.to_private_key_der())?,
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// For a registrar: clients may show a certificate of the fleet or of a manufacturer's, or none at all. TLS 1.2 is
/// spoken too, for what devices leave factories with.
///
/// # Errors
/// When chain and key do not fit together.
pub fn enrolment_server_config(
    chain: &[Vec<u8>],
    key: &IdentityKey,
    clients: Arc<dyn ClientCertVerifier>,
) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(clients)
        .with_single_cert(certificates(chain), key.to_private_key_der())?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Who is at the other end of a finished handshake, from `peer_certificates()` of the connection.
///
/// The handshake has checked the chain; this only reads it.
///
/// # Errors
/// [`BadCertificate::EmptyChain`] before the handshake is finished.
pub fn peer_identity(peer_certificates: Option<&[CertificateDer<'_>]>) -> Result<Identity, BadCertificate> {
    let leaf = peer_certificates.and_then(<[_]>::first).ok_or(BadCertificate::EmptyChain)?;
    crate::read_certificate(leaf)
}

/// One provider for all configurations of the process: ring.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())).clone()
}

fn certificates(chain: &[Vec<u8>]) -> Vec<CertificateDer<'static>> {
    chain.iter().cloned().map(CertificateDer::from).collect()
}

/// Whose server somebody connects to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ServerIs {
    /// The fleet's MQTT server.
    Broker,
    /// The fleet's EST server.
    Registrar,
}

#[derive(Debug)]
struct FleetVerifier {
    roots: FleetRoots,
    server_is: ServerIs,
}

impl FleetVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Identity, Error> {
        let chain: Vec<&[u8]> =
            [leaf].into_iter().chain(intermediates).map(|certificate| certificate.as_ref()).collect();
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        self.roots.verify_slices(&chain, Some(now)).map_err(refused)
    }
}

impl ClientCertVerifier for FleetVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A party has one certificate: there is nothing to choose.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let identity = self.verify(end_entity, intermediates, now)?;
        if !identity.client_auth {
            return Err(refused(BadCertificate::KeyUsage { needed: "opening TLS connections" }));
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ServerCertVerifier for FleetVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let identity = self.verify(end_entity, intermediates, now)?;
        let is_expected = match identity.role {
            Role::Coordinator { .. } => true,
            Role::Broker => self.server_is == ServerIs::Broker,
            Role::Registrar => self.server_is == ServerIs::Registrar,
            Role::Operator { .. } | Role::Device(_) => false,
        };
        if !is_expected || !identity.server_auth {
            return Err(refused(BadCertificate::KeyUsage { needed: "accepting TLS connections" }));
        }
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ClientCertVerifier::verify_tls12_signature(self, message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ClientCertVerifier::verify_tls13_signature(self, message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ClientCertVerifier::supported_verify_schemes(self)
    }
}

/// The alert names the kind of fault, the error the fault itself.
fn refused(fault: BadCertificate) -> Error {
    Error::InvalidCertificate(match fault {
        BadCertificate::Expired { .. } => CertificateError::Expired,
        BadCertificate::NotYetValid { .. } => CertificateError::NotValidYet,
        BadCertificate::UnknownIssuer { .. } => CertificateError::UnknownIssuer,
        BadCertificate::BadSignature => CertificateError::BadSignature,
        BadCertificate::RetiredIssuer => CertificateError::Revoked,
        BadCertificate::TooLarge { .. }
        | BadCertificate::Malformed { .. }
        | BadCertificate::NotEd25519 { .. }
        | BadCertificate::WeakKey
        | BadCertificate::UnknownCriticalExtension { .. }
        | BadCertificate::NoFleetName
        | BadCertificate::SeveralFleetNames
        | BadCertificate::BadFleetName { .. }
        | BadCertificate::IsCa
        | BadCertificate::IssuerIsNotCa
        | BadCertificate::KeyUsage { .. }
        | BadCertificate::EmptyChain
        | BadCertificate::ChainTooLong
        | BadCertificate::OtherFleet { .. } => CertificateError::Other(OtherError(Arc::new(InWords(fault)))),
    })
}

/// rustls shows only the `Debug` of an error it did not make: this one's is the sentence an operator can read.
#[derive(thiserror::Error)]
#[error(transparent)]
struct InWords(BadCertificate);

impl fmt::Debug for InWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
