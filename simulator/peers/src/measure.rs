//! Measures a scheme at a size: several removals, one after the other, each checked.
//!
//! A figure counts only when the removal did its work: every sampled device that remains holds the coordinator's new
//! key, and the removed device, by its own code, does not. Leaves the table to `report`.

use std::time::{Duration, Instant};

use fleetkey_report::{median_seconds, timed};
use serde::{Deserialize, Serialize};

use crate::budget::Budget;
use crate::scheme::{Fleet, Kind, Scheme, Stopped};

/// What one removal costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The coordinator's CPU time, median over the removals.
    pub coordinator_cpu_seconds: f64,
    /// Messages that it published.
    pub published_messages: u64,
    /// Their bytes, each message counted once.
    pub published_bytes: u64,
    /// What reached a device: the median over all that remain.
    pub device_bytes_median: u64,
    /// What reached a device: the most.
    pub device_bytes_max: u64,
    /// A device's CPU time: the median over all that remain.
    pub device_cpu_seconds_median: f64,
    /// A device's CPU time: the most, as the median of the kind of devices that has the most.
    pub device_cpu_seconds_max: f64,
    /// What a device has stored: the largest of those sampled.
    pub device_state_bytes: u64,
    /// The same by kinds of devices.
    pub kinds: Vec<KindFigures>,
    /// Removals that were measured.
    pub removals: usize,
    /// Devices that took part in truth; for the others the coordinator holds all that it would.
    pub sampled_devices: usize,
    /// The coordinator's CPU time for one device's confirmation, which is not in the figure above; none where there are
    /// no confirmations.
    pub confirmation_cpu_seconds: Option<f64>,
    /// What the removed device's own code said.
    pub removed_device_said: String,
    /// Wall-clock time of the set-up, on all cores.
    pub set_up_seconds: f64,
}

/// What one removal costs devices of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KindFigures {
    /// Which they are.
    pub kind: String,
    /// How many remain.
    pub devices: usize,
    /// How many of them took part.
    pub sampled: usize,
    /// What reached each: the most.
    pub bytes: u64,
    /// CPU time, median over devices and removals.
    pub cpu_seconds: f64,
}

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
pub enum NoFigures {
    /// The scheme does not get there.
    #[error("not reached: {0}")]
    NotReached(#[from] Stopped),
    /// A removal did not do its work. A fault in here, or in the scheme.
    #[error("{scheme} at {devices} devices: {what}")]
    Broken {
        /// The scheme.
        scheme: String,
        /// The size.
        devices: usize,
        /// What should have been otherwise.
        what: String,
    },
}

/// What was seen of one kind of devices.
#[derive(Debug)]
struct Seen {
    kind: Kind,
    sampled: usize,
    cpu: Vec<Duration>,
    bytes: u64,
}

/// Measures up to `removals` removals; fewer when the budget is used up after the first.
///
/// # Errors
/// [`NoFigures`].
pub fn measure(
    scheme: &dyn Scheme,
    devices: usize,
    removals: usize,
    budget: &Budget,
) -> Result<Figures, NoFigures> {
    let broken = |what: String| NoFigures::Broken { scheme: scheme.name(), devices, what };
    let started = Instant::now();
    let mut fleet = scheme.set_up(devices, budget)?;
    let set_up_seconds = started.elapsed().as_secs_f64();
    budget.check(|| "the set-up".to_owned())?;

    let mut coordinator = Vec::new();
    let mut published = None;
    let mut seen: Vec<Seen> = Vec::new();
    let mut removed_device_said = String::new();
    let mut key = fleet.coordinator_key()?;
    for turn in 0..removals.max(1) {
        let (cpu, of_turn) = timed(|| fleet.remove());
        let of_turn = of_turn?;
        coordinator.push(cpu);
        published.get_or_insert(of_turn);
        if turn == 0 {
            seen = (fleet.kinds().into_iter().enumerate())
                .map(|(number, kind)| {
                    let sampled = (0..fleet.sampled()).filter(|at| fleet.kind_of(*at) == number).count();
                    Seen { kind, sampled, cpu: Vec::new(), bytes: 0 }
                })
                .collect();
        }
        for at in 0..fleet.sampled() {
            let (cpu, bytes) = timed(|| fleet.deliver(at));
            let of_kind = &mut seen[fleet.kind_of(at)];
            of_kind.cpu.push(cpu);
            of_kind.bytes = of_kind.bytes.max(bytes?);
        }
        let before = std::mem::replace(&mut key, fleet.coordinator_key()?);
        check(fleet.as_ref(), &before, &key).map_err(broken)?;
        if turn == 0 {
            removed_device_said = match fleet.removed_derives() {
                Ok(derived) if derived == key => {
                    return Err(broken("the removed device has the new key".to_owned()));
                }
                Ok(_) => "it is left with a key that is not the group's".to_owned(),
                Err(why) => why,
            };
        }
        fleet.settle()?;
        if budget.is_over() {
            break;
        }
    }

    let kinds: Vec<KindFigures> = (seen.iter_mut())
        .map(|Seen { kind, sampled, cpu, bytes }| KindFigures {
            kind: kind.name.to_owned(),
            devices: kind.devices,
            sampled: *sampled,
            bytes: *bytes,
            cpu_seconds: median_seconds(cpu.iter().copied()),
        })
        .filter(|kind| kind.sampled > 0)
        .collect();
    let published = published.ok_or_else(|| broken("nothing was measured".to_owned()))?;
    let middle = |value: fn(&KindFigures) -> f64| weighted_median(&kinds, value);
    Ok(Figures {
        coordinator_cpu_seconds: median_seconds(coordinator.iter().copied()),
        published_messages: published.messages,
        published_bytes: published.bytes,
        device_bytes_median: middle(|kind| kind.bytes as f64) as u64,
        device_bytes_max: kinds.iter().map(|kind| kind.bytes).max().unwrap_or(0),
        device_cpu_seconds_median: middle(|kind| kind.cpu_seconds),
        device_cpu_seconds_max: kinds.iter().map(|kind| kind.cpu_seconds).fold(0.0, f64::max),
        device_state_bytes: (0..fleet.sampled()).map(|at| fleet.state_bytes(at)).max().unwrap_or(0),
        removals: coordinator.len(),
        sampled_devices: kinds.iter().map(|kind| kind.sampled).sum(),
        kinds,
        confirmation_cpu_seconds: fleet.confirmation_cpu_seconds(),
        removed_device_said,
        set_up_seconds,
    })
}

/// Whether the group has moved to a new key, and all who remain are with it.
fn check(fleet: &dyn Fleet, before: &[u8], key: &[u8]) -> Result<(), String> {
    if before == key {
        return Err("the key is the same as before".to_owned());
    }
    for at in 0..fleet.sampled() {
        let own = fleet.key_of(at).map_err(|why| format!("sampled device {at} has no key: {why}"))?;
        if own != key {
            return Err(format!("sampled device {at} has another key than the coordinator"));
        }
    }
    Ok(())
}

/// The value of the device in the middle of all that remain.
fn weighted_median(kinds: &[KindFigures], value: fn(&KindFigures) -> f64) -> f64 {
    let mut sorted: Vec<_> = kinds.iter().map(|kind| (value(kind), kind.devices)).collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let half = sorted.iter().map(|(_, devices)| devices).sum::<usize>().div_ceil(2);
    let mut before = 0;
    for (value, devices) in &sorted {
        before += devices;
        if before >= half {
            return *value;
        }
    }
    0.0
}
