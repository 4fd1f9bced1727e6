//! A device's core, after a set-up: whatever comes on its topics, as it is, over something genuine, or under a good MAC.

use std::cell::RefCell;

use fleetkey_agent_core::Input;
use fleetkey_coordinator_core::Policy;
use fleetkey_tests::World;
use fleetkey_wire::{Commitment, DeviceId, DownBody, GroupId, KeyEpoch, Named as _, Topic};

use crate::link_frames::down_bodies;
use crate::statements::overlay;
use crate::steps::{cut, join};

/// A device in a group, connected and answered.
struct Stage {
    world: World,
    device: DeviceId,
    group: GroupId,
    cell: Topic,
    down: Topic,
    /// The newest frame on its cell's topic.
    frame: Vec<u8>,
    /// What a member has sealed.
    sealed: Vec<u8>,
    said: u64,
}

thread_local! {
    /// As it was made, as long as nothing has changed it.
    static STAGE: RefCell<Option<Stage>> = const { RefCell::new(None) };
}

impl Stage {
    fn new() -> Self {
        let mut world = World::new(10);
        let devices = world.enroll(2);
        let policy = Policy { cell_capacity: 8, rotation_interval_seconds: 0, ..Policy::default() };
        let group = world.group("meters", policy, &devices);
        world.coordinator.rekey(group, world.now, &mut world.rng).expect("can be asked for");
        world.perform();
        world.run_for(5_000);
        let (device, now) = (devices[0], world.now);
        let cell = world.peer(device).agent.status(now).groups[0].cell;
        let cell = Topic::Cell { fleet: world.fleet, cell };
        let down = Topic::Down { fleet: world.fleet, device };
        let newest = world.published.iter().rev().find(|(topic, _)| *topic == cell);
        let frame = newest.expect("its cell was spoken to").1.clone();
        let peer = world.peers.get_mut(&devices[1]).expect("enrolled");
        let sealed =
            peer.agent.seal(group, b"open valve 3", b"", true, now, &mut world.rng).expect("a member seals");
        Self { world, device, group, cell, down, frame, sealed, said: 0 }
    }

    fn keys(&mut self) -> Vec<(KeyEpoch, Commitment)> {
        let group = self.group;
        self.world.peer(self.device).agent.commitments(group)
    }

    /// One part of an input; whether anything has changed.
    fn step(&mut self, kind: u8, bytes: &[u8]) -> bool {
        let now = self.world.now;
        let (topic, payload) = match kind % 6 {
            0 => (self.cell, bytes.to_vec()),
            1 => (self.down, bytes.to_vec()),
            2 => {
                self.said += 1;
                (self.down, self.world.down_frame(self.device, self.said, bytes))
            }
            3 => {
                let mut frame = self.frame.clone();
                overlay(&mut frame, bytes);
                (self.cell, frame)
            }
            4 => {
                let mut sealed = self.sealed.clone();
                overlay(&mut sealed, bytes);
                let opened = self.world.peer(self.device).agent.open(&sealed, b"", now);
                assert!(opened.is_err(), "its sender is not known here");
                return false;
            }
            _ => {
                let after = self.world.now.mono.plus(bytes.len() as u64 * 250);
                self.world.now.mono = after;
                let input = Input::Timeout;
                self.world.feed(self.device, &input);
                return true;
            }
        };
        let peer = self.world.peers.get_mut(&self.device).expect("enrolled");
        let effects =
            peer.agent.handle(Input::Message { topic, payload: &payload }, now, &mut self.world.rng);
        if let Some(refused) = &effects.refused {
            assert!(effects.writes.is_empty(), "refused, and stored something: {refused}");
            assert!(!refused.name().is_empty());
        }
        // A frame that counts takes a counter, a reading of the clock, perhaps a place in a queue.
        effects.refused.is_none()
    }
}

/// What is refused changes nothing stored, and no key epoch ever names another secret.
pub fn run(data: &[u8]) {
    let steps = cut(data);
    STAGE.with_borrow_mut(|kept| {
        let mut stage = kept.take().unwrap_or_else(Stage::new);
        let before = stage.keys();
        let mut is_changed = false;
        for step in steps {
            is_changed |= stage.step(step.kind, step.bytes);
            let after = stage.keys();
            // Nobody here can sign for the coordinator: keys go, with the group, and none comes.
            assert!(after.iter().all(|key| before.contains(key)), "a key from nowhere: {after:?}");
        }
        if !is_changed {
            *kept = Some(stage);
        }
    });
}

/// Everything that can be said to it, and changes of what is genuine.
pub fn seeds() -> Vec<Vec<u8>> {
    let stage = Stage::new();
    let Topic::Cell { cell, .. } = stage.cell else { panic!("a cell's topic") };
    let mut all: Vec<Vec<u8>> = down_bodies().iter().map(|body| join(&[(2, body.encode())])).collect();
    let again = DownBody::CellFrame { cell, frame: stage.frame.clone() };
    all.push(join(&[(2, again.encode()), (5, vec![0; 20])]));
    all.push(join(&[(2, DownBody::RequestUpdate { cell }.encode()), (2, DownBody::RequestHello.encode())]));
    all.push(join(&[(3, vec![0, 0]), (3, vec![100, 1]), (3, vec![250, 0x80]), (4, vec![10, 1])]));
    all.push(join(&[(0, stage.frame), (1, vec![1, 0x85]), (5, vec![0; 200])]));
    all
}
