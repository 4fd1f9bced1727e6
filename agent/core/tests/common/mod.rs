//! A fleet made by hand: just enough of a coordinator, on the real formats and the real MLS engine, to drive devices.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;

use fleetkey_agent_core::{
    Agent, AgentConfig, Effects, Entries, Event, Input, MemoryStore, Output, Refused, Status, Store,
};
use fleetkey_identity::{FleetCa, FleetRoots, IdentityKey, KeyId, Role, Validity};
use fleetkey_mls::{AddDevice, CellContext, Changes, Committed, LeafSigner, ManagedCell};
use fleetkey_wire::keys::{LinkKey, Pairwise};
use fleetkey_wire::link::{CoordinatorLink, OpenedUp, StartSecret};
use fleetkey_wire::wrap::{self, WrapContext};
use fleetkey_wire::{
    CellEpoch, CellFrame, CellId, CommitMessages, DeviceId, DownBody, FleetId, Generation, GroupId,
    GroupSecret, KeyEpoch, Millis, Named, Now, Reason, SignedStatement, Statement, StatementAndWrap, Suite,
    Topic, UpBody, Welcome,
};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

/// What the coordinator of a fleet has.
pub(crate) struct Fleet {
    pub(crate) id: FleetId,
    pub(crate) ca: FleetCa,
    pub(crate) roots: FleetRoots,
    pub(crate) key: IdentityKey,
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) start: StartSecret,
    pub(crate) rng: ChaCha20Rng,
}

/// A device, its store, and the coordinator's end of its link.
pub(crate) struct Device {
    pub(crate) id: DeviceId,
    pub(crate) config: AgentConfig,
    pub(crate) agent: Agent,
    pub(crate) store: MemoryStore,
    pub(crate) now: Now,
    pub(crate) rng: ChaCha20Rng,
    pub(crate) pairwise: Pairwise,
    pub(crate) link_key: LinkKey,
    pub(crate) link: CoordinatorLink,
    /// Frames that the device has published and nobody has read.
    pub(crate) up: Vec<Vec<u8>>,
    pub(crate) events: Vec<Event>,
    pub(crate) requests: Vec<Output>,
}

/// A group of one cell.
pub(crate) struct Group {
    pub(crate) id: GroupId,
    pub(crate) suite: Suite,
    pub(crate) cell: ManagedCell,
    pub(crate) secrets: BTreeMap<KeyEpoch, GroupSecret>,
    pub(crate) key_epoch: KeyEpoch,
    pub(crate) send: KeyEpoch,
    pub(crate) oldest: KeyEpoch,
    pub(crate) overlap_seconds: u32,
}

pub(crate) const HELLO_INTERVAL_SECONDS: u32 = 1800;
pub(crate) const MAX_SILENCE_SECONDS: u32 = 86_400;

pub(crate) fn validity() -> Validity {
    Validity::days_from(1_800_000_000, 3650)
}

impl Fleet {
    pub(crate) fn new(seed: u8) -> Self {
        let mut rng = ChaCha20Rng::from_seed([seed; 32]);
        let id = FleetId::random(&mut rng);
        let ca = FleetCa::create(id, &mut rng, validity()).unwrap();
        let roots = FleetRoots::new(&[ca.certificate_der().to_vec()]).unwrap();
        let key = IdentityKey::generate(&mut rng);
        let chain = coordinator_chain(&ca, &key, 1);
        let start = StartSecret::random(&mut rng);
        Self { id, ca, roots, key, chain, start, rng }
    }

    pub(crate) fn signer(&self) -> LeafSigner {
        LeafSigner::new(&self.key.seed())
    }

    pub(crate) fn key_id(&self) -> KeyId {
        KeyId::of_certificate(&self.chain[0])
    }

