//! Provisioning: new device identities, certified by the fleet's CA.
//!
//! Leaves enrolment to the coordinator, and files to whoever asked.

use fleetkey_identity::{FleetCa, FleetRoots, chain_to_pem};
use fleetkey_wire::DeviceId;
use rand_core::OsRng;

use crate::api::Bundle;
use crate::clock;
use crate::engine::CommandFailed;
use crate::fleet::{self, Party};
use crate::handle::ServiceHandle;

/// Makes devices.
#[derive(Debug)]
pub struct Authority {
    ca: FleetCa,
    roots: FleetRoots,
    coordinator: Vec<Vec<u8>>,
    broker: String,
}

impl Authority {
    /// An authority that issues from `ca`. Devices are told to pin `roots`, to know the coordinator by its
    /// certificate chain, and to find their broker at `broker`.
    pub fn new(ca: FleetCa, roots: FleetRoots, coordinator: Vec<Vec<u8>>, broker: String) -> Self {
        Self { ca, roots, coordinator, broker }
    }

    /// Makes a key pair and a certificate, and enrols the device.
    ///
    /// # Errors
    /// [`CommandFailed`]; the identity is then forgotten.
    pub async fn provision(&self, service: &ServiceHandle, name: &str) -> Result<Bundle, CommandFailed> {
        let id = DeviceId::random(&mut OsRng);
        let Party { key, chain } = fleet::device(&self.ca, id, clock::unix_seconds(), &mut OsRng);
        service.enroll_device(id, name, key.public_key()).await?;
        Ok(Bundle {
            fleet: self.ca.fleet(),
            device: id,
            name: name.to_owned(),
            broker: self.broker.clone(),
            certificate: chain_to_pem(&chain),
            private_key: key.to_pkcs8_pem().to_string(),
            fleet_roots: self.roots.to_pem(),
            coordinator_certificate: chain_to_pem(&self.coordinator),
        })
    }
}
