//! The coordinator's side of a cell.
//!
//! Leaves to `commit` what goes into a commit; to the caller when there is one, and the storing of the cell
//! before anything of it is sent.

use std::collections::BTreeMap;
use std::fmt;

use fleetkey_wire::keys::Kek;
use fleetkey_wire::{CellEpoch, DeviceId, Suite};
use openmls::group::{MlsGroup, MlsGroupCreateConfig};
use openmls::prelude::PURE_CIPHERTEXT_WIRE_FORMAT_POLICY;
use openmls_traits::OpenMlsProvider as _;
use zeroize::Zeroizing;

use crate::batch::check_update;
use crate::commit::{Changes, CommitOutcome, commit};
use crate::context::CellContext;
use crate::error::{LocalError, MlsError};
use crate::leaf::{coordinator_credential, device_credential, with_key};
use crate::message::{damaged, group_id};
use crate::provider::{Provider, capabilities, ciphersuite, lifetime, ratchets};
use crate::signer::{LeafSigner, MlsSigner};
use crate::slots::Slots;
use crate::snapshot::{Reader, Writer};
use crate::state::{CellState, EpochKeys};

const VERSION: u8 = 1;

/// A cell, as the coordinator has it.
#[derive(Clone)]
pub struct ManagedCell {
    pub(crate) state: CellState,
    pub(crate) roster: BTreeMap<DeviceId, Seat>,
}

/// Where a device sits in the tree, and the key it enrolled with. Leaves are found by this record alone, never
/// by what they say of themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seat {
    pub(crate) leaf: u32,
    pub(crate) signature_key: [u8; 32],
}

impl ManagedCell {
    /// A new cell, with the coordinator alone in it. The cell's id must never have been used before.
    pub fn create(context: CellContext, suite: Suite, signer: &LeafSigner) -> Result<Self, LocalError> {
        let config = MlsGroupCreateConfig::builder()
            .ciphersuite(ciphersuite(suite))
            .capabilities(capabilities(suite))
            .lifetime(lifetime())
            .wire_format_policy(PURE_CIPHERTEXT_WIRE_FORMAT_POLICY)
            .padding_size(0)
            .max_past_epochs(0)
            .number_of_resumption_psks(0)
            .use_ratchet_tree_extension(true)
            .sender_ratchet_configuration(ratchets())
            .build();
        let credential = with_key(coordinator_credential(context.fleet), signer);
        let mut slots = Slots::default();
        let provider = Provider::over(&slots);
        provider.storage().record();
        let id = group_id(context.cell);
        let group = MlsGroup::new_with_group_id(&provider, &MlsSigner(signer), &config, id, credential)
            .map_err(|error| LocalError::Engine { doing: "creating a cell", reason: error.to_string() })?;
        let keys = EpochKeys::of(&group, &provider, &context)?;
        let changes = provider.into_changes();
        slots.apply(changes);
        slots.keep_no_resumption_psks().map_err(|error| damaged(&error))?;
        Ok(Self { state: CellState { context, suite, slots, keys }, roster: BTreeMap::new() })
    }

    /// The cell that [`Self::snapshot`] has written.
    pub fn restore(bytes: &[u8]) -> Result<Self, LocalError> {
        let mut input = Reader::new("a managed cell", VERSION, bytes)?;
        let state = CellState::read(&mut input)?;
        let mut roster = BTreeMap::new();
        for _ in 0..input.number()? {
            let device = DeviceId::from_bytes(input.array()?);
            roster.insert(device, Seat { leaf: input.number()?, signature_key: input.array()? });
        }
        input.finish()?;
        Ok(Self { state, roster })
    }

    /// All of the cell, secrets included, to be stored encrypted.
    pub fn snapshot(&self) -> Zeroizing<Vec<u8>> {
        let mut out = Writer::new(VERSION, self.state.size() + self.roster.len() * 52);
        self.state.write(&mut out);
        out.number(u32::try_from(self.roster.len()).expect("a tree has fewer than 2^32 leaves"));
        for (device, seat) in &self.roster {
            out.array(device.as_bytes());
            out.number(seat.leaf);
            out.array(&seat.signature_key);
        }
        out.finish()
    }

