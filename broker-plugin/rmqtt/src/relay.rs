//! One connection's bytes, there and back, until one side ends it or somebody else does.
//!
//! Holds the client to its limits: the CONNECT in time, packets of a size, a rate, and to take what it is sent. Leaves to
//! rmqtt what the packets say.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fleetkey_door::rate::{Budget, Verdict};
use fleetkey_policy::Party;
use metrics::counter;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_rustls::server::TlsStream;

use crate::config::Limits;
use crate::guests::{Guest, Guests, Relayed};
use crate::meter::Meter;
use crate::refusal::{Close, Refusal};

const BUFFER_BYTES: usize = 4 * 1024;
/// How long rmqtt may take to end a session whose client said goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// A client on its way to rmqtt.
pub(crate) struct Relay<'a> {
    guests: &'a Guests,
    guest: Arc<Guest>,
    client: TlsStream<TcpStream>,
}

impl<'a> Relay<'a> {
    pub(crate) fn new(guests: &'a Guests, guest: &Arc<Guest>, client: TlsStream<TcpStream>) -> Self {
        Self { guests, guest: guest.clone(), client }
    }

    /// Relays to the end; why it came.
    pub(crate) async fn run(self, inner: TcpStream, relayed: Relayed<'_>) -> Close {
        let Self { guests, guest, client } = self;
        let expires = guest.papers.expiry();
        let (client_reads, client_writes) = split(client);
        let (inner_reads, inner_writes) = inner.into_split();
        // Acknowledgements that the client owes: it may say so many for nothing.
        let owed = AtomicU32::new(0);
        let close = {
            let limits = &guests.limits;
            let up = up(client_reads, inner_writes, limits, &guest, &owed);
            let down = down(inner_reads, client_writes, limits.write_timeout, &owed);
            tokio::pin!(up, down);
            let close = tokio::select! {
                // What somebody else decided comes before what follows from it.
                biased;
                close = guest.closed() => close,
                () = expiry(expires) => Close::ExpiredCertificate,
                close = &mut down => close,
                close = &mut up => {
                    if close == Close::Left {
                        // What the client said before it left is heard to the end.
                        let _ = timeout(GOODBYE, &mut down).await;
                    }
                    close
                }
            };
            // Nobody can come from this address any more; then the sockets end, with what relays between them.
            drop(relayed);
            close
        };
        if let Close::Refused(refusal) = &close {
            guests.refused(&"client", refusal);
        }
        guest.left(&close);
        close
    }
}

/// What the client says. Ends when it has said its last.
async fn up(
    mut client: ReadHalf<TlsStream<TcpStream>>,
    mut inner: OwnedWriteHalf,
    limits: &Limits,
    guest: &Guest,
    owed: &AtomicU32,
) -> Close {
    let connect_by = Instant::now() + limits.connect_timeout;
    let is_device = matches!(guest.papers.party, Party::Device(_));
    let mut budget = is_device.then(|| Budget::new(&limits.device_rate, Instant::now()));
    let mut meter = Meter::of_client(limits.max_packet_bytes);
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        if let Some(budget) = &mut budget
            && let Err(close) = wait_for_turn(budget).await
        {
            return close;
        }
        let read = if meter.connect_is_due() {
            match timeout_at(connect_by, client.read(&mut buffer)).await {
                Ok(read) => read,
                Err(_) => return Refusal::ConnectTimeout.into(),
            }
        } else {
            client.read(&mut buffer).await
        };
        let bytes = match read {
            Ok(0) | Err(_) => {
                // rmqtt is told, and may still have something to say.
                let _ = inner.shutdown().await;
                return Close::Left;
            }
            Ok(count) => &buffer[..count],
        };
        let spent = meter.take(bytes, |packet| {
            let is_free = packet.is_acknowledgement() && take_one(owed);
            if let Some(budget) = budget.as_mut().filter(|_| !is_free) {
                budget.spend(packet.bytes);
            }
        });
        if let Err(refusal) = spent {
            return refusal.into();
        }
        if inner.write_all(bytes).await.is_err() {
            return Close::Inner;
        }
    }
}

/// What rmqtt says. Ends when it has ended the connection, or the client takes no more.
async fn down(
    mut inner: OwnedReadHalf,
    mut client: WriteHalf<TlsStream<TcpStream>>,
    write_timeout: Duration,
    owed: &AtomicU32,
) -> Close {
    let mut meter = Meter::of_server();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let bytes = match inner.read(&mut buffer).await {
            Ok(0) | Err(_) => {
                let _ = timeout(GOODBYE, client.shutdown()).await;
                return Close::Inner;
            }
            Ok(count) => &buffer[..count],
        };
        // What rmqtt says is never too long.
        let _ = meter.take(bytes, |packet| {
            if packet.wants_acknowledgement() {
                owed.fetch_add(1, Ordering::Relaxed);
            }
        });
        let write = async {
            client.write_all(bytes).await?;
            client.flush().await
        };
        match timeout(write_timeout, write).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Close::Left,
            Err(_) => return Close::SlowConsumer,
        }
    }
}

/// Waits until the device may say more.
async fn wait_for_turn(budget: &mut Budget) -> Result<(), Close> {
    let mut has_waited = false;
    loop {
        match budget.ask(Instant::now()) {
            Verdict::GoOn => return Ok(()),
            Verdict::WaitUntil(then) => {
                if !has_waited {
                    counter!("fleetkey_broker_throttled_total").increment(1);
                    has_waited = true;
                }
                sleep_until(then).await;
            }
            Verdict::Exceeded => return Err(Close::RateExceeded),
        }
    }
}

/// One less, if there is one.
fn take_one(owed: &AtomicU32) -> bool {
    owed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |owed| owed.checked_sub(1)).is_ok()
}

async fn expiry(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}
