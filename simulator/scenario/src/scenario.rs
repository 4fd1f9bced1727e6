//! A scenario: a fleet, what is done to it in which order, and what is expected of it.
//!
//! Leaves the text that it is written in to `parse`, and doing it to `run`.

use std::time::Duration;

use fleetkey_wire::Suite;

/// A fleet, what is done to it, and what is expected of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// What it shows, in a sentence.
    pub about: String,
    /// The fleet.
    pub fleet: Fleet,
    /// Its groups: at least one.
    pub groups: Vec<Group>,
    /// Kinds of devices: at least one, and their shares are a whole together.
    pub classes: Vec<Class>,
    /// How the network is at first.
    pub network: NetworkProfile,
    /// What is done, in order.
    pub phases: Vec<Phase>,
}

/// What holds for the whole fleet.
#[derive(Debug, Clone, PartialEq)]
pub struct Fleet {
    /// Devices that there will be before any come later.
    pub devices: usize,
    /// How often a device says hello without being asked.
    pub hello_interval: Duration,
    /// After how long without an answer a device stops sealing.
    pub max_silence: Duration,
}

/// A group, and how it is run.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// The share of devices that are in it, 0 to 1.
    pub share: f64,
    /// Devices in a cell.
    pub cell_capacity: u16,
    /// The cipher suite.
    pub suite: Suite,
    /// How long a key is used; none for no rotations.
    pub rotation: Option<Duration>,
    /// How long a rotation waits for those who do not confirm.
    pub rotation_deadline: Duration,
    /// Every cell gets a commit with a path at least this often.
    pub cell_max_age: Duration,
    /// How long joins wait for each other.
    pub join_window: Duration,
    /// Whether joiners come in with a new key.
    pub rekeys_on_join: bool,
    /// How long the former key is accepted after a rekey.
    pub overlap: Duration,
}

/// A kind of device.
#[derive(Debug, Clone, PartialEq)]
pub struct Class {
    /// Its name.
    pub name: String,
    /// The share of devices that are of it, 0 to 1.
    pub share: f64,
    /// How it sleeps; none when it never does.
    pub sleep: Option<Sleep>,
}

/// How a device sleeps: off the network, its processor stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sleep {
    /// How long it is awake each time.
    pub awake: Duration,
    /// How long it is asleep after that.
    pub asleep: Duration,
    /// It wakes at multiples of this since the run began; nothing for any time.
    pub slot: Duration,
}

/// How the network between a device and the broker is, each way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NetworkProfile {
    /// The shortest delay: at least a millisecond.
    pub min_delay: Duration,
    /// The longest.
    pub max_delay: Duration,
    /// The share of messages that are lost, 0 to 1.
    pub loss: f64,
    /// The share of messages that arrive twice, 0 to 1.
    pub duplicates: f64,
}

impl Default for NetworkProfile {
    fn default() -> Self {
        let (min_delay, max_delay) = (Duration::from_millis(20), Duration::from_millis(80));
        Self { min_delay, max_delay, loss: 0.0, duplicates: 0.0 }
    }
}

/// Something that is done, and what is expected after it.
#[derive(Debug, Clone, PartialEq)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// What is done.
    pub act: Act,
    /// What is expected.
    pub targets: Targets,
}

/// What is done.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Devices are made, enrolled and brought into their groups.
    Onboard {
        /// How many; none for all that the fleet is to have.
        count: Option<usize>,
        /// How many a second; none for all at once.
        rate: Option<f64>,
    },
    /// Devices come and go, each by a Poisson process.
    Churn {
        /// For how long.
        lasts: Duration,
        /// New devices, a second.
        joins: f64,
        /// Devices that are taken out of their groups, a second.
        leaves: f64,
        /// Devices that are revoked, a second.
        revocations: f64,
    },
    /// Many devices are revoked in one command.
    Revoke {
        /// How many.
        count: Amount,
        /// Which.
        which: Which,
        /// Of which class only.
        class: Option<usize>,
    },
    /// Groups move to a new key.
    Rekey,
    /// Groups rotate.
    Rotate,
    /// Devices lose their power.
    PowerCut {
        /// What share of them.
        share: f64,
        /// For how long.
        lasts: Duration,
        /// Whether groups move to a new key in the middle of it.
        rekeys: bool,
    },
    /// The broker ends, and comes back without its sessions.
    RestartBroker {
        /// For how long it is away.
        away: Duration,
    },
    /// The network is another.
    Network(NetworkProfile),
    /// Time passes.
    Wait {
        /// How long.
        lasts: Duration,
    },
}

/// How many devices.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// So many.
    Count(usize),
    /// So large a share of those that there are, 0 to 1.
    Share(f64),
}

/// Which devices are meant by a number of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Any, by chance.
    Spread,
    /// As few cells as hold so many.
    SameCells,
    /// Those that came last.
    Newest,
}

/// What is expected of a phase.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Targets {
    /// Every device current, so long after the last thing that the phase did.
    pub current_within: Option<Duration>,
    /// Of a power cut: the slowest device, in times of what it takes the same devices to merely connect and subscribe again.
    pub reconnect_ratio_at_most: Option<f64>,
    /// The slowest device, from when it was due.
    pub latency_at_most: Option<Duration>,
    /// Bytes that any one device receives.
    pub bytes_per_device_at_most: Option<u64>,
    /// Bytes that a device receives and sends in a day, on average.
    pub bytes_per_device_and_day_at_most: Option<u64>,
    /// What deciding costs the coordinator.
    pub coordinator_cpu_at_most: Option<Duration>,
    /// From a revocation to the last device's new key.
    pub exposure_at_most: Option<Duration>,
    /// How long a key is in use.
    pub key_age_at_most: Option<Duration>,
}

impl Scenario {
    /// Changes how many devices there are. Counts in phases shrink with them, so that what is left of a large scenario is a
    /// small one of the same kind.
    pub fn scale_to(&mut self, devices: usize) {
        let by = devices as f64 / self.fleet.devices as f64;
        let scaled = |count: usize| ((count as f64 * by).round() as usize).max(1);
        for phase in &mut self.phases {
            match &mut phase.act {
                Act::Onboard { count: Some(count), .. } => *count = scaled(*count),
                Act::Revoke { count: Amount::Count(count), .. } => *count = scaled(*count),
                Act::Churn { joins, leaves, revocations, .. } => {
                    *joins *= by;
                    *leaves *= by;
                    *revocations *= by;
                }
                Act::Onboard { count: None, .. }
                | Act::Revoke { count: Amount::Share(_), .. }
                | Act::Rekey
                | Act::Rotate
                | Act::PowerCut { .. }
                | Act::RestartBroker { .. }
                | Act::Network(_)
                | Act::Wait { .. } => {}
            }
        }
        self.fleet.devices = devices;
    }
}
