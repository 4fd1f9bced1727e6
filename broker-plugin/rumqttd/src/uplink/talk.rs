//! One connection to the broker above: what clients say goes up, what is for them comes down.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use fleetkey_wire::Topic;
use tokio::time::{Instant, Sleep, sleep_until};

use super::way::Up;
use super::wishes::{Wish, Wishes};
use crate::connection::GATHER;
use crate::hub::Hub;
use crate::link::OUTPUT_PACKETS;
use crate::packet::{
    Answer, Malformed, Publish, Version, frame, pingreq, read_answer, subscribe, unsubscribe,
};
use crate::refusal::{Close, Refusal};
use crate::session::{Session, Wants};

/// Nothing heard for so long, and a half on top: it is gone.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Filters in one SUBSCRIBE.
const FILTERS: usize = 128;

/// Why the broker above is lost, or was not to be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error(transparent)]
    Connection(#[from] io::Error),
    #[error("it has closed the connection")]
    Gone,
    #[error("it does not answer")]
    Silent,
    #[error("it takes nothing more")]
    Stuck,
    #[error(
        "it does not let this broker in (code {code}): is its certificate one of a broker, and the policy known there?"
    )]
    Refused { code: u8 },
    #[error("it does not grant {filter}: a broker has to be let subscribe to cells")]
    NotGranted { filter: String },
    #[error("it breaks the protocol: {0}")]
    Malformed(#[from] Malformed),
    #[error("it answers what was not asked")]
    OutOfPlace,
    #[error("this broker is stopping")]
    Stopped,
}

impl Lost {
    /// The reason's name in counters; stable.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Connection(_) => "connection",
            Self::Gone => "gone",
            Self::Silent => "silent",
            Self::Stuck => "stuck",
            Self::Refused { .. } => "refused",
            Self::NotGranted { .. } => "not_granted",
            Self::Malformed(malformed) => malformed.name(),
            Self::OutOfPlace => "out_of_place",
            Self::Stopped => "stopped",
        }
    }
}

/// A connection that was accepted.
pub(super) struct Talk<'a> {
    hub: &'a Hub,
    wishes: &'a Wishes,
    session: Arc<Session>,
    link: Up,
    /// SUBSCRIBEs without an answer.
    asked: HashMap<u16, Vec<Wish>>,
    last_packet_id: u16,
    heard: Instant,
    ping: Instant,
    /// Nothing more is taken from the queue before then, unless it is much.
    gathering: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

impl<'a> Talk<'a> {
    pub(super) fn new(hub: &'a Hub, wishes: &'a Wishes, session: Arc<Session>, link: Up) -> Self {
        let now = Instant::now();
        Self {
            hub,
            wishes,
            session,
            link,
            asked: HashMap::new(),
            last_packet_id: 0,
            heard: now,
            ping: now + KEEP_ALIVE / 2,
            gathering: None,
            timer: Box::pin(sleep_until(now + KEEP_ALIVE / 2)),
        }
    }

    /// Until one of the two has had enough.
    pub(super) async fn run(mut self) -> Lost {
        loop {
            if let Err(why) = self.turn().await {
                return why;
            }
        }
    }

    async fn turn(&mut self) -> Result<(), Lost> {
        self.handle_input().await?;
        self.fill_output();
        poll_fn(|cx| self.poll_turn(cx)).await
    }

    async fn handle_input(&mut self) -> Result<(), Lost> {
        let mut input = self.link.take_input();
        while let Some(frame) = frame(&input, self.hub.limits.max_packet_bytes)? {
            self.heard = Instant::now();
            match read_answer(&frame)? {
                Answer::Publish(publish) => hand_down(self.hub, &publish).await,
                Answer::SubAck { packet_id, codes } => self.granted(packet_id, codes)?,
                Answer::Nothing => {}
                Answer::ConnAck { .. } => return Err(Lost::OutOfPlace),
            }
            let bytes = frame.bytes;
            input.advance(bytes);
        }
        self.link.give_back_input(input);
        Ok(())
    }

    fn granted(&mut self, packet_id: u16, codes: &[u8]) -> Result<(), Lost> {
        let wishes = self.asked.remove(&packet_id).ok_or(Lost::OutOfPlace)?;
        for (wish, code) in wishes.into_iter().zip(codes) {
            match wish {
                _ if *code < 0x80 => {}
                // It may know of a revocation already. The device comes again if it may.
                Wish::Down(device) => self.hub.close_device(device, Close::Refused(Refusal::NoUpstream)),
                Wish::Cell(_) => {
                    return Err(Lost::NotGranted { filter: wish.filter(self.hub.fleet) });
                }
            }
        }
        Ok(())
    }

