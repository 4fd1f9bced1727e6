//! rumqttd's router: one link per session, everything at QoS 0.
//!
//! What we know of the router, version 0.20, and do about it:
//!
//! - Its own QoS 1 wants acknowledgements in the order of its packet ids and mixes with nothing else, so that QoS is
//!   ours: the QoS of a message travels as the first byte of the router's payload.
//! - Links block: one thread of ours owns every sending half and takes commands in order.
//! - An event for a connection that is gone kills the router. A link's receiving half sends `Ready`, so that the
//!   connection is given up only after the receiving half has stopped.
//! - A slow link loses messages silently when the cell's log is cut: offsets are checked, and a session that missed
//!   something is closed.
//! - Ids of connections stay in the router for ever: they are numbers that are used again.
//! - It cannot be stopped: its thread waits, idle, until the process ends.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;

use bytes::{BufMut, Bytes, BytesMut};
use fleetkey_policy::Qos;
use fleetkey_wire::{CellId, FleetId, Topic};
use rumqttd::local::{LinkBuilder, LinkError, LinkRx, LinkTx};
use rumqttd::protocol::{Disconnect, DisconnectReasonCode, Packet, Publish};
use rumqttd::{Forward, Notification, Router, RouterConfig};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{FanOut, FanOutGone, Pending};
use crate::config::Limits;
use crate::hub::RESERVED_CONNECTIONS;
use crate::message::Message;
use crate::refusal::Close;
use crate::session::{JoinedCell, Session};

/// A cell's log: two segments of this size.
const SEGMENT_BYTES: usize = 64 * 1024;
const SEGMENTS: usize = 2;
/// Messages for one link that the router takes from a log at a time; a link holds 200.
const MAX_OUTGOING: u64 = 100;
/// Messages on their way to the router.
const MAX_PUBLISHES_WAITING: usize = 1_024;

/// Cell messages through rumqttd's router.
pub(crate) struct RouterFanOut {
    commands: mpsc::UnboundedSender<Command>,
    room: Arc<Semaphore>,
    fleet: FleetId,
    /// Ends a session's receiving half.
    receivers: Mutex<BTreeMap<u64, CancellationToken>>,
}

enum Command {
    /// Subscribe, after a link has been made if there is none.
    Join {
        session: u64,
        topic: String,
        done: oneshot::Sender<Option<LinkRx>>,
    },
    Leave {
        session: u64,
        topic: String,
    },
    Publish {
        topic: Bytes,
        payload: Bytes,
    },
    /// The session's receiving half has stopped.
    Disconnect {
        session: u64,
    },
}

impl RouterFanOut {
    pub(crate) fn start(fleet: FleetId, limits: &Limits) -> io::Result<Self> {
        let config = RouterConfig {
            max_connections: limits.max_connections + RESERVED_CONNECTIONS + 1,
            max_outgoing_packet_count: MAX_OUTGOING,
            max_segment_size: SEGMENT_BYTES,
            max_segment_count: SEGMENTS,
            ..RouterConfig::default()
        };
        let (commands, received) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(MAX_PUBLISHES_WAITING));
        let feeder_room = room.clone();
        thread::Builder::new().name("router-feeder".into()).spawn(move || {
            let router = Router::new(0, config).spawn();
            let link = |name: &str| match LinkBuilder::new(name, router.clone()).build() {
                Ok((sender, receiver, _)) => Ok(Some((sender, receiver))),
                // It has no room: it drops what it was sent.
                Err(LinkError::Recv(_)) => Ok(None),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = feed(received, &feeder_room, &link) {
                tracing::error!(%error, "the router has stopped");
            }
            feeder_room.close();
        })?;
        Ok(Self { commands, room, fleet, receivers: Mutex::default() })
    }

    fn topic(&self, cell: CellId) -> String {
        Topic::Cell { fleet: self.fleet, cell }.to_string()
    }

    fn send(&self, command: Command) -> Result<(), FanOutGone> {
        self.commands.send(command).map_err(|_| FanOutGone)
    }

    fn start_receiver(&self, session: &Arc<Session>, link: LinkRx) {
        let stop = CancellationToken::new();
        self.receivers.lock().unwrap_or_else(PoisonError::into_inner).insert(session.id, stop.clone());
        let (session, commands) = (session.clone(), self.commands.clone());
        tokio::spawn(async move {
            stop.run_until_cancelled(receive(link, &session)).await;
            // Nobody is left to hear of it when the feeder has stopped.
            let _ = commands.send(Command::Disconnect { session: session.id });
        });
    }
}

