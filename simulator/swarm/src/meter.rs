//! What came and went, in messages and payload bytes.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// Messages of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Volume {
    /// How many.
    pub messages: u64,
    /// Their payloads, in bytes.
    pub bytes: u64,
}

impl Volume {
    pub(crate) fn count(&mut self, payload: &[u8]) {
        self.messages += 1;
        self.bytes += payload.len() as u64;
    }

    /// What was added since `earlier`.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self { messages: self.messages - earlier.messages, bytes: self.bytes - earlier.bytes }
    }
}

impl AddAssign for Volume {
    fn add_assign(&mut self, other: Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
    }
}

/// A device's messages, by what they came on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// On cell topics.
    pub cell: Volume,
    /// On its `down`.
    pub down: Volume,
    /// What it said, on its `up`.
    pub up: Volume,
}

impl Traffic {
    /// What it received, in bytes of payload.
    pub const fn received_bytes(&self) -> u64 {
        self.cell.bytes + self.down.bytes
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.cell += other.cell;
        self.down += other.down;
        self.up += other.up;
    }
}
