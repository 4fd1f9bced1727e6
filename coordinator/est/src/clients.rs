//! Whose certificates TLS lets in: the fleet's own, a manufacturer's, or nobody's.
//!
//! Which of them it was is told afterwards, from the chain, so that the answer rests on one place.

use fleetkey_identity::FleetRoots;
use fleetkey_identity::tls::provider;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use crate::manufacturers::Manufacturers;

/// The roots of both kinds.
#[derive(Debug)]
pub(crate) struct Clients {
    pub(crate) roots: FleetRoots,
    pub(crate) manufacturers: Manufacturers,
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let rest: Vec<Vec<u8>> = intermediates.iter().map(|der| der.to_vec()).collect();
        let chain = [vec![end_entity.to_vec()], rest.clone()].concat();
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let is_ours = self.roots.verify(&chain, Some(seconds)).is_ok_and(|identity| identity.client_auth);
        if is_ours || self.manufacturers.vouch(end_entity, &rest, now).is_some() {
            Ok(ClientCertVerified::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
        }
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
        provider().signature_verification_algorithms.supported_schemes()
    }
}
