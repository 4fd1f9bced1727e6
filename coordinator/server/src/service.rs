//! The running coordinator: the engine's thread, the connection to the broker, and the way to give commands.

use std::fmt;
use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use fleetkey_coordinator_core::{
    CommandError, Coordinator, DeviceRecord, Event, GroupStatus, LoadError, MemberRecord, Policy, Setup,
    Status, Store,
};
use fleetkey_mqtt::{BadOptions, Options};
use fleetkey_wire::error::Named;
use fleetkey_wire::{DeviceId, GroupId, KeyEpoch, Now};
use rand_core::CryptoRngCore;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle as Task;

use crate::cpu::ThreadCpu;
use crate::engine::{
    self, Answer, Command, CommandFailed, Engine, MAX_COMMANDS, MAX_HANDED, MAX_UPS, OutboxTicket, Outgoing,
    Ports, Stop, Up,
};
use crate::feed::PolicyFeed;
use crate::link;
use crate::meter;
use crate::stats::{Counts, Stats};

/// Events that a listener may fall behind before it is told that some are lost.
const MAX_EVENTS_BEHIND: usize = 16_384;
/// How long an orderly end waits for the connection to be closed.
const CLOSE_WITHIN: Duration = Duration::from_secs(6);

/// What a [`Service`] is started with.
pub struct ServiceConfig {
    /// Who the coordinator is.
    pub setup: Setup,
    /// Where its state lives.
    pub store: Box<dyn Store + Send>,
    /// The connection to the broker: see [`crate::mqtt_options`].
    pub mqtt: Options,
    /// What brokers are told. Listeners that are there before the start miss nothing.
    pub policy_feed: PolicyFeed,
}

/// Why a service does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// What is stored cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The connection's settings make no sense.
    #[error(transparent)]
    Mqtt(#[from] BadOptions),
    /// The system gives no thread.
    #[error("start the coordinator's thread: {0}")]
    Thread(#[from] io::Error),
    /// The thread ended before it said how the load went.
    #[error("the coordinator's thread ended at once: see the log")]
    Ended,
}

/// A running coordinator. Dropping it ends it at once, as a crash would; what was committed stays.
#[derive(Debug)]
pub struct Service {
    handle: ServiceHandle,
    stop: watch::Sender<Stop>,
    thread: Option<JoinHandle<()>>,
    receiving: Task<()>,
    sending: Task<()>,
}

/// The way to give commands to a running coordinator and to ask it; cheap to clone.
///
/// A command's answer comes when its transaction is committed.
#[derive(Clone)]
pub struct ServiceHandle {
    commands: mpsc::Sender<Command>,
    events: broadcast::Sender<Event>,
    feed: PolicyFeed,
    counts: Counts,
    cpu: Option<ThreadCpu>,
    is_loaded: watch::Receiver<bool>,
    is_connected: watch::Receiver<bool>,
}

impl Service {
    /// Loads the coordinator, starts its thread and the connection. Returns when the load is done; the connection
    /// is tried for ever.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: ServiceConfig) -> Result<Self, StartError> {
        let ServiceConfig { setup, store, mqtt, policy_feed } = config;
        let fleet = setup.fleet;
        let Wired { handle, stop, thread, ups, sent, outgoing, connected } =
            wire(setup, store, policy_feed).await?;
        let (client, news) = fleetkey_mqtt::connect(mqtt)?;
        let is_connected = connected.subscribe();
        let receiving = tokio::spawn(link::receive(news, fleet, ups, connected));
        let sending = tokio::spawn(link::send(client, outgoing, sent, is_connected, stop.subscribe()));
        Ok(Self { handle, stop, thread: Some(thread), receiving, sending })
    }

    /// The way to give commands.
    pub fn handle(&self) -> ServiceHandle {
        self.handle.clone()
    }

    /// Ends in order: what was commanded is decided, what waits is sent while there is a connection, and the store
    /// is closed when this returns.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(Stop::Finish);
        self.join().await;
        // Everything was handed over when the thread ended.
        if tokio::time::timeout(CLOSE_WITHIN, &mut self.sending).await.is_err() {
            tracing::debug!("the connection does not close");
        }
    }

    /// Ends at once, as a crash would: nothing more is sent, the outbox stays as it is. The store is closed when
    /// this returns.
    pub async fn kill(mut self) {
        self.receiving.abort();
        self.sending.abort();
        self.stop.send_replace(Stop::Kill);
        self.join().await;
    }

    async fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // The only failure is a panic of the thread, which has been reported where it happened.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

