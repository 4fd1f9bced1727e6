//! One certificate, read strictly: what it says, not yet whether anybody vouches for it.

use std::net::IpAddr;

use ed25519_dalek::{Signature, VerifyingKey};
use fleetkey_wire::FleetId;
use fleetkey_wire::statement::KeyId;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_SIG_ED25519, Oid};
use x509_parser::prelude::FromDer;
use x509_parser::x509::{SubjectPublicKeyInfo, X509Version};

use crate::crl::Serial;
use crate::error::BadCertificate;
use crate::role::{self, Role, Subject};

/// Largest certificate that is decoded. Ours take about 500 bytes.
pub const MAX_CERTIFICATE_BYTES: usize = 8 * 1024;

/// What follows the signed part: AlgorithmIdentifier Ed25519 (RFC 8410 §3), then a BIT STRING of 64 bytes.
const SIGNATURE_PREFIX: [u8; 10] = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x41, 0x00];

/// Who a certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The fleet it belongs to.
    pub fleet: FleetId,
    /// Which party of the fleet it is.
    pub role: Role,
    /// Its Ed25519 public key: a point of the curve, and not a weak one.
    pub public_key: [u8; 32],
    /// Names the certificate in statements: the first 8 bytes of the SHA-256 of its DER.
    pub key_id: KeyId,
    /// Its serial number: what a revocation list names it by.
    pub serial: Serial,
    /// The name (DER) of the CA that issued it.
    pub issuer: Vec<u8>,
    /// Validity begins (Unix seconds).
    pub not_before_unix_seconds: i64,
    /// Validity ends (Unix seconds).
    pub not_after_unix_seconds: i64,
    /// May open TLS connections.
    pub client_auth: bool,
    /// May accept TLS connections.
    pub server_auth: bool,
}

impl Identity {
    /// Whether two thirds of the certificate's time are over: when it is renewed.
    pub fn is_due(&self, now_unix_seconds: i64) -> bool {
        let (begin, end) = (self.not_before_unix_seconds, self.not_after_unix_seconds);
        now_unix_seconds >= begin + (end - begin) / 3 * 2
    }
}

/// The host names and addresses that a certificate is for, as [`crate::FleetCa::issue`] takes them.
///
/// # Errors
/// When it cannot be read.
#[expect(clippy::wildcard_enum_match_arm, reason = "other names are no host's")]
pub fn host_names(der: &[u8]) -> Result<Vec<String>, BadCertificate> {
    let malformed = |what| BadCertificate::Malformed { what };
    let (_, x509) = X509Certificate::from_der(der).map_err(|_| malformed("structure"))?;
    let Some(names) = x509.subject_alternative_name().map_err(|_| malformed("an extension"))? else {
        return Ok(Vec::new());
    };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let address = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let address = address.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            address.ok().map(|address| address.to_string())
        }
        _ => None,
    };
    Ok(names.value.general_names.iter().filter_map(name).collect())
}

/// Reads a party's certificate. Nobody has vouched for the result: that is [`crate::FleetRoots::verify`].
///
/// # Errors
/// The first thing that is wrong with it.
pub fn read_certificate(der: &[u8]) -> Result<Identity, BadCertificate> {
    Certificate::parse(der)?.into_identity()
}

/// A certificate of this profile, party's or CA's.
#[derive(Debug, Clone)]
pub(crate) struct Certificate {
    pub(crate) fleet: FleetId,
    pub(crate) subject: Subject,
    pub(crate) key: VerifyingKey,
    pub(crate) key_id: KeyId,
    serial: Serial,
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    /// How many intermediates may follow, when it is a CA's.
    pub(crate) path_len: Option<u32>,
    pub(crate) subject_name: Vec<u8>,
    pub(crate) issuer_name: Vec<u8>,
    client_auth: bool,
    server_auth: bool,
    signed: Vec<u8>,
    signature: Signature,
}

