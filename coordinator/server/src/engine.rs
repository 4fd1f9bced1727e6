//! The one thread that decides: it owns the coordinator and its store.
//!
//! Inputs are taken in batches. For each batch: decide, commit everything in ONE transaction, and only then tell
//! brokers, publish, answer commands and report events. When a transaction fails, or a decision half-way, the
//! coordinator is dropped and loaded again from what is stored; whoever waits for an answer is told.
//!
//! Commands go before messages from devices, so that a storm of hellos delays no revocation. All queues are
//! bounded. Leaves connections to `link`, and what a decision is to the core.

#[cfg(test)]
mod tests;

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fleetkey_coordinator_core::operators::ActiveOperators;
use fleetkey_coordinator_core::writer::{AccessNews, Concluded, Discarded, Readiness};
pub(crate) use fleetkey_coordinator_core::writer::{OutboxTicket, Outgoing};
use fleetkey_coordinator_core::{CommandError, Coordinator, Event, LoadError, Publish, Setup, Store, Writer};
use fleetkey_wire::error::Named;
use fleetkey_wire::{DeviceId, Now};
use rand_core::{CryptoRngCore, OsRng};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tracing::{error, info, warn};

use crate::clock;
use crate::cpu::ThreadCpu;
use crate::feed::PolicyFeed;
use crate::meter;
use crate::stats::{Classifier, Counts};

/// Commands that wait to be decided.
pub(crate) const MAX_COMMANDS: usize = 256;
/// Messages from devices that wait to be decided.
pub(crate) const MAX_UPS: usize = 4_096;
/// Messages that wait in front of the connection.
pub(crate) const MAX_HANDED: usize = 1_024;
/// Inputs in one transaction.
const MAX_BATCH: usize = 1_024;
/// While devices speak without a break, what they say is taken in gulps: one transaction, and one wait for the disk, for all
/// that came within this time. Commands and timers wait for nothing.
const GULP: Duration = Duration::from_millis(8);
/// As much of it waits for no more.
const FULL_GULP: usize = 256;
/// A batch takes no more inputs after this long.
const BATCH_TIME: Duration = Duration::from_millis(20);
/// How long an orderly end waits for messages to be sent.
const FINISH_WITHIN: Duration = Duration::from_secs(3);
/// How often gauges are read off.
const GAUGE_EVERY: Duration = Duration::from_secs(1);
/// Enough for the deepest decision in an unoptimised build.
const STACK_BYTES: usize = 16 * 1024 * 1024;

/// One message from a device, its topic already read.
#[derive(Debug)]
pub(crate) struct Up {
    pub(crate) device: DeviceId,
    pub(crate) payload: Vec<u8>,
}

/// What happens to an answer once the transaction is committed, or failed for this reason.
pub(crate) type Answer = Box<dyn FnOnce(Result<(), String>) + Send>;

/// A decision that somebody asked for, or a question.
pub(crate) struct Command {
    pub(crate) decide: Decide,
}

/// What a command does with the coordinator.
pub(crate) type Decide = Box<dyn FnOnce(&mut Coordinator, Now, &mut dyn CryptoRngCore) -> Answer + Send>;

/// Why nothing came of a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandFailed {
    /// It cannot be followed.
    #[error(transparent)]
    Refused(#[from] CommandError),
    /// It was decided, but could not be stored: nothing has changed.
    #[error("nothing was changed: {why}")]
    NotStored {
        /// What the store said.
        why: String,
    },
    /// The coordinator is stopping, or its store has failed and it tries again.
    #[error("the coordinator is not ready: its store has failed, or it is stopping")]
    Unavailable,
}

impl Named for CommandFailed {
    fn name(&self) -> &'static str {
        match self {
            Self::Refused(refused) => refused.name(),
            Self::NotStored { .. } => "not_stored",
            Self::Unavailable => "unavailable",
        }
    }
}

