//! A device without a process: its agent, what it stores in memory, and what it has to say.

use fleetkey_agent_core::{AgentConfig, Input, Keeper, MemoryStore, Output, Refused, Store as _};
use fleetkey_wire::keys::AppKeyLength;
use fleetkey_wire::{CellId, DeviceId, GroupId, Now, Topic};
use rand_core::OsRng;

use crate::scheme::{Stopped, failed};

/// What is derived from a group's secret, to be compared.
pub(super) const KEY_LABEL: &str = "peers";
pub(super) const KEY_BYTES: AppKeyLength = match AppKeyLength::new(32) {
    Some(length) => length,
    None => panic!("32 bytes can be derived"),
};

/// A device.
pub(super) struct Device {
    config: AgentConfig,
    keeper: Keeper<MemoryStore>,
    store: MemoryStore,
    cell: Option<CellId>,
    said: Vec<Vec<u8>>,
}

impl Device {
    /// Starts, and connects: it says its first hello.
    pub(super) fn start(config: AgentConfig, now: Now) -> Result<Self, Stopped> {
        Self::with(config, MemoryStore::default(), None, now)
    }

    fn with(
        config: AgentConfig,
        store: MemoryStore,
        cell: Option<CellId>,
        now: Now,
    ) -> Result<Self, Stopped> {
        let keeper = Keeper::open(config.clone(), store.clone(), now).map_err(failed("starting an agent"))?;
        let mut device = Self { config, keeper, store, cell, said: Vec::new() };
        device.feed(Input::Connected, now)?;
        Ok(device)
    }

    pub(super) fn id(&self) -> DeviceId {
        self.config.device
    }

    /// The cell that it is in, once it has joined.
    pub(super) const fn cell(&self) -> Option<CellId> {
        self.cell
    }

    /// What it says since it was last asked.
    pub(super) fn take_said(&mut self) -> Vec<(DeviceId, Vec<u8>)> {
        let id = self.id();
        self.said.drain(..).map(|payload| (id, payload)).collect()
    }

    /// One message, whatever its topic. Why it was refused, if it was.
    pub(super) fn hear(
        &mut self,
        topic: Topic,
        payload: &[u8],
        now: Now,
    ) -> Result<Option<Refused>, Stopped> {
        self.feed(Input::Message { topic, payload }, now)
    }

    fn feed(&mut self, input: Input<'_>, now: Now) -> Result<Option<Refused>, Stopped> {
        let doing = "running an agent";
        let kept =
            self.keeper.handle(input, now, &mut OsRng).map_err(failed(doing))?.map_err(failed(doing))?;
        let mut granted = Vec::new();
        for output in kept.outputs {
            match output {
                Output::Publish { payload, .. } => self.said.push(payload),
                Output::Subscribe { topic } => granted.push(topic),
                Output::Unsubscribe { .. } | Output::Event(_) => {}
            }
        }
        for topic in granted {
            if let Topic::Cell { cell, .. } = topic {
                self.cell = Some(cell);
            }
            self.feed(Input::Subscribed { topic }, now)?;
        }
        Ok(kept.refused)
    }

    /// Takes what was published on the topics that it subscribed to. The bytes of that. Measured.
    pub(super) fn take(&mut self, published: &[(Topic, Vec<u8>)], now: Now) -> Result<u64, Stopped> {
        let mut bytes = 0;
        for (topic, payload) in published {
            if !self.listens_to(*topic) {
                continue;
            }
            bytes += payload.len() as u64;
            if let Some(refused) = self.hear(*topic, payload, now)? {
                return Err(failed("taking a message")(refused));
            }
        }
        Ok(bytes)
    }

    fn listens_to(&self, topic: Topic) -> bool {
        match topic {
            Topic::Cell { cell, .. } => self.cell == Some(cell),
            Topic::Down { device, .. } => device == self.id(),
            Topic::Up { .. } => false,
        }
    }

    /// The same device a second time, from what it has stored.
    pub(super) fn copy(&self, now: Now) -> Result<Self, Stopped> {
        let doing = "copying a device";
        let entries = self.store.clone().load_all().map_err(failed(doing))?;
        // Loaded, so that a store of its own begins with all of it.
        let mut writes = fleetkey_agent_core::store::Writes::default();
        entries.into_iter().for_each(|(key, value)| writes.put(key, value));
        let mut store = MemoryStore::default();
        store.commit(&writes).map_err(failed(doing))?;
        Self::with(self.config.clone(), store, self.cell, now)
    }

    /// As a thief would: everything that was said to anybody, in order and then once more.
    pub(super) fn overhear(&mut self, published: &[(Topic, Vec<u8>)], now: Now) -> Result<(), String> {
        for (topic, payload) in published.iter().chain(published) {
            self.hear(*topic, payload, now).map_err(|why| why.to_string())?;
        }
        Ok(())
    }

    /// What an application is given.
    pub(super) fn key(&self, group: GroupId, now: Now) -> Result<Vec<u8>, Stopped> {
        let agent = self.keeper.agent();
        let (_, key) =
            agent.app_key(group, KEY_LABEL, &[], KEY_BYTES, now).map_err(failed("deriving a key"))?;
        Ok(key.to_vec())
    }

    pub(super) fn stored_bytes(&self) -> u64 {
        let entries = self.store.clone().load_all().unwrap_or_default();
        entries.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }
}
