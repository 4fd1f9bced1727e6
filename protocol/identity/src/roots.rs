//! The pinned roots of one fleet, and whether they vouch for a certificate.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};

use fleetkey_wire::FleetId;
use fleetkey_wire::statement::KeyId;

use crate::certificate::{Certificate, Identity};
use crate::crl::{BadCrl, Crl};
use crate::error::{BadCertificate, BadPem};
use crate::pem;
use crate::role::Subject;

/// Most roots that can be pinned at once: room for several generations of one fleet's CA.
pub const MAX_ROOTS: usize = 16;

/// Most intermediates that are kept in mind.
const MAX_HEARD_OF: usize = 64;

/// The pinned roots of one fleet. Cheap to clone, and clones are the same: what one learns, all of them know.
///
/// A root is trusted because it is pinned: its own validity is not looked at (RFC 5280 §6.1.1 d), so a fleet does not fall
/// silent on the day its root expires. It is retired by being unpinned.
#[derive(Debug, Clone)]
pub struct FleetRoots(Arc<RwLock<Trust>>);

#[derive(Debug, Clone)]
struct Trust {
    roots: Arc<Vec<Root>>,
    /// Names of CAs whose certificates count no more, whoever vouches for the CA.
    closed: Arc<BTreeSet<Vec<u8>>>,
    /// Intermediates that were heard of, whoever vouches for them: another root may have certified the same CA.
    heard_of: Arc<Vec<Certificate>>,
}

