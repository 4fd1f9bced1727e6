//! Power is lost at any point: before a transaction is stored, and after that but before anything is said. And rule 6:
//! a confirmation leaves only when the secret is stored.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

mod common;

use common::{Device, Fleet, Group, coordinator_chain, load};
use fleetkey_agent_core::{Effects, Input, MemoryStore, Output, Status, Store};
use fleetkey_mls::Changes;
use fleetkey_wire::{Confirmation, DownBody, KeyEpoch, Reason, UpBody};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    BeforeStoring,
    BeforeSpeaking,
}

/// What the coordinator has for the device.
enum Delivery {
    Cell(Vec<u8>),
    Down(DownBody),
}

/// Delivers, and crashes once.
struct Stage {
    fleet: Fleet,
    device: Device,
    crash: Option<(usize, Moment)>,
    deliveries: usize,
}

impl Stage {
    fn new(crash: Option<(usize, Moment)>) -> Self {
        let mut fleet = Fleet::new(80);
        let device = fleet.online_device();
        Self { fleet, device, crash, deliveries: 0 }
    }

    /// Delivers to the device; when that is where it crashes, again after it is back, as a coordinator does that has
    /// heard nothing. The second time may find that it had been stored.
    fn deliver(&mut self, group: &Group, delivery: &Delivery) {
        let effects = self.decide(group, delivery);
        assert!(effects.refused.is_none(), "{:?}", effects.refused);
        let crash = self.crash.filter(|(at, _)| *at == self.deliveries).map(|(_, moment)| moment);
        self.deliveries += 1;
        match crash {
            None => {
                self.device.store.commit(&effects.writes).unwrap();
                self.assert_confirmed_is_stored(&effects);
                self.device.perform(&effects);
                return;
            }
            Some(Moment::BeforeStoring) => {}
            Some(Moment::BeforeSpeaking) => self.device.store.commit(&effects.writes).unwrap(),
        }
        self.device.reboot();
        self.fleet.connect(&mut self.device);
        let effects = self.decide(group, delivery);
        self.device.store.commit(&effects.writes).unwrap();
        self.assert_confirmed_is_stored(&effects);
        self.device.perform(&effects);
        if effects.refused.is_some() {
            assert_eq!(crash, Some(Moment::BeforeSpeaking), "{:?}", effects.refused);
        }
    }

    fn decide(&mut self, group: &Group, delivery: &Delivery) -> Effects {
        match delivery {
            Delivery::Cell(frame) => {
                let topic = self.device.cell_topic(group.id_of_cell());
                self.device.decide(Input::Message { topic, payload: frame })
            }
            Delivery::Down(body) => {
                let frame = self.fleet.down(&mut self.device, body);
                let topic = self.device.down_topic();
                self.device.decide(Input::Message { topic, payload: &frame })
            }
        }
    }

    /// Rule 6: a device that lost power now would still hold what it is about to confirm.
    fn assert_confirmed_is_stored(&mut self, effects: &Effects) {
        let mut link = self.device.link.clone();
        for output in &effects.outputs {
            let Output::Publish { payload, .. } = output else { continue };
            let opened =
                link.open(&self.fleet.start, self.device.id, &self.device.link_key, payload).unwrap();
            let UpBody::Confirm { group, key_epoch, .. } = opened.body else { continue };
            let stored = load(&self.device.config, &mut self.device.store.clone(), self.device.now);
            let status = stored.status(self.device.now);
            let of = status.groups.iter().find(|of| of.group == group).expect("the group is stored");
            assert!(of.held.contains(&key_epoch), "{key_epoch} is confirmed, and not stored");
        }
    }

    /// The coordinator hears what was said, and gets key packages however often it must ask.
    fn key_packages(&mut self, group: &Group) -> Vec<u8> {
        let request = DownBody::RequestKeyPackages { suite: group.suite, count: 2 };
        self.deliver(group, &Delivery::Down(request));
        let heard = self.fleet.hear(&mut self.device);
        heard
            .into_iter()
            .find_map(|frame| {
                let UpBody::KeyPackages { mut packages, .. } = frame.body else { return None };
                Some(packages.remove(0))
            })
            .expect("key packages were sent")
    }
}

/// A device's life up to three rekeys and a rotation, with every kind of delivery in it.
fn live(crash: Option<(usize, Moment)>) -> (usize, Status) {
    let mut stage = Stage::new(crash);
    let mut other = stage.fleet.online_device();
    let mut group = stage.fleet.group_with(&mut [&mut other]);

    let key_package = stage.key_packages(&group);
    let welcome = welcome(&mut stage, &mut group, key_package);
    stage.deliver(&group, &Delivery::Down(welcome));
    let frame = group.rekey_frame(&mut stage.fleet);
    stage.deliver(&group, &Delivery::Cell(frame));
    let cell = group.id_of_cell();
    stage.fleet.hear(&mut stage.device);
    stage.deliver(&group, &Delivery::Down(DownBody::RequestUpdate { cell }));
    let updates = stage.fleet.hear(&mut stage.device).into_iter().filter_map(|frame| {
        let UpBody::Update { proposal, .. } = frame.body else { return None };
        Some((stage.device.id, proposal))
    });
    let updates: Vec<_> = updates.collect();
    assert_eq!(updates.len(), 1);
    let committed = group.commit(&stage.fleet, Changes { updates, ..Changes::default() });
    let frame = group.frame(&stage.fleet, Some(&committed), None);
    stage.deliver(&group, &Delivery::Cell(frame));
    let frame = group.evict(&mut stage.fleet, &[&other]);
    stage.deliver(&group, &Delivery::Cell(frame));
    let chain = coordinator_chain(&stage.fleet.ca, &stage.fleet.key, 2);
    stage.fleet.chain.clone_from(&chain);
    stage.deliver(&group, &Delivery::Down(DownBody::Certificate { chain }));
    rotate(&mut stage, &mut group);
    let frame = group.rekey_frame(&mut stage.fleet);
    stage.deliver(&group, &Delivery::Down(DownBody::CellFrame { cell, frame }));

    let deliveries = stage.deliveries;
    // What was not confirmed is sent again, made anew for the cell's epoch.
    stage.fleet.hear(&mut stage.device);
    stage.device.pass(1_000);
    let signed = group.statement(&stage.fleet, group.send, Reason::Manual);
    let frame = group.frame(&stage.fleet, None, Some(&signed));
    stage.deliver(&group, &Delivery::Cell(frame));
    stage.device.pass(1_000);
    assert!(is_confirmed(&mut stage, &group, group.send), "the coordinator learns of it in the end");
    stage.device.reboot();
    (deliveries, stage.device.status())
}

