//! Link frames with any bytes in them, under a good MAC: what whoever holds the key could say.
//!
//! Put together from `docs/PROTOCOL.md`, section 7, and not with the code that reads them.

use ciborium::Value;
use fleetkey_wire::keys::LinkKey;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

/// Which way a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From a device.
    Up,
    /// To it.
    Down,
}

/// The nonces of a frame, the device's first, and its counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The device's nonce.
    pub device_nonce: Vec<u8>,
    /// The coordinator's.
    pub coordinator_nonce: Vec<u8>,
    /// The counter.
    pub counter: u64,
}

impl Place {
    /// The place of a genuine frame.
    pub fn of(frame: &[u8]) -> Option<Self> {
        let value: Value = ciborium::from_reader(frame.get(1..)?).ok()?;
        let mut items = value.into_array().ok()?.into_iter();
        let device_nonce = items.next()?.into_bytes().ok()?;
        let coordinator_nonce = items.next()?.into_bytes().ok()?;
        let counter = u64::try_from(items.next()?.into_integer().ok()?).ok()?;
        Some(Self { device_nonce, coordinator_nonce, counter })
    }
}

/// The frame that says `body` at `place`.
pub fn link_frame(key: &LinkKey, way: Way, place: &Place, body: &[u8]) -> Vec<u8> {
    let direction = match way {
        Way::Up => "up",
        Way::Down => "down",
    };
    let bytes = |bytes: &[u8]| Value::Bytes(bytes.to_vec());
    let fields =
        vec![bytes(&place.device_nonce), bytes(&place.coordinator_nonce), place.counter.into(), bytes(body)];
    let mut said = vec![Value::Text(direction.to_owned())];
    said.extend(fields.iter().cloned());
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(&array(said));
    let mut items = fields;
    items.push(bytes(&mac.finalize().into_bytes()[..16]));
    let mut frame = vec![1];
    frame.extend(array(items));
    frame
}

/// The encoding of an array.
pub fn array(items: Vec<Value>) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(&Value::Array(items), &mut bytes).expect("writing to memory does not fail");
    bytes
}
