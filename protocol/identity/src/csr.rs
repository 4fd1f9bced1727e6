//! A certificate signing request (PKCS #10, RFC 2986): that its sender holds the key, and what it calls itself.
//!
//! Nothing else in it counts: who a certificate names is decided by whoever issues it.

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::OID_PKCS9_CHALLENGE_PASSWORD;
use x509_parser::prelude::FromDer;

use crate::certificate::{outer_signature, public_key};
use crate::error::BadCertificate;

/// Largest request that is decoded. One with an Ed25519 key takes some 200 bytes.
pub const MAX_CSR_BYTES: usize = 8 * 1024;

/// A request whose signature was made with the key it asks a certificate for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningRequest {
    /// The key.
    pub public_key: [u8; 32],
    /// The subject's common name, as a wish.
    pub common_name: Option<String>,
}

/// A request that is not accepted. The fault is the sender's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSigningRequest {
    /// Refused before it was decoded.
    #[error("the signing request has {bytes} bytes, the limit is {MAX_CSR_BYTES}")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Not PKCS #10 in DER.
    #[error("not a PKCS #10 signing request in DER: {what}")]
    Malformed {
        /// The part that could not be read.
        what: &'static str,
    },
    /// A key of another kind, or a weak one.
    #[error("the signing request is not for a usable Ed25519 key")]
    Key,
    /// Whoever made it does not hold the key.
    #[error("the signing request is not signed with the key it names")]
    BadSignature,
    /// It carries a password, which only a secret channel may see and which we do not use.
    #[error("the signing request holds a challenge password, which is not used here")]
    ChallengePassword,
}

/// Reads a request and checks that its sender holds the key.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn read_signing_request(der: &[u8]) -> Result<SigningRequest, BadSigningRequest> {
    if der.len() > MAX_CSR_BYTES {
        return Err(BadSigningRequest::TooLarge { bytes: der.len() });
    }
    let malformed = |what| BadSigningRequest::Malformed { what };
    let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| malformed("structure"))?;
    if !rest.is_empty() {
        return Err(malformed("bytes after its end"));
    }
    let info = &request.certification_request_info;
    let key = public_key(&info.subject_pki).map_err(|_: BadCertificate| BadSigningRequest::Key)?;
    let signature = outer_signature(der, info.raw).map_err(|_| malformed("signature"))?;
    key.verify_strict(info.raw, &signature).map_err(|_| BadSigningRequest::BadSignature)?;
    if info.iter_attributes().any(|attribute| attribute.oid == OID_PKCS9_CHALLENGE_PASSWORD) {
        return Err(BadSigningRequest::ChallengePassword);
    }
    let common_name = info.subject.iter_common_name().next().and_then(|name| name.as_str().ok());
    Ok(SigningRequest { public_key: key.to_bytes(), common_name: common_name.map(str::to_owned) })
}
