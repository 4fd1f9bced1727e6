//! A device's certificate in other hands: MQTT 3.1.1 over TLS, written by hand, saying what no agent would say.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fleetkey_identity::{FleetRoots, IdentityKey, chain_from_pem, tls};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

/// A broker that runs answers within this.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// The code of a CONNACK that lets the client in.
pub const ACCEPTED: u8 = 0;
/// The code of a CONNACK to one who may not come in (MQTT 3.1.1 §3.2.2.3).
pub const NOT_AUTHORIZED: u8 = 5;

/// A connection with a device's certificate.
#[derive(Debug)]
pub struct Intruder {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

/// What the broker did about a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It took it.
    Taken,
    /// It said no, or ended the connection.
    Refused,
}

impl Intruder {
    /// Connects as the device whose bundle is in `directory`; with the code of the broker's CONNACK.
    ///
    /// # Errors
    /// When there is no broker, or no answer.
    pub fn connect(directory: &Path, id: &str, port: u16) -> Result<(Self, u8)> {
        let read = |name: &str| fs::read_to_string(directory.join(name)).with_context(|| name.to_owned());
        let chain = chain_from_pem(&read("device.crt")?)?;
        let key = IdentityKey::from_pkcs8_pem(&read("device.key")?)?;
        let roots = FleetRoots::from_pem(&read("fleet-roots.pem")?)?;
        Self::connect_as(&chain, &key, &roots, id, port)
    }

    /// Connects with a certificate and its key; with the code of the broker's CONNACK.
    ///
    /// # Errors
    /// When there is no broker, or no answer.
    pub fn connect_as(
        chain: &[Vec<u8>],
        key: &IdentityKey,
        roots: &FleetRoots,
        id: &str,
        port: u16,
    ) -> Result<(Self, u8)> {
        let config = tls::client_config(chain, key, roots)?;
        let tcp = TcpStream::connect(("127.0.0.1", port)).context("connect to the broker")?;
        tcp.set_read_timeout(Some(ANSWER_WITHIN))?;
        tcp.set_write_timeout(Some(ANSWER_WITHIN))?;
        let name = ServerName::try_from("127.0.0.1")?;
        let mut intruder = Self { stream: StreamOwned::new(ClientConnection::new(config, name)?, tcp) };

        // Protocol name and level, clean session, keep-alive of ten minutes, client id (§3.1).
        let mut body = b"\x00\x04MQTT\x04\x02\x02\x58".to_vec();
        push_text(&mut body, id)?;
        intruder.send(0x10, &body)?;
        let (kind, answer) = intruder.receive().context("an answer to CONNECT")?;
        match (kind, answer.as_slice()) {
            (0x20, [_, code]) => Ok((intruder, *code)),
            other => bail!("{other:?} is no CONNACK"),
        }
    }

    /// Waits until the broker ends the connection.
    ///
    /// # Errors
    /// When it has not after `ANSWER_WITHIN`.
    pub fn until_closed(&mut self) -> Result<()> {
        loop {
            match self.receive() {
                Ok(_) => {}
                Err(error) => {
                    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
                    let is_open = matches!(kind, Some(ErrorKind::WouldBlock | ErrorKind::TimedOut));
                    ensure!(!is_open, "still connected after {} s", ANSWER_WITHIN.as_secs());
                    return Ok(());
                }
            }
        }
    }

    /// Publishes with QoS 1, and waits for what the broker makes of it.
    ///
    /// # Errors
    /// When the message cannot be written down.
    pub fn publish(&mut self, topic: &str, payload: &[u8]) -> Result<Verdict> {
        let mut body = Vec::new();
        push_text(&mut body, topic)?;
        body.extend([0, 1]);
        body.extend(payload);
        Ok(self.ask(0x32, &body, 0x40, |_| true))
    }

    /// Subscribes, and waits for what the broker makes of it.
    ///
    /// # Errors
    /// When the filter cannot be written down.
    pub fn subscribe(&mut self, filter: &str) -> Result<Verdict> {
        let mut body = vec![0, 2];
        push_text(&mut body, filter)?;
        body.push(1);
        Ok(self.ask(0x82, &body, 0x90, |answer| answer.last().is_some_and(|code| *code < 0x80)))
    }

    fn ask(&mut self, kind: u8, body: &[u8], expected: u8, is_yes: fn(&[u8]) -> bool) -> Verdict {
        let mut answer = || -> Result<bool> {
            self.send(kind, body)?;
            loop {
                let (kind, answer) = self.receive()?;
                // What else comes is for the device that this is not.
                if kind & 0xf0 == expected {
                    return Ok(is_yes(&answer));
                }
            }
        };
        // A connection that ends is a no as well.
        if matches!(answer(), Ok(true)) { Verdict::Taken } else { Verdict::Refused }
    }

    fn send(&mut self, kind: u8, body: &[u8]) -> Result<()> {
        let mut packet = vec![kind];
        let mut length = body.len();
        loop {
            let low = u8::try_from(length % 128)?;
            length /= 128;
            packet.push(if length > 0 { low | 0x80 } else { low });
            if length == 0 {
                break;
            }
        }
        packet.extend(body);
        self.stream.write_all(&packet)?;
        Ok(self.stream.flush()?)
    }

    fn receive(&mut self) -> Result<(u8, Vec<u8>)> {
        let kind = self.byte()?;
        let (mut length, mut shift) = (0usize, 0);
        loop {
            let byte = self.byte()?;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 || shift > 21 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok((kind, body))
    }

    fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        self.stream.read_exact(&mut byte)?;
        Ok(byte[0])
    }
}

fn push_text(body: &mut Vec<u8>, text: &str) -> Result<()> {
    body.extend(u16::try_from(text.len())?.to_be_bytes());
    body.extend(text.as_bytes());
    Ok(())
}
