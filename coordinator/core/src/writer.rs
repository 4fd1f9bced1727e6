//! Decide, persist, then speak: the discipline that every shell of a coordinator keeps, written once.
//!
//! The shell lets the coordinator decide on one or more inputs, then calls [`Writer::conclude`], which makes all that
//! was decided durable in one transaction, and only then puts the messages into the queue that the shell takes them
//! from. When a transaction fails, or a decision half-way, memory is discarded and loaded again from what is stored.
//!
//! Leaves threads, connections, clocks and what a batch is to the shell.

mod outbound;

use fleetkey_wire::{Millis, Now};
use rand_core::CryptoRngCore;

pub use self::outbound::{OutboxTicket, Outgoing};

use self::outbound::Outbound;
use crate::context::Setup;
use crate::coordinator::Coordinator;
use crate::effects::{Access, Effects, Event, Publish};
use crate::error::LoadError;
use crate::operators::ActiveOperators;
use crate::records::Table;
use crate::store::Store;

/// Waits between attempts to load.
const FIRST_RETRY_MILLISECONDS: u64 = 100;
const MAX_RETRY_MILLISECONDS: u64 = 30_000;

/// What the shell has to do after a transaction, before it takes messages from the queue.
#[derive(Debug)]
pub struct Concluded {
    /// What to tell the broker.
    pub access: AccessNews,
    /// Whose tokens open something, where that has changed.
    pub operators: Option<ActiveOperators>,
    /// What to tell people.
    pub events: Vec<Event>,
    /// Whether anything was stored.
    pub has_committed: bool,
    /// Messages that were dropped for want of a connection, or of room; none that must survive.
    pub dropped: usize,
}

/// Hears of the messages of a transaction, with its events, once it is stored and before they are queued.
pub type Observe<'a> = &'a mut dyn FnMut(&[Publish], &[Event]);

/// What the broker has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessNews {
    /// These changes.
    Changes(Vec<Access>),
    /// All of it: whatever it knew before counts no more.
    Everything(Vec<Access>),
}

/// What was decided is undone: it could not be stored, or not be decided to the end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Discarded {
    /// Why.
    pub why: String,
}

/// Whether decisions can be made.
#[derive(Debug)]
pub enum Readiness {
    /// They can.
    Ready,
    /// They can again: it was loaded just now.
    Loaded(Concluded),
    /// They cannot: the store has failed, and is tried again later.
    NotYet {
        /// Why it failed this time, if it was tried.
        why: Option<String>,
    },
}

/// What has been made durable since this writer began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Transactions committed.
    pub transactions: u64,
    /// When the last of them was.
    pub unix_seconds: u64,
}

#[derive(Debug)]
enum State {
    Loaded(Box<Coordinator>),
    Failed { retry_at: Millis },
}

/// A coordinator with its store, and what waits to be sent.
#[derive(Debug)]
pub struct Writer<S> {
    setup: Setup,
    store: S,
    state: State,
    retry_milliseconds: u64,
    outbound: Outbound,
    progress: Progress,
}

impl<S: Store> Writer<S> {
    /// Loads the coordinator. `observe` hears of the messages that are queued, see
    /// [`Self::conclude`].
    ///
    /// # Errors
    /// [`LoadError`], when what is stored cannot be read or makes no sense. A first transaction that fails is no
    /// error: it is tried again.
    pub fn open(
        setup: Setup,
        store: S,
        now: Now,
        rng: &mut dyn CryptoRngCore,
        observe: Observe<'_>,
    ) -> Result<(Self, Option<Concluded>), LoadError> {
        let mut writer = Self {
            setup,
            store,
            state: State::Failed { retry_at: now.mono },
            retry_milliseconds: FIRST_RETRY_MILLISECONDS,
            outbound: Outbound::default(),
            progress: Progress::default(),
        };
        let concluded = writer.load(now, rng, observe)?;
        Ok((writer, concluded.ok()))
    }

    /// Loads anew, commits what follows from that, and queues what was not known to be sent.
    fn load(
        &mut self,
        now: Now,
        rng: &mut dyn CryptoRngCore,
        observe: Observe<'_>,
    ) -> Result<Result<Concluded, Discarded>, LoadError> {
        self.outbound.begin_life();
        let coordinator = Coordinator::load(self.setup.clone(), &mut self.store, now, rng)?;
        let everything = coordinator.access();
        let operators = Some(coordinator.active_operators(now.unix_seconds));
        self.state = State::Loaded(Box::new(coordinator));
        let concluded = self.conclude(now, observe);
        let access = AccessNews::Everything(everything);
        Ok(concluded.map(|concluded| Concluded { access, operators, ..concluded }))
    }

