//! A device on a connection of its own: the real agent core, and what it does as figures.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fleetkey_agent_core::{
    Agent, AgentConfig, Event, Input, Keeper, KeeperError, Kept, Output, Status, Store,
};
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

/// One device.
pub struct Device<S> {
    keeper: Keeper<S>,
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
}

impl<S: Store> Device<S> {
    /// Loads the agent that `store` describes.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub fn open(config: AgentConfig, store: S, clock: Clock) -> Result<Self, KeeperError> {
        let (id, fleet) = (config.device, config.fleet);
        Ok(Self {
            keeper: Keeper::open(config, store, clock.now())?,
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

    /// Where its agent stands.
    pub fn status(&self) -> Status {
        self.keeper.agent().status(self.clock.now())
    }

    /// Its agent.
    pub const fn agent(&self) -> &Agent {
        self.keeper.agent()
    }

    fn take_in(&mut self, input: Input<'_>, out: &mut Outbox) {
        let kept = match self.keeper.handle(input, self.clock.now(), &mut self.dice) {
            Ok(Ok(kept)) => kept,
            // The store is memory: it neither fills up nor breaks.
            Ok(Err(_)) | Err(_) => return,
        };
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
        // What it was subscribed to before; the agent asks for what is new.
        for topic in self.keeper.agent().topics() {
            out.subscribe(topic.to_string());
        }
        self.take_in(Input::Connected, out);
        self.unanswered = FRAMES_OF_A_GREETING;
    }

    fn disconnected(&mut self, out: &mut Outbox) {
        self.take_in(Input::Disconnected, out);
        self.unanswered = 0;
    }

    fn subscribed(&mut self, topic: &str, is_granted: bool, out: &mut Outbox) {
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
        self.keeper.agent().poll_timeout().map(|at| self.clock.instant(at))
    }

    fn awaits_answer(&self) -> bool {
        self.unanswered > 0
    }
}
