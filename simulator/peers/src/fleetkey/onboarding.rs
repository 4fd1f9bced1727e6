//! Brings a fleet in, through real agents: each says hello, gives out key packages, and is added.
//!
//! In batches, as the coordinator adds them. All but the last batch are left alone once they have been added; of the last
//! one whole cell joins, and some more. The coordinator is started anew before the last batch, with the timing of
//! everyday: until then it does not wait for devices that will never answer.

use std::collections::BTreeMap;

use fleetkey_agent_core::AgentConfig;
use fleetkey_coordinator_core::{Access, Store, Timing};
use fleetkey_identity::IdentityKey;
use fleetkey_wire::{CellId, DeviceId, GroupId, Topic};
use rand_core::OsRng;
use rayon::prelude::*;

use super::Cells;
use super::coordinator::{Decided, Host, Steps};
use super::device::Device;
use crate::budget::Budget;
use crate::scheme::{Stopped, failed};

/// As many as the coordinator adds in one go.
const BATCH: usize = 512;
/// Devices of other cells that live.
const LIVING_OUTSIDE: usize = 4;
/// A little longer than joins wait for each other.
const WINDOW_MILLISECONDS: u64 = 1_100;
/// After this long without a word a device is offline, under [`hasty`].
const SILENCE_MILLISECONDS: u64 = 3_000;

/// After so many devices the coordinator is started anew: Welcomes that nobody answers are forgotten then.
const RESTART_AFTER: usize = 64 * 1_024;

/// Waits for nobody.
fn hasty() -> Timing {
    Timing {
        hello_interval_seconds: 1,
        in_flight_milliseconds: 1,
        resend_milliseconds: 1 << 40,
        resend_max_milliseconds: 1 << 40,
        ..Timing::default()
    }
}

/// A fleet of so many devices in one group. `told` hears how many there are by and by.
pub(crate) fn onboard(
    devices: usize,
    store: Box<dyn Store + Send>,
    budget: &Budget,
    told: &mut dyn FnMut(usize),
) -> Result<Cells, Stopped> {
    let mut host = Host::new(hasty(), store)?;
    let group = host.create_group()?;
    let last = devices.min(BATCH);
    let (mut added, mut restarted) = (0, 0);
    while added < devices - last {
        told(added);
        budget.check(|| format!("onboarding, {added} of {devices}"))?;
        // A batch that is not full comes first, so that the last has cells of its own.
        let batch = match (devices - last - added) % BATCH {
            0 => BATCH,
            rest => rest,
        };
        let (agents, asked) = greet(&mut host, group, batch)?;
        drop(exchange(&mut host, agents, asked)?);
        host.wait(WINDOW_MILLISECONDS)?;
        host.wait(SILENCE_MILLISECONDS)?;
        added += batch;
        if added - restarted >= RESTART_AFTER {
            restarted = added;
            host = host.restart(hasty())?.0;
        }
    }
    told(added);
    let (mut host, access) = host.restart(Timing::default())?;
    let mut sizes = BTreeMap::new();
    learn(&mut sizes, &access);
    let (agents, asked) = greet(&mut host, group, last)?;
    let agents = exchange(&mut host, agents, asked)?;
    let decided = host.wait(WINDOW_MILLISECONDS)?;
    budget.check(|| "letting the last batch in".to_owned())?;
    let cells = live(host, group, sizes, agents, decided)?;
    told(devices);
    Ok(cells)
}

type Agents = BTreeMap<DeviceId, Device>;

/// Enrols devices, lets them say hello, and wants them in the group. What the coordinator says to that.
fn greet(host: &mut Host, group: GroupId, count: usize) -> Result<(Agents, Decided), Stopped> {
    let identities: Vec<(DeviceId, IdentityKey)> = (0..count)
        .into_par_iter()
        .map(|_| (DeviceId::random(&mut OsRng), IdentityKey::generate(&mut OsRng)))
        .collect();
    let enrolled: Vec<_> =
        identities.iter().map(|(device, identity)| (*device, identity.public_key())).collect();
    host.enroll(&enrolled)?;
    let (fleet, now) = (host.fleet(), host.now());
    let (roots, coordinator_chain) = (host.roots(), host.chain());
    let started: Result<Vec<Device>, Stopped> = identities
        .into_par_iter()
        .map(|(device, identity)| {
            let (roots, coordinator_chain) = (roots.clone(), coordinator_chain.to_vec());
            Device::start(AgentConfig { fleet, device, identity, roots, coordinator_chain }, now)
        })
        .collect();
    let mut agents: Agents = started?.into_iter().map(|device| (device.id(), device)).collect();
    let ups: Vec<_> = agents.values_mut().flat_map(Device::take_said).collect();
    let mut asked = host.hear(&ups)?;
    let ids: Vec<DeviceId> = agents.keys().copied().collect();
    asked.messages.extend(host.add(group, &ids)?.messages);
    Ok((agents, asked))
}

