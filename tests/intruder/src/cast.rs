//! Who plays: a fleet, its honest parties, and certificates that should open no door.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use fleetkey_identity::{
    FleetCa, FleetRoots, IdentityKey, Revoked, Role, Validity, crl_to_pem, read_certificate,
};
use fleetkey_wire::{CellId, DeviceId, FleetId, Generation, Topic};
use rand_core::OsRng;
use rcgen::{CertificateParams, DistinguishedName, DnType, Issuer, KeyPair, SanType};

/// A chain, leaf first, and the key to it.
#[derive(Clone)]
pub struct Papers {
    /// DER certificates.
    pub chain: Vec<Vec<u8>>,
    /// The key, as PKCS #8 PEM.
    pub key_pem: String,
}

/// A fleet for one run of the script.
pub struct Cast {
    /// The fleet.
    pub fleet: FleetId,
    /// Its authority.
    pub ca: FleetCa,
    /// The intruder: an enrolled device that is not revoked, in [`Cast::cell`] only.
    pub intruder: DeviceId,
    /// A device in both cells, whose messages and session the intruder is after.
    pub victim: DeviceId,
    /// A device that was revoked.
    pub revoked: DeviceId,
    /// The revoked device's papers, so that a CRL can name them.
    pub revoked_papers: Papers,
    /// A cell of the intruder and the victim.
    pub cell: CellId,
    /// A cell of the victim's.
    pub other_cell: CellId,
}

impl Cast {
    /// A new fleet.
    ///
    /// # Errors
    /// When a certificate cannot be made.
    pub fn new() -> Result<Self> {
        let fleet = FleetId::from_bytes([0xf1; 16]);
        let ca = FleetCa::create(fleet, &mut OsRng, valid_now())?;
        let revoked = DeviceId::from_bytes([0xdd; 16]);
        let revoked_papers = issue(&ca, &Role::Device(revoked), valid_now())?;
        Ok(Self {
            fleet,
            ca,
            intruder: DeviceId::from_bytes([0xaa; 16]),
            victim: DeviceId::from_bytes([0xbb; 16]),
            revoked,
            revoked_papers,
            cell: CellId::from_bytes([0xc1; 16]),
            other_cell: CellId::from_bytes([0xc2; 16]),
        })
    }

    /// The pinned roots.
    ///
    /// # Errors
    /// Never, for an authority of ours.
    pub fn roots(&self) -> Result<FleetRoots> {
        Ok(FleetRoots::from_pem(&self.ca.certificate_pem())?)
    }

