//! A coordinator on a store in memory, and those who come to its desk.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "every test file uses a part of it")]

use fleetkey_coordinator_core::enrolment::{
    Application, ClaimTerms, EnrolRefused, Enrolment, Proof, ShownClaim, Verdict,
};
use fleetkey_coordinator_core::{
    Coordinator, GroupStatus, Labels, MemoryStore, Policy, Setup, Store as _, Timing,
};
use fleetkey_identity::{FleetCa, IdentityKey, KeyId, Role, Validity};
use fleetkey_wire::{DeviceId, FleetId, Generation, GroupId, Millis, Now};
use rand_core::OsRng;

pub const START: u64 = 1_800_000_000;
pub const DAY: u64 = 86_400;

pub struct Desk {
    pub setup: Setup,
    pub store: MemoryStore,
    pub coordinator: Coordinator,
    pub now: Now,
}

impl Desk {
    pub fn new() -> Self {
        let fleet = FleetId::random(&mut OsRng);
        let validity = Validity::without_end(START as i64);
        let ca = FleetCa::create(fleet, &mut OsRng, validity).unwrap();
        let identity = IdentityKey::generate(&mut OsRng);
        let role = Role::Coordinator { generation: Generation(1) };
        let leaf = ca.issue(&role, &identity.public_key(), &[], validity).unwrap();
        let setup = Setup {
            fleet,
            identity,
            key_id: KeyId::of_certificate(&leaf),
            chain: vec![leaf],
            generation: Generation(1),
            timing: Timing::default(),
        };
        let mut store = MemoryStore::default();
        store.commit(&Coordinator::initial_rows(START)).unwrap();
        let now = Now { mono: Millis(1_000), unix_seconds: START };
        let coordinator = Coordinator::load(setup.clone(), &mut store, now, &mut OsRng).unwrap();
        Self { setup, store, coordinator, now }
    }

    pub fn commit(&mut self) {
        let effects = self.coordinator.take_effects().unwrap();
        self.store.commit(&effects.writes).unwrap();
    }

    /// Forgets everything that is not stored.
    pub fn reload(&mut self) {
        self.coordinator =
            Coordinator::load(self.setup.clone(), &mut self.store, self.now, &mut OsRng).unwrap();
    }

    pub fn later(&mut self, seconds: u64) {
        self.now =
            Now { mono: self.now.mono.plus(seconds * 1_000), unix_seconds: self.now.unix_seconds + seconds };
    }

    pub fn claim(&mut self, uses: u32, needs_approval: bool, labels: &str) -> ShownClaim {
        let terms = ClaimTerms {
            note: "hall 3".into(),
            uses,
            expires_unix_seconds: START + DAY,
            labels: labels.parse().unwrap(),
            needs_approval,
        };
        let shown = self.coordinator.create_claim(terms, self.now, &mut OsRng).unwrap();
        self.commit();
        shown
    }

    pub fn apply(&mut self, application: &Application) -> Result<Enrolment, EnrolRefused> {
        let outcome = self.coordinator.enrol(application, self.now, &mut OsRng);
        self.commit();
        self.reload();
        outcome
    }

    pub fn group(&mut self, name: &str, selector: &str) -> GroupId {
        let group = self.coordinator.create_group(name, Policy::default(), self.now, &mut OsRng).unwrap();
        let selector: Labels = selector.parse().unwrap();
        self.coordinator.select_members(group, Some(selector), self.now, &mut OsRng).unwrap();
        self.commit();
        group
    }

    pub fn members(&self, group: GroupId) -> Vec<DeviceId> {
        self.coordinator.members(group).map(|member| member.device).collect()
    }

    pub fn revoke(&mut self, device: DeviceId) {
        self.coordinator.revoke(&[device], "stolen", self.now, &mut OsRng).unwrap();
        self.commit();
    }

    pub fn status(&self, group: GroupId) -> GroupStatus {
        self.coordinator.group_status(group, self.now).unwrap()
    }

    pub fn create_group(&mut self, name: &str) -> GroupId {
        self.coordinator.create_group(name, Policy::default(), self.now, &mut OsRng).unwrap()
    }

    pub fn enrol_by_hand(&mut self, name: &str) -> DeviceId {
        let id = DeviceId::random(&mut OsRng);
        self.coordinator.enroll_device(id, name, key(), self.now).unwrap();
        id
    }
}

pub fn key() -> [u8; 32] {
    IdentityKey::generate(&mut OsRng).public_key()
}

pub fn by_claim(claim: &ShownClaim, public_key: [u8; 32]) -> Application {
    Application {
        public_key,
        name: None,
        proof: Proof::Claim(claim.clone()),
        verdict: Verdict::Approve,
        labels: Labels::default(),
    }
}
