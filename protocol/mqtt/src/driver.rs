//! The task that serves one connection after another.
//!
//! rumqttc's event loop is polled without a break and never dropped in the middle of a poll: a poll that is cancelled may
//! lose the packet it was writing. It is given a fresh event loop for each connection, since an old one keeps state (packet
//! identifiers, a collision) that a clean session must not see. Requests are handed to it only while it is
//! connected: what it holds when a connection breaks, it would throw away.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rand_core::{OsRng, RngCore};
use rumqttc::{
    AsyncClient, ClientError, ConnectionError, EventLoop, Incoming, MqttOptions, QoS, Request,
    SubscribeFilter, SubscribeReasonCode, TlsConfiguration, Transport,
};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::client::{Outgoing, Shared};
use crate::options::{Options, Qos};
use crate::subscriptions::{Answer, Ask, Unasked};

/// A connection that held this long starts the back-off anew. Shorter ones do not: two clients of the same id would push
/// each other out in a tight circle.
const STABLE: Duration = Duration::from_secs(10);

/// How long [`crate::Client::close`] waits for what is queued.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Requests inside rumqttc at once: enough to keep it busy, few to lose.
const HANDED_OVER: usize = 8;

pub(crate) struct Driver {
    options: Options,
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Outgoing>,
    /// Taken from the queue, not yet handed over; first in line.
    next: VecDeque<Outgoing>,
    failures: u32,
    /// Connections that broke or never came to be, ever: the next attempt goes another way.
    breaks: usize,
}

/// How one connection ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Connection(Box<ConnectionError>),
    #[error(transparent)]
    Unasked(#[from] Unasked),
    #[error("the broker did not answer a subscription")]
    SubscribeTimeout,
}

enum End {
    /// For good.
    Closed,
    Broken(Broken),
}

/// What is under way on the current connection.
struct Session {
    client: AsyncClient,
    connected_at: Option<Instant>,
    /// Due, but not yet taken by rumqttc.
    ask: Option<Ask>,
    /// rumqttc takes no more until it has made progress.
    full: bool,
    /// The connection is to end by then.
    close_by: Option<Instant>,
    goodbye: bool,
}

impl Driver {
    pub(crate) fn new(options: Options, shared: Arc<Shared>, queue: mpsc::Receiver<Outgoing>) -> Self {
        Self { options, shared, queue, next: VecDeque::new(), failures: 0, breaks: 0 }
    }

    pub(crate) async fn run(mut self) {
        // Dropped last, also when something below panics: nobody waits for a task that is gone.
        let _ending = Ending(Arc::clone(&self.shared));
        loop {
            let broken = match Box::pin(self.serve()).await {
                End::Closed => return,
                End::Broken(broken) => broken,
            };
            let retry_in = self.options.backoff.delay(self.failures, OsRng.next_u64());
            self.failures = self.failures.saturating_add(1);
            self.breaks = self.breaks.wrapping_add(1);
            tracing::debug!(client_id = %self.options.client_id, %broken, ?retry_in, "disconnected");
            self.shared.events().push_disconnected(broken.to_string(), retry_in);
            self.shared.wake_consumer.notify_one();
            if self.sleep_or_close(retry_in).await {
                return;
            }
        }
    }

    /// Waits before the next attempt. True when there is none.
    async fn sleep_or_close(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        loop {
            {
                let state = self.shared.state();
                if state.closing || state.abandoned() {
                    return true;
                }
            }
            tokio::select! {
                () = tokio::time::sleep_until(until) => return false,
                () = self.shared.wake_driver.notified() => {}
            }
        }
    }

    /// One connection, from the first attempt to its end.
    async fn serve(&mut self) -> End {
        let (client, mut event_loop) = self.event_loop();
        let mut session =
            Session { client, connected_at: None, ask: None, full: false, close_by: None, goodbye: false };
        let end = self.serve_event_loop(&mut session, &mut event_loop).await;
        if session.connected_at.is_some_and(|at| at.elapsed() >= STABLE) {
            self.failures = 0;
        }
        self.salvage(&mut event_loop);
        end
    }

