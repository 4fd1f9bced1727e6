//! What applications do with a group's keys: seal, open, and derive keys of their own.

use std::collections::BTreeMap;

use ed25519_dalek::VerifyingKey;
use fleetkey_identity::{BadCertificate, Role};
use fleetkey_wire::keys::AppKeyLength;
use fleetkey_wire::payload::{self, BadSealed, Opened, Sealer};
use fleetkey_wire::{DeviceId, GroupId, GroupSecret, KeyEpoch, Millis, Named, Now};
use rand_core::CryptoRngCore;
use zeroize::Zeroizing;

use crate::agent::Agent;
use crate::group::GroupKeys;
use crate::silence::Silence;

/// Devices whose keys are remembered for their signatures.
pub const MAX_KNOWN_SENDERS: usize = 4096;

/// The keys of devices that have shown a certificate, since this start.
#[derive(Debug, Default)]
pub(crate) struct KnownSenders(BTreeMap<DeviceId, VerifyingKey>);

/// Why a message was not sealed, or a key not derived.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotSeal {
    /// The device is not in the group.
    #[error("the device is not in group {group}")]
    UnknownGroup {
        /// The group.
        group: GroupId,
    },
    /// The group's key has not arrived yet.
    #[error("key epoch {send} of group {group} is in use, and its secret has not arrived here yet")]
    KeyNotHeld {
        /// The group.
        group: GroupId,
        /// The key epoch to seal with.
        send: KeyEpoch,
    },
    /// The coordinator has been silent for too long: the device may have missed a revocation.
    #[error("the coordinator has been silent for {seconds} s, at most {max} s are allowed")]
    Silent {
        /// For how long.
        seconds: u64,
        /// How long it may be.
        max: u32,
    },
    /// The message is too large.
    #[error(transparent)]
    Payload(#[from] payload::CannotSeal),
}

impl Named for CannotSeal {
    fn name(&self) -> &'static str {
        match self {
            Self::UnknownGroup { .. } => "unknown_group",
            Self::KeyNotHeld { .. } => "key_not_held",
            Self::Silent { .. } => "silent",
            Self::Payload(payload::CannotSeal::TooLarge { .. }) => "too_large",
            Self::Payload(payload::CannotSeal::CounterExhausted) => "counter_exhausted",
        }
    }
}

/// Why a sealed message was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotOpen {
    /// The device is not in the group.
    #[error("the device is not in group {group}")]
    UnknownGroup {
        /// The group.
        group: GroupId,
    },
    /// Sealed under a key epoch that is accepted no more.
    #[error("key epoch {got} of group {group} is accepted no more, the oldest accepted is {oldest}")]
    KeyEpochNotAccepted {
        /// The group.
        group: GroupId,
        /// The key epoch of the message.
        got: KeyEpoch,
        /// The oldest accepted.
        oldest: KeyEpoch,
    },
    /// Sealed under a key epoch whose secret is not here: not yet, or never to be.
    #[error("the secret of key epoch {got} of group {group} is not held here")]
    KeyNotHeld {
        /// The group.
        group: GroupId,
        /// The key epoch of the message.
        got: KeyEpoch,
    },
    /// It does not open, or its signature does not hold.
    #[error(transparent)]
    Sealed(#[from] BadSealed),
}

impl Named for CannotOpen {
    fn name(&self) -> &'static str {
        match self {
            Self::UnknownGroup { .. } => "unknown_group",
            Self::KeyEpochNotAccepted { .. } => "key_epoch_not_accepted",
            Self::KeyNotHeld { .. } => "key_not_held",
            Self::Sealed(bad) => bad.name(),
        }
    }
}

