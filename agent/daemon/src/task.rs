//! One agent as one task: it performs what the state machine asks for, writes first.
//!
//! Transactions are stored on the task's own thread: they take milliseconds, and nothing may overtake them.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fleetkey_agent_core::{
    AgentConfig, Event, Input, Keeper, KeeperError, Kept, LoadError, Output, Refused, Store, StoreError,
};
use fleetkey_mqtt::{BadOptions, Client, Events, Options};
use fleetkey_wire::{DeviceId, Millis, Now, PskId, Topic};
use rand_core::OsRng;
use tokio::sync::{broadcast, mpsc};
use tokio::time::{Instant, sleep_until};

use crate::handle::{AgentHandle, Command, Waiter};
use crate::traffic::Meter;

/// Calls on one agent that may wait for its task.
const MAX_COMMANDS: usize = 64;
/// Events that a slow listener may be behind.
const MAX_EVENTS: usize = 64;
/// After a transaction that was not stored, the broker is left alone for this long.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// Is told of every event as it happens, on the agent's task: it must not wait.
pub type Observer = Arc<dyn Fn(DeviceId, &AgentEvent) + Send + Sync>;

/// What an agent is started with.
pub struct AgentSetup {
    /// Who the device is, and whom it trusts.
    pub config: AgentConfig,
    /// Where it remembers.
    pub store: Box<dyn Store + Send>,
    /// How it reaches the broker. What it subscribes to is added.
    pub mqtt: Options,
    /// Whether it connects at once, or waits for [`AgentHandle::reconnect`].
    pub connect: bool,
    /// Whether every received message is kept, see [`AgentHandle::recorded`].
    pub record: bool,
    /// Who else is told of events.
    pub observer: Option<Observer>,
}

impl AgentSetup {
    /// An agent that connects at once, and keeps nothing that it need not keep.
    pub fn new(config: AgentConfig, store: Box<dyn Store + Send>, mqtt: Options) -> Self {
        Self { config, store, mqtt, connect: true, record: false, observer: None }
    }
}

impl fmt::Debug for AgentSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentSetup")
            .field("config", &self.config)
            .field("mqtt", &self.mqtt)
            .finish_non_exhaustive()
    }
}

/// What applications may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentEvent {
    /// The broker has accepted a connection.
    Connected,
    /// There is no connection to the broker. Told once, not for each attempt.
    Disconnected {
        /// Why.
        reason: String,
    },
    /// The state machine's news.
    Device(Event),
}

/// Why an agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its store cannot be read, or not be written.
    #[error("key store: {0}")]
    Store(#[from] StoreError),
    /// What is stored, or configured, does not make sense.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The connection cannot be as it is configured.
    #[error("broker connection: {0}")]
    Mqtt(#[from] BadOptions),
}

impl From<KeeperError> for StartError {
    fn from(error: KeeperError) -> Self {
        match error {
            KeeperError::Store(error) => Self::Store(error),
            KeeperError::Load(error) => Self::Load(error),
        }
    }
}

/// Starts an agent on the current tokio runtime. It runs until [`AgentHandle::stop`], or until every handle is gone.
///
/// # Errors
/// [`StartError`], before anything is started.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn spawn(setup: AgentSetup) -> Result<AgentHandle, StartError> {
    let AgentSetup { config, store, mqtt, connect, record, observer } = setup;
    let clock = Clock::start();
    let keeper = Keeper::open(config, store, clock.now())?;
    let device = keeper.agent().device();
    let (commands, received) = mpsc::channel(MAX_COMMANDS);
    let (events, _) = broadcast::channel(MAX_EVENTS);
    let meter = Arc::new(Meter::new(record));
    let mut task = Task {
        device,
        keeper,
        mqtt,
        clock,
        link: Link::Unplugged,
        is_connected: false,
        is_told_disconnected: false,
        events: events.clone(),
        observer,
        meter: Arc::clone(&meter),
        waiters: Vec::new(),
    };
    if connect {
        task.plug()?;
    }
    tokio::spawn(task.run(received));
    Ok(AgentHandle { device, commands, events, meter })
}

/// The time, as the state machine takes it.
struct Clock {
    origin: Instant,
}

impl Clock {
    fn start() -> Self {
        Self { origin: Instant::now() }
    }

    fn now(&self) -> Now {
        let mono = Millis(u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX));
        let unix_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Now { mono, unix_seconds }
    }

    fn instant(&self, at: Millis) -> Instant {
        // Far enough that nobody waits for it, near enough that no clock overflows.
        const A_YEAR_MS: u64 = 365 * 86_400_000;
        self.origin + Duration::from_millis(at.0.min(self.now().mono.0.saturating_add(A_YEAR_MS)))
    }
}

/// The way to the broker.
enum Link {
    /// None, and none is wanted.
    Unplugged,
    /// None until then: the store has failed.
    Waiting(Instant),
    /// The MQTT client sees to it.
    Plugged(Client, Events),
}