/// How the engine is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Not yet.
    Run,
    /// Send what waits, then end.
    Finish,
    /// At once, as in a crash.
    Kill,
}

/// What the engine works on.
pub(crate) struct Engine {
    pub(crate) setup: Setup,
    pub(crate) store: Box<dyn Store + Send>,
    pub(crate) feed: PolicyFeed,
    pub(crate) operators: watch::Sender<ActiveOperators>,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) counts: Counts,
    pub(crate) is_ready: watch::Sender<bool>,
}

/// How the engine hears.
pub(crate) struct Ports {
    pub(crate) stop: watch::Receiver<Stop>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) ups: mpsc::Receiver<Up>,
    pub(crate) sent: mpsc::Receiver<OutboxTicket>,
}

/// Starts the thread. `loaded` hears how the first load went; where it failed, the thread has ended.
pub(crate) fn start(
    engine: Engine,
    ports: Ports,
    (outgoing, is_connected): (mpsc::Sender<Outgoing>, watch::Receiver<bool>),
    loaded: oneshot::Sender<Result<Option<ThreadCpu>, LoadError>>,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let link = Link { outgoing, is_connected };
    std::thread::Builder::new().name("coordinator".into()).stack_size(STACK_BYTES).spawn(move || {
        // Sealing inside MLS is spread over threads otherwise: that pays off for one cell alone, and takes the
        // processors from everybody else.
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = match (runtime, alone) {
            (Ok(runtime), Ok(_)) => runtime,
            (Err(error), _) => return error!(%error, "no runtime for the coordinator's thread"),
            (_, Err(error)) => return error!(%error, "no thread pool for the coordinator's thread"),
        };
        match Thread::load(engine, ports, link) {
            Ok(mut thread) => {
                let _ = loaded.send(Ok(thread.cpu.clone()));
                runtime.block_on(thread.run());
            }
            Err(error) => {
                let _ = loaded.send(Err(error));
            }
        }
    })
}

/// The way to the connection.
struct Link {
    outgoing: mpsc::Sender<Outgoing>,
    is_connected: watch::Receiver<bool>,
}

impl Link {
    /// Waits until there is room for a message.
    async fn room(&self) {
        if self.outgoing.reserve().await.is_err() {
            std::future::pending().await
        }
    }
}

/// What the thread waited for.
enum Heard {
    Stop(Stop),
    Sent(OutboxTicket),
    Room,
    Input(Input),
    Timer,
    /// It is time for what devices say.
    Hunger,
}

enum Input {
    Command(Command),
    Up(Up),
}

struct Thread {
    around: Arc<Surroundings>,
    ports: Ports,
    writer: Writer<Box<dyn Store + Send>>,
    link: Link,
    cpu: Option<ThreadCpu>,
    gauged_at: Option<Instant>,
    /// When what devices said was last taken.
    last_gulp: Option<Instant>,
}

/// Who is told of what was decided.
struct Surroundings {
    feed: PolicyFeed,
    operators: watch::Sender<ActiveOperators>,
    events: broadcast::Sender<Event>,
    counts: Counts,
    is_ready: watch::Sender<bool>,
}

impl Thread {
    fn load(engine: Engine, ports: Ports, link: Link) -> Result<Self, LoadError> {
        let Engine { setup, store, feed, operators, events, counts, is_ready } = engine;
        let around = Surroundings { feed, operators, events, counts, is_ready };
        let mut observe =
            |publishes: &[Publish], _: &[Event]| around.count(publishes, &Classifier::for_load());
        let (writer, concluded) = Writer::open(setup, store, clock::now(), &mut OsRng, &mut observe)?;
        let cpu = ThreadCpu::of_this_thread();
        let mut thread =
            Self { around: Arc::new(around), ports, writer, link, cpu, gauged_at: None, last_gulp: None };
        if let Some(concluded) = concluded {
            thread.speak(concluded);
            thread.around.set_ready(true);
        }
        Ok(thread)
    }