impl Certificate {
    pub(crate) fn parse(der: &[u8]) -> Result<Self, BadCertificate> {
        if der.len() > MAX_CERTIFICATE_BYTES {
            return Err(BadCertificate::TooLarge { bytes: der.len() });
        }
        let malformed = |what| BadCertificate::Malformed { what };
        let (rest, x509) = X509Certificate::from_der(der).map_err(|_| malformed("structure"))?;
        if !rest.is_empty() {
            return Err(malformed("bytes after its end"));
        }
        if x509.version() != X509Version::V3 {
            return Err(malformed("not version 3"));
        }
        let signed: &[u8] = x509.tbs_certificate.as_ref();
        if x509.tbs_certificate.signature.algorithm != OID_SIG_ED25519
            || x509.tbs_certificate.signature.parameters.is_some()
        {
            return Err(BadCertificate::NotEd25519 { what: "signature" });
        }
        let signature = outer_signature(der, signed)?;
        let extensions = Extensions::read(&x509)?;
        let (fleet, subject) = fleet_name(&extensions.uris)?;
        let path_len = extensions.check_usage(&subject)?;
        Ok(Self {
            fleet,
            subject,
            key: public_key(x509.public_key())?,
            key_id: KeyId::of_certificate(der),
            serial: x509.raw_serial().to_vec(),
            not_before: x509.validity().not_before.timestamp(),
            not_after: x509.validity().not_after.timestamp(),
            path_len,
            subject_name: x509.subject().as_raw().to_vec(),
            issuer_name: x509.issuer().as_raw().to_vec(),
            client_auth: extensions.client_auth,
            server_auth: extensions.server_auth,
            signed: signed.to_vec(),
            signature,
        })
    }

    pub(crate) fn into_identity(self) -> Result<Identity, BadCertificate> {
        let role = match self.subject {
            Subject::Party(role) => role,
            Subject::Ca => return Err(BadCertificate::IsCa),
        };
        Ok(Identity {
            fleet: self.fleet,
            role,
            public_key: self.key.to_bytes(),
            key_id: self.key_id,
            serial: self.serial,
            issuer: self.issuer_name,
            not_before_unix_seconds: self.not_before,
            not_after_unix_seconds: self.not_after,
            client_auth: self.client_auth,
            server_auth: self.server_auth,
        })
    }

    /// Whether `issuer` signed this certificate.
    pub(crate) fn check_signature(&self, issuer: &VerifyingKey) -> Result<(), BadCertificate> {
        // Strict: one certificate has one signature, so that its key id names it alone.
        issuer.verify_strict(&self.signed, &self.signature).map_err(|_| BadCertificate::BadSignature)
    }

    pub(crate) fn check_validity(&self, now_unix_seconds: i64) -> Result<(), BadCertificate> {
        if now_unix_seconds < self.not_before {
            return Err(BadCertificate::NotYetValid {
                not_before_unix_seconds: self.not_before,
                now_unix_seconds,
            });
        }
        if now_unix_seconds > self.not_after {
            return Err(BadCertificate::Expired { not_after_unix_seconds: self.not_after, now_unix_seconds });
        }
        Ok(())
    }
}

/// The signature, taken from the one encoding that a certificate, a request or a list with this signed part can have.
pub(crate) fn outer_signature(der: &[u8], signed: &[u8]) -> Result<Signature, BadCertificate> {
    let body = signed.len() + SIGNATURE_PREFIX.len() + Signature::BYTE_SIZE;
    let mut header = vec![0x30];
    match body {
        0..=0x7f => header.push(body as u8),
        0x80..=0xff => header.extend([0x81, body as u8]),
        0x100..=0xffff => header.extend([0x82, (body >> 8) as u8, body as u8]),
        _ => header.extend([0x83, (body >> 16) as u8, (body >> 8) as u8, body as u8]),
    }
    let tail = der
        .strip_prefix(header.as_slice())
        .and_then(|rest| rest.strip_prefix(signed))
        .ok_or(BadCertificate::Malformed { what: "not in DER" })?;
    tail.strip_prefix(&SIGNATURE_PREFIX)
        .and_then(|signature| signature.try_into().ok())
        .map(|bytes: [u8; Signature::BYTE_SIZE]| Signature::from_bytes(&bytes))
        .ok_or(BadCertificate::NotEd25519 { what: "signature" })
}

