//! What a decision asks of the shell: store these rows, then do these things.
//!
//! The order is the whole point: nothing in [`Effects`] is done before its writes are committed, and when they
//! cannot be, the core is dropped and loaded again.

use fleetkey_wire::{CellId, DeviceId, GroupId, KeyEpoch, Reason, Topic};

use crate::store::Write;

/// A message to publish at QoS 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Where to.
    pub topic: Topic,
    /// What.
    pub payload: Vec<u8>,
    /// The row of the outbox that it settles, when it is one that must survive a crash.
    pub outbox: Option<u64>,
}

/// What the broker has to know. It must know it before the publishes that follow from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// These devices, and no others, are in the cell.
    CellMembers {
        /// The cell.
        cell: CellId,
        /// All of them, in order.
        members: Vec<DeviceId>,
    },
    /// The cell is no more.
    CellGone {
        /// The cell.
        cell: CellId,
    },
    /// The device may not connect any more.
    Revoked {
        /// The device.
        device: DeviceId,
    },
}

/// Something that people, metrics and simulations want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A group moved: a statement was signed and handed to every cell.
    Rekeyed {
        /// The group.
        group: GroupId,
        /// The key epoch of the statement.
        key_epoch: KeyEpoch,
        /// Why.
        reason: Reason,
        /// Cells it was wrapped for.
        cells: usize,
        /// Members it is meant for.
        members: usize,
    },
    /// A member proved to hold a key epoch for the first time.
    Confirmed {
        /// The group.
        group: GroupId,
        /// The device.
        device: DeviceId,
        /// The key epoch.
        key_epoch: KeyEpoch,
        /// Whether it has applied the newest statement of the group.
        is_current: bool,
    },
    /// Every member has applied the newest statement.
    AllConfirmed {
        /// The group.
        group: GroupId,
        /// The newest key epoch.
        key_epoch: KeyEpoch,
    },
    /// The deadline of a revocation was kept, or is over.
    Deadline {
        /// The group.
        group: GroupId,
        /// The key epoch that members are to hold.
        key_epoch: KeyEpoch,
        /// Members that have not proved to hold it: none when it was kept.
        missing: usize,
    },
    /// A device came into a group.
    Joined {
        /// The group.
        group: GroupId,
        /// The device.
        device: DeviceId,
        /// The cell.
        cell: CellId,
        /// Whether it was a member before, and lost its state.
        fresh: bool,
    },
    /// A device left a group.
    Left {
        /// The group.
        group: GroupId,
        /// The device.
        device: DeviceId,
    },
    /// A statement was sent again, to a device that had not confirmed it.
    Resent {
        /// The group.
        group: GroupId,
        /// The device.
        device: DeviceId,
    },
    /// A device showed by its hello that it missed something, and was brought up to date.
    CaughtUp {
        /// The group.
        group: GroupId,
        /// The device.
        device: DeviceId,
        /// By which means.
        by: CatchUp,
    },
    /// A device is put aside, as it may have been cloned.
    Quarantined {
        /// The device.
        device: DeviceId,
    },
    /// A device showed a genuine statement that this coordinator never made: it is a copy, or was rolled back,
    /// and issues nothing any more.
    Superseded {
        /// The device.
        device: DeviceId,
        /// The group.
        group: GroupId,
        /// The key epoch that the statement is on.
        key_epoch: KeyEpoch,
    },
}

/// The ways of catch-up, cheapest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CatchUp {
    /// The current statement with a fresh wrap.
    Statement,
    /// Missed commits again, then the statement.
    Replay,
    /// The Welcome again, then what followed it.
    Welcome,
    /// A fresh join.
    FreshJoin,
}

impl CatchUp {
    /// Its name in reports and counters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Statement => "statement",
            Self::Replay => "replay",
            Self::Welcome => "welcome",
            Self::FreshJoin => "fresh_join",
        }
    }
}

/// Everything that decisions ask of the shell, in the order in which to do it.
#[derive(Debug, Default)]
pub struct Effects {
    /// First: commit these, in one transaction.
    pub writes: Vec<Write>,
    /// Second: tell the broker.
    pub access: Vec<Access>,
    /// Third: publish these, in order.
    pub publishes: Vec<Publish>,
    /// Last: tell people.
    pub events: Vec<Event>,
}

impl Effects {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
            && self.access.is_empty()
            && self.publishes.is_empty()
            && self.events.is_empty()
    }
}
