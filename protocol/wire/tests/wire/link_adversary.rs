//! The link under a broker that does whatever it likes with every frame it has ever carried, while devices reconnect
//! and coordinators restart: nothing counts twice, nothing from before counts, and when it stops the link heals.

use std::collections::BTreeSet;

use fleetkey_wire::link::{BadLinkFrame, DeviceLink, LinkRefused, OpenedDown};
use fleetkey_wire::{DownBody, GroupId, UpBody};
use proptest::collection::vec;
use proptest::prelude::*;
use rand_chacha::ChaCha20Rng;

use crate::link::{Coordinator, answer, connect, hello, leave};
use crate::support::*;

/// One thing that happens.
#[derive(Debug, Clone)]
enum Step {
    DeviceSaysHello,
    DeviceSaysMore,
    DeviceReconnects,
    CoordinatorRestarts,
    CoordinatorSaysMore,
    CoordinatorPokes,
    /// The broker delivers any frame it has carried up, perhaps again.
    Up(prop::sample::Index),
    /// The broker delivers any frame it has carried down, perhaps again.
    Down(prop::sample::Index),
    /// The broker delivers the newest frame, up and down.
    Newest,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::DeviceSaysHello),
        3 => Just(Step::DeviceSaysMore),
        2 => Just(Step::DeviceReconnects),
        1 => Just(Step::CoordinatorRestarts),
        3 => Just(Step::CoordinatorSaysMore),
        1 => Just(Step::CoordinatorPokes),
        6 => any::<prop::sample::Index>().prop_map(Step::Up),
        6 => any::<prop::sample::Index>().prop_map(Step::Down),
        6 => Just(Step::Newest),
    ]
}

/// A frame on its way, and when it was sealed.
struct Carried {
    frame: Vec<u8>,
    sealed_at: usize,
}

struct World {
    rng: ChaCha20Rng,
    now: usize,
    device: DeviceLink,
    coordinator: Coordinator,
    /// When the device connected, or began anew, and when the coordinator started.
    connected_at: usize,
    started_at: usize,
    up: Vec<Carried>,
    down: Vec<Carried>,
    counted_up: BTreeSet<usize>,
    counted_down: BTreeSet<usize>,
}

impl World {
    fn new() -> Self {
        let mut rng = rng();
        Self {
            device: connect(&mut rng),
            coordinator: Coordinator::start(&mut rng),
            rng,
            now: 0,
            connected_at: 0,
            started_at: 0,
            up: Vec::new(),
            down: Vec::new(),
            counted_up: BTreeSet::new(),
            counted_down: BTreeSet::new(),
        }
    }

    fn take(&mut self, step: &Step) {
        self.now += 1;
        match step {
            Step::DeviceSaysHello => self.send_up(&hello()),
            Step::DeviceSaysMore => self.send_up(&leave()),
            Step::DeviceReconnects => {
                self.device = connect(&mut self.rng);
                self.connected_at = self.now;
            }
            Step::CoordinatorRestarts => {
                self.coordinator = Coordinator::start(&mut self.rng);
                self.started_at = self.now;
            }
            Step::CoordinatorSaysMore => {
                self.send_down(&DownBody::RequestEvidence { group: GroupId::from_bytes([9; 16]) });
            }
            Step::CoordinatorPokes => self.send_down(&DownBody::HelloAgain),
            Step::Up(which) if !self.up.is_empty() => self.deliver_up(which.index(self.up.len())),
            Step::Down(which) if !self.down.is_empty() => self.deliver_down(which.index(self.down.len())),
            Step::Up(_) | Step::Down(_) => {}
            Step::Newest => {
                if let Some(last) = self.up.len().checked_sub(1) {
                    self.deliver_up(last);
                }
                if let Some(last) = self.down.len().checked_sub(1) {
                    self.deliver_down(last);
                }
            }
        }
    }

    fn send_up(&mut self, body: &UpBody) {
        let (frame, _) = self.device.seal(body);
        self.up.push(Carried { frame, sealed_at: self.now });
    }

    fn send_down(&mut self, body: &DownBody) {
        let frame = self.coordinator.seal(body);
        self.down.push(Carried { frame, sealed_at: self.now });
    }