    pub(crate) fn device(&mut self) -> Device {
        let id = DeviceId::random(&mut self.rng);
        let identity = IdentityKey::generate(&mut self.rng);
        let pairwise = Pairwise::agree(self.id, id, self.key.signing_key(), &identity.public_key()).unwrap();
        let config = AgentConfig {
            fleet: self.id,
            device: id,
            identity,
            roots: self.roots.clone(),
            coordinator_chain: self.chain.clone(),
        };
        let now = Now { mono: Millis(1_000_000), unix_seconds: 1_800_000_100 };
        let mut store = MemoryStore::default();
        let agent = load(&config, &mut store, now);
        Device {
            id,
            config,
            agent,
            store,
            now,
            rng: ChaCha20Rng::from_rng(&mut self.rng).unwrap(),
            link_key: pairwise.link_key(),
            pairwise,
            link: CoordinatorLink::default(),
            up: Vec::new(),
            events: Vec::new(),
            requests: Vec::new(),
        }
    }

    /// A device that is connected and answered.
    pub(crate) fn online_device(&mut self) -> Device {
        let mut device = self.device();
        self.connect(&mut device);
        device
    }

    pub(crate) fn group(&mut self) -> Group {
        self.group_of(Suite::Aes128Gcm)
    }

    pub(crate) fn group_of(&mut self, suite: Suite) -> Group {
        let id = GroupId::random(&mut self.rng);
        let context = CellContext { fleet: self.id, group: id, cell: CellId::random(&mut self.rng) };
        let cell = ManagedCell::create(context, suite, &self.signer()).unwrap();
        let key_epoch = KeyEpoch::new(7, 1);
        let secrets = [(key_epoch, GroupSecret::random(&mut self.rng))].into();
        Group { id, suite, cell, secrets, key_epoch, send: key_epoch, oldest: key_epoch, overlap_seconds: 30 }
    }

    /// A group with these devices in it, each of which holds its key.
    pub(crate) fn group_with(&mut self, devices: &mut [&mut Device]) -> Group {
        let mut group = self.group();
        for at in 0..devices.len() {
            let (members, joining) = devices.split_at_mut(at);
            let frame = self.admit(&mut group, joining[0]);
            for member in members {
                member.cell(group.id_of_cell(), &frame).unwrap();
            }
        }
        group
    }

    /// Connects a device, and answers its hello.
    pub(crate) fn connect(&self, device: &mut Device) {
        device.connect();
        self.answer(device);
    }

    /// Reads what the device has published, and answers its newest hello.
    pub(crate) fn answer(&self, device: &mut Device) -> Vec<OpenedUp> {
        let heard = self.hear(device);
        if let Some(hello) = heard.iter().rfind(|frame| matches!(frame.body, UpBody::Hello(_))) {
            self.say(device, &answer(hello.counter)).unwrap();
        }
        heard
    }

    /// Reads what the device has published.
    pub(crate) fn hear(&self, device: &mut Device) -> Vec<OpenedUp> {
        std::mem::take(&mut device.up)
            .iter()
            .map(|frame| device.link.open(&self.start, device.id, &device.link_key, frame).unwrap())
            .collect()
    }

    /// The frame that says `body` to the device.
    pub(crate) fn down(&self, device: &mut Device, body: &DownBody) -> Vec<u8> {
        device.link.seal(&self.start, device.id, &device.link_key, body)
    }

    pub(crate) fn say(&self, device: &mut Device, body: &DownBody) -> Result<Effects, Refused> {
        let frame = self.down(device, body);
        device.down(&frame)
    }

    /// Gets key packages out of the device.
    pub(crate) fn key_packages(&self, device: &mut Device, suite: Suite, count: u8) -> Vec<Vec<u8>> {
        self.say(device, &DownBody::RequestKeyPackages { suite, count }).unwrap();
        let heard = self.hear(device);
        let packages = heard.into_iter().find_map(|frame| match frame {
            OpenedUp { body: UpBody::KeyPackages { packages, .. }, fresh: true, .. } => Some(packages),
            _ => None,
        });
        packages.expect("the device has sent key packages")
    }

    /// Adds a device to the group's cell and welcomes it; the frame for those who were in it before.
    pub(crate) fn admit(&self, group: &mut Group, device: &mut Device) -> Vec<u8> {
        let (welcome, frame) = self.invite(group, device);
        self.say(device, &DownBody::Welcome(welcome)).unwrap();
        frame
    }

