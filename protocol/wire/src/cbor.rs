//! The little CBOR (RFC 8949) that the formats share: arrays with a fixed shape, written deterministically, read where they lie.
//!
//! Nothing is copied to be read: byte strings are slices of what came. Lengths are always told in front (RFC 8949 §4.2.1), and
//! nothing is looked at that its format has no place for, so input costs no more than its own bytes, however deep it pretends to
//! be. Leaves heads to `ciborium_ll`, and the meaning of each array to its format.

use ciborium_ll::{Decoder, Encoder, Header, simple};

use crate::error::BadFrame;

/// What an array is made of.
#[derive(Debug, Clone)]
pub(crate) enum Item<'a> {
    Uint(u64),
    Bytes(&'a [u8]),
    Text(&'a str),
    Null,
    List(Vec<Item<'a>>),
}

/// The shortest encoding of an array of `items`.
pub(crate) fn array(items: &[Item<'_>]) -> Vec<u8> {
    let mut encoded = Vec::with_capacity(9 + items.iter().map(Item::room).sum::<usize>());
    push_array(&mut encoded, items);
    encoded
}

fn push_array(encoded: &mut Vec<u8>, items: &[Item<'_>]) {
    push(encoded, Header::Array(Some(items.len())));
    for item in items {
        match item {
            Item::Uint(number) => push(encoded, Header::Positive(*number)),
            Item::Bytes(bytes) => {
                push(encoded, Header::Bytes(Some(bytes.len())));
                encoded.extend_from_slice(bytes);
            }
            Item::Text(text) => {
                push(encoded, Header::Text(Some(text.len())));
                encoded.extend_from_slice(text.as_bytes());
            }
            Item::Null => push(encoded, Header::Simple(simple::NULL)),
            Item::List(items) => push_array(encoded, items),
        }
    }
}

fn push(encoded: &mut Vec<u8>, head: Header) {
    Encoder::from(encoded).push(head).expect("writing to memory does not fail");
}

impl Item<'_> {
    /// Bytes that it takes at most, so that what is written never moves: nothing of it is left behind elsewhere.
    fn room(&self) -> usize {
        const LONGEST_HEAD: usize = 9;
        LONGEST_HEAD
            + match self {
                Self::Uint(_) | Self::Null => 0,
                Self::Bytes(bytes) => bytes.len(),
                Self::Text(text) => text.len(),
                Self::List(items) => items.iter().map(Self::room).sum(),
            }
    }
}

pub(crate) fn bytes<'a>(bytes: &'a (impl AsRef<[u8]> + ?Sized)) -> Item<'a> {
    Item::Bytes(bytes.as_ref())
}

pub(crate) fn uint(number: impl Into<u64>) -> Item<'static> {
    Item::Uint(number.into())
}

pub(crate) const fn text(text: &str) -> Item<'_> {
    Item::Text(text)
}

pub(crate) fn optional_bytes(value: Option<&[u8]>) -> Item<'_> {
    value.map_or(Item::Null, Item::Bytes)
}

pub(crate) fn list<'a, T: 'a>(
    values: impl IntoIterator<Item = &'a T>,
    item: impl Fn(&'a T) -> Item<'a>,
) -> Item<'a> {
    Item::List(values.into_iter().map(item).collect())
}

/// Reads the items of one array in order, and refuses what does not fit by the name of the field.
#[derive(Debug)]
pub(crate) struct Items<'a> {
    what: &'static str,
    rest: &'a [u8],
    /// Items that are still to come in this array.
    left: usize,
}

impl<'a> Items<'a> {
    /// The array that is all of `encoded`.
    pub(crate) fn decode(what: &'static str, encoded: &'a [u8]) -> Result<Self, BadFrame> {
        let mut items = Self { what, rest: encoded, left: 1 };
        items.left = items.array_head(what)?;
        Ok(items)
    }

    /// The next head, if another item belongs to this array.
    fn head(&mut self, field: &'static str) -> Result<Header, BadFrame> {
        self.left = self.left.checked_sub(1).ok_or(BadFrame::Shape { field })?;
        let mut decoder = Decoder::from(self.rest);
        let head = decoder.pull().map_err(|_| BadFrame::NotCbor { what: self.what })?;
        // The end of something without a length, where nothing like it has begun.
        if head == Header::Break {
            return Err(BadFrame::NotCbor { what: self.what });
        }
        self.rest = self.rest.get(decoder.offset()..).unwrap_or_default();
        Ok(head)
    }

    fn array_head(&mut self, field: &'static str) -> Result<usize, BadFrame> {
        let Header::Array(Some(items)) = self.head(field)? else { return Err(BadFrame::Shape { field }) };
        Ok(items)
    }

