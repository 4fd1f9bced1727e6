//! One connected client: its packets in, its messages out, its deadlines.
//!
//! A refusal costs its sender only, and is answered in the way of the client's version:
//!
//! | refused | MQTT 5 | MQTT 3.1.1 |
//! | --- | --- | --- |
//! | a filter | SUBACK with the reason | SUBACK with 0x80 |
//! | a publish at QoS 1 | PUBACK with the reason | connection closed (§3.3.5.2 allows nothing between that and a lie) |
//! | a publish at QoS 0 | DISCONNECT with the reason | connection closed |
//! | QoS 2, retain, alias, malformed, too large | DISCONNECT with the reason | connection closed |
//!
//! Leaves to `hub` what packets do, and to `link` the bytes.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use fleetkey_door::rate::{Budget, Verdict};
use fleetkey_policy::{Denied, Party, Qos};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::hub::Hub;
use crate::link::{Link, Stream};
use crate::packet::{
    Packet, Publish, Subscribe, Version, disconnect, frame, pingresp, puback, read_packet, suback, unsuback,
};
use crate::refusal::{Close, Refusal};
use crate::session::{Session, Wants};

/// What a whole fleet says is written to a coordinator in gulps, and what is for many devices to their relay: at most one in
/// this time, unless it is much.
pub(crate) const GATHER: Duration = Duration::from_millis(1);
/// How long the last packets to a client may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// A client after its CONNECT was accepted.
pub(crate) struct Connection<S> {
    hub: Arc<Hub>,
    session: Arc<Session>,
    link: Link<S>,
    version: Version,
    in_flight: InFlight,
    /// The largest packet the client takes.
    max_packet_bytes: usize,
    keep_alive: Duration,
    heard: Instant,
    /// There is input that has to wait until coordinators, or the way up, have taken what others have said.
    held_back: bool,
    /// What a device has left to say.
    budget: Option<Budget>,
    /// It has said too much: nothing is read before then.
    silenced: Option<Instant>,
    /// When its certificate ends.
    expires: Option<Instant>,
    /// Nothing more is taken from the queue before then, unless it is much.
    gathering: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

/// What a client said of itself in its CONNECT.
pub(crate) struct Terms {
    pub(crate) version: Version,
    pub(crate) keep_alive: Duration,
    pub(crate) expires: Option<Instant>,
    pub(crate) receive_maximum: u16,
    pub(crate) max_packet_bytes: usize,
}

impl<S: Stream> Connection<S> {
    pub(crate) fn new(hub: Arc<Hub>, session: Arc<Session>, link: Link<S>, terms: &Terms) -> Self {
        let heard = Instant::now();
        // MQTT 3.1.1 §3.1.2.10: one and a half times the keep-alive.
        let keep_alive = terms.keep_alive * 3 / 2;
        let is_device = matches!(session.party, Party::Device(_));
        let budget = is_device.then(|| Budget::new(&hub.limits.device_rate, heard));
        let in_flight = InFlight::new(terms.receive_maximum.min(hub.limits.max_in_flight));
        Self {
            hub,
            session,
            link,
            version: terms.version,
            in_flight,
            max_packet_bytes: terms.max_packet_bytes,
            keep_alive,
            heard,
            held_back: false,
            budget,
            silenced: None,
            expires: terms.expires,
            gathering: None,
            timer: Box::pin(sleep_until(heard + keep_alive)),
        }
    }

    /// Serves the client until one of the two has had enough.
    pub(crate) async fn run(mut self) {
        let why = loop {
            if let Err(why) = self.turn().await {
                break why;
            }
        };
        self.hub.detach(&self.session, why.name());
        tracing::debug!(client = %self.session.client_id, reason = why.name(), "session closed");
        if let Close::Refused(refusal) = &why {
            self.refused(refusal);
        }
        let Some(code) = why.reason_code() else { return };
        if self.version == Version::V5 {
            self.link.write(disconnect(code));
        }
        // Boxed, for it is not needed before the end.
        Box::pin(self.link.finish(GOODBYE)).await;
    }

    async fn turn(&mut self) -> Result<(), Close> {
        self.handle_input().await?;
        self.fill_output();
        poll_fn(|cx| self.poll_turn(cx)).await
    }

    /// Handles every packet that is all there, as long as there is room for what comes of it.
    async fn handle_input(&mut self) -> Result<(), Close> {
        let mut input = self.link.take_input();
        self.held_back = false;
        self.silenced = None;
        while self.link.has_room() && !input.is_empty() {
            if self.must_wait() {
                self.held_back = true;
                break;
            }
            let bytes = match frame(&input, self.hub.limits.max_packet_bytes)? {
                None => break,
                Some(_) if self.must_be_silent()? => break,
                Some(frame) => {
                    let packet = read_packet(self.version, &frame)?;
                    self.heard = Instant::now();
                    // An answer to what the broker has sent: there are no more of them than that.
                    let is_free =
                        matches!(packet, Packet::PubAck { packet_id } if self.in_flight.holds(packet_id));
                    self.handle(packet).await?;
                    if let Some(budget) = self.budget.as_mut().filter(|_| !is_free) {
                        budget.spend(frame.bytes);
                    }
                    frame.bytes
                }
            };
            input.advance(bytes);
        }
        self.link.give_back_input(input);
        Ok(())
    }

