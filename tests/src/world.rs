//! The world: one coordinator, its devices, and what lies between them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use fleetkey_agent_core::{
    Agent, AgentConfig, Entries, Input, MemoryStore as AgentStore, Output, Store as _,
};
use fleetkey_coordinator_core::{
    Access, Coordinator, Effects, Event, MemoryStore, OutboxRecord, Policy, Setup, Store as _, Timing,
    UpRefused,
};
use fleetkey_identity::{FleetCa, FleetRoots, IdentityKey, Role, Validity};
use fleetkey_wire::{DeviceId, FleetId, Generation, GroupId, KeyId, Millis, Now, Pairwise, Topic};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng};

use crate::forge::{self, Place, Way};

const START_UNIX_SECONDS: u64 = 1_800_000_000;

/// One device, and what its shell would keep.
#[derive(Debug)]
pub struct Peer {
    /// The state machine.
    pub agent: Agent,
    /// What survives a restart.
    pub store: AgentStore,
    /// Who it is.
    pub config: AgentConfig,
    /// Whether it is connected.
    pub is_connected: bool,
    /// Every payload that ever reached it.
    pub heard: Vec<(Topic, Vec<u8>)>,
    /// Every event it told its applications.
    pub events: Vec<fleetkey_agent_core::Event>,
    subscriptions: BTreeSet<Topic>,
}

/// How bad the network is. The default is calm: nothing is lost, doubled or overtaken.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// Of a hundred payloads, so many are lost.
    pub lost_percent: u32,
    /// Of a hundred payloads, so many come twice.
    pub doubled_percent: u32,
    /// A payload may be overtaken by so many that were sent after it.
    pub overtaken_by: usize,
}

/// Everything.
#[derive(Debug)]
pub struct World {
    /// The fleet.
    pub fleet: FleetId,
    /// The trust root.
    pub ca: FleetCa,
    /// The coordinator's decisions.
    pub coordinator: Coordinator,
    /// What survives its restart.
    pub store: MemoryStore,
    /// The devices.
    pub peers: BTreeMap<DeviceId, Peer>,
    /// What time it is.
    pub now: Now,
    /// All randomness but that of openmls.
    pub rng: ChaCha20Rng,
    /// Everything the coordinator has published, in order.
    pub published: Vec<(Topic, Vec<u8>)>,
    /// Everything that happened at the coordinator, in order.
    pub events: Vec<Event>,
    /// What the coordinator refused.
    pub refused: Vec<UpRefused>,
    /// Payloads on their way.
    pub wire: VecDeque<(Topic, Vec<u8>)>,
    /// How bad the network is.
    pub weather: Weather,
    /// Who may be in which cell, as a broker would have it.
    pub access: BTreeMap<Topic, BTreeSet<DeviceId>>,
    coordinator_identity: IdentityKey,
    coordinator_chain: Vec<Vec<u8>>,
    timing: Timing,
}

impl World {
    /// A fleet without devices.
    pub fn new(seed: u64) -> Self {
        Self::with_timing(seed, Timing::default())
    }