/// A started engine, and the ends of its ports.
pub(crate) struct Wired {
    pub(crate) handle: ServiceHandle,
    pub(crate) stop: watch::Sender<Stop>,
    pub(crate) thread: JoinHandle<()>,
    pub(crate) ups: mpsc::Sender<Up>,
    pub(crate) sent: mpsc::Sender<OutboxTicket>,
    pub(crate) outgoing: mpsc::Receiver<Outgoing>,
    pub(crate) connected: watch::Sender<bool>,
}

/// Starts the engine alone, and waits for its first load.
pub(crate) async fn wire(
    setup: Setup,
    store: Box<dyn Store + Send>,
    feed: PolicyFeed,
) -> Result<Wired, StartError> {
    let (stop, stopping) = watch::channel(Stop::Run);
    let (commands, command_queue) = mpsc::channel(MAX_COMMANDS);
    let (ups, up_queue) = mpsc::channel(MAX_UPS);
    let (sent, sent_queue) = mpsc::channel(MAX_HANDED);
    let (outgoing_queue, outgoing) = mpsc::channel(MAX_HANDED);
    let (connected, is_connected) = watch::channel(false);
    let (loaded, is_loaded) = watch::channel(false);
    let events = broadcast::Sender::new(MAX_EVENTS_BEHIND);
    let counts = Counts::default();
    let engine = Engine {
        setup,
        store,
        feed: feed.clone(),
        events: events.clone(),
        counts: counts.clone(),
        is_ready: loaded,
    };
    let ports = Ports {
        stop: stopping,
        commands: command_queue,
        ups: up_queue,
        sent: sent_queue,
        outgoing: outgoing_queue,
        is_connected: is_connected.clone(),
    };
    let (told, first_load) = oneshot::channel();
    let thread = engine::start(engine, ports, told)?;
    let cpu = first_load.await.map_err(|_| StartError::Ended)??;
    let handle = ServiceHandle { commands, events, feed, counts, cpu, is_loaded, is_connected };
    Ok(Wired { handle, stop, thread, ups, sent, outgoing, connected })
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.send_if_modified(|stop| {
            let is_running = *stop == Stop::Run;
            if is_running {
                *stop = Stop::Kill;
            }
            is_running
        });
        self.receiving.abort();
        self.sending.abort();
    }
}

impl ServiceHandle {
    /// Enrols a device: from now on it may be in groups.
    ///
    /// # Errors
    /// [`CommandFailed`].
    pub async fn enroll_device(
        &self,
        id: DeviceId,
        name: impl Into<String>,
        public_key: [u8; 32],
    ) -> Result<(), CommandFailed> {
        let name = name.into();
        self.decide(move |coordinator, now, _| coordinator.enroll_device(id, &name, public_key, now)).await
    }

    /// Creates a group.
    ///
    /// # Errors
    /// [`CommandFailed`].
    pub async fn create_group(
        &self,
        name: impl Into<String>,
        policy: Policy,
    ) -> Result<GroupId, CommandFailed> {
        let name = name.into();
        self.decide(move |coordinator, now, rng| coordinator.create_group(&name, policy, now, rng)).await
    }

    /// Wants devices in a group; answers how many of them were not wanted in it before.
    ///
    /// # Errors
    /// [`CommandFailed`].
    pub async fn add_members(&self, group: GroupId, devices: Vec<DeviceId>) -> Result<usize, CommandFailed> {
        self.decide(move |coordinator, now, rng| coordinator.add_members(group, &devices, now, rng)).await
    }