    async fn handle(&mut self, packet: Packet<'_>) -> Result<(), Close> {
        match packet {
            Packet::Publish(publish) => self.handle_publish(publish).await,
            Packet::PubAck { packet_id } => {
                self.in_flight.acknowledge(packet_id);
                Ok(())
            }
            Packet::Subscribe(subscribe) => self.handle_subscribe(subscribe).await,
            Packet::Unsubscribe { packet_id, filters } => {
                let codes: Vec<u8> = filters
                    .iter()
                    .map(|filter| if self.hub.unsubscribe(&self.session, filter) { 0 } else { 0x11 })
                    .collect();
                self.link.write(unsuback(self.version, packet_id, &codes));
                Ok(())
            }
            Packet::PingReq => {
                self.link.write(pingresp());
                Ok(())
            }
            Packet::Disconnect => Err(Close::Left),
        }
    }

    async fn handle_publish(&mut self, publish: Publish<'_>) -> Result<(), Close> {
        if publish.has_topic_alias {
            return Err(Refusal::TopicAlias.into());
        }
        let Publish { topic, payload, qos, retain, packet_id, .. } = publish;
        let code = match self.hub.publish(&self.session, topic, payload, qos, retain).await {
            Ok(true) => 0,
            // MQTT 5 §3.4.2.1: no matching subscribers.
            Ok(false) => 0x10,
            Err(refusal) => {
                let goes_on = if self.session.party == Party::Broker {
                    // What one of its devices does wrong costs that device, not the others that it speaks for.
                    matches!(
                        &refusal,
                        Refusal::Denied(
                            Denied::PolicyUnknown | Denied::Revoked { .. } | Denied::PayloadTooLarge { .. }
                        )
                    )
                } else {
                    self.version == Version::V5
                        && qos == Qos::AtLeastOnce
                        && !matches!(&refusal, Refusal::Denied(Denied::Retain | Denied::Revoked { .. }))
                };
                if !goes_on {
                    return Err(Close::Refused(refusal));
                }
                self.refused(&refusal);
                refusal.reason_code()
            }
        };
        if qos == Qos::AtLeastOnce {
            self.link.write(puback(self.version, packet_id, code));
        }
        Ok(())
    }

    async fn handle_subscribe(&mut self, subscribe: Subscribe<'_>) -> Result<(), Close> {
        if subscribe.has_identifier {
            return Err(Refusal::SubscriptionIdentifier.into());
        }
        let mut codes = Vec::with_capacity(subscribe.filters.len());
        for (filter, requested) in subscribe.filters {
            codes.push(match self.hub.subscribe(&self.session, filter, requested).await {
                Ok(granted) => u8::from(granted != Qos::AtMostOnce),
                Err(refusal) => {
                    self.refused(&refusal);
                    refusal.suback_code(self.version)
                }
            });
        }
        self.link.write(suback(self.version, subscribe.packet_id, &codes));
        Ok(())
    }

    /// Moves messages from the queue to the link.
    fn fill_output(&mut self) {
        if self.gathering.is_some() && !self.session.has_much() {
            return;
        }
        let (mut messages, mut payload_bytes) = (0, 0);
        while self.link.has_room() {
            let Some(delivery) = self.session.take(self.in_flight.has_room()) else { break };
            let message = delivery.message;
            // MQTT 5 §3.1.2.11.4: what the client does not take is as good as delivered.
            if message.packet_bytes(self.version, delivery.qos) > self.max_packet_bytes {
                continue;
            }
            messages += 1;
            payload_bytes += message.payload().len() as u64;
            match delivery.qos {
                Qos::AtMostOnce => self.link.write(message.packet(self.version)),
                Qos::AtLeastOnce | Qos::ExactlyOnce => {
                    let header = message.header_qos1(self.version, self.in_flight.next());
                    self.link.write(header);
                    self.link.write(message.payload().clone());
                }
            }
        }
        if messages > 0 {
            self.hub.counters.delivered(messages, payload_bytes);
            match self.session.party {
                Party::Coordinator => {
                    self.hub.listener_took(&self.session);
                    self.gathering = Some(Instant::now() + GATHER);
                }
                Party::Broker => self.gathering = Some(Instant::now() + GATHER),
                Party::Device(_) | Party::Operator => {}
            }
        }
    }

