//! PEM sections (RFC 7468) in and out.

use ed25519_dalek::pkcs8::spki::der::pem::{self as rfc7468, LineEnding};
use rustls::pki_types::pem::{PemObject, SectionKind};
use zeroize::Zeroizing;

use crate::error::BadPem;

/// Leaf, intermediate, root.
const MAX_CHAIN: usize = 3;

/// Most certificates that are read among revocation lists.
pub const MAX_CAS_AMONG_CRLS: usize = 64;

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

/// Reads up to 16 certificates that belong to anybody, such as a manufacturer's CAs; other sections are skipped. Nothing
/// is known of them yet.
///
/// # Errors
/// [`BadPem`] when there is none, or more than that.
pub fn certificates_from_pem(text: &str) -> Result<Vec<Vec<u8>>, BadPem> {
    certificates(text, crate::MAX_ROOTS)
}

/// The certificates that stand among the revocation lists in `text`: hints, which nobody has vouched for. None where it
/// cannot be read.
pub fn certificates_among_crls(text: &str) -> Vec<Vec<u8>> {
    let sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes()).filter_map(Result::ok);
    let certificates = sections.filter(|(kind, _)| *kind == SectionKind::Certificate).map(|(_, der)| der);
    certificates.take(MAX_CAS_AMONG_CRLS).collect()
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

/// The one signing request (PKCS #10) in `text`; other sections are skipped.
///
/// # Errors
/// [`BadPem`] when there is none, or more than one.
pub fn request_from_pem(text: &str) -> Result<Vec<u8>, BadPem> {
    let what = "certificate request";
    let mut found = sections(text, SectionKind::Csr)?;
    match (found.pop(), found.is_empty()) {
        (Some(mut der), true) => Ok(std::mem::take(&mut *der)),
        (Some(_), false) => Err(BadPem::TooMany { what, limit: 1 }),
        (None, _) => Err(BadPem::Missing { what }),
    }
}

/// Every certificate revocation list in `text`; other sections are skipped.
pub(crate) fn crls(text: &str) -> Option<Vec<Vec<u8>>> {
    let sections =
        <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>().ok()?;
    let lists = sections.into_iter().filter(|(kind, _)| *kind == SectionKind::Crl).map(|(_, der)| der);
    Some(lists.collect())
}

/// A certificate revocation list as a PEM section.
pub(crate) fn encode_crl(der: &[u8]) -> String {
    rfc7468::encode_string("X509 CRL", LineEnding::LF, der).expect("a bounded list always encodes")
}

/// What an encrypted private key begins and ends with (RFC 7468 §11).
const ENCRYPTED_PRIVATE_KEY: [&str; 2] =
    ["-----BEGIN ENCRYPTED PRIVATE KEY-----", "-----END ENCRYPTED PRIVATE KEY-----"];

/// The one encrypted PKCS #8 private key in `text`; other sections are skipped.
pub(crate) fn encrypted_private_key(text: &str) -> Result<Vec<u8>, BadPem> {
    if text.len() > MAX_PEM_BYTES {
        return Err(BadPem::TooLarge { bytes: text.len(), limit: MAX_PEM_BYTES });
    }
    let what = "encrypted private key";
    let [begin, end] = ENCRYPTED_PRIVATE_KEY;
    let (_, from) = text.split_once(begin).ok_or(BadPem::Missing { what })?;
    let (body, rest) = from.split_once(end).ok_or(BadPem::Malformed { what: "no end of the key".into() })?;
    if rest.contains(begin) {
        return Err(BadPem::TooMany { what, limit: 1 });
    }
    let section = format!("{begin}{body}{end}\n");
    let (_, der) = rfc7468::decode_vec(section.as_bytes())
        .map_err(|error| BadPem::Malformed { what: error.to_string() })?;
    Ok(der)
}

/// The one PKCS #8 private key in `text`; other sections are skipped.
pub(crate) fn private_key(text: &str) -> Result<Zeroizing<Vec<u8>>, BadPem> {
    let what = "private key";
    let mut found = sections(text, SectionKind::PrivateKey)?;
    match (found.pop(), found.len()) {
        (None, _) if text.contains(ENCRYPTED_PRIVATE_KEY[0]) => Err(BadPem::NeedsPassphrase),
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
