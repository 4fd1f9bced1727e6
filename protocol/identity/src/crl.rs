//! Certificate revocation lists (RFC 5280 §5): which certificates of a CA no longer count.

use std::collections::{BTreeMap, BTreeSet};

use ed25519_dalek::{Signature, VerifyingKey};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::ca::LAST_UNIX_SECOND;
use crate::certificate::outer_signature;
use crate::pem;

/// A certificate's serial number, big-endian, as in the certificate.
pub type Serial = Vec<u8>;

/// Names a certificate (RFC 5652 §10.2.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerAndSerial {
    /// The name (DER) of the CA that issued it.
    pub issuer: Vec<u8>,
    /// Its serial number.
    pub serial: Serial,
}

/// Which certificates no longer count: those that are on the lists, and all of a CA whose list is its last.
#[derive(Debug, Clone, Default)]
pub struct Revocations {
    serials: BTreeSet<Serial>,
    retired: BTreeSet<Vec<u8>>,
}

impl Revocations {
    /// What these lists say together: no two CAs of a fleet give the same serial number.
    pub fn of(lists: &[Crl]) -> Self {
        let last = lists.iter().filter(|list| list.is_last());
        Self {
            serials: lists.iter().flat_map(|list| list.revoked.keys().cloned()).collect(),
            retired: last.map(|list| list.issuer_name.clone()).collect(),
        }
    }

    /// Whether this certificate is one of them.
    pub fn cover(&self, certificate: &IssuerAndSerial) -> bool {
        self.serials.contains(&certificate.serial) || self.retired.contains(&certificate.issuer)
    }
}

/// Largest list that is read: some hundred thousand certificates.
pub const MAX_CRL_BYTES: usize = 16 * 1024 * 1024;

/// One certificate that no longer counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// Its serial number.
    pub serial: Serial,
    /// Since when.
    pub unix_seconds: u64,
}

/// A list that was read, and not yet vouched for: see [`Crl::check_signature`].
#[derive(Debug, Clone)]
pub struct Crl {
    /// Rises with each list of a CA.
    pub number: u64,
    /// When it was made.
    pub this_update_unix_seconds: i64,
    /// When the next one is due.
    pub next_update_unix_seconds: Option<i64>,
    /// Serial numbers, and since when they do not count.
    pub revoked: BTreeMap<Serial, i64>,
    issuer_name: Vec<u8>,
    signed: Vec<u8>,
    signature: Signature,
}

/// A list as a PEM section, `X509 CRL`.
pub fn crl_to_pem(der: &[u8]) -> String {
    pem::encode_crl(der)
}

/// Every list in a PEM text (DER). Nobody has read them yet.
///
/// # Errors
/// [`BadCrl`] when there is none.
pub fn crls_from_pem(text: &str) -> Result<Vec<Vec<u8>>, BadCrl> {
    let malformed = BadCrl::Malformed { what: "no X509 CRL section" };
    pem::crls(text).filter(|lists| !lists.is_empty()).ok_or(malformed)
}

/// A list that cannot be read, or that its CA did not make.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCrl {
    /// Refused before it was decoded.
    #[error("the CRL has {bytes} bytes, the limit is {MAX_CRL_BYTES}")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// No list in DER or PEM.
    #[error("not a CRL: {what}")]
    Malformed {
        /// The part that could not be read.
        what: &'static str,
    },
    /// No CA that is known made it.
    #[error("the CRL is not signed by a CA of the fleet")]
    UnknownIssuer,
}

impl Crl {
    /// Reads a list, in DER or as one `X509 CRL` section of PEM.
    ///
    /// # Errors
    /// [`BadCrl`].
    pub fn read(bytes: &[u8]) -> Result<Self, BadCrl> {
        if bytes.len() > MAX_CRL_BYTES {
            return Err(BadCrl::TooLarge { bytes: bytes.len() });
        }
        let malformed = |what| BadCrl::Malformed { what };
        let mut all = Self::read_all(bytes)?;
        match (all.pop(), all.is_empty()) {
            (Some(list), true) => Ok(list),
            (Some(_), false) | (None, _) => Err(malformed("no X509 CRL section, or more than one")),
        }
    }

    /// Reads one list in DER, or every `X509 CRL` section of PEM: a list for each CA.
    ///
    /// # Errors
    /// [`BadCrl`].
    pub fn read_all(bytes: &[u8]) -> Result<Vec<Self>, BadCrl> {
        if bytes.len() > MAX_CRL_BYTES * 2 {
            return Err(BadCrl::TooLarge { bytes: bytes.len() });
        }
        match std::str::from_utf8(bytes) {
            Ok(text) if text.contains("-----BEGIN") => {
                crls_from_pem(text)?.iter().map(|der| Self::read_der(der)).collect()
            }
            Ok(_) | Err(_) => Ok(vec![Self::read_der(bytes)?]),
        }
    }

    /// Whether the same CA made both, going by its name.
    pub fn is_of_same_ca(&self, other: &Self) -> bool {
        self.issuer_name == other.issuer_name
    }

    /// Whether it is the last list that its CA makes: the next one is due at the end of time (ETSI EN 319 411-2 §6.3.9).
    pub fn is_last(&self) -> bool {
        self.next_update_unix_seconds == Some(LAST_UNIX_SECOND)
    }

    pub(crate) fn issuer_name(&self) -> &[u8] {
        &self.issuer_name
    }

    fn read_der(der: &[u8]) -> Result<Self, BadCrl> {
        let malformed = |what| BadCrl::Malformed { what };
        let (rest, list) = CertificateRevocationList::from_der(der).map_err(|_| malformed("structure"))?;
        if !rest.is_empty() {
            return Err(malformed("bytes after its end"));
        }
        let signed = list.tbs_cert_list.as_ref();
        let signature = outer_signature(der, signed).map_err(|_| malformed("signature"))?;
        let number = list.crl_number().and_then(|number| u64::try_from(number).ok());
        let revoked = list.iter_revoked_certificates();
        Ok(Self {
            number: number.ok_or(malformed("no CRL number"))?,
            this_update_unix_seconds: list.last_update().timestamp(),
            next_update_unix_seconds: list.next_update().map(|time| time.timestamp()),
            revoked: revoked
                .map(|revoked| (revoked.raw_serial().to_vec(), revoked.revocation_date.timestamp()))
                .collect(),
            issuer_name: list.issuer().as_raw().to_vec(),
            signed: signed.to_vec(),
            signature,
        })
    }

    /// Whether the certificate of this serial number still counts.
    pub fn is_revoked(&self, serial: &[u8]) -> bool {
        self.revoked.contains_key(serial)
    }

    /// Whether the CA of this name and key made it.
    pub(crate) fn is_made_by(&self, name: &[u8], key: &VerifyingKey) -> bool {
        self.issuer_name == name && key.verify_strict(&self.signed, &self.signature).is_ok()
    }
}