fn rotate(stage: &mut Stage, group: &mut Group) {
    let next = group.next_key(&mut stage.fleet);
    let statements = [
        group.statement(&stage.fleet, next, Reason::Distribute),
        {
            group.send = next;
            group.statement(&stage.fleet, next, Reason::Activate)
        },
        {
            group.oldest = next;
            group.statement(&stage.fleet, next, Reason::Retire)
        },
    ];
    for signed in statements {
        let frame = group.frame(&stage.fleet, None, Some(&signed));
        stage.deliver(group, &Delivery::Cell(frame));
    }
}

fn welcome(stage: &mut Stage, group: &mut Group, key_package: Vec<u8>) -> DownBody {
    let signature_key = stage.device.config.identity.public_key();
    let add = fleetkey_mls::AddDevice { device: stage.device.id, signature_key, key_package };
    let mut committed = group.commit(&stage.fleet, Changes { add: vec![add], ..Changes::default() });
    let statements = group.live_statements(&stage.fleet);
    DownBody::Welcome(fleetkey_wire::Welcome {
        group: group.id,
        group_name: "pumps".to_owned(),
        cell: group.id_of_cell(),
        suite: group.suite,
        cell_epoch: committed.epoch,
        welcome: committed.welcomes.remove(&stage.device.id).unwrap(),
        statements: statements.iter().map(|signed| group.wrapped(&stage.fleet, signed)).collect(),
    })
}

fn is_confirmed(stage: &mut Stage, group: &Group, key_epoch: KeyEpoch) -> bool {
    let commitment = group.said(key_epoch, Reason::Manual).commitment;
    let confirmation = Confirmation {
        fleet: stage.fleet.id,
        group: group.id,
        key_epoch,
        commitment,
        device: stage.device.id,
    };
    stage.fleet.hear(&mut stage.device).iter().any(|frame| {
        let UpBody::Confirm { key_epoch: got, proof, .. } = &frame.body else { return false };
        frame.fresh
            && *got == key_epoch
            && confirmation.holds(&stage.device.pairwise, &group.secrets[&key_epoch], proof)
    })
}

#[test]
fn a_crash_at_any_point_loses_nothing_but_messages() {
    let (deliveries, expected) = live(None);
    assert_eq!(deliveries, 11);
    for at in 0..deliveries {
        for moment in [Moment::BeforeStoring, Moment::BeforeSpeaking] {
            let (_, status) = live(Some((at, moment)));
            let of = &status.groups[0];
            let wanted = &expected.groups[0];
            let what = format!("crash {moment:?} at delivery {at}");
            assert_eq!(of.cell_epoch, wanted.cell_epoch, "{what}");
            assert_eq!((of.send, of.oldest), (wanted.send, wanted.oldest), "{what}");
            assert_eq!(of.held, wanted.held, "{what}");
            assert_eq!(status.generation, expected.generation, "{what}");
        }
    }
}

/// A transaction is all or nothing: were only a part of a join stored, the store would not load.
#[test]
fn half_a_transaction_does_not_pass_for_a_whole_one() {
    let mut fleet = Fleet::new(81);
    let mut device = fleet.online_device();
    let group = fleet.group_with(&mut [&mut device]);
    for key in [format!("cell/{}", group.id_of_cell()), format!("group/{}", group.id)] {
        let mut torn = MemoryStore::default();
        let mut writes = fleetkey_agent_core::Writes::default();
        for (other, value) in device.entries().into_iter().filter(|(other, _)| *other != key) {
            writes.put(other, value);
        }
        torn.commit(&writes).unwrap();
        let entries = torn.load_all().unwrap();
        let error =
            fleetkey_agent_core::Agent::load(device.config.clone(), &entries, device.now).unwrap_err();
        assert!(error.to_string().contains("not stored"), "{error}");
    }
}

#[test]
fn a_store_of_another_device_fleet_or_key_is_refused() {
    let mut fleet = Fleet::new(82);
    let mut device = fleet.device();
    let other = fleet.device();
    let entries = device.entries();
    let refused = |change: &dyn Fn(&mut fleetkey_agent_core::AgentConfig)| {
        let mut config = device.config.clone();
        change(&mut config);
        fleetkey_agent_core::Agent::load(config, &entries, device.now).unwrap_err().to_string()
    };
    assert!(refused(&|config| config.device = other.id).contains("not of"));
    assert!(
        refused(&|config| config.identity = other.config.identity.clone()).contains("another identity key")
    );
    let stranger = Fleet::new(83);
    assert!(refused(&|config| config.roots = stranger.roots.clone()).contains("roots are of fleet"));
    assert!(refused(&|config| config.coordinator_chain = stranger.chain.clone()).contains("certificate"));
}
