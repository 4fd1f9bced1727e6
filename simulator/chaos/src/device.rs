//! A device's process: its agent on its disk, its connection, its deaths.

use std::rc::Rc;

use fleetkey_agent_core::{AgentConfig, Input, Keeper, Kept, Output, Refused, Status};
use fleetkey_identity::IdentityKey;
use fleetkey_wire::{BadWrap, DeviceId, GroupId, Named as _, Topic};

use crate::dice::Dice;
use crate::disk::DeviceDisk;
use crate::fleet::Clock;
use crate::model::{Holding, Rule};
use crate::operator::group_name;
use crate::rogue::Rogue;
use crate::world::{Due, Runner, World};

/// After a connection that was lost, or refused: at least so long, and up to three times as long.
const RECONNECT_MILLISECONDS: u64 = 2_000;

/// What runs on a device.
#[derive(Debug)]
pub(crate) enum Mind {
    /// The real agent, while its process runs.
    Agent(Option<Box<Keeper<DeviceDisk>>>),
    /// Somebody who has the device's key, and says what he likes.
    Rogue(Box<Rogue>),
}

/// A device that runs, or could.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) id: DeviceId,
    pub(crate) identity: IdentityKey,
    pub(crate) mind: Mind,
    pub(crate) disk: DeviceDisk,
    pub(crate) clock: Clock,
    pub(crate) dice: Dice,
    /// Counts the starts and the deaths of its process.
    pub(crate) life: u64,
    /// Counts its connections.
    pub(crate) session: u64,
    pub(crate) is_connected: bool,
    /// Off on purpose: asleep, without power, or a clone that has ended.
    pub(crate) is_off: bool,
    /// Cut off from the broker until then.
    pub(crate) cut_off_until: u64,
    /// The broker keeps everything from it until then.
    pub(crate) withheld_until: u64,
    /// An image of its disk, taken earlier.
    pub(crate) image: Option<fleetkey_agent_core::Entries>,
    /// Whether it was made from another device's image.
    pub(crate) is_clone: bool,
    /// When the last message that is on its way to it arrives.
    pub(crate) last_arrival: u64,
    timer_stamp: u64,
    connects_again: bool,
}

impl Device {
    /// Whether it is the honest, one and only process of its id.
    pub(crate) const fn is_honest(&self) -> bool {
        matches!(self.mind, Mind::Agent(_)) && !self.is_clone
    }

    /// Where its agent stands, while it runs.
    pub(crate) fn status(&self, time: u64) -> Option<Status> {
        match &self.mind {
            Mind::Agent(Some(keeper)) => Some(keeper.agent().status(self.clock.now(time))),
            Mind::Agent(None) | Mind::Rogue(_) => None,
        }
    }
}

impl World {
    /// A new device, not enrolled yet, whose process runs.
    pub(crate) fn add_device(&mut self, is_rogue: bool) -> Runner {
        let number = self.devices.len() as u64;
        let mut dice = Dice::of(self.seed, "device", number);
        let id = DeviceId::random(dice.rng());
        let identity = IdentityKey::generate(dice.rng());
        let mind = if is_rogue {
            Mind::Rogue(Box::new(Rogue::new(&self.fleet, id, &identity, &mut dice)))
        } else {
            Mind::Agent(None)
        };
        let disk = DeviceDisk::default();
        self.run_device(id, identity, mind, disk, dice)
    }

    /// A second process of a device, on a copy of its disk.
    pub(crate) fn add_clone(&mut self, of: Runner, image: fleetkey_agent_core::Entries) -> Runner {
        let dice = Dice::of(self.seed, "device", self.devices.len() as u64);
        let Device { id, identity, .. } = &self.devices[of];
        let (id, identity) = (*id, identity.clone());
        let runner = self.run_device(id, identity, Mind::Agent(None), DeviceDisk::holding(image), dice);
        self.devices[runner].is_clone = true;
        runner
    }