    async fn serve_event_loop(&mut self, session: &mut Session, event_loop: &mut EventLoop) -> End {
        loop {
            let polled = {
                let poll = event_loop.poll();
                tokio::pin!(poll);
                loop {
                    if let Some(end) = self.give_work(session) {
                        return end;
                    }
                    let timer = self.next_deadline(session);
                    let takes_more = self.may_publish(session) && !session.full && self.next.is_empty();
                    tokio::select! {
                        polled = &mut poll => break polled,
                        () = self.shared.wake_driver.notified() => {}
                        Some(message) = self.queue.recv(), if takes_more => self.next.push_back(message),
                        () = sleep_until(timer), if timer.is_some() => {}
                    }
                }
            };
            session.full = false;
            let mut polled = Some(polled);
            // What came in one read is there already: no need to ask for it one by one.
            while let Some(event) = polled.take() {
                let progress = match event {
                    Ok(rumqttc::Event::Incoming(packet)) => self.incoming(session, packet),
                    Ok(rumqttc::Event::Outgoing(rumqttc::Outgoing::Disconnect)) => return End::Closed,
                    Ok(rumqttc::Event::Outgoing(packet)) => {
                        self.outgoing(&packet);
                        Ok(())
                    }
                    Err(error) => Err(Broken::Connection(Box::new(error))),
                };
                match progress {
                    Ok(()) => {}
                    Err(_) if session.goodbye => return End::Closed,
                    Err(broken) => return End::Broken(broken),
                }
                polled = event_loop.state.events.pop_front().map(Ok);
            }
            self.shared.wake_consumer.notify_one();
        }
    }

