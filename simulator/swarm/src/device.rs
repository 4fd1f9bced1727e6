//! A device on a connection of its own: the real agent core, and what it does as figures.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fleetkey_agent_core::{Agent, AgentConfig, Event, Input, Keeper, KeeperError, Kept, Output, Store};
use fleetkey_wire::{DeviceId, Millis, Named as _, Now, Topic};
use rand_chacha::ChaCha20Rng;
use rand_core::{OsRng, SeedableRng as _};

use crate::meter::Traffic;
use crate::rider::{Outbox, Rider};

/// The time, as agents take it: since one moment for all of them.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
    unix: Duration,
}

impl Clock {
    /// A clock that begins now.
    pub fn start() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { origin: Instant::now(), unix }
    }

    /// Now.
    pub fn now(&self) -> Now {
        let since = self.origin.elapsed();
        let mono = Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        Now { mono, unix_seconds: (self.unix + since).as_secs() }
    }

    fn instant(&self, at: Millis) -> Instant {
        // Far enough that nobody waits for it, near enough that no clock overflows.
        const A_YEAR_MS: u64 = 365 * 86_400_000;
        self.origin + Duration::from_millis(at.0.min(self.now().mono.0.saturating_add(A_YEAR_MS)))
    }
}

/// The coordinator's nonce, and the answer to the hello under it.
const FRAMES_OF_A_GREETING: u8 = 2;

/// Whether a device has power.
enum Power<S> {
    On(Box<Keeper<S>>),
    /// What is left without: what was provisioned, and what is stored.
    Off(Box<(AgentConfig, S)>),
    /// What was stored did not load: it stays silent.
    Broken,
}

/// Only connects and subscribes.
#[derive(Debug, Default)]
struct Bare {
    /// Topics that the broker has not granted yet.
    awaited: usize,
    /// When it had granted the last.
    subscribed_at: Option<Instant>,
}

/// One device.
pub struct Device<S> {
    power: Power<S>,
    id: DeviceId,
    up: Box<str>,
    clock: Clock,
    dice: ChaCha20Rng,
    traffic: Traffic,
    refused: BTreeMap<&'static str, u64>,
    alarms: u64,
    /// So many frames on `down` until its hello is answered.
    unanswered: u8,
    /// Answers every message of a cell with so many bytes, and has no agent look at it.
    echo: Option<usize>,
    echoed: u64,
    /// When the coordinator had answered it, on the connection that it has.
    answered_at: Option<Instant>,
    bare: Option<Bare>,
}

