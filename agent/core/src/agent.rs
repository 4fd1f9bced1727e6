//! The agent: what it is made of, how it comes back from its store, and where inputs go.

use std::collections::BTreeMap;

use fleetkey_identity::{FleetRoots, IdentityKey};
use fleetkey_mls::{LeafSigner, MemberCell};
use fleetkey_wire::keys::{BadPeerKey, LinkKey, Pairwise};
use fleetkey_wire::payload::Sealer;
use fleetkey_wire::{
    CellId, Confirmation, DeviceId, FleetId, GroupId, Hello, HelloCell, Millis, Named, Now,
    ShortAuthenticator, Topic, UpBody,
};
use rand_core::CryptoRngCore;

use crate::certificate::CoordinatorCertificate;
use crate::config::AgentConfig;
use crate::confirmations::Confirmations;
use crate::connection::Connection;
use crate::effects::{Effects, Event, Input, Output};
use crate::evidence::Evidence;
use crate::group::GroupKeys;
use crate::keypackages::KeyPackages;
use crate::pacing::{BackOff, BackOffPace, Pace};
use crate::payloads::KnownSenders;
use crate::psks::Psks;
use crate::refused::Refused;
use crate::silence::Silence;
use crate::store::{Entries, Writes};
use crate::stored::{
    EntryKey, StoredCertificate, StoredError, StoredIdentity, StoredSilence, decode, encode,
};

/// A device's half of Fleetkey.
#[derive(Debug)]
pub struct Agent {
    pub(crate) fleet: FleetId,
    pub(crate) device: DeviceId,
    pub(crate) identity: IdentityKey,
    pub(crate) signer: LeafSigner,
    pub(crate) roots: FleetRoots,
    pub(crate) coordinator: CoordinatorCertificate,
    pub(crate) pairwise: Pairwise,
    pub(crate) link_key: LinkKey,
    pub(crate) cells: BTreeMap<CellId, MemberCell>,
    pub(crate) groups: BTreeMap<GroupId, Group>,
    pub(crate) key_packages: KeyPackages,
    pub(crate) evidence: Evidence,
    pub(crate) psks: Psks,
    pub(crate) silence: Silence,
    pub(crate) connection: Option<Connection>,
    pub(crate) paces: Paces,
    pub(crate) known_senders: KnownSenders,
    pub(crate) refusals: BTreeMap<&'static str, u64>,
}

/// One group, and what goes on around its keys.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) keys: GroupKeys,
    /// For the key epoch in use, since this start.
    pub(crate) sealer: Option<Sealer>,
    pub(crate) confirmations: Confirmations,
    /// The device's owner wants it to be out: said after each answer, until it is.
    pub(crate) leaving: Option<Leaving>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    ToBeSaid,
    Said,
}

impl Group {
    pub(crate) const fn new(keys: GroupKeys) -> Self {
        Self { keys, sealer: None, confirmations: Confirmations::new(), leaving: None }
    }
}

/// How often others can make the device say hello.
#[derive(Debug)]
pub(crate) struct Paces {
    /// By a poke, or an authentic frame of another connection: both can be replayed.
    pub(crate) unproven: Pace,
    /// By a coordinator that says it has begun anew, or asks.
    pub(crate) proven: Pace,
    /// By a cell frame that is ahead: anyone who may publish to the cell can.
    pub(crate) ahead: BackOffPace,
}

impl Default for Paces {
    fn default() -> Self {
        Self {
            unproven: Pace::of(10_000),
            proven: Pace::of(1_000),
            ahead: BackOffPace::new(BackOff::new(2_000, 60_000)),
        }
    }
}

