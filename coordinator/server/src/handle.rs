//! The way to give commands to a running coordinator, and to ask it.

use std::fmt;

use fleetkey_coordinator_core::operators::ActiveOperators;
use fleetkey_coordinator_core::{
    Actor, CommandError, Coordinator, DeviceRecord, Event, GroupStatus, MemberRecord, Policy, Status,
};
use fleetkey_wire::error::Named;
use fleetkey_wire::{DeviceId, GroupId, KeyEpoch, Now};
use rand_core::CryptoRngCore;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::cpu::ThreadCpu;
use crate::engine::{Answer, Command, CommandFailed};
use crate::feed::PolicyFeed;
use crate::meter;
use crate::stats::{Counts, Stats};

/// The way to give commands to a running coordinator and to ask it; cheap to clone.
///
/// A command's answer comes when its transaction is committed.
#[derive(Clone)]
pub struct ServiceHandle {
    pub(crate) actor: Actor,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) feed: PolicyFeed,
    pub(crate) operators: watch::Receiver<ActiveOperators>,
    pub(crate) counts: Counts,
    pub(crate) cpu: Option<ThreadCpu>,
    pub(crate) is_loaded: watch::Receiver<bool>,
    pub(crate) is_connected: watch::Receiver<bool>,
}

impl ServiceHandle {
    /// The same, for somebody else: what is commanded through it the audit log tells as theirs.
    #[must_use]
    pub fn acting_as(&self, actor: Actor) -> Self {
        Self { actor, ..self.clone() }
    }

    /// Enrols a device: from now on it may be in groups.
    ///
    /// # Errors
    /// [`CommandFailed`].
    pub async fn enroll_device(
        &self,
        id: DeviceId,
        name: impl Into<String>,
        public_key: [u8; 32],
    ) -> Result<(), CommandFailed> {
        let name = name.into();
        self.decide(move |coordinator, now, _| coordinator.enroll_device(id, &name, public_key, now)).await
    }

    /// Creates a group.
    ///
    /// # Errors
    /// [`CommandFailed`].
    pub async fn create_group(
        &self,
        name: impl Into<String>,
        policy: Policy,
    ) -> Result<GroupId, CommandFailed> {
        let name = name.into();
        self.decide(move |coordinator, now, rng| coordinator.create_group(&name, policy, now, rng)).await
    }

    /// Wants devices in a group; answers how many of them were not wanted in it before.
    ///
    /// # Errors
    /// [`CommandFailed`].
    pub async fn add_members(&self, group: GroupId, devices: Vec<DeviceId>) -> Result<usize, CommandFailed> {
        self.decide(move |coordinator, now, rng| coordinator.add_members(group, &devices, now, rng)).await
    }

    /// Takes devices out of a group.
    ///
    /// # Errors
    /// [`CommandFailed`].
    pub async fn evict(&self, group: GroupId, devices: Vec<DeviceId>) -> Result<(), CommandFailed> {
        self.decide(move |coordinator, now, rng| coordinator.evict(group, &devices, now, rng)).await
    }

    /// Ends the identities of devices, for ever. Answers which groups were rekeyed on that account.
    ///
    /// # Errors
    /// [`CommandFailed`].
    pub async fn revoke(
        &self,
        devices: Vec<DeviceId>,
        reason: impl Into<String>,
    ) -> Result<Vec<GroupId>, CommandFailed> {
        self.revoke_within(devices, reason, None).await
    }

    /// The same, with a deadline for whoever remains.
    ///
    /// # Errors
    /// [`CommandFailed`].
    pub async fn revoke_within(
        &self,
        devices: Vec<DeviceId>,
        reason: impl Into<String>,
        deadline_seconds: Option<u64>,
    ) -> Result<Vec<GroupId>, CommandFailed> {
        let reason = reason.into();
        self.decide(move |coordinator, now, rng| {
            let mut groups: Vec<GroupId> = devices
                .iter()
                .flat_map(|device| coordinator.groups_of(*device))
                .map(|member| member.group)
                .collect();
            groups.sort_unstable();
            groups.dedup();
            coordinator.revoke_within(&devices, &reason, deadline_seconds, now, rng)?;
            Ok(groups)
        })
        .await
    }

    /// Moves a group to a new key at once.
    ///
    /// # Errors
    /// [`CommandFailed`].
    pub async fn rekey(&self, group: GroupId) -> Result<KeyEpoch, CommandFailed> {
        self.decide(move |coordinator, now, rng| coordinator.rekey(group, now, rng)).await
    }

    /// Begins a rotation in three phases; answers the key epoch that it leads to.
    ///
    /// # Errors
    /// [`CommandFailed`].
    pub async fn rotate(&self, group: GroupId) -> Result<KeyEpoch, CommandFailed> {
        self.decide(move |coordinator, now, rng| coordinator.rotate(group, now, rng)).await
    }

    /// Lets a device out of quarantine.
    ///
    /// # Errors
    /// [`CommandFailed`].
    pub async fn release(&self, device: DeviceId) -> Result<(), CommandFailed> {
        self.decide(move |coordinator, now, _| coordinator.release(device, now)).await
    }

    /// The coordinator as it stands.
    ///
    /// # Errors
    /// [`CommandFailed::Unavailable`] and [`CommandFailed::NotStored`].
    pub async fn status(&self) -> Result<Status, CommandFailed> {
        self.query(|coordinator, now| coordinator.status(now)).await
    }

    /// Every group as it stands.
    ///
    /// # Errors
    /// [`CommandFailed::Unavailable`] and [`CommandFailed::NotStored`].
    pub async fn group_statuses(&self) -> Result<Vec<GroupStatus>, CommandFailed> {
        self.query(|coordinator, now| coordinator.group_statuses(now)).await
    }

