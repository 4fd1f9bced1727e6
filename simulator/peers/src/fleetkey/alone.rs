//! Our coordinator by itself: real cells, and devices as key packages, on a store that is brought along.
//!
//! One whole cell and a few devices of others live, and each rekey is checked on them. What all the others would answer is not
//! sent. Leaves where it is stored, and what the figures are held against, to whoever asks.

use std::time::{Duration, Instant};

use fleetkey_coordinator_core::{Access, Setup, Store};
use fleetkey_wire::{CellId, DeviceId, Topic};

use super::onboarding::onboard;
use super::{Cells, Steps};
use crate::budget::Budget;
use crate::scheme::{Fleet as _, Stopped};

/// Longer than a coordinator keeps rows of messages that were sent.
const SETTLES_MILLISECONDS: u64 = 250;
/// Nobody waits for longer than a day.
const A_DAY: Duration = Duration::from_secs(86_400);

/// The coordinator of a fleet, without the fleet.
pub struct Alone {
    cells: Cells,
    onboarded_in: Duration,
    onboarding_cpu: Duration,
    /// One device of each cell but the one that lives, to be revoked.
    elsewhere: Vec<DeviceId>,
}

/// What one rekey took, and what it published.
#[derive(Debug, Clone, Copy)]
pub struct Rekeyed {
    /// Processor time by step.
    pub steps: Steps,
    /// Processor time for taking rows of sent messages off the store, later.
    pub clean_up: Duration,
    /// Messages.
    pub messages: usize,
    /// Their bytes, each message counted once.
    pub published_bytes: u64,
    /// The largest message to a cell that lost nobody.
    pub outside_bytes: usize,
    /// The largest message to a cell that did.
    pub inside_bytes: usize,
    /// Cells.
    pub cells: usize,
}

/// A rekey did not do its work, or could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CannotRevoke {
    /// It could not be made.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// A device that lives holds another key than the coordinator.
    #[error("device {device} does not hold the new key")]
    LeftBehind {
        /// The device.
        device: DeviceId,
    },
    /// The revoked device derives the new key.
    #[error("the revoked device has the new key")]
    ThiefHasTheKey,
}

impl Alone {
    /// Onboards so many devices into one group: each enrols, says hello and gives out key packages through a real agent, is
    /// added to a real cell, and is dropped. `told` hears how many there are by and by.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn onboard(
        devices: usize,
        store: Box<dyn Store + Send>,
        told: &mut dyn FnMut(usize),
    ) -> Result<Self, Stopped> {
        let began = Instant::now();
        let mut cells = onboard(devices, store, &Budget::of(A_DAY), told)?;
        let onboarding_cpu = cells.host.cpu();
        let mut seen = std::collections::BTreeSet::from([cells.cell]);
        let living: Vec<DeviceId> = cells.living.iter().map(super::device::Device::id).collect();
        let places = cells.host.places(cells.group)?;
        let elsewhere = places
            .into_iter()
            .filter(|(device, cell)| !living.contains(device) && seen.insert(*cell))
            .map(|(device, _)| device)
            .collect();
        Ok(Self { cells, onboarded_in: began.elapsed(), onboarding_cpu, elsewhere })
    }

    /// How long onboarding took, devices' work included.
    pub const fn onboarded_in(&self) -> Duration {
        self.onboarded_in
    }

    /// The coordinator's processor time for it.
    pub const fn onboarding_cpu(&self) -> Duration {
        self.onboarding_cpu
    }

    /// Devices that live: on them each rekey is checked.
    pub fn living(&self) -> usize {
        self.cells.living.len()
    }

    /// The coordinator's processor time for taking in one device's confirmation, as measured on those that live.
    pub const fn confirmation_cpu_seconds(&self) -> Option<f64> {
        self.cells.confirmation_cpu_seconds
    }

    /// Revokes a device: the first time one of the cell that lives, and then one of another cell each time.
    ///
    /// # Errors
    /// [`CannotRevoke`].
    pub fn revoke(&mut self) -> Result<Rekeyed, CannotRevoke> {
        let is_first = self.cells.turns == 0;
        match (is_first, self.elsewhere.pop()) {
            (false, Some(device)) => {
                let decided = self.cells.host.revoke(device)?;
                self.cells.publish(decided);
            }
            (true, _) | (false, None) => drop(self.cells.remove()?),
        }
        let rekeyed = self.follow()?;
        if is_first
            && self
                .cells
                .removed_derives()
                .is_ok_and(|key| Ok(key) == self.cells.host.key(self.cells.group).map_err(drop))
        {
            return Err(CannotRevoke::ThiefHasTheKey);
        }
        Ok(rekeyed)
    }

    /// Moves the group to a new key without anybody going: what a revocation costs without the MLS commit.
    ///
    /// # Errors
    /// [`CannotRevoke`].
    pub fn rekey(&mut self) -> Result<Rekeyed, CannotRevoke> {
        let decided = self.cells.host.rekey(self.cells.group)?;
        self.cells.publish(decided);
        self.follow()
    }

    /// Those that live take what was published, and confirm.
    fn follow(&mut self) -> Result<Rekeyed, CannotRevoke> {
        let cells = &mut self.cells;
        let key = cells.host.key(cells.group)?;
        for at in 0..cells.living.len() {
            cells.deliver(at)?;
            if cells.key_of(at)? != key {
                return Err(CannotRevoke::LeftBehind { device: cells.living[at].id() });
            }
        }
        let affected: Vec<CellId> = cells.access.iter().filter_map(cell_of).collect();
        let largest = |is_inside: bool| {
            let sizes = cells.published.iter().filter_map(|(topic, payload)| match topic {
                Topic::Cell { cell, .. } => (affected.contains(cell) == is_inside).then_some(payload.len()),
                Topic::Down { .. } | Topic::Up { .. } => None,
            });
            sizes.max().unwrap_or(0)
        };
        let mut rekeyed = Rekeyed {
            steps: cells.steps,
            clean_up: Duration::ZERO,
            messages: cells.published.len(),
            published_bytes: cells.published.iter().map(|(_, payload)| payload.len() as u64).sum(),
            outside_bytes: largest(false),
            inside_bytes: largest(true),
            cells: cells.sizes.len(),
        };
        rekeyed.clean_up = cells.host.wait(SETTLES_MILLISECONDS)?.steps.store;
        cells.settle()?;
        Ok(rekeyed)
    }

    /// Ends it, so that its store can be opened by somebody else. Who it was.
    pub fn end(self) -> Setup {
        self.cells.host.into_setup()
    }
}

const fn cell_of(access: &Access) -> Option<CellId> {
    match access {
        Access::CellMembers { cell, .. } | Access::CellGone { cell } => Some(*cell),
        Access::Revoked { .. } => None,
    }
}
