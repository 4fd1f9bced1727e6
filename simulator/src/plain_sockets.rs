//! A message to each of many sockets and a reply from each, and nothing else: what the system's own TCP takes for it.
//!
//! Servers and clients are parts (`fleetkey-sim part sockets`), in pairs, for one process may not open as many files.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use serde::{Deserialize, Serialize};

use crate::parts::{Part, first_source, hear, say, source};

const LISTENER: Token = Token(usize::MAX);
/// Open files of a process, beside its sockets.
const SPARE_FILES: u64 = 200;

/// The first words to a part.
#[derive(Debug, Serialize, Deserialize)]
enum Begin {
    Server { clients: usize, message_bytes: usize, reply_bytes: usize },
    Clients { server: SocketAddr, from: Ipv4Addr, count: usize, message_bytes: usize, reply_bytes: usize },
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Listening(SocketAddr),
    AllThere,
    Round { microseconds: u64 },
}

/// So many rounds with so many clients, each on its own connection; how long each took.
///
/// # Errors
/// When a part does not start, or ends.
pub async fn rounds(
    clients: usize,
    message_bytes: usize,
    reply_bytes: usize,
    rounds: usize,
) -> anyhow::Result<Vec<Duration>> {
    let allowed = rlimit::increase_nofile_limit(u64::MAX).context("read the limit on open files")?;
    let most = usize::try_from(allowed.saturating_sub(SPARE_FILES))?.max(1);
    let (mut servers, mut all_clients) = (Vec::new(), Vec::new());
    let mut left = clients;
    while left > 0 {
        let count = left.min(most);
        left -= count;
        let mut server =
            Part::start("sockets", &Begin::Server { clients: count, message_bytes, reply_bytes }).await?;
        let Answer::Listening(address) = server.hear().await? else { anyhow::bail!("no address") };
        let from = first_source(servers.len());
        let begin = Begin::Clients { server: address, from, count, message_bytes, reply_bytes };
        all_clients.push(Part::start("sockets", &begin).await?);
        servers.push(server);
    }
    for server in &mut servers {
        let Answer::AllThere = server.hear().await? else { anyhow::bail!("clients are missing") };
    }
    let mut times = Vec::new();
    // The first finds nothing warm.
    for round in 0..=rounds {
        for server in &mut servers {
            server.tell(&()).await?;
        }
        let mut longest = Duration::ZERO;
        for server in &mut servers {
            let Answer::Round { microseconds } = server.hear().await? else { anyhow::bail!("no time") };
            longest = longest.max(Duration::from_micros(microseconds));
        }
        if round > 0 {
            times.push(longest);
        }
    }
    for part in servers.into_iter().chain(all_clients) {
        part.end().await;
    }
    Ok(times)
}

/// Is one side until standard input ends.
///
/// # Errors
/// When the other side goes.
pub fn run() -> anyhow::Result<()> {
    let mut orders = io::stdin().lock();
    match hear::<Begin>(&mut orders)? {
        None => Ok(()),
        Some(Begin::Server { clients, message_bytes, reply_bytes }) => {
            let mut answers = io::stdout().lock();
            let mut server = Server::listen()?;
            say(&mut answers, &Answer::Listening(server.listener.local_addr()?))?;
            server.accept(clients)?;
            say(&mut answers, &Answer::AllThere)?;
            while let Some(()) = hear(&mut orders)? {
                let took = server.round(message_bytes, reply_bytes)?;
                say(&mut answers, &Answer::Round { microseconds: u64::try_from(took.as_micros())? })?;
            }
            Ok(())
        }
        Some(Begin::Clients { server, from, count, message_bytes, reply_bytes }) => {
            // Ends with standard input, whatever the sockets do.
            std::thread::spawn(move || {
                if let Err(error) = clients(server, from, count, message_bytes, reply_bytes) {
                    tracing::debug!(%error, "the clients end");
                }
            });
            while let Some(()) = hear(&mut orders)? {}
            Ok(())
        }
    }
}

struct Server {
    poll: Poll,
    events: Events,
    listener: TcpListener,
    streams: Vec<TcpStream>,
}

impl Server {
    fn listen() -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self { poll, events: Events::with_capacity(1_024), listener, streams: Vec::new() })
    }

    fn accept(&mut self, count: usize) -> io::Result<()> {
        while self.streams.len() < count {
            self.poll.poll(&mut self.events, Some(Duration::from_secs(30)))?;
            if self.events.is_empty() {
                return Err(ErrorKind::TimedOut.into());
            }
            while let Some((mut stream, _)) = ready(self.listener.accept())? {
                stream.set_nodelay(true)?;
                self.poll.registry().register(&mut stream, Token(self.streams.len()), Interest::READABLE)?;
                self.streams.push(stream);
            }
        }
        Ok(())
    }

    fn round(&mut self, message_bytes: usize, reply_bytes: usize) -> io::Result<Duration> {
        let (message, mut scratch) = (vec![0; message_bytes], vec![0; 16 * 1024]);
        let mut owed = vec![reply_bytes; self.streams.len()];
        let mut waiting = owed.len();
        let began = Instant::now();
        for stream in &mut self.streams {
            // A socket's buffer takes a small message whole.
            stream.write_all(&message)?;
        }
        while waiting > 0 {
            self.poll.poll(&mut self.events, Some(Duration::from_secs(30)))?;
            if self.events.is_empty() {
                return Err(ErrorKind::TimedOut.into());
            }
            for event in &self.events {
                let at = event.token().0;
                let (Some(stream), Some(owed)) = (self.streams.get_mut(at), owed.get_mut(at)) else {
                    continue;
                };
                while let Some(read) = ready(stream.read(&mut scratch))? {
                    if read == 0 {
                        return Err(ErrorKind::UnexpectedEof.into());
                    }
                    *owed = owed.saturating_sub(read);
                    if *owed == 0 {
                        waiting -= 1;
                    }
                    if read < scratch.len() {
                        break;
                    }
                }
            }
        }
        Ok(began.elapsed())
    }
}

fn clients(
    server: SocketAddr,
    from: Ipv4Addr,
    count: usize,
    message_bytes: usize,
    reply_bytes: usize,
) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut streams = Vec::with_capacity(count);
    for at in 0..count {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((source(from, at), 0)).into())?;
        socket.connect(&server.into())?;
        socket.set_tcp_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(socket.into());
        poll.registry().register(&mut stream, Token(at), Interest::READABLE)?;
        streams.push((stream, message_bytes));
    }
    let (reply, mut scratch) = (vec![0; reply_bytes], vec![0; 16 * 1024]);
    let mut events = Events::with_capacity(1_024);
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            let Some((stream, missing)) = streams.get_mut(event.token().0) else { continue };
            while let Some(read) = ready(stream.read(&mut scratch))? {
                if read == 0 {
                    return Ok(());
                }
                *missing = missing.saturating_sub(read);
                if *missing == 0 {
                    *missing = message_bytes;
                    stream.write_all(&reply)?;
                }
                if read < scratch.len() {
                    break;
                }
            }
        }
    }
}

fn ready<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(done) => Ok(Some(done)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
