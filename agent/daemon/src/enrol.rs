//! A device's first certificate: the key is made here and never leaves, the certificate comes over EST.
//!
//! What has to survive is written first: a device that lost its answer, or its power, asks again with the same key and
//! gets the same identity. A directory is complete when it holds `agent.toml`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fleetkey_identity::tls::enrolment_client_config;
use fleetkey_identity::{
    BadCertificate, BadPem, FleetRoots, IdentityKey, Role, chain_to_pem, signing_request,
};
use fleetkey_vault::MasterKey;
use fleetkey_vault::files::{self, FileError, write_private};
use fleetkey_wire::{DeviceId, FleetId};
use rand_core::OsRng;
use zeroize::Zeroizing;

use crate::est::{About, Answer, Est, EstError, EstUrl};

/// What a device is enrolled with.
pub struct Enrolment {
    /// The EST server.
    pub est: EstUrl,
    /// What it must be vouched for by, PEM: brought here by hand, as all else rests on it.
    pub roots: String,
    /// A claim, `id:secret`.
    pub claim: Option<Zeroizing<String>>,
    /// The manufacturer's certificate chain, PEM, and its Ed25519 key, PEM.
    pub manufacturer: Option<(String, Zeroizing<String>)>,
    /// What the device would like to be called.
    pub name: String,
    /// The directory that is made.
    pub directory: PathBuf,
}

/// A device that is enrolled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    /// Its fleet.
    pub fleet: FleetId,
    /// Its id.
    pub device: DeviceId,
    /// What the agent is started with.
    pub config: PathBuf,
}

/// Why a device is not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// It is already.
    #[error("{} holds a device already", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The directory.
    #[error("make directory {}: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's word on it.
        source: std::io::Error,
    },
    /// Certificates or keys that are none.
    #[error("{what}: {why}")]
    Pem {
        /// Which.
        what: &'static str,
        /// What is wrong with them.
        why: BadPem,
    },
    /// TLS cannot be set up.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The registrar.
    #[error(transparent)]
    Est(#[from] EstError),
    /// The certificate that came is not good for this device.
    #[error("the certificate that came: {0}")]
    Certificate(#[from] BadCertificate),
    /// The certificate that came is somebody else's.
    #[error("the certificate that came is of {got}, not of a device with this key")]
    OfAnother {
        /// Whose it is.
        got: String,
    },
}

/// Enrols a device. `waits` hears each time that it has to ask again, and for how long it waits until then.
///
/// # Errors
/// [`EnrolError`]; what is in the directory by then lets the device ask again with the same key.
pub async fn enrol(enrolment: &Enrolment, waits: impl Fn(Duration)) -> Result<Enrolled, EnrolError> {
    let directory = &enrolment.directory;
    let config = directory.join("agent.toml");
    if config.exists() {
        return Err(EnrolError::Exists { path: directory.clone() });
    }
    let roots =
        FleetRoots::from_pem(&enrolment.roots).map_err(|why| EnrolError::Pem { what: "roots", why })?;
    make_directory(directory)?;
    let key = own_key(&directory.join("device.key"))?;
    if !directory.join("master.key").exists() {
        let master = MasterKey::generate(&mut OsRng);
        write_private(&directory.join("master.key"), master.to_hex().as_bytes(), false)?;
    }
    let shown = match &enrolment.manufacturer {
        Some((chain, key)) => {
            let pem = |why| EnrolError::Pem { what: "the manufacturer's certificate and key", why };
            let chain = fleetkey_identity::certificates_from_pem(chain).map_err(pem)?;
            Some((chain, IdentityKey::from_pkcs8_pem(key).map_err(pem)?))
        }
        None => None,
    };
    let tls = enrolment_client_config(shown.as_ref().map(|(chain, key)| (chain.as_slice(), key)), &roots)?;
    let est = Est::new(enrolment.est.clone(), tls);
    let request = signing_request(&key, &enrolment.name);
    let chain = loop {
        match est.enrol(&request, enrolment.claim.as_ref().map(|claim| claim.as_str())).await? {
            Answer::Issued(chain) => break chain,
            Answer::AskAgain(wait) => {
                waits(wait);
                tokio::time::sleep(wait).await;
            }
        }
    };
    let device = check(&roots, &chain, &key)?;
    let about = est.about().await?;
    check_about(&roots, &about)?;
    complete(enrolment, &roots, &chain, &about, device)?;
    Ok(Enrolled { fleet: roots.fleet(), device, config })
}

/// Whose certificate this is, if it is a device's with this key, and the fleet vouches for it.
pub(crate) fn check(
    roots: &FleetRoots,
    chain: &[Vec<u8>],
    key: &IdentityKey,
) -> Result<DeviceId, EnrolError> {
    // A device's clock may be anywhere.
    let identity = roots.verify(chain, None)?;
    match identity.role {
        Role::Device(device) if identity.public_key == key.public_key() => Ok(device),
        role @ (Role::Device(_)
        | Role::Coordinator { .. }
        | Role::Broker
        | Role::Registrar
        | Role::Operator { .. }) => Err(EnrolError::OfAnother { got: role.to_string() }),
    }
}

/// The key of this directory: the one that an earlier attempt has left, or a new one.
fn own_key(path: &Path) -> Result<IdentityKey, EnrolError> {
    if path.exists() {
        let text = files::read_secret(path)?;
        return IdentityKey::from_pkcs8_pem(&text).map_err(|why| EnrolError::Pem { what: "device.key", why });
    }
    let key = IdentityKey::generate(&mut OsRng);
    write_private(path, key.to_pkcs8_pem().as_bytes(), false)?;
    Ok(key)
}

fn make_directory(path: &Path) -> Result<(), EnrolError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(|source| EnrolError::Directory { path: path.to_owned(), source })?;
    Ok(files::sync_directory(path)?)
}

/// Whether the agent could be started with this: a directory that says it is complete must be.
fn check_about(roots: &FleetRoots, about: &About) -> Result<(), EnrolError> {
    let pem = |why| EnrolError::Pem { what: "the coordinator's certificate", why };
    let chain = fleetkey_identity::chain_from_pem(&about.coordinator_certificate).map_err(pem)?;
    match roots.verify(&chain, None)?.role {
        Role::Coordinator { .. } => Ok(()),
        role @ (Role::Device(_) | Role::Broker | Role::Registrar | Role::Operator { .. }) => {
            Err(EnrolError::OfAnother { got: role.to_string() })
        }
    }
}

/// Writes everything that an agent is started with; its settings come last.
fn complete(
    enrolment: &Enrolment,
    roots: &FleetRoots,
    chain: &[Vec<u8>],
    about: &About,
    device: DeviceId,
) -> Result<(), EnrolError> {
    let put = |name: &str, contents: &str| {
        write_private(&enrolment.directory.join(name), contents.as_bytes(), true)
    };
    put("device.crt", &chain_to_pem(chain))?;
    put("fleet-roots.pem", &roots.to_pem())?;
    put("coordinator.crt", &about.coordinator_certificate)?;
    let (fleet, broker, est) = (roots.fleet(), &about.broker, &enrolment.est);
    put(
        "agent.toml",
        &format!(
            r#"# Start it with: fleetkey-agent --config THIS-FILE
# Paths are relative to this file.

fleet = "{fleet}"
device = "{device}"
broker = {broker:?}
# Where the certificate is renewed.
est = "{est}"

certificate = "device.crt"
key = "device.key"
roots = "fleet-roots.pem"
coordinator = "coordinator.crt"
# Opens the secrets in the state.
master_key = "master.key"

state = "state.db"
socket = "agent.sock"
"#
        ),
    )?;
    Ok(())
}