    /// A fleet without devices, whose coordinator keeps to `timing`.
    pub fn with_timing(seed: u64, timing: Timing) -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let now = Now { mono: Millis(1_000), unix_seconds: START_UNIX_SECONDS };
        let fleet = FleetId::random(&mut rng);
        let validity = Validity::without_end(START_UNIX_SECONDS as i64 - 60);
        let ca = FleetCa::create(fleet, &mut rng, validity).expect("a root can be made");
        let identity = IdentityKey::generate(&mut rng);
        let role = Role::Coordinator { generation: Generation(1) };
        let leaf =
            ca.issue(&role, &identity.public_key(), &[], validity).expect("a certificate can be issued");
        let chain = vec![leaf];
        let mut store = MemoryStore::default();
        store.commit(&Coordinator::initial_rows(now.unix_seconds)).expect("memory does not fail");
        let setup = setup(fleet, &identity, &chain, timing);
        let coordinator = Coordinator::load(setup, &mut store, now, &mut rng).expect("a new store loads");
        Self {
            fleet,
            ca,
            coordinator,
            store,
            peers: BTreeMap::new(),
            now,
            rng,
            published: Vec::new(),
            events: Vec::new(),
            refused: Vec::new(),
            wire: VecDeque::new(),
            weather: Weather::default(),
            access: BTreeMap::new(),
            coordinator_identity: identity,
            coordinator_chain: chain,
            timing,
        }
    }

    /// Enrols `count` devices and connects them.
    pub fn enroll(&mut self, count: usize) -> Vec<DeviceId> {
        let ids: Vec<_> = (0..count).map(|_| self.enroll_one()).collect();
        self.settle();
        ids
    }

    fn enroll_one(&mut self) -> DeviceId {
        let id = DeviceId::random(&mut self.rng);
        let identity = IdentityKey::generate(&mut self.rng);
        let name = format!("device-{}", self.peers.len());
        self.coordinator
            .enroll_device(id, &name, identity.public_key(), self.now)
            .expect("a new device enrolls");
        self.perform();
        let roots = FleetRoots::new(&[self.ca.certificate_der().to_vec()]).expect("our own root is one");
        let coordinator_chain = self.coordinator_chain.clone();
        let config = AgentConfig { fleet: self.fleet, device: id, identity, roots, coordinator_chain };
        let mut store = AgentStore::default();
        let agent = start(&config, &mut store, self.now);
        let peer = Peer {
            agent,
            store,
            config,
            is_connected: false,
            heard: Vec::new(),
            events: Vec::new(),
            subscriptions: BTreeSet::new(),
        };
        self.peers.insert(id, peer);
        self.connect(id);
        id
    }

    /// Creates a group and brings `devices` into it.
    pub fn group(&mut self, name: &str, policy: Policy, devices: &[DeviceId]) -> GroupId {
        let group = self
            .coordinator
            .create_group(name, policy, self.now, &mut self.rng)
            .expect("a group can be created");
        self.perform();
        self.add(group, devices);
        group
    }

    /// Brings devices into a group.
    pub fn add(&mut self, group: GroupId, devices: &[DeviceId]) {
        self.coordinator.add_members(group, devices, self.now, &mut self.rng).expect("devices can be added");
        self.perform();
        self.run_for(30_000);
    }

    /// Revokes devices, and lets what follows happen.
    pub fn revoke(&mut self, devices: &[DeviceId]) {
        self.coordinator.revoke(devices, "test", self.now, &mut self.rng).expect("devices can be revoked");
        self.perform();
        self.settle();
    }

    /// The coordinator's identity key.
    pub fn coordinator_public_key(&self) -> [u8; 32] {
        self.coordinator_identity.public_key()
    }

    /// The frame that says `body`, any bytes, to a device that was answered on this connection: as if the coordinator
    /// had said it. `skip` keeps its counter ahead of those before it.
    ///
    /// # Panics
    ///
    /// When nothing was said to that device yet.
    pub fn down_frame(&mut self, id: DeviceId, skip: u64, body: &[u8]) -> Vec<u8> {
        let down = Topic::Down { fleet: self.fleet, device: id };
        let newest = self.published.iter().rev().find(|(topic, _)| *topic == down);
        let mut place = newest.and_then(|(_, frame)| Place::of(frame)).expect("it was spoken to");
        place.counter += skip;
        let (coordinator, fleet) = (self.coordinator_public_key(), self.fleet);
        let own = self.peer(id).config.identity.clone();
        let pairwise =
            Pairwise::agree(fleet, id, own.signing_key(), &coordinator).expect("both keys are good");
        forge::link_frame(&pairwise.link_key(), Way::Down, &place, body)
    }

    /// The device `id`.
    pub fn peer(&mut self, id: DeviceId) -> &mut Peer {
        self.peers.get_mut(&id).expect("the device was enrolled here")
    }

    /// Connects a device.
    pub fn connect(&mut self, id: DeviceId) {
        self.peer(id).is_connected = true;
        self.feed(id, &Input::Connected);
    }

    /// Takes a device off the network. What is on its way to it is lost.
    pub fn disconnect(&mut self, id: DeviceId) {
        let peer = self.peer(id);
        peer.is_connected = false;
        peer.subscriptions.clear();
        self.feed(id, &Input::Disconnected);
    }

    /// Kills a device's process and starts it again from what it has stored.
    pub fn restart(&mut self, id: DeviceId) {
        let now = self.now;
        let peer = self.peer(id);
        peer.subscriptions.clear();
        peer.agent = start(&peer.config, &mut peer.store, now);
        if peer.is_connected {
            self.feed(id, &Input::Connected);
        }
    }

    /// Takes all that a device has stored from it, and starts it again.
    pub fn wipe(&mut self, id: DeviceId) {
        self.peer(id).store = AgentStore::default();
        self.restart(id);
    }

    /// Kills the coordinator and starts it again from what it has stored.
    pub fn restart_coordinator(&mut self) {
        let setup = setup(self.fleet, &self.coordinator_identity, &self.coordinator_chain, self.timing);
        self.coordinator = Coordinator::load(setup, &mut self.store, self.now, &mut self.rng)
            .expect("the store loads again");
        self.perform();
    }

    /// Does what the coordinator has decided: stores it, then sends it.
    pub fn perform(&mut self) {
        let effects = self.coordinator.take_effects().expect("no decision failed half-way");
        self.store.commit(&effects.writes).expect("memory does not fail");
        self.perform_stored(effects);
    }

    /// Does what follows from effects that are stored.
    pub fn perform_stored(&mut self, effects: Effects) {
        for access in effects.access {
            match access {
                Access::CellMembers { cell, members } => {
                    let topic = Topic::Cell { fleet: self.fleet, cell };
                    self.access.insert(topic, members.into_iter().collect());
                }
                Access::CellGone { cell } => {
                    self.access.remove(&Topic::Cell { fleet: self.fleet, cell });
                }
                Access::Revoked { .. } => {}
            }
        }
        for publish in effects.publishes {
            self.published.push((publish.topic, publish.payload.clone()));
            self.wire.push_back((publish.topic, publish.payload));
            if let Some(number) = publish.outbox {
                self.store.commit(&[OutboxRecord::delete_number(number)]).expect("memory does not fail");
            }
        }
        self.events.extend(effects.events);
    }

    /// Gives a device one input, and does what it leads to.
    pub fn feed(&mut self, id: DeviceId, input: &Input<'_>) {
        let now = self.now;
        let peer = self.peers.get_mut(&id).expect("the device was enrolled here");
        let effects = peer.agent.handle(*input, now, &mut self.rng);
        peer.store.commit(&effects.writes).expect("memory does not fail");
        let mut granted = Vec::new();
        for output in effects.outputs {
            match output {
                Output::Publish { topic, payload } if peer.is_connected => {
                    self.wire.push_back((topic, payload))
                }
                Output::Publish { .. } => {}
                Output::Subscribe { topic } => granted.push(topic),
                Output::Unsubscribe { topic } => {
                    peer.subscriptions.remove(&topic);
                }
                Output::Event(event) => peer.events.push(event),
            }
        }
        for topic in granted.into_iter().filter(|_| peer.is_connected).collect::<Vec<_>>() {
            self.peer(id).subscriptions.insert(topic);
            self.feed(id, &Input::Subscribed { topic });
        }
    }

    /// Delivers everything that is on its way, and what that leads to, without time passing.
    pub fn settle(&mut self) {
        while !self.wire.is_empty() {
            let among = self.wire.len().min(1 + self.weather.overtaken_by);
            let at = self.rng.next_u32() as usize % among;
            let Some((topic, payload)) = self.wire.remove(at) else { return };
            if self.happens(self.weather.lost_percent) {
                continue;
            }
            if self.happens(self.weather.doubled_percent) {
                self.wire.push_back((topic, payload.clone()));
            }
            self.deliver(topic, &payload);
        }
    }

    fn happens(&mut self, percent: u32) -> bool {
        percent > 0 && self.rng.next_u32() % 100 < percent
    }

    /// Delivers one payload to whoever listens.
    pub fn deliver(&mut self, topic: Topic, payload: &[u8]) {
        if let Topic::Up { device, .. } = topic {
            self.up(device, payload);
            return;
        }
        let listeners: Vec<DeviceId> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.is_connected && peer.subscriptions.contains(&topic))
            .map(|(id, _)| *id)
            .collect();
        for id in listeners {
            self.peer(id).heard.push((topic, payload.to_vec()));
            self.feed(id, &Input::Message { topic, payload });
        }
    }

    /// Gives the coordinator a payload from a device's `up` topic.
    pub fn up(&mut self, device: DeviceId, payload: &[u8]) {
        if let Err(refused) = self.coordinator.handle_up(device, payload, self.now, &mut self.rng) {
            self.refused.push(refused);
        }
        self.perform();
    }

    /// Lets time pass, doing whatever is due when it is due.
    pub fn run_for(&mut self, milliseconds: u64) {
        let end = self.now.mono.plus(milliseconds);
        self.settle();
        loop {
            let due = self
                .peers
                .values()
                .filter_map(|peer| peer.agent.poll_timeout())
                .chain(self.coordinator.poll_timeout())
                .min()
                .map_or(end, |due| due.min(end));
            if due >= end && self.now.mono >= end {
                return;
            }
            self.pass_to(due.max(self.now.mono.plus(1)).min(end));
            self.coordinator.handle_timeout(self.now, &mut self.rng);
            self.perform();
            let now = self.now.mono;
            let due: Vec<DeviceId> = self
                .peers
                .iter()
                .filter(|(_, peer)| peer.agent.poll_timeout().is_some_and(|due| due <= now))
                .map(|(id, _)| *id)
                .collect();
            for id in due {
                self.feed(id, &Input::Timeout);
            }
            self.settle();
        }
    }

    fn pass_to(&mut self, mono: Millis) {
        let unix_seconds = START_UNIX_SECONDS + mono.0 / 1_000;
        self.now = Now { mono, unix_seconds };
    }

    /// Everything a device has stored, for comparing.
    pub fn stored(&mut self, id: DeviceId) -> Entries {
        self.peer(id).store.load_all().expect("memory does not fail")
    }

    /// Everything the coordinator has stored, for comparing.
    pub fn coordinator_rows(&mut self) -> Vec<fleetkey_coordinator_core::Row> {
        let tables = fleetkey_coordinator_core::Table::ALL;
        tables.iter().flat_map(|table| self.store.rows(*table).expect("memory does not fail")).collect()
    }

    /// Every agent of `group` that is connected holds its newest key, and the coordinator knows.
    ///
    /// # Panics
    ///
    /// Naming the device and what is wrong with it, when that is not so.
    pub fn assert_current(&mut self, group: GroupId) {
        let status = self.coordinator.group_status(group, self.now).expect("the group is there");
        let members: Vec<_> = self.coordinator.members(group).cloned().collect();
        for member in members {
            let now = self.now;
            let Some(peer) = self.peers.get(&member.device).filter(|peer| peer.is_connected) else {
                continue;
            };
            let shown = peer.agent.status(now);
            let of_group = shown.groups.iter().find(|shown| shown.group == group);
            let of_group = of_group.unwrap_or_else(|| {
                let online = self.coordinator.is_online(member.device, now);
                panic!(
                    "{} is not in {group}: {shown:?}; the coordinator has {member:?}, online {online}",
                    member.device
                )
            });
            assert_eq!(of_group.send.to_string(), status.send, "send of {}", member.device);
            assert_eq!(of_group.oldest.to_string(), status.oldest, "oldest of {}", member.device);
            assert_eq!(
                of_group.held.last().map(ToString::to_string).as_ref(),
                Some(&status.key_epoch),
                "newest key epoch of {}",
                member.device
            );
            assert_eq!(member.confirmed.to_string(), status.key_epoch, "confirmation of {}", member.device);
        }
    }
}

fn setup(fleet: FleetId, identity: &IdentityKey, chain: &[Vec<u8>], timing: Timing) -> Setup {
    let key_id = KeyId::of_certificate(&chain[0]);
    Setup {
        fleet,
        identity: identity.clone(),
        chain: chain.to_vec(),
        generation: Generation(1),
        key_id,
        timing,
    }
}

fn start(config: &AgentConfig, store: &mut AgentStore, now: Now) -> Agent {
    let entries = store.load_all().expect("memory does not fail");
    let (agent, writes) = Agent::load(config.clone(), &entries, now).expect("the store loads");
    store.commit(&writes).expect("memory does not fail");
    agent
}
