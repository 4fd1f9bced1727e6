//! The fleet's certification authority: issues certificates of this profile.

use std::net::IpAddr;
use std::time::Duration;

use fleetkey_wire::FleetId;
use rand_core::CryptoRngCore;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, PKCS_ED25519, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm, SigningKey,
};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::certificate::Certificate;
use crate::error::{BadCertificate, BadPem};
use crate::key::IdentityKey;
use crate::pem;
use crate::role::{self, Role, Subject};

/// The last second a certificate can name: 9999-12-31 23:59:59 UTC, which stands for "no end" (RFC 5280 §4.1.2.5).
const LAST_UNIX_SECOND: i64 = 253_402_300_799;

/// Why a certificate was not issued. The fault is the caller's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// An operator's name that [`Role::is_operator_name`] refuses.
    #[error("{name:?} cannot be an operator's name: 1 to 64 of A-Z a-z 0-9 . _ -")]
    BadOperatorName {
        /// The name.
        name: String,
    },
    /// Neither an IP address nor a DNS name.
    #[error("{name:?} is neither an IP address nor a DNS name")]
    BadHostName {
        /// The name.
        name: String,
    },
    /// Host names are for parties that accept TLS connections.
    #[error("a certificate for {role} takes no host names")]
    HostNamesNotAllowed {
        /// The role asked for.
        role: Role,
    },
    /// A validity that is empty or lies outside 1970 to 9999.
    #[error("no validity: from {not_before_unix_seconds} to {not_after_unix_seconds} (Unix seconds)")]
    BadValidity {
        /// First second.
        not_before_unix_seconds: i64,
        /// Last second.
        not_after_unix_seconds: i64,
    },
    /// A public key that is no point of the curve, or a weak one.
    #[error("not a usable Ed25519 public key")]
    BadPublicKey,
    /// An intermediate cannot have intermediates of its own.
    #[error("only a root can certify an intermediate")]
    NotARoot,
}

/// First and last second of a certificate's life (Unix seconds, both included).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First second.
    pub not_before_unix_seconds: i64,
    /// Last second.
    pub not_after_unix_seconds: i64,
}

impl Validity {
    /// From `now` less an hour, for clocks that are slow, to `days` later.
    pub fn days_from(now_unix_seconds: i64, days: u32) -> Self {
        Self {
            not_before_unix_seconds: now_unix_seconds.saturating_sub(3_600).max(0),
            not_after_unix_seconds: now_unix_seconds
                .saturating_add(i64::from(days) * 86_400)
                .min(LAST_UNIX_SECOND),
        }
    }

    /// From `now` less an hour, without an end: for devices that nobody can reach to renew.
    pub fn without_end(now_unix_seconds: i64) -> Self {
        Self { not_after_unix_seconds: LAST_UNIX_SECOND, ..Self::days_from(now_unix_seconds, 0) }
    }

    fn check(self) -> Result<Self, IssueError> {
        let Self { not_before_unix_seconds, not_after_unix_seconds } = self;
        if 0 <= not_before_unix_seconds
            && not_before_unix_seconds <= not_after_unix_seconds
            && not_after_unix_seconds <= LAST_UNIX_SECOND
        {
            Ok(self)
        } else {
            Err(IssueError::BadValidity { not_before_unix_seconds, not_after_unix_seconds })
        }
    }
}

/// A certification authority of a fleet: the root, or an intermediate.
///
/// Issuing is a pure function: the same request gives the same bytes, and another request another serial number.
#[derive(Debug)]
pub struct FleetCa {
    fleet: FleetId,
    is_root: bool,
    der: Vec<u8>,
    key: IdentityKey,
    issuer: Issuer<'static, Signer>,
}