struct Task {
    device: DeviceId,
    keeper: Keeper<Box<dyn Store + Send>>,
    mqtt: Options,
    clock: Clock,
    link: Link,
    is_connected: bool,
    is_told_disconnected: bool,
    events: broadcast::Sender<AgentEvent>,
    observer: Option<Observer>,
    meter: Arc<Meter>,
    waiters: Vec<Waiter>,
}

/// What woke the task.
enum Woken {
    Command(Option<Command>),
    News(Option<fleetkey_mqtt::Event>),
    Timeout,
    Replug,
}

impl Task {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            let deadline = self.keeper.agent().poll_timeout().map(|at| self.clock.instant(at));
            let woken = tokio::select! {
                command = commands.recv() => Woken::Command(command),
                woken = next(&mut self.link) => woken,
                () = sleep_or_never(deadline) => Woken::Timeout,
            };
            let outcome = match woken {
                Woken::Command(None) => break,
                Woken::Command(Some(Command::Stop)) => {
                    if let Link::Plugged(client, _) = &self.link {
                        client.close().await;
                    }
                    break;
                }
                Woken::Command(Some(command)) => self.obey(command),
                Woken::News(Some(news)) => self.hear(news),
                // The client ends only when it is closed.
                Woken::News(None) => self.unplug(),
                Woken::Timeout => self.take_in(Input::Timeout).map(drop),
                Woken::Replug => self.plug(),
            };
            if let Err(error) = outcome {
                tracing::error!(device = %self.device, %error, "agent ends");
                break;
            }
            self.answer_waiters();
        }
    }

    fn plug(&mut self) -> Result<(), StartError> {
        let mut options = self.mqtt.clone();
        options.filters = self.keeper.agent().topics().iter().map(ToString::to_string).collect();
        let (client, events) = fleetkey_mqtt::connect(options)?;
        self.link = Link::Plugged(client, events);
        Ok(())
    }

    /// Like pulling the cable: nobody is told.
    fn unplug(&mut self) -> Result<(), StartError> {
        self.link = Link::Unplugged;
        self.lose_connection("unplugged".to_owned())
    }

    fn lose_connection(&mut self, reason: String) -> Result<(), StartError> {
        if !self.is_told_disconnected {
            self.is_told_disconnected = true;
            tracing::info!(device = %self.device, %reason, "disconnected");
            self.tell(AgentEvent::Disconnected { reason });
        }
        if std::mem::take(&mut self.is_connected) {
            self.take_in(Input::Disconnected)?;
        }
        Ok(())
    }

    fn hear(&mut self, news: fleetkey_mqtt::Event) -> Result<(), StartError> {
        match news {
            fleetkey_mqtt::Event::Connected => {
                self.meter.connected();
                if std::mem::replace(&mut self.is_connected, true) {
                    self.take_in(Input::Disconnected)?;
                }
                self.is_told_disconnected = false;
                tracing::info!(device = %self.device, "connected");
                self.tell(AgentEvent::Connected);
                self.take_in(Input::Connected)?;
            }
            fleetkey_mqtt::Event::Disconnected { reason, .. } => self.lose_connection(reason)?,
            fleetkey_mqtt::Event::Subscribed { filter } => {
                if let Ok(topic) = Topic::parse(&filter) {
                    self.take_in(Input::Subscribed { topic })?;
                }
            }
            fleetkey_mqtt::Event::SubscribeRefused { filter } => {
                tracing::debug!(device = %self.device, %filter, "subscription refused");
                if let Ok(topic) = Topic::parse(&filter) {
                    self.take_in(Input::SubscribeRefused { topic })?;
                }
            }
            fleetkey_mqtt::Event::Message { topic, payload } => match Topic::parse(&topic) {
                Ok(topic) => {
                    self.meter.received(topic, &payload);
                    self.take_in(Input::Message { topic, payload: &payload })?;
                }
                Err(bad) => tracing::debug!(device = %self.device, %bad, "message on a foreign topic"),
            },
            fleetkey_mqtt::Event::MessagesDropped { count } => {
                self.meter.dropped(count);
                self.take_in(Input::MessagesDropped)?;
            }
        }
        Ok(())
    }

    fn obey(&mut self, command: Command) -> Result<(), StartError> {
        let now = self.clock.now();
        match command {
            Command::Seal { group, plaintext, context, sign, reply } => {
                let sealed = self.keeper.agent_mut().seal(group, &plaintext, &context, sign, now, &mut OsRng);
                _ = reply.send(sealed);
            }
            Command::Open { sealed, context, reply } => {
                _ = reply.send(self.keeper.agent().open(&sealed, &context, now));
            }
            Command::AppKey { group, label, context, length, reply } => {
                _ = reply.send(self.keeper.agent().app_key(group, &label, &context, length, now));
            }
            Command::KnowSender { chain, reply } => {
                _ = reply.send(self.keeper.agent_mut().know_sender(&chain))
            }
            Command::Status { reply } => _ = reply.send(self.keeper.agent().status(now)),
            Command::Wait(waiter) => self.waiters.push(waiter),
            Command::Leave { group, reply } => {
                _ = reply.send(self.take_in(Input::Leave { group })?.map_or(Ok(()), Err));
            }
            Command::AddPsk { group, psk, reply } => {
                let refused = self.take_in(Input::AddPsk { group: &group, psk: &psk })?;
                _ = reply.send(self.outcome(refused, psk.id(), true));
            }
            Command::RemovePsk { psk, reply } => {
                let refused = self.take_in(Input::RemovePsk { psk })?;
                _ = reply.send(self.outcome(refused, psk, false));
            }
            Command::Inject { topic, payload, reply } => {
                let refused = self.take_in(Input::Message { topic, payload: &payload })?;
                _ = reply.send(refused.map_or(Ok(()), Err));
            }
            Command::Disconnect { reply } => {
                self.unplug()?;
                _ = reply.send(());
            }
            Command::Reconnect { reply } => {
                if !matches!(self.link, Link::Plugged(..)) {
                    self.plug()?;
                }
                _ = reply.send(());
            }
            // Seen to by the loop.
            Command::Stop => {}
        }
        Ok(())
    }

    /// Whether a pre-shared key is held, or not, as it should be: it is not where the input could not be stored.
    fn outcome(&self, refused: Option<Refused>, psk: PskId, should_hold: bool) -> Result<(), Refused> {
        let status = self.keeper.agent().status(self.clock.now());
        match refused {
            Some(refused) => Err(refused),
            None if status.psks.iter().any(|held| held.psk == psk) == should_hold => Ok(()),
            None => Err(Refused::NotStored),
        }
    }

    /// Gives the state machine an input, stores what it writes, and then does what it asks for.
    fn take_in(&mut self, input: Input<'_>) -> Result<Option<Refused>, StartError> {
        match self.keeper.handle(input, self.clock.now(), &mut OsRng)? {
            Ok(Kept { outputs, refused }) => {
                for output in outputs {
                    self.perform(output);
                }
                Ok(refused)
            }
            Err(error) => {
                tracing::error!(device = %self.device, %error, "transaction not stored");
                self.begin_again();
                Ok(None)
            }
        }
    }

    /// The agent was loaded again: the connection that it knew of goes too.
    fn begin_again(&mut self) {
        self.is_connected = false;
        self.link = match self.link {
            Link::Unplugged => Link::Unplugged,
            Link::Waiting(_) | Link::Plugged(..) => Link::Waiting(Instant::now() + STORE_RETRY),
        };
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Event(event) => {
                self.log(&event);
                self.tell(AgentEvent::Device(event));
            }
            Output::Publish { topic, payload } => {
                let Link::Plugged(client, _) = &self.link else { return };
                let bytes = payload.len();
                // The coordinator asks again for what does not arrive.
                match client.try_publish(&topic.to_string(), payload) {
                    Ok(()) => self.meter.sent(bytes),
                    Err(error) => {
                        self.meter.dropped(1);
                        tracing::debug!(device = %self.device, %error, "not published");
                    }
                }
            }
            Output::Subscribe { topic } => {
                if let Link::Plugged(client, _) = &self.link
                    && let Err(error) = client.subscribe(&topic.to_string())
                {
                    tracing::warn!(device = %self.device, %topic, %error, "not subscribed");
                }
            }
            Output::Unsubscribe { topic } => {
                if let Link::Plugged(client, _) = &self.link {
                    client.unsubscribe(&topic.to_string());
                }
            }
        }
    }

    fn log(&self, event: &Event) {
        let device = tracing::field::display(self.device);
        match event {
            Event::Joined { group, name, cell } => tracing::info!(device, %group, name, %cell, "joined"),
            Event::KeyActivated { group, key_epoch } => {
                tracing::info!(device, %group, %key_epoch, "key activated");
            }
            Event::Removed { group, because } => tracing::info!(device, %group, ?because, "removed"),
            Event::Alarm { group, key_epoch } => {
                tracing::error!(device, %group, %key_epoch, "two secrets for one key epoch");
            }
            Event::PskLacking { group, psk } => {
                tracing::warn!(device, %group, %psk, "pre-shared key lacking");
            }
            Event::Silent { seconds } => tracing::warn!(device, seconds, "coordinator silent"),
            Event::Heard => tracing::info!(device, "coordinator heard"),
            Event::CertificateUpdated { generation } => {
                tracing::info!(device, generation = generation.0, "coordinator certificate updated");
            }
        }
    }

    fn tell(&self, event: AgentEvent) {
        if let Some(observer) = &self.observer {
            observer(self.device, &event);
        }
        // An error says that nobody listens.
        _ = self.events.send(event);
    }

    fn answer_waiters(&mut self) {
        if self.waiters.is_empty() {
            return;
        }
        let status = self.keeper.agent().status(self.clock.now());
        let (done, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiters).into_iter().partition(|waiter| waiter.is_done(&status));
        self.waiters = waiting;
        for waiter in done {
            waiter.answer(status.clone());
        }
    }
}

async fn next(link: &mut Link) -> Woken {
    match link {
        Link::Unplugged => std::future::pending().await,
        Link::Waiting(until) => {
            sleep_until(*until).await;
            Woken::Replug
        }
        Link::Plugged(_, events) => Woken::News(events.next().await),
    }
}

async fn sleep_or_never(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
