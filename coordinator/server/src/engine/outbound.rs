//! What waits to be sent, in the order in which it was decided, and which rows of the outbox can go because it was.
//!
//! Answers to devices are kept only while there is a connection: later the device asks again. What is in the outbox is
//! kept, up to a limit; beyond it the outbox alone remembers, and is read again by loading the coordinator anew.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use fleetkey_coordinator_core::{OutboxRecord, Publish, Write};
use fleetkey_wire::Topic;
use tokio::sync::{mpsc, watch};

/// While this many messages wait, no more are taken from devices.
const MESSAGES_BEFORE_UPS_WAIT: usize = 8_192;
/// What may wait in memory.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// How long rows that are sent may stay in the outbox, waiting to share a transaction.
const SETTLE_WITHIN: Duration = Duration::from_millis(200);

/// A row of the outbox, and in which life of the coordinator it was read or written: numbers may come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutboxTicket {
    pub(super) life: u64,
    pub(super) number: u64,
}

/// A message to publish. Its ticket is given back when it is handed to the connection.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) topic: Topic,
    pub(crate) payload: Vec<u8>,
    pub(crate) ticket: Option<OutboxTicket>,
}

/// There is no connection, or no room, and the message is not needed later.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Dropped;

#[derive(Debug)]
pub(super) struct Outbound {
    link: mpsc::Sender<Outgoing>,
    is_connected: watch::Receiver<bool>,
    /// Counts the loads.
    life: u64,
    pending: VecDeque<Outgoing>,
    pending_bytes: usize,
    /// Something was left to the outbox alone.
    has_overflowed: bool,
    /// Tickets that were handed over and have not come back.
    handed: usize,
    settled: Vec<u64>,
    settle_at: Option<Instant>,
}

impl Outbound {
    pub(super) fn new(link: mpsc::Sender<Outgoing>, is_connected: watch::Receiver<bool>) -> Self {
        Self {
            link,
            is_connected,
            life: 0,
            pending: VecDeque::new(),
            pending_bytes: 0,
            has_overflowed: false,
            handed: 0,
            settled: Vec::new(),
            settle_at: None,
        }
    }

    /// Forgets everything: what the outbox holds is read from there again.
    pub(super) fn begin_life(&mut self) {
        self.life += 1;
        self.pending.clear();
        self.pending_bytes = 0;
        self.has_overflowed = false;
        self.settled.clear();
        self.settle_at = None;
    }

    pub(super) fn push(&mut self, publish: Publish) -> Result<(), Dropped> {
        let Publish { topic, payload, outbox } = publish;
        let has_room = self.pending_bytes + payload.len() <= MAX_BYTES;
        let ticket = match outbox {
            None if has_room && self.is_connected() => None,
            None => return Err(Dropped),
            Some(number) if has_room && !self.has_overflowed => {
                Some(OutboxTicket { life: self.life, number })
            }
            Some(_) => {
                self.has_overflowed = true;
                return Ok(());
            }
        };
        self.pending_bytes += payload.len();
        self.pending.push_back(Outgoing { topic, payload, ticket });
        Ok(())
    }

    /// Hands over as much as the link has room for, without waiting.
    pub(super) fn hand_over(&mut self) {
        while !self.pending.is_empty()
            && let Ok(permit) = self.link.try_reserve()
            && let Some(next) = self.pending.pop_front()
        {
            self.pending_bytes -= next.payload.len();
            self.handed += usize::from(next.ticket.is_some());
            permit.send(next);
        }
    }

    /// Waits until there is something to hand over, and room for it.
    pub(super) async fn room(&self) {
        if self.pending.is_empty() || self.link.reserve().await.is_err() {
            std::future::pending().await
        }
    }

    /// A message is with the connection: its row of the outbox can go.
    pub(super) fn settle(&mut self, ticket: OutboxTicket) {
        self.handed = self.handed.saturating_sub(1);
        // What an earlier life handed over was read from the outbox, and published again in this one.
        if ticket.life == self.life {
            self.settled.push(ticket.number);
            self.settle_at.get_or_insert_with(|| Instant::now() + SETTLE_WITHIN);
        }
    }