    pub(crate) fn run_device(
        &mut self,
        id: DeviceId,
        identity: IdentityKey,
        mind: Mind,
        disk: DeviceDisk,
        dice: Dice,
    ) -> Runner {
        let runner = self.devices.len();
        self.devices.push(Device {
            id,
            identity,
            mind,
            disk,
            clock: Clock::default(),
            dice,
            life: 0,
            session: 0,
            is_connected: false,
            is_off: false,
            cut_off_until: 0,
            withheld_until: 0,
            image: None,
            is_clone: false,
            last_arrival: 0,
            timer_stamp: 0,
            connects_again: false,
        });
        self.runners.entry(id).or_default().push(runner);
        self.after(0, Due::DeviceStarts { runner, life: 0 });
        runner
    }

    /// Starts a device's process from what it has stored.
    pub(crate) fn start_device(&mut self, runner: Runner, life: u64) {
        let device = &mut self.devices[runner];
        let runs = matches!(device.mind, Mind::Agent(Some(_)));
        if device.life != life || device.is_off || runs {
            return;
        }
        device.disk.health().revive();
        device.clock.boot(self.time);
        if let Mind::Agent(keeper) = &mut device.mind {
            let config = AgentConfig {
                fleet: self.fleet.id,
                device: device.id,
                identity: device.identity.clone(),
                roots: self.fleet.roots.clone(),
                coordinator_chain: self.fleet.chain.clone(),
            };
            match Keeper::open(config, device.disk.clone(), device.clock.now(self.time)) {
                Ok(opened) => *keeper = Some(Box::new(opened)),
                Err(fleetkey_agent_core::KeeperError::Store(_)) => {
                    // Its disk is full: it is tried again.
                    self.after(10_000, Due::DeviceStarts { runner, life });
                    return;
                }
                Err(error @ fleetkey_agent_core::KeeperError::Load(_)) => {
                    let what = format!("{} does not start: {error}", device.id);
                    return self.broken(Rule::StoreMakesSense, what);
                }
            }
        }
        if !self.give_psks(runner) {
            self.devices[runner].mind = Mind::Agent(None);
            self.after(10_000, Due::DeviceStarts { runner, life });
            return;
        }
        // What was stored counts, also where its process died before it knew.
        self.check_device(runner);
        self.schedule_device(runner);
        self.connect_soon(runner, 0);
    }

    /// Gives a device the pre-shared keys of the groups that it may come into, as whoever sets it up does. Whether they are
    /// stored.
    fn give_psks(&mut self, runner: Runner) -> bool {
        let psks = (0..self.groups.len()).filter_map(|group| Some((group_name(group), self.psk_of(group)?)));
        for (group, psk) in psks.collect::<Vec<_>>() {
            let device = &mut self.devices[runner];
            let Mind::Agent(Some(keeper)) = &mut device.mind else { return true };
            let input = Input::AddPsk { group: &group, psk: &psk };
            if !matches!(keeper.handle(input, device.clock.now(self.time), device.dice.rng()), Ok(Ok(_))) {
                return false;
            }
        }
        true
    }

    /// The process of a device ends, as in a crash.
    pub(crate) fn kill_device(&mut self, runner: Runner) {
        self.drop_session(runner);
        let device = &mut self.devices[runner];
        device.life += 1;
        if let Mind::Agent(keeper) = &mut device.mind {
            *keeper = None;
        }
    }

    /// It comes back in so many milliseconds.
    pub(crate) fn start_later(&mut self, runner: Runner, milliseconds: u64) {
        let life = self.devices[runner].life;
        self.after(milliseconds, Due::DeviceStarts { runner, life });
    }

    /// Tries to connect, not before so many milliseconds have passed.
    pub(crate) fn connect_soon(&mut self, runner: Runner, milliseconds: u64) {
        let device = &mut self.devices[runner];
        if !std::mem::replace(&mut device.connects_again, true) {
            let wait = milliseconds + device.dice.below(milliseconds.max(50) * 2);
            self.after(wait, Due::DeviceConnects { runner });
        }
    }

    pub(crate) fn connect_device(&mut self, runner: Runner) {
        let time = self.time;
        let device = &mut self.devices[runner];
        device.connects_again = false;
        let runs = !matches!(device.mind, Mind::Agent(None));
        if device.is_off || !runs || device.is_connected {
            return;
        }
        if time < device.cut_off_until || time < self.broker_back_at {
            let wait = RECONNECT_MILLISECONDS + device.dice.below(3 * RECONNECT_MILLISECONDS);
            return self.connect_soon(runner, wait);
        }
        device.session += 1;
        device.is_connected = true;
        self.figures.connections += 1;
        match &self.devices[runner].mind {
            Mind::Agent(_) => self.feed(runner, Input::Connected),
            Mind::Rogue(_) => self.rogue_connects(runner),
        }
    }

