//! An agent and its store: each input is one transaction, stored before anything is done.
//!
//! When it cannot be stored, memory is ahead of the store: the agent is dropped and loaded again, and nothing of what
//! it asked for is done. Leaves connections and clocks to the shell.

use fleetkey_wire::Now;
use rand_core::CryptoRngCore;

use crate::agent::{Agent, LoadError};
use crate::config::AgentConfig;
use crate::effects::{Effects, Input, Output};
use crate::refused::Refused;
use crate::store::{Store, StoreError};

/// An agent and its store.
#[derive(Debug)]
pub struct Keeper<S> {
    agent: Agent,
    config: AgentConfig,
    store: S,
}

/// What an input led to, and is stored.
#[derive(Debug)]
pub struct Kept {
    /// What to do now, in order.
    pub outputs: Vec<Output>,
    /// Why the input was refused, if it was.
    pub refused: Option<Refused>,
}

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Its store cannot be read, or not be written.
    #[error("key store: {0}")]
    Store(#[from] StoreError),
    /// What is stored, or configured, does not make sense.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// An input was not stored, and has not happened: the agent is as it is stored, and has lost its connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotStored(pub StoreError);

impl<S: Store> Keeper<S> {
    /// Loads the agent that `store` describes.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub fn open(config: AgentConfig, mut store: S, now: Now) -> Result<Self, KeeperError> {
        let agent = load(&config, &mut store, now)?;
        Ok(Self { agent, config, store })
    }

    /// Gives the agent an input, and stores what it writes. `Ok(Err(_))` says that it could not be stored.
    ///
    /// # Errors
    /// [`KeeperError`], when the agent could not be loaded again after that: there is none any more.
    pub fn handle(
        &mut self,
        input: Input<'_>,
        now: Now,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<Result<Kept, NotStored>, KeeperError> {
        let Effects { writes, outputs, refused } = self.agent.handle(input, now, rng);
        if !writes.is_empty()
            && let Err(error) = self.store.commit(&writes)
        {
            self.agent = load(&self.config, &mut self.store, now)?;
            return Ok(Err(NotStored(error)));
        }
        Ok(Ok(Kept { outputs, refused }))
    }

    /// The agent.
    pub const fn agent(&self) -> &Agent {
        &self.agent
    }

    /// The agent, to seal and open with. Inputs go through [`Self::handle`].
    pub const fn agent_mut(&mut self) -> &mut Agent {
        &mut self.agent
    }

    /// Ends it, as a crash would: what is left is what was configured, and what is stored. [`Self::open`] takes both.
    pub fn into_parts(self) -> (AgentConfig, S) {
        (self.config, self.store)
    }
}

fn load(config: &AgentConfig, store: &mut impl Store, now: Now) -> Result<Agent, KeeperError> {
    let entries = store.load_all()?;
    let (agent, writes) = Agent::load(config.clone(), &entries, now)?;
    if !writes.is_empty() {
        store.commit(&writes)?;
    }
    Ok(agent)
}
