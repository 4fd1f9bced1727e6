//! A cell with everybody in it: the coordinator, devices, and clients that keep no rules.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use std::collections::BTreeMap;

use fleetkey_mls::{
    AddDevice, CellContext, Changes, CommitOutcome, Committed, LeafSigner, ManagedCell, MemberCell, MlsError,
    PrivateKeyPackage, Processed, Refused, make_key_package,
};
use fleetkey_wire::{CellId, DeviceId, FleetId, GroupId, Psk, Suite};
use rand_core::{OsRng, RngCore};

#[path = "../../src/crypto.rs"]
mod crypto;
pub mod forge;
pub mod rogue;

pub struct Device {
    pub id: DeviceId,
    pub signer: LeafSigner,
}

impl Device {
    pub fn new() -> Self {
        Self { id: DeviceId::random(&mut OsRng), signer: signer() }
    }

    pub fn package(&self, suite: Suite) -> (AddDevice, PrivateKeyPackage) {
        let (key_package, private) = make_key_package(self.id, suite, &self.signer).unwrap();
        let signature_key = self.signer.public_key();
        (AddDevice { device: self.id, signature_key, key_package }, private)
    }
}

pub struct World {
    pub context: CellContext,
    pub suite: Suite,
    pub coordinator: LeafSigner,
    pub manager: ManagedCell,
    pub devices: BTreeMap<DeviceId, Device>,
    pub cells: BTreeMap<DeviceId, MemberCell>,
    /// What the coordinator adds with, and every device holds.
    pub psk: Option<Psk>,
}

impl World {
    pub fn new(suite: Suite) -> Self {
        let context = context();
        let coordinator = signer();
        let manager = ManagedCell::create(context, suite, &coordinator).unwrap();
        Self {
            context,
            suite,
            coordinator,
            manager,
            devices: BTreeMap::new(),
            cells: BTreeMap::new(),
            psk: None,
        }
    }

    /// A cell with `count` devices in it, all of them there.
    pub fn with(suite: Suite, count: usize) -> Self {
        let mut world = Self::new(suite);
        world.add(count);
        world
    }

    pub fn keys(&self) -> [[u8; 32]; 1] {
        [self.coordinator.public_key()]
    }

    pub fn ids(&self) -> Vec<DeviceId> {
        self.manager.members().collect()
    }

    pub fn enrol(&mut self) -> DeviceId {
        let device = Device::new();
        let id = device.id;
        self.devices.insert(id, device);
        id
    }

    pub fn package(&self, device: DeviceId) -> (AddDevice, PrivateKeyPackage) {
        self.devices[&device].package(self.suite)
    }

    /// A commit that everything must be in.
    pub fn commit(&mut self, changes: Changes) -> Committed {
        let changes = Changes { psk: self.psk.clone(), ..changes };
        let CommitOutcome { committed, dropped } = self.manager.commit(&self.coordinator, changes).unwrap();
        assert_eq!(dropped, []);
        committed.unwrap()
    }

    pub fn add(&mut self, count: usize) -> Vec<DeviceId> {
        let ids: Vec<_> = (0..count).map(|_| self.enrol()).collect();
        self.add_these(&ids, Vec::new());
        ids
    }

    /// Adds devices and removes others in one commit, and has everybody follow.
    pub fn add_these(&mut self, ids: &[DeviceId], remove: Vec<DeviceId>) -> Committed {
        let mut privates = BTreeMap::new();
        let mut add = Vec::new();
        for &id in ids {
            let (package, private) = self.package(id);
            add.push(package);
            privates.insert(id, private);
        }
        let committed = self.commit(Changes { add, remove, ..Changes::default() });
        self.deliver(&committed, &privates);
        committed
    }

    pub fn remove(&mut self, remove: &[DeviceId]) -> Committed {
        let committed = self.commit(Changes { remove: remove.to_vec(), ..Changes::default() });
        self.deliver(&committed, &BTreeMap::new());
        committed
    }

    /// Everybody follows, whoever leaves is gone, and joiners join.
    pub fn deliver(&mut self, committed: &Committed, privates: &BTreeMap<DeviceId, PrivateKeyPackage>) {
        let keys = self.keys();
        let psks = self.psk.as_slice();
        let psk = self.psk.as_ref().map(Psk::id).filter(|_| !committed.welcomes.is_empty());
        let mut left = Vec::new();
        for (id, cell) in &mut self.cells {
            let processed = cell.process(&committed.covered_updates, &committed.commit, &keys, psks).unwrap();
            let stays = self.manager.contains(*id) && !committed.welcomes.contains_key(id);
            if stays {
                assert_eq!(processed, Processed::Advanced { epoch: committed.epoch, psk });
            } else {
                assert_eq!(processed, Processed::Removed);
                left.push(*id);
            }
        }
        for id in left {
            self.cells.remove(&id);
        }
        for (id, welcome) in &committed.welcomes {
            let (cell, used) = MemberCell::join(&self.context, &privates[id], welcome, &keys, psks).unwrap();
            assert_eq!(used, psk);
            assert_eq!(cell.device(), *id);
            self.cells.insert(*id, cell);
        }
        self.assert_agreed();
    }

    /// Every member is at the manager's epoch, with the manager's keys.
    pub fn assert_agreed(&self) {
        assert_eq!(self.cells.keys().copied().collect::<Vec<_>>(), self.ids());
        for cell in self.cells.values() {
            assert_eq!(cell.epoch(), self.manager.epoch());
            assert_eq!(cell.kek(), self.manager.kek());
            assert_eq!(cell.epoch_authenticator8(), self.manager.epoch_authenticator8());
        }
    }

    /// Everybody goes through a restart.
    pub fn restart(&mut self) {
        let snapshot = self.manager.snapshot();
        self.manager = ManagedCell::restore(&snapshot).unwrap();
        assert_eq!(self.manager.snapshot(), snapshot);
        for cell in self.cells.values_mut() {
            let snapshot = cell.snapshot();
            *cell = MemberCell::restore(&snapshot).unwrap();
            assert_eq!(cell.snapshot(), snapshot);
        }
    }

    pub fn update_of(&mut self, device: DeviceId) -> Vec<u8> {
        let signer = &self.devices[&device].signer;
        self.cells.get_mut(&device).unwrap().propose_update(signer).unwrap()
    }
}

pub fn context() -> CellContext {
    CellContext {
        fleet: FleetId::random(&mut OsRng),
        group: GroupId::random(&mut OsRng),
        cell: CellId::random(&mut OsRng),
    }
}

pub fn signer() -> LeafSigner {
    LeafSigner::new(&seed())
}

pub fn seed() -> [u8; 32] {
    let mut seed = [0; 32];
    OsRng.fill_bytes(&mut seed);
    seed
}

/// What the other party did wrong; anything else fails the test.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: Result<T, MlsError>) -> Refused {
    match result {
        Err(MlsError::Refused(why)) => why,
        other => panic!("not refused: {other:?}"),
    }
}
