//! Many devices on one connection, as a gateway has them: each with its own agent, its own keys and its own `up` and `down`.
//!
//! The broker lets it speak for them because its certificate is one of a broker (a relay, in the policy's words). Leaves to
//! the devices what is said.

use std::collections::BTreeMap;
use std::time::Instant;

use fleetkey_agent_core::Store;
use fleetkey_wire::{CellId, DeviceId, Topic};

use crate::alarms::Alarms;
use crate::device::Device;
use crate::rider::{Outbox, Rider};

/// Devices on one connection.
pub struct Gateway<S> {
    client_id: String,
    behind: Vec<Behind<S>>,
    by_id: BTreeMap<DeviceId, usize>,
    cells: BTreeMap<CellId, Taken>,
    alarms: Alarms,
    is_connected: bool,
    /// What the device wants that was spoken to last.
    wishes: Outbox,
}

struct Behind<S> {
    device: Device<S>,
    is_plugged: bool,
}

/// A cell that devices here are in.
#[derive(Default)]
struct Taken {
    by: Vec<usize>,
    is_granted: bool,
}

impl<S: Store> Gateway<S> {
    /// A gateway of this client id, which begins with `relay`, without devices.
    pub fn new(client_id: impl Into<String>) -> Self {
        Self {
            client_id: client_id.into(),
            behind: Vec::new(),
            by_id: BTreeMap::new(),
            cells: BTreeMap::new(),
            alarms: Alarms::default(),
            is_connected: false,
            wishes: Outbox::default(),
        }
    }

    /// Takes a device in, not plugged; answers with its number.
    pub fn add(&mut self, device: Device<S>) -> usize {
        let at = self.behind.len();
        self.by_id.insert(device.id(), at);
        self.behind.push(Behind { device, is_plugged: false });
        at
    }

    /// Its devices, in the order in which they came.
    pub fn devices(&self) -> impl Iterator<Item = &Device<S>> {
        self.behind.iter().map(|behind| &behind.device)
    }

    /// A device, by its number.
    pub fn device(&mut self, at: usize) -> Option<&mut Device<S>> {
        self.behind.get_mut(at).map(|behind| &mut behind.device)
    }
}

impl<S: Store + Send + 'static> Gateway<S> {
    /// Plugs a device in, or pulls its cable.
    pub fn plug(&mut self, at: usize, is_in: bool, out: &mut Outbox) {
        let Some(behind) = self.behind.get_mut(at) else { return };
        if std::mem::replace(&mut behind.is_plugged, is_in) == is_in || !self.is_connected {
            return;
        }
        if is_in {
            behind.device.connected(&mut self.wishes);
            return self.settle(at, out);
        }
        behind.device.disconnected(&mut self.wishes);
        self.wishes.clear();
        for topic in behind.device.topics() {
            self.give_up(at, topic, out);
        }
    }

    /// Does what the device wants that was spoken to last.
    fn settle(&mut self, at: usize, out: &mut Outbox) {
        loop {
            let Outbox { publishes, subscribes, unsubscribes } = std::mem::take(&mut self.wishes);
            for topic in unsubscribes.iter().filter_map(|topic| Topic::parse(topic).ok()) {
                self.give_up(at, topic, out);
            }
            out.publishes.extend(publishes);
            let mut has_all_along = Vec::new();
            for raw in subscribes {
                if let Ok(Topic::Cell { cell, .. }) = Topic::parse(&raw) {
                    let taken = self.cells.entry(cell).or_default();
                    let is_first = taken.by.is_empty();
                    if !taken.by.contains(&at) {
                        taken.by.push(at);
                    }
                    if taken.is_granted {
                        has_all_along.push(raw);
                        continue;
                    }
                    if !is_first {
                        continue;
                    }
                }
                out.subscribe(raw);
            }
            let Some(behind) = self.behind.get_mut(at) else { return };
            for topic in &has_all_along {
                behind.device.subscribed(topic, true, &mut self.wishes);
            }
            if self.wishes.is_empty() {
                break;
            }
        }
        self.schedule(at);
    }

    fn give_up(&mut self, at: usize, topic: Topic, out: &mut Outbox) {
        if let Topic::Cell { cell, .. } = topic {
            let Some(taken) = self.cells.get_mut(&cell) else { return };
            taken.by.retain(|other| *other != at);
            if !taken.by.is_empty() {
                return;
            }
            self.cells.remove(&cell);
        }
        out.unsubscribe(topic.to_string());
    }

    /// Speaks with a device, and does what it wants.
    fn speak(&mut self, at: usize, out: &mut Outbox, speak: impl FnOnce(&mut Device<S>, &mut Outbox)) {
        let Some(behind) = self.behind.get_mut(at).filter(|behind| behind.is_plugged) else { return };
        speak(&mut behind.device, &mut self.wishes);
        self.settle(at, out);
    }

    fn schedule(&mut self, at: usize) {
        if let Some(due) = self.behind.get(at).and_then(|behind| behind.device.next_timeout()) {
            self.alarms.set(at, due);
        }
    }

    fn takers(&self, cell: CellId) -> Vec<usize> {
        self.cells.get(&cell).map(|taken| taken.by.clone()).unwrap_or_default()
    }
}

