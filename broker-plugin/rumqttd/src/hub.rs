//! Where sessions meet: who is connected, who gets what, and what a change of policy does to them.
//!
//! `up` and `down` are delivered here, one map lookup each; cells go through the fan-out. What sessions want of a broker
//! above is told to `uplink`. Leaves to `connection` the packets and the sockets.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fleetkey_door::addresses::Addresses;
use fleetkey_identity::{IssuerAndSerial, Revocations};
use fleetkey_policy::{Effects, Party, PolicyHandle, Qos};
use fleetkey_wire::{CellId, DeviceId, Filter, FleetId, Topic};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::config::{Limits, QueueLimit};
use crate::fan_out::{FanOut, FanOutGone};
use crate::message::Message;
use crate::refusal::{Close, Refusal};
use crate::session::Session;
use crate::stats::Counters;
use crate::uplink::{Wish, Wishes};

/// Places kept for coordinators when devices have taken all the others.
pub(crate) const RESERVED_CONNECTIONS: usize = 64;

/// A session and the QoS it subscribed at.
type Listening = (Arc<Session>, Qos);

/// Shared by all connections of a broker.
pub(crate) struct Hub {
    pub(crate) fleet: FleetId,
    pub(crate) limits: Limits,
    pub(crate) policy: PolicyHandle,
    pub(crate) counters: Counters,
    /// Cancelled when the broker is to stop.
    pub(crate) stop: CancellationToken,
    /// Set when the broker stops because it cannot go on.
    pub(crate) failed: AtomicBool,
    /// TLS handshakes that may be under way.
    pub(crate) handshakes: Semaphore,
    fan_out: Box<dyn FanOut>,
    /// Certificates that no longer count.
    revocations: RwLock<Revocations>,
    pub(crate) addresses: Addresses,
    next_session: AtomicU64,
    devices: RwLock<HashMap<DeviceId, Arc<Session>>>,
    /// Coordinators, and relays.
    others: RwLock<HashMap<Box<str>, Arc<Session>>>,
    /// Relays that take the `down` of a device.
    relays: RwLock<HashMap<DeviceId, Vec<Listening>>>,
    /// What sessions want of the broker above, where there is one.
    pub(crate) wishes: Option<Wishes>,
    /// Who takes what devices say: coordinators, and the way up.
    listeners: RwLock<Arc<[Listening]>>,
    /// Devices and relays that must not say more until listeners have taken what was said, by session.
    waiting_for_listeners: Mutex<HashMap<u64, Waker>>,
    refusal_log: Mutex<LogBudget>,
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

impl Hub {
    pub(crate) fn new(
        fleet: FleetId,
        limits: Limits,
        policy: PolicyHandle,
        fan_out: Box<dyn FanOut>,
        is_edge: bool,
    ) -> Self {
        let handshakes = Semaphore::new(limits.max_handshakes);
        let addresses = Addresses::new(limits.max_connections_per_address);
        Self {
            fleet,
            limits,
            policy,
            counters: Counters::new(),
            stop: CancellationToken::new(),
            failed: AtomicBool::new(false),
            handshakes,
            fan_out,
            revocations: RwLock::default(),
            addresses,
            next_session: AtomicU64::new(1),
            devices: RwLock::default(),
            others: RwLock::default(),
            relays: RwLock::default(),
            wishes: is_edge.then(Wishes::default),
            listeners: RwLock::new(Arc::new([])),
            waiting_for_listeners: Mutex::default(),
            refusal_log: Mutex::new(LogBudget { since: Instant::now(), lines: 0 }),
        }
    }

    /// Lets a client in, if the policy does. An earlier session of the same client ends.
    pub(crate) fn attach(
        &self,
        party: Party,
        client_id: &str,
        certificate: Option<IssuerAndSerial>,
    ) -> Result<Arc<Session>, Refusal> {
        self.check_certificate(certificate.as_ref())?;
        self.check_way_up(party)?;
        self.policy.read().decide_connect(&party, client_id)?;
        let limit = match party {
            Party::Coordinator => self.limits.coordinator_queue,
            Party::Device(device) => {
                // Who takes over from itself takes no more room.
                let is_full = self.counters.sessions() >= self.limits.max_connections as u64;
                if is_full && !read(&self.devices).contains_key(&device) {
                    return Err(Refusal::TooManyConnections);
                }
                self.limits.device_queue
            }
            Party::Broker => self.limits.relay_queue,
            Party::Operator => self.limits.device_queue,
        };
        let session = self.new_session(party, client_id, certificate, limit);
        let earlier = match party {
            Party::Device(device) => write(&self.devices).insert(device, session.clone()),
            Party::Coordinator | Party::Broker | Party::Operator => {
                write(&self.others).insert(client_id.into(), session.clone())
            }
        };
        self.counters.session_opened();
        if let Some(earlier) = earlier {
            earlier.close(Close::TakenOver);
        }
        // The policy may have changed before the session could be found by `obey`.
        if let Err(denied) = self.policy.read().decide_connect(&party, client_id) {
            self.detach(&session, denied.name());
            return Err(denied.into());
        }
        // And so may the CRL, and the way up.
        let checked = self.check_certificate(session.certificate.as_ref());
        if let Err(refusal) = checked.and_then(|()| self.check_way_up(party)) {
            self.detach(&session, refusal.name());
            return Err(refusal);
        }
        Ok(session)
    }

