//! A fleet at rest, everything that it has stored, and what it means to be refused.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};

use fleetkey_agent_core::{Entries, Input};
use fleetkey_coordinator_core::{Policy, Row, Timing};
use fleetkey_tests::World;
use fleetkey_wire::{DeviceId, Generation, GroupId, Hello, Named, Topic, UpBody};

/// Six devices in one group, in one cell.
pub(crate) struct Scene {
    pub(crate) world: World,
    pub(crate) devices: Vec<DeviceId>,
    pub(crate) group: GroupId,
}

/// What coordinator and devices have stored.
#[derive(PartialEq, Eq)]
pub(crate) struct Stored {
    rows: Vec<Row>,
    entries: BTreeMap<DeviceId, Entries>,
}

impl Scene {
    pub(crate) fn at_rest(seed: u64) -> Self {
        Self::with_timing(seed, Timing::default())
    }

    pub(crate) fn with_timing(seed: u64, timing: Timing) -> Self {
        let mut world = World::with_timing(seed, timing);
        let devices = world.enroll(6);
        let policy = Policy { cell_capacity: 8, rotation_interval_seconds: 0, ..Policy::default() };
        let group = world.group("meters", policy, &devices);
        // So that there are frames of its cell to be tried again.
        world.coordinator.rekey(group, world.now, &mut world.rng).expect("can be asked for");
        world.perform();
        world.run_for(5_000);
        world.assert_current(group);
        Self { world, devices, group }
    }

    pub(crate) fn stored(&mut self) -> Stored {
        let ids: Vec<DeviceId> = self.world.peers.keys().copied().collect();
        let entries = ids.into_iter().map(|id| (id, self.world.stored(id))).collect();
        Stored { rows: self.world.coordinator_rows(), entries }
    }

    /// The coordinator, or a command of its, refuses this under `name`; nobody's store changes.
    pub(crate) fn refused<T: Debug, E: Named + Display>(
        &mut self,
        name: &str,
        act: impl FnOnce(&mut World) -> Result<T, E>,
    ) {
        let before = self.stored();
        match act(&mut self.world) {
            Ok(done) => panic!("{name}: it was done: {done:?}"),
            Err(said) => assert_eq!(said.name(), name, "{said}"),
        }
        self.world.perform();
        assert!(self.stored() == before, "{name} changed what is stored");
    }

    /// A device refuses this payload under `name`; nobody's store changes.
    pub(crate) fn refused_by(&mut self, device: DeviceId, topic: Topic, payload: &[u8], name: &str) {
        let before = self.stored();
        let now = self.world.now;
        let peer = self.world.peers.get_mut(&device).expect("enrolled");
        let effects = peer.agent.handle(Input::Message { topic, payload }, now, &mut self.world.rng);
        let said = effects.refused.unwrap_or_else(|| panic!("{name}: it was taken"));
        assert_eq!(said.name(), name, "{said}");
        assert!(effects.writes.is_empty(), "{name} stores something");
        assert!(self.stored() == before, "{name} changed what is stored");
    }

    /// How often a refusal of this name was counted by the coordinator.
    pub(crate) fn counted(&self, name: &str) -> u64 {
        self.world.coordinator.status(self.world.now).refusals.get(name).copied().unwrap_or(0)
    }

    /// What a member seals opens for these and for nobody else.
    pub(crate) fn assert_opens(&mut self, by: DeviceId, opens: &[DeviceId], closed: &[DeviceId]) {
        let (now, group) = (self.world.now, self.group);
        let peer = self.world.peers.get_mut(&by).expect("enrolled");
        let sealed =
            peer.agent.seal(group, b"after", b"", false, now, &mut self.world.rng).expect("it can seal");
        for device in opens {
            assert!(self.world.peer(*device).agent.open(&sealed, b"", now).is_ok(), "{device} opens it");
        }
        for device in closed {
            assert!(self.world.peer(*device).agent.open(&sealed, b"", now).is_err(), "{device} opens it");
        }
    }
}

/// A hello that shows nothing.
pub(crate) fn hello() -> UpBody {
    UpBody::Hello(Hello { generation: Generation(1), cells: Vec::new() })
}
