//! Healing: every cell gets a commit with a path at least every `cell_max_age`, and covers in it the Update
//! proposals that its members make when asked. A proposal dies with its epoch, on both sides.

use std::collections::{BTreeMap, BTreeSet};

use fleetkey_mls::MlsError;
use fleetkey_wire::error::Named;
use fleetkey_wire::{CellEpoch, CellId, DeviceId, DownBody, Millis, Now, Suite};
use rand_core::CryptoRngCore;

use super::commit::{CellPlan, Rekey};
use super::{Devices, Group};
use crate::context::Context;
use crate::error::UpRefused;

/// Updates in one commit: keeps its frame below 16 KiB at the default suite and capacity, and within what a frame may take
/// at all at the largest.
const fn updates_per_commit(suite: Suite) -> usize {
    match suite {
        Suite::Aes128Gcm | Suite::ChaCha20Poly1305 => 20,
        // An update takes 1.5 KB.
        Suite::XWingChaCha20Poly1305 => 6,
    }
}
/// Cells of one group that collect updates at the same time.
const CELLS_AT_ONCE: usize = 4;

/// Update proposals being collected for one cell.
#[derive(Debug)]
pub(crate) struct Renewal {
    /// When the commit is due, whoever has answered by then.
    pub(super) until: Millis,
    asked: BTreeSet<DeviceId>,
    updates: BTreeMap<DeviceId, Vec<u8>>,
}

impl Group {
    pub(super) fn renew_on_time(
        &mut self,
        context: &mut Context,
        devices: &mut Devices,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) {
        if context.is_superseded() {
            self.cells.values_mut().for_each(|cell| cell.renewal = None);
            return;
        }
        let due: Vec<CellId> = self
            .cells
            .values()
            .filter(|cell| {
                cell.renewal.as_ref().is_some_and(|renewal| {
                    renewal.until <= now.mono || renewal.updates.len() == renewal.asked.len()
                })
            })
            .map(super::Cell::id)
            .collect();
        for id in due {
            let updates = self.cells.get_mut(&id).and_then(|cell| cell.renewal.take());
            let updates = updates.map(|renewal| renewal.updates.into_iter().collect()).unwrap_or_default();
            let plan = CellPlan { updates, force_path: true, ..CellPlan::default() };
            if self.transact(context, devices, BTreeMap::from([(id, plan)]), Rekey::No, now, rng).is_err() {
                return;
            }
        }
        self.begin_renewals(context, devices, now);
    }

    fn begin_renewals(&mut self, context: &mut Context, devices: &mut Devices, now: Now) {
        let policy = self.record.policy;
        let updates_per_commit = updates_per_commit(policy.suite);
        let mut room =
            CELLS_AT_ONCE.saturating_sub(self.cells.values().filter(|cell| cell.renewal.is_some()).count());
        for (id, cell) in &mut self.cells {
            let is_due = now.unix_seconds >= cell.renewal_due(&policy);
            if room == 0 || !is_due || cell.renewal.is_some() {
                continue;
            }
            room -= 1;
            let members: Vec<DeviceId> = cell.managed.members().collect();
            let first =
                (cell.managed.epoch().0 as usize).wrapping_mul(updates_per_commit) % members.len().max(1);
            let mut asked = BTreeSet::new();
            for member in members.iter().cycle().skip(first).take(members.len()) {
                let Some(device) = devices.get_mut(member) else { continue };
                if asked.len() < updates_per_commit && device.is_online(context, now) {
                    device.say(context, &DownBody::RequestUpdate { cell: *id });
                    asked.insert(*member);
                }
            }
            let until = now.mono.plus(context.setup.timing.update_window_milliseconds);
            cell.renewal = Some(Renewal { until, asked, updates: BTreeMap::new() });
        }
    }

    /// Takes an Update proposal in, where it was asked for and can be covered.
    pub(crate) fn take_update(
        &mut self,
        device: DeviceId,
        id: CellId,
        epoch: CellEpoch,
        proposal: Vec<u8>,
    ) -> Result<(), UpRefused> {
        let refused = |why| UpRefused::Update { device, cell: id, why };
        let cell = self.cells.get_mut(&id).ok_or(UpRefused::NotInCell { device, cell: id })?;
        if !cell.managed.contains(device) {
            return Err(UpRefused::NotInCell { device, cell: id });
        }
        let current = cell.managed.epoch();
        if epoch != current {
            return Err(UpRefused::UpdateEpoch { device, cell: id, got: epoch, current });
        }
        let renewal = cell.renewal.as_mut().ok_or(refused("no update was asked for"))?;
        if !renewal.asked.contains(&device) {
            return Err(refused("no update was asked for"));
        }
        if renewal.updates.contains_key(&device) {
            return Err(refused("one is outstanding already"));
        }
        cell.managed.check_update(device, &proposal).map_err(|error| match error {
            MlsError::Refused(why) => refused(why.name()),
            MlsError::Local(_) => refused("cell_unreadable"),
        })?;
        renewal.updates.insert(device, proposal);
        Ok(())
    }
}