    /// The coordinator does what the protocol asks of it, at once.
    fn deliver_up(&mut self, which: usize) {
        let Carried { frame, sealed_at } = &self.up[which];
        match self.coordinator.open(frame) {
            Ok(opened) if opened.fresh => {
                assert!(*sealed_at > self.started_at, "a frame from before the coordinator's start counted");
                assert!(self.counted_up.insert(which), "a frame counted twice");
                if matches!(opened.body, UpBody::Hello(_)) {
                    self.send_down(&answer(opened.counter));
                }
            }
            Ok(opened) => {
                assert!(matches!(opened.body, UpBody::Hello(_)), "{opened:?} counted unproven");
                self.send_down(&answer(opened.counter));
                self.send_down(&DownBody::RequestHello);
            }
            Err(BadLinkFrame::Refused(LinkRefused::StaleNonce)) => self.send_down(&DownBody::HelloAgain),
            Err(BadLinkFrame::Refused(LinkRefused::Replayed { .. } | LinkRefused::NotFresh { .. })) => {}
            Err(other) => panic!("an authentic frame was refused: {other}"),
        }
    }

    /// So does the device.
    fn deliver_down(&mut self, which: usize) {
        let Carried { frame, sealed_at } = &self.down[which];
        match self.device.open(frame) {
            Ok(OpenedDown::Fresh(body)) => {
                assert!(*sealed_at > self.connected_at, "a frame from before the connection counted");
                assert!(self.counted_down.insert(which), "a frame counted twice");
                match body {
                    DownBody::HelloAgain => self.begin_anew(),
                    DownBody::RequestHello => self.send_up(&hello()),
                    DownBody::Answer { .. }
                    | DownBody::CellFrame { .. }
                    | DownBody::Welcome(_)
                    | DownBody::RequestKeyPackages { .. }
                    | DownBody::RequestUpdate { .. }
                    | DownBody::Dismiss { .. }
                    | DownBody::Certificate { .. }
                    | DownBody::RequestEvidence { .. } => {}
                }
            }
            Ok(OpenedDown::Poke) | Err(BadLinkFrame::Refused(LinkRefused::StaleNonce)) => {
                self.send_up(&hello())
            }
            Err(BadLinkFrame::Refused(LinkRefused::PeerRestarted)) => self.begin_anew(),
            Err(BadLinkFrame::Refused(LinkRefused::Replayed { .. })) => {}
            Err(other) => panic!("an authentic frame was refused: {other}"),
        }
    }

    fn begin_anew(&mut self) {
        self.device.restart(&mut self.rng);
        self.connected_at = self.now;
        self.now += 1;
        self.send_up(&hello());
    }

    /// From here on the broker delivers each new frame once, in order. Returns after how many deliveries up a
    /// frame of each side, other than a hello, has counted.
    fn heal(&mut self) -> Option<usize> {
        let (mut next_up, mut next_down) = (self.up.len(), self.down.len());
        self.now += 1;
        self.send_up(&hello());
        for delivered in 1..=12 {
            while next_up < self.up.len() {
                self.now += 1;
                self.deliver_up(next_up);
                next_up += 1;
            }
            while next_down < self.down.len() {
                self.now += 1;
                self.deliver_down(next_down);
                next_down += 1;
            }
            if next_up == self.up.len() {
                self.now += 1;
                self.send_up(&leave());
                self.deliver_up(next_up);
                self.send_down(&DownBody::RequestEvidence { group: GroupId::from_bytes([9; 16]) });
                let (up, down) = (next_up, self.down.len() - 1);
                next_up += 1;
                self.now += 1;
                self.deliver_down(down);
                if self.counted_up.contains(&up) && self.counted_down.contains(&down) {
                    return Some(delivered);
                }
            }
        }
        None
    }
}

proptest! {
    #[test]
    fn nothing_counts_twice_and_the_link_heals(steps in vec(step(), 0..80)) {
        let mut world = World::new();
        for step in &steps {
            world.take(step);
        }
        let rounds = world.heal();
        prop_assert!(rounds.is_some(), "not healed after {steps:?}");
    }
}
