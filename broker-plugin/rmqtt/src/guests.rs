//! Who is behind each relay, and what a change of policy or of the CRL does to them.
//!
//! rmqtt knows a connection by the address it comes from. A relay's is taken before it connects, and told here; who
//! comes from any other address did not come through the front. Leaves to `hooks` what a guest may do.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use fleetkey_door::addresses::Addresses;
use fleetkey_door::papers::Papers;
use fleetkey_identity::{IssuerAndSerial, Revocations};
use fleetkey_policy::{Effects, Party, PolicyHandle};
use fleetkey_wire::{CellId, DeviceId, FleetId, Topic};
use metrics::{counter, describe_counter, describe_gauge, gauge};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::config::Limits;
use crate::refusal::{Close, Refusal};

/// Places kept for coordinators when devices have taken all the others.
pub(crate) const RESERVED_CONNECTIONS: u64 = 64;

/// Shared by all connections of a node.
pub(crate) struct Guests {
    pub(crate) fleet: FleetId,
    pub(crate) limits: Limits,
    pub(crate) policy: PolicyHandle,
    /// Cancelled when the node is to stop.
    pub(crate) stop: CancellationToken,
    /// TLS handshakes that may be under way.
    pub(crate) handshakes: Semaphore,
    pub(crate) addresses: Addresses,
    open: AtomicU64,
    relayed: RwLock<HashMap<SocketAddr, Arc<Guest>>>,
    /// Certificates that no longer count.
    revocations: RwLock<Revocations>,
    refusal_log: Mutex<LogBudget>,
}

/// Somebody whose papers are in order.
pub(crate) struct Guest {
    pub(crate) papers: Papers,
    /// Set when the CONNECT was accepted, once.
    client_id: OnceLock<Box<str>>,
    end: CancellationToken,
    why: OnceLock<Close>,
}

/// A guest that can be found by where its relay comes from, for as long as this lives.
pub(crate) struct Relayed<'a> {
    guests: &'a Guests,
    address: SocketAddr,
    pub(crate) guest: Arc<Guest>,
}

/// A subscription that has to go.
pub(crate) struct Dropped {
    pub(crate) client_id: String,
    pub(crate) filter: String,
}

/// So many lines in each second, and no more.
struct LogBudget {
    since: Instant,
    lines: u32,
}

impl LogBudget {
    const LINES_PER_SECOND: u32 = 12;

    fn may_log(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            *self = Self { since: now, lines: 0 };
        }
        self.lines = self.lines.saturating_add(1);
        self.lines <= Self::LINES_PER_SECOND
    }
}

impl Guests {
    pub(crate) fn new(fleet: FleetId, limits: Limits, policy: PolicyHandle) -> Self {
        describe();
        Self {
            fleet,
            policy,
            stop: CancellationToken::new(),
            handshakes: Semaphore::new(limits.max_handshakes),
            addresses: Addresses::new(limits.max_connections_per_address),
            open: AtomicU64::new(0),
            relayed: RwLock::default(),
            revocations: RwLock::default(),
            refusal_log: Mutex::new(LogBudget { since: Instant::now(), lines: 0 }),
            limits,
        }
    }

