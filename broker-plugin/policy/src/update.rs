//! How the coordinator tells a broker what its policy is.
//!
//! On a stream: one update per line, as JSON. The first is a [`PolicyUpdate::Snapshot`]; each of the others carries
//! the sequence number after that of the one before it. A blank line says that the stream is alive and nothing else.
//! Leaves to others how the stream travels.

use std::collections::{BTreeMap, BTreeSet};

use fleetkey_wire::{CellId, DeviceId};
use serde::{Deserialize, Serialize};

/// A change of the policy's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PolicyUpdate {
    /// Everything; replaces what was known. A revocation, once known, stays.
    Snapshot {
        /// Its place in the order of updates.
        sequence: u64,
        /// Every revoked device.
        revoked: BTreeSet<DeviceId>,
        /// Every cell and its members.
        cells: BTreeMap<CellId, BTreeSet<DeviceId>>,
    },
    /// A cell's members: all of them, not a difference.
    CellMembers {
        /// Its place in the order of updates.
        sequence: u64,
        /// The cell.
        cell: CellId,
        /// Who is in it now.
        members: BTreeSet<DeviceId>,
    },
    /// A cell is no more.
    CellGone {
        /// Its place in the order of updates.
        sequence: u64,
        /// The cell.
        cell: CellId,
    },
    /// A device's identity has ended.
    Revoked {
        /// Its place in the order of updates.
        sequence: u64,
        /// The device.
        device: DeviceId,
    },
}

impl PolicyUpdate {
    /// Its place in the order of updates.
    pub const fn sequence(&self) -> u64 {
        match self {
            Self::Snapshot { sequence, .. }
            | Self::CellMembers { sequence, .. }
            | Self::CellGone { sequence, .. }
            | Self::Revoked { sequence, .. } => *sequence,
        }
    }
}