#[derive(Debug, Clone)]
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
        let trust = Trust { roots: Arc::new(read(ders)?), closed: Arc::default(), heard_of: Arc::default() };
        Ok(Self(Arc::new(RwLock::new(trust))))
    }

    /// Pins these roots instead: in all clones, and in every TLS configuration that was made with one.
    ///
    /// # Errors
    /// As [`Self::new`], and [`BadCertificate::OtherFleet`]; then nothing changes.
    pub fn replace(&self, ders: &[Vec<u8>]) -> Result<(), BadCertificate> {
        let roots = read(ders)?;
        let expected = self.fleet();
        if let Some(root) = roots.first() {
            same_fleet(&root.certificate, expected)?;
        }
        self.put(roots);
        Ok(())
    }

    /// Pins those roots among `certificates` (DER) that a pinned one has certified: that certificate has to be among them
    /// too. Certificates of other kinds are passed over. How many are new.
    pub fn learn(&self, certificates: &[Vec<u8>]) -> usize {
        let known: Vec<(&Vec<u8>, Certificate)> = certificates
            .iter()
            .filter_map(|der| Some((der, Certificate::parse(der).ok()?)))
            .filter(|(_, ca)| matches!(ca.subject, Subject::Ca) && ca.fleet == self.fleet())
            .collect();
        let mut learnt = 0;
        // A root may be certified by one that has only just been learnt.
        loop {
            let pinned = self.pinned();
            let new = known.iter().find(|(der, root)| {
                pinned.len() < MAX_ROOTS
                    && pinned.iter().all(|pinned| pinned.der != **der)
                    && root.check_signature(&root.key).is_ok()
                    && known.iter().any(|(_, link)| {
                        link.subject_name == root.subject_name
                            && link.key == root.key
                            // A CA that issues must not make itself a root, not even one that states no limit.
                            && link.path_len.is_some_and(|allowed| 0 < allowed && allowed < u32::MAX)
                            && self.check_issued_by_root(link, 1).is_ok()
                    })
            });
            let Some((der, certificate)) = new else { return learnt };
            let mut roots: Vec<Root> = pinned.iter().cloned().collect();
            roots.push(Root { der: der.to_vec(), certificate: certificate.clone() });
            self.put(roots);
            learnt += 1;
        }
    }

    fn put(&self, roots: Vec<Root>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).roots = Arc::new(roots);
    }

    fn pinned(&self) -> Arc<Vec<Root>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).roots.clone()
    }

    /// Takes no certificate any more that the CA of this list has issued, if it is that CA's last ([`Crl::is_last`]).
    /// Whoever hands it over has checked it. Whether it is.
    pub fn close(&self, last: &Crl) -> bool {
        if last.is_last() {
            let mut trust = self.0.write().unwrap_or_else(PoisonError::into_inner);
            Arc::make_mut(&mut trust.closed).insert(last.issuer_name().to_vec());
        }
        last.is_last()
    }

    /// Hears of intermediates (DER), which need not be trusted: where a chain names a CA by the certificate of a root that
    /// is pinned no more, the same CA's certificate by a pinned root does. Others are passed over.
    pub fn hear_of(&self, certificates: &[Vec<u8>]) {
        let all = certificates.iter().take(MAX_HEARD_OF).filter_map(|der| Certificate::parse(der).ok());
        let cas = all.filter(|ca| matches!(ca.subject, Subject::Ca) && ca.subject_name != ca.issuer_name);
        let mut trust = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut heard_of: Vec<Certificate> = cas.collect();
        // What was heard of before still counts, as far as there is room for it.
        let is_new = |ca: &&Certificate| {
            !heard_of.iter().any(|new| {
                new.subject_name == ca.subject_name && new.issuer_name == ca.issuer_name && new.key == ca.key
            })
        };
        let before: Vec<Certificate> = trust.heard_of.iter().filter(is_new).cloned().collect();
        heard_of.extend(before);
        heard_of.truncate(MAX_HEARD_OF);
        trust.heard_of = Arc::new(heard_of);
    }

    fn check_intermediate(&self, intermediate: &Certificate) -> Result<(), BadCertificate> {
        let verdict = self.check_issued_by_root(intermediate, 1);
        if verdict.is_ok() {
            return verdict;
        }
        let heard_of = self.0.read().unwrap_or_else(PoisonError::into_inner).heard_of.clone();
        let is_vouched_for = heard_of.iter().any(|ca| {
            ca.subject_name == intermediate.subject_name
                && ca.key == intermediate.key
                && ca.fleet == self.fleet()
                && self.check_issued_by_root(ca, 1).is_ok()
        });
        if is_vouched_for { Ok(()) } else { verdict }
    }

    fn is_closed(&self, issuer_name: &[u8]) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).closed.contains(issuer_name)
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
        self.pinned().iter().map(|root| pem::encode_certificate(&root.der)).collect()
    }

    /// The fleet they all belong to.
    pub fn fleet(&self) -> FleetId {
        self.pinned().first().expect("never empty: checked when they are read").certificate.fleet
    }

    /// The roots in DER.
    pub fn ders(&self) -> Vec<Vec<u8>> {
        self.pinned().iter().map(|root| root.der.clone()).collect()
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
            [rest @ .., last] if self.pinned().iter().any(|root| root.der == *last) => rest,
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
        if self.is_closed(&leaf.issuer_name) {
            return Err(BadCertificate::RetiredIssuer);
        }
        match &intermediate {
            None => self.check_issued_by_root(&leaf, 0)?,
            Some(intermediate) => {
                match intermediate.subject {
                    Subject::Ca => {}
                    Subject::Party(_) => return Err(BadCertificate::IssuerIsNotCa),
                }
                self.check_intermediate(intermediate)?;
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

    /// Whether a pinned root has certified this CA (DER), or is it.
    pub fn certifies(&self, ca: &[u8]) -> bool {
        self.pinned().iter().any(|root| root.der == ca)
            || Certificate::parse(ca).is_ok_and(|certificate| {
                matches!(certificate.subject, Subject::Ca)
                    && self.check_issued_by_root(&certificate, 1).is_ok()
            })
    }

    /// Which CA issued the leaf of a chain that [`Self::verify`] accepts: the intermediate in it, or a pinned root.
    pub fn issuer_of(&self, chain: &[Vec<u8>]) -> Option<KeyId> {
        let leaf = Certificate::parse(chain.first()?).ok()?;
        let others = chain.iter().skip(1).cloned().chain(self.ders());
        let mut issuers = others.filter(|der| {
            Certificate::parse(der)
                .is_ok_and(|ca| ca.subject_name == leaf.issuer_name && leaf.check_signature(&ca.key).is_ok())
        });
        issuers.next().map(|der| KeyId::of_certificate(&der))
    }

    /// Whether a CA of the fleet made this list: a pinned root, or an intermediate that one certified. Which
    /// intermediates there are is told by `others`, certificates (DER) that need not be trusted.
    ///
    /// # Errors
    /// [`BadCrl::UnknownIssuer`].
    pub fn check_crl(&self, crl: &Crl, others: &[Vec<u8>]) -> Result<(), BadCrl> {
        let by_root = || {
            let roots = self.pinned();
            roots.iter().any(|root| crl.is_made_by(&root.certificate.subject_name, &root.certificate.key))
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
        for root in self.pinned().iter().map(|root| &root.certificate) {
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

fn read(ders: &[Vec<u8>]) -> Result<Vec<Root>, BadCertificate> {
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
    Ok(roots)
}

fn same_fleet(certificate: &Certificate, expected: FleetId) -> Result<(), BadCertificate> {
    if certificate.fleet == expected {
        Ok(())
    } else {
        Err(BadCertificate::OtherFleet { got: certificate.fleet, expected })
    }
}