impl FleetCa {
    /// A new self-signed root for `fleet`.
    ///
    /// # Errors
    /// [`IssueError::BadValidity`].
    pub fn create(
        fleet: FleetId,
        rng: &mut dyn CryptoRngCore,
        validity: Validity,
    ) -> Result<Self, IssueError> {
        let key = IdentityKey::generate(rng);
        let params = ca_params(fleet, &key.public_key(), validity, 1)?;
        let certificate = params.self_signed(&Signer(key.clone())).expect("checked parameters always encode");
        Ok(Self::assemble(fleet, true, certificate.der().to_vec(), key)
            .expect("our own certificate reads back"))
    }

    /// A new intermediate below this root.
    ///
    /// # Errors
    /// [`IssueError::NotARoot`], [`IssueError::BadValidity`].
    pub fn create_intermediate(
        &self,
        rng: &mut dyn CryptoRngCore,
        validity: Validity,
    ) -> Result<Self, IssueError> {
        if !self.is_root {
            return Err(IssueError::NotARoot);
        }
        let key = IdentityKey::generate(rng);
        let params = ca_params(self.fleet, &key.public_key(), validity, 0)?;
        let der = self.sign(&params, &key.public_key());
        Ok(Self::assemble(self.fleet, false, der, key).expect("our own certificate reads back"))
    }

    /// Issues a certificate for `role`, whose holder keeps the private half of `public_key`.
    ///
    /// `host_names` (DNS names or IP addresses) are for brokers and coordinators, which accept TLS connections.
    ///
    /// # Errors
    /// When the request makes no sense.
    pub fn issue(
        &self,
        role: &Role,
        public_key: &[u8; 32],
        host_names: &[String],
        validity: Validity,
    ) -> Result<Vec<u8>, IssueError> {
        let accepts_connections = check_role(role, host_names)?;
        ed25519_dalek::VerifyingKey::from_bytes(public_key)
            .ok()
            .filter(|key| !key.is_weak())
            .ok_or(IssueError::BadPublicKey)?;
        let uri = role.uri(self.fleet);
        let mut params = params(&role.common_name(), &uri, public_key, host_names, validity)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if accepts_connections {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        Ok(self.sign(&params, public_key))
    }

    /// A chain as it is presented: `leaf`, then this CA's certificate when it is an intermediate.
    pub fn chain(&self, leaf: Vec<u8>) -> Vec<Vec<u8>> {
        let mut chain = vec![leaf];
        if !self.is_root {
            chain.push(self.der.clone());
        }
        chain
    }

    /// The fleet it issues for.
    pub fn fleet(&self) -> FleetId {
        self.fleet
    }

    /// Its own certificate: what is pinned, when it is a root.
    pub fn certificate_der(&self) -> &[u8] {
        &self.der
    }

    /// Its own certificate.
    pub fn certificate_pem(&self) -> String {
        pem::encode_certificate(&self.der)
    }

    /// Its private key.
    pub fn key_pem(&self) -> Zeroizing<String> {
        self.key.to_pkcs8_pem()
    }

    /// Certificate and private key in one text.
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}{}", self.certificate_pem(), *self.key_pem()))
    }

    /// Reads what [`Self::to_pem`] wrote, or a certificate and a PKCS #8 key put together by hand.
    ///
    /// # Errors
    /// When one of the two is missing, not of this profile, or does not belong to the other.
    pub fn from_pem(text: &str) -> Result<Self, BadPem> {
        let key = IdentityKey::from_pkcs8_pem(text)?;
        let der = pem::certificates(text, 1)?.pop().ok_or(BadPem::Missing { what: "certificate" })?;
        let certificate = Certificate::parse(&der)?;
        match certificate.subject {
            Subject::Ca => {}
            Subject::Party(_) => return Err(BadCertificate::IssuerIsNotCa.into()),
        }
        if certificate.key.to_bytes() != key.public_key() {
            return Err(BadPem::OtherKey);
        }
        let is_root = certificate.issuer_name == certificate.subject_name;
        if is_root {
            certificate.check_signature(&certificate.key)?;
        }
        Self::assemble(certificate.fleet, is_root, der, key).map_err(BadPem::from)
    }

    fn assemble(
        fleet: FleetId,
        is_root: bool,
        der: Vec<u8>,
        key: IdentityKey,
    ) -> Result<Self, BadCertificate> {
        let issuer = Issuer::from_ca_cert_der(&der.as_slice().into(), Signer(key.clone()))
            .map_err(|_| BadCertificate::Malformed { what: "a CA certificate that cannot issue" })?;
        Ok(Self { fleet, is_root, der, key, issuer })
    }

    fn sign(&self, params: &CertificateParams, public_key: &[u8; 32]) -> Vec<u8> {
        let certificate = params
            .signed_by(&PublicKey(*public_key), &self.issuer)
            .expect("checked parameters always encode");
        certificate.der().to_vec()
    }
}

