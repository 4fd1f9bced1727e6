//! What the policy knows: revoked devices and the members of cells, kept up to date by [`PolicyUpdate`]s.
//!
//! Leaves the decisions to `decide` and the sharing to `handle`.

use std::collections::{BTreeMap, BTreeSet};

use fleetkey_wire::{CellId, DeviceId, FleetId};

use crate::decide::PayloadLimits;
use crate::update::PolicyUpdate;

/// Who may subscribe to a cell's topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum CellAccess {
    /// Its members, as the coordinator names them. Nothing is known, and no device admitted, before its first word.
    #[default]
    Members,
    /// Any device of the fleet that is not revoked: costs privacy of traffic volume, not keys.
    AnyDevice,
}

/// The state that decisions are made from.
#[derive(Debug, Clone)]
pub struct PolicyState {
    fleet: FleetId,
    access: CellAccess,
    limits: PayloadLimits,
    sequence: Option<u64>,
    revoked: BTreeSet<DeviceId>,
    cells: BTreeMap<CellId, BTreeSet<DeviceId>>,
}

/// What a broker must do to live sessions after an update.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effects {
    /// Devices whose sessions must be closed: they were revoked.
    pub close: BTreeSet<DeviceId>,
    /// Subscriptions to drop: the device is no longer in the cell.
    pub drop: BTreeSet<(CellId, DeviceId)>,
}

impl Effects {
    /// Nothing to do?
    pub fn is_empty(&self) -> bool {
        self.close.is_empty() && self.drop.is_empty()
    }
}

/// Updates were lost: the feeder must send a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutOfStep {
    /// Something else came before the first snapshot.
    #[error("update {got} came before any snapshot")]
    NoSnapshot {
        /// The update's number.
        got: u64,
    },
    /// There is a gap.
    #[error("update {got} came where {expected} was due")]
    Gap {
        /// The number that was due.
        expected: u64,
        /// The update's number.
        got: u64,
    },
}

impl PolicyState {
    /// A policy that knows nothing yet.
    pub fn new(fleet: FleetId, access: CellAccess) -> Self {
        Self {
            fleet,
            access,
            limits: PayloadLimits::default(),
            sequence: None,
            revoked: BTreeSet::new(),
            cells: BTreeMap::new(),
        }
    }

    /// The same with other limits on payloads.
    #[must_use]
    pub fn with_payload_limits(mut self, limits: PayloadLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Takes an update in. One that was taken in before changes nothing.
    ///
    /// # Errors
    /// Updates were lost in between; nothing has changed.
    pub fn apply(&mut self, update: PolicyUpdate) -> Result<Effects, OutOfStep> {
        let got = update.sequence();
        if !matches!(update, PolicyUpdate::Snapshot { .. }) {
            match self.sequence {
                None => return Err(OutOfStep::NoSnapshot { got }),
                Some(last) if got <= last => return Ok(Effects::default()),
                Some(last) if got != last + 1 => return Err(OutOfStep::Gap { expected: last + 1, got }),
                Some(_) => {}
            }
        }
        self.sequence = Some(got);
        let mut effects = Effects::default();
        match update {
            PolicyUpdate::Snapshot { revoked, cells, .. } => {
                for device in revoked {
                    self.revoke(device, &mut effects);
                }
                let before = std::mem::replace(&mut self.cells, cells);
                for (cell, members) in &before {
                    self.drop_leavers(*cell, members, &mut effects);
                }
            }
            PolicyUpdate::CellMembers { cell, members, .. } => {
                let before = self.cells.insert(cell, members).unwrap_or_default();
                self.drop_leavers(cell, &before, &mut effects);
            }
            PolicyUpdate::CellGone { cell, .. } => {
                let before = self.cells.remove(&cell).unwrap_or_default();
                self.drop_leavers(cell, &before, &mut effects);
            }
            PolicyUpdate::Revoked { device, .. } => self.revoke(device, &mut effects),
        }
        Ok(effects)
    }

    /// The fleet it is about.
    pub const fn fleet(&self) -> FleetId {
        self.fleet
    }

    /// Who may subscribe to cells.
    pub const fn access(&self) -> CellAccess {
        self.access
    }

    /// The largest payloads.
    pub const fn payload_limits(&self) -> &PayloadLimits {
        &self.limits
    }

    /// The number of the last update, or `None` before the first snapshot.
    pub const fn sequence(&self) -> Option<u64> {
        self.sequence
    }

    /// Is this device revoked?
    pub fn is_revoked(&self, device: DeviceId) -> bool {
        self.revoked.contains(&device)
    }

    /// Is this device in the cell?
    pub fn is_member(&self, cell: CellId, device: DeviceId) -> bool {
        self.cells.get(&cell).is_some_and(|members| members.contains(&device))
    }

    /// How many cells are known.
    pub fn cell_count(&self) -> usize {
        self.cells.len()
    }

    fn revoke(&mut self, device: DeviceId, effects: &mut Effects) {
        if self.revoked.insert(device) {
            effects.close.insert(device);
        }
    }

    fn drop_leavers(&self, cell: CellId, before: &BTreeSet<DeviceId>, effects: &mut Effects) {
        if self.access == CellAccess::AnyDevice {
            return;
        }
        let leavers = before.iter().filter(|device| !self.is_member(cell, **device));
        effects.drop.extend(leavers.map(|device| (cell, *device)));
    }
}
