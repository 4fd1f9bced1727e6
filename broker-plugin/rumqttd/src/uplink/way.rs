//! Connects to the broker above, and again whenever that connection is lost.
//!
//! A moment without it costs every session that lives of it one reconnect, once there is somebody to say hello to. When it
//! lasts, they are ended at once, and nobody is let in: devices that know another broker go there, and the others try again
//! with their own back-off, as they would if this broker were gone.

use std::future::{pending, poll_fn};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Buf;
use fleetkey_mqtt::Backoff;
use fleetkey_policy::{Party, Qos};
use rand_core::{OsRng, RngCore};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;

use super::talk::{KEEP_ALIVE, Lost, Talk};
use crate::config::Upstream;
use crate::hub::Hub;
use crate::link::{Link, Stream};
use crate::packet::{Answer, connect, frame, read_answer};

/// Between attempts. Quick, for many wait behind it.
const BACKOFF: Backoff = Backoff { min: Duration::from_millis(200), max: Duration::from_secs(5) };
/// From the name of the broker above to its CONNACK.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// A connection that held this long starts the back-off anew.
const STABLE: Duration = Duration::from_secs(10);
/// The largest CONNACK.
const MAX_CONNACK_BYTES: usize = 64;

/// A connection to the broker above.
pub(super) type Up = Link<Box<dyn Stream>>;

/// Keeps the way up.
pub(crate) struct Way {
    hub: Arc<Hub>,
    upstream: Upstream,
    failures: u32,
}

impl Way {
    pub(crate) const fn new(hub: Arc<Hub>, upstream: Upstream) -> Self {
        Self { hub, upstream, failures: 0 }
    }

    /// Until the broker stops.
    pub(crate) async fn run(mut self) {
        let stop = self.hub.stop.clone();
        stop.run_until_cancelled(Box::pin(self.keep())).await;
    }

    async fn keep(&mut self) {
        loop {
            let link = self.reach().await;
            let since = Instant::now();
            let why = self.use_up(link).await;
            if since.elapsed() >= STABLE {
                self.failures = 0;
            }
            self.failed(&why);
            tracing::warn!(url = %self.upstream.url, %why, "the broker above is lost");
        }
    }

    /// Speaks with the broker above until it is lost.
    async fn use_up(&self, link: Up) -> Lost {
        let hub = &self.hub;
        let Some(wishes) = &hub.wishes else { return Lost::Stopped };
        let session =
            hub.new_session(Party::Coordinator, &self.upstream.client_id, None, hub.limits.coordinator_queue);
        let have_missed = wishes.open();
        hub.counters.upstream_opened();
        tracing::info!(url = %self.upstream.url, "the broker above is there");
        if have_missed {
            hub.close_stranded();
        }
        hub.listen(&session, Qos::AtMostOnce);
        let why = Talk::new(hub, wishes, session.clone(), link).run().await;
        hub.stop_listening(&session);
        wishes.lose();
        hub.counters.upstream_closed();
        why
    }

    /// Connects, however often it takes. When it takes too long, those who wait for it are sent away.
    async fn reach(&mut self) -> Up {
        let (hub, patience) = (self.hub.clone(), self.upstream.patience);
        let give_up = async move {
            sleep(patience).await;
            if hub.wishes.as_ref().is_some_and(super::Wishes::close) {
                tracing::warn!("the way up is closed: sessions end, and nobody is let in");
                hub.close_stranded();
            }
            pending().await
        };
        tokio::select! {
            link = self.connect_at_last() => link,
            never = give_up => never,
        }
    }

    async fn connect_at_last(&mut self) -> Up {
        loop {
            if self.failures > 0 {
                sleep(BACKOFF.delay(self.failures - 1, OsRng.next_u64())).await;
            }
            let attempt = timeout(CONNECT_WITHIN, Box::pin(connected(&self.upstream))).await;
            match attempt.unwrap_or(Err(Lost::Silent)) {
                Ok(link) => return link,
                Err(why) => {
                    tracing::debug!(url = %self.upstream.url, %why, "cannot reach the broker above");
                    self.failed(&why);
                }
            }
        }
    }

    fn failed(&mut self, why: &Lost) {
        self.failures = self.failures.saturating_add(1);
        self.hub.counters.upstream_lost(why.name());
    }
}

async fn connected(upstream: &Upstream) -> Result<Up, Lost> {
    let url = &upstream.url;
    let tcp = TcpStream::connect((url.host(), url.port())).await?;
    tcp.set_nodelay(true)?;
    let stream: Box<dyn Stream> = match &upstream.tls {
        None => Box::new(tcp),
        Some(tls) => {
            let name = ServerName::try_from(url.host().to_owned()).map_err(io::Error::other)?;
            Box::new(TlsConnector::from(tls.clone()).connect(name, tcp).await?)
        }
    };
    let mut link = Link::new(stream);
    let keep_alive = u16::try_from(KEEP_ALIVE.as_secs()).unwrap_or(u16::MAX);
    link.write(connect(&upstream.client_id, keep_alive));
    while !poll_fn(|cx| link.poll_write(cx)).await? {}
    loop {
        if poll_fn(|cx| link.poll_read(cx)).await? == 0 {
            return Err(Lost::Gone);
        }
        let mut input = link.take_input();
        let heard = match frame(&input, MAX_CONNACK_BYTES)? {
            None => None,
            Some(frame) => match read_answer(&frame)? {
                Answer::ConnAck { code } => Some((frame.bytes, code)),
                Answer::SubAck { .. } | Answer::Publish(_) | Answer::Nothing => return Err(Lost::OutOfPlace),
            },
        };
        match heard {
            None => link.give_back_input(input),
            Some((bytes, 0)) => {
                input.advance(bytes);
                link.give_back_input(input);
                return Ok(link);
            }
            Some((_, code)) => return Err(Lost::Refused { code }),
        }
    }
}