    /// Good papers for a role.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn papers(&self, role: &Role) -> Result<Papers> {
        issue(&self.ca, role, valid_now())
    }

    /// Papers of the coordinator.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn coordinator(&self) -> Result<Papers> {
        self.papers(&Role::Coordinator { generation: Generation(1) })
    }

    /// A CRL of the fleet's CA, as PEM, that names these. Each list of a fleet has a higher number than the one before.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn crl_pem(&self, number: u64, revoked: &[&Papers]) -> Result<String> {
        let revoked = revoked.iter().map(|papers| {
            let leaf = papers.chain.first().context("a chain")?;
            let unix_seconds = u64::try_from(now_unix_seconds())?;
            Ok(Revoked { serial: read_certificate(leaf)?.serial, unix_seconds })
        });
        let revoked = revoked.collect::<Result<Vec<_>>>()?;
        Ok(crl_to_pem(&self.ca.revocation_list(number, valid_now(), &revoked)?))
    }

    /// Papers that should open no door, by what is wrong with them, and as whom to come with them.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn bad_papers(&self) -> Result<Vec<(&'static str, Papers, String)>> {
        let victim = Role::Device(self.victim);
        let as_victim = self.victim.to_string();
        let stranger = FleetCa::create(self.fleet, &mut OsRng, valid_now())?;
        let other_fleet = FleetCa::create(FleetId::from_bytes([0xf2; 16]), &mut OsRng, valid_now())?;
        let day = 86_400;
        let now = now_unix_seconds();
        let window = |from: i64, to: i64| Validity {
            not_before_unix_seconds: now + from,
            not_after_unix_seconds: now + to,
        };
        Ok(vec![
            (
                "another CA that says it is this fleet's",
                issue(&stranger, &victim, valid_now())?,
                as_victim.clone(),
            ),
            ("the CA of another fleet", issue(&other_fleet, &victim, valid_now())?, as_victim.clone()),
            (
                "a CA with the very name of this fleet's",
                self.look_alike_issuer(&self.victim.to_string())?,
                as_victim.clone(),
            ),
            ("a certificate issued by a device", self.issued_by_device()?, as_victim.clone()),
            (
                "a certificate that has expired",
                issue(&self.ca, &victim, window(-2 * day, -day))?,
                as_victim.clone(),
            ),
            (
                "a certificate that is not yet valid",
                issue(&self.ca, &victim, window(day, 2 * day))?,
                as_victim,
            ),
            ("a revoked device's certificate", self.revoked_papers.clone(), self.revoked.to_string()),
        ])
    }

    /// Roles of the fleet that have no business at a broker.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn idle_roles(&self) -> Result<Vec<(&'static str, Papers)>> {
        Ok(vec![
            ("an operator's certificate", self.papers(&Role::Operator { name: "ada".to_owned() })?),
            ("a broker's certificate", self.papers(&Role::Broker)?),
        ])
    }

    /// `fk/{fleet}/cell/{cell}`.
    pub fn cell_topic(&self, cell: CellId) -> String {
        Topic::Cell { fleet: self.fleet, cell }.to_string()
    }

    /// `fk/{fleet}/dev/{device}/down`.
    pub fn down(&self, device: DeviceId) -> String {
        Topic::Down { fleet: self.fleet, device }.to_string()
    }

    /// `fk/{fleet}/dev/{device}/up`.
    pub fn up(&self, device: DeviceId) -> String {
        Topic::Up { fleet: self.fleet, device }.to_string()
    }

    /// Signed by a key of the intruder's, under the subject name of the fleet's CA.
    fn look_alike_issuer(&self, common_name: &str) -> Result<Papers> {
        let key = key_pair()?;
        // Taken from the real certificate: names, serial, extensions, everything but the key.
        let der = self.ca.certificate_der().into();
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        self.forge(common_name, &issuer, Vec::new())
    }

    /// Signed with a good device certificate, which is sent along as if it were a CA's.
    fn issued_by_device(&self) -> Result<Papers> {
        let device = self.papers(&Role::Device(self.intruder))?;
        let der = device.chain.first().context("a chain")?.as_slice().into();
        let issuer = Issuer::from_ca_cert_der(&der, KeyPair::from_pem(&device.key_pem)?)?;
        self.forge(&self.victim.to_string(), &issuer, device.chain)
    }

    fn forge(&self, common_name: &str, issuer: &Issuer<'_, KeyPair>, rest: Vec<Vec<u8>>) -> Result<Papers> {
        let key = key_pair()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.subject_alt_names.push(SanType::URI(Role::Device(self.victim).uri(self.fleet).try_into()?));
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, issuer)?;
        let chain = std::iter::once(certificate.der().to_vec()).chain(rest).collect();
        Ok(Papers { chain, key_pem: key.serialize_pem() })
    }
}

fn key_pair() -> Result<KeyPair> {
    Ok(KeyPair::generate_for(&rcgen::PKCS_ED25519)?)
}

/// A certificate of `ca` for `role`, on a new key.
fn issue(ca: &FleetCa, role: &Role, validity: Validity) -> Result<Papers> {
    let key = IdentityKey::generate(&mut OsRng);
    let mut hosts = Vec::new();
    if *role == Role::Broker {
        hosts.extend(["127.0.0.1".to_owned(), "localhost".to_owned()]);
    }
    let leaf = ca.issue(role, &key.public_key(), &hosts, validity)?;
    Ok(Papers { chain: ca.chain(leaf), key_pem: key.to_pkcs8_pem().to_string() })
}

fn valid_now() -> Validity {
    Validity::days_from(now_unix_seconds(), 30)
}

fn now_unix_seconds() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    i64::try_from(now).unwrap_or(i64::MAX)
}