    /// Forgets a session that has ended.
    pub(crate) fn detach(&self, session: &Arc<Session>, reason: &'static str) {
        match session.party {
            Party::Device(device) => {
                let mut devices = write(&self.devices);
                if devices.get(&device).is_some_and(|current| current.id == session.id) {
                    devices.remove(&device);
                }
            }
            Party::Coordinator | Party::Broker | Party::Operator => {
                let mut others = write(&self.others);
                if others.get(&session.client_id).is_some_and(|current| current.id == session.id) {
                    others.remove(&session.client_id);
                }
            }
        }
        self.stop_listening(session);
        self.waiting().remove(&session.id);
        let left = std::mem::take(&mut *session.subscriptions());
        self.fan_out.forget(session, &left.cells);
        left.relayed.iter().for_each(|device| self.stop_relaying(session, *device));
        if let Some(wishes) = &self.wishes {
            let own = match (session.party, left.down) {
                (Party::Device(device), Some(_)) => Some(device),
                (Party::Device(_), None) | (Party::Coordinator | Party::Broker | Party::Operator, _) => None,
            };
            let downs = left.relayed.iter().copied().chain(own).map(Wish::Down);
            wishes.release(left.cells.iter().map(|joined| Wish::Cell(joined.cell)).chain(downs));
        }
        self.counters.session_closed(reason);
    }

    /// Subscribes a session; answers with the QoS that was granted.
    pub(crate) async fn subscribe(
        &self,
        session: &Arc<Session>,
        raw_filter: &str,
        requested: Qos,
    ) -> Result<Qos, Refusal> {
        let filter = self.policy.read().decide_subscribe(&session.party, raw_filter)?;
        let granted = requested.min(Qos::AtLeastOnce);
        match filter {
            Filter::AllUp { .. } => {
                session.subscriptions().all_up = Some(granted);
                self.listen(session, granted);
            }
            Filter::Exact(Topic::Down { device, .. } | Topic::Up { device, .. }) => {
                self.subscribe_down(session, device, granted)?;
                // As with cells.
                if let Err(denied) = self.policy.read().decide_subscribe(&session.party, raw_filter) {
                    self.unsubscribe_down(session, device);
                    return Err(denied.into());
                }
            }
            Filter::Exact(Topic::Cell { cell, .. }) => {
                {
                    let mut subscriptions = session.subscriptions();
                    if subscriptions.cell(cell).is_none() {
                        self.check_room(session, subscriptions.count())?;
                    }
                    // Before it could be taken back.
                    if subscriptions.add_cell(cell, granted)
                        && let Some(wishes) = &self.wishes
                    {
                        wishes.want(Wish::Cell(cell));
                    }
                }
                if self.fan_out.join(session, cell, granted).await.is_err() {
                    session.close(Close::FanOutLost);
                }
                // The policy may have changed before the subscription could be found by `obey`.
                if let Err(denied) = self.policy.read().decide_subscribe(&session.party, raw_filter) {
                    self.leave_cell(session, cell);
                    return Err(denied.into());
                }
            }
        }
        Ok(granted)
    }

    fn subscribe_down(&self, session: &Arc<Session>, device: DeviceId, granted: Qos) -> Result<(), Refusal> {
        let is_new = {
            let mut subscriptions = session.subscriptions();
            if session.party == Party::Broker {
                if !subscriptions.relayed.contains(&device) {
                    self.check_room(session, subscriptions.count())?;
                }
                subscriptions.relayed.insert(device)
            } else {
                subscriptions.down.replace(granted).is_none()
            }
        };
        if session.party == Party::Broker {
            let mut relays = write(&self.relays);
            let takers = relays.entry(device).or_default();
            takers.retain(|(other, _)| other.id != session.id);
            takers.push((session.clone(), granted));
        }
        if is_new && let Some(wishes) = &self.wishes {
            wishes.want(Wish::Down(device));
        }
        Ok(())
    }