    async fn run(&mut self) {
        loop {
            match self.hear().await {
                Heard::Stop(Stop::Run | Stop::Kill) => return,
                Heard::Stop(Stop::Finish) => return self.finish().await,
                Heard::Sent(ticket) => self.writer.settle(ticket, clock::now()),
                Heard::Room => self.hand_over(),
                Heard::Input(first) => {
                    let is_up = matches!(first, Input::Up(_));
                    self.step(Some(first));
                    if is_up {
                        self.last_gulp = Some(Instant::now());
                    }
                }
                Heard::Timer => self.step(None),
                Heard::Hunger => {}
            }
        }
    }

    async fn hear(&mut self) -> Heard {
        let wake = tokio::time::Instant::from_std(self.wake_at());
        let may_gulp = self.may_gulp();
        let next_gulp = tokio::time::Instant::from_std(self.last_gulp.unwrap_or_else(Instant::now) + GULP);
        let takes_ups = may_gulp && self.writer.takes_ups();
        let has_message = self.writer.has_message();
        let Ports { stop, commands, ups, sent } = &mut self.ports;
        // The order is the order of precedence.
        tokio::select! {
            biased;
            stop = stop.wait_for(|stop| *stop != Stop::Run) => {
                // Without anybody left who could stop it in order, it ends as in a crash.
                Heard::Stop(stop.map_or(Stop::Kill, |stop| *stop))
            }
            Some(ticket) = sent.recv() => Heard::Sent(ticket),
            () = self.link.room(), if has_message => Heard::Room,
            Some(command) = commands.recv() => Heard::Input(Input::Command(command)),
            Some(up) = ups.recv(), if takes_ups => Heard::Input(Input::Up(up)),
            () = tokio::time::sleep_until(next_gulp), if !may_gulp => Heard::Hunger,
            () = tokio::time::sleep_until(wake) => Heard::Timer,
        }
    }

    /// Whether it is time for what devices say.
    fn may_gulp(&self) -> bool {
        self.last_gulp.is_none_or(|at| at.elapsed() >= GULP) || self.ports.ups.len() >= FULL_GULP
    }

    /// When there is something to do without an input.
    fn wake_at(&self) -> Instant {
        let own = self.writer.poll_timeout().map(clock::instant);
        let heartbeat = Instant::now() + GAUGE_EVERY;
        own.map_or(heartbeat, |own| own.min(heartbeat))
    }

    /// Decides one batch that begins with `first`, and does what follows from it.
    fn step(&mut self, first: Option<Input>) {
        self.gauge();
        self.writer.set_connected(*self.link.is_connected.borrow());
        if !self.make_ready() {
            // What comes meanwhile is dropped: commands are told so, devices try again.
            return;
        }
        let mut answers = Vec::new();
        // A panic is a fault of ours, and costs what a failed transaction costs: what is in memory. The answers
        // that are lost with it tell whoever waits for them.
        match panic::catch_unwind(AssertUnwindSafe(|| self.decide_batch(first, &mut answers))) {
            Ok(inputs) => self.conclude(inputs, answers),
            Err(_) => {
                self.writer.discard(clock::now());
                self.fail("a decision panicked: see the log", answers);
            }
        }
    }

    /// Whether there is a coordinator to decide with; loads it again where that is due.
    fn make_ready(&mut self) -> bool {
        let around = Arc::clone(&self.around);
        let mut observe =
            |publishes: &[Publish], _: &[Event]| around.count(publishes, &Classifier::for_load());
        match self.writer.ready(clock::now(), &mut OsRng, &mut observe) {
            Readiness::Ready => true,
            Readiness::Loaded(concluded) => {
                info!("loaded again");
                self.speak(concluded);
                self.around.set_ready(true);
                true
            }
            Readiness::NotYet { why } => {
                if let Some(why) = why {
                    self.around.discarded(&why);
                }
                false
            }
        }
    }

