//! A fleet in virtual time: the real coordinator core and the real agent cores, on a simulated clock and network.
//!
//! Time goes in windows as long as the shortest delay of the network: within one, nobody can hear of what another does, so
//! all devices and the coordinator work at once, and what they did is put in order afterwards. One seed is one schedule,
//! however many threads there are; openmls draws its own randomness, so bytes differ and their number does not.
//!
//! Deliberately absent: faults (`simulator/chaos` has them), sockets, databases, the time that computing takes.

mod crew;
mod device;
mod fleet;
mod host;
mod network;
mod queue;

use std::sync::Arc;
use std::time::Duration;

use fleetkey_coordinator_core::GroupStatus;
use fleetkey_report::memory;
use fleetkey_wire::DeviceId;

use self::crew::Crew;
use self::device::{Bundle, Deed, Device, Happening, Window};
pub use self::fleet::policy;
use self::host::{Host, since_began};
use self::network::Legs;
use self::queue::Queue;
use crate::scenario::{NetworkProfile, Scenario, Sleep};
use crate::world::{Looked, Until, Waited, World};

/// Something that is to happen.
#[derive(Debug)]
enum Due {
    ToDevice(u32, Happening),
    ToCoordinator(u32, Vec<u8>),
}

/// A device, with what is about to happen to it.
#[derive(Debug)]
struct Slot {
    device: Device,
    inbox: Vec<(u64, Happening)>,
    done: anyhow::Result<Vec<Deed>>,
}

/// A fleet in virtual time.
#[derive(Debug)]
pub struct VirtualWorld {
    seed: u64,
    time: u64,
    queue: Queue<Due>,
    bundle: Bundle,
    host: Host,
    crew: Arc<Crew>,
    slots: Vec<Option<Box<Slot>>>,
    sleeps: Vec<Option<Sleep>>,
    legs: Legs,
    broker_back_at: u64,
    device_busy: Duration,
    /// The same since it was settled last, on the thread that drives, by the clock.
    device_elapsed: Duration,
    active: Vec<u32>,
    said: Vec<(u64, u32, Vec<u8>)>,
}

impl VirtualWorld {
    /// The fleet of a scenario, with its groups and without devices.
    ///
    /// # Errors
    /// When the scenario asks for what is not there.
    pub fn new(scenario: &Scenario, seed: u64) -> anyhow::Result<Self> {
        let (bundle, setup) = fleet::found(scenario, seed)?;
        let legs = Legs::new(&scenario.network);
        let crew = Arc::new(Crew::new()?);
        let mut host = Host::start(setup, scenario.groups.len(), seed, Arc::clone(&crew))?;
        for group in &scenario.groups {
            let policy = fleet::policy(group);
            let id = host.command(0, &legs, |coordinator, now, rng| {
                coordinator.create_group(&group.name, policy, now, rng)
            })?;
            host.add_group(id);
        }
        Ok(Self {
            seed,
            time: 0,
            queue: Queue::default(),
            bundle,
            host,
            crew,
            slots: Vec::new(),
            sleeps: scenario.classes.iter().map(|class| class.sleep).collect(),
            legs,
            broker_back_at: 0,
            device_busy: Duration::ZERO,
            device_elapsed: Duration::ZERO,
            active: Vec::new(),
            said: Vec::new(),
        })
    }

    /// Lets time pass up to `end`, or until everybody is current.
    fn run_until(&mut self, end: u64, stops_when_current: bool) -> anyhow::Result<()> {
        loop {
            if stops_when_current && self.host.ledger.is_current() {
                return Ok(());
            }
            let next = self.queue.next_at().unwrap_or(u64::MAX).min(self.host.next_timer());
            if next >= end {
                self.time = self.time.max(end);
                return Ok(());
            }
            self.time = self.time.max(next);
            let window_end = (self.time + self.legs.shortest()).min(end);
            self.window(window_end)?;
            self.time = window_end;
        }
    }

