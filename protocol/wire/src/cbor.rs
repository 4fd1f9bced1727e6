//! The little CBOR (RFC 8949) that the formats share: arrays with a fixed shape, written deterministically.
//!
//! Leaves the bytes themselves to `ciborium`, and the meaning of each array to its format.

use ciborium::Value;

use crate::error::BadFrame;

/// Nesting that any of our formats needs, with room to spare; deeper input is refused, not recursed into.
const MAX_DEPTH: usize = 8;

/// The shortest encoding of an array of `items`.
pub(crate) fn array(items: Vec<Value>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    ciborium::into_writer(&Value::Array(items), &mut bytes).expect("writing to memory does not fail");
    bytes
}

pub(crate) fn bytes(bytes: impl AsRef<[u8]>) -> Value {
    Value::Bytes(bytes.as_ref().to_vec())
}

pub(crate) fn uint(number: impl Into<u64>) -> Value {
    Value::Integer(number.into().into())
}

pub(crate) fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

pub(crate) fn optional_bytes(value: Option<&[u8]>) -> Value {
    value.map_or(Value::Null, bytes)
}

/// Reads the items of one array in order, and refuses what does not fit by the name of the field.
#[derive(Debug)]
pub(crate) struct Items {
    items: std::vec::IntoIter<Value>,
}

impl Items {
    /// The array that is all of `encoded`.
    pub(crate) fn decode(what: &'static str, encoded: &[u8]) -> Result<Self, BadFrame> {
        let mut rest = encoded;
        let value: Value = ciborium::de::from_reader_with_recursion_limit(&mut rest, MAX_DEPTH)
            .map_err(|_| BadFrame::NotCbor { what })?;
        if !rest.is_empty() {
            return Err(BadFrame::TrailingBytes { what, bytes: rest.len() });
        }
        Self::of(what, value)
    }

    /// The items of an array met inside another.
    pub(crate) fn of(what: &'static str, value: Value) -> Result<Self, BadFrame> {
        let items = value.into_array().map_err(|_| BadFrame::Shape { field: what })?;
        Ok(Self { items: items.into_iter() })
    }

    pub(crate) fn any(&mut self, field: &'static str) -> Result<Value, BadFrame> {
        self.items.next().ok_or(BadFrame::Shape { field })
    }

    pub(crate) fn uint(&mut self, field: &'static str) -> Result<u64, BadFrame> {
        let number = self.any(field)?.into_integer().map_err(|_| BadFrame::Shape { field })?;
        u64::try_from(number).map_err(|_| BadFrame::Shape { field })
    }

    pub(crate) fn uint32(&mut self, field: &'static str) -> Result<u32, BadFrame> {
        u32::try_from(self.uint(field)?).map_err(|_| BadFrame::Shape { field })
    }

    pub(crate) fn bytes(&mut self, field: &'static str, max: usize) -> Result<Vec<u8>, BadFrame> {
        let bytes = self.any(field)?.into_bytes().map_err(|_| BadFrame::Shape { field })?;
        if bytes.len() > max {
            return Err(BadFrame::TooLarge { what: field, bytes: bytes.len(), max });
        }
        Ok(bytes)
    }

    pub(crate) fn optional_bytes(
        &mut self,
        field: &'static str,
        max: usize,
    ) -> Result<Option<Vec<u8>>, BadFrame> {
        if matches!(self.items.as_slice().first(), Some(Value::Null)) {
            self.items.next();
            return Ok(None);
        }
        self.bytes(field, max).map(Some)
    }

    pub(crate) fn fixed<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], BadFrame> {
        self.bytes(field, N)?.try_into().map_err(|_| BadFrame::Shape { field })
    }

    pub(crate) fn text(&mut self, field: &'static str, max: usize) -> Result<String, BadFrame> {
        let text = self.any(field)?.into_text().map_err(|_| BadFrame::Shape { field })?;
        if text.len() > max {
            return Err(BadFrame::TooLarge { what: field, bytes: text.len(), max });
        }
        Ok(text)
    }

    /// A nested array of at most `max` items.
    pub(crate) fn list(&mut self, field: &'static str, max: usize) -> Result<Vec<Value>, BadFrame> {
        let items = self.any(field)?.into_array().map_err(|_| BadFrame::Shape { field })?;
        if items.len() > max {
            return Err(BadFrame::TooMany { field, items: items.len(), max });
        }
        Ok(items)
    }

    /// A nested array of at most `max` byte strings of at most `max_bytes` each.
    pub(crate) fn list_of_bytes(
        &mut self,
        field: &'static str,
        max: usize,
        max_bytes: usize,
    ) -> Result<Vec<Vec<u8>>, BadFrame> {
        let items = self.list(field, max)?;
        let mut items = Self { items: items.into_iter() };
        let mut out = Vec::with_capacity(items.items.len());
        while !items.items.as_slice().is_empty() {
            out.push(items.bytes(field, max_bytes)?);
        }
        Ok(out)
    }

    /// There must be nothing left.
    pub(crate) fn end(mut self, what: &'static str) -> Result<(), BadFrame> {
        match self.items.next() {
            None => Ok(()),
            Some(_) => Err(BadFrame::Shape { field: what }),
        }
    }
}