    /// Adds a device to the group's cell: its Welcome, not yet sent, and the frame for those who were in it before.
    pub(crate) fn invite(&self, group: &mut Group, device: &mut Device) -> (Welcome, Vec<u8>) {
        let key_package = self.key_packages(device, group.suite, 1).remove(0);
        self.invite_with(group, device, key_package)
    }

    /// As [`Self::invite`], with a key package that the device has sent.
    pub(crate) fn invite_with(
        &self,
        group: &mut Group,
        device: &Device,
        key_package: Vec<u8>,
    ) -> (Welcome, Vec<u8>) {
        let add =
            AddDevice { device: device.id, signature_key: device.config.identity.public_key(), key_package };
        let remove = if group.cell.contains(device.id) { vec![device.id] } else { vec![] };
        let mut committed = group.commit(self, Changes { add: vec![add], remove, ..Changes::default() });
        let welcome = committed.welcomes.remove(&device.id).unwrap();
        let statements = group.live_statements(self);
        let welcome = Welcome {
            group: group.id,
            group_name: "pumps".to_owned(),
            cell: group.id_of_cell(),
            suite: group.suite,
            cell_epoch: committed.epoch,
            welcome,
            statements: statements.iter().map(|signed| group.wrapped(self, signed)).collect(),
        };
        (welcome, group.frame(self, Some(&committed), None))
    }
}

pub(crate) fn coordinator_chain(ca: &FleetCa, key: &IdentityKey, generation: u32) -> Vec<Vec<u8>> {
    let role = Role::Coordinator { generation: Generation(generation) };
    ca.chain(ca.issue(&role, &key.public_key(), &["localhost".to_owned()], validity()).unwrap())
}

pub(crate) fn answer(hello: u64) -> DownBody {
    DownBody::Answer {
        hello,
        hello_interval_seconds: HELLO_INTERVAL_SECONDS,
        max_silence_seconds: MAX_SILENCE_SECONDS,
    }
}

pub(crate) fn load(config: &AgentConfig, store: &mut MemoryStore, now: Now) -> Agent {
    let entries = store.load_all().unwrap();
    let (agent, writes) = Agent::load(config.clone(), &entries, now).unwrap();
    store.commit(&writes).unwrap();
    agent
}

impl Device {
    /// Gives the device an input and does what comes of it, as its shell would.
    pub(crate) fn give(&mut self, input: Input<'_>) -> Result<Effects, Refused> {
        let effects = self.decide(input);
        self.store.commit(&effects.writes).unwrap();
        self.perform(&effects);
        match effects.refused {
            Some(refused) => Err(refused),
            None => Ok(effects),
        }
    }

    /// Gives the device an input, and stops there.
    pub(crate) fn decide(&mut self, input: Input<'_>) -> Effects {
        self.agent.handle(input, self.now, &mut self.rng)
    }

    pub(crate) fn perform(&mut self, effects: &Effects) {
        let mut granted = Vec::new();
        for output in &effects.outputs {
            match output {
                Output::Publish { topic, payload } => {
                    assert_eq!(*topic, Topic::Up { fleet: self.config.fleet, device: self.id });
                    self.up.push(payload.clone());
                }
                Output::Event(event) => self.events.push(event.clone()),
                Output::Subscribe { topic } => {
                    self.requests.push(output.clone());
                    granted.push(*topic);
                }
                Output::Unsubscribe { .. } => self.requests.push(output.clone()),
            }
        }
        for topic in granted {
            self.give(Input::Subscribed { topic }).unwrap();
        }
    }

    pub(crate) fn connect(&mut self) {
        self.give(Input::Connected).unwrap();
    }

    pub(crate) fn down_topic(&self) -> Topic {
        Topic::Down { fleet: self.config.fleet, device: self.id }
    }

    pub(crate) fn cell_topic(&self, cell: CellId) -> Topic {
        Topic::Cell { fleet: self.config.fleet, cell }
    }

    pub(crate) fn down(&mut self, payload: &[u8]) -> Result<Effects, Refused> {
        let topic = self.down_topic();
        self.give(Input::Message { topic, payload })
    }