/// Why an agent did not come back from its store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The store does not make sense.
    #[error(transparent)]
    Stored(#[from] StoredError),
    /// The store belongs to another device.
    #[error("the store is of device {stored}, not of {own}")]
    StoreOfAnotherDevice {
        /// Whose it is.
        stored: DeviceId,
        /// The device that was to be loaded.
        own: DeviceId,
    },
    /// The store was made under another identity key of this device.
    #[error("the store was made under another identity key of device {device}")]
    StoreOfAnotherKey {
        /// The device.
        device: DeviceId,
    },
    /// The pinned roots are another fleet's.
    #[error("the pinned roots are of fleet {roots}, the device is of fleet {own}")]
    RootsOfAnotherFleet {
        /// The fleet of the roots.
        roots: FleetId,
        /// The device's.
        own: FleetId,
    },
    /// The coordinator's certificate, provisioned or stored, does not hold.
    #[error("coordinator's certificate: {0}")]
    Coordinator(Refused),
    /// No secret can be agreed on with the coordinator.
    #[error("coordinator's key: {0}")]
    CoordinatorKey(#[from] BadPeerKey),
}

impl Agent {
    /// The agent that `entries` describe, a new one when there are none, and what is to be stored before its first
    /// input.
    ///
    /// # Errors
    /// When the store, or the configuration, does not make sense. Nothing is repaired silently.
    pub fn load(config: AgentConfig, entries: &Entries, now: Now) -> Result<(Self, Writes), LoadError> {
        let AgentConfig { fleet, device, identity, roots, coordinator_chain } = config;
        if roots.fleet() != fleet {
            return Err(LoadError::RootsOfAnotherFleet { roots: roots.fleet(), own: fleet });
        }
        let mut writes = Writes::default();
        let own = StoredIdentity { fleet, device, public_key: identity.public_key() };
        check_identity(&own, entries, &mut writes)?;
        let coordinator = load_coordinator(&coordinator_chain, &roots, entries, &mut writes)?;
        let pairwise = Pairwise::agree(fleet, device, identity.signing_key(), &coordinator.public_key())?;
        let mut agent = Self {
            fleet,
            device,
            signer: LeafSigner::new(&identity.seed()),
            identity,
            roots,
            coordinator,
            link_key: pairwise.link_key(),
            pairwise,
            cells: BTreeMap::new(),
            groups: BTreeMap::new(),
            key_packages: KeyPackages::default(),
            evidence: Evidence::default(),
            psks: Psks::default(),
            silence: Silence::resume(None, now.mono),
            connection: None,
            paces: Paces::default(),
            known_senders: KnownSenders::default(),
            refusals: BTreeMap::new(),
        };
        for (text, bytes) in entries {
            agent.restore(EntryKey::parse(text)?, bytes, now.mono)?;
        }
        agent.check_whole()?;
        Ok((agent, writes))
    }

    fn restore(&mut self, key: EntryKey, bytes: &[u8], now: Millis) -> Result<(), StoredError> {
        match key {
            EntryKey::Identity | EntryKey::Certificate => {}
            EntryKey::Cell(cell) => {
                let member = MemberCell::restore(bytes).map_err(|error| key.mls(error))?;
                let context = member.context();
                if (context.fleet, context.cell, member.device()) != (self.fleet, cell, self.device) {
                    return Err(key.damaged("it is another cell, or another device's"));
                }
                self.cells.insert(cell, member);
            }
            EntryKey::Group(group) => {
                let keys = GroupKeys::from_stored(group, decode(&key, bytes)?)?;
                self.groups.insert(group, Group::new(keys));
            }
            EntryKey::KeyPackage(reference) => self.key_packages.restore(reference, bytes)?,
            EntryKey::Evidence(group) => self.evidence.restore(group, &decode(&key, bytes)?),
            EntryKey::Psk(psk) => self.psks.restore(psk, bytes)?,
            EntryKey::Silence => {
                self.silence = Silence::resume(Some(decode::<StoredSilence>(&key, bytes)?), now);
            }
        }
        Ok(())
    }

    /// Each cell has its group, and each group its cell.
    fn check_whole(&self) -> Result<(), StoredError> {
        for (cell, member) in &self.cells {
            if self.groups.get(&member.context().group).is_none_or(|group| group.keys.cell != *cell) {
                return Err(EntryKey::Cell(*cell).damaged("its group is not stored"));
            }
        }
        for (group, of) in &self.groups {
            if !self.cells.contains_key(&of.keys.cell) {
                return Err(EntryKey::Group(*group).damaged("its cell is not stored"));
            }
        }
        Ok(())
    }

    /// Takes one input in, and says what it leads to. The caller commits the writes before it performs any output;
    /// when it cannot, it drops this agent and loads it again.
    pub fn handle(&mut self, input: Input<'_>, now: Now, rng: &mut dyn CryptoRngCore) -> Effects {
        let mut effects = Effects::default();
        if let Err(refused) = self.take_in(input, now.mono, rng, &mut effects) {
            *self.refusals.entry(refused.name()).or_default() += 1;
            tracing::debug!(device = %self.device, refused = refused.name(), %refused);
            effects.refused = Some(refused);
        }
        self.do_what_is_due(now.mono, rng, &mut effects);
        effects
    }

    fn take_in(
        &mut self,
        input: Input<'_>,
        now: Millis,
        rng: &mut dyn CryptoRngCore,
        effects: &mut Effects,
    ) -> Result<(), Refused> {
        match input {
            Input::Connected => self.connect(rng, effects),
            Input::Disconnected => self.connection = None,
            Input::Subscribed { topic } => {
                if let Some(connection) = &mut self.connection {
                    connection.granted(topic, now);
                }
            }
            Input::SubscribeRefused { topic } => {
                if let Some(connection) = &mut self.connection {
                    connection.denied(topic);
                }
            }
            Input::Message { topic, payload } => return self.receive(topic, payload, now, rng, effects),
            Input::MessagesDropped => {
                let at = self.paces.proven.next(now);
                if let Some(connection) = &mut self.connection {
                    connection.ask_for_hello(at);
                }
            }
            Input::Timeout => self.mark_silence(now, effects),
            Input::Leave { group } => {
                let group = self.groups.get_mut(&group).ok_or(Refused::UnknownGroup { group })?;
                group.leaving = Some(Leaving::ToBeSaid);
            }
            Input::AddPsk { group, psk } => return self.add_psk(group, psk, effects),
            Input::RemovePsk { psk } => return self.remove_psk(psk, effects),
        }
        Ok(())
    }

    fn connect(&mut self, rng: &mut dyn CryptoRngCore, effects: &mut Effects) {
        let mut connection = Connection::new(self.link_key.clone(), self.down_topic(), rng);
        for topic in self.topics() {
            connection.want(topic);
            effects.outputs.push(Output::Subscribe { topic });
        }
        self.connection = Some(connection);
        self.evidence.show_again();
        for group in self.groups.values_mut() {
            group.leaving = group.leaving.map(|_| Leaving::ToBeSaid);
        }
    }

    fn receive(
        &mut self,
        topic: Topic,
        payload: &[u8],
        now: Millis,
        rng: &mut dyn CryptoRngCore,
        effects: &mut Effects,
    ) -> Result<(), Refused> {
        if topic.fleet() != self.fleet {
            return Err(Refused::OtherFleet { got: topic.fleet(), own: self.fleet });
        }
        match topic {
            Topic::Cell { cell, .. } => self.receive_cell_frame(cell, payload, now, effects),
            Topic::Down { device, .. } if device == self.device => {
                self.receive_down_frame(payload, now, rng, effects)
            }
            Topic::Down { .. } | Topic::Up { .. } => Err(Refused::UnexpectedTopic { topic }),
        }
    }

    /// What time has brought, and what the input has made due.
    fn do_what_is_due(&mut self, now: Millis, rng: &mut dyn CryptoRngCore, effects: &mut Effects) {
        for group in self.groups.values_mut() {
            group.keys.forget(now);
        }
        if self.silence.announce(now) {
            effects.event(Event::Silent { seconds: self.silence.elapsed_ms(now) / 1000 });
        }
        let Some(connection) = &mut self.connection else { return };
        if connection.is_hello_due(now) {
            self.say_hello(now, rng, effects);
        }
        if self.is_answered() {
            self.say_what_waited_for_an_answer(now, effects);
        }
    }

    fn say_hello(&mut self, now: Millis, rng: &mut dyn CryptoRngCore, effects: &mut Effects) {
        let hello = UpBody::Hello(self.hello());
        let topic = self.up_topic();
        let Some(connection) = &mut self.connection else { return };
        let (payload, counter) = connection.link.seal(&hello);
        connection.said_hello(counter, now, rng);
        effects.outputs.push(Output::Publish { topic, payload });
    }

    fn hello(&self) -> Hello {
        let cells = self.groups.values().filter_map(|group| {
            let member = self.cells.get(&group.keys.cell)?;
            Some(HelloCell {
                cell: group.keys.cell,
                cell_epoch: member.epoch(),
                authenticator: ShortAuthenticator(member.epoch_authenticator8()),
                statement: group.keys.newest_digest(),
                key_epoch: group.keys.key_epochs().next_back().unwrap_or_default(),
                send: group.keys.send(),
                oldest: group.keys.oldest(),
            })
        });
        Hello { generation: self.coordinator.generation, cells: cells.collect() }
    }

    /// Everything but a hello counts only in answer to the coordinator's nonce, so it has waited for that.
    fn say_what_waited_for_an_answer(&mut self, now: Millis, effects: &mut Effects) {
        let mut bodies = Vec::new();
        // First: what follows may depend on it.
        if let Some(connection) = self.connection.as_mut().filter(|connection| !connection.are_psks_told) {
            connection.are_psks_told = true;
            bodies.extend(self.psks.to_tell().map(|held| UpBody::Psks { held }));
        }
        for (id, group) in &mut self.groups {
            if let Some(key_epoch) = group.confirmations.take(now)
                && let Some(secret) = group.keys.held(key_epoch)
            {
                let confirmation = Confirmation {
                    fleet: self.fleet,
                    group: *id,
                    key_epoch,
                    commitment: secret.commitment(*id, key_epoch),
                    device: self.device,
                };
                bodies.push(UpBody::Confirm {
                    group: *id,
                    key_epoch,
                    statement: group.keys.newest_digest(),
                    proof: confirmation.prove(&self.pairwise, secret),
                });
            }
            if group.leaving == Some(Leaving::ToBeSaid) {
                group.leaving = Some(Leaving::Said);
                bodies.push(UpBody::Leave { group: *id });
            }
        }
        for statement in self.evidence.take_unshown() {
            bodies.push(UpBody::Evidence { statement });
        }
        for body in bodies {
            self.say(&body, effects);
        }
    }

    /// Publishes `body` on the device's `up` topic.
    pub(crate) fn say(&mut self, body: &UpBody, effects: &mut Effects) {
        let topic = self.up_topic();
        if let Some(connection) = &mut self.connection {
            let (payload, _) = connection.link.seal(body);
            effects.outputs.push(Output::Publish { topic, payload });
        }
    }

    pub(crate) fn mark_silence(&mut self, now: Millis, effects: &mut Effects) {
        if let Some(stored) = self.silence.mark(now) {
            effects.writes.put(EntryKey::Silence.to_string(), encode(&stored));
        }
    }

    /// When the agent wants an [`Input::Timeout`], if nothing else comes before.
    pub fn poll_timeout(&self) -> Option<Millis> {
        let is_answered = self.is_answered();
        let groups = self
            .groups
            .values()
            .flat_map(|group| [group.keys.wake_at(), group.confirmations.wake_at().filter(|_| is_answered)]);
        let connection = self.connection.as_ref().and_then(Connection::wake_at);
        groups.flatten().chain(connection).chain([self.silence.wake_at()]).min()
    }

    /// Whether the coordinator has answered a hello on this connection.
    pub fn is_answered(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.link.is_answered())
    }

    /// The topics to be subscribed to now. [`Output::Subscribe`] and [`Output::Unsubscribe`] say what changes.
    pub fn topics(&self) -> Vec<Topic> {
        self.cells.keys().map(|cell| self.cell_topic(*cell)).chain([self.down_topic()]).collect()
    }

    pub(crate) const fn down_topic(&self) -> Topic {
        Topic::Down { fleet: self.fleet, device: self.device }
    }

    const fn up_topic(&self) -> Topic {
        Topic::Up { fleet: self.fleet, device: self.device }
    }

    pub(crate) const fn cell_topic(&self, cell: CellId) -> Topic {
        Topic::Cell { fleet: self.fleet, cell }
    }
}