    /// Moves messages and wishes to the link.
    fn fill_output(&mut self) {
        while self.link.has_room() {
            let mut messages = Vec::new();
            if self.gathering.is_none() || self.session.has_much() {
                while messages.len() < OUTPUT_PACKETS
                    && let Some(delivery) = self.session.take(true)
                {
                    messages.push(delivery.message);
                }
            }
            // What a client wished before it spoke is asked for before that goes up.
            let (wanted, unwanted) = self.wishes.take();
            if messages.is_empty() && wanted.is_empty() && unwanted.is_empty() {
                return;
            }
            self.ask(&wanted, &unwanted);
            if messages.is_empty() {
                continue;
            }
            let payload_bytes = messages.iter().map(|message| message.payload().len() as u64).sum();
            self.hub.counters.delivered(messages.len() as u64, payload_bytes);
            for message in messages {
                self.link.write(message.packet(Version::V4));
            }
            self.hub.listener_took(&self.session);
            self.gathering = Some(Instant::now() + GATHER);
        }
    }

    fn ask(&mut self, wanted: &[Wish], unwanted: &[Wish]) {
        let fleet = self.hub.fleet;
        let filters = |wishes: &[Wish]| wishes.iter().map(|wish| wish.filter(fleet)).collect::<Vec<_>>();
        for some in unwanted.chunks(FILTERS) {
            let packet_id = self.next_packet_id();
            self.link.write(unsubscribe(packet_id, &filters(some)));
        }
        for some in wanted.chunks(FILTERS) {
            let packet_id = self.next_packet_id();
            self.link.write(subscribe(packet_id, &filters(some)));
            self.asked.insert(packet_id, some.to_vec());
        }
    }

    fn next_packet_id(&mut self) -> u16 {
        loop {
            self.last_packet_id = self.last_packet_id.checked_add(1).unwrap_or(1);
            if !self.asked.contains_key(&self.last_packet_id) {
                return self.last_packet_id;
            }
        }
    }

    /// Waits for anything to do.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Lost>> {
        let mut progress = self.link.poll_output(cx)?;
        let has_room = self.link.has_room();
        let wants = match (has_room, self.gathering) {
            (false, _) => Wants::Nothing,
            (true, Some(_)) => Wants::Later,
            (true, None) => Wants::Any,
        };
        match self.session.poll_outbox(cx, wants) {
            Poll::Ready(Ok(())) => progress = true,
            Poll::Ready(Err(_)) => return Poll::Ready(Err(Lost::Stopped)),
            Poll::Pending => {}
        }
        progress |= has_room && self.wishes.poll(cx).is_ready();
        match self.link.poll_read(cx) {
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(Lost::Gone)),
            Poll::Ready(Ok(_)) => progress = true,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
            Poll::Pending => {}
        }
        if progress {
            return Poll::Ready(Ok(()));
        }
        self.poll_deadlines(cx)
    }

    fn poll_deadlines(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Lost>> {
        loop {
            let silent = self.heard + KEEP_ALIVE * 3 / 2;
            let stuck = self.link.stalled().map(|since| since + self.hub.limits.write_timeout);
            let next =
                [stuck, self.gathering].into_iter().flatten().fold(silent.min(self.ping), Instant::min);
            if next < self.timer.deadline() {
                self.timer.as_mut().reset(next);
            }
            std::task::ready!(self.timer.as_mut().poll(cx));
            let now = Instant::now();
            if stuck.is_some_and(|stuck| stuck <= now) {
                return Poll::Ready(Err(Lost::Stuck));
            }
            // Who takes what we say, slowly, is not gone: it makes us wait.
            if silent <= now && self.link.stalled().is_none() {
                return Poll::Ready(Err(Lost::Silent));
            }
            if self.ping <= now {
                self.ping = now + KEEP_ALIVE / 2;
                self.link.write(pingreq());
                return Poll::Ready(Ok(()));
            }
            if self.gathering.is_some_and(|until| until <= now) {
                self.gathering = None;
                return Poll::Ready(Ok(()));
            }
            let later = if silent <= now { self.ping } else { next };
            self.timer.as_mut().reset(later.max(now));
        }
    }
}

async fn hand_down(hub: &Hub, publish: &Publish<'_>) {
    let Publish { topic: raw, payload, qos, .. } = *publish;
    match Topic::parse(raw) {
        Ok(topic @ (Topic::Cell { fleet, .. } | Topic::Down { fleet, .. })) if fleet == hub.fleet => {
            hub.hand_over(topic, raw, payload, qos).await;
        }
        // What was not asked for goes nowhere.
        Ok(_) | Err(_) => hub.counters.undeliverable(),
    }
}
