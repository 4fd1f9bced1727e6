//! PEM sections (RFC 7468) in and out.

use ed25519_dalek::pkcs8::spki::der::pem::{self as rfc7468, LineEnding};
use rustls::pki_types::pem::{PemObject, SectionKind};
use zeroize::Zeroizing;

use crate::error::BadPem;

/// Leaf, intermediate, root.
const MAX_CHAIN: usize = 3;

/// Longest PEM text that is read.
pub(crate) const MAX_PEM_BYTES: usize = 256 * 1024;

/// One certificate as a PEM section.
pub(crate) fn encode_certificate(der: &[u8]) -> String {
    rfc7468::encode_string("CERTIFICATE", LineEnding::LF, der).expect("a bounded certificate always encodes")
}

/// A certificate chain as one PEM text, in the order given: leaf first.
pub fn chain_to_pem(chain: &[Vec<u8>]) -> String {
    chain.iter().map(|der| encode_certificate(der)).collect()
}

/// Reads a certificate chain, leaf first; other sections are skipped. Nobody has vouched for it yet.
///
/// # Errors
/// [`BadPem`] when there is no certificate, or more than leaf, intermediate and root.
pub fn chain_from_pem(text: &str) -> Result<Vec<Vec<u8>>, BadPem> {
    certificates(text, MAX_CHAIN)
}

/// Every certificate in `text`, in order; other sections are skipped.
pub(crate) fn certificates(text: &str, limit: usize) -> Result<Vec<Vec<u8>>, BadPem> {
    let what = "certificate";
    let found = sections(text, SectionKind::Certificate)?;
    match found.len() {
        0 => Err(BadPem::Missing { what }),
        n if n > limit => Err(BadPem::TooMany { what, limit }),
        _ => Ok(found.into_iter().map(|mut der| std::mem::take(&mut *der)).collect()),
    }
}

/// The one PKCS #8 private key in `text`; other sections are skipped.
pub(crate) fn private_key(text: &str) -> Result<Zeroizing<Vec<u8>>, BadPem> {
    let what = "private key";
    let mut found = sections(text, SectionKind::PrivateKey)?;
    match (found.pop(), found.len()) {
        (None, _) => Err(BadPem::Missing { what }),
        (Some(der), 0) => Ok(der),
        (Some(_), _) => Err(BadPem::TooMany { what, limit: 1 }),
    }
}

fn sections(text: &str, kind: SectionKind) -> Result<Vec<Zeroizing<Vec<u8>>>, BadPem> {
    if text.len() > MAX_PEM_BYTES {
        return Err(BadPem::TooLarge { bytes: text.len(), limit: MAX_PEM_BYTES });
    }
    let mut found = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes()) {
        let (got, der) = section.map_err(|error| BadPem::Malformed { what: error.to_string() })?;
        let der = Zeroizing::new(der);
        if got == kind {
            found.push(der);
        }
    }
    Ok(found)
}