    /// Puts `changes` into one commit, and moves on to the epoch it leads to.
    ///
    /// What cannot be done is dropped and named; the rest goes on. The caller stores [`Self::snapshot`] before
    /// it sends anything; when that fails it drops this cell and restores the one it had.
    pub fn commit(&mut self, signer: &LeafSigner, changes: Changes) -> Result<CommitOutcome, LocalError> {
        commit(self, signer, changes)
    }

    /// Whether an Update proposal that came from `device` could be covered by a commit now. Changes nothing.
    pub fn check_update(&self, device: DeviceId, update: &[u8]) -> Result<(), MlsError> {
        let provider = Provider::over(&self.state.slots);
        let mut group = self.state.load(&provider)?;
        check_update(self, &provider, &mut group, device, update).map(drop)
    }

    /// Whether the MLS group is what this cell says of it: at its epoch, with its keys, with the coordinator's leaf and
    /// one for each device of the roster in its seat, and with no other. For inspections: it loads the group.
    ///
    /// # Errors
    /// [`LocalError::Damaged`] with the first thing that is otherwise.
    pub fn inspect(&self) -> Result<(), LocalError> {
        let otherwise = |reason: String| Err(LocalError::Damaged { what: "a cell's tree", reason });
        let provider = Provider::over(&self.state.slots);
        let group = self.state.load(&provider)?;
        let keys = EpochKeys::of(&group, &provider, self.context())?;
        let kept = &self.state.keys;
        if keys.epoch != kept.epoch || keys.authenticator8 != kept.authenticator8 {
            return otherwise(format!("the group is at epoch {}, the cell at {}", keys.epoch, kept.epoch));
        }
        if keys.kek.as_bytes() != kept.kek.as_bytes() {
            return otherwise("the cell's KEK is not the group's".to_owned());
        }
        let own = group.own_leaf_index().u32();
        let mut seats: BTreeMap<u32, (DeviceId, [u8; 32])> =
            self.roster.iter().map(|(device, seat)| (seat.leaf, (*device, seat.signature_key))).collect();
        for member in group.members().filter(|member| member.index.u32() != own) {
            let leaf = member.index.u32();
            let Some((device, signature_key)) = seats.remove(&leaf) else {
                return otherwise(format!("leaf {leaf} is nobody's"));
            };
            let is_its = member.credential == device_credential(device);
            if !is_its || member.signature_key.as_slice() != signature_key.as_slice() {
                return otherwise(format!("leaf {leaf} is not device {device}'s"));
            }
        }
        match seats.pop_first() {
            Some((leaf, (device, _))) => otherwise(format!("leaf {leaf}, of device {device}, is not there")),
            None => Ok(()),
        }
    }

    /// The signature key that a device's leaf was added under.
    pub fn signature_key_of(&self, device: DeviceId) -> Option<[u8; 32]> {
        self.roster.get(&device).map(|seat| seat.signature_key)
    }

    /// Which cell it is.
    pub const fn context(&self) -> &CellContext {
        &self.state.context
    }

    /// Its cipher suite.
    pub const fn suite(&self) -> Suite {
        self.state.suite
    }

    /// Its epoch.
    pub const fn epoch(&self) -> CellEpoch {
        self.state.keys.epoch
    }

    /// The key-encryption key of its epoch.
    pub fn kek(&self) -> Kek {
        self.state.keys.kek.clone()
    }

    /// The first bytes of its epoch authenticator (RFC 9420 §8.7): equal on both sides exactly when they are
    /// in the same epoch of the same history.
    pub const fn epoch_authenticator8(&self) -> [u8; 8] {
        self.state.keys.authenticator8
    }

    /// The devices in it, in the order of their ids.
    pub fn members(&self) -> impl ExactSizeIterator<Item = DeviceId> {
        self.roster.keys().copied()
    }

    /// Whether `device` is in it.
    pub fn contains(&self, device: DeviceId) -> bool {
        self.roster.contains_key(&device)
    }

    /// How many devices are in it.
    pub fn len(&self) -> usize {
        self.roster.len()
    }

    /// Whether the coordinator is alone in it.
    pub fn is_empty(&self) -> bool {
        self.roster.is_empty()
    }
}

impl fmt::Debug for ManagedCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManagedCell")
            .field("cell", &self.context().cell)
            .field("epoch", &self.epoch())
            .field("members", &self.len())
            .finish_non_exhaustive()
    }
}