impl FanOut for RouterFanOut {
    fn join<'a>(&'a self, session: &'a Arc<Session>, cell: CellId, _qos: Qos) -> Pending<'a> {
        Box::pin(async move {
            let (done, joined) = oneshot::channel();
            self.send(Command::Join { session: session.id, topic: self.topic(cell), done })?;
            if let Some(link) = joined.await.map_err(|_| FanOutGone)? {
                self.start_receiver(session, link);
            }
            Ok(())
        })
    }

    fn leave(&self, session: &Session, cell: CellId) {
        // A feeder that has stopped shows at the next publish.
        let _ = self.send(Command::Leave { session: session.id, topic: self.topic(cell) });
    }

    fn forget(&self, session: &Session, _cells: &[JoinedCell]) {
        let receiver = self.receivers.lock().unwrap_or_else(PoisonError::into_inner).remove(&session.id);
        if let Some(stop) = receiver {
            stop.cancel();
        }
    }

    fn publish<'a>(&'a self, cell: CellId, message: &'a Arc<Message>) -> Pending<'a> {
        Box::pin(async move {
            let permit = self.room.acquire().await.map_err(|_| FanOutGone)?;
            let mut payload = BytesMut::with_capacity(1 + message.payload().len());
            payload.put_u8(u8::from(message.qos() != Qos::AtMostOnce));
            payload.put_slice(message.payload());
            let topic = self.topic(cell).into();
            self.send(Command::Publish { topic, payload: payload.freeze() })?;
            permit.forget();
            Ok(())
        })
    }
}

/// Moves what the router has for a session into its queue.
async fn receive(mut link: LinkRx, session: &Arc<Session>) {
    let mut expected = BTreeMap::new();
    loop {
        let Ok(notification) = link.next().await else {
            session.close(Close::FanOutLost);
            return;
        };
        match notification {
            Some(Notification::Forward(forward)) => {
                if let Err(Gap) = deliver(session, &forward, &mut expected) {
                    session.close(Close::FanOutLost);
                }
            }
            // The router stopped because there was much to take; all of it has been taken.
            Some(Notification::Unschedule) => {
                if link.wake().await.is_err() {
                    session.close(Close::FanOutLost);
                    return;
                }
            }
            Some(
                Notification::DeviceAck(_)
                | Notification::ReplicaData { .. }
                | Notification::ReplicaAcks { .. }
                | Notification::Shadow(_)
                | Notification::Disconnect(..),
            )
            | None => {}
        }
    }
}

/// Messages were lost.
struct Gap;

fn deliver(
    session: &Session,
    forward: &Forward,
    expected: &mut BTreeMap<CellId, (u64, u64)>,
) -> Result<(), Gap> {
    let Ok(topic) = std::str::from_utf8(&forward.publish.topic) else { return Ok(()) };
    let Ok(Topic::Cell { cell, .. }) = Topic::parse(topic) else { return Ok(()) };
    let Some(joined) = session.subscriptions().cell(cell) else {
        return Ok(());
    };
    if let Some((_, offset)) = forward.cursor
        && let Some((since, due)) = expected.insert(cell, (joined.since, offset + 1))
        && since == joined.since
        && due != offset
    {
        return Err(Gap);
    }
    let mut payload = forward.publish.payload.clone();
    if payload.is_empty() {
        return Ok(());
    }
    let qos = if payload.split_to(1)[0] == 0 { Qos::AtMostOnce } else { Qos::AtLeastOnce };
    session.deliver(&Arc::new(Message::new(topic, payload, qos)), joined.qos);
    Ok(())
}

/// The router takes nothing any more. Boxed, for the error holds what was to be sent.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct RouterGone(Box<LinkError>);

impl From<LinkError> for RouterGone {
    fn from(error: LinkError) -> Self {
        Self(Box::new(error))
    }
}

type NewLink<'a> = &'a dyn Fn(&str) -> Result<Option<(LinkTx, LinkRx)>, RouterGone>;

