//! Somebody in the coordinator's place who knows nothing of keys: says one message on each topic, and counts what comes back.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use fleetkey_swarm::{Outbox, Rider, Route, Seat, Shard, ShardOptions};
use fleetkey_wire::{FleetId, Topic};

/// How long a round may take.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_micros(200);

/// What the rider and whoever waits for it share.
#[derive(Debug, Default)]
struct Tally {
    is_subscribed: AtomicBool,
    replies: AtomicU64,
    /// When the last reply came that was waited for.
    done: Mutex<Option<Instant>>,
    wanted: AtomicU64,
}

struct Bare {
    all_up: String,
    tally: Arc<Tally>,
}

impl Rider for Bare {
    fn client_id(&self) -> String {
        "coordinator-bare".to_owned()
    }

    fn connected(&mut self, out: &mut Outbox) {
        out.subscribe(self.all_up.clone());
    }

    fn disconnected(&mut self, _: &mut Outbox) {
        self.tally.is_subscribed.store(false, Ordering::Release);
    }

    fn subscribed(&mut self, _: &str, is_granted: bool, _: &mut Outbox) {
        self.tally.is_subscribed.store(is_granted, Ordering::Release);
    }

    fn message(&mut self, _: &str, _: &[u8], _: &mut Outbox) {
        let replies = self.tally.replies.fetch_add(1, Ordering::AcqRel) + 1;
        if replies == self.tally.wanted.load(Ordering::Acquire) {
            *self.tally.done.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
    }

    fn timeout(&mut self, _: &mut Outbox) {}

    fn next_timeout(&self) -> Option<Instant> {
        None
    }
}

/// A connection in the coordinator's place.
pub struct Prober {
    shard: Shard<Bare>,
    seat: Seat,
    tally: Arc<Tally>,
}

impl Prober {
    /// Connects, and listens to what devices say.
    ///
    /// # Errors
    /// When the broker does not let it in.
    pub fn connect(fleet: FleetId, route: Route) -> anyhow::Result<Self> {
        let tally = Arc::new(Tally::default());
        let shard = Shard::start("prober", ShardOptions::default()).context("start a thread")?;
        let rider = Bare { all_up: fleetkey_wire::Filter::AllUp { fleet }.to_string(), tally: tally.clone() };
        let seat = shard.call(move |crew| {
            let seat = crew.add(rider, route);
            crew.connect(seat);
            seat
        })?;
        let prober = Self { shard, seat, tally };
        let deadline = Instant::now() + PATIENCE;
        while !prober.tally.is_subscribed.load(Ordering::Acquire) {
            anyhow::ensure!(Instant::now() < deadline, "the broker does not let the measuring connection in");
            std::thread::sleep(LOOK);
        }
        Ok(prober)
    }

    /// One message of so many bytes on each topic, and as many replies: how long until the last of them.
    ///
    /// # Errors
    /// When they do not all come.
    pub fn round(&self, topics: &[Topic], message_bytes: usize, replies: u64) -> anyhow::Result<Duration> {
        let topics: Vec<String> = topics.iter().map(ToString::to_string).collect();
        self.tally.replies.store(0, Ordering::Release);
        *self.tally.done.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.tally.wanted.store(replies, Ordering::Release);
        let seat = self.seat;
        let began = Instant::now();
        self.shard.call(move |crew| {
            crew.with(seat, |_, out| {
                for topic in topics {
                    out.publish(topic, vec![0; message_bytes]);
                }
            });
        })?;
        while began.elapsed() < PATIENCE {
            if let Some(done) = *self.tally.done.lock().unwrap_or_else(PoisonError::into_inner) {
                return Ok(done.duration_since(began));
            }
            std::thread::sleep(LOOK);
        }
        let came = self.tally.replies.load(Ordering::Acquire);
        anyhow::bail!("{came} of {replies} replies came within {} s", PATIENCE.as_secs())
    }
}
