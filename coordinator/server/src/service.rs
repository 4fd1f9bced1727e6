//! The running coordinator: the engine's thread and the connection to the broker, started and ended together.

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use fleetkey_coordinator_core::operators::ActiveOperators;
use fleetkey_coordinator_core::{Actor, LoadError, Setup, Store};
use fleetkey_mqtt::{BadOptions, Options};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle as Task;

use crate::engine::{
    self, Engine, MAX_COMMANDS, MAX_HANDED, MAX_UPS, OutboxTicket, Outgoing, Ports, Stop, Up,
};
use crate::feed::PolicyFeed;
use crate::handle::ServiceHandle;
use crate::link;
use crate::stats::Counts;

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
    let (told_operators, operators) = watch::channel(ActiveOperators::default());
    let events = broadcast::Sender::new(MAX_EVENTS_BEHIND);
    let counts = Counts::default();
    let engine = Engine {
        setup,
        store,
        feed: feed.clone(),
        operators: told_operators,
        events: events.clone(),
        counts: counts.clone(),
        is_ready: loaded,
    };
    let ports = Ports { stop: stopping, commands: command_queue, ups: up_queue, sent: sent_queue };
    let (told, first_load) = oneshot::channel();
    let thread = engine::start(engine, ports, (outgoing_queue, is_connected.clone()), told)?;
    let cpu = first_load.await.map_err(|_| StartError::Ended)??;
    let actor = Actor::Coordinator;
    let handle =
        ServiceHandle { actor, commands, events, feed, operators, counts, cpu, is_loaded, is_connected };
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