    /// Waits for anything to do; returns when `handle_input` or `fill_output` may get further.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Close>> {
        let mut progress = self.link.poll_output(cx).map_err(|_| Close::Vanished)?;
        let wants = match (self.link.has_room(), self.in_flight.has_room()) {
            (false, _) => Wants::Nothing,
            (true, _) if self.gathering.is_some() => Wants::Later,
            (true, false) => Wants::Qos0,
            (true, true) => Wants::Any,
        };
        progress |= self.session.poll_outbox(cx, wants)?.is_ready();
        progress |= self.poll_input(cx)?;
        if progress {
            return Poll::Ready(Ok(()));
        }
        self.poll_deadlines(cx)
    }

    /// Answers whether there is something to handle.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Result<bool, Close> {
        if !self.link.has_room() {
            return Ok(false);
        }
        if self.silenced.is_some() {
            // What it says meanwhile stays where it is, and its own side stops taking more in the end.
            self.heard = Instant::now();
            return Ok(false);
        }
        if self.held_back {
            if self.hub.poll_listeners(&self.session, cx).is_ready() {
                return Ok(true);
            }
            // It is not the client's fault that nothing is heard of it.
            self.heard = Instant::now();
            return Ok(false);
        }
        match self.link.poll_read(cx) {
            Poll::Ready(Ok(0) | Err(_)) => Err(Close::Vanished),
            Poll::Ready(Ok(_)) => Ok(true),
            Poll::Pending => Ok(false),
        }
    }

    fn poll_deadlines(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Close>> {
        loop {
            let silent = self.heard + self.keep_alive;
            let stuck = self.link.stalled().map(|since| since + self.hub.limits.write_timeout);
            let next = [stuck, self.silenced, self.gathering, self.expires]
                .into_iter()
                .flatten()
                .fold(silent, Instant::min);
            // A deadline that has moved away is noticed when the timer goes off.
            if next < self.timer.deadline() {
                self.timer.as_mut().reset(next);
            }
            std::task::ready!(self.timer.as_mut().poll(cx));
            let now = Instant::now();
            if silent <= now {
                return Poll::Ready(Err(Close::KeepAlive));
            }
            if stuck.is_some_and(|stuck| stuck <= now) {
                return Poll::Ready(Err(Close::SlowConsumer));
            }
            if self.expires.is_some_and(|expires| expires <= now) {
                return Poll::Ready(Err(Refusal::ExpiredCertificate.into()));
            }
            if self.gathering.is_some_and(|until| until <= now) {
                self.gathering = None;
                return Poll::Ready(Ok(()));
            }
            if self.silenced.is_some_and(|silenced| silenced <= now) {
                return Poll::Ready(Ok(()));
            }
            self.timer.as_mut().reset(next);
        }
    }

    /// Devices and relays wait when a coordinator, or the way up, has not taken yet what others have said.
    fn must_wait(&self) -> bool {
        self.session.party != Party::Coordinator && self.hub.is_congested()
    }

    /// Whether a device has said so much that its next packet has to wait.
    fn must_be_silent(&mut self) -> Result<bool, Close> {
        let Some(budget) = &mut self.budget else { return Ok(false) };
        match budget.ask(Instant::now()) {
            Verdict::GoOn => Ok(false),
            Verdict::WaitUntil(then) => {
                self.silenced = Some(then);
                self.hub.counters.throttled();
                Ok(true)
            }
            Verdict::Exceeded => Err(Refusal::RateExceeded.into()),
        }
    }

    fn refused(&self, refusal: &Refusal) {
        self.hub.refused(&self.session.client_id, refusal);
    }
}

/// Packet ids of QoS 1 messages that the client has not acknowledged.
struct InFlight {
    ids: BTreeSet<u16>,
    last: u16,
    limit: u16,
}

impl InFlight {
    const fn new(limit: u16) -> Self {
        Self { ids: BTreeSet::new(), last: 0, limit }
    }

    fn has_room(&self) -> bool {
        self.ids.len() < usize::from(self.limit)
    }

    /// The next free id; call it only when there is room.
    fn next(&mut self) -> u16 {
        loop {
            self.last = self.last.checked_add(1).unwrap_or(1);
            if self.ids.insert(self.last) {
                return self.last;
            }
        }
    }

    fn holds(&self, id: u16) -> bool {
        self.ids.contains(&id)
    }

    fn acknowledge(&mut self, id: u16) {
        self.ids.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packet_ids_are_never_zero_and_never_given_twice() {
        let mut in_flight = InFlight::new(2);
        let stuck = in_flight.next();
        assert_eq!(stuck, 1);
        for round in 0..200_000u32 {
            assert!(in_flight.has_room(), "round {round}");
            let id = in_flight.next();
            assert!(id != 0 && id != stuck, "round {round}");
            assert!(!in_flight.has_room());
            in_flight.acknowledge(id);
        }
        in_flight.acknowledge(77);
        assert!(in_flight.has_room(), "an unknown acknowledgement changes nothing");
    }
}