    /// The connection of a device is gone, and it does not know yet.
    fn drop_session(&mut self, runner: Runner) {
        let device = &mut self.devices[runner];
        device.is_connected = false;
        device.session += 1;
        for listeners in self.subscribers.values_mut() {
            listeners.remove(&runner);
        }
    }

    /// The connection of a device is lost; it connects again.
    pub(crate) fn disconnect(&mut self, runner: Runner) {
        if !self.devices[runner].is_connected {
            return;
        }
        self.drop_session(runner);
        if matches!(self.devices[runner].mind, Mind::Agent(Some(_))) {
            self.feed(runner, Input::Disconnected);
        }
        self.connect_soon(runner, RECONNECT_MILLISECONDS);
    }

    pub(crate) fn subscribe(&mut self, runner: Runner, topic: Topic) {
        let session = self.devices[runner].session;
        let wait = 1 + self.devices[runner].dice.below(self.weather.delay_milliseconds + 1);
        self.after(wait, Due::Granted { runner, session, topic });
    }

    pub(crate) fn granted(&mut self, runner: Runner, session: u64, topic: Topic) {
        if self.devices[runner].session != session {
            return;
        }
        self.subscribers.entry(topic).or_default().insert(runner);
        match &self.devices[runner].mind {
            Mind::Agent(_) => self.feed(runner, Input::Subscribed { topic }),
            Mind::Rogue(_) => self.rogue_subscribed(runner),
        }
    }

    pub(crate) fn at_device(&mut self, runner: Runner, session: u64, topic: Topic, payload: &Rc<[u8]>) {
        if self.devices[runner].session != session {
            return;
        }
        self.figures.delivered += 1;
        match &self.devices[runner].mind {
            Mind::Agent(_) => self.feed(runner, Input::Message { topic, payload }),
            Mind::Rogue(_) => self.rogue_hears(runner, topic, payload),
        }
    }

    pub(crate) fn device_timer(&mut self, runner: Runner, stamp: u64) {
        if self.devices[runner].timer_stamp == stamp {
            self.feed(runner, Input::Timeout);
        }
    }

    fn schedule_device(&mut self, runner: Runner) {
        let time = self.time;
        let device = &mut self.devices[runner];
        let Mind::Agent(Some(keeper)) = &device.mind else { return };
        let Some(at) = keeper.agent().poll_timeout() else { return };
        device.timer_stamp += 1;
        let (wait, stamp) = (device.clock.until(at, time), device.timer_stamp);
        self.after(wait, Due::DeviceTimer { runner, stamp });
    }

    /// Gives a device's agent an input, stores what it writes, and does what it asks for.
    pub(crate) fn feed(&mut self, runner: Runner, input: Input<'_>) {
        let time = self.time;
        let device = &mut self.devices[runner];
        let Mind::Agent(Some(keeper)) = &mut device.mind else { return };
        let commits = device.disk.health().commits();
        let handled = keeper.handle(input, device.clock.now(time), device.dice.rng());
        let has_stored = device.disk.health().commits() != commits;
        match handled {
            Ok(Ok(Kept { outputs, refused })) => {
                if let Some(refused) = &refused {
                    if let Refused::Wrap(BadWrap::DoesNotOpen { .. }) = refused
                        && let Input::Message { topic: topic @ Topic::Cell { .. }, payload } = input
                    {
                        self.check_genuine(runner, topic, payload);
                    }
                    *self.figures.device_refusals.entry(refused.name()).or_default() += 1;
                    if has_stored {
                        self.check_untouched(runner, refused.name());
                    }
                }
                if has_stored {
                    self.check_device(runner);
                }
                let dies_after =
                    if has_stored { self.devices[runner].disk.health().dies_after_messages() } else { None };
                self.may_be_back(runner);
                self.perform(runner, outputs, dies_after);
                if self.devices[runner].disk.health().is_dead() {
                    // Killed at its transaction, whatever it makes of that.
                    self.kill_device(runner);
                    self.start_later(runner, 1_000);
                }
            }
            Ok(Err(_)) => {
                if self.devices[runner].disk.health().is_dead() {
                    self.kill_device(runner);
                    self.start_later(runner, 1_000);
                } else {
                    self.drop_session(runner);
                    self.connect_soon(runner, RECONNECT_MILLISECONDS);
                }
                if has_stored {
                    self.check_device(runner);
                }
            }
            Err(_) if self.devices[runner].disk.health().is_dead() => {
                self.kill_device(runner);
                self.start_later(runner, 1_000);
            }
            Err(error) => {
                let what = format!("{} cannot go on: {error}", self.devices[runner].id);
                return self.broken(Rule::StoreMakesSense, what);
            }
        }
        self.schedule_device(runner);
    }