    /// Everything that happens before `end`.
    fn window(&mut self, end: u64) -> anyhow::Result<()> {
        self.said.clear();
        self.active.clear();
        while let Some((at, due)) = self.queue.pop_before(end) {
            match due {
                Due::ToCoordinator(runner, payload) => self.said.push((at, runner, payload)),
                Due::ToDevice(runner, what) => {
                    if let Some(slot) = &mut self.slots[runner as usize] {
                        if slot.inbox.is_empty() {
                            self.active.push(runner);
                        }
                        slot.inbox.push((at, what));
                    }
                }
            }
        }
        self.active.sort_unstable();
        let mut slots: Vec<Box<Slot>> =
            self.active.iter().filter_map(|runner| self.slots[*runner as usize].take()).collect();
        let window =
            Window { end, legs: &self.legs, broker_back_at: self.broker_back_at, bundle: &self.bundle };
        let (host, said) = (&mut self.host, &self.said);
        let decide = || host.live(said, end, window.legs);
        let shared = self.crew.share(&mut slots, decide, |slot| slot.live(window));
        self.device_elapsed += shared.own_elapsed;
        self.device_busy += shared.helped_cpu;
        shared.done?;
        for (runner, mut slot) in std::mem::take(&mut self.active).into_iter().zip(slots) {
            let deeds = std::mem::replace(&mut slot.done, Ok(Vec::new()))?;
            self.host.links[runner as usize].session = slot.device.session;
            self.slots[runner as usize] = Some(slot);
            deeds.into_iter().for_each(|deed| self.perform(runner, deed, end));
        }
        self.pass_on();
        Ok(())
    }

    fn perform(&mut self, runner: u32, deed: Deed, at: u64) {
        match deed {
            Deed::Says { arrives, payload } => self.queue.push(arrives, Due::ToCoordinator(runner, payload)),
            Deed::Subscribes { topic } => self.host.listens(runner, topic),
            Deed::Unsubscribes { topic } => self.host.stops_listening(runner, topic),
            Deed::Leaves => self.host.leaves(runner),
            Deed::Later { at, what } => self.queue.push(at, Due::ToDevice(runner, what)),
            Deed::IsAnswered => {
                let id = self.host.links[runner as usize].id;
                self.host.ledger.answered(id, since_began(at));
            }
        }
    }

    /// What the coordinator has sent is on its way; and whoever it has revoked is off the broker.
    fn pass_on(&mut self) {
        for (at, runner, what) in std::mem::take(&mut self.host.deliveries) {
            self.queue.push(at, Due::ToDevice(runner, what));
        }
        for runner in std::mem::take(&mut self.host.revoked) {
            self.host.leaves(runner);
            if let Some(slot) = &mut self.slots[runner as usize] {
                slot.device.scrap();
                self.host.links[runner as usize].session = slot.device.session;
            }
        }
    }

    fn runners(&self, ids: &[DeviceId]) -> Vec<u32> {
        ids.iter().filter_map(|id| self.host.runners.get(id).copied()).collect()
    }
}

impl Slot {
    fn live(&mut self, window: Window<'_>) {
        self.done = self.device.live(&mut self.inbox, window);
    }
}

impl World for VirtualWorld {
    fn now(&self) -> Duration {
        since_began(self.time)
    }

    async fn enrol(&mut self, classes: &[usize]) -> anyhow::Result<Vec<DeviceId>> {
        let first = self.slots.len() as u64;
        let (seed, sleeps) = (self.seed, &self.sleeps);
        let mut made: Vec<(u64, usize, Option<Device>)> =
            (first..).zip(classes).map(|(number, class)| (number, *class, None)).collect();
        self.crew.share(
            &mut made,
            || (),
            |(number, class, device)| *device = Some(Device::new(seed, *number, sleeps[*class])),
        );
        let made: Vec<Device> = made.into_iter().filter_map(|(_, _, device)| device).collect();
        self.host.command(self.time, &self.legs, |coordinator, now, _| {
            (first..).zip(&made).try_for_each(|(number, device)| {
                coordinator.enroll_device(device.id, &format!("device-{number}"), device.public_key(), now)
            })
        })?;
        let ids = made.iter().map(|device| device.id).collect();
        for device in made {
            let runner = self.slots.len() as u32;
            self.host.add_link(device.id, seed);
            let slot = Slot { device, inbox: Vec::new(), done: Ok(Vec::new()) };
            self.slots.push(Some(Box::new(slot)));
            self.queue.push(self.time, Due::ToDevice(runner, Happening::PowerOn));
        }
        Ok(ids)
    }

    async fn bring_in(&mut self, group: usize, ids: &[DeviceId], due: Duration) -> anyhow::Result<()> {
        self.host.ledger.wanted(group, ids, due);
        let id = self.host.groups[group];
        self.host.command(self.time, &self.legs, |coordinator, now, rng| {
            coordinator.add_members(id, ids, now, rng)
        })?;
        self.pass_on();
        Ok(())
    }

    async fn revoke(&mut self, ids: &[DeviceId], reason: &str) -> anyhow::Result<()> {
        self.host.command(self.time, &self.legs, |coordinator, now, rng| {
            coordinator.revoke(ids, reason, now, rng)
        })?;
        self.pass_on();
        Ok(())
    }