    /// Decides everything up to the next transaction; answers how many inputs that were.
    fn decide_batch(&mut self, first: Option<Input>, answers: &mut Vec<Answer>) -> usize {
        let started = Instant::now();
        let mut inputs = 0;
        let mut next = first;
        while let Some(input) = next.take() {
            inputs += 1;
            self.decide(input, answers);
            if inputs < MAX_BATCH && started.elapsed() < BATCH_TIME {
                next = self.next_input(answers.is_empty());
            }
        }
        if let Some(coordinator) = self.writer.coordinator() {
            let now = clock::now();
            if coordinator.poll_timeout().is_some_and(|at| at <= now.mono) {
                meter::input("timeout");
                coordinator.handle_timeout(now, &mut OsRng);
            }
        }
        inputs
    }

    /// The next input, commands first. Once a command is among them, a batch waits for no more devices.
    fn next_input(&mut self, with_ups: bool) -> Option<Input> {
        if let Ok(command) = self.ports.commands.try_recv() {
            return Some(Input::Command(command));
        }
        if with_ups && self.writer.takes_ups() {
            return self.ports.ups.try_recv().ok().map(Input::Up);
        }
        None
    }

    fn decide(&mut self, input: Input, answers: &mut Vec<Answer>) {
        let Some(coordinator) = self.writer.coordinator() else { return };
        let now = clock::now();
        match input {
            Input::Command(command) => {
                meter::input("command");
                answers.push((command.decide)(coordinator, now, &mut OsRng));
            }
            Input::Up(up) => {
                meter::input("up");
                self.around.counts.received(up.payload.len());
                if let Err(refused) = coordinator.handle_up(up.device, &up.payload, now, &mut OsRng) {
                    meter::up_refused(&refused);
                    self.around.counts.lock().refused += 1;
                    tracing::debug!(reason = refused.name(), %refused, "message refused");
                }
            }
        }
    }

    /// Stores what the batch decided, then does it.
    fn conclude(&mut self, inputs: usize, answers: Vec<Answer>) {
        let around = Arc::clone(&self.around);
        let mut observe = |publishes: &[Publish], events: &[Event]| {
            around.count(publishes, &Classifier::for_events(events))
        };
        let started = Instant::now();
        match self.writer.conclude(clock::now(), &mut observe) {
            Ok(concluded) => {
                if concluded.has_committed {
                    meter::transaction(inputs, started.elapsed().as_secs_f64());
                    self.around.counts.lock().transactions += 1;
                }
                self.speak(concluded);
                for answer in answers {
                    answer(Ok(()));
                }
            }
            Err(Discarded { why }) => self.fail(&why, answers),
        }
    }

    /// Says whose tokens open something, tells brokers, hands messages over, tells people: in this order.
    fn speak(&mut self, concluded: Concluded) {
        let Concluded { access, operators, events, dropped, has_committed: _ } = concluded;
        if let Some(operators) = operators {
            self.around.operators.send_replace(operators);
        }
        match access {
            AccessNews::Changes(changes) => self.around.feed.change(changes),
            AccessNews::Everything(everything) => self.around.feed.replace(everything),
        }
        self.around.dropped(dropped);
        self.hand_over();
        for event in events {
            meter::event(&event);
            log(&event);
            // An error means that nobody listens.
            let _ = self.around.events.send(event);
        }
    }

    /// Hands over as much as the connection has room for, without waiting.
    fn hand_over(&mut self) {
        while self.writer.has_message()
            && let Ok(permit) = self.link.outgoing.try_reserve()
            && let Some(next) = self.writer.next_message()
        {
            permit.send(next);
        }
    }

    fn fail(&mut self, why: &str, answers: Vec<Answer>) {
        self.around.discarded(why);
        for answer in answers {
            answer(Err(why.to_owned()));
        }
    }