    fn unsubscribe_down(&self, session: &Session, device: DeviceId) -> bool {
        let was = if session.party == Party::Broker {
            let was = session.subscriptions().relayed.remove(&device);
            self.stop_relaying(session, device);
            was
        } else {
            session.subscriptions().down.take().is_some()
        };
        if was && let Some(wishes) = &self.wishes {
            wishes.release([Wish::Down(device)]);
        }
        was
    }

    /// Takes a session out of a cell; answers whether it was in it.
    fn leave_cell(&self, session: &Session, cell: CellId) -> bool {
        let was = session.subscriptions().remove_cell(cell);
        if was {
            self.fan_out.leave(session, cell);
            if let Some(wishes) = &self.wishes {
                wishes.release([Wish::Cell(cell)]);
            }
        }
        was
    }

    fn check_room(&self, session: &Session, subscriptions: usize) -> Result<(), Refusal> {
        let limit = match session.party {
            Party::Broker => self.limits.max_subscriptions_per_relay,
            Party::Device(_) | Party::Coordinator | Party::Operator => {
                self.limits.max_subscriptions_per_device
            }
        };
        if subscriptions >= limit { Err(Refusal::TooManySubscriptions) } else { Ok(()) }
    }

    /// Ends a subscription; answers whether there was one.
    pub(crate) fn unsubscribe(&self, session: &Arc<Session>, raw_filter: &str) -> bool {
        match Filter::parse(raw_filter) {
            Ok(Filter::AllUp { .. }) => {
                let was = session.subscriptions().all_up.take();
                self.stop_listening(session);
                was.is_some()
            }
            Ok(Filter::Exact(Topic::Down { device, .. }))
                if session.party == Party::Device(device) || session.party == Party::Broker =>
            {
                self.unsubscribe_down(session, device)
            }
            Ok(Filter::Exact(Topic::Cell { cell, .. })) => self.leave_cell(session, cell),
            Ok(Filter::Exact(Topic::Down { .. } | Topic::Up { .. })) | Err(_) => false,
        }
    }

    /// Sends a publish on its way; answers whether there was anybody to send it to, as far as that is known.
    pub(crate) async fn publish(
        &self,
        session: &Session,
        raw_topic: &str,
        payload: &[u8],
        qos: Qos,
        retain: bool,
    ) -> Result<bool, Refusal> {
        let topic =
            self.policy.read().decide_publish(&session.party, raw_topic, payload.len(), qos, retain)?;
        Ok(self.hand_over(topic, raw_topic, payload, qos).await)
    }

    /// Hands a message to those that it is for; answers whether there was anybody, as far as that is known.
    pub(crate) async fn hand_over(&self, topic: Topic, raw_topic: &str, payload: &[u8], qos: Qos) -> bool {
        self.counters.published(payload.len());
        let message = Arc::new(Message::new(raw_topic, Bytes::copy_from_slice(payload), qos));
        let found = match topic {
            Topic::Cell { cell, .. } => {
                if let Err(FanOutGone) = self.fan_out.publish(cell, &message).await {
                    self.fail();
                }
                true
            }
            Topic::Down { device, .. } => self.deliver_down(device, &message),
            Topic::Up { .. } => self.deliver_up(&message),
        };
        if !found {
            self.counters.undeliverable();
        }
        found
    }

    /// Ready when no listener has too much waiting; otherwise the task is woken when that has changed.
    pub(crate) fn poll_listeners(&self, session: &Session, cx: &Context<'_>) -> Poll<()> {
        if !self.is_congested() {
            return Poll::Ready(());
        }
        self.waiting().insert(session.id, cx.waker().clone());
        // It may have changed before the waker could be found.
        if self.is_congested() { Poll::Pending } else { Poll::Ready(()) }
    }

    /// A listener has taken some of what was waiting for it.
    pub(crate) fn listener_took(&self, session: &Session) {
        let waiting = self.waiting();
        if !waiting.is_empty() && session.has_room() {
            wake_all(waiting);
        }
    }

    pub(crate) fn is_congested(&self) -> bool {
        read(&self.listeners).iter().any(|(session, _)| session.is_congested())
    }

    /// Does to live sessions what follows from a change of policy.
    pub(crate) fn obey(&self, effects: &Effects) {
        for device in &effects.close {
            if let Some(session) = self.device(*device) {
                session.close(Close::Revoked);
            }
            // Behind a relay it is that broker's to end.
            for (relay, _) in self.relays_of(*device) {
                self.unsubscribe_down(&relay, *device);
            }
        }
        for (cell, device) in &effects.drop {
            if let Some(session) = self.device(*device) {
                self.leave_cell(&session, *cell);
            }
        }
    }

