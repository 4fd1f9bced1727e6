//! A thread with many connections, each with its rider.
//!
//! Connecting goes in turns ([`ShardOptions::max_connecting`]), with back-off and jitter after a failure; a refused subscription is
//! asked for again. Leaves to the rider what is said.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use mio::{Events, Poll, Token, Waker};
use rand_chacha::ChaCha20Rng;
use rand_core::{OsRng, RngCore as _, SeedableRng as _};

use crate::alarms::Alarms;
use crate::link::{self, NoSense, Said};
use crate::rider::{Outbox, Rider};
use crate::route::Route;
use crate::socket::Socket;

const WAKER: Token = Token(usize::MAX);
/// Sockets that are looked at before what they led to is sent, all of it at once: whoever is on the other side is woken once
/// for many.
const MAX_EVENTS: usize = 96;
const READ_BYTES: usize = 64 * 1024;
/// From the first packet of TCP to CONNACK.
const CONNECT_WITHIN: Duration = Duration::from_secs(30);
/// Whoever greets keeps its turn until it is answered, and no longer than this.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Filters in one SUBSCRIBE.
const FILTERS: usize = 128;
/// A refused subscription is asked for again after at most so long.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// How the connections of a shard are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardOptions {
    /// Connections that are being made, or whose greeting is not answered yet, at once; others wait for their turn.
    pub max_connecting: usize,
    /// The longest silence.
    pub keep_alive: Duration,
    /// After the first failure at most so long, and twice as long after each further one, up to [`Self::back_off_max`].
    pub back_off_min: Duration,
    /// The longest wait between two attempts.
    pub back_off_max: Duration,
}

impl Default for ShardOptions {
    /// As a device's own connection has them, but for a longer keep-alive.
    fn default() -> Self {
        Self {
            max_connecting: 256,
            keep_alive: Duration::from_secs(600),
            back_off_min: Duration::from_secs(1),
            back_off_max: Duration::from_secs(60),
        }
    }
}

/// The shard's thread has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the thread that keeps the connections has ended")]
pub struct ShardGone;

type Call<R> = Box<dyn FnOnce(&mut Crew<R>) + Send>;

/// A thread with connections. Dropping it ends them.
pub struct Shard<R> {
    calls: Option<Sender<Call<R>>>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl<R: Rider> Shard<R> {
    /// Starts a thread without connections.
    ///
    /// # Errors
    /// When the system gives no thread, or nothing to wait with.
    pub fn start(name: &str, options: ShardOptions) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let (calls, called) = mpsc::channel();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            Crew::new(poll, options).run(&called);
        })?;
        Ok(Self { calls: Some(calls), waker, thread: Some(thread) })
    }

    /// Does something on the shard's thread, and answers what came of it.
    ///
    /// # Errors
    /// [`ShardGone`].
    pub fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Crew<R>) -> T + Send + 'static,
    ) -> Result<T, ShardGone> {
        let (tell, told) = mpsc::channel();
        // Whoever asked waits for the answer.
        let call: Call<R> = Box::new(move |crew| _ = tell.send(call(crew)));
        self.calls.as_ref().ok_or(ShardGone)?.send(call).map_err(|_| ShardGone)?;
        self.waker.wake().map_err(|_| ShardGone)?;
        told.recv().map_err(|_| ShardGone)
    }
}