impl<S: Store> Device<S> {
    /// Loads the agent that `store` describes.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub fn open(config: AgentConfig, store: S, clock: Clock) -> Result<Self, KeeperError> {
        let (id, fleet) = (config.device, config.fleet);
        Ok(Self {
            power: Power::On(Box::new(Keeper::open(config, store, clock.now())?)),
            id,
            up: Topic::Up { fleet, device: id }.to_string().into(),
            clock,
            dice: ChaCha20Rng::from_rng(OsRng).expect("the system has entropy"),
            traffic: Traffic::default(),
            refused: BTreeMap::new(),
            alarms: 0,
            unanswered: 0,
            echo: None,
            echoed: 0,
            answered_at: None,
            bare: None,
        })
    }

    /// Who it is.
    pub const fn id(&self) -> DeviceId {
        self.id
    }

    /// What came and went.
    pub const fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// What its agent has refused, by name.
    pub const fn refused(&self) -> &BTreeMap<&'static str, u64> {
        &self.refused
    }

    /// Key epochs that were shown with two secrets.
    pub const fn alarms(&self) -> u64 {
        self.alarms
    }

    /// Messages that were answered without a look.
    pub const fn echoed(&self) -> u64 {
        self.echoed
    }

    /// From now on every message of a cell is answered with so many bytes, without a look; or is the agent's again.
    pub const fn set_echo(&mut self, reply_bytes: Option<usize>) {
        self.echo = reply_bytes;
    }

    /// Its power is gone, and its agent with it. With the next connection that is loaded from what it has stored.
    pub fn cut_power(&mut self) {
        self.answered_at = None;
        self.power = match std::mem::replace(&mut self.power, Power::Broken) {
            Power::On(keeper) => Power::Off(Box::new(keeper.into_parts())),
            without @ (Power::Off(_) | Power::Broken) => without,
        };
    }

    fn start(&mut self) {
        self.power = match std::mem::replace(&mut self.power, Power::Broken) {
            Power::Off(left) => {
                let (config, store) = *left;
                Keeper::open(config, store, self.clock.now())
                    .map_or(Power::Broken, |keeper| Power::On(Box::new(keeper)))
            }
            other @ (Power::On(_) | Power::Broken) => other,
        };
    }

    /// From now on it connects and subscribes to what it was subscribed to, and its agent hears nothing of that; or is a
    /// device again. What its connection has become in between, its agent need not know.
    pub fn set_bare(&mut self, is_bare: bool) {
        self.bare = is_bare.then(Bare::default);
    }

    /// When a bare one had all its subscriptions, on the connection that it has.
    pub fn subscribed_at(&self) -> Option<Instant> {
        self.bare.as_ref().and_then(|bare| bare.subscribed_at)
    }

    /// When the coordinator had answered it, on the connection that it has.
    pub const fn answered_at(&self) -> Option<Instant> {
        self.answered_at
    }

    /// What it is subscribed to, or wants to be.
    pub fn topics(&self) -> Vec<Topic> {
        self.agent().map_or_else(Vec::new, Agent::topics)
    }

    fn agent(&self) -> Option<&Agent> {
        match &self.power {
            Power::On(keeper) => Some(keeper.agent()),
            Power::Off(_) | Power::Broken => None,
        }
    }

    fn take_in(&mut self, input: Input<'_>, out: &mut Outbox) {
        let Power::On(keeper) = &mut self.power else { return };
        let kept = match keeper.handle(input, self.clock.now(), &mut self.dice) {
            Ok(Ok(kept)) => kept,
            // The store is memory: it neither fills up nor breaks.
            Ok(Err(_)) | Err(_) => return,
        };
        if self.answered_at.is_none() && keeper.agent().is_answered() {
            self.answered_at = Some(Instant::now());
        }
        let Kept { outputs, refused } = kept;
        if let Some(refused) = refused {
            *self.refused.entry(refused.name()).or_default() += 1;
        }
        for output in outputs {
            match output {
                Output::Publish { topic, payload } => {
                    self.traffic.up.count(&payload);
                    let is_up = matches!(topic, Topic::Up { device, .. } if device == self.id);
                    out.publish(if is_up { self.up.clone() } else { topic.to_string().into() }, payload);
                }
                Output::Subscribe { topic } => out.subscribe(topic.to_string()),
                Output::Unsubscribe { topic } => out.unsubscribe(topic.to_string()),
                Output::Event(Event::Alarm { .. }) => self.alarms += 1,
                Output::Event(_) => {}
            }
        }
    }
}

impl<S: Store + Send + 'static> Rider for Device<S> {
    fn client_id(&self) -> String {
        self.id.to_string()
    }

    fn connected(&mut self, out: &mut Outbox) {
        self.start();
        if self.bare.is_none() {
            self.unanswered = FRAMES_OF_A_GREETING;
            // Its agent asks for all of its topics.
            return self.take_in(Input::Connected, out);
        }
        let topics = self.topics();
        topics.iter().for_each(|topic| out.subscribe(topic.to_string()));
        self.bare = Some(Bare { awaited: topics.len(), subscribed_at: None });
    }

    fn disconnected(&mut self, out: &mut Outbox) {
        self.unanswered = 0;
        match &mut self.bare {
            Some(bare) => *bare = Bare::default(),
            None => {
                self.answered_at = None;
                self.take_in(Input::Disconnected, out);
            }
        }
    }

    fn subscribed(&mut self, topic: &str, is_granted: bool, out: &mut Outbox) {
        if let Some(bare) = &mut self.bare {
            bare.awaited = bare.awaited.saturating_sub(usize::from(is_granted));
            if bare.awaited == 0 {
                bare.subscribed_at.get_or_insert_with(Instant::now);
            }
            return;
        }
        let Ok(topic) = Topic::parse(topic) else { return };
        let input = if is_granted { Input::Subscribed { topic } } else { Input::SubscribeRefused { topic } };
        self.take_in(input, out);
    }

    fn message(&mut self, topic: &str, payload: &[u8], out: &mut Outbox) {
        let Ok(topic) = Topic::parse(topic) else { return };
        match topic {
            Topic::Cell { .. } => {
                self.traffic.cell.count(payload);
                if let Some(bytes) = self.echo {
                    self.echoed += 1;
                    return out.publish(self.up.clone(), vec![0; bytes]);
                }
            }
            Topic::Down { .. } => {
                self.traffic.down.count(payload);
                self.unanswered = self.unanswered.saturating_sub(1);
            }
            Topic::Up { .. } => {}
        }
        self.take_in(Input::Message { topic, payload }, out);
    }

    fn timeout(&mut self, out: &mut Outbox) {
        self.take_in(Input::Timeout, out);
    }

    fn next_timeout(&self) -> Option<Instant> {
        self.agent()?.poll_timeout().map(|at| self.clock.instant(at))
    }

    fn awaits_answer(&self) -> bool {
        self.unanswered > 0
    }
}