    /// When rows have to go at the latest.
    pub(super) fn settle_at(&self) -> Option<Instant> {
        self.settle_at
    }

    pub(super) fn settle_now(&mut self) {
        self.settle_at = self.settle_at.map(|_| Instant::now());
    }

    /// Removes the rows that can go.
    pub(super) fn removals(&self) -> impl Iterator<Item = Write> {
        self.settled.iter().map(|number| OutboxRecord::delete_number(*number))
    }

    /// They are gone.
    pub(super) fn removed(&mut self) {
        self.settled.clear();
        self.settle_at = None;
    }

    pub(super) fn is_connected(&self) -> bool {
        *self.is_connected.borrow()
    }

    /// Whether messages of devices can be answered, or would only pile up.
    pub(super) fn takes_ups(&self) -> bool {
        self.pending.len() < MESSAGES_BEFORE_UPS_WAIT
    }

    /// Whether the outbox holds more than memory, and it is time to read it.
    pub(super) fn is_to_be_read_again(&self) -> bool {
        self.has_overflowed && self.pending.is_empty() && self.is_connected()
    }

    /// Messages that wait, or are with the link.
    pub(super) fn depth(&self) -> usize {
        self.pending.len() + self.handed
    }
}

#[cfg(test)]
mod tests {
    use fleetkey_wire::{CellId, FleetId};

    use super::*;

    fn publish(bytes: usize, outbox: Option<u64>) -> Publish {
        let topic = Topic::Cell { fleet: FleetId::from_bytes([1; 16]), cell: CellId::from_bytes([2; 16]) };
        Publish { topic, payload: vec![0; bytes], outbox }
    }

    fn outbound(room: usize) -> (Outbound, mpsc::Receiver<Outgoing>, watch::Sender<bool>) {
        let (link, out) = mpsc::channel(room);
        let (connected, is_connected) = watch::channel(true);
        (Outbound::new(link, is_connected), out, connected)
    }

    #[test]
    fn messages_leave_in_order_as_there_is_room() {
        let (mut outbound, mut out, _connected) = outbound(2);
        for number in 0..3 {
            outbound.push(publish(1, Some(number))).unwrap();
        }
        let mut numbers = Vec::new();
        for _ in 0..2 {
            outbound.hand_over();
            while let Ok(next) = out.try_recv() {
                numbers.push(next.ticket.unwrap().number);
            }
        }
        assert_eq!(numbers, [0, 1, 2]);
        assert_eq!(outbound.depth(), 3, "none has come back");
    }

    #[test]
    fn without_a_connection_only_what_is_in_the_outbox_is_kept() {
        let (mut outbound, _out, connected) = outbound(2);
        connected.send_replace(false);
        assert_eq!(outbound.push(publish(1, None)), Err(Dropped));
        assert_eq!(outbound.push(publish(1, Some(1))), Ok(()));
        assert_eq!(outbound.depth(), 1);
    }

    #[test]
    fn beyond_its_limit_the_outbox_alone_remembers_until_it_is_read_again() {
        let (mut outbound, mut out, connected) = outbound(100);
        connected.send_replace(false);
        for number in 0..66 {
            assert_eq!(outbound.push(publish(1024 * 1024, Some(number))), Ok(()));
        }
        assert_eq!(outbound.depth(), 64);
        assert_eq!(outbound.push(publish(1, Some(66))), Ok(()));
        assert_eq!(outbound.depth(), 64, "a later one does not overtake");
        assert!(!outbound.is_to_be_read_again());

        connected.send_replace(true);
        outbound.hand_over();
        while let Ok(next) = out.try_recv() {
            outbound.settle(next.ticket.unwrap());
        }
        assert_eq!(outbound.removals().count(), 64);
        assert!(outbound.is_to_be_read_again());
        outbound.begin_life();
        assert!(!outbound.is_to_be_read_again());
    }
}