    /// Takes devices out of a group.
    ///
    /// # Errors
    /// [`CommandFailed`].
    pub async fn evict(&self, group: GroupId, devices: Vec<DeviceId>) -> Result<(), CommandFailed> {
        self.decide(move |coordinator, now, rng| coordinator.evict(group, &devices, now, rng)).await
    }

    /// Ends the identities of devices, for ever. Answers which groups were rekeyed on that account.
    ///
    /// # Errors
    /// [`CommandFailed`].
    pub async fn revoke(
        &self,
        devices: Vec<DeviceId>,
        reason: impl Into<String>,
    ) -> Result<Vec<GroupId>, CommandFailed> {
        let reason = reason.into();
        self.decide(move |coordinator, now, rng| {
            let mut groups: Vec<GroupId> = devices
                .iter()
                .flat_map(|device| coordinator.groups_of(*device))
                .map(|member| member.group)
                .collect();
            groups.sort_unstable();
            groups.dedup();
            coordinator.revoke(&devices, &reason, now, rng)?;
            Ok(groups)
        })
        .await
    }

    /// Moves a group to a new key at once.
    ///
    /// # Errors
    /// [`CommandFailed`].
    pub async fn rekey(&self, group: GroupId) -> Result<KeyEpoch, CommandFailed> {
        self.decide(move |coordinator, now, rng| coordinator.rekey(group, now, rng)).await
    }

    /// Begins a rotation in three phases; answers the key epoch that it leads to.
    ///
    /// # Errors
    /// [`CommandFailed`].
    pub async fn rotate(&self, group: GroupId) -> Result<KeyEpoch, CommandFailed> {
        self.decide(move |coordinator, now, rng| coordinator.rotate(group, now, rng)).await
    }

    /// Lets a device out of quarantine.
    ///
    /// # Errors
    /// [`CommandFailed`].
    pub async fn release(&self, device: DeviceId) -> Result<(), CommandFailed> {
        self.decide(move |coordinator, now, _| coordinator.release(device, now)).await
    }

    /// The coordinator as it stands.
    ///
    /// # Errors
    /// [`CommandFailed::Unavailable`] and [`CommandFailed::NotStored`].
    pub async fn status(&self) -> Result<Status, CommandFailed> {
        self.query(|coordinator, now| coordinator.status(now)).await
    }

    /// Every group as it stands.
    ///
    /// # Errors
    /// [`CommandFailed::Unavailable`] and [`CommandFailed::NotStored`].
    pub async fn group_statuses(&self) -> Result<Vec<GroupStatus>, CommandFailed> {
        self.query(|coordinator, now| coordinator.group_statuses(now)).await
    }

    /// One group as it stands.
    ///
    /// # Errors
    /// [`CommandFailed`].
    pub async fn group_status(&self, group: GroupId) -> Result<GroupStatus, CommandFailed> {
        self.query(move |coordinator, now| coordinator.group_status(group, now))
            .await?
            .ok_or(CommandFailed::Refused(CommandError::UnknownGroup(group)))
    }

    /// The members of a group, in the order of their ids.
    ///
    /// # Errors
    /// [`CommandFailed`].
    pub async fn members(&self, group: GroupId) -> Result<Vec<MemberRecord>, CommandFailed> {
        self.query(move |coordinator, _| coordinator.members(group).cloned().collect()).await
    }

    /// Every device, in the order of their ids.
    ///
    /// # Errors
    /// [`CommandFailed::Unavailable`] and [`CommandFailed::NotStored`].
    pub async fn devices(&self) -> Result<Vec<DeviceRecord>, CommandFailed> {
        self.query(|coordinator, _| coordinator.devices().cloned().collect()).await
    }