    /// One more TCP connection; answers with how many there are.
    pub(crate) fn connection_opened(&self) -> u64 {
        gauge!("fleetkey_broker_connections").increment(1.0);
        self.open.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn connection_closed(&self) {
        gauge!("fleetkey_broker_connections").decrement(1.0);
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many connections are open.
    pub(crate) fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// Lets somebody with these papers say CONNECT from `address`.
    pub(crate) fn announce(&self, address: SocketAddr, papers: Papers) -> Result<Relayed<'_>, Refusal> {
        let is_device = matches!(papers.party, Party::Device(_));
        if is_device && self.open() > self.limits.max_connections as u64 {
            return Err(Refusal::TooManyConnections);
        }
        let guest = Arc::new(Guest {
            papers,
            client_id: OnceLock::new(),
            end: CancellationToken::new(),
            why: OnceLock::new(),
        });
        write(&self.relayed).insert(address, guest.clone());
        let relayed = Relayed { guests: self, address, guest };
        // Only now, so that a list that comes at this moment finds the guest, or is found.
        self.check_certificate(relayed.guest.papers.certificate.as_ref())?;
        Ok(relayed)
    }

    /// Who comes from this address.
    pub(crate) fn at(&self, address: SocketAddr) -> Option<Arc<Guest>> {
        read(&self.relayed).get(&address).cloned()
    }

    /// Ends what has to end after a change of policy: connections at once; answers with clients whose sessions are to
    /// be ended, and the subscriptions that have to go.
    pub(crate) fn obey(&self, effects: &Effects) -> (Vec<String>, Vec<Dropped>) {
        let mut cells: HashMap<DeviceId, Vec<CellId>> = HashMap::new();
        for (cell, device) in &effects.drop {
            cells.entry(*device).or_default().push(*cell);
        }
        let (mut ended, mut dropped) = (Vec::new(), Vec::new());
        for guest in self.everybody() {
            let Party::Device(device) = guest.papers.party else { continue };
            if effects.close.contains(&device) {
                guest.close(Close::Revoked);
                ended.push(device.to_string());
            } else if let Some(cells) = cells.get(&device) {
                dropped.extend(cells.iter().map(|cell| Dropped {
                    client_id: device.to_string(),
                    filter: Topic::Cell { fleet: self.fleet, cell: *cell }.to_string(),
                }));
            }
        }
        (ended, dropped)
    }

    /// Ends the connections of certificates that no longer count, and lets nobody in with one; answers how many ended.
    pub(crate) fn obey_crl(&self, revocations: &Revocations) -> usize {
        *write(&self.revocations) = revocations.clone();
        let mut ended = 0;
        for guest in self.everybody() {
            if self.check_certificate(guest.papers.certificate.as_ref()).is_err() {
                guest.close(Close::RevokedCertificate);
                ended += 1;
            }
        }
        ended
    }

    /// Ends every connection: the node is stopping.
    pub(crate) fn close_all(&self) {
        for guest in self.everybody() {
            guest.close(Close::ShuttingDown);
        }
    }

    /// Counts a refusal, and logs it: by the dozen at most, for whoever is refused can go on trying.
    pub(crate) fn refused(&self, who: &dyn fmt::Display, refusal: &Refusal) {
        counter!("fleetkey_broker_refused_total", "reason" => refusal.name()).increment(1);
        if self.refusal_log.lock().unwrap_or_else(PoisonError::into_inner).may_log(Instant::now()) {
            tracing::info!(%who, reason = refusal.name(), %refusal, "refused");
        } else {
            tracing::debug!(%who, reason = refusal.name(), %refusal, "refused");
        }
    }

    fn check_certificate(&self, certificate: Option<&IssuerAndSerial>) -> Result<(), Refusal> {
        let revocations = read(&self.revocations);
        if certificate.is_some_and(|certificate| revocations.cover(certificate)) {
            return Err(Refusal::RevokedCertificate);
        }
        Ok(())
    }

    fn everybody(&self) -> Vec<Arc<Guest>> {
        read(&self.relayed).values().cloned().collect()
    }
}

impl Guest {
    /// The CONNECT was accepted under this id; false when one was before.
    pub(crate) fn admit(&self, client_id: &str) -> bool {
        let is_first = self.client_id.set(client_id.into()).is_ok();
        if is_first {
            gauge!("fleetkey_broker_sessions").increment(1.0);
            counter!("fleetkey_broker_sessions_total").increment(1);
        }
        is_first
    }

    /// Ends the connection, now.
    pub(crate) fn close(&self, why: Close) {
        // The first reason counts.
        let _ = self.why.set(why);
        self.end.cancel();
    }

    /// Waits until somebody ends the connection.
    pub(crate) async fn closed(&self) -> Close {
        self.end.cancelled().await;
        self.why.get().cloned().unwrap_or(Close::Left)
    }

    /// The connection has ended.
    pub(crate) fn left(&self, close: &Close) {
        if self.client_id.get().is_some() {
            gauge!("fleetkey_broker_sessions").decrement(1.0);
            counter!("fleetkey_broker_closed_total", "reason" => close.name()).increment(1);
        }
    }
}

impl Drop for Relayed<'_> {
    fn drop(&mut self) {
        write(&self.guests.relayed).remove(&self.address);
    }
}

fn describe() {
    describe_gauge!("fleetkey_broker_connections", "TCP connections open now");
    describe_gauge!("fleetkey_broker_sessions", "Clients connected now");
    describe_counter!("fleetkey_broker_sessions_total", "Clients accepted");
    describe_counter!("fleetkey_broker_throttled_total", "Times that a device was made to wait");
    describe_counter!("fleetkey_broker_refused_total", "Refusals by reason");
    describe_counter!("fleetkey_broker_closed_total", "Ended sessions by reason");
    describe_counter!(
        "fleetkey_broker_withheld_total",
        "Messages not delivered to who may not have them any more"
    );
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
