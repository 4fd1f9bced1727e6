//! What a JSON document would take as MessagePack with fields in order and byte strings as byte strings, as our own
//! devices store their MLS state.
//!
//! openmls's storage in memory writes JSON, in which a byte takes about four. A device would not: counted as JSON, its
//! state would look larger than it has to be. Names are not counted.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

/// The bytes that `json` would take.
pub(super) fn bytes_of(json: &[u8]) -> Option<u64> {
    serde_json::from_slice::<Packed>(json).ok().map(|packed| packed.bytes)
}

struct Packed {
    bytes: u64,
    /// Whether it may be an element of a byte string.
    is_byte: bool,
}

fn header(length: u64) -> u64 {
    match length {
        0..16 => 1,
        16..256 => 2,
        256..65_536 => 3,
        _ => 5,
    }
}

impl<'de> Deserialize<'de> for Packed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Counter)
    }
}

struct Counter;

impl<'de> Visitor<'de> for Counter {
    type Value = Packed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON document")
    }

    fn visit_unit<E>(self) -> Result<Packed, E> {
        Ok(Packed { bytes: 1, is_byte: false })
    }

    fn visit_bool<E>(self, _: bool) -> Result<Packed, E> {
        Ok(Packed { bytes: 1, is_byte: false })
    }

    fn visit_u64<E>(self, value: u64) -> Result<Packed, E> {
        let bytes = match value {
            0..128 => 1,
            128..256 => 2,
            256..65_536 => 3,
            65_536..4_294_967_296 => 5,
            _ => 9,
        };
        Ok(Packed { bytes, is_byte: value < 256 })
    }

    fn visit_i64<E>(self, _: i64) -> Result<Packed, E> {
        Ok(Packed { bytes: 9, is_byte: false })
    }

    fn visit_f64<E>(self, _: f64) -> Result<Packed, E> {
        Ok(Packed { bytes: 9, is_byte: false })
    }

    fn visit_str<E>(self, text: &str) -> Result<Packed, E> {
        let length = text.len() as u64;
        Ok(Packed { bytes: header(length) + length, is_byte: false })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Packed, A::Error> {
        let (mut bytes, mut count, mut all_bytes) = (0, 0, true);
        while let Some(element) = elements.next_element::<Packed>()? {
            bytes += element.bytes;
            count += 1;
            all_bytes &= element.is_byte;
        }
        let bytes = if all_bytes { count } else { bytes };
        Ok(Packed { bytes: header(count) + bytes, is_byte: false })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Packed, A::Error> {
        let (mut bytes, mut count) = (0, 0);
        while let Some((_, value)) = entries.next_entry::<serde::de::IgnoredAny, Packed>()? {
            bytes += value.bytes;
            count += 1;
        }
        Ok(Packed { bytes: header(count) + bytes, is_byte: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_strings_take_a_byte_for_each_and_names_take_none() {
        assert_eq!(bytes_of(b"[1,2,255]"), Some(1 + 3));
        assert_eq!(bytes_of(b"{\"name\":[200,300]}"), Some(1 + 1 + 2 + 3));
        assert_eq!(bytes_of(b"{\"a\":\"xyz\",\"b\":null}"), Some(1 + 4 + 1));
        assert_eq!(bytes_of(b"not json"), None);
    }
}
