//! The one thread that decides: it owns the coordinator and its store.
//!
//! Inputs are taken in batches. For each batch: decide, commit everything in ONE transaction, and only then tell
//! brokers, publish, answer commands and report events. When a transaction fails, or a decision half-way, the
//! coordinator is dropped and loaded again from what is stored; whoever waits for an answer is told.
//!
//! Commands go before messages from devices, so that a storm of hellos delays no revocation. All queues are
//! bounded. Leaves connections to `link`, and what a decision is to the core.

mod outbound;
#[cfg(test)]
mod tests;

use std::panic::{self, AssertUnwindSafe};
use std::time::{Duration, Instant};

use fleetkey_coordinator_core::{CommandError, Coordinator, Effects, Event, LoadError, Setup, Store};
use fleetkey_wire::error::Named;
use fleetkey_wire::{DeviceId, Now};
use rand_core::{CryptoRngCore, OsRng};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tracing::{error, info, warn};

use self::outbound::{Dropped, Outbound};
pub(crate) use self::outbound::{OutboxTicket, Outgoing};
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
const MAX_BATCH: usize = 256;
/// A batch takes no more inputs after this long.
const BATCH_TIME: Duration = Duration::from_millis(20);
/// Waits between attempts to load.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const MAX_RETRY: Duration = Duration::from_secs(30);
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
    let outbound = Outbound::new(outgoing, is_connected);
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
        let mut thread = Thread::new(engine, ports, outbound);
        match thread.load() {
            Ok(()) => {
                let _ = loaded.send(Ok(thread.cpu.clone()));
                runtime.block_on(thread.run());
            }
            Err(error) => {
                let _ = loaded.send(Err(error));
            }
        }
    })
}

enum State {
    Loaded(Box<Coordinator>),
    Failed { retry_at: Instant },
}

/// What the thread waited for.
enum Heard {
    Stop(Stop),
    Sent(OutboxTicket),
    Room,
    Input(Input),
    Timer,
}

enum Input {
    Command(Command),
    Up(Up),
}

struct Thread {
    engine: Engine,
    ports: Ports,
    state: State,
    retry: Duration,
    outbound: Outbound,
    cpu: Option<ThreadCpu>,
    gauged_at: Option<Instant>,
}

impl Thread {
    fn new(engine: Engine, ports: Ports, outbound: Outbound) -> Self {
        Self {
            engine,
            ports,
            state: State::Failed { retry_at: Instant::now() },
            retry: FIRST_RETRY,
            outbound,
            cpu: ThreadCpu::of_this_thread(),
            gauged_at: None,
        }
    }

    async fn run(&mut self) {
        loop {
            match self.hear().await {
                Heard::Stop(Stop::Run | Stop::Kill) => return,
                Heard::Stop(Stop::Finish) => return self.finish().await,
                Heard::Sent(ticket) => self.outbound.settle(ticket),
                Heard::Room => self.outbound.hand_over(),
                Heard::Input(first) => self.step(Some(first)),
                Heard::Timer => self.step(None),
            }
        }
    }

    async fn hear(&mut self) -> Heard {
        let wake = tokio::time::Instant::from_std(self.wake_at());
        let takes_ups = self.outbound.takes_ups();
        let Ports { stop, commands, ups, sent } = &mut self.ports;
        // The order is the order of precedence.
        tokio::select! {
            biased;
            stop = stop.wait_for(|stop| *stop != Stop::Run) => {
                // Without anybody left who could stop it in order, it ends as in a crash.
                Heard::Stop(stop.map_or(Stop::Kill, |stop| *stop))
            }
            Some(ticket) = sent.recv() => Heard::Sent(ticket),
            () = self.outbound.room() => Heard::Room,
            Some(command) = commands.recv() => Heard::Input(Input::Command(command)),
            Some(up) = ups.recv(), if takes_ups => Heard::Input(Input::Up(up)),
            () = tokio::time::sleep_until(wake) => Heard::Timer,
        }
    }