    /// An orderly end: commands that wait are decided, messages are sent, the outbox is settled.
    async fn finish(&mut self) {
        self.ports.commands.close();
        while let Ok(command) = self.ports.commands.try_recv() {
            self.step(Some(Input::Command(command)));
        }
        while let Ok(ticket) = self.ports.sent.try_recv() {
            self.writer.settle(ticket, clock::now());
        }
        let end = tokio::time::Instant::now() + FINISH_WITHIN;
        while *self.link.is_connected.borrow() && self.writer.depth() > 0 {
            self.hand_over();
            match tokio::time::timeout_at(end, self.ports.sent.recv()).await {
                Ok(Some(ticket)) => self.writer.settle(ticket, clock::now()),
                Ok(None) => break,
                Err(_) => {
                    warn!(messages = self.writer.depth(), "left in the outbox");
                    break;
                }
            }
        }
        self.writer.settle_now(clock::now());
        self.conclude(0, Vec::new());
    }

    fn gauge(&mut self) {
        let is_fresh = self.gauged_at.is_some_and(|at| at.elapsed() < GAUGE_EVERY);
        if is_fresh {
            return;
        }
        self.gauged_at = Some(Instant::now());
        meter::queue("up", self.ports.ups.len());
        meter::queue("command", self.ports.commands.len());
        meter::queue("outbox", self.writer.depth());
        if let Some(spent) = self.cpu.as_ref().and_then(ThreadCpu::read) {
            meter::cpu(spent.as_secs_f64());
        }
    }
}

impl Surroundings {
    /// Keeps account of messages that are about to be queued.
    fn count(&self, publishes: &[Publish], kinds: &Classifier) {
        for publish in publishes {
            let kind = kinds.kind(publish);
            self.counts.sent(kind, publish.payload.len());
            meter::message(kind, publish.payload.len());
        }
    }

    fn dropped(&self, messages: usize) {
        if messages > 0 {
            meter::dropped(messages as u64);
            self.counts.lock().dropped += messages as u64;
        }
    }

    fn set_ready(&self, is_ready: bool) {
        meter::ready(is_ready);
        self.is_ready.send_replace(is_ready);
    }

    /// What is in memory may not be what is stored: it is dropped.
    fn discarded(&self, why: &str) {
        error!(why, "state discarded, to be loaded again");
        meter::store_failure();
        self.set_ready(false);
    }
}

/// What an operator wants to read afterwards. Confirmations and the like are counted only.
fn log(event: &Event) {
    match event {
        Event::Rekeyed { group, key_epoch, reason, cells, members } => {
            info!(%group, %key_epoch, %reason, cells, members, "rekeyed");
        }
        Event::AllConfirmed { group, key_epoch } => info!(%group, %key_epoch, "all confirmed"),
        Event::Deadline { group, key_epoch, missing: 0 } => info!(%group, %key_epoch, "deadline kept"),
        Event::Deadline { group, key_epoch, missing } => {
            warn!(%group, %key_epoch, missing, "deadline missed: `fleetkey group members` shows who is behind");
        }
        Event::Joined { group, device, cell, fresh } => info!(%group, %device, %cell, fresh, "joined"),
        Event::Left { group, device } => info!(%group, %device, "left"),
        Event::Quarantined { device } => {
            warn!(%device, "quarantined: it asked to join afresh too often, and may be cloned");
        }
        Event::Superseded { device, group, key_epoch } => error!(
            %device, %group, %key_epoch,
            "a device holds a statement this coordinator never made: it is a copy, or was rolled back; it issues nothing"
        ),
        Event::CaughtUp { group, device, by } => {
            tracing::debug!(%group, %device, by = by.name(), "caught up");
        }
        Event::Confirmed { group, device, key_epoch, is_current } => {
            tracing::debug!(%group, %device, %key_epoch, is_current, "confirmed");
        }
        Event::Resent { group, device } => tracing::debug!(%group, %device, "sent again"),
    }
}
