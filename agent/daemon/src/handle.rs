//! What a process asks of an agent that runs in it.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use fleetkey_agent_core::{CannotOpen, CannotSeal, Refused, Status};
use fleetkey_identity::BadCertificate;
use fleetkey_wire::keys::AppKeyLength;
use fleetkey_wire::payload::Opened;
use fleetkey_wire::{DeviceId, GroupId, KeyEpoch, Psk, PskId, Topic};
use tokio::sync::{broadcast, mpsc, oneshot};
use zeroize::Zeroizing;

use crate::task::AgentEvent;
use crate::traffic::{Meter, Recorded, Traffic};

/// The agent has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the agent has stopped")]
pub struct Stopped;

/// Why a call did not do what it was made for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError<E> {
    /// The agent has stopped.
    #[error("the agent has stopped")]
    Stopped,
    /// The agent says no.
    #[error(transparent)]
    Refused(E),
}

impl<E> From<Stopped> for CallError<E> {
    fn from(Stopped: Stopped) -> Self {
        Self::Stopped
    }
}

/// A running agent. Clones are handles to the same one; it stops when the last is gone.
#[derive(Clone)]
pub struct AgentHandle {
    pub(crate) device: DeviceId,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) events: broadcast::Sender<AgentEvent>,
    pub(crate) meter: Arc<Meter>,
}

/// Where the answer to a call goes.
type Reply<T, E> = oneshot::Sender<Result<T, E>>;

pub(crate) enum Command {
    Seal {
        group: GroupId,
        plaintext: Zeroizing<Vec<u8>>,
        context: Vec<u8>,
        sign: bool,
        reply: Reply<Vec<u8>, CannotSeal>,
    },
    Open {
        sealed: Vec<u8>,
        context: Vec<u8>,
        reply: Reply<Opened, CannotOpen>,
    },
    AppKey {
        group: GroupId,
        label: String,
        context: Vec<u8>,
        length: AppKeyLength,
        reply: Reply<(KeyEpoch, Zeroizing<Vec<u8>>), CannotSeal>,
    },
    KnowSender {
        chain: Vec<Vec<u8>>,
        reply: Reply<DeviceId, BadCertificate>,
    },
    Status {
        reply: oneshot::Sender<Status>,
    },
    Wait(Waiter),
    Leave {
        group: GroupId,
        reply: Reply<(), Refused>,
    },
    AddPsk {
        group: String,
        psk: Psk,
        reply: Reply<(), Refused>,
    },
    RemovePsk {
        psk: PskId,
        reply: Reply<(), Refused>,
    },
    Inject {
        topic: Topic,
        payload: Bytes,
        reply: Reply<(), Refused>,
    },
    Disconnect {
        reply: oneshot::Sender<()>,
    },
    Reconnect {
        reply: oneshot::Sender<()>,
    },
    Stop,
}

/// Somebody who waits for the agent to stand somewhere.
pub(crate) struct Waiter {
    condition: Box<dyn Fn(&Status) -> bool + Send>,
    reply: oneshot::Sender<Status>,
}

impl Waiter {
    /// Whether there is nothing to wait for any more: the condition holds, or nobody waits.
    pub(crate) fn is_done(&self, status: &Status) -> bool {
        self.reply.is_closed() || (self.condition)(status)
    }

    pub(crate) fn answer(self, status: Status) {
        _ = self.reply.send(status);
    }
}

impl AgentHandle {
    /// The device.
    pub const fn device(&self) -> DeviceId {
        self.device
    }

    /// Seals a message for a group, see `fleetkey_agent_core::Agent::seal`.
    ///
    /// # Errors
    /// When it cannot be sealed, or the agent has stopped.
    pub async fn seal(
        &self,
        group: GroupId,
        plaintext: &[u8],
        context: &[u8],
        sign: bool,
    ) -> Result<Vec<u8>, CallError<CannotSeal>> {
        let plaintext = Zeroizing::new(plaintext.to_vec());
        let context = context.to_vec();
        self.call(|reply| Command::Seal { group, plaintext, context, sign, reply })
            .await?
            .map_err(CallError::Refused)
    }

    /// Opens a sealed message, see `fleetkey_agent_core::Agent::open`.
    ///
    /// # Errors
    /// When it does not open, or the agent has stopped.
    pub async fn open(&self, sealed: &[u8], context: &[u8]) -> Result<Opened, CallError<CannotOpen>> {
        let (sealed, context) = (sealed.to_vec(), context.to_vec());
        self.call(|reply| Command::Open { sealed, context, reply }).await?.map_err(CallError::Refused)
    }

