//! A socket that never waits, with TLS or without.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;

use bytes::{Buf as _, BytesMut};
use mio::event::Source;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustls::ClientConnection;
use socket2::{Domain, Protocol, Type};

use crate::route::Route;

/// To the broker.
pub(crate) struct Socket {
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
}

impl Socket {
    /// Begins to connect, and tells `registry` to tell of it.
    pub(crate) fn open(route: &Route, registry: &Registry, token: Token) -> io::Result<Self> {
        let socket =
            socket2::Socket::new(Domain::for_address(route.broker), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        if let Some(from) = route.from {
            socket.bind(&SocketAddr::from((from, 0)).into())?;
        }
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&route.broker.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let mut stream = TcpStream::from_std(socket.into());
        stream.register(registry, token, Interest::READABLE | Interest::WRITABLE)?;
        let tls = match &route.tls {
            Some(tls) => {
                let connection = ClientConnection::new(tls.config.clone(), tls.name.clone());
                Some(Box::new(connection.map_err(io::Error::other)?))
            }
            None => None,
        };
        Ok(Self { stream, tls })
    }

    /// Whether TCP's handshake is over; an error says that there will be no connection.
    pub(crate) fn is_open(&self) -> io::Result<bool> {
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        match self.stream.peer_addr() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads what is there; `None` when there is nothing.
    pub(crate) fn read(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let Self { stream, tls } = self;
        let Some(tls) = tls else { return not_now(stream.read(into)) };
        loop {
            match tls.reader().read(into) {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            match not_now(tls.read_tls(stream))? {
                None => return Ok(None),
                Some(0) => return Ok(Some(0)),
                Some(_) => _ = tls.process_new_packets().map_err(io::Error::other)?,
            }
        }
    }

    /// Writes as much as there is room for.
    pub(crate) fn write(&mut self, out: &mut BytesMut) -> io::Result<()> {
        let Self { stream, tls } = self;
        if let Some(tls) = tls {
            if !out.is_empty() {
                tls.writer().write_all(out)?;
                out.clear();
            }
            while tls.wants_write() {
                if not_now(tls.write_tls(stream))?.is_none() {
                    break;
                }
            }
        } else {
            while !out.is_empty() {
                match not_now(stream.write(out))? {
                    Some(bytes) => out.advance(bytes),
                    None => break,
                }
            }
        }
        if out.is_empty() {
            // Nothing is kept for what may never come.
            *out = BytesMut::new();
        }
        Ok(())
    }

    /// Tells `registry` no more.
    pub(crate) fn close(mut self, registry: &Registry) {
        // It is closed in the next moment, and an error changes nothing about that.
        _ = self.stream.deregister(registry);
    }
}

fn not_now(outcome: io::Result<usize>) -> io::Result<Option<usize>> {
    match outcome {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}
