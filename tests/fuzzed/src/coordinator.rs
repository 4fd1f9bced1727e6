//! The coordinator's core, after a set-up: whatever devices say to it, as they are or under a good MAC.

use std::cell::RefCell;
use std::collections::BTreeMap;

use fleetkey_coordinator_core::Policy;
use fleetkey_tests::{Hand, World};
use fleetkey_wire::{DeviceId, GroupId, Hello, HelloCell, KeyEpoch, ShortAuthenticator, UpBody};

use crate::link_frames::up_bodies;
use crate::steps::{cut, join};

/// Milliseconds that pass for each byte.
const MILLISECONDS_A_BYTE: u64 = 250;
/// Bytes that count as time.
const MAX_PAUSE: usize = 400;
/// The kind of part in which time passes, and everybody speaks.
const PAUSE: u8 = 5;

/// A fleet at rest, and two devices in it that say anything: a member, and one that is in no group.
struct Stage {
    world: World,
    group: GroupId,
    member: Hand,
    outsider: Hand,
    honest: Vec<DeviceId>,
}

thread_local! {
    /// As it was made, as long as nothing has changed it.
    static STAGE: RefCell<Option<Stage>> = const { RefCell::new(None) };
}

impl Stage {
    fn new() -> Self {
        let mut world = World::new(9);
        let devices = world.enroll(3);
        let policy = Policy { cell_capacity: 8, rotation_interval_seconds: 0, ..Policy::default() };
        let group = world.group("meters", policy, &devices);
        let mut member = Hand::of(&mut world, devices[0]);
        member.connect(&mut world);
        let mut outsider = Hand::enroll(&mut world);
        outsider.connect(&mut world);
        Self { world, group, member, outsider, honest: devices[1..].to_vec() }
    }

    /// What the coordinator takes the honest members to have, and whether they are in the group.
    fn standing(&self) -> BTreeMap<DeviceId, KeyEpoch> {
        let members = self.world.coordinator.members(self.group);
        let honest = members.filter(|member| self.honest.contains(&member.device));
        honest.map(|member| (member.device, member.confirmed)).collect()
    }

    /// One part of an input; whether anything has changed.
    fn step(&mut self, kind: u8, bytes: &[u8]) -> bool {
        let now = self.world.now;
        let world = &mut self.world;
        let (device, frame) = match kind % 6 {
            0 => (self.member.id, bytes.to_vec()),
            1 => (self.member.id, self.member.frame_of(bytes)),
            2 => (self.outsider.id, self.outsider.frame_of(bytes)),
            // On somebody else's topic, where the broker has carried it.
            3 => (self.honest[0], self.member.frame_of(bytes)),
            4 => (DeviceId::from_bytes([0xee; 16]), bytes.to_vec()),
            _ => {
                world.run_for(bytes.len().min(MAX_PAUSE) as u64 * MILLISECONDS_A_BYTE);
                return true;
            }
        };
        let said = world.coordinator.handle_up(device, &frame, now, &mut world.rng);
        match said {
            Ok(()) => {
                assert!(kind % 6 < 3, "a frame of another was taken");
                world.perform();
                true
            }
            Err(refused) => {
                let effects = world.coordinator.take_effects().expect("no decision fails half-way");
                assert!(effects.writes.is_empty(), "refused, and stored something: {refused}");
                false
            }
        }
    }
}

/// What is refused changes nothing stored, and what two devices say moves no third one.
pub fn run(data: &[u8]) {
    let steps = cut(data);
    STAGE.with_borrow_mut(|kept| {
        let mut stage = kept.take().unwrap_or_else(Stage::new);
        let mut before = stage.standing();
        assert_eq!(before.len(), stage.honest.len());
        let mut is_changed = false;
        for step in steps {
            is_changed |= stage.step(step.kind, step.bytes);
            let after = stage.standing();
            if step.kind % 6 == PAUSE {
                let stand = before
                    .iter()
                    .all(|(device, confirmed)| after.get(device).is_some_and(|now| now >= confirmed));
                assert!(stand, "{before:?} has become {after:?}");
            } else {
                assert_eq!(after, before, "what two devices say has moved a third");
            }
            before = after;
        }
        if !is_changed {
            *kept = Some(stage);
        }
    });
}

/// Everything that can be said, by each, and what leads to more.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut stage = Stage::new();
    let group = stage.group;
    let now = stage.world.now;
    let shown = stage.world.peer(stage.member.id).agent.status(now).groups[0].clone();
    let cell = HelloCell {
        cell: shown.cell,
        cell_epoch: shown.cell_epoch,
        authenticator: ShortAuthenticator([0; 8]),
        statement: shown.statement,
        key_epoch: shown.send,
        send: shown.send,
        oldest: shown.oldest,
    };
    let hello = |cells| UpBody::Hello(Hello { generation: fleetkey_wire::Generation(1), cells }).encode();
    let packages =
        UpBody::KeyPackages { suite: fleetkey_wire::Suite::Aes128Gcm, packages: vec![vec![1; 40]; 2] };
    let confirm =
        UpBody::Confirm { group, key_epoch: shown.send, statement: shown.statement, proof: [1; 32] }.encode();
    let update = UpBody::Update { cell: shown.cell, cell_epoch: shown.cell_epoch, proposal: vec![1; 40] };
    let pause = || (5, vec![0; 40]);
    let mut all: Vec<Vec<u8>> = up_bodies().iter().map(|body| join(&[(1, body.encode())])).collect();
    all.push(join(&[(1, hello(vec![cell])), (1, confirm), (2, hello(Vec::new()))]));
    all.push(join(&[(1, UpBody::Leave { group }.encode()), pause()]));
    all.push(join(&[
        (1, hello(Vec::new())),
        pause(),
        (1, hello(Vec::new())),
        (1, packages.encode()),
        pause(),
    ]));
    all.push(join(&[(2, packages.encode()), (2, hello(Vec::new())), pause()]));
    all.push(join(&[
        (1, update.encode()),
        (3, hello(Vec::new())),
        (4, hello(Vec::new())),
        (0, vec![1, 0x85]),
    ]));
    all
}