/// Whether `role` can hold these names, and whether it accepts TLS connections.
fn check_role(role: &Role, host_names: &[String]) -> Result<bool, IssueError> {
    match role {
        Role::Coordinator { .. } | Role::Broker => Ok(true),
        Role::Operator { name } if !Role::is_operator_name(name) => {
            Err(IssueError::BadOperatorName { name: name.clone() })
        }
        Role::Operator { .. } | Role::Device(_) if !host_names.is_empty() => {
            Err(IssueError::HostNamesNotAllowed { role: role.clone() })
        }
        Role::Operator { .. } | Role::Device(_) => Ok(false),
    }
}

fn ca_params(
    fleet: FleetId,
    public_key: &[u8; 32],
    validity: Validity,
    path_len: u8,
) -> Result<CertificateParams, IssueError> {
    // The key's hash keeps the names of a fleet's CAs apart.
    let hash = Sha256::digest(public_key);
    let name = format!("Fleetkey {fleet} {:02x}{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2], hash[3]);
    let mut params = params(&name, &role::ca_uri(fleet), public_key, &[], validity)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn params(
    common_name: &str,
    uri: &str,
    public_key: &[u8; 32],
    host_names: &[String],
    validity: Validity,
) -> Result<CertificateParams, IssueError> {
    let validity = validity.check()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(validity.not_before_unix_seconds.unsigned_abs());
    params.not_after = epoch + Duration::from_secs(validity.not_after_unix_seconds.unsigned_abs());
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial_number(uri, public_key, host_names, validity));
    params.subject_alt_names.push(SanType::URI(uri.try_into().expect("a fleet name is ASCII")));
    for name in host_names {
        params.subject_alt_names.push(host_name(name)?);
    }
    Ok(params)
}

fn host_name(name: &str) -> Result<SanType, IssueError> {
    let bad = || IssueError::BadHostName { name: name.to_owned() };
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    // What a TLS client could never ask for must not be issued either.
    rustls::pki_types::DnsName::try_from(name).map_err(|_| bad())?;
    Ok(SanType::DnsName(name.try_into().map_err(|_| bad())?))
}

/// 16 bytes that depend on everything asked for: another request has another serial number (RFC 5280 §4.1.2.2).
fn serial_number(
    uri: &str,
    public_key: &[u8; 32],
    host_names: &[String],
    validity: Validity,
) -> SerialNumber {
    let mut hash = Sha256::new_with_prefix(b"fleetkey serial\0");
    hash.update(public_key);
    hash.update(validity.not_before_unix_seconds.to_be_bytes());
    hash.update(validity.not_after_unix_seconds.to_be_bytes());
    for part in [uri].into_iter().chain(host_names.iter().map(String::as_str)) {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let mut serial = hash.finalize()[..16].to_vec();
    // Positive, and 16 bytes always.
    serial[0] = (serial[0] & 0x7f) | 0x40;
    SerialNumber::from(serial)
}

/// A public key alone: the private half stays with its holder.
struct PublicKey([u8; 32]);

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

/// Signs for rcgen with our own key type, so that keys live in one place.
struct Signer(IdentityKey);

impl PublicKeyData for Signer {
    fn der_bytes(&self) -> &[u8] {
        self.0.signing_key().as_ref().as_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

impl SigningKey for Signer {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        use ed25519_dalek::Signer as _;
        Ok(self.0.signing_key().sign(message).to_bytes().to_vec())
    }
}
