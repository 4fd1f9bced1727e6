//! The fleet's certification authority: issues certificates of this profile.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use fleetkey_wire::FleetId;
use fleetkey_wire::statement::KeyId;
use rand_core::CryptoRngCore;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyUsagePurpose, PKCS_ED25519, PublicKeyData,
    RevokedCertParams, SanType, SerialNumber, SignatureAlgorithm,
};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::certificate::Certificate;
use crate::crl::Revoked;
use crate::error::{BadCertificate, BadPem};
use crate::key::IdentityKey;
use crate::pem;
use crate::role::{self, Role, Subject};
use crate::signer::{CaKey, RcgenKey, SigningFailed};

/// The last second a certificate can name: 9999-12-31 23:59:59 UTC, which stands for "no end" (RFC 5280 §4.1.2.5).
pub(crate) const LAST_UNIX_SECOND: i64 = 253_402_300_799;

/// Most certificates of other roots for one CA.
const MAX_CROSSES: usize = 4;

/// Why nothing was issued. The fault is the caller's, but for [`IssueError::Signing`].
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
    /// A CA certifies within its own fleet.
    #[error("the CA is of fleet {got}, not {expected}")]
    OtherFleet {
        /// The fleet of the other CA.
        got: FleetId,
        /// This CA's.
        expected: FleetId,
    },
    /// The CA's key could not be used. The fault is not the caller's.
    #[error(transparent)]
    Signing(#[from] SigningFailed),
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
    /// What other roots have certified of the same key; the last one is shown.
    crosses: Vec<Vec<u8>>,
    key: Key,
    issuer: Issuer<'static, RcgenKey<Key>>,
}

/// Where a CA's key is.
#[derive(Debug, Clone)]
enum Key {
    /// In memory, and in a file of ours.
    Here(Arc<IdentityKey>),
    /// Somewhere it does not leave.
    Elsewhere(Arc<dyn CaKey>),
}

impl AsRef<dyn CaKey> for Key {
    fn as_ref(&self) -> &(dyn CaKey + 'static) {
        match self {
            Self::Here(key) => key.as_ref(),
            Self::Elsewhere(key) => key.as_ref(),
        }
    }
}

impl FleetCa {
    /// A new self-signed root for `fleet`, with a new key.
    ///
    /// # Errors
    /// [`IssueError::BadValidity`].
    pub fn create(
        fleet: FleetId,
        rng: &mut dyn CryptoRngCore,
        validity: Validity,
    ) -> Result<Self, IssueError> {
        Self::root(fleet, Key::Here(Arc::new(IdentityKey::generate(rng))), validity)
    }

    /// A new self-signed root for `fleet`, over a key that lives elsewhere.
    ///
    /// # Errors
    /// [`IssueError::BadValidity`], [`IssueError::Signing`].
    pub fn create_over(fleet: FleetId, key: Arc<dyn CaKey>, validity: Validity) -> Result<Self, IssueError> {
        Self::root(fleet, Key::Elsewhere(key), validity)
    }

    fn root(fleet: FleetId, key: Key, validity: Validity) -> Result<Self, IssueError> {
        let params = ca_params(fleet, &key.as_ref().public_key(), validity, 1)?;
        let certificate = params.self_signed(&RcgenKey::new(key.clone())).map_err(signing_failed)?;
        Ok(Self::assemble(fleet, true, certificate.der().to_vec(), key)
            .expect("our own certificate reads back"))
    }

    /// A new intermediate below this root, with a new key.
    ///
    /// # Errors
    /// [`IssueError::NotARoot`], [`IssueError::BadValidity`], [`IssueError::Signing`].
    pub fn create_intermediate(
        &self,
        rng: &mut dyn CryptoRngCore,
        validity: Validity,
    ) -> Result<Self, IssueError> {
        self.intermediate(Key::Here(Arc::new(IdentityKey::generate(rng))), validity)
    }

    /// A new intermediate below this root, over a key that lives elsewhere.
    ///
    /// # Errors
    /// [`IssueError::NotARoot`], [`IssueError::BadValidity`], [`IssueError::Signing`].
    pub fn create_intermediate_over(
        &self,
        key: Arc<dyn CaKey>,
        validity: Validity,
    ) -> Result<Self, IssueError> {
        self.intermediate(Key::Elsewhere(key), validity)
    }

    fn intermediate(&self, key: Key, validity: Validity) -> Result<Self, IssueError> {
        if !self.is_root {
            return Err(IssueError::NotARoot);
        }
        let public_key = key.as_ref().public_key();
        let params = ca_params(self.fleet, &public_key, validity, 0)?;
        let der = self.sign(&params, &public_key)?;
        Ok(Self::assemble(self.fleet, false, der, key).expect("our own certificate reads back"))
    }