    /// Derives a key for an application from the group's key in use.
    ///
    /// # Errors
    /// When there is none, or the agent has stopped.
    pub async fn app_key(
        &self,
        group: GroupId,
        label: &str,
        context: &[u8],
        length: AppKeyLength,
    ) -> Result<(KeyEpoch, Zeroizing<Vec<u8>>), CallError<CannotSeal>> {
        let (label, context) = (label.to_owned(), context.to_vec());
        self.call(|reply| Command::AppKey { group, label, context, length, reply })
            .await?
            .map_err(CallError::Refused)
    }

    /// Makes another device's certificate known, so that its signed messages open.
    ///
    /// # Errors
    /// When no pinned root vouches for it, or the agent has stopped.
    pub async fn know_sender(&self, chain: &[Vec<u8>]) -> Result<DeviceId, CallError<BadCertificate>> {
        let chain = chain.to_vec();
        self.call(|reply| Command::KnowSender { chain, reply }).await?.map_err(CallError::Refused)
    }

    /// Where the device stands.
    ///
    /// # Errors
    /// When the agent has stopped.
    pub async fn status(&self) -> Result<Status, Stopped> {
        self.call(|reply| Command::Status { reply }).await
    }

    /// Waits until the device stands where `condition` wants it, and says where that is.
    ///
    /// # Errors
    /// When the agent has stopped.
    pub async fn wait_until(
        &self,
        condition: impl Fn(&Status) -> bool + Send + 'static,
    ) -> Result<Status, Stopped> {
        let condition = Box::new(condition);
        self.call(|reply| Command::Wait(Waiter { condition, reply })).await
    }

    /// Tells the coordinator that the device wants to be out of a group.
    ///
    /// # Errors
    /// When it is not in it, or the agent has stopped.
    pub async fn leave(&self, group: GroupId) -> Result<(), CallError<Refused>> {
        self.call(|reply| Command::Leave { group, reply }).await?.map_err(CallError::Refused)
    }

    /// Gives the device a pre-shared key of a group, by its UUID or its name. When this returns it is stored.
    ///
    /// # Errors
    /// When it is refused or not stored, or the agent has stopped.
    pub async fn add_psk(&self, group: &str, psk: Psk) -> Result<(), CallError<Refused>> {
        let group = group.to_owned();
        self.call(|reply| Command::AddPsk { group, psk, reply }).await?.map_err(CallError::Refused)
    }

    /// Takes a pre-shared key from the device. When this returns it is forgotten.
    ///
    /// # Errors
    /// When there is none of that name or it is still stored, or the agent has stopped.
    pub async fn remove_psk(&self, psk: PskId) -> Result<(), CallError<Refused>> {
        self.call(|reply| Command::RemovePsk { psk, reply }).await?.map_err(CallError::Refused)
    }

    /// Gives the agent a message as if the broker had brought it: whoever can do that is no more than a hostile
    /// broker.
    ///
    /// # Errors
    /// When the message is refused, or the agent has stopped.
    pub async fn inject(&self, topic: Topic, payload: Bytes) -> Result<(), CallError<Refused>> {
        self.call(|reply| Command::Inject { topic, payload, reply }).await?.map_err(CallError::Refused)
    }

    /// Drops the connection to the broker without a word, like a cable that is pulled, and stays off.
    ///
    /// # Errors
    /// When the agent has stopped.
    pub async fn disconnect(&self) -> Result<(), Stopped> {
        self.call(|reply| Command::Disconnect { reply }).await
    }

    /// Connects again after [`Self::disconnect`].
    ///
    /// # Errors
    /// When the agent has stopped.
    pub async fn reconnect(&self) -> Result<(), Stopped> {
        self.call(|reply| Command::Reconnect { reply }).await
    }

    /// Stops the agent, with a word to the broker. Returns when it has stopped; a second call does no harm.
    pub async fn stop(&self) {
        _ = self.commands.send(Command::Stop).await;
        self.commands.closed().await;
    }

    /// Returns when the agent has stopped, for whatever reason.
    pub async fn stopped(&self) {
        self.commands.closed().await;
    }

    /// Events from now on. A listener that falls behind misses the oldest, and is told so.
    pub fn events(&self) -> broadcast::Receiver<AgentEvent> {
        self.events.subscribe()
    }

    /// What was sent and received so far.
    pub fn traffic(&self) -> Traffic {
        self.meter.read()
    }

    /// Every message received so far, if the agent was started to record them; the first
    /// [`crate::MAX_RECORDED_BYTES`] of them at most.
    pub fn recorded(&self) -> Vec<Recorded> {
        self.meter.recorded()
    }

    async fn call<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }
}

impl fmt::Debug for AgentHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentHandle").field("device", &self.device).finish_non_exhaustive()
    }
}
