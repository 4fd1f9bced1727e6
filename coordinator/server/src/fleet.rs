//! The identities of a whole fleet, in memory: root, issuing CA, coordinator, broker, and as many devices as are asked for.
//!
//! `fleetkey init` writes them to files; simulations use them as they are.

use fleetkey_coordinator_core::{Setup, Timing};
use fleetkey_identity::{FleetCa, FleetRoots, IdentityKey, IssueError, KeyId, Role, Validity};
use fleetkey_wire::{DeviceId, FleetId, Generation};
use rand_core::CryptoRngCore;

/// The first generation of a coordinator's certificate.
pub const FIRST_GENERATION: Generation = Generation(1);

/// How long certificates of coordinators and brokers are valid.
pub(crate) const SERVER_VALIDITY_DAYS: u32 = 3_650;

/// One party: its key pair and its certificate chain, leaf first.
#[derive(Debug, Clone)]
pub struct Party {
    /// Its key pair.
    pub key: IdentityKey,
    /// Its certificates in DER, leaf first.
    pub chain: Vec<Vec<u8>>,
}

/// A fleet's identities.
#[derive(Debug)]
pub struct Fleet {
    root: FleetCa,
    ca: FleetCa,
    roots: FleetRoots,
    /// The coordinator.
    pub coordinator: Party,
    /// The broker.
    pub broker: Party,
}

impl Fleet {
    /// A new fleet with a root of its own and a CA below it that issues. `broker_names` are the host names and addresses
    /// that the broker is reached by.
    ///
    /// # Errors
    /// A name that no certificate can carry.
    pub fn create(
        id: FleetId,
        broker_names: &[String],
        unix_seconds: u64,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<Self, IssueError> {
        let now = signed(unix_seconds);
        let root = FleetCa::create(id, rng, Validity::without_end(now))?;
        let ca = root.create_intermediate(rng, Validity::without_end(now))?;
        Self::below(root, ca, broker_names, unix_seconds, rng)
    }

    /// A new fleet of this root and this CA, which the root has certified, or which is the root itself.
    ///
    /// # Errors
    /// A name that no certificate can carry, or a key that cannot be used.
    pub fn below(
        root: FleetCa,
        ca: FleetCa,
        broker_names: &[String],
        unix_seconds: u64,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<Self, IssueError> {
        let now = signed(unix_seconds);
        let roots = FleetRoots::new(&[root.certificate_der().to_vec()]).expect("a new root is one");
        let servers = Validity::days_from(now, SERVER_VALIDITY_DAYS);
        let coordinator = issue(&ca, &Role::Coordinator { generation: FIRST_GENERATION }, &[], servers, rng)?;
        let broker = issue(&ca, &Role::Broker, broker_names, servers, rng)?;
        Ok(Self { root, ca, roots, coordinator, broker })
    }

    /// The fleet's id.
    pub fn id(&self) -> FleetId {
        self.ca.fleet()
    }

    /// The CA that issues.
    pub fn ca(&self) -> &FleetCa {
        &self.ca
    }

    /// The root that has certified it.
    pub fn root(&self) -> &FleetCa {
        &self.root
    }

    /// The roots that every party pins.
    pub fn roots(&self) -> &FleetRoots {
        &self.roots
    }

    /// A new device's key pair and certificate.
    pub fn device(&self, id: DeviceId, unix_seconds: u64, rng: &mut dyn CryptoRngCore) -> Party {
        device(&self.ca, id, unix_seconds, rng)
    }

    /// What the coordinator is loaded with.
    pub fn setup(&self, timing: Timing) -> Setup {
        setup(self.id(), &self.coordinator, FIRST_GENERATION, timing)
    }
}

/// A new device's key pair and certificate. The certificate has no end: nobody renews what was installed by hand, and
/// what ends it is revocation.
fn device(ca: &FleetCa, id: DeviceId, unix_seconds: u64, rng: &mut dyn CryptoRngCore) -> Party {
    issue(ca, &Role::Device(id), &[], Validity::without_end(signed(unix_seconds)), rng)
        .expect("a fresh key and no names always make a certificate")
}

pub(crate) fn setup(fleet: FleetId, coordinator: &Party, generation: Generation, timing: Timing) -> Setup {
    let leaf = coordinator.chain.first().expect("a party has a certificate");
    Setup {
        fleet,
        identity: coordinator.key.clone(),
        chain: coordinator.chain.clone(),
        generation,
        key_id: KeyId::of_certificate(leaf),
        timing,
    }
}

fn issue(
    ca: &FleetCa,
    role: &Role,
    names: &[String],
    validity: Validity,
    rng: &mut dyn CryptoRngCore,
) -> Result<Party, IssueError> {
    let key = IdentityKey::generate(rng);
    let certificate = ca.issue(role, &key.public_key(), names, validity)?;
    Ok(Party { key, chain: ca.chain(certificate) })
}

fn signed(unix_seconds: u64) -> i64 {
    i64::try_from(unix_seconds).unwrap_or(i64::MAX)
}