    /// A certificate (DER) of this root for the key of another CA of the fleet, under that CA's name: whoever pins this
    /// root alone accepts what the other one issues. For another root it is the word that lets devices pin that one.
    ///
    /// # Errors
    /// [`IssueError::NotARoot`], [`IssueError::OtherFleet`], [`IssueError::BadValidity`], [`IssueError::Signing`].
    pub fn cross_certify(&self, other: &Self, validity: Validity) -> Result<Vec<u8>, IssueError> {
        if !self.is_root {
            return Err(IssueError::NotARoot);
        }
        if other.fleet != self.fleet {
            return Err(IssueError::OtherFleet { got: other.fleet, expected: self.fleet });
        }
        let public_key = other.public_key();
        // That a CA may follow is what tells a root from a CA that issues.
        let path_len = u8::from(other.is_root);
        self.sign(&ca_params(self.fleet, &public_key, validity, path_len)?, &public_key)
    }

    /// The same CA, which shows this certificate (DER) of its key instead of its own.
    ///
    /// # Errors
    /// [`BadPem::OtherKey`] when it is of another CA.
    pub fn with_cross(mut self, cross: Vec<u8>) -> Result<Self, BadPem> {
        let (own, other) = (Certificate::parse(&self.der)?, Certificate::parse(&cross)?);
        let is_of_it = matches!(other.subject, Subject::Ca)
            && other.key == own.key
            && other.subject_name == own.subject_name
            && other.fleet == own.fleet;
        if !is_of_it {
            return Err(BadPem::OtherKey);
        }
        self.crosses.push(cross);
        Ok(self)
    }

    /// The same CA, which shows its own certificate again.
    #[must_use]
    pub fn without_crosses(self) -> Self {
        Self { crosses: Vec::new(), ..self }
    }

