//! The certificates that devices hold, and the revocation list that follows from the registry.
//!
//! The list is a function of what is stored: whoever is revoked is on it, in the transaction that revoked it. Leaves
//! signing and publishing to whoever has the CA.

use std::collections::BTreeMap;

use fleetkey_wire::statement::KeyId;
use fleetkey_wire::{DeviceId, Now};

use crate::coordinator::Coordinator;
use crate::device::Device;
use crate::error::CommandError;
use crate::records::{CertificateRecord, Standing};
use crate::traces;

/// Certificates of one device that are remembered: more, that have not expired, are refused.
pub const MAX_CERTIFICATES: usize = 32;

/// A certificate that is about to be handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCertificate {
    /// Whose it is.
    pub device: DeviceId,
    /// The key that it names, which must be the device's.
    pub public_key: [u8; 32],
    /// Its serial number.
    pub serial: Vec<u8>,
    /// The CA's certificate that issued it.
    pub issuer: KeyId,
    /// Its last second.
    pub not_after_unix_seconds: u64,
}

/// What a CA's next revocation list says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationList {
    /// Its number, higher than that of any list before.
    pub number: u64,
    /// Serial numbers, and since when they do not count.
    pub revoked: Vec<(Vec<u8>, u64)>,
}

impl Coordinator {
    /// Takes note of a certificate before anybody gets it.
    ///
    /// # Errors
    /// When the device is not enrolled, is revoked, has another key, or has too many certificates already.
    pub fn record_certificate(&mut self, new: NewCertificate, now: Now) -> Result<(), CommandError> {
        self.check_issuing()?;
        let NewCertificate { device: id, public_key, serial, issuer, not_after_unix_seconds } = new;
        let device = self.devices.get_mut(&id).ok_or(CommandError::UnknownDevice(id))?;
        if device.is_revoked() {
            return Err(CommandError::Revoked(id));
        }
        if device.record.public_key != public_key {
            return Err(CommandError::OtherKey(id));
        }
        if device.certificates.iter().any(|known| known.serial == serial && known.issuer == issuer.0) {
            return Ok(());
        }
        if device.certificates.len() >= MAX_CERTIFICATES {
            // Not before there has to be room: a clock that is ahead would have what still counts forgotten.
            let (expired, live): (Vec<_>, Vec<_>) = std::mem::take(&mut device.certificates)
                .into_iter()
                .partition(|known| known.not_after_unix_seconds < now.unix_seconds);
            device.certificates = live;
            for certificate in expired {
                self.context.delete(&certificate);
            }
        }
        if device.certificates.len() >= MAX_CERTIFICATES {
            return Err(CommandError::TooManyCertificates(id));
        }
        let record = CertificateRecord { device: id, serial, issuer: issuer.0, not_after_unix_seconds };
        self.context.put(&record);
        self.context.audit(now, traces::CERTIFICATE, id, traces::of_certificate(&record));
        device.certificates.push(record);
        Ok(())
    }

    /// The next revocation list of the CA with this certificate. Its number is stored with it.
    ///
    /// # Errors
    /// [`CommandError::Superseded`]: what a copy does not know of must not be taken for valid.
    pub fn next_revocation_list(&mut self, issuer: KeyId, now: Now) -> Result<RevocationList, CommandError> {
        self.check_issuing()?;
        let number = (self.context.meta.crl_number + 1).max(now.unix_seconds);
        self.context.meta.crl_number = number;
        self.context.put(&self.context.meta.clone());
        let mut revoked = Vec::new();
        for device in self.devices.values() {
            let Standing::Revoked { unix_seconds, .. } = device.record.standing else { continue };
            let listed = device.certificates.iter().filter(|certificate| {
                certificate.issuer == issuer.0 && certificate.not_after_unix_seconds >= now.unix_seconds
            });
            revoked.extend(listed.map(|certificate| (certificate.serial.clone(), unix_seconds)));
        }
        Ok(RevocationList { number, revoked })
    }

    /// The last revocation list of a CA: every certificate that it issued and that has not expired, whoever holds it.
    ///
    /// # Errors
    /// [`CommandError::Superseded`].
    pub fn last_revocation_list(&mut self, issuer: KeyId, now: Now) -> Result<RevocationList, CommandError> {
        let mut list = self.next_revocation_list(issuer, now)?;
        let since: BTreeMap<Vec<u8>, u64> = list.revoked.into_iter().collect();
        let named = self.serials_of(issuer, now).map(|serial| {
            let at = since.get(serial).copied().unwrap_or(now.unix_seconds);
            (serial.to_vec(), at)
        });
        list.revoked = named.collect();
        let detail = format!("its last list names {} certificates", list.revoked.len());
        self.context.audit(now, "retire_ca", issuer, detail);
        Ok(list)
    }

    /// The serial number of every certificate that a CA issued and that has not expired: what its last list would name.
    pub fn serials_of(&self, issuer: KeyId, now: Now) -> impl Iterator<Item = &[u8]> {
        let all = self.devices.values().flat_map(|device| &device.certificates);
        let live = all.filter(move |certificate| {
            certificate.issuer == issuer.0 && certificate.not_after_unix_seconds >= now.unix_seconds
        });
        live.map(|certificate| certificate.serial.as_slice())
    }

    /// When the last certificate of a CA ends (Unix seconds), of those that are known; 0 where none is.
    pub fn last_end_of(&self, issuer: KeyId) -> u64 {
        let all = self.devices.values().flat_map(|device| &device.certificates);
        let own = all.filter(|certificate| certificate.issuer == issuer.0);
        own.map(|certificate| certificate.not_after_unix_seconds).max().unwrap_or(0)
    }

    /// Enters into the audit log that a root is pinned no more.
    ///
    /// # Errors
    /// [`CommandError::Superseded`].
    pub fn note_root_retired(&mut self, root: KeyId, now: Now) -> Result<(), CommandError> {
        self.check_issuing()?;
        self.context.audit(now, "retire_root", root, "");
        Ok(())
    }

    /// Devices that may still come in and have no certificate of `current` yet, but one of `former` that has not expired:
    /// those that are cut off when `former` is retired. Without `former`, whatever they have.
    pub fn devices_left_with(
        &self,
        former: Option<KeyId>,
        current: KeyId,
        now: Now,
    ) -> impl Iterator<Item = DeviceId> {
        let holds = move |device: &Device, issuer: KeyId| {
            device.certificates.iter().any(|certificate| {
                certificate.issuer == issuer.0 && certificate.not_after_unix_seconds >= now.unix_seconds
            })
        };
        let left = self.devices.iter().filter(move |(_, device)| {
            let has_former = former.is_none_or(|former| holds(device, former));
            !device.is_revoked() && has_former && !holds(device, current)
        });
        left.map(|(id, _)| *id)
    }

    /// The certificates of a device that have not expired, as far as they are known.
    pub fn certificates(&self, device: DeviceId) -> impl Iterator<Item = &CertificateRecord> {
        self.devices.get(&device).into_iter().flat_map(|device| &device.certificates)
    }
}