    /// Makes sure that there is a coordinator to decide with, loading it where that is due.
    pub fn ready(&mut self, now: Now, rng: &mut dyn CryptoRngCore, observe: Observe<'_>) -> Readiness {
        match self.state {
            State::Loaded(_) if !self.outbound.is_to_be_read_again() => return Readiness::Ready,
            State::Failed { retry_at } if now.mono < retry_at => return Readiness::NotYet { why: None },
            State::Loaded(_) | State::Failed { .. } => {}
        }
        match self.load(now, rng, observe) {
            Ok(Ok(concluded)) => Readiness::Loaded(concluded),
            Ok(Err(discarded)) => Readiness::NotYet { why: Some(discarded.why) },
            Err(error) => {
                self.discard(now);
                Readiness::NotYet { why: Some(error.to_string()) }
            }
        }
    }

    /// The coordinator, to decide with; `None` while its store fails.
    pub fn coordinator(&mut self) -> Option<&mut Coordinator> {
        match &mut self.state {
            State::Loaded(coordinator) => Some(coordinator),
            State::Failed { .. } => None,
        }
    }

    /// Stores everything that was decided, in one transaction, and then queues the messages. `observe` hears of
    /// them first.
    ///
    /// # Errors
    /// [`Discarded`], when it could not be stored: then nothing of it has happened.
    pub fn conclude(&mut self, now: Now, observe: Observe<'_>) -> Result<Concluded, Discarded> {
        let State::Loaded(coordinator) = &mut self.state else {
            return Err(Discarded { why: "the store has failed".into() });
        };
        let Effects { mut writes, access, publishes, events } = match coordinator.take_effects() {
            Ok(effects) => effects,
            Err(poisoned) => return Err(self.discarded(now, poisoned.to_string())),
        };
        let is_about_operators = writes.iter().any(|write| write.table == Table::Operator);
        let operators = is_about_operators.then(|| coordinator.active_operators(now.unix_seconds));
        let is_settling = self.outbound.settle_at().is_some_and(|at| at <= now.mono);
        let has_committed = !writes.is_empty() || is_settling;
        if has_committed {
            writes.extend(self.outbound.removals());
            if let Err(error) = self.store.commit(&writes) {
                return Err(self.discarded(now, error.to_string()));
            }
            self.outbound.removed();
            self.retry_milliseconds = FIRST_RETRY_MILLISECONDS;
            self.progress =
                Progress { transactions: self.progress.transactions + 1, unix_seconds: now.unix_seconds };
        }
        observe(&publishes, &events);
        // What is dropped nobody waits for: the device asks again.
        let dropped = publishes.into_iter().filter_map(|publish| self.outbound.push(publish).err()).count();
        Ok(Concluded { access: AccessNews::Changes(access), operators, events, has_committed, dropped })
    }

    fn discarded(&mut self, now: Now, why: String) -> Discarded {
        self.discard(now);
        Discarded { why }
    }

    /// Drops what is in memory, as it may not be what is stored; [`Self::ready`] loads it again after a while.
    pub fn discard(&mut self, now: Now) {
        self.outbound.begin_life();
        self.state = State::Failed { retry_at: now.mono.plus(self.retry_milliseconds) };
        self.retry_milliseconds = (self.retry_milliseconds * 2).min(MAX_RETRY_MILLISECONDS);
    }

    /// When there is something to do without an input.
    pub fn poll_timeout(&self) -> Option<Millis> {
        let own = match &self.state {
            State::Loaded(coordinator) => coordinator.poll_timeout(),
            State::Failed { retry_at } => Some(*retry_at),
        };
        own.into_iter().chain(self.outbound.settle_at()).min()
    }

    /// Whether there is a connection to the broker. Without one, answers that nobody waits for are not queued.
    pub const fn set_connected(&mut self, is_connected: bool) {
        self.outbound.set_connected(is_connected);
    }

    /// Whether more messages of devices can be taken in, or their answers would only pile up. Commands always can.
    pub fn takes_ups(&self) -> bool {
        self.outbound.takes_ups()
    }

    /// The next message for the connection, in the order in which they were decided.
    pub fn next_message(&mut self) -> Option<Outgoing> {
        self.outbound.pop()
    }

    /// Whether a message waits.
    pub fn has_message(&self) -> bool {
        !self.outbound.is_empty()
    }

    /// A message is with the connection.
    pub fn settle(&mut self, ticket: OutboxTicket, now: Now) {
        self.outbound.settle(ticket, now.mono);
    }

    /// Rows of messages that are sent go with the next transaction, and that may be now.
    pub fn settle_now(&mut self, now: Now) {
        self.outbound.settle_now(now.mono);
    }

    /// Messages that wait, or are with the connection.
    pub fn depth(&self) -> usize {
        self.outbound.depth()
    }

    /// What has been made durable.
    pub const fn progress(&self) -> Progress {
        self.progress
    }

    /// Ends the writer, as a crash would: what is left is what is stored.
    pub fn into_store(self) -> S {
        self.store
    }
}
