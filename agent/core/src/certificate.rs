//! The coordinator, as a device knows it: one certificate, of the highest generation seen.
//!
//! All coordinators of a fleet share one key, so a new certificate changes the key id and nothing else. Validity is
//! not judged: a device's clock may be anywhere, and a certificate that is out is replaced by a higher generation.

use ed25519_dalek::VerifyingKey;
use fleetkey_identity::{FleetRoots, Role};
use fleetkey_wire::{Generation, KeyId};

use crate::refused::Refused;
use crate::stored::{Bytes, StoredCertificate};

/// A coordinator certificate that a pinned root vouches for.
#[derive(Debug, Clone)]
pub(crate) struct CoordinatorCertificate {
    chain: Vec<Vec<u8>>,
    pub(crate) generation: Generation,
    key_id: KeyId,
    key: VerifyingKey,
}

impl CoordinatorCertificate {
    /// The leaf of `chain`, if it is a coordinator's.
    pub(crate) fn verify(chain: &[Vec<u8>], roots: &FleetRoots) -> Result<Self, Refused> {
        let identity = roots.verify(chain, None)?;
        let generation = match identity.role {
            Role::Coordinator { generation } => generation,
            role @ (Role::Broker | Role::Registrar | Role::Operator { .. } | Role::Device(_)) => {
                return Err(Refused::NotTheCoordinatorsCertificate { role: role.to_string() });
            }
        };
        let key = VerifyingKey::from_bytes(&identity.public_key)
            .expect("a certificate's key was found to be a point of the curve");
        Ok(Self { chain: chain.to_vec(), generation, key_id: identity.key_id, key })
    }

    /// Whether `newer` may take this one's place. `None` when it is this one.
    pub(crate) fn replaced_by(&self, newer: Self) -> Result<Option<Self>, Refused> {
        if newer.generation < self.generation {
            return Err(Refused::LowerGeneration { got: newer.generation, seen: self.generation });
        }
        if newer.key != self.key {
            return Err(Refused::CoordinatorKeyChanged { got: newer.generation });
        }
        Ok((newer.key_id != self.key_id).then_some(newer))
    }

    /// The key that statements are signed with, under whichever of the coordinator's certificates: there is one for ever,
    /// and a statement from before a renewal must still be heard by who knows the renewed certificate.
    pub(crate) const fn statement_key(&self) -> VerifyingKey {
        self.key
    }

    /// The coordinator's public key.
    pub(crate) fn public_key(&self) -> [u8; 32] {
        self.key.to_bytes()
    }

    pub(crate) fn to_stored(&self) -> StoredCertificate {
        StoredCertificate { chain: self.chain.iter().map(|der| Bytes::of(der)).collect() }
    }
}
