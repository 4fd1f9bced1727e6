//! The fleet's X.509 profile: who a certificate names, in which role, and whether a fleet root vouches for it.
//!
//! One Ed25519 key pair and one certificate serve a party everywhere: TLS to the broker, the signature key of its MLS
//! leaves, the coordinator's statements. The certificate says who that is in one URI among its subject alternative
//! names:
//!
//! ```text
//! urn:fleetkey:{fleet}:device:{uuid}
//! urn:fleetkey:{fleet}:coordinator:{generation}
//! urn:fleetkey:{fleet}:broker
//! urn:fleetkey:{fleet}:registrar
//! urn:fleetkey:{fleet}:operator:{name}
//! urn:fleetkey:{fleet}:ca                         roots and intermediates
//! ```
//!
//! Leaves to others: who is revoked (the coordinator's registry), files, and what a role may do.

pub mod ca;
pub mod certificate;
pub mod crl;
pub mod csr;
pub mod error;
pub mod key;
mod pem;
pub mod pkcs7;
pub mod role;
pub mod roots;
mod signer;
pub mod tls;

pub use ca::{FleetCa, IssueError, Validity};
pub use certificate::{Identity, MAX_CERTIFICATE_BYTES, host_names, read_certificate};
pub use fleetkey_wire::statement::KeyId;

pub use crl::{
    BadCrl, Crl, IssuerAndSerial, MAX_CRL_BYTES, Revocations, Revoked, Serial, crl_to_pem, crls_from_pem,
};
pub use csr::{BadSigningRequest, MAX_CSR_BYTES, SigningRequest, read_signing_request, signing_request};
pub use error::{BadCertificate, BadPem};
pub use key::IdentityKey;
pub use pem::{
    MAX_CAS_AMONG_CRLS, certificates_among_crls, certificates_from_pem, chain_from_pem, chain_to_pem,
    request_from_pem,
};
pub use role::Role;
pub use roots::{FleetRoots, MAX_ROOTS};
pub use signer::{CaKey, SigningFailed};
