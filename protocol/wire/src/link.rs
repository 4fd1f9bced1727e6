//! The link between one device and the coordinator: what makes frames on the two `dev` topics authentic and fresh.
//!
//! A link frame is `[device nonce, coordinator nonce, counter, body, MAC]`, the MAC under the link key that only
//! these two can derive, over the direction and everything else. The device draws its nonce once a connection.
//! The coordinator's nonce is `HMAC(per-start secret, device, device nonce, session number)`: it stores nothing
//! until a frame proves that the device has seen it, and then one small record per device; a nonce that was
//! left behind is never accepted again. Counters rise per pair of nonces.
//!
//! So whoever carries the frames can drop them, but neither forge nor replay. Leaves to the cores what a frame
//! may do when it is authentic but not fresh (a first hello, a "hello again" from a coordinator just started).

use hmac::Mac;
use rand_core::{CryptoRng, RngCore};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::cbor::{self, Item, Items};
use crate::down::DownBody;
use crate::error::{BadFrame, Named};
use crate::frame::{disclose, enclose};
use crate::ids::DeviceId;
use crate::keys::{LinkKey, mac};
use crate::limits::{MAX_DOWN_FRAME_BYTES, MAX_UP_FRAME_BYTES};
use crate::up::UpBody;

/// Length of a nonce, in bytes.
pub const NONCE_BYTES: usize = 8;
/// Length of a link frame's MAC: HMAC-SHA-256 cut to 16 bytes (RFC 2104 §5).
pub const LINK_MAC_BYTES: usize = 16;

/// One side's contribution to the freshness of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Nonce([u8; NONCE_BYTES]);

impl Nonce {
    fn random(rng: &mut (impl RngCore + CryptoRng + ?Sized)) -> Self {
        let mut bytes = [0; NONCE_BYTES];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

/// An authentic frame that must not count, or bytes that are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkRefused {
    /// The MAC does not verify: forged, altered, or for another device or direction.
    #[error("link frame has a wrong MAC")]
    WrongMac,
    /// Authentic, but its counter was seen or passed already.
    #[error("link frame with counter {got} is a replay: {seen} was seen already")]
    Replayed {
        /// Its counter.
        got: u64,
        /// The highest counter seen.
        seen: u64,
    },
    /// Authentic, but under a nonce that is not of this connection. The device says hello; the coordinator
    /// answers "hello again".
    #[error("link frame is under a nonce that is not current")]
    StaleNonce,
    /// Authentic, but the peer has started anew since. The device draws a new nonce and says hello.
    #[error("the coordinator has started anew")]
    PeerRestarted,
    /// Only a hello may come before the coordinator's nonce is known.
    #[error("a {body} before the first answer is not fresh")]
    NotFresh {
        /// What came instead.
        body: &'static str,
    },
}

impl Named for LinkRefused {
    fn name(&self) -> &'static str {
        match self {
            Self::WrongMac => "wrong_mac",
            Self::Replayed { .. } => "replayed",
            Self::StaleNonce => "stale_nonce",
            Self::PeerRestarted => "peer_restarted",
            Self::NotFresh { .. } => "not_fresh",
        }
    }
}

/// Why a link frame was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLinkFrame {
    /// The bytes are none.
    #[error(transparent)]
    Frame(#[from] BadFrame),
    /// It must not count.
    #[error(transparent)]
    Refused(#[from] LinkRefused),
}

impl Named for BadLinkFrame {
    fn name(&self) -> &'static str {
        match self {
            Self::Frame(bad) => bad.name(),
            Self::Refused(refused) => refused.name(),
        }
    }
}

/// The parts of a link frame, before anything of it is believed.
#[derive(Debug)]
struct LinkFrame<'a> {
    device_nonce: Option<Nonce>,
    coordinator_nonce: Option<Nonce>,
    counter: u64,
    body: &'a [u8],
    mac: [u8; LINK_MAC_BYTES],
}

impl<'a> LinkFrame<'a> {
    fn seal(
        key: &LinkKey,
        direction: Direction,
        device_nonce: Option<Nonce>,
        coordinator_nonce: Option<Nonce>,
        counter: u64,
        body: Vec<u8>,
    ) -> Vec<u8> {
        let full = Self::authenticator(key, direction, device_nonce, coordinator_nonce, counter, &body);
        let full = full.finalize().into_bytes();
        enclose(cbor::array(&[
            nonce_item(&device_nonce),
            nonce_item(&coordinator_nonce),
            cbor::uint(counter),
            cbor::bytes(&body),
            cbor::bytes(&full[..LINK_MAC_BYTES]),
        ]))
    }

