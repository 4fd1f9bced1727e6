//! Who everybody is: the fleet, its CA, its coordinator; and clocks.

use fleetkey_coordinator_core::{Setup, Timing};
use fleetkey_identity::{FleetCa, FleetRoots, IdentityKey, Role, Validity};
use fleetkey_wire::{FleetId, Generation, KeyId, Millis, Now};

use crate::dice::Dice;

/// The calendar when a world begins.
pub(crate) const START_UNIX_SECONDS: u64 = 1_800_000_000;
/// A monotonic clock shows this when its process starts.
const BOOT_MILLISECONDS: u64 = 1_000;

/// Who everybody is.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) id: FleetId,
    pub(crate) roots: FleetRoots,
    pub(crate) identity: IdentityKey,
    pub(crate) chain: Vec<Vec<u8>>,
}

impl Fleet {
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Dice::of(seed, "fleet", 0);
        let id = FleetId::random(dice.rng());
        let validity = Validity::without_end(START_UNIX_SECONDS as i64 - 60);
        let ca = FleetCa::create(id, dice.rng(), validity).expect("a root can be made");
        let identity = IdentityKey::generate(dice.rng());
        let role = Role::Coordinator { generation: Generation(1) };
        let leaf = ca
            .issue(&role, &identity.public_key(), &[], validity)
            .expect("a coordinator's certificate can be issued");
        let roots = FleetRoots::new(&[ca.certificate_der().to_vec()]).expect("our own root is one");
        Self { id, roots, identity, chain: vec![leaf] }
    }

    pub(crate) fn setup(&self) -> Setup {
        Setup {
            fleet: self.id,
            identity: self.identity.clone(),
            chain: self.chain.clone(),
            generation: Generation(1),
            key_id: KeyId::of_certificate(&self.chain[0]),
            timing: Timing::default(),
        }
    }
}

/// A party's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Clock {
    booted_at: u64,
    /// How far its calendar is off.
    off_seconds: i64,
}

impl Clock {
    pub(crate) const fn boot(&mut self, time: u64) {
        self.booted_at = time;
    }

    pub(crate) const fn jump(&mut self, seconds: i64) {
        self.off_seconds += seconds;
    }

    pub(crate) const fn set_right(&mut self) {
        self.off_seconds = 0;
    }

    pub(crate) fn now(self, time: u64) -> Now {
        let unix = (START_UNIX_SECONDS + time / 1_000).saturating_add_signed(self.off_seconds);
        Now { mono: Millis(time - self.booted_at + BOOT_MILLISECONDS), unix_seconds: unix }
    }

    /// How long until a monotonic moment, and at least one millisecond.
    pub(crate) fn until(self, at: Millis, time: u64) -> u64 {
        at.since(self.now(time).mono).max(1)
    }
}