/// Runs in a thread of its own: links block while the router is busy.
fn feed(
    mut commands: mpsc::UnboundedReceiver<Command>,
    room: &Semaphore,
    link: NewLink<'_>,
) -> Result<(), RouterGone> {
    let Some((mut ingress, _ingress_receiver)) = link("ingress")? else { return Ok(()) };
    let mut names = Names::default();
    let mut links: BTreeMap<u64, (usize, LinkTx)> = BTreeMap::new();
    while let Some(command) = commands.blocking_recv() {
        match command {
            Command::Join { session, topic, done } => {
                let mut fresh = None;
                if let Entry::Vacant(place) = links.entry(session) {
                    let name = names.take();
                    let Some((sender, receiver)) = link(&name.to_string())? else {
                        // The session learns of it when `done` is dropped.
                        names.give_back(name);
                        continue;
                    };
                    place.insert((name, sender));
                    fresh = Some(receiver);
                }
                if let Some((_, sender)) = links.get_mut(&session) {
                    sender.subscribe(topic)?;
                }
                if let Err(Some(_)) = done.send(fresh) {
                    // The session ended while it waited.
                    disconnect(&mut links, &mut names, session)?;
                }
            }
            Command::Leave { session, topic } => {
                if let Some((_, sender)) = links.get_mut(&session) {
                    sender.unsubscribe(topic)?;
                }
            }
            Command::Publish { topic, payload } => {
                now(ingress.send(Packet::Publish(Publish::new(topic, payload, false), None)))?;
                room.add_permits(1);
            }
            Command::Disconnect { session } => disconnect(&mut links, &mut names, session)?,
        }
    }
    Ok(())
}

fn disconnect(
    links: &mut BTreeMap<u64, (usize, LinkTx)>,
    names: &mut Names,
    session: u64,
) -> Result<(), RouterGone> {
    if let Some((name, mut sender)) = links.remove(&session) {
        let goodbye = Disconnect { reason_code: DisconnectReasonCode::NormalDisconnection };
        now(sender.send(Packet::Disconnect(goodbye, None)))?;
        names.give_back(name);
    }
    Ok(())
}

/// `LinkTx::send` is async in name only: it blocks, and is done when it is first polled.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => unreachable!("rumqttd 0.20 sends without waiting"),
    }
}

/// The smallest number not in use.
#[derive(Default)]
struct Names {
    free: BTreeSet<usize>,
    next: usize,
}

impl Names {
    fn take(&mut self) -> usize {
        self.free.pop_first().unwrap_or_else(|| {
            self.next += 1;
            self.next
        })
    }

    fn give_back(&mut self, name: usize) {
        self.free.insert(name);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use fleetkey_policy::Party;
    use fleetkey_wire::DeviceId;

    use super::*;
    use crate::session::Wants;

    const FLEET: FleetId = FleetId::from_bytes([1; 16]);
    const CELL: CellId = CellId::from_bytes([2; 16]);

    #[tokio::test]
    async fn a_router_that_has_died_is_noticed_by_publishers_and_subscribers() {
        let limits = Limits::default();
        let fan_out = RouterFanOut::start(FLEET, &limits).unwrap();
        let device = Party::Device(DeviceId::from_bytes([3; 16]));
        let session = Arc::new(Session::new(1, device, "d", None, limits.device_queue));
        session.subscriptions().add_cell(CELL, Qos::AtMostOnce);
        fan_out.join(&session, CELL, Qos::AtMostOnce).await.unwrap();
        let message = Arc::new(Message::new("t", Bytes::from_static(b"x"), Qos::AtMostOnce));
        assert_eq!(fan_out.publish(CELL, &message).await, Ok(()));

        // What no client can send past the policy: rumqttd 0.20 cuts a topic in the middle of its first character.
        let deadly = Command::Publish { topic: "é/x".into(), payload: Bytes::from_static(b"x") };
        fan_out.send(deadly).unwrap();
        let noticed = async {
            while fan_out.publish(CELL, &message).await.is_ok() {
                tokio::task::yield_now().await;
            }
            while poll_fn(|cx| session.poll_outbox(cx, Wants::Any)).await.is_ok() {
                session.take(true);
            }
        };
        tokio::time::timeout(Duration::from_secs(20), noticed).await.expect("the router lives");
        assert_eq!(poll_fn(|cx| session.poll_outbox(cx, Wants::Nothing)).await, Err(Close::FanOutLost));
    }
}