    /// Issues a certificate for `role`, whose holder keeps the private half of `public_key`.
    ///
    /// `host_names` (DNS names or IP addresses) are for brokers and coordinators, which accept TLS connections.
    ///
    /// # Errors
    /// When the request makes no sense, or the CA's key cannot be used.
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
        self.sign(&params, public_key)
    }

    /// The list (DER) of this CA's certificates that no longer count, until the next one is due.
    ///
    /// # Errors
    /// [`IssueError::BadValidity`], [`IssueError::Signing`].
    pub fn revocation_list(
        &self,
        number: u64,
        validity: Validity,
        revoked: &[Revoked],
    ) -> Result<Vec<u8>, IssueError> {
        let validity = validity.check()?;
        let entry = |revoked: &Revoked| RevokedCertParams {
            serial_number: SerialNumber::from(revoked.serial.clone()),
            revocation_time: moment(revoked.unix_seconds.min(LAST_UNIX_SECOND.unsigned_abs())),
            // Why is the operator's, and nobody else's, to know.
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: moment(validity.not_before_unix_seconds.unsigned_abs()),
            next_update: moment(validity.not_after_unix_seconds.unsigned_abs()),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer).map_err(signing_failed)?.der().to_vec())
    }

    /// A chain as it is presented: `leaf`, then this CA's certificate when it is an intermediate.
    pub fn chain(&self, leaf: Vec<u8>) -> Vec<Vec<u8>> {
        let mut chain = vec![leaf];
        if !self.is_root {
            chain.push(self.crosses.last().unwrap_or(&self.der).clone());
        }
        chain
    }

    /// Names this CA for good: of its own certificate.
    pub fn id(&self) -> KeyId {
        KeyId::of_certificate(&self.der)
    }

    /// Every certificate (DER) of its key: its own, then those of other roots.
    pub fn certificates(&self) -> impl Iterator<Item = &[u8]> {
        [&self.der].into_iter().chain(&self.crosses).map(Vec::as_slice)
    }

    /// Its public key.
    pub fn public_key(&self) -> [u8; 32] {
        self.key.as_ref().public_key()
    }

    /// First and last second of its own certificate.
    pub fn validity(&self) -> Validity {
        let own = Certificate::parse(&self.der).expect("it was read before");
        Validity { not_before_unix_seconds: own.not_before, not_after_unix_seconds: own.not_after }
    }

    /// The fleet it issues for.
    pub fn fleet(&self) -> FleetId {
        self.fleet
    }

    /// Whether it is a root, and not an intermediate.
    pub fn is_root(&self) -> bool {
        self.is_root
    }

    /// Its own certificate: what is pinned, when it is a root.
    pub fn certificate_der(&self) -> &[u8] {
        &self.der
    }

    /// Its own certificate.
    pub fn certificate_pem(&self) -> String {
        pem::encode_certificate(&self.der)
    }

    /// Every certificate of its key, its own first.
    pub fn certificates_pem(&self) -> String {
        self.certificates().map(pem::encode_certificate).collect()
    }

    /// Its private key; `None` when that lives elsewhere.
    pub fn key_pem(&self) -> Option<Zeroizing<String>> {
        self.own_key().map(IdentityKey::to_pkcs8_pem)
    }

    /// Certificate and private key in one text; `None` when the key lives elsewhere.
    pub fn to_pem(&self) -> Option<Zeroizing<String>> {
        let key = self.key_pem()?;
        Some(Zeroizing::new(format!("{}{}", self.certificates_pem(), *key)))
    }

    /// Certificate and private key in one text, the key encrypted under a passphrase; `None` when the key lives
    /// elsewhere.
    pub fn to_encrypted_pem(&self, passphrase: &str, rng: &mut dyn CryptoRngCore) -> Option<String> {
        let key = self.own_key()?.to_encrypted_pkcs8_pem(passphrase, rng);
        Some(format!("{}{key}", self.certificates_pem()))
    }

    fn own_key(&self) -> Option<&IdentityKey> {
        match &self.key {
            Key::Here(key) => Some(key),
            Key::Elsewhere(_) => None,
        }
    }

    /// Reads what [`Self::to_pem`] wrote, or a certificate and a PKCS #8 key put together by hand.
    ///
    /// # Errors
    /// When one of the two is missing, not of this profile, or does not belong to the other;
    /// [`BadPem::NeedsPassphrase`] when the key is encrypted.
    pub fn from_pem(text: &str) -> Result<Self, BadPem> {
        Self::with_key(text, Key::Here(Arc::new(IdentityKey::from_pkcs8_pem(text)?)))
    }

    /// Reads what [`Self::to_encrypted_pem`] wrote.
    ///
    /// # Errors
    /// As [`Self::from_pem`], and [`BadPem::WrongPassphrase`].
    pub fn from_encrypted_pem(text: &str, passphrase: &str) -> Result<Self, BadPem> {
        Self::with_key(text, Key::Here(Arc::new(IdentityKey::from_encrypted_pkcs8_pem(text, passphrase)?)))
    }

    /// Reads the certificate of a CA whose key lives elsewhere.
    ///
    /// # Errors
    /// When there is no certificate, it is no CA's, or its key is another.
    pub fn from_pem_over(text: &str, key: Arc<dyn CaKey>) -> Result<Self, BadPem> {
        Self::with_key(text, Key::Elsewhere(key))
    }

    fn with_key(text: &str, key: Key) -> Result<Self, BadPem> {
        let mut certificates = pem::certificates(text, MAX_CROSSES + 1)?.into_iter();
        let der = certificates.next().ok_or(BadPem::Missing { what: "certificate" })?;
        let certificate = Certificate::parse(&der)?;
        match certificate.subject {
            Subject::Ca => {}
            Subject::Party(_) => return Err(BadCertificate::IssuerIsNotCa.into()),
        }
        if certificate.key.to_bytes() != key.as_ref().public_key() {
            return Err(BadPem::OtherKey);
        }
        let is_root = certificate.issuer_name == certificate.subject_name;
        if is_root {
            certificate.check_signature(&certificate.key)?;
        }
        let ca = Self::assemble(certificate.fleet, is_root, der, key)?;
        certificates.try_fold(ca, Self::with_cross)
    }

    fn assemble(fleet: FleetId, is_root: bool, der: Vec<u8>, key: Key) -> Result<Self, BadCertificate> {
        let issuer = Issuer::from_ca_cert_der(&der.as_slice().into(), RcgenKey::new(key.clone()))
            .map_err(|_| BadCertificate::Malformed { what: "a CA certificate that cannot issue" })?;
        Ok(Self { fleet, is_root, der, crosses: Vec::new(), key, issuer })
    }

    fn sign(&self, params: &CertificateParams, public_key: &[u8; 32]) -> Result<Vec<u8>, IssueError> {
        let mut params = params.clone();
        // Two CAs of a fleet give no serial number twice: lists of several are told apart by nothing else. A fleet has had one
        // root that issues at most, and its numbers stay as they were.
        if let (false, Some(of_request)) = (self.is_root, &params.serial_number) {
            let hash = Sha256::new().chain_update(of_request.to_bytes()).chain_update(self.public_key());
            params.serial_number = Some(serial_of(&hash.finalize()));
        }
        let certificate = params.signed_by(&PublicKey(*public_key), &self.issuer).map_err(signing_failed)?;
        Ok(certificate.der().to_vec())
    }
}

/// Checked parameters always encode: what can fail is the key.
fn signing_failed(error: rcgen::Error) -> IssueError {
    SigningFailed { why: error.to_string() }.into()
}

/// Whether `role` can hold these names, and whether it accepts TLS connections.
fn check_role(role: &Role, host_names: &[String]) -> Result<bool, IssueError> {
    match role {
        Role::Coordinator { .. } | Role::Broker | Role::Registrar => Ok(true),
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
    params.not_before = moment(validity.not_before_unix_seconds.unsigned_abs());
    params.not_after = moment(validity.not_after_unix_seconds.unsigned_abs());
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial_number(uri, public_key, host_names, validity));
    params.subject_alt_names.push(SanType::URI(uri.try_into().expect("a fleet name is ASCII")));
    for name in host_names {
        params.subject_alt_names.push(host_name(name)?);
    }
    Ok(params)
}

/// As rcgen has it.
fn moment(unix_seconds: u64) -> OffsetDateTime {
    rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(unix_seconds)
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
    serial_of(&hash.finalize())
}

/// Positive, and 16 bytes always.
fn serial_of(hash: &[u8]) -> SerialNumber {
    let mut serial = hash[..16].to_vec();
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