impl Agent {
    /// Seals `plaintext` for the other devices of `group`, bound to the application's `context`, which does not travel.
    /// When `sign` is set, readers that know this device's certificate can tell that it was this device.
    ///
    /// # Errors
    /// [`CannotSeal`], with nothing sealed.
    pub fn seal(
        &mut self,
        group: GroupId,
        plaintext: &[u8],
        context: &[u8],
        sign: bool,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<Vec<u8>, CannotSeal> {
        check_heard(&self.silence, now.mono)?;
        let of = self.groups.get_mut(&group).ok_or(CannotSeal::UnknownGroup { group })?;
        let (send, secret) = sealing(&of.keys)?;
        let signer = sign.then(|| self.identity.signing_key());
        let mut renew = || Sealer::new(of.keys.suite, group, send, secret, self.device, rng);
        if of.sealer.as_ref().is_none_or(|sealer| sealer.key_epoch() != send) {
            of.sealer = Some(renew());
        }
        let sealer = of.sealer.get_or_insert_with(&mut renew);
        match sealer.seal(plaintext, context, signer) {
            Err(payload::CannotSeal::CounterExhausted) => {
                *sealer = renew();
                Ok(sealer.seal(plaintext, context, signer)?)
            }
            sealed @ (Ok(_) | Err(payload::CannotSeal::TooLarge { .. })) => Ok(sealed?),
        }
    }

    /// Opens a message that another device sealed with the same `context`. The sender of a signed one must be known,
    /// see [`Self::know_sender`].
    ///
    /// # Errors
    /// [`CannotOpen`], with nothing learned.
    pub fn open(&self, sealed: &[u8], context: &[u8], now: Now) -> Result<Opened, CannotOpen> {
        let header = payload::peek(sealed)?;
        let group = header.group;
        let keys = &self.groups.get(&group).ok_or(CannotOpen::UnknownGroup { group })?.keys;
        let Some(secret) = keys.accepted(header.key_epoch, now.mono) else {
            let (got, oldest) = (header.key_epoch, keys.oldest());
            return Err(if got < oldest {
                CannotOpen::KeyEpochNotAccepted { group, got, oldest }
            } else {
                CannotOpen::KeyNotHeld { group, got }
            });
        };
        Ok(payload::open(keys.suite, secret, sealed, context, |sender| self.key_of_sender(sender))?)
    }

    /// A key of the application's own, under the key epoch that messages are sealed with, and that key epoch.
    ///
    /// # Errors
    /// [`CannotSeal`], as for sealing.
    pub fn app_key(
        &self,
        group: GroupId,
        label: &str,
        context: &[u8],
        length: AppKeyLength,
        now: Now,
    ) -> Result<(KeyEpoch, Zeroizing<Vec<u8>>), CannotSeal> {
        check_heard(&self.silence, now.mono)?;
        let of = self.groups.get(&group).ok_or(CannotSeal::UnknownGroup { group })?;
        let (send, secret) = sealing(&of.keys)?;
        Ok((send, secret.app_key(label, context, length)))
    }

    /// Remembers the key of a device, for its signatures, from its certificate chain (leaf first, DER). Whether the
    /// device is still enrolled, this does not say.
    ///
    /// # Errors
    /// When no pinned root vouches for the chain, or it is not a device's.
    pub fn know_sender(&mut self, chain: &[Vec<u8>]) -> Result<DeviceId, BadCertificate> {
        let identity = self.roots.verify(chain, None)?;
        let device = match identity.role {
            Role::Device(device) => device,
            Role::Coordinator { .. } | Role::Broker | Role::Registrar | Role::Operator { .. } => {
                return Err(BadCertificate::KeyUsage { needed: "signing as a device" });
            }
        };
        let key = VerifyingKey::from_bytes(&identity.public_key).map_err(|_| BadCertificate::WeakKey)?;
        if self.known_senders.0.len() >= MAX_KNOWN_SENDERS {
            self.known_senders.0.pop_first();
        }
        self.known_senders.0.insert(device, key);
        Ok(device)
    }

    fn key_of_sender(&self, sender: DeviceId) -> Option<VerifyingKey> {
        if sender == self.device {
            return Some(self.identity.signing_key().verifying_key());
        }
        self.known_senders.0.get(&sender).copied()
    }
}

fn check_heard(silence: &Silence, now: Millis) -> Result<(), CannotSeal> {
    if silence.is_too_long(now) {
        let (seconds, max) = (silence.elapsed_ms(now) / 1000, silence.max_silence_seconds());
        return Err(CannotSeal::Silent { seconds, max });
    }
    Ok(())
}

fn sealing(keys: &GroupKeys) -> Result<(KeyEpoch, &GroupSecret), CannotSeal> {
    let (send, secret) = keys.sealing();
    Ok((send, secret.ok_or(CannotSeal::KeyNotHeld { group: keys.group, send })?))
}
