//! Counters: for this process to read, and for the `metrics` recorder when there is one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

/// What a broker has counted since it started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// TCP connections open now.
    pub connections: u64,
    /// Clients connected now: those whose CONNECT was accepted.
    pub sessions: u64,
    /// Clients accepted so far.
    pub sessions_total: u64,
    /// Publishes accepted from clients.
    pub publishes: u64,
    /// Bytes of payload in them.
    pub publish_bytes: u64,
    /// Messages handed to clients' connections.
    pub deliveries: u64,
    /// Bytes of payload in them.
    pub delivery_bytes: u64,
    /// `up` and `down` publishes that had nobody to go to.
    pub undeliverable: u64,
    /// Times that a device was made to wait, having said too much.
    pub throttled: u64,
    /// Whether the way to the broker above is there.
    pub is_upstream_there: bool,
    /// Times that it was lost, or did not come about.
    pub upstream_losses: u64,
    /// Refusals by reason.
    pub refused: BTreeMap<&'static str, u64>,
    /// Ended sessions by reason.
    pub closed: BTreeMap<&'static str, u64>,
}

impl Stats {
    /// Refusals for this reason.
    pub fn refused(&self, reason: &str) -> u64 {
        self.refused.get(reason).copied().unwrap_or(0)
    }

    /// Sessions that ended for this reason.
    pub fn closed(&self, reason: &str) -> u64 {
        self.closed.get(reason).copied().unwrap_or(0)
    }
}

/// The live counters behind [`Stats`].
pub(crate) struct Counters {
    connections: Level,
    sessions: Level,
    sessions_total: Count,
    publishes: Count,
    publish_bytes: Count,
    deliveries: Count,
    delivery_bytes: Count,
    undeliverable: Count,
    throttled: Count,
    upstream: Level,
    upstream_losses: AtomicU64,
    refused: Mutex<BTreeMap<&'static str, u64>>,
    closed: Mutex<BTreeMap<&'static str, u64>>,
}

struct Count {
    own: AtomicU64,
    shared: Counter,
}

struct Level {
    own: AtomicU64,
    shared: Gauge,
}

impl Counters {
    pub(crate) fn new() -> Self {
        describe();
        Self {
            connections: Level::new(gauge!("fleetkey_broker_connections")),
            sessions: Level::new(gauge!("fleetkey_broker_sessions")),
            sessions_total: Count::new(counter!("fleetkey_broker_sessions_total")),
            publishes: Count::new(counter!("fleetkey_broker_publishes_total")),
            publish_bytes: Count::new(counter!("fleetkey_broker_publish_bytes_total")),
            deliveries: Count::new(counter!("fleetkey_broker_deliveries_total")),
            delivery_bytes: Count::new(counter!("fleetkey_broker_delivery_bytes_total")),
            undeliverable: Count::new(counter!("fleetkey_broker_undeliverable_total")),
            throttled: Count::new(counter!("fleetkey_broker_throttled_total")),
            upstream: Level::new(gauge!("fleetkey_broker_upstream_connected")),
            upstream_losses: AtomicU64::new(0),
            refused: Mutex::default(),
            closed: Mutex::default(),
        }
    }

    pub(crate) fn snapshot(&self) -> Stats {
        Stats {
            connections: self.connections.get(),
            sessions: self.sessions.get(),
            sessions_total: self.sessions_total.get(),
            publishes: self.publishes.get(),
            publish_bytes: self.publish_bytes.get(),
            deliveries: self.deliveries.get(),
            delivery_bytes: self.delivery_bytes.get(),
            undeliverable: self.undeliverable.get(),
            throttled: self.throttled.get(),
            is_upstream_there: self.upstream.get() > 0,
            upstream_losses: self.upstream_losses.load(Ordering::Relaxed),
            refused: self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            closed: self.closed.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// One more TCP connection; answers with how many there are.
    pub(crate) fn connection_opened(&self) -> u64 {
        self.connections.up()
    }

    pub(crate) fn connection_closed(&self) {
        self.connections.down();
    }

    pub(crate) fn sessions(&self) -> u64 {
        self.sessions.get()
    }

    pub(crate) fn session_opened(&self) {
        self.sessions.up();
        self.sessions_total.add(1);
    }

    pub(crate) fn session_closed(&self, reason: &'static str) {
        self.sessions.down();
        counter!("fleetkey_broker_closed_total", "reason" => reason).increment(1);
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        counter!("fleetkey_broker_refused_total", "reason" => reason).increment(1);
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_default() += 1;
    }

    pub(crate) fn published(&self, payload_bytes: usize) {
        self.publishes.add(1);
        self.publish_bytes.add(payload_bytes as u64);
    }

    pub(crate) fn delivered(&self, messages: u64, payload_bytes: u64) {
        self.deliveries.add(messages);
        self.delivery_bytes.add(payload_bytes);
    }

    pub(crate) fn undeliverable(&self) {
        self.undeliverable.add(1);
    }

    pub(crate) fn upstream_opened(&self) {
        self.upstream.up();
    }

    pub(crate) fn upstream_closed(&self) {
        self.upstream.down();
    }

    /// The way up was lost, or did not come about.
    pub(crate) fn upstream_lost(&self, reason: &'static str) {
        counter!("fleetkey_broker_upstream_lost_total", "reason" => reason).increment(1);
        self.upstream_losses.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn throttled(&self) {
        self.throttled.add(1);
    }
}

fn describe() {
    describe_gauge!("fleetkey_broker_connections", "TCP connections open now");
    describe_gauge!("fleetkey_broker_sessions", "Clients connected now");
    describe_counter!("fleetkey_broker_sessions_total", "Clients accepted");
    describe_counter!("fleetkey_broker_publishes_total", "Publishes accepted from clients");
    describe_counter!("fleetkey_broker_publish_bytes_total", "Bytes of payload in accepted publishes");
    describe_counter!("fleetkey_broker_deliveries_total", "Messages handed to clients' connections");
    describe_counter!("fleetkey_broker_delivery_bytes_total", "Bytes of payload in deliveries");
    describe_counter!("fleetkey_broker_undeliverable_total", "up and down publishes with nobody to go to");
    describe_counter!("fleetkey_broker_throttled_total", "Times that a device was made to wait");
    describe_gauge!("fleetkey_broker_upstream_connected", "1 while the way to the broker above is there");
    describe_counter!("fleetkey_broker_upstream_lost_total", "Ways up that were lost or did not come about");
    describe_counter!("fleetkey_broker_refused_total", "Refusals by reason");
    describe_counter!("fleetkey_broker_closed_total", "Ended sessions by reason");
}

impl Count {
    const fn new(shared: Counter) -> Self {
        Self { own: AtomicU64::new(0), shared }
    }

    fn add(&self, more: u64) {
        self.own.fetch_add(more, Ordering::Relaxed);
        self.shared.increment(more);
    }

    fn get(&self) -> u64 {
        self.own.load(Ordering::Relaxed)
    }
}

impl Level {
    const fn new(shared: Gauge) -> Self {
        Self { own: AtomicU64::new(0), shared }
    }

    fn up(&self) -> u64 {
        self.shared.increment(1.0);
        self.own.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn down(&self) {
        self.shared.decrement(1.0);
        self.own.fetch_sub(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.own.load(Ordering::Relaxed)
    }
}