#[cfg(test)]
mod tests {
    use fleetkey_agent_core::{Entries, StoreError, Writes};
    use fleetkey_identity::{FleetCa, FleetRoots, IdentityKey, Role, Validity};
    use fleetkey_wire::{FleetId, Generation};

    use super::*;

    /// Counts how often it is read.
    #[derive(Default)]
    struct Counted {
        entries: Entries,
        loads: usize,
    }

    impl Store for Counted {
        fn load_all(&mut self) -> Result<Entries, StoreError> {
            self.loads += 1;
            Ok(self.entries.clone())
        }

        fn commit(&mut self, writes: &Writes) -> Result<(), StoreError> {
            writes.apply_to(&mut self.entries);
            Ok(())
        }
    }

    fn device() -> Device<Counted> {
        let (fleet, validity) = (FleetId::random(&mut OsRng), Validity::without_end(0));
        let ca = FleetCa::create(fleet, &mut OsRng, validity).unwrap();
        let coordinator = IdentityKey::generate(&mut OsRng).public_key();
        let role = Role::Coordinator { generation: Generation(1) };
        let config = AgentConfig {
            fleet,
            device: DeviceId::random(&mut OsRng),
            identity: IdentityKey::generate(&mut OsRng),
            roots: FleetRoots::new(&[ca.certificate_der().to_vec()]).unwrap(),
            coordinator_chain: vec![ca.issue(&role, &coordinator, &[], validity).unwrap()],
        };
        Device::open(config, Counted::default(), Clock::start()).unwrap()
    }

    /// Connects, and has everything granted that it asks for.
    fn connect(device: &mut Device<Counted>) -> Outbox {
        let mut out = Outbox::default();
        device.connected(&mut out);
        for topic in std::mem::take(&mut out.subscribes) {
            device.subscribed(&topic, true, &mut out);
        }
        device.timeout(&mut out);
        out
    }

    fn loads(device: &Device<Counted>) -> usize {
        match &device.power {
            Power::Off(left) => left.1.loads,
            Power::On(_) | Power::Broken => panic!("it has power"),
        }
    }

    #[test]
    fn after_a_power_cut_the_agent_is_loaded_from_its_store_and_says_hello() {
        let mut device = device();
        assert_eq!(connect(&mut device).publishes.len(), 1);
        device.disconnected(&mut Outbox::default());
        device.cut_power();
        assert_eq!((loads(&device), device.topics()), (1, Vec::new()));
        assert!(device.next_timeout().is_none());
        assert_eq!(connect(&mut device).publishes.len(), 1);
        device.cut_power();
        assert_eq!(loads(&device), 2);
    }

    #[test]
    fn a_device_that_connects_asks_for_each_topic_once() {
        let (mut device, mut out) = (device(), Outbox::default());
        device.connected(&mut out);
        assert_eq!(out.subscribes, [device.topics()[0].to_string()]);
    }

    #[test]
    fn a_bare_device_subscribes_and_says_nothing_until_it_is_a_device_again() {
        let mut device = device();
        device.set_bare(true);
        assert_eq!(device.subscribed_at(), None);
        assert!(connect(&mut device).publishes.is_empty());
        assert!(device.subscribed_at().is_some());
        device.disconnected(&mut Outbox::default());
        assert_eq!(device.subscribed_at(), None);
        device.set_bare(false);
        assert_eq!(connect(&mut device).publishes.len(), 1);
    }
}
