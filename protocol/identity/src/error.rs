//! What can be wrong with a certificate, a chain, or the text that should hold one.

use fleetkey_wire::FleetId;

/// A certificate or chain that is not accepted. The fault lies with whoever presented it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCertificate {
    /// Refused before it was decoded.
    #[error("the certificate has {bytes} bytes, the limit is {}", crate::MAX_CERTIFICATE_BYTES)]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Not an X.509 version 3 certificate in DER.
    #[error("not a DER certificate: {what}")]
    Malformed {
        /// The part that could not be read.
        what: &'static str,
    },
    /// Another key or signature algorithm than Ed25519.
    #[error("the certificate's {what} is not Ed25519")]
    NotEd25519 {
        /// Key or signature.
        what: &'static str,
    },
    /// A public key that is no point of the curve, or one of its few weak points.
    #[error("the certificate's public key is not a usable Ed25519 key")]
    WeakKey,
    /// An extension that must be understood, and is not.
    #[error("unknown critical extension {oid}")]
    UnknownCriticalExtension {
        /// Its object identifier.
        oid: String,
    },
    /// No name of this profile at all.
    #[error("no urn:fleetkey name in the certificate")]
    NoFleetName,
    /// More than one name of this profile.
    #[error("more than one urn:fleetkey name in the certificate")]
    SeveralFleetNames,
    /// A name that looks like one of this profile and is none.
    #[error("{uri:?} is not a fleetkey name: {what}")]
    BadFleetName {
        /// The name, cut to 128 characters.
        uri: String,
        /// Why it is none.
        what: &'static str,
    },
    /// A CA certificate where a party's own was expected.
    #[error("a CA certificate cannot name a party")]
    IsCa,
    /// A certificate that signs another without being a CA's.
    #[error("the issuer is not a CA")]
    IssuerIsNotCa,
    /// Key usage or extended key usage lacks what is needed.
    #[error("the certificate's key usage does not allow {needed}")]
    KeyUsage {
        /// What it should have allowed.
        needed: &'static str,
    },
    /// Nothing was presented.
    #[error("no certificate was presented")]
    EmptyChain,
    /// More certificates than root, intermediate and leaf, or than an issuer's path length allows.
    #[error("the certificate chain is too long")]
    ChainTooLong,
    /// No pinned root issued the chain.
    #[error("no pinned root of fleet {fleet} issued this certificate")]
    UnknownIssuer {
        /// The fleet whose roots are pinned.
        fleet: FleetId,
    },
    /// The CA that issued it has been retired.
    #[error("the CA that issued this certificate has been retired")]
    RetiredIssuer,
    /// The issuer's name fits, its signature does not.
    #[error("the issuer's signature does not verify")]
    BadSignature,
    /// A party, an intermediate or a root of another fleet.
    #[error("the certificate belongs to fleet {got}, not {expected}")]
    OtherFleet {
        /// The fleet it names.
        got: FleetId,
        /// The fleet of the pinned roots.
        expected: FleetId,
    },
    /// The clock stands before its validity.
    #[error(
        "the certificate is valid from {not_before_unix_seconds} (Unix seconds), now is {now_unix_seconds}"
    )]
    NotYetValid {
        /// First second of validity.
        not_before_unix_seconds: i64,
        /// The clock given.
        now_unix_seconds: i64,
    },
    /// The clock stands after its validity.
    #[error(
        "the certificate was valid until {not_after_unix_seconds} (Unix seconds), now is {now_unix_seconds}"
    )]
    Expired {
        /// Last second of validity.
        not_after_unix_seconds: i64,
        /// The clock given.
        now_unix_seconds: i64,
    },
}

/// A PEM text that does not hold what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPem {
    /// Not PEM, or cut off.
    #[error("not PEM: {what}")]
    Malformed {
        /// What the reader stumbled over.
        what: String,
    },
    /// Refused before it was decoded.
    #[error("the PEM text has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A section that should be there is not.
    #[error("no {what} in the PEM text")]
    Missing {
        /// The section.
        what: &'static str,
    },
    /// More of a section than fits.
    #[error("more than {limit} {what}s in the PEM text")]
    TooMany {
        /// The section.
        what: &'static str,
        /// The most that are accepted.
        limit: usize,
    },
    /// A private key that is not Ed25519 in PKCS #8.
    #[error("not an Ed25519 private key in PKCS #8")]
    NotEd25519Key,
    /// The private key is encrypted, and no passphrase was given.
    #[error("the private key is encrypted, and needs its passphrase")]
    NeedsPassphrase,
    /// The passphrase does not open the private key.
    #[error("the passphrase does not open the private key")]
    WrongPassphrase,
    /// Key and certificate do not belong together.
    #[error("the private key does not belong to the certificate")]
    OtherKey,
    /// A certificate in it is not acceptable.
    #[error(transparent)]
    Certificate(#[from] BadCertificate),
}
