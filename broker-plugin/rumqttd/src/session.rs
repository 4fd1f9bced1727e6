//! A session as the rest of the broker sees it: who it is, what it subscribed to, and what waits to be sent to it.
//!
//! Anyone may put a message into the queue or end the session; only the session's own connection takes messages out.
//! Leaves to `connection` the socket and the packets.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use fleetkey_identity::IssuerAndSerial;
use fleetkey_policy::{Party, Qos};
use fleetkey_wire::{CellId, DeviceId};

use crate::config::QueueLimit;
use crate::message::Message;
use crate::refusal::Close;

/// One connected client. Sessions end with their connection: nothing is kept for who is away.
pub(crate) struct Session {
    pub(crate) id: u64,
    pub(crate) party: Party,
    pub(crate) client_id: Box<str>,
    /// The serial number of the certificate it came with.
    pub(crate) certificate: Option<IssuerAndSerial>,
    limit: QueueLimit,
    /// A coordinator is not cut off when its queue is full; those who fill it have to wait instead.
    cut_when_full: bool,
    subscriptions: Mutex<Subscriptions>,
    outbox: Mutex<Outbox>,
}

/// What a session subscribed to.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    /// In the order of their ids: a device has few, a relay many.
    pub(crate) cells: Vec<JoinedCell>,
    pub(crate) down: Option<Qos>,
    /// Devices that a relay takes the `down` of.
    pub(crate) relayed: BTreeSet<DeviceId>,
    pub(crate) all_up: Option<Qos>,
    joins: u64,
}

/// A subscription to a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct JoinedCell {
    pub(crate) cell: CellId,
    pub(crate) qos: Qos,
    /// Tells this time of joining from earlier ones.
    pub(crate) since: u64,
}

impl Subscriptions {
    pub(crate) fn cell(&self, cell: CellId) -> Option<JoinedCell> {
        self.place_of(cell).ok().map(|at| self.cells[at])
    }

    /// Adds a cell, or changes its QoS; answers whether it is new.
    pub(crate) fn add_cell(&mut self, cell: CellId, qos: Qos) -> bool {
        match self.place_of(cell) {
            Ok(at) => {
                self.cells[at].qos = qos;
                false
            }
            Err(at) => {
                self.joins += 1;
                self.cells.insert(at, JoinedCell { cell, qos, since: self.joins });
                true
            }
        }
    }

    /// Removes a cell; answers whether it was there.
    pub(crate) fn remove_cell(&mut self, cell: CellId) -> bool {
        self.place_of(cell).map(|at| self.cells.remove(at)).is_ok()
    }

    pub(crate) fn count(&self) -> usize {
        let others = [self.down.is_some(), self.all_up.is_some()];
        self.cells.len() + self.relayed.len() + others.into_iter().map(usize::from).sum::<usize>()
    }

    fn place_of(&self, cell: CellId) -> Result<usize, usize> {
        self.cells.binary_search_by_key(&cell, |joined| joined.cell)
    }
}

/// So many messages are worth a call of their own.
const MUCH: usize = 64;

#[derive(Default)]
struct Outbox {
    queue: VecDeque<Delivery>,
    payload_bytes: usize,
    close: Option<Close>,
    waker: Option<Waker>,
    /// The connection comes by itself, soon: it is called for much only.
    is_gathering: bool,
}

/// A message for one session.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    pub(crate) message: Arc<Message>,
    /// The lower of what it was published at and what was subscribed.
    pub(crate) qos: Qos,
}

impl Session {
    pub(crate) fn new(
        id: u64,
        party: Party,
        client_id: &str,
        certificate: Option<IssuerAndSerial>,
        limit: QueueLimit,
    ) -> Self {
        Self {
            id,
            party,
            client_id: client_id.into(),
            certificate,
            limit,
            cut_when_full: party != Party::Coordinator,
            subscriptions: Mutex::default(),
            outbox: Mutex::default(),
        }
    }

    pub(crate) fn subscriptions(&self) -> MutexGuard<'_, Subscriptions> {
        self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message; a device whose queue is full is cut off.
    pub(crate) fn deliver(&self, message: &Arc<Message>, subscribed: Qos) {
        let mut outbox = self.outbox();
        if outbox.close.is_some() {
            return;
        }
        if self.cut_when_full && outbox.is_full(self.limit, message.payload().len()) {
            outbox.queue = VecDeque::new();
            outbox.close = Some(Close::SlowConsumer);
        } else {
            outbox.payload_bytes += message.payload().len();
            let qos = message.qos().min(subscribed);
            outbox.queue.push_back(Delivery { message: message.clone(), qos });
            if outbox.is_gathering && outbox.queue.len() < MUCH {
                return;
            }
        }
        wake(outbox);
    }

    /// Ends the session; the first reason given stands.
    pub(crate) fn close(&self, why: Close) {
        let mut outbox = self.outbox();
        outbox.close.get_or_insert(why);
        wake(outbox);
    }

    /// Is there more waiting than there should be?
    pub(crate) fn is_congested(&self) -> bool {
        self.outbox().is_full(self.limit, 0)
    }

    /// Has the queue come down far enough that others may fill it again?
    pub(crate) fn has_room(&self) -> bool {
        let half = QueueLimit { messages: self.limit.messages.div_ceil(2), bytes: self.limit.bytes / 2 };
        !self.outbox().is_full(half, 0)
    }

    /// Whether so much waits that it is worth a write of its own.
    pub(crate) fn has_much(&self) -> bool {
        self.outbox().queue.len() >= MUCH
    }