    pub(crate) fn cell(&mut self, cell: CellId, payload: &[u8]) -> Result<Effects, Refused> {
        let topic = self.cell_topic(cell);
        self.give(Input::Message { topic, payload })
    }

    /// Lets time pass, waking the device whenever it asks for it.
    pub(crate) fn pass(&mut self, milliseconds: u64) {
        let end = self.now.mono.plus(milliseconds);
        while let Some(at) = self.agent.poll_timeout().filter(|at| *at <= end) {
            assert!(at > self.now.mono || self.agent.poll_timeout().is_some());
            self.set_clock(at.max(self.now.mono));
            let before = self.agent.poll_timeout();
            self.give(Input::Timeout).unwrap();
            assert_ne!(before, self.agent.poll_timeout(), "a timeout is not asked for twice");
        }
        self.set_clock(end);
    }

    pub(crate) fn set_clock(&mut self, mono: Millis) {
        self.now.unix_seconds += mono.since(self.now.mono) / 1000;
        self.now.mono = mono;
    }

    /// Loses power: memory is gone, the clock starts anywhere, the store stays.
    pub(crate) fn reboot(&mut self) {
        self.now.mono = Millis(77);
        self.agent = load(&self.config, &mut self.store, self.now);
        self.link = CoordinatorLink::default();
        self.up.clear();
    }

    pub(crate) fn status(&self) -> Status {
        self.agent.status(self.now)
    }

    pub(crate) fn entries(&mut self) -> Entries {
        self.store.load_all().unwrap()
    }

    /// Everything that an input could have changed, but for counters.
    pub(crate) fn state(&mut self) -> (Status, Entries) {
        let mut status = self.status();
        status.refused.clear();
        (status, self.entries())
    }

    /// How often something was refused by this name.
    pub(crate) fn count(&self, name: &str) -> u64 {
        self.status().refused.get(name).copied().unwrap_or_default()
    }

    /// Asserts that an input is refused by `name`, counted, and changes nothing.
    pub(crate) fn assert_refuses(&mut self, input: Input<'_>, name: &str) {
        let (before, count) = (self.state(), self.count(name));
        let effects = self.decide(input);
        let refused = effects.refused.unwrap_or_else(|| panic!("{name}: it was not refused"));
        assert_eq!(refused.name(), name, "{refused}");
        assert!(effects.writes.is_empty(), "{name}: something was to be stored: {:?}", effects.writes);
        assert_eq!(self.state(), before, "{name}: something has changed");
        assert_eq!(self.count(name), count + 1, "{name}: it was not counted");
    }

    pub(crate) fn send(&self, group: &Group) -> KeyEpoch {
        self.of(group).send
    }

    pub(crate) fn of(&self, group: &Group) -> fleetkey_agent_core::GroupStatus {
        self.status().groups.into_iter().find(|of| of.group == group.id).expect("the device is in the group")
    }

    pub(crate) fn is_in(&self, group: &Group) -> bool {
        self.status().groups.iter().any(|of| of.group == group.id)
    }

    pub(crate) fn seal(&mut self, group: &Group, plaintext: &[u8]) -> Vec<u8> {
        self.agent.seal(group.id, plaintext, b"test", false, self.now, &mut self.rng).unwrap()
    }

    pub(crate) fn open(&self, sealed: &[u8]) -> Result<Vec<u8>, fleetkey_agent_core::CannotOpen> {
        self.agent.open(sealed, b"test", self.now).map(|opened| opened.plaintext)
    }
}

impl Group {
    pub(crate) fn id_of_cell(&self) -> CellId {
        self.cell.context().cell
    }

    pub(crate) fn commit(&mut self, fleet: &Fleet, changes: Changes) -> Committed {
        let outcome = self.cell.commit(&fleet.signer(), changes).unwrap();
        assert!(outcome.dropped.is_empty(), "{:?}", outcome.dropped);
        outcome.committed.expect("there was something to commit")
    }

