//! Stored bytes: a version byte, fixed fields and length-prefixed byte strings, and a checksum.
//!
//! The checksum tells a damaged disk from a working one. It is no protection from anybody: whoever stores a
//! snapshot encrypts and authenticates it.

use fleetkey_wire::{CellEpoch, CellId, FleetId, GroupId, Suite};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::context::CellContext;
use crate::error::LocalError;
use crate::slots::Slots;

/// The first bytes of SHA-256 over everything before it.
const CHECKSUM_BYTES: usize = 8;

/// Writes stored bytes.
pub(crate) struct Writer(Zeroizing<Vec<u8>>);

impl Writer {
    /// For about `length` bytes; a good guess keeps secrets from being copied as the buffer grows.
    pub(crate) fn new(version: u8, length: usize) -> Self {
        let mut bytes = Vec::with_capacity(length + 64);
        bytes.push(version);
        Self(Zeroizing::new(bytes))
    }

    pub(crate) fn array(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn number(&mut self, number: u32) {
        self.array(&number.to_be_bytes());
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.number(u32::try_from(bytes.len()).expect("no stored value reaches 4 GiB"));
        self.array(bytes);
    }

    pub(crate) fn suite(&mut self, suite: Suite) {
        self.array(&suite.code().to_be_bytes());
    }

    pub(crate) fn context(&mut self, context: &CellContext) {
        self.array(context.fleet.as_bytes());
        self.array(context.group.as_bytes());
        self.array(context.cell.as_bytes());
    }

    pub(crate) fn slots(&mut self, slots: &Slots) {
        let slots = slots.iter();
        self.number(u32::try_from(slots.len()).expect("a group has a handful of slots"));
        for (key, value) in slots {
            self.bytes(key);
            self.bytes(value);
        }
    }

    pub(crate) fn finish(mut self) -> Zeroizing<Vec<u8>> {
        let checksum = Sha256::digest(&*self.0);
        self.array(&checksum[..CHECKSUM_BYTES]);
        self.0
    }
}

/// Reads stored bytes.
pub(crate) struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(what: &'static str, version: u8, bytes: &'a [u8]) -> Result<Self, LocalError> {
        let damaged = |reason: &str| LocalError::Damaged { what, reason: reason.to_owned() };
        match bytes.first() {
            None => return Err(damaged("it is empty")),
            Some(&got) if got != version => {
                return Err(LocalError::UnknownVersion { what, got, known: version });
            }
            Some(_) => {}
        }
        let (content, checksum) =
            bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or_else(|| damaged("it is cut off"))?;
        if Sha256::digest(content)[..CHECKSUM_BYTES] != *checksum {
            return Err(damaged("its checksum does not match"));
        }
        let rest = content.get(1..).ok_or_else(|| damaged("it is cut off"))?;
        Ok(Self { what, rest })
    }

    pub(crate) fn damaged(&self, reason: &str) -> LocalError {
        LocalError::Damaged { what: self.what, reason: reason.to_owned() }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], LocalError> {
        let (array, rest) =
            self.rest.split_first_chunk().ok_or_else(|| self.damaged("a field is cut off"))?;
        self.rest = rest;
        Ok(*array)
    }

    pub(crate) fn number(&mut self) -> Result<u32, LocalError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], LocalError> {
        let length = self.number()? as usize;
        let (bytes, rest) =
            self.rest.split_at_checked(length).ok_or_else(|| self.damaged("a field is cut off"))?;
        self.rest = rest;
        Ok(bytes)
    }

    pub(crate) fn suite(&mut self) -> Result<Suite, LocalError> {
        let code = self.array().map(u16::from_be_bytes)?;
        Suite::from_code(code).ok_or_else(|| self.damaged("its suite is unknown"))
    }

    pub(crate) fn context(&mut self) -> Result<CellContext, LocalError> {
        Ok(CellContext {
            fleet: FleetId::from_bytes(self.array()?),
            group: GroupId::from_bytes(self.array()?),
            cell: CellId::from_bytes(self.array()?),
        })
    }

    pub(crate) fn epoch(&mut self) -> Result<CellEpoch, LocalError> {
        self.array().map(u64::from_be_bytes).map(CellEpoch)
    }

    pub(crate) fn slots(&mut self) -> Result<Slots, LocalError> {
        let mut slots = Slots::default();
        for _ in 0..self.number()? {
            let key = self.bytes()?.to_vec();
            slots.insert(key, Zeroizing::new(self.bytes()?.to_vec()));
        }
        Ok(slots)
    }

    /// Nothing may be left over.
    pub(crate) fn finish(self) -> Result<(), LocalError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.damaged("something is left over")) }
    }
}
