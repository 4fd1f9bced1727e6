//! How bad a world is: how long its faults last, and how often each comes.

use serde::Serialize;

/// A world's temper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Profile {
    /// Its name.
    pub name: &'static str,
    /// How long faults go on, in minutes of simulated time.
    pub minutes: u64,
    /// What operators do in that time, apart from what begins the fleet.
    pub commands: u64,
    /// Processes that die: the coordinator's.
    pub coordinator_crashes: u64,
    /// Processes that die: devices'.
    pub device_crashes: u64,
    /// Disks that are full for a while, the coordinator's or a device's.
    pub full_disks: u64,
    /// Devices that sleep for minutes to hours, many cell epochs long; now and then most of the fleet at once.
    pub sleeps: u64,
    /// Devices that lose all they have stored.
    pub wipes: u64,
    /// Devices that are set back to an old image, or run beside it.
    pub images: u64,
    /// Brokers that restart and forget everything, and parts of the fleet that are cut off.
    pub outages: u64,
    /// Storms: everybody connects anew at once.
    pub storms: u64,
    /// Clocks that jump.
    pub clock_jumps: u64,
    /// Bursts of a hostile broker: replays, swapped topics, edited bytes; and messages withheld for long.
    pub hostile_broker: u64,
    /// Devices of a hundred that are hostile members and say whatever they like.
    pub hostile_devices_percent: u64,
    /// Of a hundred worlds, in so many the coordinator is restored from a backup: the whole fleet comes in anew.
    pub restores_percent: u64,
    /// Times at which the power of the whole fleet fails, and comes back at once.
    pub power_cuts: u64,
    /// Whether there is one group with the default policy; or several, with policies drawn from the seed.
    pub is_plain: bool,
    /// Whether the first group asks for an external pre-shared key, which devices are given at each start, and the
    /// coordinator after each restore.
    pub is_guarded: bool,
    /// Of a hundred worlds, in so many a copy of the coordinator runs beside it, or its disk is rolled back.
    pub copies_percent: u64,
    /// Of a thousand messages, so many are lost.
    pub lost_per_mille: u32,
    /// Of a thousand messages, so many come twice.
    pub doubled_per_mille: u32,
    /// The longest that a message takes, in milliseconds; each takes its own time, so they overtake each other.
    pub delay_milliseconds: u64,
}

impl Profile {
    /// Every profile, from calm to hell.
    pub fn all() -> [Self; 6] {
        [calm(), rough(), storm(), hell(), power_cut(), guarded()]
    }

    /// The profile of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|profile| profile.name == name)
    }
}

/// Nothing goes wrong.
fn calm() -> Profile {
    Profile {
        name: "calm",
        minutes: 120,
        commands: 20,
        coordinator_crashes: 0,
        device_crashes: 0,
        full_disks: 0,
        sleeps: 5,
        wipes: 0,
        images: 0,
        outages: 0,
        storms: 0,
        clock_jumps: 0,
        hostile_broker: 0,
        hostile_devices_percent: 0,
        restores_percent: 0,
        power_cuts: 0,
        is_plain: false,
        is_guarded: false,
        copies_percent: 0,
        lost_per_mille: 0,
        doubled_per_mille: 0,
        delay_milliseconds: 50,
    }
}

/// What a fleet on cellular links sees in a bad week.
fn rough() -> Profile {
    Profile {
        name: "rough",
        minutes: 240,
        commands: 25,
        coordinator_crashes: 4,
        device_crashes: 10,
        full_disks: 1,
        sleeps: 15,
        wipes: 2,
        images: 0,
        outages: 3,
        storms: 1,
        lost_per_mille: 30,
        doubled_per_mille: 10,
        delay_milliseconds: 2_000,
        ..calm()
    }
}

/// All that chance does, and no malice.
fn storm() -> Profile {
    Profile {
        name: "storm",
        minutes: 100,
        commands: 28,
        coordinator_crashes: 10,
        device_crashes: 30,
        full_disks: 5,
        sleeps: 20,
        wipes: 6,
        images: 4,
        outages: 8,
        storms: 3,
        clock_jumps: 4,
        restores_percent: 35,
        lost_per_mille: 80,
        doubled_per_mille: 50,
        delay_milliseconds: 3_000,
        ..rough()
    }
}

/// Everything, malice included.
fn hell() -> Profile {
    Profile {
        name: "hell",
        minutes: 60,
        commands: 15,
        device_crashes: 24,
        storms: 2,
        restores_percent: 25,
        hostile_broker: 25,
        hostile_devices_percent: 4,
        copies_percent: 25,
        ..storm()
    }
}

/// The same for a group with a pre-shared key.
fn guarded() -> Profile {
    Profile { name: "guarded", is_guarded: true, ..hell() }
}

/// The power of the whole fleet fails, and comes back at once.
fn power_cut() -> Profile {
    Profile {
        name: "power-cut",
        minutes: 30,
        commands: 2,
        sleeps: 0,
        power_cuts: 1,
        is_plain: true,
        ..calm()
    }
}