    /// Asks the coordinator something.
    ///
    /// # Errors
    /// [`CommandFailed::Unavailable`], and [`CommandFailed::NotStored`] when what it would speak of was undone.
    pub async fn query<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Coordinator, Now) -> T + Send + 'static,
    ) -> Result<T, CommandFailed> {
        self.decide(move |coordinator, now, _| Ok(ask(coordinator, now))).await
    }

    /// Gives a command of the caller's own making.
    ///
    /// # Errors
    /// [`CommandFailed`].
    pub async fn decide<T: Send + 'static>(
        &self,
        decide: impl FnOnce(&mut Coordinator, Now, &mut dyn CryptoRngCore) -> Result<T, CommandError>
        + Send
        + 'static,
    ) -> Result<T, CommandFailed> {
        let (tell, told) = oneshot::channel();
        let decide = Box::new(move |coordinator: &mut Coordinator, now: Now, rng: &mut dyn CryptoRngCore| {
            let decided = decide(coordinator, now, rng);
            let answer: Answer = Box::new(move |committed| {
                let answer = match (decided, committed) {
                    (Err(refused), _) => Err(CommandFailed::Refused(refused)),
                    (Ok(_), Err(why)) => Err(CommandFailed::NotStored { why }),
                    (Ok(value), Ok(())) => Ok(value),
                };
                // Whoever asked may have left.
                let _ = tell.send(answer);
            });
            answer
        });
        let answer = match self.commands.send(Command { decide }).await {
            Ok(()) => told.await.unwrap_or(Err(CommandFailed::Unavailable)),
            Err(_) => Err(CommandFailed::Unavailable),
        };
        if let Err(failed) = &answer {
            meter::command_refused(failed.name());
        }
        answer
    }

    /// What happens from now on. A receiver that falls too far behind is told how many events it has lost.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// What brokers are told.
    pub fn policy_feed(&self) -> &PolicyFeed {
        &self.feed
    }

    /// What was received, sent and spent so far.
    ///
    /// # Errors
    /// [`CommandFailed::Unavailable`] and [`CommandFailed::NotStored`].
    pub async fn stats(&self) -> Result<Stats, CommandFailed> {
        let signatures = self.query(|coordinator, now| coordinator.status(now).signatures).await?;
        let cpu = self.cpu.as_ref().and_then(ThreadCpu::read);
        let cpu_microseconds = cpu.map(|spent| u64::try_from(spent.as_micros()).unwrap_or(u64::MAX));
        Ok(Stats { signatures, cpu_microseconds, ..self.counts.lock().clone() })
    }

    /// Begins the maxima of [`Stats`] anew.
    pub fn restart_maxima(&self) {
        self.counts.restart_maxima();
    }

    /// Whether the coordinator is loaded, and follows commands.
    pub fn is_loaded(&self) -> bool {
        *self.is_loaded.borrow() && self.is_loaded.has_changed().is_ok()
    }

    /// Whether there is a connection to the broker, with the subscription in force.
    pub fn is_connected(&self) -> bool {
        *self.is_connected.borrow()
    }

    /// Returns when there is a connection to the broker, or never will be.
    pub async fn connected(&self) {
        // An error means that the service has ended.
        let _ = self.is_connected.clone().wait_for(|connected| *connected).await;
    }

    /// Returns when the coordinator is loaded, or never will be.
    pub async fn loaded(&self) {
        // An error means that the service has ended.
        let _ = self.is_loaded.clone().wait_for(|loaded| *loaded).await;
    }

    /// Returns when the deciding thread has ended.
    pub async fn stopped(&self) {
        let mut is_loaded = self.is_loaded.clone();
        while is_loaded.changed().await.is_ok() {}
    }
}

#[cfg(test)]
impl ServiceHandle {
    /// Messages taken from devices so far.
    pub(crate) fn received(&self) -> u64 {
        self.counts.lock().received.messages
    }

    /// Commands that the engine has not taken yet.
    pub(crate) fn waiting_commands(&self) -> usize {
        self.commands.max_capacity() - self.commands.capacity()
    }
}

impl fmt::Debug for ServiceHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceHandle")
            .field("is_loaded", &self.is_loaded())
            .field("is_connected", &self.is_connected())
            .finish_non_exhaustive()
    }
}