impl<S: Store + Send + 'static> Rider for Gateway<S> {
    fn client_id(&self) -> String {
        self.client_id.clone()
    }

    fn connected(&mut self, out: &mut Outbox) {
        self.is_connected = true;
        for at in 0..self.behind.len() {
            self.speak(at, out, |device, wishes| device.connected(wishes));
        }
    }

    fn disconnected(&mut self, out: &mut Outbox) {
        self.is_connected = false;
        self.cells.clear();
        for at in 0..self.behind.len() {
            self.speak(at, out, |device, wishes| device.disconnected(wishes));
        }
    }

    fn subscribed(&mut self, topic: &str, is_granted: bool, out: &mut Outbox) {
        match Topic::parse(topic) {
            Ok(Topic::Down { device, .. }) => {
                if let Some(at) = self.by_id.get(&device).copied() {
                    self.speak(at, out, |device, wishes| device.subscribed(topic, is_granted, wishes));
                }
            }
            Ok(Topic::Cell { cell, .. }) => {
                if let Some(taken) = self.cells.get_mut(&cell) {
                    taken.is_granted = is_granted;
                }
                for at in self.takers(cell) {
                    self.speak(at, out, |device, wishes| device.subscribed(topic, is_granted, wishes));
                }
            }
            Ok(Topic::Up { .. }) | Err(_) => {}
        }
    }

    fn message(&mut self, topic: &str, payload: &[u8], out: &mut Outbox) {
        match Topic::parse(topic) {
            Ok(Topic::Down { device, .. }) => {
                if let Some(at) = self.by_id.get(&device).copied() {
                    self.speak(at, out, |device, wishes| device.message(topic, payload, wishes));
                }
            }
            Ok(Topic::Cell { cell, .. }) => {
                for at in self.takers(cell) {
                    self.speak(at, out, |device, wishes| device.message(topic, payload, wishes));
                }
            }
            Ok(Topic::Up { .. }) | Err(_) => {}
        }
    }

    fn timeout(&mut self, out: &mut Outbox) {
        let now = Instant::now();
        while let Some(at) = self.alarms.ring(now) {
            let Some(behind) = self.behind.get_mut(at) else { continue };
            let is_due = behind.device.next_timeout().is_some_and(|due| due <= now);
            if is_due {
                behind.device.timeout(&mut self.wishes);
                if !behind.is_plugged {
                    // There is nothing to say it on.
                    self.wishes.clear();
                }
            }
            self.settle(at, out);
        }
    }

    fn next_timeout(&self) -> Option<Instant> {
        self.alarms.next()
    }
}
