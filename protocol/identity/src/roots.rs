//! The pinned roots of one fleet, and whether they vouch for a certificate.

use std::sync::Arc;

use fleetkey_wire::FleetId;

use crate::certificate::{Certificate, Identity};
use crate::crl::{BadCrl, Crl};
use crate::error::{BadCertificate, BadPem};
use crate::pem;
use crate::role::Subject;

/// Most roots that can be pinned at once: room for several generations of one fleet's CA.
pub const MAX_ROOTS: usize = 16;

/// The pinned roots of one fleet. Cheap to clone.
///
/// A root is trusted because it is pinned: its own validity is not looked at (RFC 5280 §6.1.1 d), so a fleet does not fall
/// silent on the day its root expires. It is retired by being unpinned.
#[derive(Debug, Clone)]
pub struct FleetRoots(Arc<Vec<Root>>);

#[derive(Debug)]
struct Root {
    der: Vec<u8>,
    certificate: Certificate,
}

impl FleetRoots {
    /// Pins these roots: self-signed CA certificates of one fleet, in DER.
    ///
    /// # Errors
    /// The first thing that is wrong with one of them; [`BadCertificate::EmptyChain`] when there is none.
    pub fn new(ders: &[Vec<u8>]) -> Result<Self, BadCertificate> {
        if ders.len() > MAX_ROOTS {
            return Err(BadCertificate::ChainTooLong);
        }
        let mut roots: Vec<Root> = Vec::with_capacity(ders.len());
        for der in ders {
            let certificate = Certificate::parse(der)?;
            match certificate.subject {
                Subject::Ca => {}
                Subject::Party(_) => return Err(BadCertificate::IssuerIsNotCa),
            }
            certificate.check_signature(&certificate.key)?;
            if let Some(first) = roots.first() {
                same_fleet(&certificate, first.certificate.fleet)?;
            }
            if roots.iter().all(|known| known.der != *der) {
                roots.push(Root { der: der.clone(), certificate });
            }
        }
        if roots.is_empty() {
            return Err(BadCertificate::EmptyChain);
        }
        Ok(Self(Arc::new(roots)))
    }

    /// Pins every certificate in `text`.
    ///
    /// # Errors
    /// As [`Self::new`], and when the text is not PEM or holds no certificate.
    pub fn from_pem(text: &str) -> Result<Self, BadPem> {
        Ok(Self::new(&pem::certificates(text, MAX_ROOTS)?)?)
    }

    /// The roots as one PEM text.
    pub fn to_pem(&self) -> String {
        self.0.iter().map(|root| pem::encode_certificate(&root.der)).collect()
    }

    /// The fleet they all belong to.
    pub fn fleet(&self) -> FleetId {
        self.0.first().expect("never empty: checked in new").certificate.fleet
    }

    /// The roots in DER.
    pub fn ders(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(|root| root.der.as_slice())
    }

    /// Who the leaf of `chain` is, if a pinned root vouches for it.
    ///
    /// The chain is leaf first: the leaf, then at most one intermediate, then, should the other side have sent it,
    /// the root. Without a clock (`None`) validity is not judged.
    ///
    /// # Errors
    /// The first thing that is wrong with the chain.
    pub fn verify(
        &self,
        chain: &[Vec<u8>],
        now_unix_seconds: Option<i64>,
    ) -> Result<Identity, BadCertificate> {
        let chain: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
        self.verify_slices(&chain, now_unix_seconds)
    }

    pub(crate) fn verify_slices(
        &self,
        chain: &[&[u8]],
        now_unix_seconds: Option<i64>,
    ) -> Result<Identity, BadCertificate> {
        let chain = match chain {
            [rest @ .., last] if self.ders().any(|root| root == *last) => rest,
            all => all,
        };
        let (leaf, intermediate) = match chain {
            [] => return Err(BadCertificate::EmptyChain),
            [leaf] => (Certificate::parse(leaf)?, None),
            [leaf, intermediate] => (Certificate::parse(leaf)?, Some(Certificate::parse(intermediate)?)),
            [_, _, _, ..] => return Err(BadCertificate::ChainTooLong),
        };
        for certificate in intermediate.iter().chain([&leaf]) {
            same_fleet(certificate, self.fleet())?;
        }
        match &intermediate {
            None => self.check_issued_by_root(&leaf, 0)?,
            Some(intermediate) => {
                match intermediate.subject {
                    Subject::Ca => {}
                    Subject::Party(_) => return Err(BadCertificate::IssuerIsNotCa),
                }
                self.check_issued_by_root(intermediate, 1)?;
                if leaf.issuer_name != intermediate.subject_name {
                    return Err(BadCertificate::UnknownIssuer { fleet: self.fleet() });
                }
                leaf.check_signature(&intermediate.key)?;
            }
        }
        if let Some(now) = now_unix_seconds {
            for certificate in intermediate.iter().chain([&leaf]) {
                certificate.check_validity(now)?;
            }
        }
        leaf.into_identity()
    }

    /// Whether a CA of the fleet made this list: a pinned root, or an intermediate that one certified. Which
    /// intermediates there are is told by `others`, certificates (DER) that need not be trusted.
    ///
    /// # Errors
    /// [`BadCrl::UnknownIssuer`].
    pub fn check_crl(&self, crl: &Crl, others: &[Vec<u8>]) -> Result<(), BadCrl> {
        let by_root = || {
            self.0.iter().any(|root| crl.is_made_by(&root.certificate.subject_name, &root.certificate.key))
        };
        let by_intermediate = |der: &Vec<u8>| {
            Certificate::parse(der).is_ok_and(|ca| {
                matches!(ca.subject, Subject::Ca)
                    && ca.fleet == self.fleet()
                    && self.check_issued_by_root(&ca, 1).is_ok()
                    && crl.is_made_by(&ca.subject_name, &ca.key)
            })
        };
        if by_root() || others.iter().any(by_intermediate) { Ok(()) } else { Err(BadCrl::UnknownIssuer) }
    }

    fn check_issued_by_root(&self, top: &Certificate, intermediates: u32) -> Result<(), BadCertificate> {
        let mut verdict = Err(BadCertificate::UnknownIssuer { fleet: self.fleet() });
        for root in self.0.iter().map(|root| &root.certificate) {
            if root.subject_name != top.issuer_name {
                continue;
            }
            verdict = top.check_signature(&root.key);
            if verdict.is_ok() {
                // RFC 5280 §4.2.1.9: how many intermediates a CA allows below itself.
                return match root.path_len {
                    Some(allowed) if intermediates <= allowed => Ok(()),
                    Some(_) | None => Err(BadCertificate::ChainTooLong),
                };
            }
        }
        verdict
    }
}

fn same_fleet(certificate: &Certificate, expected: FleetId) -> Result<(), BadCertificate> {
    if certificate.fleet == expected {
        Ok(())
    } else {
        Err(BadCertificate::OtherFleet { got: certificate.fleet, expected })
    }
}