    /// Ends the sessions of certificates that no longer count, and lets nobody in with one; answers how many ended.
    pub(crate) fn obey_crl(&self, revocations: &Revocations) -> usize {
        *write(&self.revocations) = revocations.clone();
        let mut ended = 0;
        for session in self.sessions() {
            if let Err(refusal) = self.check_certificate(session.certificate.as_ref()) {
                session.close(refusal.into());
                ended += 1;
            }
        }
        ended
    }

    /// Ends every session: the broker is stopping.
    pub(crate) fn close_all(&self) {
        for session in self.sessions() {
            session.close(Close::ShuttingDown);
        }
    }

    /// Ends the sessions that live of the way up: what was for them may have been lost.
    pub(crate) fn close_stranded(&self) {
        for session in self.sessions() {
            if needs_way_up(session.party) {
                session.close(Close::UpstreamLost);
            }
        }
    }

    /// A session that is none of a client's until it is attached.
    pub(crate) fn new_session(
        &self,
        party: Party,
        client_id: &str,
        certificate: Option<IssuerAndSerial>,
        limit: QueueLimit,
    ) -> Arc<Session> {
        let id = self.next_session.fetch_add(1, Ordering::Relaxed);
        Arc::new(Session::new(id, party, client_id, certificate, limit))
    }

    /// Ends the session of one device, if it has one.
    pub(crate) fn close_device(&self, device: DeviceId, why: Close) {
        if let Some(session) = self.device(device) {
            session.close(why);
        }
    }

    fn sessions(&self) -> Vec<Arc<Session>> {
        let mut all: Vec<_> = read(&self.devices).values().cloned().collect();
        all.extend(read(&self.others).values().cloned());
        all
    }

    fn check_way_up(&self, party: Party) -> Result<(), Refusal> {
        match &self.wishes {
            Some(wishes) if needs_way_up(party) && wishes.is_way_closed() => Err(Refusal::NoUpstream),
            Some(_) | None => Ok(()),
        }
    }

    /// Counts a refusal, and logs it: by the dozen at most, for whoever is refused can go on trying.
    pub(crate) fn refused(&self, who: &dyn fmt::Display, refusal: &Refusal) {
        self.counters.refused(refusal.name());
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

    /// The broker cannot go on.
    fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
        self.stop.cancel();
    }

    fn device(&self, device: DeviceId) -> Option<Arc<Session>> {
        read(&self.devices).get(&device).cloned()
    }

    fn deliver_down(&self, device: DeviceId, message: &Arc<Message>) -> bool {
        let mut found = false;
        if let Some(session) = self.device(device) {
            let subscribed = session.subscriptions().down;
            if let Some(subscribed) = subscribed {
                session.deliver(message, subscribed);
                found = true;
            }
        }
        // A device that has moved may still be awaited where it was.
        for (relay, subscribed) in read(&self.relays).get(&device).into_iter().flatten() {
            relay.deliver(message, *subscribed);
            found = true;
        }
        found
    }

    fn relays_of(&self, device: DeviceId) -> Vec<Listening> {
        read(&self.relays).get(&device).cloned().unwrap_or_default()
    }

    fn stop_relaying(&self, session: &Session, device: DeviceId) {
        if let Entry::Occupied(mut takers) = write(&self.relays).entry(device) {
            takers.get_mut().retain(|(relay, _)| relay.id != session.id);
            if takers.get().is_empty() {
                takers.remove();
            }
        }
    }

    fn deliver_up(&self, message: &Arc<Message>) -> bool {
        let listeners = read(&self.listeners).clone();
        for (session, subscribed) in listeners.iter() {
            session.deliver(message, *subscribed);
        }
        !listeners.is_empty()
    }

    pub(crate) fn listen(&self, session: &Arc<Session>, qos: Qos) {
        let mut listeners = write(&self.listeners);
        let others = listeners.iter().filter(|(other, _)| other.id != session.id).cloned();
        *listeners = others.chain([(session.clone(), qos)]).collect();
    }

    pub(crate) fn stop_listening(&self, session: &Session) {
        let mut listeners = write(&self.listeners);
        if listeners.iter().any(|(other, _)| other.id == session.id) {
            *listeners = listeners.iter().filter(|(other, _)| other.id != session.id).cloned().collect();
            drop(listeners);
            // Nobody has to wait for it any more.
            wake_all(self.waiting());
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Waker>> {
        self.waiting_for_listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does it speak to, or for, somebody who is reached through the broker above?
const fn needs_way_up(party: Party) -> bool {
    matches!(party, Party::Device(_) | Party::Broker)
}

fn wake_all(mut waiting: MutexGuard<'_, HashMap<u64, Waker>>) {
    let wakers = std::mem::take(&mut *waiting);
    drop(waiting);
    wakers.into_values().for_each(Waker::wake);
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