    fn perform(&mut self, runner: Runner, outputs: Vec<Output>, dies_after: Option<u32>) {
        let session = self.devices[runner].session;
        for (done, output) in outputs.into_iter().enumerate() {
            if dies_after.is_some_and(|messages| done as u32 >= messages) {
                break;
            }
            match output {
                Output::Publish { topic, payload } if self.devices[runner].is_connected => {
                    self.device_publishes(runner, topic, payload.into());
                }
                Output::Publish { .. } => {}
                Output::Subscribe { topic } => self.subscribe(runner, topic),
                Output::Unsubscribe { topic } => {
                    if let Some(listeners) = self.subscribers.get_mut(&topic) {
                        listeners.remove(&runner);
                    }
                }
                Output::Event(_) => {}
            }
        }
        if dies_after.is_some() && self.devices[runner].session == session {
            self.kill_device(runner);
            self.start_later(runner, 1_000);
        }
    }

    /// What the device shows must be what the model allows.
    pub(crate) fn check_device(&mut self, runner: Runner) {
        let device = &self.devices[runner];
        let Mind::Agent(Some(keeper)) = &device.mind else { return };
        let agent = keeper.agent();
        let groups: Vec<Holding> = agent
            .status(device.clock.now(self.time))
            .groups
            .into_iter()
            .map(|group| Holding {
                group: group.group,
                send: group.send,
                oldest: group.oldest,
                held: agent.commitments(group.group),
            })
            .collect();
        let judged = self.model.holds(runner, device.id, groups);
        self.judge(judged);
    }

    /// A frame that does not open was changed on its way, or made by a copy: the coordinator made none like it.
    fn check_genuine(&mut self, runner: Runner, topic: Topic, payload: &[u8]) {
        if !self.was_copied && self.hosts[0].is_its_own(topic, payload) {
            let what =
                format!("{} cannot open a frame on {topic}, which is genuine", self.devices[runner].id);
            self.broken(Rule::WhatIsSaidOpens, what);
        }
    }

    /// A refused input may leave evidence behind, and time that has passed; nothing else.
    fn check_untouched(&mut self, runner: Runner, refused: &str) {
        let touched = self.devices[runner].disk.touched();
        let allowed = |key: &String| key == "silence" || key.starts_with("evidence/");
        if let Some(key) = touched.iter().find(|key| !allowed(key)) {
            let what = format!("{} refused {refused}, and stored {key}", self.devices[runner].id);
            self.broken(Rule::BadInputCostsItsSender, what);
        }
    }

    /// The group that a device is in, of those that the operator made, by the number drawn for it.
    pub(crate) fn group_named(&self, number: u64) -> Option<(usize, GroupId)> {
        let made: Vec<(usize, GroupId)> =
            self.groups.iter().enumerate().filter_map(|(at, group)| Some((at, (*group)?))).collect();
        made.get((number % made.len().max(1) as u64) as usize).copied()
    }

    /// The device that a number drawn for a plan means: never a clone.
    pub(crate) fn device_named(&self, number: u64) -> Option<Runner> {
        let originals: Vec<Runner> =
            (0..self.devices.len()).filter(|runner| !self.devices[*runner].is_clone).collect();
        originals.get((number % originals.len().max(1) as u64) as usize).copied()
    }
}