impl<R> Drop for Shard<R> {
    fn drop(&mut self) {
        self.calls = None;
        _ = self.waker.wake();
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

/// A connection, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seat(usize);

enum Phase {
    /// Not wanted.
    Off,
    /// Waits for its turn to connect.
    InLine,
    /// Tries again then.
    Waiting(Instant),
    /// TCP, or TLS and CONNECT; given up then.
    Opening { socket: Socket, has_greeted: bool },
    /// Accepted.
    Open(Socket),
}

struct Place<R> {
    rider: R,
    route: Route,
    phase: Phase,
    /// It has a turn to connect, until then at the latest.
    turn: Option<Instant>,
    input: BytesMut,
    out: BytesMut,
    failures: u32,
    last_packet_id: u16,
    /// SUBSCRIBEs without an answer.
    asked: BTreeMap<u16, Vec<String>>,
    /// To be asked for again.
    refused: Vec<String>,
    ask_again: Option<Instant>,
    ping: Instant,
}

/// The connections of a shard, on its thread.
pub struct Crew<R> {
    poll: Poll,
    options: ShardOptions,
    places: Vec<Place<R>>,
    line: VecDeque<usize>,
    connecting: usize,
    open: usize,
    alarms: Alarms,
    scratch: Vec<u8>,
    outbox: Outbox,
    /// Places that have read something that is not taken in yet.
    untaken: Vec<usize>,
    /// Places that have something to send.
    unsent: Vec<usize>,
    dice: ChaCha20Rng,
    lost: u64,
}

impl<R: Rider> Crew<R> {
    fn new(poll: Poll, options: ShardOptions) -> Self {
        Self {
            poll,
            options,
            places: Vec::new(),
            line: VecDeque::new(),
            connecting: 0,
            open: 0,
            alarms: Alarms::default(),
            scratch: vec![0; READ_BYTES],
            outbox: Outbox::default(),
            untaken: Vec::new(),
            unsent: Vec::new(),
            dice: ChaCha20Rng::from_rng(OsRng).expect("the system has entropy"),
            lost: 0,
        }
    }

    /// Takes a rider in, without a connection.
    pub fn add(&mut self, rider: R, route: Route) -> Seat {
        self.places.push(Place {
            rider,
            route,
            phase: Phase::Off,
            turn: None,
            input: BytesMut::new(),
            out: BytesMut::new(),
            failures: 0,
            last_packet_id: 0,
            asked: BTreeMap::new(),
            refused: Vec::new(),
            ask_again: None,
            ping: Instant::now(),
        });
        Seat(self.places.len() - 1)
    }

    /// Connects as soon as it is its turn, and again whenever the connection is lost.
    pub fn connect(&mut self, seat: Seat) {
        if let Some(place) = self.places.get_mut(seat.0)
            && matches!(place.phase, Phase::Off)
        {
            place.phase = Phase::InLine;
            self.line.push_back(seat.0);
        }
    }

    /// Connects by another route from now on.
    pub fn reroute(&mut self, seat: Seat, route: Route) {
        if let Some(place) = self.places.get_mut(seat.0) {
            place.route = route;
        }
    }

    /// Like pulling the cable: the broker is not told.
    pub fn disconnect(&mut self, seat: Seat) {
        if seat.0 < self.places.len() {
            self.close(seat.0, Phase::Off);
            self.line.retain(|at| *at != seat.0);
        }
    }

    /// How many connections the broker has accepted, and are there.
    pub const fn open(&self) -> usize {
        self.open
    }

    /// Connections that ended, or did not come about, and were wanted.
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// The riders, in the order in which they came.
    pub fn riders(&self) -> impl Iterator<Item = (Seat, &R)> {
        self.places.iter().enumerate().map(|(at, place)| (Seat(at), &place.rider))
    }

    /// Speaks with a rider, who may want something of the connection.
    pub fn with<T>(&mut self, seat: Seat, speak: impl FnOnce(&mut R, &mut Outbox) -> T) -> Option<T> {
        let place = self.places.get_mut(seat.0)?;
        let said = speak(&mut place.rider, &mut self.outbox);
        self.after_rider(seat.0);
        Some(said)
    }

    fn run(mut self, called: &Receiver<Call<R>>) {
        let mut events = Events::with_capacity(MAX_EVENTS);
        loop {
            let wait = match self.alarms.next() {
                _ if self.may_connect() => Some(Duration::ZERO),
                next => next.map(|at| at.saturating_duration_since(Instant::now())),
            };
            if let Err(error) = self.poll.poll(&mut events, wait)
                && error.kind() != io::ErrorKind::Interrupted
            {
                return;
            }
            for event in &events {
                if event.token() != WAKER {
                    self.serve(event.token().0);
                }
            }
            self.take_in();
            loop {
                match called.try_recv() {
                    Ok(call) => call(&mut self),
                    Err(mpsc::TryRecvError::Empty) => break,
                    Err(mpsc::TryRecvError::Disconnected) => return,
                }
            }
            self.ring();
            self.send();
            self.let_in_line();
        }
    }

    /// The socket of this place can be read or written.
    fn serve(&mut self, at: usize) {
        let Some(place) = self.places.get_mut(at) else { return };
        let outcome = match &mut place.phase {
            Phase::Off | Phase::InLine | Phase::Waiting(_) => return,
            Phase::Opening { has_greeted: true, .. } | Phase::Open(_) => Ok(true),
            Phase::Opening { socket, has_greeted, .. } => socket.is_open().inspect(|is_open| {
                if *is_open {
                    *has_greeted = true;
                    let keep_alive = u16::try_from(self.options.keep_alive.as_secs()).unwrap_or(u16::MAX);
                    link::connect(place.rider.client_id(), keep_alive, &mut place.out);
                }
            }),
        };
        match outcome {
            Ok(true) => {}
            Ok(false) => return,
            Err(_) => return self.fail(at),
        }
        // TLS has answers of its own, to what was read.
        let is_tls = place.route.tls.is_some();
        if self.write(at).is_err() || self.read(at).is_err() || (is_tls && self.write(at).is_err()) {
            self.fail(at);
        }
    }

    /// Sends what the last round has led to.
    fn send(&mut self) {
        for at in std::mem::take(&mut self.unsent) {
            if self.write(at).is_err() {
                self.fail(at);
            }
        }
    }

    /// Reads what has come. It is taken in when all sockets of the round were read: what riders compute finds its code warm.
    fn read(&mut self, at: usize) -> io::Result<()> {
        let Some(place) = self.places.get_mut(at) else { return Ok(()) };
        let (Phase::Opening { socket, .. } | Phase::Open(socket)) = &mut place.phase else { return Ok(()) };
        let had = place.input.len();
        let outcome = loop {
            match socket.read(&mut self.scratch) {
                Err(error) => break Err(error),
                Ok(None) => break Ok(()),
                Ok(Some(0)) => break Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(Some(read)) => {
                    place.input.extend_from_slice(&self.scratch[..read]);
                    // Less than there was room for: there is no more (epoll(7)). TLS may hold more.
                    if read < self.scratch.len() && place.route.tls.is_none() {
                        break Ok(());
                    }
                }
            }
        };
        if place.input.len() > had {
            self.untaken.push(at);
        }
        outcome
    }

    /// Takes in what the sockets of this round have brought.
    fn take_in(&mut self) {
        for at in std::mem::take(&mut self.untaken) {
            let Some(place) = self.places.get_mut(at) else { continue };
            let mut input = std::mem::take(&mut place.input);
            let outcome = loop {
                match link::next(&mut input) {
                    Ok(None) => break Ok(()),
                    Ok(Some(said)) => {
                        if let Err(error) = self.hear(at, said) {
                            break Err(error);
                        }
                    }
                    Err(NoSense) => break Err(io::ErrorKind::InvalidData.into()),
                }
            };
            if outcome.is_err() {
                self.fail(at);
            } else if !input.is_empty()
                && let Some(place) = self.places.get_mut(at)
            {
                place.input = input;
            }
        }
    }

    fn hear(&mut self, at: usize, said: Said) -> io::Result<()> {
        let Some(place) = self.places.get_mut(at) else { return Ok(()) };
        match said {
            Said::Accepted(false) => return Err(io::ErrorKind::PermissionDenied.into()),
            Said::Accepted(true) => {
                if matches!(place.phase, Phase::Opening { .. })
                    && let Phase::Opening { socket, .. } = std::mem::replace(&mut place.phase, Phase::Off)
                {
                    place.phase = Phase::Open(socket);
                    place.failures = 0;
                    place.ping = Instant::now() + self.options.keep_alive / 2;
                    place.turn = Some(Instant::now() + ANSWER_WITHIN);
                    self.open += 1;
                    place.rider.connected(&mut self.outbox);
                }
            }
            Said::Subscribed(packet_id, granted) => {
                let filters = place.asked.remove(&packet_id).unwrap_or_default();
                for (filter, is_granted) in filters.into_iter().zip(granted) {
                    place.rider.subscribed(&filter, is_granted, &mut self.outbox);
                    if !is_granted {
                        place.refused.push(filter);
                        let share = f64::from(self.dice.next_u32()) / f64::from(u32::MAX);
                        place.ask_again.get_or_insert(Instant::now() + ASK_AGAIN.mul_f64(share));
                    }
                }
            }
            Said::Message(message) => {
                place.rider.message(&message.topic, &message.payload, &mut self.outbox);
            }
            Said::Nothing => return Ok(()),
        }
        self.after_rider(at);
        Ok(())
    }

    /// Does what a rider wants.
    fn after_rider(&mut self, at: usize) {
        let Some(place) = self.places.get_mut(at) else { return };
        if place.turn.is_some() && matches!(place.phase, Phase::Open(_)) && !place.rider.awaits_answer() {
            place.turn = None;
            self.connecting -= 1;
        }
        if !self.outbox.is_empty() {
            if matches!(place.phase, Phase::Open(_)) {
                let was_empty = place.out.is_empty();
                let mut next_id = || {
                    place.last_packet_id = place.last_packet_id.checked_add(1).unwrap_or(1);
                    place.last_packet_id
                };
                let unsubscribes = std::mem::take(&mut self.outbox.unsubscribes);
                if !unsubscribes.is_empty() {
                    place.refused.retain(|filter| !unsubscribes.contains(filter));
                    link::unsubscribe(next_id(), unsubscribes, &mut place.out);
                }
                let subscribes = std::mem::take(&mut self.outbox.subscribes);
                for some in subscribes.chunks(FILTERS) {
                    let packet_id = next_id();
                    link::subscribe(packet_id, some, &mut place.out);
                    place.asked.insert(packet_id, some.to_vec());
                }
                for (topic, payload) in self.outbox.publishes.drain(..) {
                    link::publish(&topic, &payload, &mut place.out);
                }
                if was_empty && !place.out.is_empty() {
                    self.unsent.push(at);
                }
            }
            self.outbox.clear();
        }
        self.schedule(at);
    }

    fn write(&mut self, at: usize) -> io::Result<()> {
        let Some(place) = self.places.get_mut(at) else { return Ok(()) };
        let (Phase::Opening { socket, .. } | Phase::Open(socket)) = &mut place.phase else { return Ok(()) };
        socket.write(&mut place.out)
    }

    /// The connection is lost, or does not come about.
    fn fail(&mut self, at: usize) {
        self.lost += 1;
        let share = f64::from(self.dice.next_u32()) / f64::from(u32::MAX);
        let Some(place) = self.places.get_mut(at) else { return };
        let limit = self.options.back_off_min.saturating_mul(2u32.saturating_pow(place.failures.min(16)));
        let wait = limit.min(self.options.back_off_max).mul_f64(share);
        place.failures += 1;
        self.close(at, Phase::Waiting(Instant::now() + wait));
        self.schedule(at);
    }

    fn close(&mut self, at: usize, then: Phase) {
        let Some(place) = self.places.get_mut(at) else { return };
        place.input = BytesMut::new();
        place.out = BytesMut::new();
        place.asked.clear();
        place.refused.clear();
        place.ask_again = None;
        self.connecting -= usize::from(place.turn.take().is_some());
        match std::mem::replace(&mut place.phase, then) {
            Phase::Off | Phase::InLine | Phase::Waiting(_) => {}
            Phase::Opening { socket, .. } => socket.close(self.poll.registry()),
            Phase::Open(socket) => {
                self.open -= 1;
                socket.close(self.poll.registry());
                place.rider.disconnected(&mut self.outbox);
                // There is nothing to say it on.
                self.outbox.clear();
            }
        }
    }

    fn may_connect(&self) -> bool {
        self.connecting < self.options.max_connecting && !self.line.is_empty()
    }

    fn let_in_line(&mut self) {
        while self.may_connect()
            && let Some(at) = self.line.pop_front()
        {
            let Some(place) = self.places.get_mut(at) else { continue };
            if !matches!(place.phase, Phase::InLine) {
                continue;
            }
            match Socket::open(&place.route, self.poll.registry(), Token(at)) {
                Ok(socket) => {
                    place.input = BytesMut::new();
                    let until = Instant::now() + CONNECT_WITHIN;
                    place.phase = Phase::Opening { socket, has_greeted: false };
                    place.turn = Some(until);
                    self.connecting += 1;
                    self.schedule(at);
                }
                Err(_) => self.fail(at),
            }
        }
    }

    /// When this place is to be looked at next.
    fn due(&self, place: &Place<R>) -> Option<Instant> {
        let own = match &place.phase {
            Phase::Off | Phase::InLine => None,
            Phase::Waiting(until) => Some(*until),
            Phase::Opening { .. } => None,
            Phase::Open(_) => Some(place.ask_again.map_or(place.ping, |again| again.min(place.ping))),
        };
        [own, place.turn, place.rider.next_timeout()].into_iter().flatten().min()
    }

    fn schedule(&mut self, at: usize) {
        let Some(place) = self.places.get(at) else { return };
        if let Some(due) = self.due(place) {
            self.alarms.set(at, due);
        }
    }

    /// Looks at every place whose time has come.
    fn ring(&mut self) {
        let now = Instant::now();
        while let Some(at) = self.alarms.ring(now) {
            self.look(at, now);
            self.schedule(at);
        }
    }

    fn look(&mut self, at: usize, now: Instant) {
        let Some(place) = self.places.get_mut(at) else { return };
        match &place.phase {
            Phase::Waiting(until) if *until <= now => {
                place.phase = Phase::InLine;
                self.line.push_back(at);
            }
            Phase::Opening { .. } if place.turn.is_none_or(|until| until <= now) => self.fail(at),
            Phase::Open(_) => {
                if place.turn.take_if(|until| *until <= now).is_some() {
                    self.connecting -= 1;
                }
                if place.ping <= now {
                    place.ping = now + self.options.keep_alive / 2;
                    link::ping(&mut place.out);
                }
                if place.ask_again.is_some_and(|again| again <= now) {
                    place.ask_again = None;
                    self.outbox.subscribes.append(&mut place.refused);
                }
            }
            Phase::Off | Phase::InLine | Phase::Waiting(_) | Phase::Opening { .. } => {}
        }
        let Some(place) = self.places.get_mut(at) else { return };
        if place.rider.next_timeout().is_some_and(|due| due <= now) {
            place.rider.timeout(&mut self.outbox);
        }
        self.after_rider(at);
        if self.write(at).is_err() {
            self.fail(at);
        }
    }
}