    /// When there is something to do without an input.
    fn wake_at(&self) -> Instant {
        let own = match &self.state {
            State::Loaded(coordinator) => coordinator.poll_timeout().map(clock::instant),
            State::Failed { retry_at } => Some(*retry_at),
        };
        let heartbeat = Instant::now() + GAUGE_EVERY;
        [own, self.outbound.settle_at()].into_iter().flatten().fold(heartbeat, Instant::min)
    }

    /// Decides one batch that begins with `first`, and does what follows from it.
    fn step(&mut self, first: Option<Input>) {
        self.gauge();
        if let State::Failed { retry_at } = self.state {
            // What comes meanwhile is dropped: commands are told so, devices try again.
            drop(first);
            if retry_at <= Instant::now()
                && let Err(error) = self.load()
            {
                self.forget(&error.to_string());
            }
            return;
        }
        if self.outbound.is_to_be_read_again() {
            return self.reload_for_outbox();
        }
        let mut answers = Vec::new();
        // A panic is a fault of ours, and costs what a failed transaction costs: what is in memory. The answers
        // that are lost with it tell whoever waits for them.
        match panic::catch_unwind(AssertUnwindSafe(|| self.decide_batch(first, &mut answers))) {
            Ok(inputs) => self.conclude(inputs, answers),
            Err(_) => self.fail("a decision panicked: see the log", answers),
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
        if let State::Loaded(coordinator) = &mut self.state {
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
        if with_ups && self.outbound.takes_ups() {
            return self.ports.ups.try_recv().ok().map(Input::Up);
        }
        None
    }

    fn decide(&mut self, input: Input, answers: &mut Vec<Answer>) {
        let State::Loaded(coordinator) = &mut self.state else { return };
        let now = clock::now();
        match input {
            Input::Command(command) => {
                meter::input("command");
                answers.push((command.decide)(coordinator, now, &mut OsRng));
            }
            Input::Up(up) => {
                meter::input("up");
                self.engine.counts.received(up.payload.len());
                if let Err(refused) = coordinator.handle_up(up.device, &up.payload, now, &mut OsRng) {
                    meter::up_refused(&refused);
                    self.engine.counts.lock().refused += 1;
                    tracing::debug!(reason = refused.name(), %refused, "message refused");
                }
            }
        }
    }

    /// Stores what the batch decided, then does it.
    fn conclude(&mut self, inputs: usize, answers: Vec<Answer>) {
        let State::Loaded(coordinator) = &mut self.state else { return };
        let effects = match coordinator.take_effects() {
            Ok(effects) => effects,
            Err(poisoned) => return self.fail(&poisoned.to_string(), answers),
        };
        if let Err(why) = self.commit(inputs, &effects) {
            return self.fail(&why, answers);
        }
        let kinds = Classifier::for_events(&effects.events);
        self.perform(effects, &kinds);
        for answer in answers {
            answer(Ok(()));
        }
    }

    fn commit(&mut self, inputs: usize, effects: &Effects) -> Result<(), String> {
        let is_due = self.outbound.settle_at().is_some_and(|at| at <= Instant::now());
        if effects.writes.is_empty() && !is_due {
            return Ok(());
        }
        let writes: Vec<_> = effects.writes.iter().cloned().chain(self.outbound.removals()).collect();
        let started = Instant::now();
        self.engine.store.commit(&writes).map_err(|error| error.to_string())?;
        meter::transaction(inputs, started.elapsed().as_secs_f64());
        self.engine.counts.lock().transactions += 1;
        self.outbound.removed();
        self.retry = FIRST_RETRY;
        Ok(())
    }

    fn perform(&mut self, effects: Effects, kinds: &Classifier) {
        self.engine.feed.change(effects.access);
        for publish in effects.publishes {
            let kind = kinds.kind(&publish);
            self.engine.counts.sent(kind, publish.payload.len());
            meter::message(kind, publish.payload.len());
            if self.outbound.push(publish) == Err(Dropped) {
                meter::dropped();
                self.engine.counts.lock().dropped += 1;
            }
        }
        self.outbound.hand_over();
        for event in effects.events {
            meter::event(&event);
            log(&event);
            // An error means that nobody listens.
            let _ = self.engine.events.send(event);
        }
    }

    /// Loads the coordinator, tells brokers everything, and publishes what was not known to be sent.
    fn load(&mut self) -> Result<(), LoadError> {
        self.outbound.begin_life();
        let setup = copy(&self.engine.setup);
        let coordinator = Coordinator::load(setup, &mut *self.engine.store, clock::now(), &mut OsRng)?;
        self.engine.feed.replace(coordinator.access());
        self.state = State::Loaded(Box::new(coordinator));
        self.engine.is_ready.send_replace(true);
        meter::ready(true);
        self.conclude_load();
        Ok(())
    }

    fn conclude_load(&mut self) {
        let State::Loaded(coordinator) = &mut self.state else { return };
        match coordinator.take_effects() {
            Ok(effects) => match self.commit(0, &effects) {
                Ok(()) => self.perform(effects, &Classifier::for_load()),
                Err(why) => self.forget(&why),
            },
            Err(poisoned) => self.forget(&poisoned.to_string()),
        }
    }

    fn reload_for_outbox(&mut self) {
        info!("loading again: the outbox holds more than memory did");
        if let Err(error) = self.load() {
            self.forget(&error.to_string());
        }
    }

    fn fail(&mut self, why: &str, answers: Vec<Answer>) {
        self.forget(why);
        for answer in answers {
            answer(Err(why.to_owned()));
        }
    }

    /// Drops the coordinator: what it holds in memory may not be what is stored.
    fn forget(&mut self, why: &str) {
        error!(why, retry_ms = self.retry.as_millis() as u64, "state discarded, to be loaded again");
        meter::store_failure();
        meter::ready(false);
        self.engine.is_ready.send_replace(false);
        self.outbound.begin_life();
        self.state = State::Failed { retry_at: Instant::now() + self.retry };
        self.retry = (self.retry * 2).min(MAX_RETRY);
    }

    /// An orderly end: commands that wait are decided, messages are sent, the outbox is settled.
    async fn finish(&mut self) {
        self.ports.commands.close();
        while let Ok(command) = self.ports.commands.try_recv() {
            self.step(Some(Input::Command(command)));
        }
        while let Ok(ticket) = self.ports.sent.try_recv() {
            self.outbound.settle(ticket);
        }
        let end = tokio::time::Instant::now() + FINISH_WITHIN;
        while self.outbound.is_connected() && self.outbound.depth() > 0 {
            self.outbound.hand_over();
            match tokio::time::timeout_at(end, self.ports.sent.recv()).await {
                Ok(Some(ticket)) => self.outbound.settle(ticket),
                Ok(None) => break,
                Err(_) => {
                    warn!(messages = self.outbound.depth(), "left in the outbox");
                    break;
                }
            }
        }
        self.outbound.settle_now();
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
        meter::queue("outbox", self.outbound.depth());
        if let Some(spent) = self.cpu.as_ref().and_then(ThreadCpu::read) {
            meter::cpu(spent.as_secs_f64());
        }
    }
}

fn copy(setup: &Setup) -> Setup {
    Setup {
        fleet: setup.fleet,
        identity: setup.identity.clone(),
        chain: setup.chain.clone(),
        generation: setup.generation,
        key_id: setup.key_id,
        timing: setup.timing,
    }
}

/// What an operator wants to read afterwards. Confirmations and the like are counted only.
fn log(event: &Event) {
    match event {
        Event::Rekeyed { group, key_epoch, reason, cells, members } => {
            info!(%group, %key_epoch, %reason, cells, members, "rekeyed");
        }
        Event::AllConfirmed { group, key_epoch } => info!(%group, %key_epoch, "all confirmed"),
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