    /// Moves the group to the next key epoch at once, as every rekey but a rotation does.
    pub(crate) fn rekey(&mut self, fleet: &mut Fleet, reason: Reason) -> SignedStatement {
        let next = self.next_key(fleet);
        self.send = next;
        self.oldest = next;
        self.statement(fleet, next, reason)
    }

    /// Makes the next key epoch, which nothing uses yet.
    pub(crate) fn next_key(&mut self, fleet: &mut Fleet) -> KeyEpoch {
        self.key_epoch = self.key_epoch.next_in(7).unwrap();
        self.secrets.insert(self.key_epoch, GroupSecret::random(&mut fleet.rng));
        self.key_epoch
    }

    pub(crate) fn said(&self, key_epoch: KeyEpoch, reason: Reason) -> Statement {
        Statement {
            group: self.id,
            key_epoch,
            commitment: self.secrets[&key_epoch].commitment(self.id, key_epoch),
            reason,
            send: self.send,
            oldest: self.oldest,
            overlap_seconds: self.overlap_seconds,
            issued_unix_seconds: 1_800_000_200,
        }
    }

    pub(crate) fn statement(&self, fleet: &Fleet, key_epoch: KeyEpoch, reason: Reason) -> SignedStatement {
        self.said(key_epoch, reason).sign(fleet.id, fleet.key_id(), fleet.key.signing_key())
    }

    /// One statement for each key epoch that is accepted.
    pub(crate) fn live_statements(&self, fleet: &Fleet) -> Vec<SignedStatement> {
        let live = self.secrets.keys().filter(|key_epoch| **key_epoch >= self.oldest);
        live.map(|key_epoch| {
            let mut said = self.said(*key_epoch, Reason::Join);
            said.send = said.send.min(*key_epoch);
            said.oldest = said.oldest.min(said.send);
            said.sign(fleet.id, fleet.key_id(), fleet.key.signing_key())
        })
        .collect()
    }

    /// A statement with its wrap for the cell's epoch.
    pub(crate) fn wrapped(&self, fleet: &Fleet, signed: &SignedStatement) -> StatementAndWrap {
        self.wrapped_as(fleet, signed, &self.secrets[&signed.statement().key_epoch])
    }

    pub(crate) fn wrapped_as(
        &self,
        fleet: &Fleet,
        signed: &SignedStatement,
        secret: &GroupSecret,
    ) -> StatementAndWrap {
        let context = WrapContext {
            fleet: fleet.id,
            cell: self.id_of_cell(),
            cell_epoch: self.cell.epoch(),
            suite: self.suite,
        };
        StatementAndWrap {
            statement: signed.as_bytes().to_vec(),
            wrap: wrap::wrap(&context, &self.cell.kek(), signed, secret),
        }
    }

    /// The frame of a commit that was just made, a statement, or both.
    pub(crate) fn frame(
        &self,
        fleet: &Fleet,
        committed: Option<&Committed>,
        signed: Option<&SignedStatement>,
    ) -> Vec<u8> {
        let commit = committed.map(|committed| CommitMessages {
            covered_updates: committed.covered_updates.clone(),
            commit: committed.commit.clone(),
        });
        let cell_epoch = committed.map_or(self.cell.epoch(), |committed| committed.epoch_before);
        let rekey = signed.map(|signed| self.wrapped(fleet, signed));
        CellFrame { cell_epoch, commit, rekey }.encode()
    }

    /// Removes devices and rekeys, in one frame.
    pub(crate) fn evict(&mut self, fleet: &mut Fleet, devices: &[&Device]) -> Vec<u8> {
        let remove = devices.iter().map(|device| device.id).collect();
        let committed = self.commit(fleet, Changes { remove, ..Changes::default() });
        let signed = self.rekey(fleet, Reason::Revoke);
        self.frame(fleet, Some(&committed), Some(&signed))
    }

    /// A new key for everybody, at once.
    pub(crate) fn rekey_frame(&mut self, fleet: &mut Fleet) -> Vec<u8> {
        let signed = self.rekey(fleet, Reason::Manual);
        self.frame(fleet, None, Some(&signed))
    }

    pub(crate) fn epoch(&self) -> CellEpoch {
        self.cell.epoch()
    }
}
