//! A device in a thief's hands: everything it had stored, and everything that was ever said within its hearing.

use fleetkey_agent::{MemoryStore, Recorded, Store as _};
use fleetkey_agent_core::{Agent, AgentConfig, Entries, Input};
use fleetkey_wire::{DeviceId, Millis, Now, Topic};
use rand_core::OsRng;

/// What the thief works with.
#[derive(Debug)]
pub struct Thief {
    config: AgentConfig,
    entries: Entries,
}

impl Thief {
    /// Copies the device's store.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn copy(config: &AgentConfig, store: &MemoryStore) -> anyhow::Result<Self> {
        Ok(Self { config: config.clone(), entries: store.clone().load_all()? })
    }

    /// Which device it was.
    pub fn device(&self) -> DeviceId {
        self.config.device
    }

    /// Whether the copy, given every message of `overheard`, in order and then once more, opens `sealed`.
    ///
    /// # Errors
    /// When the copy cannot be brought to life.
    pub fn opens(&self, overheard: &[Recorded], sealed: &[u8]) -> anyhow::Result<bool> {
        let now = Now { mono: Millis(1_000), unix_seconds: 0 };
        let (mut agent, _) = Agent::load(self.config.clone(), &self.entries, now)?;
        agent.handle(Input::Connected, now, &mut OsRng);
        let down = Topic::Down { fleet: self.config.fleet, device: self.config.device };
        agent.handle(Input::Subscribed { topic: down }, now, &mut OsRng);
        for message in overheard.iter().chain(overheard) {
            let input = Input::Message { topic: message.topic, payload: &message.payload };
            agent.handle(input, now, &mut OsRng);
            if agent.open(sealed, b"", now).is_ok() {
                return Ok(true);
            }
        }
        Ok(agent.open(sealed, b"", now).is_ok())
    }
}