fn check_identity(own: &StoredIdentity, entries: &Entries, writes: &mut Writes) -> Result<(), LoadError> {
    let Some(bytes) = entries.get(&EntryKey::Identity.to_string()) else {
        writes.put(EntryKey::Identity.to_string(), encode(own));
        return Ok(());
    };
    let stored: StoredIdentity = decode(&EntryKey::Identity, bytes)?;
    if (stored.fleet, stored.device) != (own.fleet, own.device) {
        return Err(LoadError::StoreOfAnotherDevice { stored: stored.device, own: own.device });
    }
    if stored.public_key != own.public_key {
        return Err(LoadError::StoreOfAnotherKey { device: own.device });
    }
    Ok(())
}

/// The provisioned certificate, or the stored one where that is newer.
fn load_coordinator(
    provisioned: &[Vec<u8>],
    roots: &FleetRoots,
    entries: &Entries,
    writes: &mut Writes,
) -> Result<CoordinatorCertificate, LoadError> {
    let stored = entries.get(&EntryKey::Certificate.to_string());
    let stored =
        stored.map(|bytes| decode::<StoredCertificate>(&EntryKey::Certificate, bytes)).transpose()?;
    let stored: Option<Vec<Vec<u8>>> =
        stored.map(|stored| stored.chain.iter().map(|der| der.0.to_vec()).collect());
    let is_as_provisioned = stored.as_deref() == Some(provisioned);
    let provisioned = CoordinatorCertificate::verify(provisioned, roots).map_err(LoadError::Coordinator)?;
    // Most never see another one: its signatures are verified once.
    if is_as_provisioned {
        return Ok(provisioned);
    }
    let Some(stored) = stored else {
        writes.put(EntryKey::Certificate.to_string(), encode(&provisioned.to_stored()));
        return Ok(provisioned);
    };
    let stored = CoordinatorCertificate::verify(&stored, roots).map_err(LoadError::Coordinator)?;
    if provisioned.generation <= stored.generation {
        return Ok(stored);
    }
    let newer = stored.replaced_by(provisioned).map_err(LoadError::Coordinator)?;
    let newer = newer.unwrap_or(stored);
    writes.put(EntryKey::Certificate.to_string(), encode(&newer.to_stored()));
    Ok(newer)
}
