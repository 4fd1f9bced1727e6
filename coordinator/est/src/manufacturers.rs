//! Identities that devices leave the factory with: whose certificates are trusted, and which device of the fleet each
//! stands for.

use std::fmt;
use std::sync::Arc;

use fleetkey_identity::tls::provider;
use fleetkey_wire::{DeviceId, FleetId};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::OID_X509_SERIALNUMBER;
use x509_parser::prelude::FromDer;

/// Longest name that a certificate is mapped by, in bytes.
const MAX_NAME_BYTES: usize = 128;

/// Which name of a certificate tells devices apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdFrom {
    /// The subject's serial number (X.520), as in IEEE 802.1AR.
    #[default]
    SerialNumber,
    /// The subject's common name.
    CommonName,
    /// A URI among the subject's alternative names: `urn:uuid:…`.
    Uri,
}

/// One manufacturer.
#[derive(Clone)]
pub struct Manufacturer {
    name: String,
    id_from: IdFrom,
    verifier: Arc<dyn ClientCertVerifier>,
}

/// A manufacturer that cannot be trusted like this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("manufacturer {name}: {why}")]
pub struct BadManufacturer {
    /// Its name.
    pub name: String,
    /// What is wrong with its certificates.
    pub why: String,
}

/// What a certificate stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    /// The manufacturer's name.
    pub manufacturer: String,
    /// What the manufacturer calls the device.
    pub name: String,
    /// Which device of the fleet that is: always the same for the same name.
    pub device: DeviceId,
}

impl Manufacturer {
    /// Trusts whatever these CAs (DER) vouch for.
    ///
    /// # Errors
    /// [`BadManufacturer`]: no CA, or one that cannot be read.
    pub fn new(name: &str, roots: &[Vec<u8>], id_from: IdFrom) -> Result<Self, BadManufacturer> {
        let bad = |why: String| BadManufacturer { name: name.to_owned(), why };
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(CertificateDer::from(root.clone())).map_err(|error| bad(error.to_string()))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider())
            .build()
            .map_err(|error| bad(error.to_string()))?;
        Ok(Self { name: name.to_owned(), id_from, verifier })
    }

    fn name_in(&self, leaf: &[u8]) -> Option<String> {
        let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
        let name = match self.id_from {
            IdFrom::SerialNumber => {
                let mut numbers = certificate.subject().iter_by_oid(&OID_X509_SERIALNUMBER);
                numbers.next()?.as_str().ok()?.to_owned()
            }
            IdFrom::CommonName => certificate.subject().iter_common_name().next()?.as_str().ok()?.to_owned(),
            IdFrom::Uri => {
                let names = certificate.subject_alternative_name().ok()??.value;
                let uris = names.general_names.iter().filter_map(|name| match name {
                    GeneralName::URI(uri) => uri.strip_prefix("urn:uuid:"),
                    GeneralName::OtherName(..)
                    | GeneralName::RFC822Name(_)
                    | GeneralName::DNSName(_)
                    | GeneralName::X400Address(_)
                    | GeneralName::DirectoryName(_)
                    | GeneralName::EDIPartyName(_)
                    | GeneralName::IPAddress(_)
                    | GeneralName::RegisteredID(_)
                    | GeneralName::Invalid(..) => None,
                });
                uris.into_iter().next()?.to_owned()
            }
        };
        let fits = (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.chars().any(char::is_control);
        fits.then_some(name)
    }
}

impl fmt::Debug for Manufacturer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manufacturer").field("name", &self.name).field("id_from", &self.id_from).finish()
    }
}

/// All that are trusted. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Manufacturers {
    fleet: FleetId,
    all: Arc<Vec<Manufacturer>>,
}

impl Manufacturers {
    /// These, for devices of `fleet`.
    pub fn new(fleet: FleetId, all: Vec<Manufacturer>) -> Self {
        Self { fleet, all: Arc::new(all) }
    }

    /// The one that vouches for this chain (leaf first), and what that stands for.
    pub(crate) fn vouch(&self, leaf: &[u8], rest: &[Vec<u8>], now: UnixTime) -> Option<&Manufacturer> {
        let leaf = CertificateDer::from(leaf);
        let rest: Vec<_> = rest.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        self.all
            .iter()
            .find(|manufacturer| manufacturer.verifier.verify_client_cert(&leaf, &rest, now).is_ok())
    }

    /// Which device of the fleet a chain (leaf first) stands for, if a manufacturer vouches for it and its name can be
    /// read.
    pub(crate) fn map(&self, chain: &[Vec<u8>], now: UnixTime) -> Option<Mapped> {
        let (leaf, rest) = chain.split_first()?;
        let manufacturer = self.vouch(leaf, rest, now)?;
        let name = manufacturer.name_in(leaf)?;
        let device = device_id(self.fleet, &manufacturer.name, &name);
        Some(Mapped { manufacturer: manufacturer.name.clone(), name, device })
    }
}

/// A UUID of our own making (RFC 9562 §5.8) out of fleet, manufacturer and name.
fn device_id(fleet: FleetId, manufacturer: &str, name: &str) -> DeviceId {
    let mut hash = Sha256::new_with_prefix(b"fleetkey manufacturer device\0");
    hash.update(fleet.as_bytes());
    for part in [manufacturer, name] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let mut id: [u8; 16] = hash.finalize()[..16].try_into().expect("a digest has 32 bytes");
    id[6] = (id[6] & 0x0f) | 0x80;
    id[8] = (id[8] & 0x3f) | 0x80;
    DeviceId::from_bytes(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_depends_on_every_part_and_is_always_the_same() {
        let fleet = FleetId::from_bytes([1; 16]);
        let id = device_id(fleet, "acme", "4711");
        assert_eq!(id.to_string(), device_id(fleet, "acme", "4711").to_string());
        let others = [
            device_id(FleetId::from_bytes([2; 16]), "acme", "4711"),
            device_id(fleet, "acm", "e4711"),
            device_id(fleet, "acme", "4712"),
        ];
        assert!(others.iter().all(|other| *other != id));
    }

    #[test]
    fn a_manufacturer_without_a_ca_is_refused() {
        let refused = Manufacturer::new("acme", &[], IdFrom::CommonName).unwrap_err();
        assert_eq!(refused.name, "acme");
        assert!(Manufacturer::new("acme", &[vec![0x30, 0]], IdFrom::CommonName).is_err());
    }
}