    async fn evict(&mut self, group: usize, ids: &[DeviceId]) -> anyhow::Result<()> {
        let id = self.host.groups[group];
        self.host
            .command(self.time, &self.legs, |coordinator, now, rng| coordinator.evict(id, ids, now, rng))?;
        let now = since_began(self.time);
        ids.iter().for_each(|id| self.host.ledger.left(group, *id, now));
        self.pass_on();
        Ok(())
    }

    async fn rekey(&mut self, group: usize) -> anyhow::Result<()> {
        let id = self.host.groups[group];
        self.host.command(self.time, &self.legs, |coordinator, now, rng| coordinator.rekey(id, now, rng))?;
        self.pass_on();
        Ok(())
    }

    async fn rotate(&mut self, group: usize) -> anyhow::Result<()> {
        let id = self.host.groups[group];
        self.host.command(self.time, &self.legs, |coordinator, now, rng| coordinator.rotate(id, now, rng))?;
        self.pass_on();
        Ok(())
    }

    async fn power(&mut self, ids: &[DeviceId], is_on: bool) -> anyhow::Result<()> {
        for runner in self.runners(ids) {
            let Some(slot) = &mut self.slots[runner as usize] else { continue };
            let what = if is_on {
                self.host.ledger.back(slot.device.id, since_began(self.time));
                Happening::PowerOn
            } else {
                Happening::PowerOff
            };
            self.queue.push(self.time, Due::ToDevice(runner, what));
        }
        Ok(())
    }

    async fn reconnect(&mut self, _: &[DeviceId], _: usize) -> anyhow::Result<Option<Vec<Duration>>> {
        Ok(None)
    }

    async fn restart_broker(&mut self, away: Duration) -> anyhow::Result<()> {
        self.broker_back_at = self.time + away.as_millis() as u64;
        self.host.broker_restarts(self.broker_back_at);
        for runner in 0..self.slots.len() as u32 {
            let Some(slot) = &mut self.slots[runner as usize] else { continue };
            if slot.device.is_on_the_network() {
                self.host.ledger.back(slot.device.id, since_began(self.broker_back_at));
                self.queue.push(self.time, Due::ToDevice(runner, Happening::Cut));
            }
        }
        Ok(())
    }

    async fn network(&mut self, profile: &NetworkProfile) -> anyhow::Result<()> {
        self.legs = Legs::new(profile);
        Ok(())
    }

    async fn cells(&mut self, group: usize) -> anyhow::Result<Vec<Vec<DeviceId>>> {
        let id = self.host.groups[group];
        self.host.look(self.time, |coordinator, _| {
            let mut cells = std::collections::BTreeMap::<_, Vec<DeviceId>>::new();
            for member in coordinator.members(id) {
                if let fleetkey_coordinator_core::Place::In { cell } = member.place {
                    cells.entry(cell).or_default().push(member.device);
                }
            }
            cells.into_values().collect()
        })
    }

    async fn shape(&mut self) -> anyhow::Result<Vec<GroupStatus>> {
        self.host.look(self.time, |coordinator, now| coordinator.group_statuses(now))
    }

    async fn wait(&mut self, until: Until) -> anyhow::Result<Waited> {
        let (end, stops_when_current) = match until {
            Until::Time(end) => (end, false),
            Until::Current { deadline } => (deadline, true),
        };
        let crew = Arc::clone(&self.crew);
        let (run, share) = crew.drive(|| self.run_until(end.as_millis() as u64, stops_when_current));
        run?;
        self.device_busy += std::mem::take(&mut self.device_elapsed).mul_f64(share);
        self.host.settle(share);
        Ok(self.host.ledger.take())
    }

    async fn look(&mut self) -> anyhow::Result<Looked> {
        let status = self.host.look(self.time, |coordinator, now| coordinator.group_statuses(now))?;
        let tallies = || self.slots.iter().flatten().map(|slot| slot.device.tally);
        Ok(Looked {
            members: status.iter().map(|group| group.members).sum(),
            wanted: status.iter().map(|group| group.wanted).sum(),
            stragglers: status.iter().map(|group| group.stragglers).sum(),
            cells: status.iter().map(|group| group.cells.len()).sum(),
            received_bytes: tallies().map(|tally| tally.received_bytes).collect(),
            sent_bytes: tallies().map(|tally| tally.sent_bytes).collect(),
            messages: tallies().map(|tally| tally.messages).sum(),
            coordinator_cpu: self.host.busy,
            device_cpu: self.device_busy,
            broker_cpu: None,
            memory_bytes: memory::resident_bytes().unwrap_or(0),
            refused: self.host.refused + tallies().map(|tally| tally.refused).sum::<u64>(),
        })
    }
}
