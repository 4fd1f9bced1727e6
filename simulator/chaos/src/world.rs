//! The world: what there is, and the loop in which time passes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::rc::Rc;

use fleetkey_wire::{DeviceId, GroupId, Topic};

use crate::device::Device;
use crate::dice::Dice;
use crate::fleet::Fleet;
use crate::host::Host;
use crate::hostile::Recorder;
use crate::model::{Broken, Model, Rule, Violation};
use crate::operator::Operator;
use crate::plan::Planned;
use crate::profile::Profile;
use crate::run::Figures;

/// A device, by its number: two may run under one id.
pub(crate) type Runner = usize;

/// Something that is to happen.
#[derive(Debug)]
pub(crate) enum Due {
    /// The act of this number.
    Act(usize),
    /// A message reaches the broker.
    AtBroker {
        topic: Topic,
        payload: Rc<[u8]>,
    },
    /// A message reaches a coordinator.
    AtHost {
        host: usize,
        life: u64,
        device: DeviceId,
        payload: Rc<[u8]>,
    },
    /// A message reaches a device, on this connection of it.
    AtDevice {
        runner: Runner,
        session: u64,
        topic: Topic,
        payload: Rc<[u8]>,
    },
    /// A subscription is granted.
    Granted {
        runner: Runner,
        session: u64,
        topic: Topic,
    },
    /// A coordinator has inputs, or its timer is due.
    HostStep {
        host: usize,
    },
    /// A coordinator's process starts.
    HostStarts {
        host: usize,
    },
    /// A coordinator connects.
    HostConnects {
        host: usize,
    },
    /// A copy of the coordinator is ended.
    CopyEnds {
        host: usize,
    },
    /// A device's timer.
    DeviceTimer {
        runner: Runner,
        stamp: u64,
    },
    /// A device's process starts.
    DeviceStarts {
        runner: Runner,
        life: u64,
    },
    /// A device tries to connect.
    DeviceConnects {
        runner: Runner,
    },
    /// A clone is found, and ended.
    CloneEnds {
        runner: Runner,
    },
    /// A command to one of several coordinators.
    Mistake {
        host: usize,
        number: u64,
    },
    /// Disks have room again.
    HostDiskFree {
        host: usize,
    },
    DeviceDiskFree {
        runner: Runner,
    },
    /// The operator looks at what is left to do.
    Operator,
    /// Everybody connects anew.
    Storm,
}

#[derive(Debug)]
struct Queued {
    at: u64,
    number: u64,
    due: Due,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// How the network is now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    pub(crate) lost_per_mille: u32,
    pub(crate) doubled_per_mille: u32,
    pub(crate) delay_milliseconds: u64,
}

impl Weather {
    pub(crate) const CALM: Self = Self { lost_per_mille: 0, doubled_per_mille: 0, delay_milliseconds: 50 };
}

/// Everything.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) profile: Profile,
    /// Milliseconds since the beginning.
    pub(crate) time: u64,
    queue: BinaryHeap<Reverse<Queued>>,
    queued: u64,
    pub(crate) plan: Vec<Planned>,
    pub(crate) fleet: Fleet,
    /// The coordinator, and then its copies.
    pub(crate) hosts: Vec<Host>,
    pub(crate) devices: Vec<Device>,
    pub(crate) runners: BTreeMap<DeviceId, Vec<Runner>>,
    pub(crate) subscribers: BTreeMap<Topic, BTreeSet<Runner>>,
    /// The groups, in the order in which the operator made them.
    pub(crate) groups: Vec<Option<GroupId>>,
    pub(crate) operator: Operator,
    pub(crate) weather: Weather,
    pub(crate) weather_dice: Dice,
    pub(crate) hostile_dice: Dice,
    pub(crate) recorder: Recorder,
    /// Frames for cells that the broker is yet to change.
    pub(crate) edits_to_come: u64,
    pub(crate) edit_dice: Dice,
    /// Since the last power cut.
    pub(crate) outage: crate::power::Outage,
    /// Every cell that there ever was.
    pub(crate) cells_ever: BTreeSet<Vec<u8>>,
    pub(crate) broker_back_at: u64,
    /// Whether there ever was a copy of the coordinator, which forks its cells.
    pub(crate) was_copied: bool,
    /// Whether the faults have stopped.
    pub(crate) is_healed: bool,
    pub(crate) model: Model,
    pub(crate) figures: Figures,
    pub(crate) violation: Option<Violation>,
}