    /// One group as it stands.
    ///
    /// # Errors
    /// [`CommandFailed`].
    pub async fn group_status(&self, group: GroupId) -> Result<GroupStatus, CommandFailed> {
        self.query(move |coordinator, now| coordinator.group_status(group, now))
            .await?
            .ok_or(CommandFailed::Refused(CommandError::UnknownGroup(group)))
    }

    /// The members of a group, in the order of their ids.
    ///
    /// # Errors
    /// [`CommandFailed`].
    pub async fn members(&self, group: GroupId) -> Result<Vec<MemberRecord>, CommandFailed> {
        self.query(move |coordinator, _| coordinator.members(group).cloned().collect()).await
    }

    /// Every device, in the order of their ids.
    ///
    /// # Errors
    /// [`CommandFailed::Unavailable`] and [`CommandFailed::NotStored`].
    pub async fn devices(&self) -> Result<Vec<DeviceRecord>, CommandFailed> {
        self.query(|coordinator, _| coordinator.devices().cloned().collect()).await
    }

    /// Asks the coordinator something.
    ///
    /// # Errors
    /// [`CommandFailed::Unavailable`], and [`CommandFailed::NotStored`] when what it would speak of was undone.
    pub async fn query<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Coordinator, Now) -> T + Send + 'static,
    ) -> Result<T, CommandFailed> {
        self.decide(move |coordinator, now, _| Ok(ask(coordinator, now))).await
    }

    /// Gives a command of the caller's own making.
    ///
    /// # Errors
    /// [`CommandFailed`].
    pub async fn decide<T: Send + 'static>(
        &self,
        decide: impl FnOnce(&mut Coordinator, Now, &mut dyn CryptoRngCore) -> Result<T, CommandError>
        + Send
        + 'static,
    ) -> Result<T, CommandFailed> {
        let (tell, told) = oneshot::channel();
        let actor = self.actor.clone();
        let decide = Box::new(move |coordinator: &mut Coordinator, now: Now, rng: &mut dyn CryptoRngCore| {
            let decided = coordinator.acting_for(actor, now, |coordinator| decide(coordinator, now, rng));
            let answer: Answer = Box::new(move |committed| {
                let answer = match (decided, committed) {
                    (Err(refused), _) => Err(CommandFailed::Refused(refused)),
                    (Ok(_), Err(why)) => Err(CommandFailed::NotStored { why }),
                    (Ok(value), Ok(())) => Ok(value),
                };
                // Whoever asked may have left.
                let _ = tell.send(answer);
            });
            answer
        });
        let answer = match self.commands.send(Command { decide }).await {
            Ok(()) => told.await.unwrap_or(Err(CommandFailed::Unavailable)),
            Err(_) => Err(CommandFailed::Unavailable),
        };
        if let Err(failed) = &answer {
            meter::command_refused(failed.name());
        }
        answer
    }

    /// What happens from now on. A receiver that falls too far behind is told how many events it has lost.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// What brokers are told.
    pub fn policy_feed(&self) -> &PolicyFeed {
        &self.feed
    }

    /// Whose tokens open something: as of the last command that was answered, or later.
    pub fn operators(&self) -> watch::Receiver<ActiveOperators> {
        self.operators.clone()
    }

    /// What was received, sent and spent so far.
    ///
    /// # Errors
    /// [`CommandFailed::Unavailable`] and [`CommandFailed::NotStored`].
    pub async fn stats(&self) -> Result<Stats, CommandFailed> {
        let signatures = self.query(|coordinator, now| coordinator.status(now).signatures).await?;
        let cpu = self.cpu.as_ref().and_then(ThreadCpu::read);
        let cpu_microseconds = cpu.map(|spent| u64::try_from(spent.as_micros()).unwrap_or(u64::MAX));
        Ok(Stats { signatures, cpu_microseconds, ..self.counts.lock().clone() })
    }

    /// Begins the maxima of [`Stats`] anew.
    pub fn restart_maxima(&self) {
        self.counts.restart_maxima();
    }

    /// Whether the coordinator is loaded, and follows commands.
    pub fn is_loaded(&self) -> bool {
        *self.is_loaded.borrow() && self.is_loaded.has_changed().is_ok()
    }

    /// Whether there is a connection to the broker, with the subscription in force.
    pub fn is_connected(&self) -> bool {
        *self.is_connected.borrow()
    }

    /// Returns when there is a connection to the broker, or never will be.
    pub async fn connected(&self) {
        // An error means that the service has ended.
        let _ = self.is_connected.clone().wait_for(|connected| *connected).await;
    }

    /// Returns when the coordinator is loaded, or never will be.
    pub async fn loaded(&self) {
        // An error means that the service has ended.
        let _ = self.is_loaded.clone().wait_for(|loaded| *loaded).await;
    }

    /// Returns when the deciding thread has ended.
    pub async fn stopped(&self) {
        let mut is_loaded = self.is_loaded.clone();
        while is_loaded.changed().await.is_ok() {}
    }
}

#[cfg(test)]
impl ServiceHandle {
    /// Messages taken from devices so far.
    pub(crate) fn received(&self) -> u64 {
        self.counts.lock().received.messages
    }

    /// Commands that the engine has not taken yet.
    pub(crate) fn waiting_commands(&self) -> usize {
        self.commands.max_capacity() - self.commands.capacity()
    }
}

impl fmt::Debug for ServiceHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceHandle")
            .field("is_loaded", &self.is_loaded())
            .field("is_connected", &self.is_connected())
            .finish_non_exhaustive()
    }
}
