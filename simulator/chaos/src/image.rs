//! A fleet that is at rest already: made once, kept, and begun from again and again.
//!
//! Most worlds begin with one, so that their time goes into what goes wrong; the others bring their fleet in while
//! faults go on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use fleetkey_agent_core::Entries;
use fleetkey_coordinator_core::{MemoryStore, Policy};
use fleetkey_identity::IdentityKey;
use fleetkey_wire::{DeviceId, GroupId};

use crate::device::Mind;
use crate::dice::Dice;
use crate::disk::{CoordinatorDisk, DeviceDisk};
use crate::fleet::Fleet;
use crate::host::Host;
use crate::model::Voice;
use crate::operator::group_name;
use crate::profile::Profile;
use crate::rogue::Rogue;
use crate::world::World;

/// Fleets of different shapes.
const SHAPES: u64 = 6;
/// Of so many worlds, one begins with nothing.
const ONE_IN_BEGINS_COLD: u64 = 4;
/// How long a fleet takes to come to rest when nothing goes wrong.
const REST_MILLISECONDS: u64 = 15 * 60_000;

/// A fleet at rest.
#[derive(Debug)]
pub(crate) struct Image {
    shape: u64,
    pub(crate) time: u64,
    coordinator: MemoryStore,
    devices: Vec<(DeviceId, IdentityKey, Entries)>,
    groups: Vec<Option<GroupId>>,
    policies: Vec<Policy>,
}

/// One fleet, made by whoever needs it first.
type Slot = Arc<OnceLock<Option<Arc<Image>>>>;

static MADE: Mutex<BTreeMap<(u64, usize, bool), Slot>> = Mutex::new(BTreeMap::new());

/// The fleet that the world of `seed` begins with, if it begins with one.
pub(crate) fn of_seed(seed: u64, profile: &Profile, devices: usize) -> Option<Arc<Image>> {
    if seed.is_multiple_of(ONE_IN_BEGINS_COLD) || profile.is_plain {
        return None;
    }
    let key = (seed % SHAPES, devices, profile.is_guarded);
    let slot = Arc::clone(MADE.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default());
    slot.get_or_init(|| make(key.0, devices, key.2).map(Arc::new)).clone()
}

/// `None` when the fleet does not come to rest: the worlds that begin with nothing will tell why.
fn make(shape: u64, devices: usize, is_guarded: bool) -> Option<Image> {
    let calm = Profile { is_guarded, ..Profile::named("calm")? };
    let mut world = World::new(shape, calm, Vec::new(), Fleet::new(shape));
    world.weather = crate::world::Weather::CALM;
    world.begin(devices);
    world.run_until(REST_MILLISECONDS);
    if world.violation.is_some() || !world.is_operator_idle() {
        return None;
    }
    let coordinator = world.hosts.first()?.disk.image();
    Some(Image {
        shape,
        time: world.time,
        coordinator,
        devices: world
            .devices
            .iter()
            .map(|device| (device.id, device.identity.clone(), device.disk.image()))
            .collect(),
        groups: world.groups.clone(),
        policies: world.operator.policies.clone(),
    })
}

impl Image {
    /// Whose fleet it is.
    pub(crate) fn fleet(&self) -> Fleet {
        Fleet::new(self.shape)
    }

    /// Begins a world with it. Some of its devices have fallen into wrong hands.
    pub(crate) fn begin(&self, world: &mut World) {
        let mut dice = Dice::of(world.seed, "fleet shape", 0);
        world.time = self.time;
        let disk = CoordinatorDisk::holding(self.coordinator.clone());
        world.hosts.push(Host::new(Voice::Main, disk, Dice::of(world.seed, "host", 0), Default::default()));
        world.groups.clone_from(&self.groups);
        world.operator.policies.clone_from(&self.policies);
        for (id, identity, entries) in &self.devices {
            let number = world.devices.len() as u64;
            let mut own = Dice::of(world.seed, "device", number);
            let is_rogue = dice.below(100) < world.profile.hostile_devices_percent;
            let mind = if is_rogue {
                Mind::Rogue(Box::new(Rogue::new(&world.fleet, *id, identity, &mut own)))
            } else {
                Mind::Agent(None)
            };
            let disk = DeviceDisk::holding(entries.clone());
            world.run_device(*id, identity.clone(), mind, disk, own);
        }
        world.start_host(0);
        if let Some(coordinator) = world.hosts[0].writer.as_mut().and_then(|writer| writer.coordinator()) {
            for (number, group) in self.groups.iter().enumerate() {
                let found = coordinator.find_group(&group_name(number));
                debug_assert_eq!(found, *group, "the image is whole");
                let members = found.into_iter().flat_map(|group| coordinator.members(group));
                let members = members.map(|member| member.device).collect();
                world.operator.wanted.insert(number, members);
            }
        }
    }
}