impl World {
    pub(crate) fn new(seed: u64, profile: Profile, plan: Vec<Planned>, fleet: Fleet) -> Self {
        let weather = Weather {
            lost_per_mille: profile.lost_per_mille,
            doubled_per_mille: profile.doubled_per_mille,
            delay_milliseconds: profile.delay_milliseconds,
        };
        Self {
            seed,
            profile,
            time: 0,
            queue: BinaryHeap::new(),
            queued: 0,
            plan,
            fleet,
            hosts: Vec::new(),
            devices: Vec::new(),
            runners: BTreeMap::new(),
            subscribers: BTreeMap::new(),
            groups: Vec::new(),
            operator: Operator::default(),
            weather,
            weather_dice: Dice::of(seed, "weather", 0),
            hostile_dice: Dice::of(seed, "hostile", 0),
            recorder: Recorder::default(),
            edits_to_come: 0,
            edit_dice: Dice::of(seed, "edits", 0),
            outage: crate::power::Outage::default(),
            cells_ever: BTreeSet::new(),
            broker_back_at: 0,
            was_copied: false,
            is_healed: false,
            model: Model::default(),
            figures: Figures::default(),
            violation: None,
        }
    }

    /// Lets `due` happen in so many milliseconds.
    pub(crate) fn after(&mut self, milliseconds: u64, due: Due) {
        self.queued += 1;
        self.queue.push(Reverse(Queued { at: self.time + milliseconds, number: self.queued, due }));
    }

    /// Takes note of a broken rule; the first is what counts.
    pub(crate) fn judge(&mut self, judged: Broken) {
        if let Err((rule, what)) = judged {
            let at_milliseconds = self.time;
            self.violation.get_or_insert(Violation { rule, at_milliseconds, what });
        }
    }

    pub(crate) fn broken(&mut self, rule: Rule, what: String) {
        self.judge(Err((rule, what)));
    }

    /// Lets time pass until `end`, or until a rule is broken.
    pub(crate) fn run_until(&mut self, end: u64) {
        while self.violation.is_none() {
            match self.queue.peek() {
                Some(Reverse(next)) if next.at <= end => {}
                Some(_) | None => break,
            }
            let Some(Reverse(Queued { at, due, number })) = self.queue.pop() else { break };
            self.time = at;
            self.figures.steps += 1;
            self.trace(number, &due);
            self.happen(due);
        }
        self.time = self.time.max(end);
    }

    /// The schedule in one number, to compare two runs by; and for people to read.
    fn trace(&mut self, number: u64, due: &Due) {
        let kind = match due {
            Due::Act(_) => 1,
            Due::AtBroker { .. } => 2,
            Due::AtHost { .. } => 3,
            Due::AtDevice { .. } => 4,
            Due::Granted { .. } => 5,
            Due::HostStep { .. } => 6,
            Due::HostStarts { .. } => 7,
            Due::HostConnects { .. } => 8,
            Due::CopyEnds { .. } => 9,
            Due::DeviceTimer { .. } => 10,
            Due::DeviceStarts { .. } => 11,
            Due::DeviceConnects { .. } => 12,
            Due::CloneEnds { .. } => 13,
            Due::HostDiskFree { .. } => 14,
            Due::DeviceDiskFree { .. } => 15,
            Due::Operator => 16,
            Due::Storm => 17,
            Due::Mistake { .. } => 18,
        };
        for word in [self.time, number, kind] {
            self.figures.schedule = (self.figures.schedule ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Act(number) => self.act(number),
            Due::AtBroker { topic, payload } => self.at_broker(topic, &payload),
            Due::AtHost { host, life, device, payload } => self.at_host(host, life, device, &payload),
            Due::AtDevice { runner, session, topic, payload } => {
                self.at_device(runner, session, topic, &payload);
            }
            Due::Granted { runner, session, topic } => self.granted(runner, session, topic),
            Due::HostStep { host } => self.host_step(host),
            Due::HostStarts { host } => self.start_host(host),
            Due::HostConnects { host } => self.connect_host(host),
            Due::CopyEnds { host } => self.end_copy(host),
            Due::DeviceTimer { runner, stamp } => self.device_timer(runner, stamp),
            Due::DeviceStarts { runner, life } => self.start_device(runner, life),
            Due::DeviceConnects { runner } => self.connect_device(runner),
            Due::CloneEnds { runner } => self.end_clone(runner),
            Due::HostDiskFree { host } => self.hosts[host].disk.health().is_full.set(false),
            Due::DeviceDiskFree { runner } => self.devices[runner].disk.health().is_full.set(false),
            Due::Operator => self.operate(),
            Due::Storm => self.storm(),
            Due::Mistake { host, number } => self.mistake(host, number),
        }
    }
}