    fn content(&mut self, length: usize) -> Result<&'a [u8], BadFrame> {
        let (content, rest) =
            self.rest.split_at_checked(length).ok_or(BadFrame::NotCbor { what: self.what })?;
        self.rest = rest;
        Ok(content)
    }

    pub(crate) fn uint(&mut self, field: &'static str) -> Result<u64, BadFrame> {
        let Header::Positive(number) = self.head(field)? else { return Err(BadFrame::Shape { field }) };
        Ok(number)
    }

    pub(crate) fn uint32(&mut self, field: &'static str) -> Result<u32, BadFrame> {
        u32::try_from(self.uint(field)?).map_err(|_| BadFrame::Shape { field })
    }

    pub(crate) fn bytes(&mut self, field: &'static str, max: usize) -> Result<&'a [u8], BadFrame> {
        self.optional_bytes(field, max)?.ok_or(BadFrame::Shape { field })
    }

    pub(crate) fn optional_bytes(
        &mut self,
        field: &'static str,
        max: usize,
    ) -> Result<Option<&'a [u8]>, BadFrame> {
        let head = self.head(field)?;
        if head == Header::Simple(simple::NULL) {
            return Ok(None);
        }
        let Header::Bytes(Some(length)) = head else { return Err(BadFrame::Shape { field }) };
        let content = self.content(length)?;
        if length > max {
            return Err(BadFrame::TooLarge { what: field, bytes: length, max });
        }
        Ok(Some(content))
    }

    pub(crate) fn fixed<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], BadFrame> {
        self.bytes(field, N)?.try_into().map_err(|_| BadFrame::Shape { field })
    }

    pub(crate) fn text(&mut self, field: &'static str, max: usize) -> Result<&'a str, BadFrame> {
        let Header::Text(Some(length)) = self.head(field)? else { return Err(BadFrame::Shape { field }) };
        let text =
            std::str::from_utf8(self.content(length)?).map_err(|_| BadFrame::NotCbor { what: self.what })?;
        if length > max {
            return Err(BadFrame::TooLarge { what: field, bytes: length, max });
        }
        Ok(text)
    }

    /// A map without entries.
    pub(crate) fn empty_map(&mut self, field: &'static str) -> Result<(), BadFrame> {
        if self.head(field)? == Header::Map(Some(0)) { Ok(()) } else { Err(BadFrame::Shape { field }) }
    }

    /// A nested array of at most `max` items, each read by `read`.
    pub(crate) fn list<T>(
        &mut self,
        field: &'static str,
        max: usize,
        mut read: impl FnMut(&mut Self) -> Result<T, BadFrame>,
    ) -> Result<Vec<T>, BadFrame> {
        let items = self.array_head(field)?;
        if items > max {
            return Err(BadFrame::TooMany { field, items, max });
        }
        // As many as there is room for: a head can promise more than came.
        let mut out = Vec::with_capacity(items.min(self.rest.len()));
        self.within(items, field, |inner| {
            while inner.left > 0 {
                out.push(read(inner)?);
            }
            Ok(())
        })?;
        Ok(out)
    }

    /// A nested array of a fixed shape.
    pub(crate) fn nested<T>(
        &mut self,
        field: &'static str,
        read: impl FnOnce(&mut Self) -> Result<T, BadFrame>,
    ) -> Result<T, BadFrame> {
        let items = self.array_head(field)?;
        self.within(items, field, read)
    }

    fn within<T>(
        &mut self,
        items: usize,
        field: &'static str,
        read: impl FnOnce(&mut Self) -> Result<T, BadFrame>,
    ) -> Result<T, BadFrame> {
        let outer = std::mem::replace(&mut self.left, items);
        let read = read(self)?;
        if std::mem::replace(&mut self.left, outer) > 0 {
            return Err(BadFrame::Shape { field });
        }
        Ok(read)
    }

    /// A nested array of at most `max` byte strings of at most `max_bytes` each.
    pub(crate) fn list_of_bytes(
        &mut self,
        field: &'static str,
        max: usize,
        max_bytes: usize,
    ) -> Result<Vec<Vec<u8>>, BadFrame> {
        self.list(field, max, |items| items.bytes(field, max_bytes).map(<[u8]>::to_vec))
    }

    /// There must be nothing left.
    pub(crate) fn end(self) -> Result<(), BadFrame> {
        let Self { what, rest, left } = self;
        if left > 0 {
            return Err(BadFrame::Shape { field: what });
        }
        if !rest.is_empty() {
            return Err(BadFrame::TrailingBytes { what, bytes: rest.len() });
        }
        Ok(())
    }
}