/// Carries messages to and fro until nobody has anything to say.
fn exchange(host: &mut Host, mut agents: Agents, mut decided: Decided) -> Result<Agents, Stopped> {
    while !decided.messages.is_empty() {
        let now = host.now();
        let mut inboxes: BTreeMap<DeviceId, Vec<(Topic, Vec<u8>)>> = BTreeMap::new();
        for (topic, payload) in decided.messages {
            if let Topic::Down { device, .. } = topic {
                inboxes.entry(device).or_default().push((topic, payload));
            }
        }
        let ups: Result<Vec<Vec<_>>, Stopped> = (agents.iter_mut().collect::<Vec<_>>().into_par_iter())
            .filter_map(|(id, device)| Some((device, inboxes.get(id)?)))
            .map(|(device, messages)| {
                for (topic, payload) in messages {
                    device.hear(*topic, payload, now)?;
                }
                Ok(device.take_said())
            })
            .collect();
        let ups: Vec<_> = ups?.into_iter().flatten().collect();
        decided = if ups.is_empty() { return Ok(agents) } else { host.hear(&ups)? };
    }
    Ok(agents)
}

/// Picks those that live, lets them join and confirm, and drops the rest.
fn live(
    mut host: Host,
    group: GroupId,
    mut sizes: BTreeMap<CellId, usize>,
    mut agents: Agents,
    decided: Decided,
) -> Result<Cells, Stopped> {
    let mut of_cell: BTreeMap<CellId, Vec<DeviceId>> = BTreeMap::new();
    for access in &decided.access {
        if let Access::CellMembers { cell, members } = access {
            let here = members.iter().filter(|member| agents.contains_key(member));
            of_cell.insert(*cell, here.copied().collect());
        }
    }
    learn(&mut sizes, &decided.access);
    // A cell whose every device is in this batch, the fullest.
    let whole = of_cell.iter().filter(|(cell, here)| sizes.get(cell) == Some(&here.len()));
    let (cell, inside) = whole
        .max_by_key(|(_, here)| here.len())
        .map(|(cell, here)| (*cell, here.clone()))
        .ok_or_else(|| failed("letting the last batch in")("it has no cell of its own"))?;
    let outside =
        of_cell.iter().filter(|(other, _)| **other != cell).flat_map(|(_, here)| here.iter().copied());
    let chosen: Vec<DeviceId> = inside.iter().copied().chain(outside.take(LIVING_OUTSIDE)).collect();
    let living: Agents = chosen.iter().filter_map(|id| Some((*id, agents.remove(id)?))).collect();
    drop(agents);
    let mut living = exchange(&mut host, living, Decided { access: Vec::new(), ..decided })?;
    let now = host.now();
    let thief = inside.first().and_then(|id| living.remove(id));
    let thief = thief.ok_or_else(|| failed("letting the last batch in")("the cell is empty"))?;
    let inside = inside.iter().skip(1);
    let outside = chosen.iter().skip(1 + inside.len());
    let living: Vec<Device> = inside.chain(outside).filter_map(|id| living.remove(id)).collect();
    for device in living.iter().chain([&thief]) {
        device.key(group, now)?;
    }
    let thief = thief.copy(now)?;
    Ok(Cells {
        host,
        group,
        sizes,
        cell,
        living,
        thief,
        published: Vec::new(),
        access: Vec::new(),
        steps: Steps::default(),
        turns: 0,
        confirmation_cpu_seconds: None,
    })
}

/// Keeps account of how many devices are in each cell.
pub(super) fn learn(sizes: &mut BTreeMap<CellId, usize>, access: &[Access]) {
    for access in access {
        match access {
            Access::CellMembers { cell, members } => {
                sizes.insert(*cell, members.len());
            }
            Access::CellGone { cell } => {
                sizes.remove(cell);
            }
            Access::Revoked { .. } => {}
        }
    }
}