    fn event_loop(&self) -> (AsyncClient, EventLoop) {
        let Options { client_id, keep_alive, max_packet_bytes, inflight, .. } = &self.options;
        let url = self.options.way(self.breaks);
        // rumqttc puts host and port together without brackets.
        let host = if url.host().contains(':') { format!("[{}]", url.host()) } else { url.host().to_owned() };
        let mut mqtt = MqttOptions::new(client_id.as_str(), host, url.port());
        mqtt.set_clean_session(true);
        mqtt.set_keep_alive(*keep_alive);
        mqtt.set_inflight(*inflight);
        // What goes out is checked where it is queued: here, one packet too large would end the connection.
        mqtt.set_max_packet_size(*max_packet_bytes, usize::MAX);
        if let Some((user, password)) = &self.options.login {
            mqtt.set_credentials(user.as_str(), password.as_str());
        }
        if let Some(tls) = &self.options.tls {
            mqtt.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::clone(tls))));
        }
        let (client, mut event_loop) = AsyncClient::new(mqtt, HANDED_OVER);
        let mut network = rumqttc::NetworkOptions::new();
        network.set_tcp_nodelay(true);
        network.set_connection_timeout(self.options.connect_timeout.as_secs());
        event_loop.set_network_options(network);
        // It comes with room for 100, which is 10 KB for each of thousands of clients.
        event_loop.state.events = VecDeque::new();
        (client, event_loop)
    }

    /// Hands over what is due. Says so when the connection has to end.
    fn give_work(&mut self, session: &mut Session) -> Option<End> {
        {
            let state = self.shared.state();
            if state.abandoned() {
                return Some(End::Closed);
            }
            if state.closing && session.close_by.is_none() {
                session.close_by = Some(Instant::now() + CLOSE_TIMEOUT);
                self.queue.close();
            }
        }
        if let Some(close_by) = session.close_by
            && (session.connected_at.is_none() || Instant::now() >= close_by)
        {
            return Some(End::Closed);
        }
        session.connected_at?;
        if self.subscribe_overdue() {
            return Some(End::Broken(Broken::SubscribeTimeout));
        }
        self.ask(session);
        self.publish(session);
        if session.close_by.is_some() && !session.goodbye && !session.full && self.next.is_empty() {
            session.goodbye = self.queue.is_empty() && session.client.try_disconnect().is_ok();
        }
        None
    }

    fn ask(&self, session: &mut Session) {
        if session.ask.is_none() && session.close_by.is_none() {
            session.ask = self.shared.subscriptions().next_ask(Instant::now());
        }
        let Some(ask) = &session.ask else { return };
        let taken = match ask {
            Ask::Subscribe(filters) => session.client.try_subscribe_many(
                filters.iter().map(|filter| SubscribeFilter::new(filter.clone(), self.qos())),
            ),
            Ask::Unsubscribe(filter) => session.client.try_unsubscribe(filter.as_str()),
        };
        match taken {
            Ok(()) => session.ask = None,
            Err(_) => session.full = true,
        }
    }

    fn publish(&mut self, session: &mut Session) {
        while self.may_publish(session) && !session.full && !session.goodbye {
            let Some(Outgoing { topic, payload }) =
                self.next.pop_front().or_else(|| self.queue.try_recv().ok())
            else {
                return;
            };
            if let Err(error) = session.client.try_publish(topic, self.qos(), false, payload) {
                session.full = true;
                let (ClientError::TryRequest(request) | ClientError::Request(request)) = error;
                if let Some(message) = message(request) {
                    self.next.push_front(message);
                }
            }
        }
    }

    /// Answers to what is published must find their subscription.
    fn may_publish(&self, session: &Session) -> bool {
        session.connected_at.is_some()
            && (session.close_by.is_some() || self.shared.subscriptions().all_answered())
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the other packets concern rumqttc alone")]
    fn incoming(&self, session: &mut Session, packet: Incoming) -> Result<(), Broken> {
        match packet {
            Incoming::ConnAck(_) => {
                tracing::debug!(client_id = %self.options.client_id, "connected");
                session.connected_at = Some(Instant::now());
                self.shared.subscriptions().connected();
                self.shared.events().push_connected();
            }
            Incoming::Publish(publish) => {
                self.shared.events().push_message(publish.topic, &publish.payload);
            }
            Incoming::SubAck(answer) => {
                let granted: Vec<bool> = answer
                    .return_codes
                    .iter()
                    .map(|code| match code {
                        SubscribeReasonCode::Success(_) => true,
                        SubscribeReasonCode::Failure => false,
                    })
                    .collect();
                let retry_at =
                    |refusals| Instant::now() + self.options.backoff.delay(refusals, OsRng.next_u64());
                let answers = self.shared.subscriptions().subscribed(answer.pkid, &granted, retry_at)?;
                let mut events = self.shared.events();
                for answer in answers {
                    match answer {
                        Answer::Granted(filter) => events.push_answer(&filter, true),
                        Answer::Refused(filter) => events.push_answer(&filter, false),
                    }
                }
            }
            Incoming::UnsubAck(answer) => self.shared.subscriptions().unsubscribed(answer.pkid)?,
            _ => {}
        }
        Ok(())
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the other packets need no answer")]
    fn outgoing(&self, packet: &rumqttc::Outgoing) {
        match packet {
            rumqttc::Outgoing::Subscribe(packet_id) | rumqttc::Outgoing::Unsubscribe(packet_id) => {
                self.shared.subscriptions().written(*packet_id);
            }
            _ => {}
        }
    }

    fn subscribe_overdue(&self) -> bool {
        let since = self.shared.subscriptions().waiting_since();
        since.is_some_and(|since| since.elapsed() >= self.options.subscribe_timeout)
    }

    /// When there is something to do although nothing happens.
    fn next_deadline(&self, session: &Session) -> Option<Instant> {
        session.connected_at?;
        let subscriptions = self.shared.subscriptions();
        let overdue = subscriptions.waiting_since().map(|since| since + self.options.subscribe_timeout);
        [overdue, subscriptions.next_retry(), session.close_by].into_iter().flatten().min()
    }

    /// Takes back what rumqttc had not sent, or not seen acknowledged, to be sent first on the next connection.
    fn salvage(&mut self, event_loop: &mut EventLoop) {
        event_loop.clean();
        let collision = event_loop.state.collision.take().map(Request::Publish);
        let unsent = event_loop.pending.drain(..).chain(collision).filter_map(message);
        let unsent: Vec<Outgoing> = unsent.collect();
        for message in unsent.into_iter().rev() {
            self.next.push_front(message);
        }
    }

    fn qos(&self) -> QoS {
        match self.options.qos {
            Qos::AtMostOnce => QoS::AtMostOnce,
            Qos::AtLeastOnce => QoS::AtLeastOnce,
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "requests other than messages belong to their connection")]
fn message(request: Request) -> Option<Outgoing> {
    match request {
        Request::Publish(publish) => Some(Outgoing { topic: publish.topic, payload: publish.payload }),
        _ => None,
    }
}

/// Waits for a moment that is there: callers disable the branch when it is not.
async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Tells the consumer that nothing more will come, whichever way the task ends.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.events().ended = true;
        self.0.wake_consumer.notify_one();
    }
}