    fn decode(direction: Direction, frame: &'a [u8]) -> Result<Self, BadFrame> {
        let (what, max) = match direction {
            Direction::Up => ("up frame", MAX_UP_FRAME_BYTES),
            Direction::Down => ("down frame", MAX_DOWN_FRAME_BYTES),
        };
        let mut items = disclose(what, frame, max)?;
        let read = Self {
            device_nonce: read_nonce(&mut items, "device nonce")?,
            coordinator_nonce: read_nonce(&mut items, "coordinator nonce")?,
            counter: items.uint("counter")?,
            body: items.bytes("body", max)?,
            mac: items.fixed("link MAC")?,
        };
        items.end()?;
        Ok(read)
    }

    fn check_mac(&self, key: &LinkKey, direction: Direction) -> Result<(), LinkRefused> {
        Self::authenticator(
            key,
            direction,
            self.device_nonce,
            self.coordinator_nonce,
            self.counter,
            self.body,
        )
        .verify_truncated_left(&self.mac)
        .map_err(|_| LinkRefused::WrongMac)
    }

    fn authenticator(
        key: &LinkKey,
        direction: Direction,
        device_nonce: Option<Nonce>,
        coordinator_nonce: Option<Nonce>,
        counter: u64,
        body: &[u8],
    ) -> hmac::Hmac<sha2::Sha256> {
        let message = cbor::array(&[
            cbor::text(match direction {
                Direction::Up => "up",
                Direction::Down => "down",
            }),
            nonce_item(&device_nonce),
            nonce_item(&coordinator_nonce),
            cbor::uint(counter),
            cbor::bytes(body),
        ]);
        mac(key.as_bytes(), &message)
    }
}

fn nonce_item(nonce: &Option<Nonce>) -> Item<'_> {
    nonce.as_ref().map_or(Item::Bytes(&[]), |nonce| cbor::bytes(&nonce.0))
}

fn read_nonce(items: &mut Items<'_>, field: &'static str) -> Result<Option<Nonce>, BadFrame> {
    let bytes = items.bytes(field, NONCE_BYTES)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    bytes.try_into().map(|bytes| Some(Nonce(bytes))).map_err(|_| BadFrame::Shape { field })
}

/// The device's end of its link. It lives as long as a connection; nothing of it is stored.
#[derive(Debug)]
pub struct DeviceLink {
    key: LinkKey,
    nonce: Nonce,
    sent: u64,
    /// The coordinator's nonce and the highest counter seen under it.
    peer: Option<(Nonce, u64)>,
}

/// What a device may make of a `down` frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenedDown {
    /// Authentic, and of this connection.
    Fresh(DownBody),
    /// Authentic, but perhaps replayed: a coordinator just started asks for a hello.
    Poke,
}

impl DeviceLink {
    /// The link of a new connection.
    pub fn connect(key: LinkKey, rng: &mut (impl RngCore + CryptoRng + ?Sized)) -> Self {
        Self { key, nonce: Nonce::random(rng), sent: 0, peer: None }
    }

    /// Begins anew under a new nonce, as after [`LinkRefused::PeerRestarted`].
    pub fn restart(&mut self, rng: &mut (impl RngCore + CryptoRng + ?Sized)) {
        *self = Self::connect(self.key.clone(), rng);
    }

    /// The frame to publish on `up`, and its counter. Before the coordinator's first answer only a hello counts.
    pub fn seal(&mut self, body: &UpBody) -> (Vec<u8>, u64) {
        self.sent += 1;
        let peer = self.peer.map(|(nonce, _)| nonce);
        (
            LinkFrame::seal(&self.key, Direction::Up, Some(self.nonce), peer, self.sent, body.encode()),
            self.sent,
        )
    }

    /// Whether the coordinator has answered on this connection.
    pub const fn is_answered(&self) -> bool {
        self.peer.is_some()
    }

    /// Reads a frame from `down`. A refused frame changes nothing.
    pub fn open(&mut self, frame: &[u8]) -> Result<OpenedDown, BadLinkFrame> {
        let frame = LinkFrame::decode(Direction::Down, frame)?;
        frame.check_mac(&self.key, Direction::Down)?;
        let body = DownBody::decode(frame.body)?;
        if frame.device_nonce.is_none() && body == DownBody::HelloAgain {
            return Ok(OpenedDown::Poke);
        }
        let Some(peer_nonce) = frame.coordinator_nonce.filter(|_| frame.device_nonce == Some(self.nonce))
        else {
            return Err(LinkRefused::StaleNonce.into());
        };
        match self.peer {
            Some((known, _)) if known != peer_nonce => return Err(LinkRefused::PeerRestarted.into()),
            Some((_, seen)) if frame.counter <= seen => {
                return Err(LinkRefused::Replayed { got: frame.counter, seen }.into());
            }
            Some(_) | None => self.peer = Some((peer_nonce, frame.counter)),
        }
        Ok(OpenedDown::Fresh(body))
    }
}

/// What the coordinator's nonces are made from: drawn at each start, never stored.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct StartSecret([u8; 32]);

impl StartSecret {
    /// A fresh one.
    pub fn random(rng: &mut (impl RngCore + CryptoRng + ?Sized)) -> Self {
        let mut bytes = [0; 32];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }

