//! What waits to be sent, in the order in which it was decided, and which rows of the outbox can go because it was.
//!
//! Answers to devices are kept only while there is a connection: later the device asks again. What is in the outbox is
//! kept, up to a limit; beyond it the outbox alone remembers, and is read again by loading the coordinator anew.

use std::collections::VecDeque;

use fleetkey_wire::{Millis, Topic};

use crate::effects::Publish;
use crate::records::OutboxRecord;
use crate::store::Write;

/// While this many messages wait, no more are taken from devices.
const MESSAGES_BEFORE_UPS_WAIT: usize = 8_192;
/// What may wait in memory.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// How long rows that are sent may stay in the outbox, waiting to share a transaction.
const SETTLE_WITHIN_MILLISECONDS: u64 = 200;

/// A row of the outbox, and in which life of the coordinator it was read or written: numbers may come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxTicket {
    life: u64,
    number: u64,
}

impl OutboxTicket {
    /// The row.
    pub const fn number(self) -> u64 {
        self.number
    }
}

/// A message to publish. Its ticket is given back when it is handed to the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Where to.
    pub topic: Topic,
    /// What.
    pub payload: Vec<u8>,
    /// The row of the outbox that it settles.
    pub ticket: Option<OutboxTicket>,
}

/// There is no connection, or no room, and the message is not needed later.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Dropped;

#[derive(Debug, Default)]
pub(super) struct Outbound {
    is_connected: bool,
    /// Counts the loads.
    life: u64,
    pending: VecDeque<Outgoing>,
    pending_bytes: usize,
    /// Something was left to the outbox alone.
    has_overflowed: bool,
    /// Tickets that were handed over and have not come back.
    handed: usize,
    settled: Vec<u64>,
    settle_at: Option<Millis>,
}

impl Outbound {
    /// Forgets everything: what the outbox holds is read from there again.
    pub(super) fn begin_life(&mut self) {
        self.life += 1;
        self.pending.clear();
        self.pending_bytes = 0;
        self.has_overflowed = false;
        self.settled.clear();
        self.settle_at = None;
    }

    pub(super) const fn set_connected(&mut self, is_connected: bool) {
        self.is_connected = is_connected;
    }

    pub(super) fn push(&mut self, publish: Publish) -> Result<(), Dropped> {
        let Publish { topic, payload, outbox } = publish;
        let has_room = self.pending_bytes + payload.len() <= MAX_BYTES;
        let ticket = match outbox {
            None if has_room && self.is_connected => None,
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

    /// The next message to hand to the connection.
    pub(super) fn pop(&mut self) -> Option<Outgoing> {
        let next = self.pending.pop_front()?;
        self.pending_bytes -= next.payload.len();
        self.handed += usize::from(next.ticket.is_some());
        Some(next)
    }

    /// A message is with the connection: its row of the outbox can go.
    pub(super) fn settle(&mut self, ticket: OutboxTicket, now: Millis) {
        self.handed = self.handed.saturating_sub(1);
        // What an earlier life handed over was read from the outbox, and published again in this one.
        if ticket.life == self.life {
            self.settled.push(ticket.number);
            self.settle_at.get_or_insert_with(|| now.plus(SETTLE_WITHIN_MILLISECONDS));
        }
    }

    /// When rows have to go at the latest.
    pub(super) const fn settle_at(&self) -> Option<Millis> {
        self.settle_at
    }

    pub(super) fn settle_now(&mut self, now: Millis) {
        self.settle_at = self.settle_at.map(|at| at.min(now));
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

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether messages of devices can be answered, or would only pile up.
    pub(super) fn takes_ups(&self) -> bool {
        self.pending.len() < MESSAGES_BEFORE_UPS_WAIT
    }

    /// Whether the outbox holds more than memory, and it is time to read it.
    pub(super) fn is_to_be_read_again(&self) -> bool {
        self.has_overflowed && self.pending.is_empty() && self.is_connected
    }

    /// Messages that wait, or are with the connection.
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

    fn connected() -> Outbound {
        let mut outbound = Outbound::default();
        outbound.set_connected(true);
        outbound
    }

    #[test]
    fn messages_leave_in_order_and_are_counted_until_they_are_settled() {
        let mut outbound = connected();
        for number in 0..3 {
            outbound.push(publish(1, Some(number))).expect("there is room");
        }
        let numbers: Vec<_> =
            std::iter::from_fn(|| outbound.pop()).filter_map(|next| Some(next.ticket?.number)).collect();
        assert_eq!(numbers, [0, 1, 2]);
        assert_eq!(outbound.depth(), 3, "none has come back");
    }

    #[test]
    fn without_a_connection_only_what_is_in_the_outbox_is_kept() {
        let mut outbound = Outbound::default();
        assert_eq!(outbound.push(publish(1, None)), Err(Dropped));
        assert_eq!(outbound.push(publish(1, Some(1))), Ok(()));
        assert_eq!(outbound.depth(), 1);
    }

    #[test]
    fn beyond_its_limit_the_outbox_alone_remembers_until_it_is_read_again() {
        let mut outbound = Outbound::default();
        for number in 0..66 {
            assert_eq!(outbound.push(publish(1024 * 1024, Some(number))), Ok(()));
        }
        assert_eq!(outbound.depth(), 64);
        assert_eq!(outbound.push(publish(1, Some(66))), Ok(()));
        assert_eq!(outbound.depth(), 64, "a later one does not overtake");
        assert!(!outbound.is_to_be_read_again());

        outbound.set_connected(true);
        while let Some(next) = outbound.pop() {
            outbound.settle(next.ticket.expect("each is in the outbox"), Millis(1));
        }
        assert_eq!(outbound.removals().count(), 64);
        assert!(outbound.is_to_be_read_again());
        outbound.begin_life();
        assert!(!outbound.is_to_be_read_again());
    }

    #[test]
    fn a_ticket_of_a_former_life_settles_nothing() {
        let mut outbound = connected();
        outbound.push(publish(1, Some(1))).expect("there is room");
        let ticket = outbound.pop().and_then(|next| next.ticket).expect("it is in the outbox");
        outbound.begin_life();
        outbound.settle(ticket, Millis(1));
        assert_eq!(outbound.removals().count(), 0);
    }
}