    /// The next message, unless it needs a packet id and there is none to give.
    pub(crate) fn take(&self, qos1_allowed: bool) -> Option<Delivery> {
        let mut outbox = self.outbox();
        if !outbox.has_next(qos1_allowed) {
            return None;
        }
        let delivery = outbox.queue.pop_front()?;
        outbox.payload_bytes -= delivery.message.payload().len();
        if outbox.queue.is_empty() && outbox.queue.capacity() > 64 {
            outbox.queue = VecDeque::new();
        }
        Some(delivery)
    }

    /// Ready with an error when the session is to end, and with `()` when [`Session::take`] has something.
    pub(crate) fn poll_outbox(&self, cx: &Context<'_>, wants: Wants) -> Poll<Result<(), Close>> {
        let mut outbox = self.outbox();
        if let Some(why) = &outbox.close {
            return Poll::Ready(Err(why.clone()));
        }
        outbox.is_gathering = wants == Wants::Later;
        let ready = match wants {
            Wants::Nothing => false,
            Wants::Later => outbox.queue.len() >= MUCH,
            Wants::Qos0 => outbox.has_next(false),
            Wants::Any => outbox.has_next(true),
        };
        if ready {
            return Poll::Ready(Ok(()));
        }
        match &mut outbox.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a connection would take from the queue now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wants {
    /// Nothing: enough is being written already.
    Nothing,
    /// Nothing for a moment, unless it is much: what comes meanwhile is taken at once.
    Later,
    /// Nothing that needs a packet id.
    Qos0,
    /// Anything.
    Any,
}

impl Outbox {
    fn is_full(&self, limit: QueueLimit, more_bytes: usize) -> bool {
        self.queue.len() >= limit.messages || self.payload_bytes + more_bytes > limit.bytes
    }

    fn has_next(&self, qos1_allowed: bool) -> bool {
        self.queue.front().is_some_and(|next| qos1_allowed || next.qos == Qos::AtMostOnce)
    }
}

/// Wakes the session's connection, not under the lock.
fn wake(mut outbox: MutexGuard<'_, Outbox>) {
    let waker = outbox.waker.take();
    drop(outbox);
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const LIMIT: QueueLimit = QueueLimit { messages: 2, bytes: 10 };

    fn message(bytes: usize, qos: Qos) -> Arc<Message> {
        Arc::new(Message::new("t", Bytes::from(vec![0; bytes]), qos))
    }

    fn closed(session: &Session) -> Option<Close> {
        match session.poll_outbox(&Context::from_waker(Waker::noop()), Wants::Nothing) {
            Poll::Ready(Err(why)) => Some(why),
            Poll::Ready(Ok(())) | Poll::Pending => None,
        }
    }

    #[test]
    fn a_device_that_takes_nothing_is_cut_off_at_either_limit() {
        let device = Party::Device(DeviceId::from_bytes([1; 16]));
        for sizes in [&[1, 1, 1][..], &[6, 6]] {
            let session = Session::new(1, device, "d", None, LIMIT);
            for (index, size) in sizes.iter().enumerate() {
                assert_eq!(closed(&session), None, "before message {index}");
                session.deliver(&message(*size, Qos::AtMostOnce), Qos::AtMostOnce);
            }
            assert_eq!(closed(&session), Some(Close::SlowConsumer));
            assert!(session.take(true).is_none(), "what waited is gone");
        }
    }

    #[test]
    fn a_coordinator_is_congested_instead() {
        let session = Session::new(1, Party::Coordinator, "c", None, LIMIT);
        for _ in 0..5 {
            session.deliver(&message(1, Qos::AtMostOnce), Qos::AtMostOnce);
        }
        assert_eq!(closed(&session), None);
        assert!(session.is_congested());
        while session.take(true).is_some() {}
        assert!(!session.is_congested());
    }

    #[test]
    fn delivery_is_at_the_lower_qos_and_qos_1_waits_for_a_packet_id() {
        let session = Session::new(1, Party::Coordinator, "c", None, LIMIT);
        session.deliver(&message(1, Qos::AtLeastOnce), Qos::AtMostOnce);
        session.deliver(&message(1, Qos::AtLeastOnce), Qos::AtLeastOnce);
        assert_eq!(session.take(false).unwrap().qos, Qos::AtMostOnce);
        assert!(session.take(false).is_none());
        assert_eq!(session.take(true).unwrap().qos, Qos::AtLeastOnce);
    }

    #[test]
    fn who_gathers_is_called_for_much_and_for_the_end() {
        let session = Session::new(1, Party::Coordinator, "c", None, LIMIT);
        let wants = |wants| session.poll_outbox(&Context::from_waker(Waker::noop()), wants);
        assert!(wants(Wants::Later).is_pending());
        for _ in 1..MUCH {
            session.deliver(&message(1, Qos::AtMostOnce), Qos::AtMostOnce);
        }
        assert!(wants(Wants::Later).is_pending());
        assert!(wants(Wants::Any).is_ready());
        session.deliver(&message(1, Qos::AtMostOnce), Qos::AtMostOnce);
        assert!(wants(Wants::Later).is_ready());
        session.close(Close::ShuttingDown);
        assert!(matches!(wants(Wants::Later), Poll::Ready(Err(Close::ShuttingDown))));
    }

    #[test]
    fn the_first_reason_to_close_stands() {
        let session = Session::new(1, Party::Coordinator, "c", None, LIMIT);
        session.close(Close::TakenOver);
        session.close(Close::ShuttingDown);
        assert_eq!(closed(&session), Some(Close::TakenOver));
    }
}