    fn nonce(&self, device: DeviceId, device_nonce: Nonce, session: u32) -> Nonce {
        let message =
            cbor::array(&[cbor::bytes(device.as_bytes()), cbor::bytes(&device_nonce.0), cbor::uint(session)]);
        let full = mac(&self.0, &message).finalize().into_bytes();
        let mut nonce = [0; NONCE_BYTES];
        nonce.copy_from_slice(&full[..NONCE_BYTES]);
        Nonce(nonce)
    }
}

impl std::fmt::Debug for StartSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StartSecret(redacted)")
    }
}

/// The coordinator's end of one device's link: a few bytes per device, in memory only. It lives as long as the
/// [`StartSecret`]: dropped earlier, it would forget which nonces were left behind, and let recorded frames in.
#[derive(Debug, Clone, Default)]
pub struct CoordinatorLink {
    /// How many connections have proved themselves since the start; the coordinator's nonces depend on it.
    session: u32,
    /// The device nonce of the connection that proved itself last, and the highest counter seen under it.
    proven: Option<(Nonce, u64)>,
    /// The device nonce of a first hello that came later. It may be a replay, so it only says where to answer.
    greeted: Option<Nonce>,
    /// The device nonce of the last frame under a nonce left behind, until a better one comes. Only a "hello again"
    /// goes there.
    stale: Option<Nonce>,
    sent: u64,
}

/// What the coordinator may make of an `up` frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedUp {
    /// What the device says.
    pub body: UpBody,
    /// Its frame's counter, which an answer to a hello names.
    pub counter: u64,
    /// Whether it answers this coordinator's nonce. A first hello does not: it may be a replay.
    pub fresh: bool,
}

impl CoordinatorLink {
    /// Reads a frame from `up`. A refused frame changes nothing but where a "hello again" is sent.
    pub fn open(
        &mut self,
        start: &StartSecret,
        device: DeviceId,
        key: &LinkKey,
        frame: &[u8],
    ) -> Result<OpenedUp, BadLinkFrame> {
        let frame = LinkFrame::decode(Direction::Up, frame)?;
        frame.check_mac(key, Direction::Up)?;
        let nonce = frame.device_nonce.ok_or(BadFrame::Shape { field: "device nonce" })?;
        let body = UpBody::decode(frame.body)?;
        let Some(answered) = frame.coordinator_nonce else {
            return self.open_first_hello(nonce, frame.counter, body);
        };
        match self.proven {
            Some((proven, seen))
                if proven == nonce && start.nonce(device, nonce, self.session) == answered =>
            {
                if frame.counter <= seen {
                    return Err(LinkRefused::Replayed { got: frame.counter, seen }.into());
                }
                self.proven = Some((nonce, frame.counter));
                if matches!(body, UpBody::Hello(_)) {
                    // The connection says that it is current, whatever was greeted (or replayed) in between.
                    self.greeted = None;
                }
            }
            Some(_) | None if start.nonce(device, nonce, self.session.wrapping_add(1)) == answered => {
                self.session = self.session.wrapping_add(1);
                self.proven = Some((nonce, frame.counter));
                self.greeted = None;
            }
            Some(_) | None => {
                self.stale = Some(nonce);
                return Err(LinkRefused::StaleNonce.into());
            }
        }
        self.stale = None;
        Ok(OpenedUp { body, counter: frame.counter, fresh: true })
    }

    fn open_first_hello(
        &mut self,
        nonce: Nonce,
        counter: u64,
        body: UpBody,
    ) -> Result<OpenedUp, BadLinkFrame> {
        if !matches!(body, UpBody::Hello(_)) {
            return Err(LinkRefused::NotFresh { body: body.name() }.into());
        }
        let is_proven = self.proven.is_some_and(|(proven, _)| proven == nonce);
        self.greeted = if is_proven { None } else { Some(nonce) };
        self.stale = None;
        Ok(OpenedUp { body, counter, fresh: false })
    }

    /// Whether the device was heard since this coordinator started, so that it can be answered.
    pub const fn is_known(&self) -> bool {
        self.greeted.is_some() || self.proven.is_some()
    }

    /// The frame to publish on `down`. To a device not heard since the start only "hello again" can be said.
    pub fn seal(&mut self, start: &StartSecret, device: DeviceId, key: &LinkKey, body: &DownBody) -> Vec<u8> {
        self.sent += 1;
        let stale = self.stale.filter(|_| *body == DownBody::HelloAgain);
        let (device_nonce, own) = match (stale.or(self.greeted), self.proven) {
            (Some(nonce), _) => (Some(nonce), start.nonce(device, nonce, self.session.wrapping_add(1))),
            (None, Some((nonce, _))) => (Some(nonce), start.nonce(device, nonce, self.session)),
            (None, None) => (None, start.nonce(device, Nonce([0; NONCE_BYTES]), 0)),
        };
        LinkFrame::seal(key, Direction::Down, device_nonce, Some(own), self.sent, body.encode())
    }
}
