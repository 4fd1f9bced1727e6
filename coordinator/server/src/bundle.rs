//! A device's bundle: the directory that `fleetkey-agent` is started with.

use std::path::{Path, PathBuf};

use fleetkey_vault::MasterKey;
use rand_core::OsRng;

use crate::api::Bundle;
use fleetkey_vault::files::{FileError, NewDirectory};

/// Writes `bundle` to a new directory, with a master key of the device's own that never travelled. Answers the
/// path of the agent's settings.
///
/// # Errors
/// When the directory has something in it already, or cannot be written; nothing is left behind.
pub fn write_bundle(directory: &Path, bundle: &Bundle) -> Result<PathBuf, FileError> {
    let new = NewDirectory::begin(directory)?;
    new.write("device.crt", &bundle.certificate)?;
    new.write("device.key", &bundle.private_key)?;
    new.write("fleet-roots.pem", &bundle.fleet_roots)?;
    new.write("coordinator.crt", &bundle.coordinator_certificate)?;
    new.write("master.key", &MasterKey::generate(&mut OsRng).to_hex())?;
    new.write("agent.toml", &agent_toml(bundle))?;
    new.complete()?;
    Ok(directory.join("agent.toml"))
}

/// Whether [`write_bundle`] could write there: asked before an identity is made that would be lost.
///
/// # Errors
/// As [`write_bundle`].
pub fn check_bundle_directory(directory: &Path) -> Result<(), FileError> {
    NewDirectory::begin(directory).map(drop)
}

fn agent_toml(bundle: &Bundle) -> String {
    let Bundle { fleet, device, name, broker, .. } = bundle;
    format!(
        r#"# Device {name:?}. Start it with: fleetkey-agent --config THIS-FILE
# Paths are relative to this file.

fleet = "{fleet}"
device = "{device}"
broker = "{broker}"

certificate = "device.crt"
key = "device.key"
roots = "fleet-roots.pem"
coordinator = "coordinator.crt"
# Opens the secrets in the state.
master_key = "master.key"

state = "state.db"
socket = "agent.sock"
"#
    )
}
