//! Fleetkey itself: the real coordinator core with its writer and its store in memory, and real agents.
//!
//! Every device enrols, says hello and gives out key packages through a real agent core, and is added to a real cell. One
//! whole cell, the one that devices are removed from, and a few devices of other cells live on; of the rest the
//! coordinator keeps everything, and the agents are dropped once they have been added.

pub(crate) mod alone;
mod coordinator;
mod device;
mod onboarding;

use std::collections::BTreeMap;

use fleetkey_coordinator_core::{Access, MemoryStore};
use fleetkey_report::timed;
use fleetkey_wire::{CellId, DeviceId, GroupId, Topic};

pub use self::coordinator::Steps;
use self::coordinator::{Decided, Host};
use self::device::Device;
use crate::budget::Budget;
use crate::scheme::{Fleet, Kind, Published, Scheme, Stopped, failed};

/// Fleetkey, with cells of its default size.
#[derive(Debug, Clone, Copy)]
pub struct Fleetkey;

impl Scheme for Fleetkey {
    fn name(&self) -> String {
        "Fleetkey".to_owned()
    }

    fn about(&self) -> &'static str {
        "The real coordinator core in cells of 64, deciding, storing in memory and encoding, with all its records and its audit \
         log. Every device enrolled, gave out key packages and was added through a real agent core; one whole cell, which \
         devices are removed from, and four devices of other cells live on as real agents, and their cost includes the \
         confirmation that no other scheme has."
    }

    fn is_ours(&self) -> bool {
        true
    }

    fn set_up(&self, devices: usize, budget: &Budget) -> Result<Box<dyn Fleet>, Stopped> {
        let onboarded = onboarding::onboard(devices, Box::<MemoryStore>::default(), budget, &mut |_| {})?;
        Ok(Box::new(onboarded))
    }
}

/// The coordinator, and the devices that live.
pub(crate) struct Cells {
    host: Host,
    group: GroupId,
    /// How many devices are in each cell.
    sizes: BTreeMap<CellId, usize>,
    /// The cell that devices are removed from.
    cell: CellId,
    /// Those of it first. The last of them go after the first removal.
    living: Vec<Device>,
    /// The device that is removed first, as it was before.
    thief: Device,
    /// What was published last.
    published: Vec<(Topic, Vec<u8>)>,
    /// Whose cells it was about.
    access: Vec<Access>,
    /// What it has cost.
    steps: Steps,
    turns: usize,
    confirmation_cpu_seconds: Option<f64>,
}

const INSIDE: usize = 0;
const OUTSIDE: usize = 1;

impl Cells {
    /// First the one that lives on as a thief, then the last living device of its cell.
    fn next_to_go(&mut self) -> Result<DeviceId, Stopped> {
        self.turns += 1;
        if self.turns == 1 {
            return Ok(self.thief.id());
        }
        let inside = self.living.iter().filter(|device| device.cell() == Some(self.cell)).count();
        match inside.checked_sub(1) {
            Some(last) if last > 0 => Ok(self.living.remove(last).id()),
            Some(_) | None => Err(failed("removing")("the cell is too small for so many removals")),
        }
    }

    fn publish(&mut self, decided: Decided) {
        onboarding::learn(&mut self.sizes, &decided.access);
        (self.published, self.access, self.steps) = (decided.messages, decided.access, decided.steps);
    }
}

impl Fleet for Cells {
    fn remove(&mut self) -> Result<Published, Stopped> {
        let gone = self.next_to_go()?;
        let decided = self.host.revoke(gone)?;
        self.publish(decided);
        let bytes = self.published.iter().map(|(_, payload)| payload.len() as u64).sum();
        Ok(Published { messages: self.published.len() as u64, bytes })
    }

    fn sampled(&self) -> usize {
        self.living.len()
    }

    fn kinds(&self) -> Vec<Kind> {
        let inside = self.sizes.get(&self.cell).copied().unwrap_or(0);
        vec![
            Kind { name: "in the removed device's cell", devices: inside },
            Kind { name: "in other cells", devices: self.sizes.values().sum::<usize>() - inside },
        ]
    }

    fn kind_of(&self, sampled: usize) -> usize {
        if self.living[sampled].cell() == Some(self.cell) { INSIDE } else { OUTSIDE }
    }

    fn deliver(&mut self, sampled: usize) -> Result<u64, Stopped> {
        let now = self.host.now();
        self.living[sampled].take(&self.published, now)
    }

    fn key_of(&self, sampled: usize) -> Result<Vec<u8>, Stopped> {
        self.living[sampled].key(self.group, self.host.now())
    }

    fn coordinator_key(&self) -> Result<Vec<u8>, Stopped> {
        self.host.key(self.group)
    }

    /// Hears everything twice, the other cells' frames too, on a copy of what it had stored.
    fn removed_derives(&mut self) -> Result<Vec<u8>, String> {
        let now = self.host.now();
        self.thief.overhear(&self.published, now)?;
        self.thief.key(self.group, now).map_err(|why| why.to_string())
    }

    fn state_bytes(&self, sampled: usize) -> u64 {
        self.living[sampled].stored_bytes()
    }

    fn settle(&mut self) -> Result<(), Stopped> {
        let ups: Vec<_> = self.living.iter_mut().flat_map(Device::take_said).collect();
        let (cpu, heard) = timed(|| self.host.hear(&ups));
        heard?;
        if !ups.is_empty() {
            self.confirmation_cpu_seconds = Some(cpu.as_secs_f64() / ups.len() as f64);
        }
        self.host.pass(100);
        Ok(())
    }

    fn confirmation_cpu_seconds(&self) -> Option<f64> {
        self.confirmation_cpu_seconds
    }
}