pub(crate) fn public_key(spki: &SubjectPublicKeyInfo<'_>) -> Result<VerifyingKey, BadCertificate> {
    if spki.algorithm.algorithm != OID_SIG_ED25519
        || spki.algorithm.parameters.is_some()
        || spki.subject_public_key.unused_bits != 0
    {
        return Err(BadCertificate::NotEd25519 { what: "key" });
    }
    let bytes: &[u8; 32] = spki
        .subject_public_key
        .data
        .as_ref()
        .try_into()
        .map_err(|_| BadCertificate::NotEd25519 { what: "key" })?;
    VerifyingKey::from_bytes(bytes).ok().filter(|key| !key.is_weak()).ok_or(BadCertificate::WeakKey)
}

fn fleet_name(uris: &[String]) -> Result<(FleetId, Subject), BadCertificate> {
    match uris {
        [] => Err(BadCertificate::NoFleetName),
        [uri] => role::parse_uri(uri),
        [_, _, ..] => Err(BadCertificate::SeveralFleetNames),
    }
}

/// What the extensions say, as far as this profile cares.
#[derive(Default)]
struct Extensions {
    uris: Vec<String>,
    ca: bool,
    path_len: Option<u32>,
    digital_signature: bool,
    key_cert_sign: bool,
    client_auth: bool,
    server_auth: bool,
}

impl Extensions {
    fn read(x509: &X509Certificate<'_>) -> Result<Self, BadCertificate> {
        let mut found = Self::default();
        let mut seen: Vec<&Oid<'_>> = Vec::new();
        for extension in x509.extensions() {
            // RFC 5280 §4.2: never more than one instance of an extension.
            if seen.contains(&&extension.oid) {
                return Err(BadCertificate::Malformed { what: "an extension occurs twice" });
            }
            seen.push(&extension.oid);
            found.take(&extension.oid, extension.critical, extension.parsed_extension())?;
        }
        Ok(found)
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the parser knows many extensions this profile has no use for"
    )]
    fn take(
        &mut self,
        oid: &Oid<'_>,
        critical: bool,
        extension: &ParsedExtension<'_>,
    ) -> Result<(), BadCertificate> {
        match extension {
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    match name {
                        GeneralName::URI(uri) if role::is_fleet_uri(uri) => self.uris.push((*uri).to_owned()),
                        GeneralName::Invalid(..) => {
                            return Err(BadCertificate::Malformed { what: "a subject alternative name" });
                        }
                        _ => {}
                    }
                }
            }
            ParsedExtension::BasicConstraints(constraints) => {
                self.ca = constraints.ca;
                self.path_len = constraints.path_len_constraint;
            }
            ParsedExtension::KeyUsage(usage) => {
                self.digital_signature = usage.digital_signature();
                self.key_cert_sign = usage.key_cert_sign();
            }
            ParsedExtension::ExtendedKeyUsage(usage) => {
                self.client_auth = usage.client_auth;
                self.server_auth = usage.server_auth;
            }
            ParsedExtension::SubjectKeyIdentifier(_) | ParsedExtension::AuthorityKeyIdentifier(_) => {}
            ParsedExtension::ParseError { .. } => {
                return Err(BadCertificate::Malformed { what: "an extension" });
            }
            // RFC 5280 §4.2: a critical extension that is not processed must be refused.
            _ if critical => {
                return Err(BadCertificate::UnknownCriticalExtension { oid: oid.to_id_string() });
            }
            _ => {}
        }
        Ok(())
    }

    /// Name, CA flag and key usage must tell the same story. Returns a CA's path length.
    fn check_usage(&self, subject: &Subject) -> Result<Option<u32>, BadCertificate> {
        match (subject, self.ca) {
            (Subject::Party(_), true) => Err(BadCertificate::IsCa),
            (Subject::Ca, false) => Err(BadCertificate::IssuerIsNotCa),
            (Subject::Party(_), false) if self.key_cert_sign => Err(BadCertificate::IsCa),
            (Subject::Party(_), false) if !self.digital_signature => {
                Err(BadCertificate::KeyUsage { needed: "digital signatures" })
            }
            (Subject::Ca, true) if !self.key_cert_sign => {
                Err(BadCertificate::KeyUsage { needed: "signing certificates" })
            }
            (Subject::Party(_), false) => Ok(None),
            // No limit stated means none: root, one intermediate and a leaf is all that is accepted anyway.
            (Subject::Ca, true) => Ok(Some(self.path_len.unwrap_or(u32::MAX))),
        }
    }
}
